"""What is done to a cluster under load, and what must hold afterwards.

A scenario is a function of SCENARIOS: it breaks something, tells when a majority could serve again
(`Run.majority`), waits for the first write that was asked for after that, and mends what it broke.
`run` does the rest: load before, during and after; every member alike in the end; the recorded
history without a violation.
"""

import contextlib
import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from store_cluster import ELECTION_MS, Cluster, Member
from store_history import Event, History, Truth, second_opinion, summary, violations
from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS

READY_TIMEOUT_S: Final = 30.0
SERVICE_TIMEOUT_S: Final = 30.0
LOAD_TIMEOUT_S: Final = 90.0
# How long the cluster works undisturbed before and after, and how long a fault lasts beyond the
# moment where the service was back.
QUIET_S: Final = 0.5
HOLD_S: Final = 1.0
EVERYTHING: Final = {"key": b"\0", "range_end": b"\0"}


class LoadProcess:
    """store_load.py at work.

    Args:
        cluster: to be kept busy.
        prefix: of the keys.
        seed: of everything random.
    """

    def __init__(self, cluster: Cluster, prefix: str, seed: int) -> None:
        self.path = cluster.folder / f"history-{prefix.strip('/')}.json"
        self.answers: queue.Queue[tuple[int, int, int] | None] = queue.Queue()
        program = str(Path(__file__).with_name("store_load.py"))
        line = [sys.executable, program, f"--prefix={prefix}", f"--seed={seed}"]
        line += [f"--history={self.path}", *(member.address for member in cluster.members)]
        self.errors = (cluster.folder / "load.log").open("ab")
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *line],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == "ready\n":
                self.ready.set()
            else:
                call_ns, return_ns, member = map(int, line.split())
                self.answers.put((call_ns, return_ns, member))
        self.answers.put(None)

    def first_answer_s(self, since_ns: int) -> float:
        """Wait for the first answer to a write asked for after a moment; gives seconds since.

        Raises:
            TimeoutError: there was none in time.
        """
        deadline_s = time.monotonic() + SERVICE_TIMEOUT_S
        while True:
            try:
                answer = self.answers.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no write within {SERVICE_TIMEOUT_S} s") from None
            assert answer is not None, f"the load ended: {self.log_tail()}"
            if answer[0] >= since_ns:
                return (answer[1] - since_ns) / 1e9

    def log_tail(self) -> str:
        """Give the end of what it complained about."""
        return Path(self.errors.name).read_text(errors="replace")[-2000:]

    def finish(self) -> History:
        """End the load and give what it recorded."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(LOAD_TIMEOUT_S)
        self._reader.join()
        assert code == 0, f"the load failed: {self.log_tail()}"
        return History.load(self.path)

    def close(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self.errors.close()


@dataclass
class Run:
    """Scenarios at work.

    Attributes:
        back_s: for each time a majority could serve again, how long clients waited for it.
        notes: what else is to be reported.
    """

    cluster: Cluster
    load: LoadProcess
    rng: random.Random
    back_s: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def members(self) -> list[Member]:
        """All members."""
        return self.cluster.members

    def majority(self) -> None:
        """From now on a majority could serve: wait until a write succeeds, and note the time."""
        self.back_s.append(self.load.first_answer_s(time.monotonic_ns()))

    def hold(self, seconds: float = HOLD_S) -> None:
        """Let the load go on with things as they are."""
        time.sleep(seconds)

    def leader_and_follower(self) -> tuple[Member, Member]:
        """The leader, and one of the others by chance."""
        leader = self.cluster.leader()
        return leader, self.rng.choice(self.cluster.followers(leader))


@dataclass
class Result:
    """What came of a scenario.

    Attributes:
        back_s: how long clients waited where a majority could serve again; the longest.
        elections: by how much the term grew.
        seconds: how long it took, until all members were healthy again.
        counts: of operations, of all scenarios under the same load.
        notes: what the scenario has to tell.
    """

    name: str
    back_s: float
    elections: int
    seconds: float
    notes: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def back_in_elections(self) -> float:
        """back_s in election time-outs."""
        return self.back_s * 1000 / ELECTION_MS


def kill_leader(run: Run) -> None:
    """The leader is killed and comes back."""
    leader, _ = run.leader_and_follower()
    leader.kill()
    run.majority()
    run.hold()
    leader.start()


def kill_follower(run: Run) -> None:
    """A follower is killed and comes back."""
    _, follower = run.leader_and_follower()
    follower.kill()
    run.majority()
    run.hold()
    follower.start()


def pause_leader(run: Run) -> None:
    """The leader hangs, and goes on when another one leads: it must not believe it still does."""
    leader, _ = run.leader_and_follower()
    leader.pause()
    run.majority()
    run.hold()
    leader.resume()
    run.majority()


def pause_majority(run: Run) -> None:
    """Leader and follower hang for longer than any election."""
    hanging = run.leader_and_follower()
    for member in hanging:
        member.pause()
    run.hold(3 * ELECTION_MS / 1000)
    for member in hanging:
        member.resume()
    run.majority()


def partition_full(run: Run) -> None:
    """No member reaches any other."""
    run.cluster.links.cut(run.cluster.links.all_pairs())
    run.hold(2.5 * ELECTION_MS / 1000)
    run.cluster.links.heal()
    run.majority()


def leader_alone(run: Run) -> None:
    """The leader is cut off from all others."""
    leader, _ = run.leader_and_follower()
    run.cluster.links.isolate(leader.number)
    run.majority()
    run.hold()
    run.cluster.links.heal()
    run.majority()


def follower_alone(run: Run) -> None:
    """A follower is cut off, and must not disturb the others when it returns."""
    _, follower = run.leader_and_follower()
    run.cluster.links.isolate(follower.number)
    run.majority()
    run.hold(2 * ELECTION_MS / 1000)
    run.cluster.links.heal()
    run.majority()


def leader_mute(run: Run) -> None:
    """One way: what the leader sends is lost, what the others send arrives."""
    leader, _ = run.leader_and_follower()
    run.cluster.links.cut((leader.number, other.number) for other in run.cluster.followers(leader))
    run.majority()
    run.hold()
    run.cluster.links.heal()
    run.majority()


def leader_deaf(run: Run) -> None:
    """One way: what the leader sends arrives, what the others send is lost."""
    leader, _ = run.leader_and_follower()
    run.cluster.links.cut((other.number, leader.number) for other in run.cluster.followers(leader))
    run.majority()
    run.hold()
    run.cluster.links.heal()
    run.majority()


def majority_ring(run: Run) -> None:
    """Each member reaches its neighbours in a ring only: majorities, but each another one.

    With three members a ring is complete; there the one link between leader and a follower goes.
    """
    size = run.cluster.size
    order = list(range(size))
    run.rng.shuffle(order)
    place = {number: i for i, number in enumerate(order)}
    near = {1, size - 1} if size > 3 else {1}
    pairs = run.cluster.links.all_pairs()
    apart = [(a, b) for a, b in pairs if (place[a] - place[b]) % size not in near]
    if size == 3:
        leader, follower = run.leader_and_follower()
        apart = [(leader.number, follower.number), (follower.number, leader.number)]
    run.cluster.links.cut(apart)
    run.majority()
    run.hold(2 * ELECTION_MS / 1000)
    run.cluster.links.heal()
    run.majority()


def delay_and_loss(run: Run) -> None:
    """All links delay and reorder, and lose one packet in twenty."""
    for source, target in run.cluster.links.all_pairs():
        run.cluster.links.set(source, target, 50, 10_000, 10_000)
    run.majority()
    run.hold(3 * HOLD_S)
    run.cluster.links.heal()
    run.majority()


def full_disk(run: Run) -> None:
    """The leader's disk is full while large values are written, and has room again later."""
    leader, follower = run.leader_and_follower()
    leader.fill_disk()
    run.majority()
    for number in range(20):
        with contextlib.suppress(grpc.RpcError):
            put = pb.PutRequest(key=b"large/%d" % number, value=bytes(1 << 20))
            follower.call("KV/Put", put)
    run.majority()
    run.notes["leader"] = "ended" if leader.has_ended() else list(leader.status().errors)
    leader.free_disk()
    if leader.has_ended():
        leader.kill()
        leader.start()
    run.majority()


