"""What to do next about the store's members, on hosts of `trimaran up`.

The host whose member leads asks this every few seconds and does the one step it answers. Each step
leaves the store with a majority of healthy voters: a new member learns before it votes, a lost one
goes only when it is not needed for a majority, and an even number of voters, which bears no more
losses than one less, is no more than a stage on the way to an odd one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from trimaran.up.records import ClusterSettings, HostRecord

# A learner whose host is away this long is given up, as it had no vote: sooner where another host
# could have one.
LEARNER_PATIENCE_S: Final = 300.0
LEARNER_PATIENCE_SHORT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class HostView:
    """A host as the leader's host sees it.

    Attributes:
        record: what the store holds of it.
        absent_s: for how long its daemon has not been there, in seconds; 0 while it is.
    """

    record: HostRecord
    absent_s: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether its daemon runs."""
        return self.absent_s == 0


@dataclass(frozen=True, slots=True)
class MemberView:
    """A member as the leader's host sees it.

    Attributes:
        id, name, peer_urls, is_learner: as the store lists it; no name before its first start.
        healthy: it answers and knows the leader.
        caught_up: it has nearly everything the leader has.
    """

    id: int
    name: str
    peer_urls: tuple[str, ...]
    is_learner: bool
    healthy: bool
    caught_up: bool = True


@dataclass(frozen=True, slots=True)
class AddLearner:
    """Add a member that learns, on a host."""

    host: HostRecord

    def __str__(self) -> str:
        return f"adding a member on {self.host.name}"


@dataclass(frozen=True, slots=True)
class Promote:
    """Give a learner its vote."""

    member: MemberView

    def __str__(self) -> str:
        return f"giving {self.member.name} its vote"


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a member."""

    member: MemberView
    why: str

    def __str__(self) -> str:
        return f"removing {self.member.name or f'member {self.member.id:x}'}: {self.why}"


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing; `why` is empty where all is as it shall be."""

    why: str = ""

    def __str__(self) -> str:
        return self.why


Step: TypeAlias = AddLearner | Promote | Remove | Wait


def quorum(voters: int) -> int:
    """How many voters a majority has."""
    return voters // 2 + 1


class _Situation:
    """What the rules look at, worked out once."""

    def __init__(
        self,
        settings: ClusterSettings,
        members: Sequence[MemberView],
        hosts: Sequence[HostView],
        leader: int,
    ) -> None:
        self.settings = settings
        self.leader = leader
        self.voters = sorted((m for m in members if not m.is_learner), key=lambda m: m.name)
        self.learners = [m for m in members if m.is_learner]
        self._by_url = {host.record.peer_url: host for host in hosts}
        taken = {url for m in members for url in m.peer_urls}
        self.candidates = sorted(
            (
                host.record
                for host in hosts
                if host.alive and host.record.store and host.record.peer_url not in taken
            ),
            key=lambda record: record.name,
        )

    def host_of(self, member: MemberView) -> HostView | None:
        """The host a member runs on, None where it is not of `trimaran up`."""
        return next((self._by_url[u] for u in member.peer_urls if u in self._by_url), None)

    def unwanted(self) -> list[MemberView]:
        """Voters whose hosts shall have none."""
        hosts = ((member, self.host_of(member)) for member in self.voters)
        return [member for member, host in hosts if host and not host.record.store]

    def gone(self) -> list[MemberView]:
        """Voters whose hosts have been away for so long that others take their places."""
        limit_s = self.settings.replace_after_s
        found = []
        for member in self.voters:
            host = self.host_of(member)
            if host and limit_s > 0 and host.absent_s >= limit_s and not member.healthy:
                found.append(member)
        return found

    def can_remove(self, member: MemberView) -> bool:
        """Whether the voters that remain have a healthy majority."""
        rest = [voter for voter in self.voters if voter.id != member.id]
        return bool(rest) and sum(voter.healthy for voter in rest) >= quorum(len(rest))

    def can_promote(self, member: MemberView) -> bool:
        """Whether the voters with this one have a healthy majority."""
        healthy = sum(voter.healthy for voter in self.voters) + member.healthy
        return healthy >= quorum(len(self.voters) + 1)


