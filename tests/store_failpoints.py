"""Members killed at each failpoint (ext/src/failpoint.h), one at a time, in a cluster under load.

A scenario of FAILPOINTS starts a member again with the failpoint armed, as a leader or a follower,
leads it to that place, sees that it was killed there and nowhere else, and starts it without the
failpoint. What must hold then is checked as for every other fault (store_scenarios.py).
"""

import contextlib
import functools
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

import store_scenarios
from store_cluster import Cluster, Member
from store_scenarios import Result, Run, Scenario
from trimaran.errors import ETCD_ERRORS
from trimaran.wire import etcd_pb2 as pb

# So that a log is cut every few seconds of the load.
FLAGS: Final = ("--snapshot-count=100", "--snapshot-catchup-entries=10")
# More keys than one step of a compaction takes, and more bytes than one chunk of a snapshot.
FILL_TXNS: Final = 12
FILL_OPERATIONS: Final = 128
FILL_VALUE: Final = bytes(2000)
# More than the 64 MiB of entries that a leader keeps in memory for whoever fell behind just now.
LOG_ENTRIES: Final = 56
LOG_ENTRY_BYTES: Final = 1_400_000
FALLING_BEHIND_TRIES: Final = 4
TRY_S: Final = 2.0
REACHED_TIMEOUT_S: Final = 40.0
INSTALLED_TIMEOUT_S: Final = 10.0
# Where the next start goes on with what was not finished, and can be killed once more.
AGAIN: Final = {
    "install-reset": ("install-rename", "install-placed"),
    "install-rename": ("install-rename", "install-placed"),
}
LEFTOVERS: Final = {"state.new", "state.copy", "state.old"}
# What an answer may say where an earlier try, whose answer was lost, has done what was asked.
DONE: Final = {
    ETCD_ERRORS[name][1]
    for name in ("PEER_URL_EXISTS", "MEMBER_NOT_FOUND", "MEMBER_NOT_LEARNER", "COMPACTED")
}