def wiped_member(run: Run) -> None:
    """A member that lost its data is removed and added again."""
    leader, lost = run.leader_and_follower()
    member_id = lost.status().header.member_id
    lost.kill()
    lost.wipe()
    run.majority()
    call_when_healthy(leader, "Cluster/MemberRemove", pb.MemberRemoveRequest(ID=member_id))
    add = pb.MemberAddRequest(peerURLs=[lost.peer_url])
    call_when_healthy(leader, "Cluster/MemberAdd", add)
    run.majority()
    lost.state = "existing"
    lost.start()


def call_when_healthy(member: Member, name: str, request: Any) -> Any:
    """Change the membership, once the members have been connected for as long as it demands."""
    deadline_s = time.monotonic() + SERVICE_TIMEOUT_S
    while True:
        try:
            return member.call(name, request)
        except grpc.RpcError as error:
            if "unhealthy cluster" not in str(error) or time.monotonic() > deadline_s:
                raise
            time.sleep(0.2)


def kill_all(run: Run) -> None:
    """All members are killed at once."""
    for member in run.members:
        assert member.process is not None
        member.process.kill()
    for member in run.members:
        member.kill()
    start_s = time.monotonic()
    for member in run.members:
        member.spawn()
    # They can vote as soon as they listen.
    while 2 * sum(member.listens() for member in run.members) <= run.cluster.size:
        assert not any(member.has_ended() for member in run.members)
        time.sleep(0.005)
    run.notes["start_s"] = round(time.monotonic() - start_s, 2)
    run.majority()
    run.cluster.wait_ready()


