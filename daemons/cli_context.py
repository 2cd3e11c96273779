"""What every command of `trimaran` shares: the way to the store, output, and exit codes.

A command takes the context with `@pass_context`, does its work in a coroutine, and returns:

    @unit.command("list")
    @json_option
    @pass_context
    def list_units(context: CommandContext) -> None:
        rows = context.run(collect)                # async def collect(client: Client) -> ...
        context.print_table(("UNIT", "MACHINE"), rows)

Errors are raised, never printed: `trimaran.daemons.cli.main` turns exceptions into one line on
standard error and an exit code.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from trimaran.errors import ConfigError

if TYPE_CHECKING:
    from trimaran.client import Client

DEFAULT_ENDPOINT: Final = "http://127.0.0.1:2379"

# Where a running `trimaran up` leaves the way to the store it uses.
HOST_CONNECTION_FILE: Final = Path("/run/trimaran/store.json")

EXIT_OK: Final = 0
EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNAVAILABLE: Final = 3
EXIT_INTERRUPTED: Final = 130

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])

# C0, DEL, C1.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class HostConnection:
    """The way to the store that this host's `trimaran up` uses.

    Attributes:
        endpoints: URLs of the store's members, the nearest first.
        ca_cert, cert, key: files to reach them with; None for a store without TLS.
    """

    endpoints: tuple[str, ...] = (DEFAULT_ENDPOINT,)
    ca_cert: str | None = None
    cert: str | None = None
    key: str | None = None

    def encode(self) -> str:
        """Write it as HOST_CONNECTION_FILE has it."""
        fields = {
            "endpoints": list(self.endpoints),
            "cacert": self.ca_cert,
            "cert": self.cert,
            "key": self.key,
        }
        return json.dumps(fields, indent=2) + "\n"


def read_connection() -> HostConnection:
    """The way to the store of this host's `trimaran up`; without one, the usual address here."""
    try:
        fields = json.loads(HOST_CONNECTION_FILE.read_text())
        return HostConnection(
            tuple(map(str, fields["endpoints"])),
            fields.get("cacert"),
            fields.get("cert"),
            fields.get("key"),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return HostConnection()


@dataclass
class CommandContext:
    """The options of the root command, and what commands do with them.

    Attributes:
        endpoints: addresses of the store's members, in order of preference.
        ca_cert: file of the authority that signed the store's certificate, or None.
        cert: file of this client's certificate, or None.
        key: file of this client's key, or None.
        timeout_s: how long one call to the store may take.
        json: whether to print JSON instead of tables.
    """

    endpoints: tuple[str, ...] = (DEFAULT_ENDPOINT,)
    ca_cert: str | None = None
    cert: str | None = None
    key: str | None = None
    timeout_s: float = 5.0
    json: bool = False

    def connect(self) -> "Client":
        """Make a client of the store the options name; it does no input or output until used.

        Raises:
            click.UsageError: an endpoint or TLS option is none.
            ConfigError: this user may not read the key.
        """
        if self.key is not None and not os.access(self.key, os.R_OK):
            raise ConfigError(
                f"the store lets in only who can read {self.key}: run as root, or give "
                "--endpoints with --cacert, --cert and --key of your own"
            )
        from trimaran.client import Client, TLSOptions

        tls = None
        if self.ca_cert or self.cert or self.key:
            tls = TLSOptions(ca=self.ca_cert, cert=self.cert, key=self.key)
        try:
            return Client(list(self.endpoints), tls=tls, timeout_s=self.timeout_s)
        except ConfigError as error:
            raise click.UsageError(str(error)) from error

    def run(self, work: "Callable[[Client], Awaitable[Result]]") -> Result:
        """Run a coroutine function with a client, on a uvloop loop, and close the client after.

        Raises:
            KeyboardInterrupt: Ctrl-C; the coroutine has been cancelled and has ended.
        """

        async def connected() -> Result:
            async with self.connect() as client:
                return await work(client)

        return run_loop(connected)

    def print_table(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], legend: bool = True
    ) -> None:
        """Print rows under a heading, or without one where `legend` is false.

        On a terminal they are a table; in a pipe, lines with one tab between fields, as scripts
        expect; with --json, a list of objects whose names are the columns in lower case and whose
        numbers, truth values and lists stay what they are.
        """
        if self.json:
            names = [column.lower() for column in columns]
            self.print_json([dict(zip(names, row, strict=True)) for row in rows])
            return
        texts = [[cell(field) for field in row] for row in rows]
        if sys.stdout.isatty():
            print_terminal_table(texts, columns if legend else None)
        else:
            for row in [list(columns), *texts] if legend else texts:
                click.echo("\t".join(row))

    def print_json(self, value: Any) -> None:
        """Print one value as indented JSON."""
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def default_endpoints() -> str:
    """The store that this host's `trimaran up` uses, else the usual address on this host."""
    return ",".join(read_connection().endpoints)


def cell(value: object) -> str:
    """The text of a table's field."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return visible(",".join(map(str, value)))
    return visible(str(value))


def visible(text: str) -> str:
    """Show control characters as escapes.

    A line feed or tab would break the table, and what others put into a store must not drive the
    terminal of whoever lists it.
    """
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


pass_context = click.make_pass_decorator(CommandContext)


def run_loop(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run a coroutine function to its end on a new uvloop loop."""
    import uvloop

    async def whole() -> Result:
        return await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(whole())


def print_terminal_table(rows: Sequence[Sequence[str]], heading: Sequence[str] | None) -> None:
    """Print aligned columns under a bold heading, without borders.

    A line that is longer than the terminal is wide is left to it to wrap: an address or a key that
    is broken into pieces can neither be read nor copied.
    """
    from rich.cells import cell_len

    lines = [heading, *rows] if heading else list(rows)
    if not lines:
        return
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (
            field + " " * (width - cell_len(field))
            for field, width in zip(line, widths, strict=True)
        )
        text = "   ".join(padded).rstrip()
        click.echo(click.style(text, bold=True) if line is heading and is_styled() else text)


def is_styled() -> bool:
    """Whether the terminal is wanted to show more than characters (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def set_json(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Let --json after the command's name mean the same as before it."""
    if value:
        context.ensure_object(CommandContext).json = True


def set_output(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Let -o json mean the same as --json, as it does for other commands of this kind."""
    if value is not None:
        context.ensure_object(CommandContext).json = value == "json"


def json_option(command: Command) -> Command:
    """The options that choose JSON instead of a table."""
    command = click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        expose_value=False,
        callback=set_output,
        help="How to print.",
    )(command)
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=set_json,
        help="Print JSON instead of a table: -o json.",
    )(command)
