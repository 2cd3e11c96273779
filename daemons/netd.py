"""`trimaran-netd`: gives this host its subnet of the overlay network and carries its packets."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import NoReturn

import click

from trimaran._version import VERSION
from trimaran.client import TLSOptions
from trimaran.daemons.net_daemon import (
    DEFAULT_LEASE_TTL_S,
    DEFAULT_STATE_DIR,
    DEFAULT_SUBNET_FILE,
    NetDaemon,
    NetOptions,
    NetStatus,
)
from trimaran.daemons.sd_notify import notify
from trimaran.daemons.standard_streams import reserve_standard_streams
from trimaran.errors import TrimaranError
from trimaran.net.config import DEFAULT_PREFIX

__all__ = ["NetDaemon", "NetOptions", "NetStatus", "main"]

EPILOG = """\b
Every option is also an environment variable: --public-ip is TRIMARAN_NET_PUBLIC_IP.

\b
Examples:
  trimaran-netd --endpoints http://10.0.0.1:2379
  trimaran-netd --iface eth1 --prefix /blue/network --subnet-file /run/blue/subnet.env \\
                --state-dir /var/lib/trimaran/blue
"""


def parse_address(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> IPv4Address | None:
    """Parse an option that is an IPv4 address, or say that it is none."""
    try:
        return IPv4Address(value) if value else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command(
    epilog=EPILOG,
    context_settings={
        "auto_envvar_prefix": "TRIMARAN_NET",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.option(
    "--endpoints",
    default="http://127.0.0.1:2379",
    show_default=True,
    metavar="URL[,URL...]",
    help="Addresses of the store's members.",
)
@click.option(
    "--prefix",
    default=DEFAULT_PREFIX,
    show_default=True,
    help="Start of the network's keys in the store; one daemon serves one network.",
)
@click.option(
    "--iface",
    default="",
    metavar="NAME|ADDRESS",
    help="Interface to the other hosts; by default that of the default route.",
)
@click.option(
    "--public-ip",
    metavar="ADDRESS",
    callback=parse_address,
    help="Address the other hosts reach this one at; by default the interface's.",
)
@click.option(
    "--subnet-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_SUBNET_FILE,
    show_default=True,
    help="File that tells container runtimes the subnet.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_STATE_DIR,
    show_default=True,
    help="Directory for what must survive a restart.",
)
@click.option("--host-id", default="", help="Identity of this host; by default the machine id.")
@click.option(
    "--lease-ttl",
    "lease_ttl_s",
    type=click.IntRange(min=5, max=9_000_000_000),
    default=DEFAULT_LEASE_TTL_S,
    show_default=True,
    metavar="SECONDS",
    help="How long the subnet stays this host's without contact to the store.",
)
@click.option(
    "--udp-mode",
    type=click.Choice(["fast", "plain"]),
    default="fast",
    show_default=True,
    help="plain moves one packet a call, to compare with.",
)
@click.option(
    "--cacert",
    type=click.Path(exists=True, dir_okay=False),
    help="Certificate of the authority that signed the store's.",
)
@click.option(
    "--cert", type=click.Path(exists=True, dir_okay=False), help="This client's certificate."
)
@click.option(
    "--key", type=click.Path(exists=True, dir_okay=False), help="This client's private key."
)
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    help="How much to write to standard error.",
)
@click.version_option(VERSION, message="trimaran-netd %(version)s")
def netd(
    endpoints: str,
    cacert: str | None,
    cert: str | None,
    key: str | None,
    log_level: str,
    **rest: object,
) -> None:
    """Give this host its subnet of the overlay network and carry its packets.

    Keys and values in the store are flannel's, so hosts that run flanneld can share the network.
    """
    parts = tuple(part.strip() for part in endpoints.split(",") if part.strip())
    if not parts:
        raise click.UsageError("--endpoints is empty; for example http://127.0.0.1:2379")
    if (cert is None) != (key is None):
        raise click.UsageError("--cert and --key go together; give both or neither")
    tls = TLSOptions(ca=cacert, cert=cert, key=key) if cacert or cert else None
    logging.basicConfig(
        level="WARNING", format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("trimaran").setLevel(log_level.upper())
    options = NetOptions(endpoints=parts, tls=tls, **rest)  # type: ignore[arg-type]
    run_daemon(options)


def run_daemon(options: NetOptions) -> None:
    """Run the daemon on a loop of its own until SIGTERM or SIGINT."""
    import uvloop

    async def work() -> None:
        daemon = NetDaemon(options)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, daemon.request_stop)
        announce = asyncio.create_task(_announce(daemon))
        try:
            await daemon.run()
        finally:
            announce.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


async def _announce(daemon: NetDaemon) -> None:
    await daemon.ready()
    notify("READY=1")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    reserve_standard_streams()
    try:
        netd.main(arguments, prog_name="trimaran-netd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except TrimaranError as error:
        click.echo(f"trimaran-netd: {error}", err=True)
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