class Strike:
    """One member that is to be killed at a failpoint, while the load goes on.

    Args:
        run: with the load.
        name: of the failpoint.
        count: at which pass it is killed.
        before: the last revision before the load.

    Attributes:
        victim: the member with the failpoint armed.
        wanted: what the victim is to be: "leader", "follower" or "learner".
        role: what it was when last looked at.
        voters: the members that count for a majority.
    """

    def __init__(self, run: Run, name: str, count: int, before: int) -> None:
        self.run = run
        self.name = name
        self.count = count
        self.before = before
        self.wanted = self.role = "follower"
        self.victim: Member | None = None
        self.voters = set(range(run.cluster.size))
        self._died = threading.Event()
        self._died_ns = 0
        self._log_starts: dict[int, int] = {}
        self._is_over = False

    def others(self) -> list[Member]:
        """All members but the victim."""
        return [member for member in self.run.members if member is not self.victim]

    # The victim.

    def arm(self, role: str = "any") -> None:
        """Restart a member with the failpoint armed, and make it the leader where that is asked.

        Args:
            role: "leader", "follower" or "any".
        """
        _, follower = self.run.leader_and_follower()
        follower.kill()
        self.spawn_armed(follower)
        self.wanted = self.run.rng.choice(("leader", "follower")) if role == "any" else role
        while not self.has_died() and not follower.healthy():
            time.sleep(0.02)
        if self.wanted == "leader":
            self.lead()

    def spawn_armed(self, member: Member, armed: str = "") -> None:
        """Start a member, which does not run, with a failpoint armed; by default with its own."""
        self.victim = member
        self._log_starts[member.number] = member.log_path.stat().st_size
        member.spawn(armed or f"{self.name}:{self.count}")
        threading.Thread(target=self._watch, args=(member.process,), daemon=True).start()

    def _watch(self, process: Any) -> None:
        process.wait()
        self._died_ns = time.monotonic_ns()
        self._died.set()

    def has_died(self) -> bool:
        """Whether the victim was killed."""
        return self._died.is_set()

    def lead(self) -> None:
        """Make the victim the leader, unless it is killed before."""
        assert self.victim is not None
        deadline_s = time.monotonic() + REACHED_TIMEOUT_S
        while not self.has_died():
            assert time.monotonic() < deadline_s, f"{self.victim.name} does not become the leader"
            with contextlib.suppress(grpc.RpcError):
                status = self.victim.call("Maintenance/Status", pb.StatusRequest(), TRY_S)
                own_id = status.header.member_id
                if status.leader == own_id:
                    self.role = "leader"
                    return
                move = pb.MoveLeaderRequest(targetID=own_id)
                self.run.cluster.leader().call("Maintenance/MoveLeader", move, TRY_S)
            time.sleep(0.02)

    # What leads there.

    def call(self, name: str, request: Any) -> None:
        """Call whoever answers until it is done; the victim is replaced as soon as it is killed."""
        deadline_s = time.monotonic() + REACHED_TIMEOUT_S
        failure: grpc.RpcError | None = None
        while time.monotonic() < deadline_s:
            if self.has_died():
                self.recover()
            elif self.wanted == "leader":
                self.lead()
            for member in self.run.members:
                if member.process is None or member.number not in self.voters:
                    continue
                try:
                    member.call(name, request, TRY_S)
                except grpc.RpcError as error:
                    failure = error
                    if error.details() in DONE:
                        return
                else:
                    return
            time.sleep(0.1)
        raise AssertionError(f"{name} does not succeed: {failure}")

    def write_long_entry(self) -> None:
        """Put a long entry into the log that changes nothing: its condition does not hold."""
        txn = pb.TxnRequest()
        never = pb.Compare(target=pb.Compare.VERSION, key=b"fill/0", version=1 << 60)
        txn.compare.append(never)
        put = pb.PutRequest(key=b"never", value=bytes(LOG_ENTRY_BYTES))
        txn.success.add().request_put.CopyFrom(put)
        self.call("KV/Txn", txn)

    def outrun(self) -> None:
        """Write so much that no leader has the log that a member that is down would need."""
        for _ in range(LOG_ENTRIES):
            self.write_long_entry()
        self.run.hold()

    # What follows.

    def others_can_serve(self) -> bool:
        """Whether a majority of the voters runs without the victim."""
        running = {m.number for m in self.others() if m.process is not None and not m.has_ended()}
        return 2 * len(self.voters & running) > len(self.voters)

    def service_is_back(self, since_ns: int) -> None:
        """Note when the first write asked for after a moment is acknowledged."""
        self.run.back_s.append(self.run.load.first_answer_s(since_ns))

    def recover(self) -> None:
        """The victim was killed: see that it was there, and start it as it should be."""
        if self._is_over:
            return
        self._is_over = True
        victim = self.victim
        assert victim is not None
        self.check_death(victim)
        others_can_serve = self.others_can_serve()
        if others_can_serve:
            self.service_is_back(self._died_ns)
            self.run.hold(store_scenarios.QUIET_S)
        if self.run.rng.random() < 0.5:
            for name in AGAIN.get(self.name, ()):
                victim.kill()
                self.spawn_armed(victim, f"{name}:1")
                self.check_death(victim, name)
                self.run.notes["again"] = name
        victim.kill()
        victim.spawn()
        if not others_can_serve:
            # It can vote as soon as it listens.
            while not victim.listens():
                assert not victim.has_ended(), victim.log_tail()
                time.sleep(0.005)
            self.service_is_back(time.monotonic_ns())
        self.run.notes["killed"] = self.role

    def check_death(self, member: Member, name: str = "") -> None:
        """Check that a member was killed at its failpoint and by nothing else."""
        assert member.process is not None
        code = member.process.wait(REACHED_TIMEOUT_S)
        assert code == -signal.SIGKILL, member.log_tail()
        with member.log_path.open("rb") as log:
            log.seek(self._log_starts[member.number])
            told = f"trimaran: killed at the failpoint {name or self.name}\n"
            assert told in log.read().decode(errors="replace"), member.log_tail()

    def finish(self) -> None:
        """Wait until the victim is killed, and until all is as it should be."""
        assert self.victim is not None
        where = f"{self.victim.name} does not come to {self.name}:{self.count}"
        assert self._died.wait(REACHED_TIMEOUT_S), where
        self.recover()
        self.settle()

    def settle(self) -> None:
        """Wait until all members are healthy and nothing half done is left of any state."""
        self.run.cluster.wait_ready()
        self.run.majority()
        deadline_s = time.monotonic() + INSTALLED_TIMEOUT_S
        for member in self.run.members:
            while leftovers := LEFTOVERS & set(names_in(member)):
                assert time.monotonic() < deadline_s, f"{member.name} keeps {leftovers}"
                time.sleep(0.05)


