"""A new member catches up from a snapshot while the leader serves: time, rates, memory.

A cluster is filled with --keys keys and stores snapshots often enough for its log not to reach back
to the beginning. load.c then writes at the leader, first alone, then while a learner with an empty
directory joins, until it has applied what the leader had when it joined; then alone again. What
counts is the leader's rate during that time beside its rate without, and the most memory of its
own, without the pages of mapped files, that leader and learner had.

Everything runs on this machine, where the learner's work would cost the leader CPU time and disk
that it has for itself on a machine of its own; so the learner runs with --learner-nice, and its
data is under --learner-folder.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
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
    """The memory of its own that a process has now."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
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


def add_learner(
    kind: str, servers: Sequence[StoreServer], arguments: Sequence[str], folder: str
) -> StoreServer:
    """Make a learner known to the cluster; it is not started.

    Args:
        folder: where its data goes.
    """
    peers = ",".join(f"{server.name}={server.peer_url}" for server in servers)
    learner = StoreServer(
        kind, name="new", arguments=[*arguments, "--initial-cluster-state=existing"]
    )
    shutil.rmtree(learner.folder)
    learner.folder = Path(tempfile.mkdtemp(prefix="trimaran-bench-new-", dir=folder))
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
    if kind == "trimaran":  # etcd 3.5.1 has no flag for it, and keeps 5000
        arguments.append(f"--snapshot-catchup-entries={options.snapshot_count}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimaran-bench-")))
        client = LoadClient(folder, options.keys)
        servers = stack.enter_context(store_cluster(options.members, kind, arguments=arguments))
        members = Members(servers)
        client.run(members, Case(kind, "fill", "leader", (10, 100)), options.keys)
        leader = members.leader()
        rate = Rate(client, members, options.operation, options.keys)
        before = rate.several(options.seconds)
        learner = add_learner(kind, servers, arguments, options.learner_folder)
        stack.callback(learner.close)
        goal = applied(leader)
        before_mb = memory_mb(leader)
        start_s = time.monotonic()
        learner.spawn()
        subprocess.run(
            ["renice", "-n", str(options.learner_nice), "-p", str(learner.pid)],
            capture_output=True,
            check=True,
        )
        during = []
        most_mb = [0.0, 0.0]
        while not during or applied(learner) < goal:
            during.append(rate.measure())
            most_mb = list(map(max, most_mb, (memory_mb(leader), memory_mb(learner))))
            if time.monotonic() - start_s > TIMEOUT_S:
                raise BenchError(f"not caught up in {TIMEOUT_S} s: {learner.log_tail()}")
        seconds = time.monotonic() - start_s
        after = rate.several(options.seconds)
        most_mb = list(map(max, most_mb, (memory_mb(leader), memory_mb(learner))))
        if b"snapshot" not in leader.log_path.read_bytes().rpartition(b"serving client")[2]:
            raise BenchError("it caught up from the log, without a snapshot")
        medians = [statistics.median(rates) for rates in (before, during, after)]
        return {
            "kind": kind,
            "catch_up_s": round(seconds, 2),
            "before_per_s": round(medians[0]),
            "during_per_s": round(medians[1]),
            "after_per_s": round(medians[2]),
            "kept": round(medians[1] / statistics.median([*before, *after]), 3),
            "least_during_per_s": round(min(during)),
            "leader_before_mb": round(before_mb),
            "leader_memory_mb": round(most_mb[0]),
            "learner_memory_mb": round(most_mb[1]),
        }


def parse(smoke: bool, arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options; smoke mode only changes the defaults."""
    parser = argparse.ArgumentParser(prog="./run bench catch_up", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--keys", type=int, default=2000 if smoke else 1_000_000)
    parser.add_argument("--members", type=int, default=1 if smoke else 3, help="before the new one")
    parser.add_argument("--seconds", type=float, default=0.0 if smoke else 5.0, help="alone")
    parser.add_argument("--operation", choices=["put", "range"], default="put")
    parser.add_argument("--snapshot-count", type=int, default=10 if smoke else 200)
    parser.add_argument("--learner-nice", type=int, default=19, help="its CPU priority")
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    parser.add_argument("--learner-folder", default=memory, help="where its data goes")
    parser.add_argument("--kinds", nargs="+", default=["trimaran"], help="3.4 3.5 trimaran")
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
