"""The network daemon: holds this host's subnet in the store and the kernel equal to the records.

Two loops on one event loop. One holds the subnet: it wakes when the store says something new, and
brings our record there in order. The other holds the kernel: it wakes on anything at all, compares
what there should be with what there is, and applies the difference. Neither keeps state the other
could miss; an outage of the store stops the first and leaves the second with what it last knew.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final, Literal

from trimaran.client import Client, TLSOptions
from trimaran.client.cluster import FOLLOW_INTERVAL_S
from trimaran.daemons.net_files import StateFiles, read_host_id, read_json
from trimaran.daemons.net_store import StoreFollower, SubnetHolder, TwinError
from trimaran.daemons.net_udp import UdpPath
from trimaran.daemons.netlink import Netlink, NetlinkEvents, Snapshot
from trimaran.errors import ConfigError, NetworkConfigError, StoreError, SubnetExhaustedError
from trimaran.net.allocation import HostIdentity, derive_mac, duplicate_addresses
from trimaran.net.config import DEFAULT_PREFIX, NetworkConfig, UdpOptions, VxlanOptions
from trimaran.net.environment import format_environment
from trimaran.net.kernel import KernelState, difference
from trimaran.net.overlay import Overlay, build_overlay, owner_alias
from trimaran.net.records import own_record
from trimaran.net.underlay import Underlay, choose_underlay
from trimaran.net.view import NetworkView

log = logging.getLogger("trimaran.net")

DEFAULT_LEASE_TTL_S: Final = 86400
DEFAULT_SUBNET_FILE: Final = Path("/run/flannel/subnet.env")
DEFAULT_STATE_DIR: Final = Path("/var/lib/trimaran/net")
PREFIX_LENGTH_MAX: Final = 200  # A device's alias has room for 255 bytes.
RESYNC_S: Final = 60.0
DEBOUNCE_S: Final = 0.05
RETRY_MIN_S: Final = 0.5
RETRY_MAX_S: Final = 30.0
TWIN_WAIT_S: Final = 60.0
CACHE_AFTER_S: Final = 2.0
ROUNDS_MAX: Final = 4
_CAP_NET_ADMIN: Final = 12


@dataclass(frozen=True)
class NetOptions:
    """Options of the daemon.

    Attributes:
        endpoints: URLs of the store.
        prefix: of the network's keys in the store.
        iface: name or address of the underlay's interface, empty to find it.
        public_ip: address to publish, None for the interface's.
        subnet_file: where containers' runtimes read the subnet.
        state_dir: what must survive a restart.
        host_id: this host's identity, empty for the machine id.
        lease_ttl_s: how long the subnet stays ours without contact to the store.
        tls: how to speak to an https endpoint.
        follow_members: use the store's members as endpoints, as they change.
        udp_mode: `plain` moves one packet a call, to compare with.
    """

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    prefix: str = DEFAULT_PREFIX
    iface: str = ""
    public_ip: IPv4Address | None = None
    subnet_file: Path = DEFAULT_SUBNET_FILE
    state_dir: Path = DEFAULT_STATE_DIR
    host_id: str = ""
    lease_ttl_s: int = DEFAULT_LEASE_TTL_S
    tls: TLSOptions | None = None
    follow_members: bool = False
    udp_mode: Literal["fast", "plain"] = "fast"


@dataclass
class NetStatus:
    """What the daemon is doing, for people and for `trimaran up`.

    Attributes:
        state: `starting`, `waiting` (detail says for what), `running`, `degraded`, `stopped`.
        detail: one sentence on the state.
        problems: what does not work, each with what to do.
        ignored: subnet -> why its record is not used.
    """

    state: str = "starting"
    detail: str = ""
    pid: int = 0
    host_id: str = ""
    prefix: str = ""
    network: str = ""
    subnet: str = ""
    backend: str = ""
    device: str = ""
    mtu: int = 0
    interface: str = ""
    public_ip: str = ""
    lease: str = ""
    peers: int = 0
    store_error: str = ""
    store_contact_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)


def require_net_admin() -> None:
    """Check for CAP_NET_ADMIN before anything is touched.

    Raises:
        ConfigError: if this process lacks it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff" and not int(value, 16) >> _CAP_NET_ADMIN & 1:
            raise ConfigError(
                "the network daemon changes devices and routes and so needs CAP_NET_ADMIN; "
                "run it as root, or grant the capability"
            )


