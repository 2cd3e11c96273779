"""The parts of a host as `trimaran up` starts and stops them."""

import asyncio
import errno
import fcntl
import ipaddress
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from trimaran.client import Client, Compare, Put, TLSOptions
from trimaran.daemons.up_options import UpOptions
from trimaran.errors import StoreError, TrimaranError
from trimaran.net.config import DEFAULT_PREFIX, parse_config

if TYPE_CHECKING:
    from trimaran.daemons.netd import NetDaemon

JOIN_INTERVAL_S: Final = 0.25
NET_READY_TIMEOUT_S: Final = 20.0
FLEET_READY_TIMEOUT_S: Final = 20.0
SYSTEMD_FOLDER: Final = Path("/run/systemd/system")


class StartError(TrimaranError):
    """A part of the host cannot start; the text says what to do."""


def check_host(options: UpOptions) -> None:
    """Check what this machine must have before anything is started.

    Raises:
        StartError: something is missing; the text says what, and how to do without.
        NetworkConfigError: --network is no range a network can have.
    """
    if (options.fleet or options.net) and os.geteuid() != 0:
        raise StartError(
            "the fleet drives systemd and the network changes devices and routes, so `trimaran up` "
            "needs root: run it with sudo; or run the store alone with --no-fleet --no-net "
            "--data-dir DIR"
        )
    if options.fleet and not SYSTEMD_FOLDER.is_dir():
        raise StartError(
            "the fleet runs units by systemd, and this system was not booted with it; leave the "
            "fleet out with --no-fleet"
        )
    if options.net:
        parse_config(network_config(options))


def network_config(options: UpOptions) -> str:
    """The network's configuration as --network and --backend give it."""
    config = {"Network": options.network, "Backend": {"Type": options.backend}}
    return json.dumps(config)


async def forever() -> None:
    """Wait for what never comes: the part does not end by itself."""
    await asyncio.get_running_loop().create_future()


@dataclass
class StoreAccess:
    """How this host's own daemons reach the store; what stands here when one starts counts.

    Attributes:
        endpoints: URLs of members, the nearest first.
        tls: certificates to show and to check.
        follow: whether the members' URLs are endpoints too, as they change.
    """

    endpoints: tuple[str, ...]
    tls: TLSOptions | None = None
    follow: bool = False

    def client(self, timeout_s: float = 5.0) -> Client:
        """Make a client."""
        return Client(list(self.endpoints), tls=self.tls, timeout_s=timeout_s)


