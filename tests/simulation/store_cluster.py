"""A cluster of whole members with its clients and what befalls it."""

import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from checkers import exclusion, linearizability, replay, watches
from checkers.history import Event, Operation, Violation, Watch
from simulation.calls import CallLibrary
from simulation.clients import KvClient, Server, WatchClient
from simulation.faults import Faults
from simulation.locks import LockClient
from simulation.network import Network
from simulation.operator import Operator
from simulation.options import TICK_US, Options
from simulation.store_checks import StoreChecks
from simulation.store_host import StoreHost
from simulation.world import World
from trimaran.store.membership import founding_entry
from trimaran.wire import etcd_pb2 as pb

LIVENESS = "liveness"
HASHES = "hashes of the keys are equal"
LIVENESS_TICKS = 600
SETTLE_TIMEOUTS = 12  # election time-outs; requests time out after five


class StoreCluster:
    """All members of one cluster.

    Args:
        world, options: as everybody's.
        library: where clients' calls are made.
        folder: for the members' disks.
    """

    def __init__(self, world: World, options: Options, library: CallLibrary, folder: Path) -> None:
        self.world = world
        self.options = options
        self.network = Network(world, options)
        self.checks = StoreChecks()
        self.history: list[Operation] = []
        self._library = library
        self._folder = folder
        self.watchers: list[WatchClient] = []
        self.lock_clients: list[LockClient] = []
        self.configuration: dict[str, list[int]] = {}
        self.joining: set[int] = set()
        self._configured_at = 0
        self._ever: set[int] = set()
        self._chance = world.chance("cluster")
        numbers = range(1, options.members + 1)
        self._bootstrap = founding_entry(
            pb.Member(ID=number, name=f"m{number}", peerURLs=[f"http://m{number}:2380"])
            for number in numbers
        )
        self.hosts = [self._host(number, self._bootstrap) for number in numbers]
        for host in self.hosts:
            host.start()
        self.watchers = [WatchClient(world, self, "everything", "\0", "\0")]
        if options.clients > 3:
            self.watchers.append(WatchClient(world, self, "keys", "k", "l"))
        self.clients = [
            KvClient(number, world, options, self, self.history)
            for number in range(options.clients)
        ]
        self.lock_clients = [
            LockClient(number, world, options, lambda: self.hosts)
            for number in range(1, options.locks + 1)
        ]
        self._operator = Operator(world, self)

    def _host(self, number: int, bootstrap: bytes | None) -> StoreHost:
        return StoreHost(
            number,
            self.world,
            self.network,
            self.options,
            self._folder / f"m{number}",
            bootstrap,
            self._library,
            self.checks,
            self,
        )

    def find(self, number: int) -> StoreHost | None:
        """The host of a member."""
        return next((host for host in self.hosts if host.number == number), None)

    def gone(self, host: StoreHost) -> None:
        for watcher in self.watchers:
            watcher.gone(host)

    def configured(self, applied: int, members: dict[str, list[int]]) -> None:
        """Somebody has applied this configuration."""
        if applied >= self._configured_at:
            self._configured_at, self.configuration = applied, members
            self._ever |= {*members["voters"], *members["learners"]}
            for number in sorted(self.joining & self._ever):
                self.joining.discard(number)
                host = self._host(number, None)
                self.hosts.append(host)
                self.world.after(self._chance.randint(1, 20) * TICK_US, self._start, host)

    def compact(self, host: StoreHost, chance: random.Random) -> None:
        """Have a host compact up to a revision that the watcher of everything has seen."""
        revision = self.watchers[0].revision - chance.choice([0, 1, 20])
        if revision <= 0 or host.is_paused:
            return
        request = pb.CompactionRequest(revision=revision)

        def answered(status: int, data: bytes) -> None:
            if status != 0:
                self.world.count(f"compactions: {data.decode() if status > 0 else 'done'}")

        host.begin("compact", request.SerializeToString(), answered)

    def _start(self, host: StoreHost) -> None:
        if host in self.hosts and not host.is_up:
            host.start()

    def lease_gone(self, lease: int) -> None:
        """Somebody has applied the end of a lease."""
        for client in self.lock_clients:
            client.lease_gone(lease)

    def removed(self, host: StoreHost) -> None:
        """A host has learned that it belongs to the cluster no more: it stops for good."""
        if host.is_up and host in self.hosts:
            self.world.count("removed members stopped", host.number)
            host.crash(False)
            self.hosts.remove(host)

    def machines(self) -> Sequence[StoreHost]:
        """Those that are not destroyed."""
        return self.hosts

    def servers(self) -> list[Server]:
        """All hosts, those that are down included."""
        return list(self.hosts)

    def leader(self) -> StoreHost | None:
        """The leader of the highest term."""
        leaders = [host for host in self.hosts if host.leads and not host.is_paused]
        return max(leaders, key=lambda host: host.member.status()["term"], default=None)

    # Operators.

    def change(self, chance: random.Random) -> None:
        """Ask for a random change of the members."""
        self._operator.change(chance)

    def transfer(self, chance: random.Random) -> None:
        """Ask the leader to hand over."""
        leader = self.leader()
        if leader is not None:
            target = chance.choice(leader.member.members()["voters"])
            self.world.count("transfers", leader.number, target)
            leader.member.transfer(target)
            leader.wake()

    def wipe(self, chance: random.Random) -> None:
        """Destroy a member's disk, if the group can bear it, and replace it."""
        self._operator.wipe(chance)

    # Phases.

    def heal(self) -> None:
        """End all faults, and turn on what is off."""
        self.network.calm()
        for client in (*self.clients, *self.lock_clients):
            client.is_stopped = True
        for host in self.hosts:
            host.resume()
            if not host.is_up:
                host.start()

    def group(self) -> list[StoreHost]:
        """The hosts that belong to the newest configuration."""
        members = [*self.configuration["voters"], *self.configuration["learners"]]
        return [host for host in self.hosts if host.number in members]

    def agrees(self) -> bool:
        """Whether all members have applied the same, and watchers have seen it."""
        leader = self.leader()
        group = self.group()
        if leader is None or leader not in group or self.configuration["outgoing"]:
            return False
        status = leader.member.status()
        if status["commit"] != status["last_index"]:
            return False
        if any(
            not host.is_up or host.member.status()["applied"] != status["applied"] for host in group
        ):
            return False
        revision = leader.member.revision
        for watcher in self.watchers:
            if (
                watcher.server not in group
                or watcher.server.number in self.configuration["learners"]
            ):
                watcher.move(leader)  # it watched one that was removed
        return all(watcher.revision >= revision for watcher in self.watchers)

    def describe(self) -> str:
        """Tell where everybody stands."""
        lines = [f"no agreement {LIVENESS_TICKS} ticks after the last fault"]
        for host in self.hosts:
            told = f"{host.member.status()} {host.member.members()}" if host.is_up else "down"
            lines.append(f"  {told}")
        for watcher in self.watchers:
            lines.append(f"  watcher {watcher.watch.name} has seen {watcher.revision}")
        return "\n".join(lines)

    def await_(self, wanted: Callable[[], bool]) -> None:
        """Let time pass until something holds; at most for the time that liveness allows."""
        for _ in range(LIVENESS_TICKS):
            if wanted():
                return
            self.world.run_until(self.world.now_us + TICK_US)
        raise Violation(LIVENESS, self.describe())


