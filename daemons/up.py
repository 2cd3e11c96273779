"""`trimaran up`: every daemon of a host in one process, on one event loop.

The parts start one after the other, each only when those it needs are ready, and stop in reverse.
If one cannot start, those before it are stopped again and the command ends with its error.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import click
from click.core import ParameterSource

from trimaran.daemons.cli_context import (
    EXIT_INTERRUPTED,
    HOST_CONNECTION_FILE,
    HostConnection,
    run_loop,
)
from trimaran.daemons.sd_notify import notify
from trimaran.daemons.up_options import (
    DEFAULT_DATA_DIR,
    DEFAULT_JOIN_PORT,
    DEFAULT_NETWORK,
    DEFAULT_PEER_PORT,
    DEFAULT_PORT,
    UpOptions,
    choose_advertise,
    choose_listen,
    is_loopback,
    normal_url,
    read_join,
)
from trimaran.errors import ConfigError, TrimaranError
from trimaran.up.records import (
    CERTIFICATE_LIFETIME_DEFAULT_S,
    REPLACE_AFTER_DEFAULT_S,
    STORE_MEMBERS_DEFAULT,
    STORE_MEMBERS_MAX,
    ClusterSettings,
)

if TYPE_CHECKING:
    from trimaran.daemons.up_parts import StoreAccess

STOP_TIMEOUT_S: Final = 20.0
UNIT_FILE: Final = Path(__file__).parent / "units/trimaran.service"


class PartFailedError(TrimaranError):
    """A part of the host ended by itself."""


class Part(Protocol):
    """One daemon of the host."""

    name: str

    async def start(self) -> str:
        """Start; return a line about what there is now. Where it raises, nothing is left."""
        ...

    async def stop(self) -> None:
        """Stop cleanly."""
        ...

    async def wait_failed(self) -> None:
        """Return when the part has ended by itself, or raise its error."""
        ...


class Reporter:
    """Says on the terminal, and to systemd, how far the host has come.

    On a terminal there is a spinner for what is going on; elsewhere, one plain line a step.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def step(self, doing: str) -> Iterator[None]:
        """Show what is being done for as long as the block takes."""
        notify(f"STATUS={doing}")
        if self._console.is_terminal:
            with self._console.status(doing):
                yield
        else:
            yield

    def say(self, name: str, text: str, seconds: float | None = None) -> None:
        """Print one line about a part."""
        from rich.text import Text

        took = f"  ({seconds:.2f} s)" if seconds is not None else ""
        if self._console.is_terminal:
            line = Text.assemble((f"{name:>8}  ", "bold cyan"), text, (took, "dim"))
            self._console.print(line)
        else:
            print(f"{name}: {text}{took}", flush=True)


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP: the first asks for a clean stop, the second ends at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._receive)

    def _receive(self) -> None:
        if self.asked.is_set():
            # Acknowledged writes are on disk already, so there is nothing to lose but manners.
            print("trimaran: ended without stopping its parts", file=sys.stderr, flush=True)
            os._exit(EXIT_INTERRUPTED)
        self.asked.set()


async def run_host(options: UpOptions) -> int:
    """Run the parts of a host until a signal, or until one fails.

    Returns:
        the exit code: 0 after a clean stop, 130 where the signal came before all was up.

    Raises:
        TrimaranError: a part did not start, or ended by itself; the others have been stopped.
    """
    from trimaran.daemons.up_parts import check_host

    check_host(options)
    reporter = Reporter()
    signals = StopSignals()
    running: list[Part] = []
    published = False
    try:
        access, parts = make_parts(options)
        for part in parts:
            if not await start_part(part, reporter, signals):
                return EXIT_INTERRUPTED
            running.append(part)
        published = publish_connection(access)
        tell_what_next(options, reporter)
        notify("READY=1", "STATUS=running")
        await wait_for_end(running, signals)
        return 0
    finally:
        notify("STOPPING=1")
        if published:
            # Only its own: one that was refused beside a running one must not take that one's.
            HOST_CONNECTION_FILE.unlink(missing_ok=True)
        await stop_parts(running, reporter)


