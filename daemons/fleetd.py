"""trimaran-fleetd: the fleet's daemon of one machine, engine and agent in one process.

Restarting it never touches units. It keeps its lease when it stops; a machine whose daemon stays
away longer than the time to live counts as lost, and its units start elsewhere.
"""

import asyncio
import fcntl
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

import click
import uvloop

from trimaran._version import VERSION
from trimaran.client import Client, TLSOptions
from trimaran.client.cluster import FOLLOW_INTERVAL_S
from trimaran.daemons.fleet_agent import Agent
from trimaran.daemons.fleet_engine import Engine
from trimaran.daemons.fleet_presence import Presence
from trimaran.daemons.sd_notify import notify
from trimaran.daemons.standard_streams import reserve_standard_streams
from trimaran.daemons.systemd import Systemd
from trimaran.errors import ConfigError, TrimaranError
from trimaran.fleet.loss import SETTLE_S, LossJudge
from trimaran.fleet.records import MachineRecord
from trimaran.fleet.requirements import MACHINE_ID

log = logging.getLogger("trimaran.fleet")
MACHINE_ID_FILE: Final = Path("/etc/machine-id")
LEASE_TTL_S: Final = 10
LEASE_TTL_MIN_S: Final = 3
UNITS_DIRECTORY: Final = "/run/systemd/system"
RUNTIME_DIRECTORY: Final = "/run/trimaran/fleet"


@dataclass(frozen=True)
class FleetOptions:
    """How to run the fleet's daemon.

    Attributes:
        endpoints: URLs of the store.
        machine_id: this machine; empty for /etc/machine-id.
        public_ip: the address to publish; empty for the one that leads to the store.
        metadata: what units can ask for with MachineMetadata=.
        lease_ttl_s: seconds of silence after which the machine counts as gone.
        units_directory: where unit files are written; one of those systemd reads.
        runtime_directory: the daemon's notes; must be emptied by a reboot.
        disable_engine: never lead.
        bus_address: D-Bus address of systemd's bus, None for the system bus.
        tls: for https:// endpoints.
        follow_members: use the store's members as endpoints, as they change.
    """

    endpoints: tuple[str, ...]
    machine_id: str = ""
    public_ip: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    lease_ttl_s: int = LEASE_TTL_S
    units_directory: str = UNITS_DIRECTORY
    runtime_directory: str = RUNTIME_DIRECTORY
    disable_engine: bool = False
    bus_address: str | None = None
    tls: TLSOptions | None = None
    follow_members: bool = False


class FleetDaemon:
    """Presence, engine and agent of one machine on one event loop."""

    def __init__(self, options: FleetOptions) -> None:
        """Check the options; `run` does the rest.

        Args:
            options: how to run.

        Raises:
            ConfigError: an option is wrong.
        """
        self._options = options
        if options.lease_ttl_s < LEASE_TTL_MIN_S:
            raise ConfigError(
                f"a lease of {options.lease_ttl_s} s ends with every hiccup of the store; "
                f"give --lease-ttl {LEASE_TTL_MIN_S} or more"
            )
        self.machine_id = options.machine_id or read_machine_id()
        if not MACHINE_ID.fullmatch(self.machine_id):
            raise ConfigError(
                f"--machine-id {self.machine_id!r}: use up to 64 letters, digits, - and _"
            )
        self.ready = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. `ready` is set once the machine is registered.

        Args:
            stop: ends the daemon; units and the lease stay.

        Raises:
            SystemdUnavailableError: there is no systemd to drive.
            ConfigError: systemd does not read the units directory, or it cannot be written.
        """
        options = self._options
        systemd = Systemd(options.bus_address)
        await systemd.connect()
        try:
            units = _prepare(options.units_directory, 0o755)
            await _check_is_read(systemd, units)
            runtime = _prepare(options.runtime_directory, 0o700)
            lock = _lock(runtime)
        except TrimaranError:
            systemd.close()
            raise
        with lock:
            await self._serve(stop, systemd, units, runtime)

    async def _serve(
        self, stop: asyncio.Event, systemd: Systemd, units: Path, runtime: Path
    ) -> None:
        options = self._options
        async with Client(list(options.endpoints), tls=options.tls) as client:
            record = MachineRecord(
                options.public_ip or address_towards(options.endpoints),
                dict(options.metadata),
                VERSION,
            )
            presence = Presence(client, self.machine_id, record, options.lease_ttl_s, runtime)
            presence.on_acquired.append(self.ready.set)
            agent = Agent(client, self.machine_id, presence, systemd, units, runtime)
            parts = [presence.run(), agent.run()]
            if options.follow_members:
                parts.append(client.follow_members(FOLLOW_INTERVAL_S, options.endpoints[0]))
            if not options.disable_engine:
                # Longer than an agent needs to come back once the store is there again.
                judge = LossJudge(settle_s=max(SETTLE_S, options.lease_ttl_s * 1.5))
                parts.append(Engine(client, self.machine_id, presence, judge).run())
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(part) for part in parts]
                await stop.wait()
                for task in tasks:
                    task.cancel()


def read_machine_id() -> str:
    """This machine's id from /etc/machine-id; raises ConfigError."""
    try:
        machine_id = MACHINE_ID_FILE.read_text().strip()
    except OSError as error:
        raise ConfigError(
            f"{MACHINE_ID_FILE} cannot be read ({error.strerror}); run systemd-machine-id-setup or "
            "give --machine-id"
        ) from error
    if not re.fullmatch("[0-9a-f]{32}", machine_id):
        raise ConfigError(
            f"{MACHINE_ID_FILE} has no machine id; run systemd-machine-id-setup or "
            "give --machine-id"
        )
    return machine_id


