"""Raft under a network that loses, repeats and reorders, and members that crash: what must hold.

Election safety (thesis §3.4), log matching (§3.5), leader completeness and state-machine safety
(§3.6) are checked after each step, over everything that ever happened; once the faults end, the
group has to come to work again (§3.9).
"""

import contextlib
import json
import random

import pytest

from raft_group import Group, Node
from trimaran.ext.raft import CONFIGURATION, Members, Message
from trimaran.ext.raftlog import Entry, HardState

SEEDS = 100
STEPS = 500
WEIGHTS = {
    "propose": 8,
    "read": 8,
    "change": 1,
    "transfer": 0.5,
    "campaign": 0.5,
    "tick": 12,
    "crash": 0.7,
    "compact": 0.7,
    "partition": 1.5,
}


class Checker:
    """Remembers what was true once, and so must stay true."""

    def __init__(self) -> None:
        self.leaders: dict[int, int] = {}  # by term
        self.committed: dict[int, Entry] = {}  # by index: once applied anywhere
        self.terms: dict[int, int] = {}  # durable, by node
        self.entries: dict[tuple[int, int], tuple[Entry, int]] = {}  # and the term before each
        self.asked: dict[int, int] = {}  # context -> what was acknowledged when it was asked

    def check(self, group: Group) -> None:
        for node in group.nodes.values():
            status = node.raft.status
            if status.role == "leader":
                assert self.leaders.setdefault(status.term, node.id) == node.id, "two leaders"
            self.check_log(node)
            for entry in node.applied[node.base :]:
                known = self.committed.setdefault(entry.index, entry)
                assert known == entry, "two members applied different entries at one index"
            node.base = len(node.applied)
            for context, index in node.reads:
                assert index >= self.asked.pop(context, 0), "a read missed an acknowledged write"
            node.reads.clear()
            assert node.disk.hard_state.term >= self.terms.get(node.id, 0), "a term went back"
            self.terms[node.id] = node.disk.hard_state.term

    def check_log(self, node: Node) -> None:
        """An index and a term name one entry and all that is before it."""
        disk = node.disk
        before = disk.first_term
        for entry in disk.entries:
            key = (entry.index, entry.term)
            known = self.entries.setdefault(key, (entry, before))
            assert known[0] == entry, "one index and term with two contents"
            if entry.index > disk.first or disk.first > 1:
                assert known[1] == before, "one entry with two predecessors"
            before = entry.term

    def check_leader(self, node: Node) -> None:
        """A new leader has every entry that was committed before."""
        last = node.raft.status.last_index
        assert last >= max(self.committed, default=0), "a leader without a committed entry"
        for index, entry in self.committed.items():
            if node.disk.first <= index <= node.disk.last:
                assert node.disk.at(index) == entry, "a leader with another committed entry"