def run(options: Options, library: CallLibrary, show: bool = False) -> World:
    """Run one seed of a store cluster.

    Raises:
        Violation: a promise was broken; its checker is LIVENESS where nothing went on after all
            faults had ended.
    """
    world = World(options.seed, show)
    world.note("options", options)
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="trimaran-sim-", dir=shared if shared.is_dir() else None))
    cluster = StoreCluster(world, options, library, folder)
    try:
        faults = Faults(world, options, cluster)
        world.run_until(options.fault_ticks * TICK_US)
        faults.stop()
        cluster.heal()
        world.note("healed for good")
        # What was asked before is done, or timed out, before anything is judged.
        world.run_until(world.now_us + SETTLE_TIMEOUTS * options.election_ticks * TICK_US)
        cluster.await_(cluster.agrees)
        judge(world, cluster)
    finally:
        for host in cluster.hosts:
            host.close()
        shutil.rmtree(folder)
    return world


def judge(world: World, cluster: StoreCluster) -> None:
    """Judge all that clients saw, against the account of every member."""
    group = cluster.group()
    for host in group:
        host.note_state()
    leader = cluster.leader()
    assert leader is not None
    last = leader.member.revision
    hashes = {host.number: host.hash_keys(last) for host in group}
    if len(set(hashes.values())) > 1:
        raise Violation(HASHES, f"at revision {last} are {hashes}")
    compare_accounts(world, cluster, last)
    # What was under way may have been done meanwhile.
    cluster.await_(cluster.agrees)
    leader = cluster.leader()
    assert leader is not None
    last = leader.member.revision
    seen = events_of(cluster.watchers[0].watch)
    replay.check(cluster.history, [event for event in seen if event.key.startswith("k")])
    for watcher in cluster.watchers:
        watches.check(watcher.watch, seen, last)
    drift = cluster.options.clock_drift
    for client in cluster.lock_clients:
        exclusion.check_leases(client.leases, slack=int(3 * drift * 5_000_000))
    holds = [hold for client in cluster.lock_clients for hold in client.holds]
    exclusion.check_locks(holds)
    try:
        summary = linearizability.check(cluster.history)
        world.counts["operations judged"] += summary.operations
        world.counts["operations without an answer"] += summary.unknown
    except linearizability.UndecidedError:
        world.count("undecided")


def compare_accounts(world: World, cluster: StoreCluster, last: int) -> None:
    """Have each voter tell all that it keeps: the same as the others, and as what was seen."""
    accounts: dict[int, list[Event]] = {}
    first = 1
    for host in cluster.group():
        if host.number in cluster.configuration["learners"]:
            continue  # they serve no watchers
        watcher = WatchClient(world, cluster, f"account of {host.number:x}", "\0", "\0", stays=True)
        watcher.watch.segments.clear()
        watcher.move(host)
        cluster.await_(lambda watcher=watcher: watcher.revision >= last)
        # A compaction that was asked for long ago may still come between.
        first = max(first, watcher.watch.segments[-1].start)
        accounts[host.number] = events_of(watcher.watch)
    seen = events_of(cluster.watchers[0].watch)
    kept = [event for event in seen if first <= event.revision <= last]
    for number, events in accounts.items():
        account = [event for event in events if first <= event.revision <= last]
        if account != kept:
            differing = sorted({*account} ^ {*kept}, key=lambda event: event.revision)
            raise Violation(
                replay.ACCOUNT,
                f"{number:x} tells {len(account)} changes from revision {first} to {last}, and "
                f"{len(kept)} were seen; of one alone are {differing[:9]}",
            )


def events_of(watch: Watch) -> list[Event]:
    """All events of a watcher, over all its segments."""
    return [
        event
        for segment in watch.segments
        for response in segment.responses
        for event in response.events
    ]
