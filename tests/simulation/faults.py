"""What goes wrong, and when: each kind of fault comes by itself, at random times."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations
from typing import Protocol

from simulation.network import Network
from simulation.options import TICK_US, Options
from simulation.world import World

Blocked = set[tuple[int, int]]


class Machine(Protocol):
    """A host that faults befall."""

    number: int
    is_up: bool

    @property
    def leads(self) -> bool:
        """Whether it takes itself for the leader."""

    def crash(self, torn: bool) -> None:
        """Lose the power: what is not flushed is lost, or a piece of it is kept if torn."""

    def doom(self, crashed: Callable[[], None]) -> None:
        """Lose the power in the middle of the next write."""

    def start(self) -> None:
        """Boot again."""

    def pause(self, duration_us: int) -> None:
        """Stand still, as under SIGSTOP."""

    def slow_down(self, factor: int, duration_us: int) -> None:
        """Let its disk be slow for a while."""

    def jump(self, duration_us: int) -> None:
        """Let its clock jump."""

    def keep_up(self, chance: random.Random) -> None:
        """Compact or defragment."""


class Cluster(Protocol):
    """All machines, and what an operator does to their group."""

    network: Network

    def machines(self) -> Sequence[Machine]:
        """Those that are not removed for good."""

    def change(self, chance: random.Random) -> None:
        """Ask for a random change of the members."""

    def transfer(self, chance: random.Random) -> None:
        """Ask the leader to hand over."""

    def wipe(self, chance: random.Random) -> None:
        """Destroy a member's disk, if the group can bear it, and replace it."""


def isolate(numbers: Sequence[int], alone: int) -> Blocked:
    """Nobody reaches this one, and it reaches nobody."""
    return {pair for pair in permutations(numbers, 2) if alone in pair}


def halves(numbers: Sequence[int], chance: random.Random) -> Blocked:
    """Two groups that do not reach each other."""
    left = set(chance.sample(numbers, chance.randint(1, max(1, len(numbers) - 1))))
    return {(a, b) for a, b in permutations(numbers, 2) if (a in left) != (b in left)}


def ring(numbers: Sequence[int]) -> Blocked:
    """Each reaches its two neighbours only: a majority of five, and a different one for each."""
    size = len(numbers)
    return {
        (numbers[a], numbers[b])
        for a, b in permutations(range(size), 2)
        if (a - b) % size not in (1, size - 1)
    }


def bridge(numbers: Sequence[int], chance: random.Random) -> Blocked:
    """Two groups that do not reach each other, and one member that reaches both."""
    middle = chance.choice(numbers)
    others = [number for number in numbers if number != middle]
    return halves(others, chance) if len(others) > 1 else set()


