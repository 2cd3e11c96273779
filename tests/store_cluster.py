"""Clusters of real store processes, each in a network namespace of its own, and faults for them.

A member has two networks. Clients, which are this process and its children, reach it over a bridge
that nothing ever disturbs; so a client can ask a member that its peers cannot. The peers reach each
other through TUN devices and one process, `store_links.c`, that decides about each packet by its
direction: cut, lost, delayed.

Each member's data is on a small file system in memory. Processes, namespaces, devices and mounts
end with this process, however it ends. Needs root. Start clusters from the main thread: processes
are tied to the thread that started them.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import grpc

import netns
from etcd_server import ServerStartError, command, missing_reason
from netns import Namespace
from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS

HEARTBEAT_MS: Final = 100
ELECTION_MS: Final = 1000
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0
CALL_TIMEOUT_S: Final = 5.0
# Room for what repeated rounds write; it is memory only where it is used.
DISK_MB: Final = 1024
CLIENT_PORT: Final = 2379
PEER_PORT: Final = 2380
CUT: Final = 1000
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_PEER_MTU: Final = 9000
_numbers = itertools.count()
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def why_not(kind: str) -> str:
    """Why a cluster of a kind cannot run here; empty if it can."""
    if shutil.which("cc") is None:
        return "there is no C compiler"
    return missing_reason(kind) or netns.why_not()


def open_tun(namespace: Namespace, name: str) -> int:
    """Make a TUN device in a namespace and give its descriptor."""
    with namespace.entered():
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
    return fd


class Links:
    """The network between the peers: packets pass from device to device as they are told.

    Args:
        namespaces: of the members; the device of the first has the address 10.79.0.1.
        folder: where the program is compiled.
    """

    def __init__(self, namespaces: Sequence[Namespace], folder: Path) -> None:
        self.count = len(namespaces)
        program = str(folder / "links")
        source = Path(__file__).with_name("store_links.c")
        line = ["cc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", program, str(source)]
        subprocess.run(line, check=True)
        fds = [open_tun(namespace, "peers") for namespace in namespaces]
        try:
            for number, namespace in enumerate(namespaces, start=1):
                namespace.run("ip", "address", "add", f"10.79.0.{number}/24", "dev", "peers")
                namespace.run("ip", "link", "set", "peers", "mtu", str(_PEER_MTU), "up")
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", program, *map(str, fds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=fds,
                text=True,
            )
        finally:
            for fd in fds:
                os.close(fd)

    def set(
        self, source: int, target: int, loss: int = 0, delay_us: int = 0, jitter_us: int = 0
    ) -> None:
        """Set one direction, by the numbers of the members; a loss of CUT cuts it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{source} {target} {loss} {delay_us} {jitter_us}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ok\n", "store_links ended"

    def all_pairs(self) -> Iterator[tuple[int, int]]:
        """Every direction there is."""
        return itertools.permutations(range(self.count), 2)

    def cut(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Let nothing pass in these directions."""
        for source, target in pairs:
            self.set(source, target, CUT)

    def isolate(self, number: int) -> None:
        """Cut a member off from all others, both ways."""
        self.cut(pair for pair in self.all_pairs() if number in pair)

    def heal(self) -> None:
        """Let everything pass at once."""
        for source, target in self.all_pairs():
            self.set(source, target)

    def close(self) -> None:
        """End the network."""
        self._process.kill()
        self._process.wait()


class Member:
    """One member: a process, its namespace, and its file system.

    Attributes:
        number: from 0.
        name: m0, m1, ...
        state: "new" or "existing", for --initial-cluster-state.
    """

    def __init__(self, cluster: "Cluster", number: int, namespace: Namespace) -> None:
        self.cluster = cluster
        self.number = number
        self.namespace = namespace
        self.name = f"m{number}"
        self.state = "new"
        self.address = f"{cluster.network}.{number + 1}:{CLIENT_PORT}"
        self.endpoint = f"http://{self.address}"
        self.peer_url = f"http://10.79.0.{number + 1}:{PEER_PORT}"
        self.log_path = cluster.folder / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    @property
    def disk(self) -> Path:
        """Its file system, as this process sees it."""
        return Path(f"/proc/{self.cluster.holder.pid}/root/{self.cluster.folder}/{self.name}")

    def _command_line(self) -> list[str]:
        program = command(self.cluster.kind)
        assert program is not None, missing_reason(self.cluster.kind)
        listen = f"{self.endpoint},http://127.0.0.1:{CLIENT_PORT}"
        return [
            *program,
            f"--name={self.name}",
            f"--data-dir={self.cluster.folder / self.name / 'data'}",
            f"--listen-client-urls={listen}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={self.cluster.initial_cluster}",
            f"--initial-cluster-state={self.state}",
            f"--heartbeat-interval={HEARTBEAT_MS}",
            f"--election-timeout={ELECTION_MS}",
            *self.cluster.arguments,
        ]

    def spawn(self, failpoint: str = "") -> None:
        """Start the process without waiting for it.

        Args:
            failpoint: NAME or NAME:COUNT where it is to be killed; "" for nowhere.
        """
        assert self.process is None, f"{self.name} runs already"
        enter = ["nsenter", f"--net={self.namespace.path}", f"--mount={self.cluster.mounts}"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *enter, *self._command_line()],
                env={**os.environ, "TRIMARAN_FAILPOINT": failpoint},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        """Start the process and wait until it is healthy."""
        self.spawn()
        self.wait_ready()

    def has_ended(self) -> bool:
        """Tell whether the process has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def listens(self) -> bool:
        """Tell whether peers can connect to it."""
        assert self.process is not None
        sockets = Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()
        # Local address and state are the second and the fourth column; 0A is listening.
        columns = [line.split() for line in sockets[1:]]
        return any(c[1].endswith(f":{PEER_PORT:04X}") and c[3] == "0A" for c in columns)

    def healthy(self) -> bool:
        """Ask /health once: that is a linearizable read."""
        try:
            with _OPENER.open(f"{self.endpoint}/health", timeout=2.0) as answer:
                return answer.status == 200 and b"true" in answer.read()
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Poll /health until it is good.

        Raises:
            ServerStartError: the process ended or the time is over.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self.healthy():
            if self.has_ended():
                raise ServerStartError(f"{self.name} ended: {self.log_tail()}")
            if time.monotonic() > deadline_s:
                raise ServerStartError(f"{self.name} is not healthy: {self.log_tail()}")
            time.sleep(0.02)

    def log_tail(self, size: int = 3000) -> str:
        """Give the end of its log."""
        return self.log_path.read_text(errors="replace")[-size:]

    def await_log(self, text: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until its log has a text: some work is told of only after its effect is seen.

        Raises:
            TimeoutError: the text does not come.
        """
        deadline_s = time.monotonic() + timeout_s
        while text not in self.log_path.read_text(errors="replace"):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{self.name} does not log {text!r}: {self.log_tail()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it with SIGKILL and reap it; the data stays."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
            self.process = None

    def stop(self) -> None:
        """End it with SIGTERM; the data stays."""
        assert self.process is not None
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT_S)
        self.kill()

    def pause(self) -> None:
        """Make it hang."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def wipe(self) -> None:
        """Remove its data; it must not run."""
        assert self.process is None
        shutil.rmtree(self.disk / "data")

    def fill_disk(self) -> None:
        """Leave no free block on its file system."""
        with (self.disk / "balloon").open("ab") as balloon:
            step = 1 << 24
            while step >= 4096:
                try:
                    size = os.fstat(balloon.fileno()).st_size
                    os.posix_fallocate(balloon.fileno(), size, step)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    step //= 2

    def free_disk(self) -> None:
        """Give back what fill_disk took."""
        (self.disk / "balloon").unlink()

    def call(self, name: str, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Make a call, named as e.g. "KV/Put"; grpc.RpcError where it fails."""
        method = METHODS[f"/etcdserverpb.{name}"]
        if self._channel is None:
            options = [
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", -1),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
            ]
            self._channel = grpc.insecure_channel(self.address, options=options)
        stub = self._channel.unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        return stub(request, timeout=timeout_s, wait_for_ready=True)

    def status(self) -> Any:
        """Ask for its StatusResponse."""
        return self.call("Maintenance/Status", pb.StatusRequest())

    def close(self) -> None:
        """End it."""
        self.kill()
        if self._channel is not None:
            self._channel.close()


class Cluster:
    """Members of one cluster, not started yet; a context manager that starts and ends them.

    Args:
        kind: a kind of etcd_server.KINDS.
        size: how many members.
        arguments: further flags for each member.
        disk_mb: size of each member's file system.
    """

    def __init__(
        self, kind: str, size: int = 3, *, arguments: Sequence[str] = (), disk_mb: int = DISK_MB
    ) -> None:
        self.kind = kind
        self.size = size
        self.arguments = list(arguments)
        self._undo = contextlib.ExitStack()
        try:
            self._prepare(disk_mb)
        except BaseException:
            self._undo.close()
            raise

    def _prepare(self, disk_mb: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="trimaran-faults-"))
        self._undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
        # Mounts are visible to this process and its members alone, and go with it.
        hold = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
        self.holder = subprocess.Popen(
            [*hold, "sh", "-c", "echo ready; exec sleep infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self._undo.callback(self._end_holder)
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"ready\n"
        self.mounts = f"/proc/{self.holder.pid}/ns/mnt"
        self.network = self._make_bridge()
        namespaces = [self._undo.enter_context(Namespace()) for _ in range(self.size)]
        self.members = [Member(self, i, namespace) for i, namespace in enumerate(namespaces)]
        for member in self.members:
            self._connect(member)
            (self.folder / member.name).mkdir()
            mount = f"mount -t tmpfs -o size={disk_mb}m tmpfs {self.folder / member.name}"
            enter = ["nsenter", f"--mount={self.mounts}"]
            subprocess.run([*enter, *mount.split()], check=True)
        self.links = Links(namespaces, self.folder)
        self._undo.callback(self.links.close)

    def _end_holder(self) -> None:
        self.holder.kill()
        self.holder.wait()

    def _make_bridge(self) -> str:
        """Make the namespace with the bridge, joined to our own; gives the network's start."""
        self._bridge = self._undo.enter_context(Namespace())
        addresses = subprocess.check_output(["ip", "-o", "-4", "address"], text=True)
        number = next(
            n
            for n in ((os.getpid() + i) % 250 for i in range(250))
            if f" 10.78.{n}." not in addresses
        )
        network = f"10.78.{number}"
        device = f"faults{os.getpid()}-{next(_numbers)}"[-15:]
        # A veth ends with either of its ends, and the other one with the last process in there.
        add = f"ip link add {device} type veth peer name out netns"
        subprocess.run([*add.split(), self._bridge.path], check=True)
        for words in (f"address add {network}.254/24 dev {device}", f"link set {device} up"):
            subprocess.run(["ip", *words.split()], check=True)
        self._bridge.run("ip", "link", "add", "bridge", "type", "bridge")
        for device in ("bridge", "out"):
            self._bridge.run("ip", "link", "set", device, "up")
        self._bridge.run("ip", "link", "set", "out", "master", "bridge")
        return network

    def _connect(self, member: Member) -> None:
        port = f"port{member.number}"
        add = f"ip link add clients type veth peer name {port} netns"
        member.namespace.run(*add.split(), self._bridge.path)
        address = f"{self.network}.{member.number + 1}/24"
        member.namespace.run("ip", "address", "add", address, "dev", "clients")
        member.namespace.run("ip", "link", "set", "clients", "up")
        self._bridge.run("ip", "link", "set", port, "master", "bridge", "up")

    @property
    def initial_cluster(self) -> str:
        """Names and peer URLs of all members."""
        return ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    @property
    def endpoints(self) -> list[str]:
        """Client URLs of all members."""
        return [member.endpoint for member in self.members]

    def start(self) -> None:
        """Start all members at once and wait until all are healthy."""
        for member in self.members:
            member.spawn()
        for member in self.members:
            member.wait_ready()

    def leader(self, timeout_s: float = START_TIMEOUT_S) -> Member:
        """Wait until members agree on a leader that runs, and give that one."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for member in self.members:
                with contextlib.suppress(grpc.RpcError):
                    if member.process is None:
                        continue
                    status = member.call("Maintenance/Status", pb.StatusRequest(), 1.0)
                    if status.leader and status.leader == status.header.member_id:
                        return member
            time.sleep(0.02)
        raise ServerStartError(f"no member leads\n{self.members[0].log_tail()}")

    def followers(self, leader: Member) -> list[Member]:
        """All others."""
        return [member for member in self.members if member is not leader]

    def wait_ready(self) -> None:
        """Wait until every member is healthy."""
        for member in self.members:
            member.wait_ready()

    def close(self) -> None:
        """End and remove everything."""
        for member in getattr(self, "members", []):
            member.close()
        self._undo.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