def address_towards(endpoints: Sequence[str]) -> str:
    """The address this machine has towards the store; of its default route if that is local."""
    hosts = [urlsplit(url if "//" in url else f"//{url}").hostname or "" for url in endpoints]
    for host in [*hosts, "192.0.2.1", "2001:db8::1"]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                # Connecting a datagram socket sends nothing; it only picks the route.
                probe.connect((host, 9))
            except OSError:
                continue
            address = str(probe.getsockname()[0])
        if not address.startswith("127.") and address not in ("::1", "0.0.0.0", "::"):
            return address
    return ""


def parse_metadata(text: str) -> dict[str, str]:
    """Read `key=value,key=value`.

    Raises:
        ConfigError: a pair is malformed or a key is given twice.
    """
    metadata: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key or not value or "=" in value:
            raise ConfigError(f"--metadata {pair!r} is not of the form key=value; e.g. disk=ssd")
        if key in metadata:
            raise ConfigError(f"--metadata gives {key} twice; a key has one value")
        metadata[key] = value
    return metadata


def _prepare(path: str, mode: int) -> Path:
    directory = Path(path)
    try:
        directory.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be made ({error.strerror}); run as root") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"{path} cannot be written; run as root")
    return directory


def _lock(runtime: Path) -> IO[str]:
    """Take the machine's fleet for this process; the lock goes with the process."""
    lock = open(runtime / "lock", "w", encoding="ascii")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(
            f"another fleet daemon runs on this machine ({runtime}/lock is taken): stop it first; "
            "`trimaran up` and trimaran-fleetd.service do the same work"
        ) from error
    return lock


async def _check_is_read(systemd: Systemd, units: Path) -> None:
    known = await systemd.unit_path()
    if units.resolve() not in {Path(path).resolve() for path in known}:
        raise ConfigError(
            f"systemd does not read {units}; give --units-directory one of {', '.join(known)}"
        )


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--endpoints",
    default="http://127.0.0.1:2379",
    show_default=True,
    metavar="URL[,URL...]",
    help="Addresses of the store's members.",
)
@click.option(
    "--machine-id", default="", metavar="ID", help="This machine. [default: /etc/machine-id]"
)
@click.option(
    "--public-ip",
    default="",
    metavar="ADDRESS",
    help="Address to publish. [default: the one towards the store]",
)
@click.option(
    "--metadata",
    default="",
    metavar="KEY=VALUE[,KEY=VALUE...]",
    help="What units can ask for with MachineMetadata=.",
)
@click.option(
    "--lease-ttl",
    default=LEASE_TTL_S,
    show_default=True,
    metavar="SECONDS",
    help="Silence after which the machine counts as gone and its units move.",
)
@click.option(
    "--units-directory",
    default=UNITS_DIRECTORY,
    show_default=True,
    type=click.Path(file_okay=False),
    help="Where unit files are written.",
)
@click.option(
    "--runtime-directory",
    default=RUNTIME_DIRECTORY,
    show_default=True,
    type=click.Path(file_okay=False),
    help="The daemon's notes, emptied by a reboot.",
)
@click.option("--disable-engine", is_flag=True, help="Never decide placement on this machine.")
@click.option(
    "--cacert",
    type=click.Path(exists=True, dir_okay=False),
    help="Certificate of the authority that signed the store's.",
)
@click.option("--cert", type=click.Path(exists=True, dir_okay=False), help="Our certificate.")
@click.option("--key", type=click.Path(exists=True, dir_okay=False), help="Our private key.")
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What to log.",
)
@click.version_option(VERSION, message="trimaran-fleetd %(version)s")
def fleetd(
    endpoints: str,
    machine_id: str,
    public_ip: str,
    metadata: str,
    lease_ttl: int,
    units_directory: str,
    runtime_directory: str,
    disable_engine: bool,
    cacert: str | None,
    cert: str | None,
    key: str | None,
    log_level: str,
) -> None:
    """Run this machine's part of the fleet: drive its systemd, and decide when elected.

    Every option can be set by an environment variable too: TRIMARAN_FLEET_ENDPOINTS and so on.

    \b
    For example:
      trimaran-fleetd --endpoints http://10.0.0.1:2379 --metadata disk=ssd,region=eu
    """
    logging.basicConfig(
        level=log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    options = FleetOptions(
        endpoints=tuple(filter(None, (part.strip() for part in endpoints.split(",")))),
        machine_id=machine_id,
        public_ip=public_ip,
        metadata=parse_metadata(metadata),
        lease_ttl_s=lease_ttl,
        units_directory=units_directory,
        runtime_directory=runtime_directory,
        disable_engine=disable_engine,
        tls=TLSOptions(ca=cacert, cert=cert, key=key) if cacert or cert or key else None,
    )
    if not options.endpoints:
        raise ConfigError("--endpoints is empty; for example http://127.0.0.1:2379")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(options))


async def _serve(options: FleetOptions) -> None:
    daemon = FleetDaemon(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    async def announce() -> None:
        await daemon.ready.wait()
        notify("READY=1")

    announcing = asyncio.create_task(announce())
    await daemon.run(stop)
    announcing.cancel()
    notify("STOPPING=1")
    log.info("stopped; units go on as they are")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    reserve_standard_streams()
    try:
        fleetd.main(
            arguments,
            prog_name="trimaran-fleetd",
            standalone_mode=False,
            auto_envvar_prefix="TRIMARAN_FLEET",
        )
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except TrimaranError as error:
        click.echo(f"trimaran-fleetd: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