class Faults:
    """Brings the faults of a seed, until it is told to stop.

    Args:
        world: time and chance.
        options: which faults, and how often.
        cluster: what they befall.
    """

    def __init__(self, world: World, options: Options, cluster: Cluster) -> None:
        self._world = world
        self._options = options
        self._cluster = cluster
        self._chance = world.chance("faults")
        self._stopped = False
        self._partition = 0
        kinds: list[tuple[int, Callable[[], None]]] = [
            (options.crash_ticks, self._crash),
            (options.pause_ticks, self._pause),
            (options.partition_ticks, self._part),
            (options.change_ticks, lambda: cluster.change(self._chance)),
            (options.transfer_ticks, lambda: cluster.transfer(self._chance)),
            (options.clock_ticks, self._jump),
            (options.wipe_ticks, lambda: cluster.wipe(self._chance)),
            (options.upkeep_ticks, self._keep_up),
            (40 if options.slow_disk else 0, self._slow_down),
        ]
        for ticks, strike in kinds:
            if ticks:
                self._later(ticks, strike)

    def stop(self) -> None:
        """No further faults; those under way are for the caller to end."""
        self._stopped = True

    def _later(self, ticks: int, strike: Callable[[], None]) -> None:
        delay_us = int(self._chance.expovariate(1 / ticks) * TICK_US)
        self._world.after(delay_us, self._strike, ticks, strike)

    def _strike(self, ticks: int, strike: Callable[[], None]) -> None:
        if not self._stopped:
            strike()
            self._later(ticks, strike)

    def _victim(self) -> Machine | None:
        """A machine that runs; leaders are the most interesting ones."""
        running = [machine for machine in self._cluster.machines() if machine.is_up]
        leaders = [machine for machine in running if machine.leads]
        if leaders and self._chance.random() < 0.4:
            return self._chance.choice(leaders)
        return self._chance.choice(running) if running else None

    def _crash(self) -> None:
        chance = self._chance
        victims: list[Machine]
        if chance.random() < 0.1:
            victims = [machine for machine in self._cluster.machines() if machine.is_up]
            self._world.count("all members crashed at once")
        else:
            one = self._victim()
            victims = [one] if one else []
        for victim in victims:
            if self._options.torn_write and chance.random() < 0.5:
                victim.doom(partial(self._crashed, victim))
            else:
                victim.crash(False)
                self._crashed(victim)

    def _crashed(self, victim: Machine) -> None:
        ticks = self._chance.choice([0.1, 3, 20, 60]) * self._chance.uniform(0.5, 1.5)
        self._world.after(int(ticks * TICK_US), self._restart, victim)

    def _restart(self, victim: Machine) -> None:
        if not self._stopped and not victim.is_up and victim in self._cluster.machines():
            victim.start()

    def _pause(self) -> None:
        victim = self._victim()
        if victim is not None:
            duration_us = int(self._chance.choice([2, 12, 40]) * TICK_US)
            self._world.count("pauses", victim.number, duration_us)
            victim.pause(duration_us)

    def _slow_down(self) -> None:
        victim = self._victim()
        if victim is not None:
            self._world.count("slow disks", victim.number)
            factor = self._chance.choice([10, 100])
            victim.slow_down(factor, self._chance.randint(5, 50) * TICK_US)

    def _jump(self) -> None:
        victim = self._victim()
        if victim is not None:
            duration_us = int(self._chance.choice([1, 10, 100]) * TICK_US)
            self._world.count("clock jumps", victim.number, duration_us)
            victim.jump(duration_us)

    def _keep_up(self) -> None:
        victim = self._victim()
        if victim is not None:
            victim.keep_up(self._chance)

    def _part(self) -> None:
        numbers = [machine.number for machine in self._cluster.machines()]
        if len(numbers) < 2:
            return
        name, blocked = self._shape(numbers)
        self._partition += 1
        self._cluster.network.blocked = blocked
        self._world.count(f"partitions: {name}", sorted(blocked))
        ticks = self._chance.choice([5, 20, 60])
        self._world.after(ticks * TICK_US, self._heal, self._partition)

    def _shape(self, numbers: list[int]) -> tuple[str, Blocked]:
        chance = self._chance
        leaders = [machine.number for machine in self._cluster.machines() if machine.leads]
        alone = chance.choice(leaders or numbers)
        kind = chance.randrange(8)
        if kind == 0:
            return "leader alone", isolate(numbers, alone)
        if kind == 1:
            return "member alone", isolate(numbers, chance.choice(numbers))
        if kind == 2:
            return "nothing reaches it", {
                pair for pair in isolate(numbers, alone) if pair[1] == alone
            }
        if kind == 3:
            return "it reaches nothing", {
                pair for pair in isolate(numbers, alone) if pair[0] == alone
            }
        if kind == 4:
            a, b = chance.sample(numbers, 2)
            return "one way between two", {(a, b)}
        if kind == 5:
            return "halves", halves(numbers, chance)
        if kind == 6:
            order = chance.sample(numbers, len(numbers))
            return "majority ring", ring(order)
        return "bridge", bridge(numbers, chance)

    def _heal(self, partition: int) -> None:
        if partition == self._partition:
            self._cluster.network.blocked = set()
            self._world.note("healed")
