"""The plan of the store's members: single situations, and any history of hosts."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimaran.up.plan import (
    AddLearner,
    HostView,
    MemberView,
    Promote,
    Remove,
    Step,
    Wait,
    next_step,
    quorum,
)
from trimaran.up.records import ClusterSettings, HostRecord

LONG_S = 10_000.0


def host(number: int, absent_s: float = 0.0, store: bool = True) -> HostView:
    """host1, host2 ..."""
    address = f"10.0.0.{number}"
    return HostView(
        HostRecord(
            id=f"{number:016x}",
            name=f"host{number}",
            address=address,
            client_url=f"https://{address}:2379",
            peer_url=f"https://{address}:2380",
            join_address=f"{address}:2382",
            key_hash="",
            store=store,
        ),
        absent_s,
    )


def member(number: int, **changes: object) -> MemberView:
    """The member on host1, host2 ...; healthy and caught up."""
    url = f"https://10.0.0.{number}:2380"
    healthy = MemberView(number, f"host{number}", (url,), False, True)
    return replace(healthy, **changes)  # type: ignore[arg-type]


def learner(number: int, **changes: object) -> MemberView:
    """One that learns."""
    return member(number, is_learner=True, **changes)


def describe(step: Step) -> str:
    """A step in few words."""
    if isinstance(step, AddLearner):
        return f"add {step.host.name}"
    if isinstance(step, Promote):
        return f"promote {step.member.name}"
    if isinstance(step, Remove):
        return f"remove {step.member.name}"
    return "wait" if step.why else "done"


SITUATIONS = {
    "one host": ([member(1)], [host(1)], "wait"),
    "a second host": ([member(1)], [host(1), host(2)], "add host2"),
    "it starts": ([member(1), learner(2, name="")], [host(1), host(2)], "wait"),
    "it learns": ([member(1), learner(2, caught_up=False)], [host(1), host(2)], "wait"),
    "two voters are no better than one": ([member(1), learner(2)], [host(1), host(2)], "wait"),
    "a third host": ([member(1), learner(2)], [host(1), host(2), host(3)], "promote host2"),
    "on the way": ([member(1), member(2)], [host(1), host(2), host(3)], "add host3"),
    "the third": (
        [member(1), member(2), learner(3)],
        [host(1), host(2), host(3)],
        "promote host3",
    ),
    "three": ([member(n) for n in (1, 2, 3)], [host(n) for n in (1, 2, 3, 4)], "done"),
    "one is away": (
        [member(1), member(2), member(3, healthy=False)],
        [host(1), host(2), host(3, 10), host(4)],
        "wait",
    ),
    "away for long": (
        [member(1), member(2), member(3, healthy=False)],
        [host(1), host(2), host(3, LONG_S), host(4)],
        "remove host3",
    ),
    "and then": (
        [member(1), member(2)],
        [host(1), host(2), host(3, LONG_S), host(4)],
        "add host4",
    ),
    "one too many, and one is away": (
        [member(1), member(2), member(3), member(4, healthy=False)],
        [host(1), host(2), host(3), host(4, 1), host(5)],
        "remove host4",
    ),
    "nobody to take its place": (
        [member(1), member(2), member(3, healthy=False)],
        [host(1), host(2), host(3, LONG_S)],
        "wait",
    ),
    "its daemon is away but its member answers": (
        [member(1), member(2), member(3)],
        [host(1), host(2), host(3, LONG_S), host(4)],
        "done",
    ),
    "the new one has caught up": (
        [member(1), member(2), member(3, healthy=False), learner(4)],
        [host(1), host(2), host(3, LONG_S), host(4)],
        "remove host3",
    ),
    "the old one came back": (
        [member(1), member(2), member(3), learner(4)],
        [host(1), host(2), host(3), host(4)],
        "remove host4",
    ),
    "the new one's turn": (
        [member(1), member(2), learner(4)],
        [host(1), host(2), host(3, LONG_S), host(4)],
        "promote host4",
    ),
    "the learner's host went": (
        [member(1), learner(2, healthy=False)],
        [host(1), host(2, LONG_S)],
        "remove host2",
    ),
    "it waits a while": (
        [member(1), learner(2, healthy=False)],
        [host(1), host(2, 30)],
        "wait",
    ),
    "but not where another could have it": (
        [member(1), learner(2, healthy=False)],
        [host(1), host(2, 30), host(3)],
        "remove host2",
    ),
    "no majority": (
        [member(1), member(2, healthy=False), member(3, healthy=False)],
        [host(1), host(2, LONG_S), host(3, LONG_S), host(4)],
        "wait",
    ),
    "no majority without the one that shall go": (
        [member(1), member(2, healthy=False), member(3)],
        [host(1), host(2), host(3, store=False)],
        "wait",
    ),
    "one shall go": (
        [member(1), member(2), member(3)],
        [host(1), host(2), host(3, store=False)],
        "remove host3",
    ),
    "one shall go and another is there": (
        [member(1), member(2), member(3)],
        [host(1), host(2), host(3, store=False), host(4)],
        "add host4",
    ),
    "a learner of somebody else": (
        [member(1), learner(9)],
        [host(1), host(2)],
        "wait",
    ),
    "a voter of somebody else": (
        [member(1), member(8), member(9)],
        [host(1), host(2)],
        "done",
    ),
    "too many": (
        [member(n) for n in (1, 2, 3, 4, 5)],
        [host(n) for n in (1, 2, 3)],
        "remove host5",
    ),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_one_step(name: str) -> None:
    members, hosts, expected = SITUATIONS[name]
    assert describe(next_step(ClusterSettings(), members, hosts, leader=1)) == expected


def test_two_members_are_had_by_saying_so() -> None:
    step = next_step(ClusterSettings(2), [member(1), learner(2)], [host(1), host(2)], leader=1)
    assert describe(step) == "promote host2"


def test_never_by_itself_where_that_is_off() -> None:
    members = [member(1), member(2), member(3, healthy=False)]
    hosts = [host(1), host(2), host(3, 10**8), host(4)]
    assert describe(next_step(ClusterSettings(3, 0), members, hosts, leader=1)) == "wait"


def test_the_leader_goes_last() -> None:
    members = [member(n) for n in (1, 2, 3)]
    hosts = [host(n) for n in (1, 2, 3)]
    step = next_step(ClusterSettings(2), members, hosts, leader=3)
    assert describe(step) == "remove host2"


@dataclass
class Model:
    """A cluster in which steps take effect at once, and hosts come and go."""

    target: int
    alive: set[int] = field(default_factory=lambda: {1})
    joined: set[int] = field(default_factory=lambda: {1})
    voters: set[int] = field(default_factory=lambda: {1})
    learners: set[int] = field(default_factory=set)
    absent_s: float = 1.0

    def has_majority(self) -> bool:
        return len(self.voters & self.alive) >= quorum(len(self.voters))

    def step(self) -> Step:
        """Do one step, as the leader would, and check what must always hold."""
        members = [member(n, healthy=n in self.alive) for n in sorted(self.voters)]
        members += [learner(n, healthy=n in self.alive) for n in sorted(self.learners)]
        hosts = [host(n, 0.0 if n in self.alive else self.absent_s) for n in sorted(self.joined)]
        leader = min(self.voters & self.alive, default=0)
        step = next_step(ClusterSettings(self.target), members, hosts, leader)
        had_majority = self.has_majority()
        spare = len(self.voters & self.alive) - quorum(len(self.voters))
        if not isinstance(step, Wait):
            assert had_majority
        if isinstance(step, AddLearner):
            assert not self.learners
            assert self.voters <= self.alive, "the store would refuse it"
            self.learners.add(int(step.host.id, 16))
        elif isinstance(step, Promote):
            assert step.member.id in self.learners & self.alive
            self.learners.remove(step.member.id)
            self.voters.add(step.member.id)
        elif isinstance(step, Remove):
            assert step.member.id != leader or len(self.voters) == 1
            if not step.member.is_learner and step.member.id in self.alive:
                assert len(self.voters) > self.target
            (self.learners if step.member.is_learner else self.voters).remove(step.member.id)
        if had_majority:
            assert self.has_majority()
            # Bears at least as many further losses as before, but for growing and shrinking.
            assert spare <= 1 or len(self.voters & self.alive) >= quorum(len(self.voters))
        assert len(self.learners) <= 1
        return step

    def settle(self) -> None:
        """Do steps until none is left."""
        for _ in range(100):
            if isinstance(self.step(), Wait):
                return
        raise AssertionError("it never comes to rest")


events = st.lists(
    st.tuples(st.sampled_from(["join", "die", "return", "late", "steps"]), st.integers(1, 7)),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 5), events)
def test_any_history_keeps_a_majority_and_comes_to_what_was_asked(
    target: int, history: list[tuple[str, int]]
) -> None:
    model = Model(target)
    for what, number in history:
        if what == "join":
            model.joined.add(number)
            model.alive.add(number)
        elif what == "return" and number in model.joined:
            model.alive.add(number)
        elif what == "die" and number in model.alive:
            left = model.voters & (model.alive - {number})
            if len(left) >= quorum(len(model.voters)):
                model.alive.discard(number)
        elif what == "late":
            model.absent_s = LONG_S
        elif what == "steps":
            model.step()
    model.alive = set(model.joined)
    model.settle()
    model.settle()
    wanted = min(target, len(model.joined))
    if wanted < target and wanted % 2 == 0:
        wanted -= 1
    assert len(model.voters) == wanted, model