def next_step(
    settings: ClusterSettings,
    members: Sequence[MemberView],
    hosts: Sequence[HostView],
    leader: int,
) -> Step:
    """Decide the next step.

    Args:
        settings: of the cluster.
        members: of the store, all of them.
        hosts: of the cluster, all of them.
        leader: id of the member that leads.
    """
    now = _Situation(settings, members, hosts, leader)
    if sum(voter.healthy for voter in now.voters) < quorum(len(now.voters)):
        return Wait("waiting for a majority of healthy members")
    if now.learners:
        return _with_learner(now, now.learners[0])
    if now.unwanted():
        return _replace(now, now.unwanted()[0])
    if now.gone():
        return _drop(now, now.gone()[0])
    if len(now.voters) > settings.store_members:
        return _shrink(now)
    if len(now.voters) < settings.store_members:
        if now.candidates:
            return _add(now)
        have = f"{len(now.voters)} of {settings.store_members} members"
        return Wait(f"the store has {have}: waiting for further hosts")
    return _away(now)


def _away(now: _Situation) -> Wait:
    """All members are there; say whose host is not, and until when it is waited for."""
    for member in now.voters:
        host = now.host_of(member)
        if host and not host.alive and not member.healthy:
            limit_s = now.settings.replace_after_s
            then = f", and replaced after {limit_s:g} s" if limit_s else ""
            return Wait(f"{member.name} is away: it is waited for{then}")
    return Wait()


def _with_learner(now: _Situation, learner: MemberView) -> Step:
    """A learner is there: see it through, or give it up, before anything else."""
    host = now.host_of(learner)
    name = learner.name or (host.record.name if host else f"member {learner.id:x}")
    if host is None:
        return Wait(f"{name} learns and is of no host of this cluster: promote or remove it")
    if not host.record.store:
        return Remove(learner, "its host shall have none")
    patience_s = LEARNER_PATIENCE_SHORT_S if now.candidates else LEARNER_PATIENCE_S
    if host.absent_s > patience_s and not learner.healthy:
        return Remove(learner, "its host is away")
    leaving = now.unwanted() or now.gone()
    votes = len(now.voters)
    if votes >= now.settings.store_members and not leaving:
        return Remove(learner, "there are enough members")
    if not (learner.name and learner.healthy and learner.caught_up):
        return Wait(f"waiting for {name} to catch up")
    if leaving and votes >= now.settings.store_members:
        # The learner has everything, so the store is without it for a moment only.
        if now.can_remove(leaving[0]):
            return Remove(leaving[0], f"{name} takes its place")
        return Wait(f"{leaving[0].name} is needed for a majority: waiting for others to be healthy")
    is_last = votes + 1 == now.settings.store_members
    is_stage = bool(now.candidates) and votes + 2 <= now.settings.store_members
    if (votes + 1) % 2 == 0 and not is_last and not is_stage:
        return Wait(
            f"{name} holds a copy; it gets its vote when one more host joins, as {votes + 1} "
            f"voters bear no more losses than {votes}"
        )
    if not now.can_promote(learner):
        return Wait(f"waiting for more healthy members before {name} gets its vote")
    return Promote(learner)


def _add(now: _Situation) -> Step:
    """Let the first candidate learn; the store takes no new member while a voter is away."""
    for voter in now.voters:
        if not voter.healthy:
            return Wait(f"waiting for {voter.name} to be well before a member is added")
    return AddLearner(now.candidates[0])


def _drop(now: _Situation, gone: MemberView) -> Step:
    """A voter was away for too long: it goes, and then the host that is there gets a member.

    The voters that remain bear as many losses as those before did without it.
    """
    if not now.candidates:
        return Wait(f"{gone.name} is away, and no other host is there to take its place")
    if not now.can_remove(gone):
        return Wait(f"{gone.name} is needed for a majority: waiting for others to be healthy")
    return Remove(gone, f"it is away; {now.candidates[0].name} takes its place")


def _replace(now: _Situation, leaving: MemberView) -> Step:
    """The host of a voter shall have none. Where another can take its place, that learns first."""
    is_surplus = len(now.voters) > now.settings.store_members
    all_well = all(voter.healthy for voter in now.voters)
    if now.candidates and not is_surplus and all_well:
        return AddLearner(now.candidates[0])
    if now.can_remove(leaving):
        return Remove(leaving, "its host shall have none")
    return Wait(f"{leaving.name} is needed for a majority: waiting for others to be healthy")


def _shrink(now: _Situation) -> Step:
    """There are too many voters: one that is not healthy goes first, the leader last."""
    order = sorted(now.voters, key=lambda m: (m.healthy, m.id == now.leader))
    victim = next((m for m in order if not m.healthy), None)
    if victim is None:
        victim = [m for m in now.voters if m.id != now.leader][-1]
    if not now.can_remove(victim):
        return Wait(f"{victim.name} is needed for a majority: waiting for others to be healthy")
    return Remove(victim, f"the store shall have {now.settings.store_members} members")
