"""Changes of the members: at random, and the replacement of one whose disk is destroyed."""

import random
from collections.abc import Callable
from typing import Protocol

from simulation.options import TICK_US
from simulation.store_host import StoreHost
from simulation.world import World
from trimaran.errors import StoreError
from trimaran.store.identity import runtime_member_id
from trimaran.store.node import Node
from trimaran.wire import etcd_pb2 as pb

EPOCH_S = 1_700_000_000
POLL_US = 10 * TICK_US
HOSTS_MAX = 8
Done = Callable[[pb.Member | StoreError], None]
Members = dict[str, list[int]]


class Cluster(Protocol):
    """What the operator works on."""

    hosts: list[StoreHost]
    configuration: Members

    joining: set[int]


class Operator:
    """Changes who belongs to the cluster, with the care that operators are asked to take.

    Args:
        world: time and chance.
        cluster: what it works on.
    """

    def __init__(self, world: World, cluster: Cluster) -> None:
        self._world = world
        self._cluster = cluster
        self._added = 0
        self._replacing: Replacement | None = None

    def ask(self, chance: random.Random, name: str, begin: Callable[[Node, Done], None]) -> None:
        """Ask any member for a change; its answer is only noted."""
        now = self._cluster.configuration
        running = [
            host
            for host in self._cluster.hosts
            if host.is_up and not host.is_paused and host.number in now["voters"]
        ]
        if not running:
            return
        host = chance.choice(running)

        def done(outcome: pb.Member | StoreError) -> None:
            told = outcome.message if isinstance(outcome, StoreError) else "done"
            self._world.count(f"{name}: {told}", host.number)

        begin(host.node, done)
        host.wake()

    def change(self, chance: random.Random) -> None:
        """Ask for a random change."""
        now = self._cluster.configuration
        kind = chance.random()
        if kind < 0.4 and len(self._cluster.hosts) < HOSTS_MAX:
            self.add(chance, chance.random() < 0.6)
        elif kind < 0.7 and now["learners"]:
            self.promote(chance, chance.choice(now["learners"]))
        # Of two, the one that stays dies with the other if it has not learned of its removal.
        elif len(now["voters"]) > 2:
            self.remove(chance, chance.choice([*now["voters"], *now["learners"]]))

    def add(self, chance: random.Random, is_learner: bool) -> int:
        """Have a new machine join; it starts once it belongs to the cluster. Returns its id."""
        self._added += 1
        url = f"http://new{self._added}:2380"
        unix_s = EPOCH_S + self._world.now_us // 1_000_000
        number = runtime_member_id([url], unix_s)
        self._cluster.joining.add(number)
        request = pb.MemberAddRequest(peerURLs=[url], isLearner=is_learner)
        self.ask(chance, "member add", lambda node, done: node.members.add(request, unix_s, done))
        return number

    def promote(self, chance: random.Random, number: int) -> None:
        """Let a learner vote."""
        request = pb.MemberPromoteRequest(ID=number)
        self.ask(chance, "member promote", lambda node, done: node.members.promote(request, done))

    def remove(self, chance: random.Random, number: int) -> None:
        """Remove a member."""
        request = pb.MemberRemoveRequest(ID=number)
        self.ask(chance, "member remove", lambda node, done: node.members.remove(request, done))

    def wipe(self, chance: random.Random) -> None:
        """Destroy a voter's disk and have another machine take its place, one at a time."""
        if self._replacing is not None and not self._replacing.is_done:
            return
        now = self._cluster.configuration
        voters = [host for host in self._cluster.hosts if host.number in now["voters"]]
        if len(voters) < 3 or len(voters) < len(now["voters"]) or now["outgoing"]:
            return
        victim = chance.choice(voters)
        if victim.is_up:
            victim.crash(False)
        self._cluster.hosts.remove(victim)
        victim.destroy()
        self._world.count("disks destroyed", victim.number)
        self._replacing = Replacement(self, self._world, self._cluster, chance, victim.number)


class Replacement:
    """One machine that takes the place of another: asks until each step is done."""

    def __init__(
        self,
        operator: Operator,
        world: World,
        cluster: Cluster,
        chance: random.Random,
        lost: int,
    ) -> None:
        self.is_done = False
        self._operator = operator
        self._world = world
        self._cluster = cluster
        self._chance = chance
        self._lost = lost
        self._new = 0
        self._go_on()

    def _go_on(self) -> None:
        now = self._cluster.configuration
        if self._lost in [*now["voters"], *now["learners"]]:
            self._operator.remove(self._chance, self._lost)
        elif self._new in now["voters"]:
            self._world.count("members replaced", self._new)
            self.is_done = True
            return
        elif self._new in now["learners"]:
            self._operator.promote(self._chance, self._new)
        elif len(now["learners"]) == 0:
            # An earlier attempt may have been refused, or its answer lost.
            self._new = self._operator.add(self._chance, is_learner=True)
        self._world.after(POLL_US, self._go_on)