class NetDaemon:
    """The daemon. `run` does it all; `start` and `stop` serve a process with several daemons.

    Attributes:
        options: as given.
        host_id: this host's identity.
    """

    def __init__(self, options: NetOptions) -> None:
        self.options = options
        self.host_id = options.host_id or read_host_id()
        if not options.prefix.startswith("/") or len(options.prefix) > PREFIX_LENGTH_MAX:
            raise ConfigError(
                f"prefix {options.prefix!r} must start with / and have at most "
                f"{PREFIX_LENGTH_MAX} characters, e.g. {DEFAULT_PREFIX}"
            )
        self.prefix = options.prefix.rstrip("/")
        self._files = StateFiles(options.state_dir, options.subnet_file)
        self._view = NetworkView(self.prefix)
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()
        self._kernel_wake = asyncio.Event()
        self._hold_wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self._client = Client(list(options.endpoints), tls=options.tls)
        self._follows_members = options.follow_members
        self._follower = StoreFollower(self._client, self._view, self._store_changed)
        self._holder = SubnetHolder(
            self._client, self._follower, options.lease_ttl_s, self._hold_wake.set
        )
        self._udp = UdpPath(options.udp_mode)
        self._underlay: Underlay | None = None
        self._overlay: Overlay | None = None
        self._overlay_inputs: tuple[object, ...] = ()
        self._subnet: IPv4Network | None = None
        self._underlay_problem = ""
        self._hold_problem = ""
        self._kernel_problems: list[str] = []
        self._stopped = False

    async def start(self) -> None:
        """Claim the state directory, open the sockets and begin to work in the background.

        Raises:
            ConfigError: if rights are missing or another daemon has the state directory.
            OSError: if the kernel refuses a netlink socket.
        """
        require_net_admin()
        try:
            self._open()
        except BaseException:
            await self._stack.aclose()
            raise

    def _open(self) -> None:
        self._stack.callback(os.close, self._files.lock())
        self._preferred = self._files.preferred_subnets(self.host_id)
        self._netlink = Netlink()
        self._stack.callback(self._netlink.close)
        self._events = NetlinkEvents(self._kernel_wake.set)
        self._stack.callback(self._events.close)
        self._stack.callback(self._udp.close)
        self._stack.push_async_callback(self._client.close)
        self._stack.push_async_callback(self._holder.close)
        log.info("network %s, host %s", self.prefix, self.host_id)
        for name, work in (
            ("follow", self._follower.run()),
            ("hold", self._hold_loop()),
            ("kernel", self._kernel_loop()),
            ("cache", self._use_cache()),
        ):
            self._spawn(f"net-{name}", work)
        if self._follows_members:
            prefer = self._client.pool.urls[0]
            self._spawn("net-members", self._client.follow_members(FOLLOW_INTERVAL_S, prefer))

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def stop(self) -> None:
        """End the work. Device, routes, lease and subnet.env stay, so that a restart is hitless.

        Only the TUN device of the udp backend goes with the process.
        """
        if self._stopped:
            return
        self._stopped = True
        self._stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()
        self._write_status()

    async def run(self) -> None:
        """Start, work until `request_stop` or cancellation, then stop.

        Raises:
            ConfigError: as `start`.
            Exception: whatever ended one of the loops; the daemon cannot go on then.
        """
        await self.start()
        try:
            await self.wait()
        finally:
            await self.stop()

    async def wait(self) -> None:
        """Return after `request_stop`; raise what ended one of the loops."""
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            endless = [task for task in self._tasks if task.get_name() != "net-cache"]
            done, _ = await asyncio.wait([stopping, *endless], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task is not stopping:
                    task.result()
        finally:
            stopping.cancel()

    def request_stop(self) -> None:
        """Make `run` and `wait` return soon; may be called from a signal handler of the loop."""
        self._stopping.set()

    async def ready(self) -> None:
        """Return once the overlay has been in order for the first time."""
        await self._ready.wait()

    def status(self) -> NetStatus:
        """Tell what the daemon is doing."""
        problems = [
            text for text in (self._underlay_problem, self._hold_problem) if text
        ] + self._kernel_problems
        config, overlay, underlay = self._view.config, self._overlay, self._underlay
        if config is not None and self._view.config_problem:
            problems.append(self._view.config_problem)
        problems += list(self._view.bad_records.values())
        if config is not None and underlay is not None:
            stored = self._view.records.values()
            problems += [
                f"host {item.record.host_id} publishes this host's address {underlay.public_ip} "
                "too; give one of them --public-ip or --iface"
                for item in duplicate_addresses(stored, self._identity(config, underlay))
            ]
        status = NetStatus(
            pid=os.getpid(), host_id=self.host_id, prefix=self.prefix, problems=problems
        )
        if config is not None:
            status.network, status.backend = str(config.network), config.backend.type
        if underlay is not None:
            status.interface, status.public_ip = underlay.name, str(underlay.public_ip)
        if self._subnet is not None:
            status.subnet = str(self._subnet)
        if overlay is not None:
            status.device, status.mtu = overlay.device, overlay.mtu
            status.peers = len(overlay.peers)
            status.ignored = {str(subnet): why for subnet, why in overlay.ignored.items()}
        status.store_error = "" if self._stopped else self._follower.error
        if self._follower.contact_s:
            status.store_contact_s = round(time.monotonic() - self._follower.contact_s, 1)
        if self._holder.held is not None:
            status.lease = f"{self._holder.held.lease:x}"
        status.counters = self._udp.counters()
        status.state, status.detail = self._describe(status)
        return status

    def _describe(self, status: NetStatus) -> tuple[str, str]:
        if self._stopped:
            return "stopped", "the daemon has stopped; what it set up stays in place"
        if self._view.config is None:
            if status.store_error:
                return "waiting", f"for the store: {status.store_error}"
            return "waiting", f"for a configuration: {self._view.config_problem}"
        if status.problems:
            return "degraded", status.problems[0]
        if status.store_error:
            return "degraded", f"the store does not answer, peers stay: {status.store_error}"
        if self._overlay is None:
            return "starting", "taking a subnet and setting up the device"
        return "running", f"{status.peers} peers"

    def _store_changed(self) -> None:
        self._hold_wake.set()
        self._kernel_wake.set()

    async def _use_cache(self) -> None:
        """Carry packets with what was known before, where the store does not answer at start."""
        await asyncio.sleep(CACHE_AFTER_S)
        state = read_json(self._files.state_path)
        if self._follower.contact_s or not isinstance(state, dict):
            return
        if state.get("host_id") != self.host_id or not self._preferred:
            return
        try:
            self._view.load_cache(state.get("network"))
        except NetworkConfigError as error:
            log.warning("%s", error)
            return
        log.warning("the store does not answer; using what was known at %s", self.options.state_dir)
        self._subnet = self._preferred[0]
        self._kernel_wake.set()

    async def _hold_loop(self) -> None:
        """Hold the subnet in the store."""
        retry_s = RETRY_MIN_S
        while True:
            wait_s = await self._hold_once()
            if wait_s is None:
                retry_s, timeout_s = RETRY_MIN_S, RESYNC_S
            else:
                retry_s = max(wait_s, min(2 * retry_s, RETRY_MAX_S))
                timeout_s = retry_s
            self._kernel_wake.set()
            if wait_s == TWIN_WAIT_S:
                # Waking on the twin's writes would only write back at once.
                await asyncio.sleep(TWIN_WAIT_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hold_wake.wait(), timeout_s)
            self._hold_wake.clear()

    async def _hold_once(self) -> float | None:
        """Try once; return seconds after which to try again, None for the slow resync."""
        config, underlay = self._view.config, self._underlay
        if config is None or underlay is None or not self._follower.contact_s:
            return None
        try:
            stored = await self._holder.ensure(
                config, self._identity(config, underlay), self._preferred
            )
        except StoreError as error:
            self._hold_problem = f"cannot hold the subnet: {error.message}"
        except SubnetExhaustedError as error:
            self._hold_problem = str(error)
        except TwinError as error:
            self._hold_problem = str(error)
            log.error("%s", error)
            return TWIN_WAIT_S
        else:
            self._hold_problem = ""
            self._take_over(stored.record.subnet)
            return None
        log.warning("%s", self._hold_problem)
        return RETRY_MIN_S

    def _take_over(self, subnet: IPv4Network) -> None:
        if subnet == self._subnet:
            return
        if self._subnet is not None:
            log.error(
                "the subnet changed from %s to %s; containers of the old one must be restarted",
                self._subnet,
                subnet,
            )
        self._subnet = subnet
        self._preferred = [subnet, *(item for item in self._preferred if item != subnet)]
        log.info("this host has %s", subnet)

    def _identity(self, config: NetworkConfig, underlay: Underlay) -> HostIdentity:
        vni = config.backend.vni if isinstance(config.backend, VxlanOptions) else 0
        return HostIdentity(self.host_id, underlay.public_ip, derive_mac(self.host_id, vni))

    async def _kernel_loop(self) -> None:
        """Hold the kernel equal to the records."""
        retry_s = RETRY_MIN_S
        while True:
            self._kernel_wake.clear()
            before = self._kernel_problems
            try:
                self._reconcile()
            except OSError as error:
                # No memory, a full disk, tables that never hold still: the next try may do.
                place = f"{error.filename}: " if isinstance(error.filename, str) else ""
                self._kernel_problems = [f"{place}{error.strerror or error}"]
            for text in self._kernel_problems:
                if text not in before:
                    log.error("%s", text)
            self._write_status()
            retry_s = min(2 * retry_s, RETRY_MAX_S) if self._kernel_problems else RETRY_MIN_S
            timeout_s = retry_s if self._kernel_problems else RESYNC_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._kernel_wake.wait(), timeout_s)
            # Changes come in bursts: one comparison serves them all.
            await asyncio.sleep(DEBOUNCE_S)

    def _reconcile(self) -> None:
        """Compare and apply until nothing is left to do, or report what cannot be done."""
        snapshot = self._netlink.read()
        self._find_underlay(snapshot)
        config, underlay, subnet = self._view.config, self._underlay, self._subnet
        if config is None or underlay is None or subnet is None or not config.fits(subnet):
            return
        if self._underlay_problem:
            return
        overlay = self._build(config, underlay, subnet)
        problems: list[str] = []
        for _ in range(ROUNDS_MAX):
            actual = self._without_lost_tun(snapshot.kernel)
            steps = difference(overlay.kernel, actual, owner_alias(self.prefix), config.network)
            if not steps:
                break
            problems = self._netlink.apply(steps, self._udp.open)
            log.info("kernel: %d steps, %d failed", len(steps), len(problems))
            snapshot = self._netlink.read()
            if problems:
                break
        path_problems = self._update_path(config, overlay, underlay)
        self._events.indexes = frozenset(
            snapshot.indexes[name] for name in overlay.kernel.links if name in snapshot.indexes
        )
        self._kernel_problems = problems + path_problems
        # One peer in trouble must not keep containers from starting; no device must.
        if not path_problems and set(overlay.kernel.links) <= set(snapshot.kernel.links):
            self._publish(config, overlay, subnet)

    def _build(self, config: NetworkConfig, underlay: Underlay, subnet: IPv4Network) -> Overlay:
        """Compute the desired state, or return the last one where nothing it follows from moved."""
        inputs = (self._view.version, underlay, subnet)
        if self._overlay is None or inputs != self._overlay_inputs:
            host = self._identity(config, underlay)
            own = own_record(subnet, host.public_ip, host.host_id, config.backend, host.mac)
            records = [item.record for item in self._view.records.values()]
            self._overlay = build_overlay(config, own, records, underlay, prefix=self.prefix)
            self._overlay_inputs = inputs
        return self._overlay

    def _find_underlay(self, snapshot: Snapshot) -> None:
        try:
            underlay = choose_underlay(
                snapshot.interfaces,
                snapshot.default_routes,
                iface=self.options.iface,
                public_ip=self.options.public_ip,
            )
        except ConfigError as error:
            if self._underlay_problem != str(error):
                log.warning("%s", error)
            self._underlay_problem = str(error)
            return
        self._underlay_problem = ""
        if underlay != self._underlay:
            log.info(
                "underlay: %s, MTU %d, public address %s",
                underlay.name,
                underlay.mtu,
                underlay.public_ip,
            )
            self._underlay = underlay
            self._hold_wake.set()

    def _without_lost_tun(self, actual: KernelState) -> KernelState:
        """Leave out a TUN device we hold no descriptor of, or whose path ended, to open it anew."""
        if self._udp.name and not self._udp.error:
            return actual
        links = {
            name: link
            for name, link in actual.links.items()
            if link.kind != "tun" or link.alias not in ("", owner_alias(self.prefix))
        }
        return KernelState(
            links, actual.addresses, actual.neighbours, actual.forwardings, actual.routes
        )

    def _update_path(
        self, config: NetworkConfig, overlay: Overlay, underlay: Underlay
    ) -> list[str]:
        """Bring the userspace path in line; it exists for the udp backend only."""
        if not isinstance(config.backend, UdpOptions):
            self._udp.close()
            return []
        if not self._udp.name:
            return []
        local = underlay.address, config.backend.port
        try:
            self._udp.update(config.network, config.subnet_length, local, overlay.peers)
        except OSError as error:
            return [error.strerror or str(error)]
        return []

    def _publish(self, config: NetworkConfig, overlay: Overlay, subnet: IPv4Network) -> None:
        """Write subnet.env and the state file, where they change."""
        text = format_environment(config.network, subnet, overlay.mtu)
        self._files.write(self._files.subnet_file, text)
        state = {
            "host_id": self.host_id,
            "subnet": str(subnet),
            "prefix": self.prefix,
            "network": self._view.to_cache(),
        }
        self._files.write(self._files.state_path, json.dumps(state, indent=1) + "\n")
        if not self._ready.is_set():
            log.info("ready: %s on %s, MTU %d", subnet, overlay.device or "no device", overlay.mtu)
            self._ready.set()

    def _write_status(self) -> None:
        status = self.status()
        status.counters, status.store_contact_s = {}, 0.0
        text = json.dumps(asdict(status), indent=1)
        try:
            self._files.write(self._files.status_path, text + "\n")
        except OSError as error:
            log.warning("%s: %s", self._files.status_path, error.strerror)