class DataDirPart:
    """The data directory and the lock that makes one `trimaran up` its only user."""

    name = "data"

    def __init__(self, options: UpOptions) -> None:
        self._folder = options.data_dir
        self._lock: IO[str] | None = None

    async def start(self) -> str:
        """Make the directory where it is missing and take its lock.

        Raises:
            StartError: another process has it, or it cannot be written.
        """
        path = self._folder / "up.lock"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = path.open("a+")
        except OSError as error:
            raise StartError(
                f"the data directory {self._folder} cannot be used ({error.strerror}); run as "
                "root, or name another one with --data-dir"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise StartError(
                f"the data directory {self._folder} is in use by another `trimaran up` "
                f"(process {holder or 'unknown'}); stop that one, or name another with --data-dir"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        return str(self._folder)

    async def stop(self) -> None:
        """Give the directory back."""
        assert self._lock is not None
        self._lock.truncate(0)
        self._lock.close()

    async def wait_failed(self) -> None:
        """A lock does not fail."""
        await forever()


class RemoteStorePart:
    """A store that is there already: an etcd, or a Trimaran store that runs by itself."""

    name = "store"

    def __init__(self, options: UpOptions) -> None:
        self._urls = options.endpoints
        self._timeout_s = options.join_timeout_s

    async def start(self) -> str:
        """Wait until it answers.

        Raises:
            StartError: it does not in time, or it answers something else than a store.
        """
        deadline = time.monotonic() + self._timeout_s
        async with Client(list(self._urls), timeout_s=2.0) as client:
            while True:
                try:
                    status = await client.status()
                    return f"{', '.join(self._urls)}, version {status.version}"
                except StoreError as error:
                    if time.monotonic() > deadline:
                        raise StartError(self._explain(error)) from error
                await asyncio.sleep(JOIN_INTERVAL_S)

    def _explain(self, error: StoreError) -> str:
        return (
            f"no store answers at {', '.join(self._urls)} ({error.message}); is it running there? "
            "`etcdctl endpoint health` asks it from here"
        )

    async def stop(self) -> None:
        """Leave it alone."""

    async def wait_failed(self) -> None:
        """The daemons ride out an absent store, so this one never counts as failed."""
        await forever()


def check_address(address: str, port: int) -> None:
    """Check that the store could listen there, for an error in the terms of `trimaran up`.

    Raises:
        StartError: it could not.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            # Only listening finds out about one who listens with the same option.
            probe.listen()
        except OSError as error:
            raise explain_bind(error, address, port) from error


def explain_bind(error: OSError, address: str, port: int) -> StartError:
    """Say what to do about an address the store could not listen on."""
    where = f"port {port} of {address}"
    if error.errno == errno.EADDRINUSE:
        return StartError(
            f"{where} is taken: see by whom with `ss -ltnp sport = :{port}`; stop that one, "
            "choose another with --port, or use it with --endpoints if it is an etcd"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return StartError(
            f"{address} is not an address of this host: `ip address` lists those it has; "
            "--listen 0.0.0.0 means all"
        )
    return StartError(f"the store cannot listen on {where}: {error.strerror or error}")


class NetPart:
    """The overlay network: writes its configuration where there is none, then runs netd."""

    name = "net"

    def __init__(self, options: UpOptions, access: StoreAccess) -> None:
        self._options = options
        self._access = access
        self._daemon: NetDaemon | None = None

    async def start(self) -> str:
        """Start the daemon and wait until this host has its subnet and the device is up.

        Raises:
            StartError: it has not within the time; the text says what it waits for.
            TrimaranError: the daemon refused its options or lacks rights.
        """
        from trimaran.daemons.netd import NetDaemon, NetOptions

        wrote = await self._write_default_config()
        daemon = NetDaemon(
            NetOptions(
                endpoints=self._access.endpoints,
                tls=self._access.tls,
                follow_members=self._access.follow,
                public_ip=ipaddress.IPv4Address(self._options.advertise),
                state_dir=self._options.data_dir / "net",
            )
        )
        await daemon.start()
        try:
            await asyncio.wait_for(daemon.ready(), NET_READY_TIMEOUT_S)
        except TimeoutError:
            status = daemon.status()
            problems = "; ".join(status.problems) or status.detail
            await daemon.stop()
            raise StartError(
                f"the network is not ready after {NET_READY_TIMEOUT_S:g} s: {problems}; "
                "mend that, or leave the network out with --no-net"
            ) from None
        except asyncio.CancelledError:
            await daemon.stop()
            raise
        self._daemon = daemon
        status = daemon.status()
        made = f", {self._options.network} written to the store" if wrote else ""
        return f"{status.subnet} of {status.network} on {status.device} ({status.backend}){made}"

    async def _write_default_config(self) -> bool:
        """Write the network configuration unless there is one; tell whether it was written."""
        key = f"{DEFAULT_PREFIX}/config"
        value = network_config(self._options)
        async with self._access.client() as client:
            result = await client.txn([Compare.version(key, "=", 0)], [Put(key, value)])
        return result.succeeded

    async def stop(self) -> None:
        """Stop the daemon; devices and routes stay, so that packets go on."""
        assert self._daemon is not None
        await self._daemon.stop()

    async def wait_failed(self) -> None:
        """Raise what ended the daemon."""
        assert self._daemon is not None
        await self._daemon.wait()


class FleetPart:
    """The fleet: engine and agent of this machine."""

    name = "fleet"

    def __init__(self, options: UpOptions, access: StoreAccess) -> None:
        self._options = options
        self._access = access
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Start the daemon and wait until the machine is registered.

        Raises:
            StartError: the store has not taken the registration within the time.
            TrimaranError: the daemon cannot work here; the text says what to do.
        """
        from trimaran.daemons.fleetd import FleetDaemon, FleetOptions

        daemon = FleetDaemon(
            FleetOptions(
                endpoints=self._access.endpoints,
                tls=self._access.tls,
                follow_members=self._access.follow,
                public_ip=self._options.advertise,
                metadata=self._options.metadata,
            )
        )
        self._running = asyncio.create_task(daemon.run(self._stop), name="fleet")
        ready = asyncio.create_task(daemon.ready.wait())
        try:
            await asyncio.wait(
                [self._running, ready],
                return_when=asyncio.FIRST_COMPLETED,
                timeout=FLEET_READY_TIMEOUT_S,
            )
            if self._running.done():
                await self.wait_failed()
            if not ready.done():
                raise StartError(
                    f"the machine is not registered after {FLEET_READY_TIMEOUT_S:g} s; the log "
                    "above says why. Leave the fleet out with --no-fleet"
                )
        except BaseException:
            await self.stop()
            raise
        finally:
            ready.cancel()
        return f"machine {daemon.machine_id} at {self._options.advertise}"

    async def stop(self) -> None:
        """Stop the daemon; units stay as they are."""
        assert self._running is not None
        self._stop.set()
        await asyncio.wait([self._running])

    async def wait_failed(self) -> None:
        """Raise what ended the daemon."""
        assert self._running is not None
        await asyncio.wait([self._running])
        try:
            self._running.result()
        except BaseExceptionGroup as group:
            raise first_of(group) from group


def first_of(error: BaseException) -> BaseException:
    """The first single exception of a group, which is what a person wants to read."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