async def start_part(part: Part, reporter: Reporter, signals: StopSignals) -> bool:
    """Start one part; return False where a signal came first and the start was undone."""
    begun = time.monotonic()
    with reporter.step(f"starting {part.name}"):
        starting = asyncio.ensure_future(part.start())
        asked = asyncio.ensure_future(signals.asked.wait())
        try:
            await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
            if starting.cancelled() or starting.exception():
                return False
    reporter.say(part.name, starting.result(), time.monotonic() - begun)
    return True


async def wait_for_end(running: list[Part], signals: StopSignals) -> None:
    """Return when a signal asks for it; raise when a part ends by itself."""
    waits = {asyncio.ensure_future(part.wait_failed()): part for part in running}
    asked = asyncio.ensure_future(signals.asked.wait())
    try:
        done, _ = await asyncio.wait([asked, *waits], return_when=asyncio.FIRST_COMPLETED)
        for wait in done - {asked}:
            name = waits[wait].name  # type: ignore[index]
            error = wait.exception()
            why = f": {error}" if error else ""
            raise PartFailedError(f"{name} ended by itself{why}") from error
    finally:
        for task in [asked, *waits]:
            task.cancel()
        await asyncio.gather(asked, *waits, return_exceptions=True)


async def stop_parts(running: list[Part], reporter: Reporter) -> None:
    """Stop the parts in reverse; one that does not stop in time does not hold up the rest."""
    while running:
        part = running.pop()
        with reporter.step(f"stopping {part.name}"):
            try:
                await asyncio.wait_for(part.stop(), STOP_TIMEOUT_S)
            except TimeoutError:
                reporter.say(part.name, f"did not stop within {STOP_TIMEOUT_S:g} s")
                continue
        reporter.say(part.name, "stopped")


def make_parts(options: UpOptions) -> tuple["StoreAccess", list[Part]]:
    """The parts this host runs, in the order they start, and how they reach the store."""
    from trimaran.daemons import up_parts

    parts: list[Part] = [up_parts.DataDirPart(options)]
    if options.embedded:
        from trimaran.daemons.up_agent import AgentPart
        from trimaran.daemons.up_host import IdentityPart, make_state
        from trimaran.daemons.up_store import StorePart

        state = make_state(options)
        access = state.access
        parts += [
            IdentityPart(state),
            StorePart(state),
            AgentPart(state, partial(publish_connection, access)),
        ]
    else:
        access = up_parts.StoreAccess(options.endpoints)
        parts.append(up_parts.RemoteStorePart(options))
    if options.net:
        parts.append(up_parts.NetPart(options, access))
    if options.fleet:
        parts.append(up_parts.FleetPart(options, access))
    return access, parts


def publish_connection(access: "StoreAccess") -> bool:
    """Leave the way to the store where every `trimaran` command of this host looks for it.

    Returns:
        whether it could be; without root the commands of this host need --endpoints.
    """
    tls = access.tls
    files = [os.path.abspath(path or "") for path in (tls.ca, tls.cert, tls.key)] if tls else []
    connection = HostConnection(access.endpoints, *files)
    try:
        HOST_CONNECTION_FILE.parent.mkdir(parents=True, exist_ok=True)
        temporary = HOST_CONNECTION_FILE.with_suffix(".new")
        temporary.write_text(connection.encode())
        temporary.replace(HOST_CONNECTION_FILE)
    except PermissionError:
        return False
    return True


def tell_what_next(options: UpOptions, reporter: Reporter) -> None:
    """Say how to go on from here."""
    reporter.say("ready", f"{options.name} is up; stop it with Ctrl-C")
    if not options.embedded or options.joins:
        return
    if options.is_open:
        reporter.say(
            "next",
            "let further hosts join: `trimaran token create` here, and `trimaran up --join TOKEN` "
            "there",
        )
    else:
        reporter.say(
            "next",
            "the store listens on this host alone; to let others join: "
            f"trimaran up --listen {options.advertise}",
        )


