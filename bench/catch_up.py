"""A new member catches up from a snapshot while the leader serves: time, rates, memory.

A cluster is filled with --keys keys and stores snapshots often enough for its log not to reach back
to the beginning. load.c then writes at the leader, first alone, then while a learner with an empty
directory joins, until it has applied what the leader had when it joined; then alone again. What
counts is the leader's rate during that time beside its rate without, and the most memory that
leader and learner ever had. Everything runs on this machine, so the learner's work costs the leader
CPU time that it would have for itself on a machine of its own; the CPUs are printed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc
from cluster import BenchError, Case, LoadClient, Members
from store import call

from etcd_server import StoreServer, missing_reason, store_cluster
from trimaran.wire import etcd_pb2 as pb

TIMEOUT_S = 300.0
STATUS = "/etcdserverpb.Maintenance/Status"
ADD = "/etcdserverpb.Cluster/MemberAdd"
SHAPE = (4, 8)


def memory_mb(server: StoreServer) -> float:
    """The most resident memory a process ever had."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def applied(server: StoreServer) -> int:
    """The last entry a member has applied; 0 where it does not answer yet."""
    with contextlib.suppress(grpc.RpcError):
        return int(call(server, STATUS, pb.StatusRequest()).raftAppliedIndex)
    return 0


class Rate:
    """Runs load.c again and again for a moment at a time, and keeps the rates."""

    def __init__(self, client: LoadClient, members: Members, operation: str, keys: int) -> None:
        self.client = client
        self.members = members
        self.case = Case("", operation, "leader", SHAPE)
        self.requests = max(100, keys // 100)

    def measure(self) -> float:
        """Send one series and give requests a second."""
        found = self.client.run(self.members, self.case, self.requests)
        # About a quarter of a second for each.
        self.requests = max(100, int(found["good"] / found["seconds"] / 4))
        return found["good"] / found["seconds"]

    def several(self, seconds: float) -> list[float]:
        """Measure for a time."""
        end_s = time.monotonic() + seconds
        rates = [self.measure()]
        while time.monotonic() < end_s:
            rates.append(self.measure())
        return rates


def add_learner(kind: str, servers: Sequence[StoreServer], arguments: Sequence[str]) -> StoreServer:
    """Make a learner known to the cluster; it is not started."""
    peers = ",".join(f"{server.name}={server.peer_url}" for server in servers)
    learner = StoreServer(
        kind, name="new", arguments=[*arguments, "--initial-cluster-state=existing"]
    )
    learner.initial_cluster = f"{peers},new={learner.peer_url}"
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            call(servers[0], ADD, pb.MemberAddRequest(peerURLs=[learner.peer_url], isLearner=True))
            return learner
        except grpc.RpcError as error:
            # Members must have been connected for some seconds.
            if "unhealthy" not in str(error) or time.monotonic() > deadline_s:
                learner.close()
                raise
            time.sleep(0.2)


def measure(kind: str, options: argparse.Namespace) -> dict[str, object]:
    """Measure one kind of store."""
    arguments = [f"--snapshot-count={options.snapshot_count}", "--quota-backend-bytes=8000000000"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimaran-bench-")))
        client = LoadClient(folder, options.keys)
        servers = stack.enter_context(store_cluster(options.members, kind, arguments=arguments))
        members = Members(servers)
        client.run(members, Case(kind, "fill", "leader", (10, 100)), options.keys)
        leader = members.leader()
        rate = Rate(client, members, options.operation, options.keys)
        before = rate.several(options.seconds)
        learner = add_learner(kind, servers, arguments)
        stack.callback(learner.close)
        goal = applied(leader)
        start_s = time.monotonic()
        learner.spawn()
        during = []
        while applied(learner) < goal:
            during.append(rate.measure())
            if time.monotonic() - start_s > TIMEOUT_S:
                raise BenchError(f"not caught up in {TIMEOUT_S} s: {learner.log_tail()}")
        seconds = time.monotonic() - start_s
        after = rate.several(options.seconds)
        medians = [statistics.median(rates) for rates in (before, during, after)]
        return {
            "kind": kind,
            "catch_up_s": round(seconds, 2),
            "before_per_s": round(medians[0]),
            "during_per_s": round(medians[1]),
            "after_per_s": round(medians[2]),
            "kept": round(medians[1] / statistics.median([*before, *after]), 3),
            "least_during_per_s": round(min(during)),
            "leader_memory_mb": round(memory_mb(leader)),
            "learner_memory_mb": round(memory_mb(learner)),
        }


def parse(smoke: bool, arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options; smoke mode only changes the defaults."""
    parser = argparse.ArgumentParser(prog="./run bench catch_up", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--keys", type=int, default=2000 if smoke else 1_000_000)
    parser.add_argument("--members", type=int, default=1 if smoke else 3, help="before the new one")
    parser.add_argument("--seconds", type=float, default=0.0 if smoke else 5.0, help="alone")
    parser.add_argument("--operation", choices=["put", "range"], default="put")
    parser.add_argument("--snapshot-count", type=int, default=10 if smoke else 1000)
    parser.add_argument("--kinds", nargs="+", default=["3.5", "trimaran"], help="3.4 3.5 trimaran")
    return parser.parse_args(arguments)


def main(smoke: bool = False, arguments: Sequence[str] = ()) -> int:
    """Measure, print the parameters, the figures and one JSON line.

    Args:
        smoke: run for a moment only, to see that it works.
        arguments: options, see --help.

    Returns:
        the exit code: 1 where nothing could be measured.
    """
    options = parse(smoke, arguments)
    missing = [reason for kind in options.kinds if (reason := missing_reason(kind))]
    if missing:
        print(f"bench catch_up: {'; '.join(missing)}", file=sys.stderr)
        return 1
    print(f"parameters: {vars(options)}, CPUs: {os.cpu_count()}")
    try:
        results = [measure(kind, options) for kind in options.kinds]
    except (BenchError, grpc.RpcError, subprocess.SubprocessError) as error:
        print(f"bench catch_up: {error}", file=sys.stderr)
        return 1
    for result in results:
        print("  ".join(f"{name}: {figure}" for name, figure in result.items()))
    asked = (options.keys, options.members, options.operation, options.snapshot_count, SHAPE)
    line = {
        "bench": "catch_up",
        "parameters": vars(options),
        "cpus": os.cpu_count(),
        "result_hash": hashlib.sha256(repr(asked).encode()).hexdigest()[:16],
        "results": results,
    }
    print(json.dumps(line))
    return 0
