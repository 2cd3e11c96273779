"""`trimaran`: one command for everything a person does with a Trimaran cluster.

Exit codes: 0 done; 1 the request failed; 2 the command line is wrong; 3 no endpoint of the store
answered; 130 interrupted.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import click
from click.core import ParameterSource

from trimaran._version import VERSION
from trimaran.daemons.cli_context import (
    DEFAULT_ENDPOINT,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_UNAVAILABLE,
    CommandContext,
    default_endpoints,
    json_option,
    read_connection,
)
from trimaran.daemons.standard_streams import reserve_standard_streams
from trimaran.errors import (
    ETCD_ERRORS,
    StatusCode,
    StoreError,
    StoreUnavailableError,
    TrimaranError,
)

# Command -> (module, attribute, help). A module is imported only when its command runs, so that
# `trimaran kv get` does not pay for the fleet.
COMMANDS: Final = {
    "up": ("up", "up", "Bring this machine up as a Trimaran host."),
    "unit": ("cli_unit", "unit", "Submit, start, stop and list units of the fleet."),
    "machine": ("cli_machine", "machine", "List the machines of the fleet; forget lost ones."),
    "net": ("cli_net", "net", "Configure and inspect the overlay network."),
    "kv": ("cli_kv", "kv", "Read, write and watch keys of the store."),
    "snapshot": ("cli_snapshot", "snapshot", "Save, check and restore the whole store."),
    "lease": ("cli_lease", "lease", "Grant, renew and revoke leases."),
    "token": ("cli_token", "token", "Make the tokens that hosts join with."),
    "env": ("cli_env", "env", "Print what etcdctl needs to reach the store."),
    "member": ("cli_member", "member", "List, add and remove members of the store."),
    "status": ("cli_member", "status", "Show the state of each endpoint of the store."),
}

EPILOG: Final = """\b
Examples:
  trimaran up --listen 10.0.0.1      first host of a cluster
  trimaran token create              there: what lets hosts join
  trimaran up --join TOKEN           every further host
  trimaran unit start web@1.service  run a unit somewhere
  trimaran kv put /app/color blue

\b
Exit codes: 0 done, 1 the request failed, 2 wrong usage, 3 the store does not
answer, 130 interrupted.
"""


# What to do about an error of the store, by its text.
HINTS: Final = {
    ETCD_ERRORS[name][1]: hint
    for name, hint in {
        "EMPTY_KEY": "give a key of at least one character",
        "LEASE_NOT_FOUND": "it may have ended; `trimaran lease list` prints those there are",
        "COMPACTED": "the history before is gone; ask for a later revision, or for none",
        "FUTURE_REVISION": "`trimaran status` tells the newest one",
        "LEASE_TTL_TOO_LARGE": "9000000000 s are the most",
        "UNHEALTHY": "a change of the members needs all others connected for some seconds; try "
        "again, or see `trimaran member status`",
        "LEARNER_NOT_READY": "it has not caught up; try again, or see `trimaran member status`",
        "MEMBER_NOT_FOUND": "`trimaran member list` prints those there are",
        "NOT_LEADER": "the lead has just moved; try again",
        "REQUEST_TOO_LARGE": "--max-request-bytes of the store sets the limit",
        "TOO_MANY_REQUESTS": "its disk is slower than the writes; try again later",
        "NO_SPACE": "delete what is not needed, `trimaran kv compact` up to the newest revision, "
        "then `etcdctl alarm disarm`",
    }.items()
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands, in the order of the table."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or return None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"trimaran.daemons.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table's own texts, without importing them."""
        rows = [(name, text) for name, (_, _, text) in COMMANDS.items()]
        rows += [
            (name, command.get_short_help_str()) for name, command in sorted(self.commands.items())
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--endpoints",
    envvar="TRIMARAN_ENDPOINTS",
    default=default_endpoints,
    show_default=f"the store of this host's `trimaran up`, else {DEFAULT_ENDPOINT}",
    show_envvar=True,
    metavar="URL[,URL...]",
    help="Addresses of the store's members.",
)
@click.option(
    "--cacert",
    envvar="TRIMARAN_CACERT",
    type=click.Path(exists=True, dir_okay=False),
    help="Certificate of the authority that signed the store's.",
)
@click.option(
    "--cert",
    envvar="TRIMARAN_CERT",
    type=click.Path(exists=True, dir_okay=False),
    help="This client's certificate.",
)
@click.option(
    "--key",
    envvar="TRIMARAN_KEY",
    type=click.Path(exists=True, dir_okay=False),
    help="This client's private key.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.001),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long one call to the store may take.",
)
@json_option
@click.version_option(VERSION, message="trimaran %(version)s")
@click.pass_context
def trimaran(
    context: click.Context,
    endpoints: str,
    cacert: str | None,
    cert: str | None,
    key: str | None,
    timeout_s: float,
) -> None:
    """A group of plain Linux machines as one computer: a store, a fleet and a network."""
    options = context.ensure_object(CommandContext)
    options.endpoints = tuple(part.strip() for part in endpoints.split(",") if part.strip())
    if not options.endpoints:
        raise click.UsageError(f"--endpoints is empty; for example {DEFAULT_ENDPOINT}")
    if (cert is None) != (key is None):
        raise click.UsageError("--cert and --key go together; give both or neither")
    if context.get_parameter_source("endpoints") is ParameterSource.DEFAULT and not cert:
        host = read_connection()
        cacert, cert, key = cacert or host.ca_cert, host.cert, host.key
    options.ca_cert, options.cert, options.key = cacert, cert, key
    options.timeout_s = timeout_s


@trimaran.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes `trimaran` in a shell.

    \b
    For example:
      source <(trimaran completion bash)
      trimaran completion fish > ~/.config/fish/completions/trimaran.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(trimaran, {}, "trimaran", "_TRIMARAN_COMPLETE").source())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; print what went wrong to standard error and return the exit code."""
    reserve_standard_streams()
    # gRPC's own lines about connections say nothing that our errors do not.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        result = trimaran.main(arguments, prog_name="trimaran", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.NoSuchOption as error:
        if any(error.option_name in parameter.opts for parameter in trimaran.params):
            where = f"It goes before the command: trimaran {error.option_name} ... COMMAND"
            click.UsageError(f"{error.format_message()} {where}", error.ctx).show()
        else:
            error.show()
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except StoreUnavailableError as error:
        if error.message.startswith("etcdserver: "):
            # Somebody answered, and cannot do it now.
            advice = HINTS.get(error.message, "`trimaran member status` tells how its members are")
            complain(f"the store answered: {error.message}; {advice}")
            return EXIT_UNAVAILABLE
        if error.code == StatusCode.DEADLINE_EXCEEDED:
            complain(
                "the store did not answer in time: it may be without a majority; "
                "`trimaran member status` tells how its members are"
            )
            return EXIT_UNAVAILABLE
        complain(
            f"{error.message}; start a store with `trimaran up`, or say where one is with "
            "--endpoints or TRIMARAN_ENDPOINTS"
        )
        return EXIT_UNAVAILABLE
    except StoreError as error:
        hint = HINTS.get(error.message)
        complain(f"the store refused: {error.message}" + (f"; {hint}" if hint else ""))
    except TrimaranError as error:
        complain(str(error))
    except BrokenPipeError:
        # The reader of a pipe has left. Python must not complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        place = f"{Path(error.filename)}: " if isinstance(error.filename, str) else ""
        complain(f"{place}{error.strerror or error}")
    return EXIT_ERROR


def complain(text: str) -> None:
    """Print one error."""
    click.echo(f"trimaran: {text}", err=True)


if __name__ == "__main__":
    main()
