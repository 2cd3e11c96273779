"""Three members beside three of etcd: Put, Range on leader and followers, and a leader's death.

All members and the client, load.c, run on this machine, the members with the same flags and the
flags' defaults, each with its data on the same file system. Keys of 8 bytes are drawn at random
from --keys; values have 256 bytes. The shapes are connections x concurrent streams of each.

Where it says "leader" or "followers" all connections go there; "all" spreads them evenly. Ranges
are linearizable. Every answer must have grpc-status 0, and a series of puts must advance the
revision by exactly its number.

Each case is measured in rounds, the order of the clusters alternating; the table has the medians,
the ratio being that of the rounds' own ratios. A leader's death is a SIGKILL; what counts is the
time from there to the next write that is acknowledged, for clients that know all endpoints.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from store import PATHS, call, cpu_time_s, file_system

from etcd_server import StoreServer, missing_reason, store_cluster
from trimaran.client import Client
from trimaran.errors import StoreError
from trimaran.wire import etcd_pb2 as pb

VALUE_BYTES = 256
RUN_TIMEOUT_S = 600.0
LEADER_TIMEOUT_S = 30.0
DEATH_TIMEOUT_S = 20.0
DEATH_PROBE_S = 0.02
SIZE = 3
SHAPES = ((1, 1), (100, 1), (10, 100))
CASES = (("put", "leader"), ("put", "all"), ("range", "leader"), ("range", "followers"))
# What the store is to reach beside etcd 3.5.1, by operation and shape.
TARGETS = {
    ("put", (100, 1)): 2.5,
    ("put", (10, 100)): 4.0,
    ("range", (1, 1)): 4.0,
    ("range", (100, 1)): 4.0,
    ("range", (10, 100)): 4.0,
}


KINDS_HELP = '3.4 3.5 trimaran, also with flags: "trimaran --lease-reads"'

KIND_WIDTH = 22

# By cluster: for each death, until the next answer in turn, and until the first of many.
Pauses = dict[str, list[tuple[float, float]]]


class BenchError(Exception):
    """A run that does not count."""


@dataclass
class Case:
    """One operation in one shape at some members of one cluster.

    Attributes:
        rates: requests a second of each round.
        p50_us, p99_us: latency in microseconds, of each round.
        cpu_us: CPU time of all members for a request, of each round.
        requests: how many were sent and checked, in all.
    """

    kind: str
    operation: str
    where: str
    shape: tuple[int, int]
    rates: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    requests: int = 0

    def ratio(self, other: "Case", of: str) -> float:
        """The median of each round's own ratio of a figure to another cluster's."""
        pairs = zip(getattr(self, of), getattr(other, of), strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


class Members:
    """The members of one cluster."""

    def __init__(self, servers: Sequence[StoreServer]) -> None:
        self.servers = list(servers)

    def leader(self) -> StoreServer:
        """Wait until a member says that it leads itself.

        Raises:
            BenchError: none did in time.
        """
        deadline_s = time.monotonic() + LEADER_TIMEOUT_S
        while time.monotonic() < deadline_s:
            for server in self.servers:
                with contextlib.suppress(grpc.RpcError):
                    status = call(server, "/etcdserverpb.Maintenance/Status", pb.StatusRequest())
                    if status.leader and status.leader == status.header.member_id:
                        return server
            time.sleep(0.02)
        raise BenchError("no member leads")

    def at(self, where: str) -> list[StoreServer]:
        """Choose members: "leader", "followers" or "all"."""
        leader = self.leader()
        return {
            "leader": [leader],
            "followers": [server for server in self.servers if server is not leader],
            "all": self.servers,
        }[where]

    def revision(self) -> int:
        """The store's revision now."""
        request = pb.RangeRequest(key=b"x")
        return int(call(self.servers[0], PATHS["range"], request).header.revision)

    def cpu_s(self) -> float:
        """CPU time of all members so far."""
        return sum(cpu_time_s(server.pid) for server in self.servers)


