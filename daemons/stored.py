"""trimaran-stored: the store daemon, which stands wherever an etcd binary stands."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop

from trimaran._version import ETCD_VERSION, VERSION
from trimaran.daemons.sd_notify import notify
from trimaran.daemons.standard_streams import reserve_standard_streams
from trimaran.daemons.store_server import Stored
from trimaran.errors import ConfigError, TrimaranError
from trimaran.store.flags import Flag
from trimaran.store.options import FLAGS, StoreOptions, read_options, unknown_variables

__all__ = ["Stored", "main"]

LOG = logging.getLogger("trimaran.store")
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}


def shown_default(flag: Flag) -> str:
    """The default of a flag as the help ends its line; nothing where it follows from others."""
    default = getattr(StoreOptions(), flag.field)
    if flag.kind == "urls":
        default = ",".join(default)
    if flag.kind == "duration":
        default = f"{default:g}s"
    if flag.kind == "bool":
        default = str(default).lower()
    return f" [{default}]" if default not in ("", {}, ()) else ""


def usage() -> str:
    """Return the help text."""
    width = max(len(flag.name) for flag in FLAGS) + 4
    rows = [f"  --{flag.name:<{width}}{flag.help}{shown_default(flag)}" for flag in FLAGS]
    return "\n".join(
        [
            "usage: trimaran-stored [--FLAG VALUE ...]",
            "",
            "A member of a key-value store that speaks etcd's v3 protocol. Flags are etcd's own;",
            "each may come from the environment instead, --data-dir as ETCD_DATA_DIR.",
            "",
            "examples:",
            "  trimaran-stored --data-dir /var/lib/trimaran/store",
            "  trimaran-stored --listen-client-urls http://0.0.0.0:2379 \\",
            "      --advertise-client-urls http://10.0.0.1:2379",
            "",
            "flags:",
            *rows,
            f"  --{'version':<{width}}print the version",
        ]
    )


def read_file(path: str) -> str:
    """Read the configuration file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise ConfigError(f"cannot read --config-file {path}: {reason}")


def version() -> str:
    """Return what --version prints: etcd's shape first, for scripts that look for it."""
    release = os.uname()
    return "\n".join(
        [
            f"etcd Version: {ETCD_VERSION}",
            f"Trimaran Version: {VERSION}",
            f"Python Version: {sys.version.split()[0]}",
            f"OS/Arch: {release.sysname.lower()}/{release.machine}",
        ]
    )


async def run(options: StoreOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        TrimaranError: the store could not be started.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store = Stored(options)
    starting = asyncio.create_task(store.start())
    ends = [asyncio.create_task(event.wait()) for event in (stop, store.failed)]
    try:
        # A member of a cluster waits for the others, which may take for ever.
        await asyncio.wait({starting, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            notify("READY=1")
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (starting, *ends):
            task.cancel()
        await asyncio.gather(starting, *ends, return_exceptions=True)
    notify("STOPPING=1")
    await store.stop()
    if store.failure is not None:
        raise store.failure


def main() -> None:
    """Run the daemon; exits with 1 where it cannot start, 2 for a wrong command line."""
    reserve_standard_streams()
    arguments = sys.argv[1:]
    if any(word in ("-h", "-help", "--help") for word in arguments):
        print(usage())
        return
    if any(word in ("-version", "--version") for word in arguments):
        print(version())
        return
    try:
        options = read_options(arguments, os.environ, read_file)
    except TrimaranError as error:
        print(f"trimaran-stored: {error}", file=sys.stderr)
        sys.exit(2)
    logging.basicConfig(
        level=_LEVELS.get(options.log_level, logging.CRITICAL),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # It would write a stack trace for each malformed request that anybody sends.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    for name in unknown_variables(os.environ):
        LOG.warning("unknown environment variable %s is ignored", name)
    for name in options.unknown_settings:
        LOG.warning("unknown setting %s of %s is ignored", name, options.config_file)
    try:
        uvloop.run(run(options))
    except TrimaranError as error:
        print(f"trimaran-stored: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