class StrikeAll(Strike):
    """The same place armed in all members: a majority is killed there, one after the other.

    What the first one was killed at, a record or an entry, is what the next one comes to.
    """

    def arm(self, role: str = "any") -> None:
        """Restart all members with the failpoint armed, whatever they become."""
        for member in self.run.members:
            member.kill()
        for member in self.run.members:
            self._log_starts[member.number] = member.log_path.stat().st_size
            member.spawn(f"{self.name}:{self.count}")
        while not self.has_died() and not all(m.healthy() for m in self.running()):
            time.sleep(0.02)

    def running(self) -> list[Member]:
        """Members whose process has not ended."""
        return [m for m in self.run.members if m.process is not None and not m.has_ended()]

    def has_died(self) -> bool:
        """Whether a majority was killed."""
        return not self._is_over and 2 * len(self.running()) < self.run.cluster.size

    def recover(self) -> None:
        """Check what ended them, and start all again."""
        self._is_over = True
        running = self.running()
        for member in self.run.members:
            if member not in running:
                self.check_death(member)
        for member in self.run.members:
            member.kill()
        for member in self.run.members:
            member.spawn()
        while 2 * sum(member.listens() for member in self.run.members) < self.run.cluster.size:
            assert not any(member.has_ended() for member in self.run.members)
            time.sleep(0.005)
        self.service_is_back(time.monotonic_ns())
        self.run.notes["killed"] = self.run.cluster.size - len(running)

    def finish(self) -> None:
        """Wait until a majority is killed, and until all is as it should be."""
        deadline_s = time.monotonic() + REACHED_TIMEOUT_S
        while not self._is_over:
            assert time.monotonic() < deadline_s, f"no majority comes to {self.name}"
            if self.has_died():
                self.recover()
            time.sleep(0.02)
        self.settle()


def names_in(member: Member) -> list[str]:
    """What is in a member's data directory."""
    return [path.name for path in (member.disk / "data").iterdir()]


def work(strike: Strike) -> None:
    """The load alone leads there."""
    strike.arm()


def write_much(strike: Strike) -> None:
    """The load leads there, or so much data that the journal's ring is full."""
    strike.arm()
    for _ in range(strike.run.rng.choice((0, 2 * LOG_ENTRIES))):
        if strike.has_died():
            return
        strike.write_long_entry()


def compact(strike: Strike) -> None:
    """Compact something from before the load, whose events are needed in the end."""
    strike.arm()
    revision = strike.run.rng.randrange(strike.before - FILL_TXNS, strike.before)
    strike.call("KV/Compact", pb.CompactionRequest(revision=revision))


def defragment(strike: Strike) -> None:
    """Defragment the victim, whatever it is."""
    strike.arm()
    assert strike.victim is not None
    if not strike.has_died():
        with contextlib.suppress(grpc.RpcError):
            strike.victim.call("Maintenance/Defragment", pb.DefragmentRequest())