def rolling_restart(run: Run) -> None:
    """Every member is stopped and started in its turn, the leader too."""
    for member in run.members:
        member.stop()
        run.majority()
        member.start()


Scenario = Callable[[Run], None]

SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.__name__.replace("_", "-"): scenario
    for scenario in (
        *(kill_leader, kill_follower, pause_leader, pause_majority, partition_full),
        *(leader_alone, follower_alone, leader_mute, leader_deaf, majority_ring),
        *(delay_and_loss, full_disk, wiped_member, kill_all, rolling_restart),
    )
}


def run(
    cluster: Cluster,
    names: Sequence[str],
    prefix: str,
    seed: int,
    scenarios: Mapping[str, Scenario] = SCENARIOS,
) -> list[Result]:
    """Run scenarios one after the other under one load, on a healthy cluster.

    Args:
        cluster: is healthy again afterwards.
        names: of the scenarios to be run.
        prefix: of the load's keys; of no run before.
        seed: of what is random here and in the load.
        scenarios: all there are, by name.

    Raises:
        AssertionError: something was lost, torn, out of order or different between members.
    """
    load = LoadProcess(cluster, prefix, seed)
    try:
        assert load.ready.wait(READY_TIMEOUT_S), f"no load: {load.log_tail()}"
        rng = random.Random(seed)
        results = [run_one(name, scenarios[name], Run(cluster, load, rng)) for name in names]
        history = load.finish()
    finally:
        load.close()
    first = min((watched.start for watched in history.watches), default=1)
    truth = Truth(converge(cluster, first), prefix)
    found = violations(history, truth)
    undecided = second_opinion(history)
    assert not found, f"{names}: {len(found)} violations, the first:\n" + "\n".join(found[:5])
    for result in results:
        result.counts = summary(history)
        if undecided:
            result.notes["linearizability"] = undecided
    return results


def run_one(name: str, scenario: Scenario, work: Run) -> Result:
    """Run one scenario and wait until all members are healthy."""
    start_s = time.monotonic()
    term = term_of(work.cluster)
    work.hold(QUIET_S)
    scenario(work)
    work.cluster.wait_ready()
    work.hold(QUIET_S)
    return Result(
        name=name,
        back_s=max(work.back_s, default=0.0),
        elections=term_of(work.cluster) - term,
        seconds=time.monotonic() - start_s,
        notes=work.notes,
    )


def term_of(cluster: Cluster) -> int:
    """The highest term of any member."""
    return max(member.status().raftTerm for member in cluster.members)


def converge(cluster: Cluster, first: int) -> dict[int, list[Event]]:
    """Check that all members have the same data; give all events from a revision on."""
    # A linearizable read at each makes it apply everything that was acknowledged.
    read = pb.RangeRequest(key=b"x")
    revision = max(m.call("KV/Range", read).header.revision for m in cluster.members)
    hashes = {}
    for member in cluster.members:
        answer = member.call("Maintenance/HashKV", pb.HashKVRequest(revision=revision))
        hashes[member.name] = (answer.hash, answer.compact_revision)
    assert len(set(hashes.values())) == 1, f"members differ at {revision}: {hashes}"
    events = [replay(member, first, revision) for member in cluster.members]
    for member, each in zip(cluster.members, events, strict=True):
        assert each == events[0], f"{member.name} tells another history than m0"
    missing = set(range(first, revision + 1)) - set(events[0])
    assert not missing, f"no events of the revisions {sorted(missing)[:10]}"
    return events[0]


def replay(member: Member, first: int, last: int) -> dict[int, list[Event]]:
    """Watch everything at one member, from one revision to another."""
    method = METHODS["/etcdserverpb.Watch/Watch"]
    create = pb.WatchCreateRequest(**EVERYTHING, start_revision=first)
    events: dict[int, list[Event]] = {}
    with grpc.insecure_channel(
        member.address, options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        stub = channel.stream_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        # The stream must not end before the answers are read.
        done = threading.Event()

        def requests() -> Any:
            yield pb.WatchRequest(create_request=create)
            done.wait(READY_TIMEOUT_S)

        stream = stub(requests(), timeout=READY_TIMEOUT_S)
        while max(events, default=first - 1) < last:
            response = next(stream)
            assert not response.canceled, f"the watch was cancelled: {response}"
            for event in response.events:
                if event.kv.mod_revision > last:
                    break
                text = (event.type == pb.Event.PUT, event.kv.key.decode(), value_of(event))
                events.setdefault(event.kv.mod_revision, []).append(text)
        done.set()
        stream.cancel()
    for each in events.values():
        each.sort()
    return events


def value_of(event: Any) -> str:
    """The value of an event, a large one shortened."""
    value: bytes = event.kv.value
    return value.decode() if len(value) < 100 else f"{len(value)} bytes"
