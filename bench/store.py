"""Put and Range of a store beside real etcd: requests a second, latency, CPU time.

The client is h2load: HTTP/2 with prior knowledge, each request one gRPC call. It sends one body
over and over, so `put` and `range` use a single key of 8 bytes with a value of 256 bytes; the
shapes are connections x concurrent streams of each connection. Both servers flush to disk before
they acknowledge, on the same file system, with the flags they have by default.

h2load knows HTTP status codes only. That each request succeeded is checked otherwise: a series of
puts must advance the revision by exactly its number; a series of ranges must bring back exactly its
number of bodies of the right size.

With --keys N the client is load.c instead, which draws keys of 8 bytes at random from N of them
and checks grpc-status itself; before ranges it puts 3 N times, so that nearly all keys are there.

Each case is measured in several rounds, the order of the servers alternating; the table has the
medians, the ratio being that of the rounds' ratios. Latency comes from a run of its own because
h2load's log costs a system call a request.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from etcd_server import StoreServer, missing_reason
from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS

KEY = b"benchkey"
VALUE = bytes(range(256))
PATHS = {"put": "/etcdserverpb.KV/Put", "range": "/etcdserverpb.KV/Range"}
SHAPES = ((1, 1), (100, 1), (10, 100))
RUN_TIMEOUT_S = 120.0
# What the store is to reach beside etcd 3.5.1, by operation and shape.
TARGETS = {
    ("put", (1, 1)): 1.0,
    ("put", (100, 1)): 3.0,
    ("put", (10, 100)): 5.0,
    ("range", (100, 1)): 2.5,
    ("range", (10, 100)): 4.0,
}


class BenchError(Exception):
    """A run that does not count: requests failed, or the client could not run."""


@dataclass
class Case:
    """One operation in one shape on one server.

    Attributes:
        rates: requests a second of each round.
        cpu_us: CPU time of the server for a request in microseconds, of each round.
        p50_us, p99_us: latency in microseconds.
        requests: how many requests were sent and checked, in all runs.
    """

    kind: str
    operation: str
    shape: tuple[int, int]
    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    p50_us: float = 0.0
    p99_us: float = 0.0
    requests: int = 0

    @property
    def rate(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rates)

    def ratio(self, reference: "Case") -> float:
        """How many times faster than the reference: the median of each round's own ratio.

        The two of a round run right after each other, so that a machine whose speed drifts from
        round to round slows both.
        """
        return statistics.median(a / b for a, b in zip(self.rates, reference.rates, strict=True))


def call(server: StoreServer, path: str, request: object) -> object:
    """Make one gRPC call on a channel of its own."""
    method = METHODS[path]
    with grpc.insecure_channel(server.address) as channel:
        return channel.unary_unary(
            path, type(request).SerializeToString, method.response.FromString
        )(request, timeout=10.0)


def body(operation: str) -> bytes:
    """Give the one request of an operation as gRPC frames it: flag, length, message."""
    if operation == "put":
        message = pb.PutRequest(key=KEY, value=VALUE).SerializeToString()
    else:
        message = pb.RangeRequest(key=KEY).SerializeToString()
    return struct.pack(">BI", 0, len(message)) + message


def cpu_time_s(pid: int) -> float:
    """Read how much CPU time a process has used so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Client:
    """h2load with its files in one temporary folder.

    Args:
        folder: where request bodies and logs go.
        pin: the CPUs to run on as taskset writes them, "" for any.
    """

    def __init__(self, folder: Path, pin: str = "") -> None:
        self.folder = folder
        self.pin = pin
        for operation in PATHS:
            (folder / operation).write_bytes(body(operation))

    def run(self, server: StoreServer, case: Case, requests: int, log: bool = False) -> float:
        """Send requests and give how many a second succeeded.

        Raises:
            BenchError: h2load failed or counted a request that was not answered with 200.
        """
        connections, streams = case.shape
        log_path = self.folder / "log"
        log_path.unlink(missing_ok=True)
        line = ["taskset", "-c", self.pin] if self.pin else []
        line += ["h2load", f"-n{requests}", f"-c{min(connections, requests)}", f"-m{streams}"]
        line += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        line += [f"--data={self.folder / case.operation}"]
        line += [f"--log-file={log_path}"] if log else []
        line += [server.endpoint + PATHS[case.operation]]
        answer = subprocess.run(line, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
        rate = re.search(r"finished in .*?, ([\d.]+) req/s", answer.stdout)
        good = re.search(r"(\d+) succeeded, (\d+) failed", answer.stdout)
        data = re.search(r"\((\d+)\) data", answer.stdout)
        if answer.returncode != 0 or not (rate and good and data):
            raise BenchError(f"h2load failed: {answer.stdout}{answer.stderr}")
        if int(good[1]) != requests:
            raise BenchError(f"{requests - int(good[1])} of {requests} requests failed")
        self.data_bytes = int(data[1])
        return float(rate[1])

    def latencies_us(self) -> tuple[float, float]:
        """Give median and 99th percentile of the run that was logged last."""
        lines = (self.folder / "log").read_text().splitlines()
        sorted_us = sorted(int(line.split("\t")[2]) for line in lines)
        return sorted_us[len(sorted_us) // 2], sorted_us[len(sorted_us) * 99 // 100]

    def check(self, after: object, case: Case, requests: int) -> None:
        """Check by the size of all answers that each range brought the key.

        Raises:
            BenchError: it did not.
        """
        expected_bytes = requests * (5 + len(after.SerializeToString()))
        if case.operation == "range" and self.data_bytes != expected_bytes:
            raise BenchError(f"ranges brought {self.data_bytes} bytes, not {expected_bytes}")
        if after.kvs[0].value != VALUE:
            raise BenchError("the key does not hold what was put")


class KeysClient(Client):
    """load.c: many keys. It is compiled into the folder.

    Args:
        folder, pin: as in Client.
        keys: how many.
    """

    def __init__(self, folder: Path, keys: int, pin: str = "") -> None:
        super().__init__(folder, pin)
        self.keys = keys
        self.percentiles_us = (0.0, 0.0)
        source = Path(__file__).with_name("load.c")
        flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra"]
        line = ["cc", *flags, "-o", str(folder / "load"), str(source), "-lnghttp2"]
        built = subprocess.run(line, capture_output=True, text=True)
        if built.returncode != 0:
            raise BenchError(f"load.c does not compile: {built.stderr}")

    def run(self, server: StoreServer, case: Case, requests: int, log: bool = False) -> float:
        """Send requests and give how many a second succeeded.

        Raises:
            BenchError: one did not.
        """
        connections, streams = case.shape
        line = ["taskset", "-c", self.pin] if self.pin else []
        line += [str(self.folder / "load"), str(server.client_port), case.operation]
        line += [str(n) for n in (connections, streams, requests, self.keys, len(VALUE))]
        answer = subprocess.run(line, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
        if answer.returncode != 0:
            raise BenchError(f"load failed: {answer.stdout}{answer.stderr}")
        found = json.loads(answer.stdout)
        self.percentiles_us = (found["p50_us"], found["p99_us"])
        return float(found["good"] / found["seconds"])

    def latencies_us(self) -> tuple[float, float]:
        """Give median and 99th percentile of the last run."""
        return self.percentiles_us

    def check(self, after: object, case: Case, requests: int) -> None:
        """Nothing is left to check: the client has looked at every status."""


def checked_run(
    client: Client, server: StoreServer, case: Case, requests: int, log: bool = False
) -> float:
    """Run the client and check by what the store says that each request was a success."""
    before = call(server, PATHS["range"], pb.RangeRequest(key=KEY))
    rate = client.run(server, case, requests, log)
    after = call(server, PATHS["range"], pb.RangeRequest(key=KEY))
    advance = after.header.revision - before.header.revision
    if advance != (requests if case.operation == "put" else 0):
        raise BenchError(f"{requests} times {case.operation} moved the revision by {advance}")
    client.check(after, case, requests)
    case.requests += requests
    return rate


def measure(client: Client, server: StoreServer, case: Case, seconds: float) -> None:
    """Add one round to a case: find how many requests fill the time, then send them."""
    least = 2 * case.shape[0] * case.shape[1]
    pilot = checked_run(client, server, case, max(least, 200 if seconds < 1 else 2000))
    requests = max(least, int(pilot * seconds))
    before_s = cpu_time_s(server.pid)
    case.rates.append(checked_run(client, server, case, requests))
    case.cpu_us.append((cpu_time_s(server.pid) - before_s) / requests * 1e6)


def measure_latency(client: Client, server: StoreServer, case: Case, seconds: float) -> None:
    """Fill in the latencies of a case by a run with h2load's log."""
    least = 2 * case.shape[0] * case.shape[1]
    checked_run(client, server, case, max(least, int(case.rate * seconds / 2)), log=True)
    case.p50_us, case.p99_us = client.latencies_us()


def file_system(path: Path) -> str:
    """Name the type of the file system a path is on."""
    answer = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


def run_all(options: argparse.Namespace) -> list[Case]:
    """Measure every case on every server, in rounds of alternating order."""
    cases = [
        Case(kind, operation, shape)
        for operation in options.operations
        for shape in options.shapes
        for kind in options.kinds
    ]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimaran-bench-")))
        client = Client(folder, options.client_cpus)
        if options.keys > 1:
            client = KeysClient(folder, options.keys, options.client_cpus)
        servers = {}
        for kind in options.kinds:
            servers[kind] = stack.enter_context(StoreServer(kind, name="bench"))
            call(servers[kind], PATHS["put"], pb.PutRequest(key=KEY, value=VALUE))
            if options.keys > 1 and "range" in options.operations:
                filling = Case(kind, "put", (10, 100))
                client.run(servers[kind], filling, max(1000, 3 * options.keys))
            if options.server_cpus:
                taskset = ["taskset", "-a", "-p", "-c", options.server_cpus]
                subprocess.run([*taskset, str(servers[kind].pid)], check=True, capture_output=True)
        groups = [cases[i : i + len(servers)] for i in range(0, len(cases), len(servers))]
        for number in range(options.rounds):
            for group in groups:
                for case in group if number % 2 == 0 else reversed(group):
                    measure(client, servers[case.kind], case, options.seconds)
                    time.sleep(options.pause_s)
        for case in cases:
            measure_latency(client, servers[case.kind], case, options.seconds)
    return cases


def table(cases: Sequence[Case], reference: str) -> str:
    """Lay the cases out, each beside the reference server."""
    base = {(c.operation, c.shape): c for c in cases if c.kind == reference}
    lines = [
        f"{'operation':<10}{'shape':>8}  {'server':<10}{'requests/s':>11}{'ratio':>7}{'target':>8}"
        f"{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>8}  rounds"
    ]
    for case in cases:
        key = (case.operation, case.shape)
        ratio = f"{case.ratio(base[key]):.2f}" if key in base else "-"
        target = f"{TARGETS[key]:.1f}" if key in TARGETS and case.kind == "trimaran" else ""
        shape = f"{case.shape[0]}x{case.shape[1]}"
        rounds = " ".join(f"{rate:,.0f}" for rate in case.rates)
        lines.append(
            f"{case.operation:<10}{shape:>8}  {case.kind:<10}{case.rate:>11,.0f}{ratio:>7}"
            f"{target:>8}{case.p50_us / 1e3:>9.2f}{case.p99_us / 1e3:>9.2f}"
            f"{statistics.median(case.cpu_us):>8.1f}  {rounds}"
        )
    return "\n".join(lines)


def report(cases: Sequence[Case], options: argparse.Namespace) -> dict[str, object]:
    """Build the JSON line: parameters, figures, and a hash of what the stores were asked."""
    asked = [(c.operation, c.shape, len(KEY), len(VALUE), options.keys) for c in cases]
    return {
        "bench": "store",
        "parameters": {key: value for key, value in vars(options).items() if key != "smoke"},
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "file_system": file_system(Path(tempfile.gettempdir())),
        "result_hash": hashlib.sha256(repr((asked, VALUE)).encode()).hexdigest()[:16],
        "results": [
            {
                "server": c.kind,
                "operation": c.operation,
                "connections": c.shape[0],
                "streams": c.shape[1],
                "requests_per_s": round(c.rate, 1),
                "p50_us": c.p50_us,
                "p99_us": c.p99_us,
                "server_cpu_us": round(statistics.median(c.cpu_us), 1),
                "requests_checked": c.requests,
            }
            for c in cases
        ],
    }


def _shape(text: str) -> tuple[int, int]:
    connections, _, streams = text.partition("x")
    return int(connections), int(streams)


def parse(smoke: bool, arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options; smoke mode only changes the defaults."""
    parser = argparse.ArgumentParser(prog="./run bench store", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    shapes = [(1, 1), (4, 4)] if smoke else list(SHAPES)
    parser.add_argument("--rounds", type=int, default=1 if smoke else 3)
    parser.add_argument("--seconds", type=float, default=0.02 if smoke else 3.0, help="of a round")
    parser.add_argument("--pause-s", type=float, default=0.0 if smoke else 0.5)
    parser.add_argument("--kinds", nargs="+", default=["3.5", "trimaran"], help="3.4 3.5 trimaran")
    parser.add_argument("--operations", nargs="+", default=list(PATHS), choices=list(PATHS))
    parser.add_argument("--shapes", nargs="+", type=_shape, default=shapes, metavar="CxS")
    parser.add_argument("--keys", type=int, default=1, help="more than one: at random")
    parser.add_argument("--server-cpus", default="", help="pin every server, e.g. 0")
    parser.add_argument("--client-cpus", default="", help="pin the client, e.g. 1")
    return parser.parse_args(arguments)


def main(smoke: bool = False, arguments: Sequence[str] = ()) -> int:
    """Measure, print the parameters, the table and one JSON line.

    Args:
        smoke: run for a moment only, to see that it works.
        arguments: options, see --help.

    Returns:
        the exit code: 1 where nothing could be measured or a run had failures.
    """
    options = parse(smoke, arguments)
    for kind in list(options.kinds):
        reason = missing_reason(kind)
        if reason:
            print(f"without {kind}: {reason}")
            options.kinds.remove(kind)
    if not options.kinds or shutil.which("h2load") is None:
        print("bench store: needs h2load (Debian: nghttp2-client) and a server", file=sys.stderr)
        return 1
    print(f"parameters: {vars(options)}")
    try:
        cases = run_all(options)
    except BenchError as error:
        print(f"bench store: {error}", file=sys.stderr)
        return 1
    print(table(cases, "3.5"))
    print(json.dumps(report(cases, options)))
    return 0