def send(strike: Strike) -> None:
    """The victim leads, and another member is so far behind that it needs the state."""
    strike.arm("leader")
    behind = strike.run.rng.choice(strike.others())
    for _ in range(FALLING_BEHIND_TRIES):
        behind.kill()
        strike.outrun()
        behind.spawn()
        while not strike.has_died() and not behind.healthy():
            time.sleep(0.02)
        if strike.has_died():
            return


def receive(strike: Strike) -> None:
    """The victim is so far behind, or so new, that it needs the state."""
    if strike.run.rng.random() < 0.4:
        replace(strike, "learner")
        return
    _, behind = strike.run.leader_and_follower()
    for _ in range(FALLING_BEHIND_TRIES):
        behind.kill()
        strike.outrun()
        strike.spawn_armed(behind)
        while not strike.has_died() and not behind.healthy():
            time.sleep(0.02)
        if strike.has_died():
            return


def visit(strike: Strike, role: str = "any") -> None:
    """A learner is added, never starts, and is removed."""
    strike.arm(role)
    url = f"http://10.79.0.{strike.run.rng.randrange(100, 200)}:2380"
    strike.call("Cluster/MemberAdd", pb.MemberAddRequest(peerURLs=[url], isLearner=True))
    strike.call("Cluster/MemberRemove", pb.MemberRemoveRequest(ID=id_of(strike, url)))


def replace(strike: Strike, role: str = "any") -> None:
    """A member loses its data, is removed, comes back as a learner, and is promoted."""
    if role == "learner":
        strike.role = role
        _, lost = strike.run.leader_and_follower()
    else:
        strike.arm(role)
        leader = strike.run.cluster.leader()
        lost = strike.run.rng.choice([m for m in strike.others() if m is not leader])
    member_id = id_of(strike, lost.peer_url)
    lost.kill()
    lost.wipe()
    strike.call("Cluster/MemberRemove", pb.MemberRemoveRequest(ID=member_id))
    strike.voters.discard(lost.number)
    add = pb.MemberAddRequest(peerURLs=[lost.peer_url], isLearner=True)
    strike.call("Cluster/MemberAdd", add)
    lost.state = "existing"
    if role == "learner":
        # Without this it could have the log from its beginning.
        if not strike.name.startswith("membership"):
            strike.outrun()
        strike.spawn_armed(lost)
    else:
        lost.spawn()
    promote = pb.MemberPromoteRequest(ID=id_of(strike, lost.peer_url))
    strike.call("Cluster/MemberPromote", promote)
    strike.voters.add(lost.number)


def id_of(strike: Strike, url: str) -> int:
    """The id of the member with a peer URL."""
    deadline_s = time.monotonic() + REACHED_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if strike.has_died():
            strike.recover()
        for member in strike.run.members:
            if member.process is None or member.number not in strike.voters:
                continue
            with contextlib.suppress(grpc.RpcError):
                answer = member.call("Cluster/MemberList", pb.MemberListRequest(), TRY_S)
                return int(next(m.ID for m in answer.members if url in m.peerURLs))
    raise AssertionError(f"nobody tells the members: {url}")


def propose(strike: Strike) -> None:
    """The victim leads while members change."""
    if strike.run.rng.random() < 0.5:
        strike.count = strike.run.rng.randint(1, 2)
        visit(strike, "leader")
    else:
        replace(strike, "leader")


def apply(strike: Strike) -> None:
    """Members change; the victim leads, follows, or is the one that joins."""
    way = strike.run.rng.randrange(4)
    if way < 2:
        strike.count = strike.run.rng.randint(1, 2)
        visit(strike)
    elif way == 2:
        replace(strike)
    else:
        strike.count = 1
        replace(strike, "learner")