def print_unit(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print the service that runs this call, for /etc/systemd/system/trimaran.service."""
    if not value or context.resilient_parsing:
        return
    program = Path(sys.argv[0]).resolve()
    words = [word for word in sys.argv[1:] if word != "--print-unit"]
    command = shlex.join([str(program), *words])
    # What systemd expands in a command line, also between quotes.
    for special, literal in (("\\", r"\\"), ("%", "%%"), ("$", "$$")):
        command = command.replace(special, literal)
    lines = UNIT_FILE.read_text().splitlines()[1:]
    for line in lines:
        click.echo(f"ExecStart={command}" if line.startswith("ExecStart=") else line)
    context.exit()


def refuse_empty(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse an empty value, most likely of a shell variable that is not set.

    An empty --join that counted as none would start a store of this host's own.
    """
    if isinstance(value, str) and not value.strip():
        raise click.BadParameter("the value is empty; give one, or leave the option out")
    return value


def read_data_dir(context: click.Context, parameter: click.Parameter, value: str) -> Path:
    """Read the data directory's path; Path("") would be the working directory."""
    return Path(refuse_empty(context, parameter, value))


EPILOG: Final = """\b
Examples:
  trimaran up --listen 10.0.0.1            first host, open to others
  trimaran token create                    there: prints what lets hosts join
  trimaran up --join TOKEN                 every further host
  trimaran up --endpoints http://etcd:2379 use an etcd that is there already

\b
As a service:
  trimaran up --join TOKEN --print-unit > /etc/systemd/system/trimaran.service
  systemctl enable --now trimaran
"""


def refuse_options_before(context: click.Context) -> None:
    """Refuse the client's options: what is written before `up` would be silently without effect."""
    root = context.find_root()
    if root is context:
        return
    for name in ("endpoints", "cacert", "cert", "key"):
        if root.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name} before `up` is for the other commands; `trimaran up --endpoints URL` "
                "uses a store that is there already"
            )