class LoadClient:
    """load.c, compiled into a folder.

    Args:
        folder: where to.
        keys: how many keys are drawn from.
    """

    def __init__(self, folder: Path, keys: int) -> None:
        self.program = str(folder / "load")
        self.keys = keys
        source = str(Path(__file__).with_name("load.c"))
        line = ["cc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", self.program, source]
        built = subprocess.run([*line, "-lnghttp2"], capture_output=True, text=True)
        if built.returncode != 0:
            raise BenchError(f"load.c does not compile: {built.stderr}")

    def run(self, members: Members, case: Case, requests: int) -> dict[str, float]:
        """Send requests and give load.c's figures.

        Raises:
            BenchError: one failed, or the revision did not advance by the puts.
        """
        before = members.revision()
        ports = ",".join(str(server.client_port) for server in members.at(case.where))
        line = [self.program, ports, case.operation]
        line += [str(n) for n in (*case.shape, requests, self.keys, VALUE_BYTES)]
        answer = subprocess.run(line, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
        if answer.returncode != 0:
            raise BenchError(f"load failed: {answer.stdout}{answer.stderr}")
        advance = members.revision() - before
        if advance != (requests if case.operation != "range" else 0):
            raise BenchError(f"{requests} times {case.operation} advanced by {advance}")
        case.requests += requests
        found: dict[str, float] = json.loads(answer.stdout)
        return found


def measure(client: LoadClient, members: Members, case: Case, seconds: float) -> None:
    """Add one round to a case: find how many requests fill the time, then send them."""
    least = 2 * case.shape[0] * case.shape[1]
    pilot = client.run(members, case, max(least, 100 if seconds < 1 else 1000))
    requests = max(least, int(pilot["good"] / pilot["seconds"] * seconds))
    before_s = members.cpu_s()
    found = client.run(members, case, requests)
    case.cpu_us.append((members.cpu_s() - before_s) / requests * 1e6)
    case.rates.append(found["good"] / found["seconds"])
    case.p50_us.append(found["p50_us"])
    case.p99_us.append(found["p99_us"])


async def pauses_of_death(members: Members) -> tuple[float, float]:
    """Kill the leader under two clients that know all endpoints, and prefer the one that dies.

    Returns:
        seconds until a client that writes one after the other had its next answer, and until the
        first answer to any of many writes, begun every 20 ms without waiting for each other.
    """
    leader = members.leader()
    endpoints = [leader.endpoint] + [s.endpoint for s in members.servers if s is not leader]
    async with (
        Client(endpoints, timeout_s=DEATH_TIMEOUT_S) as patient,
        Client(endpoints, timeout_s=DEATH_TIMEOUT_S) as eager,
    ):
        for number in range(50):
            await patient.put("death", str(number))
            await eager.put("death", str(number))
        leader.kill()
        killed_s = time.monotonic()
        one = asyncio.create_task(answer_in_turn(patient, killed_s))
        many = asyncio.create_task(first_answer(eager, killed_s))
        return await one, await many


async def answer_in_turn(client: Client, killed_s: float) -> float:
    """Write until there is an answer; gives the seconds since a moment."""
    while True:
        with contextlib.suppress(StoreError):
            await client.put("death", "one")
            return time.monotonic() - killed_s
        await asyncio.sleep(0.005)


async def first_answer(client: Client, killed_s: float) -> float:
    """Begin a write every 20 ms; gives the seconds from a moment to the first answer."""
    tasks: set[asyncio.Task[float]] = set()
    while True:
        tasks.add(asyncio.create_task(answer_in_turn(client, killed_s)))
        done, _ = await asyncio.wait(
            tasks, timeout=DEATH_PROBE_S, return_when=asyncio.FIRST_COMPLETED
        )
        if done:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return min(task.result() for task in done)


def measure_death(members: Members) -> tuple[float, float]:
    """Measure one death of a leader, and start it again."""
    seconds = asyncio.run(pauses_of_death(members))
    for server in members.servers:
        if not server.runs:
            server.start()
    return seconds


def run_all(options: argparse.Namespace) -> tuple[list[Case], Pauses]:
    """Measure everything in rounds of alternating order; gives cases, and pauses by kind."""
    groups = [
        [Case(kind, operation, where, shape) for kind in options.kinds]
        for operation, where in CASES
        if operation in options.operations
        for shape in options.shapes
    ]
    pauses: Pauses = {kind: [] for kind in options.kinds}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimaran-bench-")))
        client = LoadClient(folder, options.keys)
        clusters = {}
        for kind in options.kinds:
            server, *flags = kind.split()
            servers = stack.enter_context(store_cluster(SIZE, server, arguments=flags))
            clusters[kind] = Members(servers)
            filling = Case(kind, "put", "leader", (10, 10))
            client.run(clusters[kind], filling, max(200, 3 * options.keys))
        for number in range(options.rounds):
            for group in groups:
                for case in group if number % 2 == 0 else reversed(group):
                    measure(client, clusters[case.kind], case, options.seconds)
                    time.sleep(options.pause_s)
        for _ in range(options.deaths):
            for kind, members in clusters.items():
                pauses[kind].append(measure_death(members))
    return [case for group in groups for case in group], pauses


def table(cases: Sequence[Case], pauses: Pauses, reference: str) -> str:
    """Lay the cases out, each beside the reference."""
    base = {(c.operation, c.where, c.shape): c for c in cases if c.kind == reference}
    lines = [
        f"{'operation':<10}{'at':<10}{'shape':>8}  {'cluster':<{KIND_WIDTH}}"
        f"{'requests/s':>11}{'ratio':>7}"
        f"{'target':>8}{'p50 ms':>9}{'p99 ms':>9}{'p99 ratio':>10}{'CPU us':>8}  rounds"
    ]
    for case in cases:
        other = base.get((case.operation, case.where, case.shape))
        faster, slower = "-", "-"
        if other is not None:
            faster = f"{case.ratio(other, 'rates'):.2f}"
            slower = f"{case.ratio(other, 'p99_us'):.2f}"
        shape = f"{case.shape[0]}x{case.shape[1]}"
        target = TARGETS.get((case.operation, case.shape), 0)
        rounds = " ".join(f"{rate:,.0f}" for rate in case.rates)
        lines.append(
            f"{case.operation:<10}{case.where:<10}{shape:>8}  {case.kind:<{KIND_WIDTH}}"
            f"{statistics.median(case.rates):>11,.0f}"
            f"{faster:>7}"
            f"{target if target and case.kind == 'trimaran' else '':>8}"
            f"{statistics.median(case.p50_us) / 1e3:>9.2f}"
            f"{statistics.median(case.p99_us) / 1e3:>9.2f}"
            f"{slower:>10}"
            f"{statistics.median(case.cpu_us):>8.1f}  {rounds}"
        )
    for kind, seconds in pauses.items():
        figures_of = zip(*seconds, strict=True)
        for name, figures in zip(("in turn", "first of many"), figures_of, strict=False):
            each = " ".join(f"{pause:.2f}" for pause in figures)
            middle = statistics.median(figures)
            lines.append(f"leader's death  {kind:<{KIND_WIDTH}} {name:<14}{middle:.2f} s  {each}")
    return "\n".join(lines)


def report(cases: Sequence[Case], pauses: Pauses, options: argparse.Namespace) -> dict[str, object]:
    """Build the JSON line: parameters, figures, and a hash of what the clusters were asked."""
    asked = [(c.operation, c.where, c.shape, VALUE_BYTES, options.keys) for c in cases]
    return {
        "bench": "cluster",
        "parameters": vars(options),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "file_system": file_system(Path(tempfile.gettempdir())),
        "result_hash": hashlib.sha256(repr(asked).encode()).hexdigest()[:16],
        "results": [
            {
                "cluster": c.kind,
                "operation": c.operation,
                "at": c.where,
                "connections": c.shape[0],
                "streams": c.shape[1],
                "requests_per_s": round(statistics.median(c.rates), 1),
                "p50_us": statistics.median(c.p50_us),
                "p99_us": statistics.median(c.p99_us),
                "cpu_us": round(statistics.median(c.cpu_us), 1),
                "requests_checked": c.requests,
            }
            for c in cases
        ],
        "death_of_leader_s": {
            kind: [round(statistics.median(figures), 3) for figures in zip(*seconds, strict=True)]
            for kind, seconds in pauses.items()
        },
    }


def _shape(text: str) -> tuple[int, int]:
    connections, _, streams = text.partition("x")
    return int(connections), int(streams)


def parse(smoke: bool, arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options; smoke mode only changes the defaults."""
    parser = argparse.ArgumentParser(prog="./run bench cluster", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    shapes = [(1, 1), (4, 4)] if smoke else list(SHAPES)
    parser.add_argument("--rounds", type=int, default=1 if smoke else 3)
    parser.add_argument("--seconds", type=float, default=0.02 if smoke else 2.0, help="of a round")
    parser.add_argument("--pause-s", type=float, default=0.0 if smoke else 0.5)
    parser.add_argument("--deaths", type=int, default=0 if smoke else 5, help="of leaders")
    parser.add_argument("--kinds", nargs="+", default=["3.5", "trimaran"], help=KINDS_HELP)
    parser.add_argument("--operations", nargs="+", default=list(PATHS), choices=list(PATHS))
    parser.add_argument("--shapes", nargs="+", type=_shape, default=shapes, metavar="CxS")
    parser.add_argument("--keys", type=int, default=100 if smoke else 1000, help="at random")
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
        reason = missing_reason(kind.split()[0])
        if reason:
            print(f"without {kind}: {reason}")
            options.kinds.remove(kind)
    if not options.kinds:
        print("bench cluster: there is no server", file=sys.stderr)
        return 1
    print(f"parameters: {vars(options)}")
    try:
        cases, pauses = run_all(options)
    except BenchError as error:
        print(f"bench cluster: {error}", file=sys.stderr)
        return 1
    print(table(cases, pauses, "3.5"))
    print(json.dumps(report(cases, pauses, options)))
    return 0