@dataclass(frozen=True)
class Place:
    """How a failpoint is reached.

    Attributes:
        lead: what leads there.
        counts: at which pass the kill is: drawn from this range.
    """

    lead: Callable[[Strike], None]
    counts: range


ONCE: Final = range(1, 2)
PLACES: Final = {
    "log-append-before": Place(work, range(1, 200)),
    "log-append-after": Place(work, range(1, 200)),
    "journal-recycle-before": Place(write_much, range(1, 5)),
    "journal-recycle-after": Place(write_much, range(1, 5)),
    "log-compact-before": Place(work, range(1, 4)),
    "log-compact-after": Place(work, range(1, 4)),
    "state-persist-before": Place(work, range(1, 20)),
    "state-persist-after": Place(work, range(1, 20)),
    "compaction-begin": Place(compact, ONCE),
    "compaction-step": Place(compact, ONCE),
    "compaction-end": Place(compact, ONCE),
    "snapshot-send-begin": Place(send, ONCE),
    "snapshot-send-chunk": Place(send, range(1, 10)),
    "snapshot-receive-begin": Place(receive, ONCE),
    "snapshot-receive-chunk": Place(receive, range(1, 10)),
    "snapshot-receive-end": Place(receive, ONCE),
    "install-begin": Place(receive, ONCE),
    "install-reset": Place(receive, ONCE),
    "install-rename": Place(receive, ONCE),
    "install-placed": Place(receive, ONCE),
    "install-end": Place(receive, ONCE),
    "defragment-copy": Place(defragment, ONCE),
    "defragment-complete": Place(defragment, ONCE),
    "defragment-rename": Place(defragment, ONCE),
    "defragment-placed": Place(defragment, ONCE),
    "membership-propose": Place(propose, range(1, 4)),
    "membership-apply": Place(apply, range(1, 4)),
    "membership-applied": Place(apply, range(1, 4)),
}


# Where all members come, one like the other.
EVERYWHERE: Final = {
    f"{name}-everywhere": name
    for name, place in PLACES.items()
    if place.lead in (work, write_much, compact, apply)
}


def strike_at(name: str, before: int, run: Run) -> None:
    """Kill a member at a failpoint, or all of them."""
    place = PLACES[EVERYWHERE.get(name, name)]
    count = run.rng.choice(place.counts)
    lead = place.lead
    if name in EVERYWHERE:
        strike: Strike = StrikeAll(run, EVERYWHERE[name], count, before)
        if lead is apply:
            strike.count, lead = run.rng.randint(1, 2), visit
    else:
        strike = Strike(run, name, count, before)
    lead(strike)
    strike.finish()


def fill(cluster: Cluster, rng: random.Random) -> int:
    """Write what snapshots, compactions and defragmentations need; gives the last revision."""
    revision = 0
    for first in range(0, FILL_TXNS * FILL_OPERATIONS, FILL_OPERATIONS):
        txn = pb.TxnRequest()
        for number in range(first, first + FILL_OPERATIONS):
            # Not compressible, and not the same again: members must have this one.
            value = rng.randbytes(16) + FILL_VALUE
            put = pb.PutRequest(key=b"fill/%d" % number, value=value)
            txn.success.add().request_put.CopyFrom(put)
        revision = cluster.members[0].call("KV/Txn", txn).header.revision
    return revision


def run(cluster: Cluster, names: Sequence[str], prefix: str, seed: int) -> list[Result]:
    """Kill members at failpoints, one after the other, under one load; see store_scenarios.run.

    Args:
        cluster: started with FLAGS; is healthy again afterwards.
        names: of PLACES or EVERYWHERE; one compaction at most.
        prefix, seed: of the load.
    """
    before = fill(cluster, random.Random(seed))
    scenarios: dict[str, Scenario] = {
        name: functools.partial(strike_at, name, before) for name in names
    }
    return store_scenarios.run(cluster, names, prefix, seed, scenarios)