@click.command(epilog=EPILOG)
@click.option(
    "--name",
    default=socket.gethostname,
    callback=refuse_empty,
    show_default="host name",
    help="Host's name.",
)
@click.option(
    "--data-dir",
    # Whether it can be read is found, and explained, when it is opened.
    type=click.Path(file_okay=False, readable=False),
    callback=read_data_dir,
    default=DEFAULT_DATA_DIR,
    show_default=True,
    help="Where the store keeps its data.",
)
@click.option(
    "--listen",
    multiple=True,
    metavar="ADDRESS",
    help="Address to listen on besides loopback; may be repeated. Only hosts with a certificate "
    "of the cluster get in.  [default: loopback; with --join also --advertise]",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="Port the store serves clients on.",
)
@click.option(
    "--peer-port",
    type=click.IntRange(1, 65535),
    default=DEFAULT_PEER_PORT,
    show_default=True,
    help="Port the store's members talk on.",
)
@click.option(
    "--join-port",
    type=click.IntRange(1, 65535),
    default=DEFAULT_JOIN_PORT,
    show_default=True,
    help="Port hosts join on.",
)
@click.option(
    "--advertise",
    metavar="ADDRESS",
    callback=refuse_empty,
    help="Address at which others reach this host.  [default: by the route to the store]",
)
@click.option(
    "--join",
    metavar="TOKEN|HOST[:PORT]",
    callback=refuse_empty,
    help="Join a cluster; the token is of `trimaran token create`. Once joined, it is not needed.",
)
@click.option(
    "--token",
    envvar="TRIMARAN_JOIN_TOKEN",
    show_envvar=True,
    metavar="TOKEN",
    callback=refuse_empty,
    help="The token, where --join names a host.",
)
@click.option(
    "--store-members",
    type=click.IntRange(1, STORE_MEMBERS_MAX),
    default=STORE_MEMBERS_DEFAULT,
    show_default=True,
    help="Of a new cluster: how many hosts get a member of the store. Later: "
    "`trimaran member scale`.",
)
@click.option(
    "--replace-after",
    "replace_after_s",
    type=click.FloatRange(min=0),
    default=REPLACE_AFTER_DEFAULT_S,
    show_default=True,
    metavar="SECONDS",
    help="Of a new cluster: how long a member is away until another host takes its place; 0 for "
    "never by itself.",
)
@click.option(
    "--certificate-lifetime",
    "certificate_lifetime_s",
    type=click.FloatRange(min=0),
    default=CERTIFICATE_LIFETIME_DEFAULT_S,
    show_default=True,
    metavar="SECONDS",
    help="Of a new cluster: how long hosts' certificates last; half of that before, they are "
    "renewed.",
)
@click.option(
    "--endpoints",
    metavar="URL[,URL...]",
    callback=refuse_empty,
    help="Use this etcd instead of a store here.",
)
@click.option(
    "--join-timeout",
    "join_timeout_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a cluster or store elsewhere.",
)
@click.option(
    "--force-new-cluster",
    is_flag=True,
    help="After most members were lost for good: make this host's data the store, once.",
)
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="What units may ask for.")
@click.option("--fleet/--no-fleet", default=True, help="Run units here.")
@click.option("--net/--no-net", default=True, help="Take part in the overlay network.")
@click.option("--network", default=DEFAULT_NETWORK, show_default=True, help="Range of the overlay.")
@click.option(
    "--backend",
    type=click.Choice(["vxlan", "udp"]),
    default="vxlan",
    show_default=True,
    help="How packets travel between hosts. It and --network are written to the store only where "
    "no configuration is there yet.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="What the daemons write to standard error.",
)
@click.option(
    "--print-unit",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_unit,
    help="Print a systemd service that runs this command line, and exit.",
)
@click.pass_context
def up(context: click.Context, /, log_level: str, **given: Any) -> int:
    """Bring this machine up as a Trimaran host: store, network and fleet in one process.

    Runs until Ctrl-C or SIGTERM. Units of the fleet go on running when it stops.
    """
    refuse_options_before(context)
    try:
        options = read_up_options(**given)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    logging.basicConfig(
        level=log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    code = run_loop(lambda: run_host(options))
    context.exit(code)


def read_up_options(
    *,
    listen: tuple[str, ...],
    advertise: str | None,
    join: str | None,
    token: str | None,
    endpoints: str | None,
    metadata: tuple[str, ...],
    store_members: int,
    replace_after_s: float,
    certificate_lifetime_s: float,
    **others: Any,
) -> UpOptions:
    """Check the options together and complete them.

    Raises:
        click.UsageError, ConfigError: they contradict each other, or one is none.
    """
    from trimaran.daemons.fleetd import parse_metadata

    if join and endpoints:
        raise click.UsageError("give --join or --endpoints, not both")
    if endpoints and listen:
        raise click.UsageError("--listen is for a host with its own store; leave it out")
    urls = tuple(normal_url(part) for part in (endpoints or "").split(",") if part.strip())
    joins, read_token, join_addresses = read_join(join, token)
    addresses = choose_listen(listen)
    others_at = [*join_addresses, *(read_token.addresses if read_token else ())]
    towards = urls[0] if urls else f"//{others_at[0]}" if others_at else None
    chosen = choose_advertise(advertise, addresses, towards)
    if joins and not listen and not is_loopback(chosen):
        addresses = ("127.0.0.1", chosen)
    return UpOptions(
        listen=addresses,
        advertise=chosen,
        joins=joins,
        token=read_token,
        join=join_addresses,
        endpoints=urls,
        metadata=parse_metadata(",".join(metadata)),
        settings=ClusterSettings(store_members, replace_after_s, certificate_lifetime_s),
        **others,
    )
