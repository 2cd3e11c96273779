"""A group of raft members with what befalls it: proposals, reads, changes and faults."""

import random
from collections.abc import Callable, Sequence

from checkers.history import Violation
from simulation.faults import Faults
from simulation.network import Network
from simulation.options import TICK_US, Options
from simulation.raft_checks import RaftChecks
from simulation.raft_host import RaftHost
from simulation.world import World
from trimaran.ext.raft import CONFIGURATION

LIVENESS = "liveness"
LIVENESS_TICKS = 600
KEPT = "acknowledged writes kept"


class RaftCluster:
    """All members of one group, and those that may join it.

    Args:
        world, options: as everybody's.
    """

    def __init__(self, world: World, options: Options) -> None:
        self.world = world
        self.options = options
        self.network = Network(world, options)
        self.checks = RaftChecks()
        self._chance = world.chance("cluster")
        self._proposals = 0
        self._newest = options.members
        self._stopped = False
        founders = range(1, options.members + 1)
        self.hosts = [self._host(number, founders) for number in founders]
        for host in self.hosts:
            host.start()
        for _ in range(options.clients):
            self._ask()

    def _host(self, number: int, founders: Sequence[int]) -> RaftHost:
        return RaftHost(number, self.world, self.network, self.options, founders, self.checks)

    def machines(self) -> Sequence[RaftHost]:
        """Those that are not destroyed."""
        return self.hosts

    @property
    def acknowledged(self) -> int:
        """The highest index that a client was told of."""
        return max((host.acknowledged for host in self.hosts), default=0)

    def leader(self) -> RaftHost | None:
        """The leader of the highest term."""
        leaders = [host for host in self.hosts if host.leads and not host.is_paused]
        return max(leaders, key=lambda host: host.raft.status.term, default=None)

    # Clients.

    def _ask(self) -> None:
        ticks = self._chance.expovariate(1 / self.options.think_ticks)
        self.world.after(int(ticks * TICK_US), self._ask)
        running = [host for host in self.hosts if host.is_up and not host.is_paused]
        if self._stopped or not running:
            return
        if self._chance.random() < self.options.reads:
            self._chance.choice(running).read(self.acknowledged)
            return
        # Stale leaders take proposals too.
        leaders = [host for host in running if host.leads]
        if leaders:
            self._proposals += 1
            size = 500 if self.options.large_values and self._chance.random() < 0.3 else 0
            data = f"{self._proposals}".encode() + b"." * size
            if self._chance.choice(leaders).propose(data):
                self.world.counts["proposals"] += 1

    # Operators.

    def _propose_changes(self, changes: list[tuple[str, int]]) -> bool:
        leader = self.leader()
        if leader is None:
            return False
        text = " ".join(f"{op} {number}" for op, number in changes)
        done = leader.propose(text.encode(), CONFIGURATION) != 0
        self.world.count("changes proposed" if done else "changes refused", text)
        return done

    def change(self, chance: random.Random) -> None:
        """Ask for a random change of the members."""
        leader = self.leader()
        if leader is None:
            return
        members = leader.raft.members
        voters, learners = list(members.voters), list(members.learners)
        changes: list[tuple[str, int]] = []
        if len(self.hosts) < 7 and chance.random() < 0.4:
            changes.append((chance.choice(["add-learner", "add-voter"]), self._join()))
        if len(self.hosts) < 6 and chance.random() < 0.2:
            # As many new ones as may outvote the old.
            changes += [("add-voter", self._join()), ("add-voter", self._join())]
        if learners and chance.random() < 0.6:
            changes.append(("add-voter", chance.choice(learners)))
        destroyed = set(voters) - {host.number for host in self.hosts}
        if len(voters) > 1 and not destroyed and chance.random() < 0.4:
            victim = chance.choice(voters)
            changes.append((chance.choice(["remove", "add-learner"]), victim))
        if changes and chance.random() < 0.5:
            changes = changes[:1]
        if changes:
            self._propose_changes(changes)

    def _join(self) -> int:
        """Start a machine that knows nobody; gives its number."""
        self._newest += 1
        number = self._newest
        host = self._host(number, ())
        self.hosts.append(host)
        host.start()
        return number

    def transfer(self, chance: random.Random) -> None:
        """Ask the leader to hand over."""
        leader = self.leader()
        if leader is not None:
            target = chance.choice(leader.raft.members.voters)
            self.world.count("transfers", leader.number, target)
            leader.raft.transfer(target)
            leader.wake()

    def wipe(self, chance: random.Random) -> None:
        """Replace a member whose disk is destroyed: remove it, and let another join."""
        newest = max(self.hosts, key=lambda host: host.state.index).state
        voters = [host for host in self.hosts if host.number in newest.members.voters]
        if len(voters) < 3 or len(voters) < len(newest.members.voters):
            return  # nobody can lose this one too
        if newest.members.outgoing or any(host.is_changing(newest.index) for host in self.hosts):
            return
        victim = chance.choice(voters)
        if victim.is_up:
            victim.crash(False)
        self.hosts.remove(victim)
        self.world.count("disks destroyed", victim.number)
        self._propose_changes([("remove", victim.number), ("add-learner", self._join())])

    # Phases.

    def heal(self) -> None:
        """End all faults, and turn on what is off."""
        self._stopped = True
        self.network.calm()
        for host in self.hosts:
            host.resume()
            if not host.is_up:
                host.start()

    def agrees(self) -> bool:
        """Whether everybody who belongs to the group has applied the same."""
        leader = self.leader()
        if leader is None:
            return False
        members = leader.raft.members
        if members.outgoing:
            return False
        group = [h for h in self.hosts if h.number in (*members.voters, *members.learners)]
        missing = {*members.voters, *members.learners} - {host.number for host in group}
        status = leader.raft.status
        return (
            len(group) + len(missing) == len(members.voters) + len(members.learners)
            and status.commit == status.last_index
            and all(host.state == leader.state and host.is_up for host in group)
        )


def run(options: Options, show: bool = False) -> World:
    """Run one seed of a raft group.

    Raises:
        Violation: a promise was broken; its checker is LIVENESS where nothing went on after all
            faults had ended.
    """
    world = World(options.seed, show)
    world.note("options", options)
    cluster = RaftCluster(world, options)
    faults = Faults(world, options, cluster)
    world.run_until(options.fault_ticks * TICK_US)
    faults.stop()
    cluster.heal()
    world.note("healed for good")
    _await(world, cluster, cluster.agrees)
    before = cluster.acknowledged
    # The first may be lost with a leader that was handing over.
    for _ in range(5):
        leader = cluster.leader()
        if leader is not None:
            leader.propose(b"last")
        world.run_until(world.now_us + 10 * TICK_US)
    _await(world, cluster, lambda: cluster.acknowledged > before and cluster.agrees())
    leader = cluster.leader()
    assert leader is not None
    if cluster.acknowledged > leader.state.index:
        raise Violation(KEPT, f"{cluster.acknowledged} was acknowledged")
    return world


def _await(world: World, cluster: RaftCluster, wanted: Callable[[], bool]) -> None:
    for _ in range(LIVENESS_TICKS):
        if wanted():
            return
        world.run_until(world.now_us + TICK_US)
    raise Violation(LIVENESS, describe(cluster))


def describe(cluster: RaftCluster) -> str:
    """Tell where everybody stands."""
    lines = [f"no agreement {LIVENESS_TICKS} ticks after the last fault"]
    for host in cluster.hosts:
        lines.append(f"  {host.raft.status if host.is_up else 'down'} {host.state}")
    return "\n".join(lines)