class Storm:
    """A random run from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.group = Group()
        self.checker = Checker()
        self.cut: set[tuple[int, int]] = set()
        self.count = 0
        choose = self.random.choice
        self.options: dict[str, int | bool] = {
            "election_ticks": choose([5, 10]),
            "pre_vote": choose([True, True, False]),
            "check_quorum": choose([True, True, False]),
            "max_message_bytes": choose([1, 30, 1000]),
            "max_inflight_messages": choose([1, 2, 16]),
            "max_uncommitted_bytes": choose([0, 200]),
        }
        if self.options["check_quorum"] and choose([True, False]):
            # A tick is 1000 us here, on every clock.
            self.options["lease_us"] = (int(self.options["election_ticks"]) - 2) * 1000
        self.size = choose([3, 4, 5])
        voters = range(1, self.size + 1)
        for id in voters:
            # Each begins with the same first entry, so that who joins later learns of all.
            node = self.group.add(id, Members(), **self.options, seed=seed * 31 + id)
            first = json.dumps([("add-voter", voter) for voter in voters]).encode()
            node.disk.append([Entry(1, 1, first, CONFIGURATION)], HardState(1, 0, 1))
            node.start()
        self.now_us = 0
        # Each run has its own mix, so that each kind of event is frequent in some.
        self.weights = {name: weight * choose([0.3, 1, 1, 3]) for name, weight in WEIGHTS.items()}
        self.rounds = choose([1, 2, 4])
        self.turn_chance = choose([0.5, 0.9])
        self.flush_chance = choose([0.2, 0.5, 0.9])
        self.deliver_chance = choose([0.3, 0.7, 0.95])
        self.loss_chance = choose([0, 0.02, 0.1])
        self.led: set[int] = set()

    def nodes(self) -> list[Node]:
        return list(self.group.nodes.values())

    def step_propose(self) -> None:
        self.count += 1
        for node in self.nodes():
            with contextlib.suppress(OSError):
                node.raft.propose(f"{self.count}".encode() * self.random.randint(1, 4))

    def step_read(self) -> None:
        node = self.random.choice(self.nodes())
        self.count += 1
        self.checker.asked[self.count] = max(self.checker.committed, default=0)
        with contextlib.suppress(OSError):
            node.raft.read_index(self.count)

    def step_change(self) -> None:
        leader = self.group.leader
        if leader is None:
            return
        ids = self.random.sample(range(1, 8), self.random.choice([1, 1, 2, 3]))
        ops = ["add-voter", "add-voter", "add-learner", "remove"]
        changes = [(self.random.choice(ops), id) for id in ids]
        voters = {*leader.members.voters} | {id for op, id in changes if op == "add-voter"}
        if len(voters - {id for op, id in changes if op != "add-voter"}) < 2:
            return
        data = json.dumps(changes).encode()
        with contextlib.suppress(OSError, ValueError):
            leader.raft.propose(data, type=CONFIGURATION)
            for id in ids:
                if id not in self.group.nodes:
                    self.group.add(id, Members(), **self.options, seed=self.count * 77 + id)

    def step_transfer(self) -> None:
        node = self.random.choice(self.nodes())
        with contextlib.suppress(OSError):
            node.raft.transfer(self.random.choice(list(self.group.nodes)))

    def step_tick(self) -> None:
        self.now_us += 1000
        for node in self.nodes():
            node.raft.set_clock(self.now_us)
            if self.random.random() < 0.9 or "lease_us" in self.options:
                node.raft.tick()

    def step_crash(self) -> None:
        node = self.random.choice(self.nodes())
        node.flush(self.random.randint(0, len(node.in_flight)))
        node.start()
        node.raft.set_clock(self.now_us)

    def step_compact(self) -> None:
        node = self.random.choice(self.nodes())
        if not node.installing and node.applied_index - 3 >= node.disk.first:
            node.compact(node.applied_index - 3)

    def step_campaign(self) -> None:
        self.random.choice(self.nodes()).raft.campaign()

    def step_partition(self) -> None:
        ids = list(self.group.nodes)
        chance = self.random.random()
        leader = self.group.leader
        if chance < 0.35:
            self.cut = set()
        elif chance < 0.6 and leader is not None:
            self.cut = {(a, b) for a in ids for b in ids if (a == leader.id) != (b == leader.id)}
        elif chance < 0.8:
            side = {id for id in ids if self.random.random() < 0.5}
            self.cut = {(a, b) for a in ids for b in ids if (a in side) != (b in side)}
        else:
            self.cut.add((self.random.choice(ids), self.random.choice(ids)))

    def work(self) -> None:
        """What goes on all the time: turns, flushes and deliveries, each sooner or later."""
        for node in self.nodes():
            if self.random.random() < self.turn_chance:
                for _ready in self.group.turn(node):
                    pass
            if node.installing and self.random.random() < self.flush_chance:
                node.install()
            if self.random.random() < self.flush_chance:
                node.flush(self.random.randint(1, 3))
        waiting, self.group.messages = self.group.messages, []
        if self.random.random() < 0.2:
            self.random.shuffle(waiting)
        for message in waiting:
            if self.random.random() > self.deliver_chance:
                self.group.messages.append(message)
                continue
            chance = self.random.random()
            if chance < self.loss_chance or (message.sender, message.to) in self.cut:
                self.lose(message)
                continue
            if chance > 1 - self.loss_chance:
                self.group.messages.append(message)
            self.group.deliver(message)

    def lose(self, message: Message) -> None:
        sender = self.group.nodes[message.sender]
        if message.type == "snapshot":
            sender.raft.snapshot_failed(message.to)
        elif self.random.random() < 0.3:
            sender.raft.unreachable(message.to)
        elif self.random.random() < 0.05:
            sender.raft.gone(message.to)  # true or not

    def step(self) -> None:
        name = self.random.choices(list(self.weights), list(self.weights.values()))[0]
        getattr(self, f"step_{name}")()
        for _ in range(self.rounds):
            self.work()
        for node in self.nodes():
            if node.raft.status.role == "leader" and node.raft.status.term not in self.led:
                self.led.add(node.raft.status.term)
                self.checker.check_leader(node)
        self.checker.check(self.group)

    def calm(self) -> None:
        """After the faults: everyone hears everyone, and the group has to work."""
        self.cut = set()
        for _ in range(400):
            self.now_us += 1000
            for node in self.nodes():
                node.raft.set_clock(self.now_us)
            self.group.tick()
            self.group.settle()
            self.checker.check(self.group)
            leader = self.group.leader
            if leader is None:
                continue
            with contextlib.suppress(OSError):
                index = leader.raft.propose(b"calm")
                self.group.settle()
                if leader.applied_index >= index and not leader.raft.status.is_joint:
                    break
        else:
            raise AssertionError("no leader works though all faults are gone")
        for _ in range(3):
            self.now_us += 1000
            self.group.tick()
            self.group.settle()
        self.checker.check(self.group)
        members = leader.raft.members
        for id in (*members.voters, *members.learners):
            if id in self.group.nodes:
                assert self.group.nodes[id].applied == leader.applied, f"{id} lags for ever"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_safe_in_a_storm_and_alive_after_it(seed: int) -> None:
    storm = Storm(seed)
    for _ in range(STEPS):
        storm.step()
    storm.calm()


def test_storms_are_storms() -> None:
    """What the storms are to survive does happen in them, and so does work."""
    storms = [Storm(seed) for seed in range(12)]
    for storm in storms:
        for _ in range(STEPS):
            storm.step()
    assert sum(len(storm.led) for storm in storms) >= 30, "few elections"
    assert sum(len(storm.checker.committed) for storm in storms) >= 400, "little is committed"
    changes = [e for s in storms for e in s.checker.committed.values() if e.type == CONFIGURATION]
    assert len(changes) >= 40, "few changes of configuration"
