"""Clusters of real processes: faults under load, and the check that would tell of a violation."""

import copy
import itertools
from collections.abc import Callable, Iterator

import pytest

from checkers.history import Violation
from store_cluster import Cluster, why_not
from store_history import (
    Event,
    History,
    Lease,
    Operation,
    Truth,
    Watched,
    second_opinion,
    violations,
)
from store_scenarios import SCENARIOS, run

KIND = "trimaran"
# Several scenarios share a load, so that all of them fit into a test's time.
GROUPS = {
    "processes": ["kill-leader", "kill-follower", "pause-leader", "pause-majority"],
    "network": ["partition-full", "leader-alone", "follower-alone", "delay-and-loss"],
    "one-way": ["leader-mute", "leader-deaf"],
    "members": ["full-disk", "wiped-member", "kill-all", "rolling-restart"],
}
_prefixes = (f"group{number}/" for number in itertools.count())


def make_cluster(kind: str, size: int = 3, *arguments: str) -> Cluster:
    reason = why_not(kind)
    if reason:
        pytest.skip(reason)
    return Cluster(kind, size, arguments=arguments)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with make_cluster(KIND) as cluster:
        yield cluster


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_is_lost(cluster: Cluster, group: str) -> None:
    results = run(cluster, GROUPS[group], next(_prefixes), seed=1)
    assert [result.name for result in results] == GROUPS[group]
    for result in results:
        print(f"{result.name}: back after {result.back_in_elections:.2f} election time-outs")


@pytest.mark.parametrize(
    ("kind", "size", "name"),
    [(KIND, 5, "majority-ring"), ("3.5", 3, "kill-leader")],
)
def test_nothing_is_lost_elsewhere(kind: str, size: int, name: str) -> None:
    """On five members; and on etcd, to see that the test asks for nothing that etcd does not do."""
    with make_cluster(kind, size) as cluster:
        run(cluster, [name], "elsewhere/", seed=1)


def test_leases_serve_no_old_values() -> None:
    """Where the leader answers reads by its clock, and is deposed without knowing it."""
    with make_cluster(KIND, 3, "--lease-reads") as cluster:
        run(cluster, ["pause-leader", "leader-alone", "leader-mute"], "leases/", seed=1)


def test_every_scenario_is_run() -> None:
    named = [name for group in GROUPS.values() for name in group]
    assert sorted([*named, "majority-ring"]) == sorted(SCENARIOS)


def operation(
    number: int, kind: str, at: tuple[int, int], revision: int, **more: object
) -> Operation:
    """An operation on the key p/k; a write writes its own number."""
    made = Operation(number, 1, 0, kind, ["p/k"], call_ns=at[0], return_ns=at[1], revision=revision)
    if made.is_write:
        made.value = str(number)
        made.took_effect = bool(revision)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def sample() -> tuple[History, dict[int, list[Event]]]:
    """A correct history: two puts, a read, a put without an answer, a deletion, a swap."""
    events: dict[int, list[Event]] = {
        2: [(True, "p/k", "1")],
        3: [(True, "p/k", "2")],
        4: [(True, "p/k", "4")],
        5: [(False, "p/k", "")],
        6: [(True, "p/k", "6")],
        7: [(True, "p/leased", "9")],
        8: [(False, "p/leased", "")],
    }
    operations = [
        operation(1, "put", (0, 10), 2),
        operation(2, "put", (20, 30), 3),
        operation(3, "get", (40, 50), 3, found=[("p/k", "2", 3)]),
        operation(4, "put", (60, 0), 0),
        operation(5, "delete", (70, 80), 5),
        operation(6, "swap", (90, 100), 6),
        operation(7, "swap", (110, 120), 6, compared=3, found=[("p/k", "6", 6)]),
        operation(8, "get", (130, 140), 6, found=[("p/k", "6", 6)]),
        operation(9, "put", (150, 160), 7, keys=["p/leased"]),
    ]
    operations[6].took_effect = False
    second_ns = 1_000_000_000
    seen = [(revision, each[0], 3 * second_ns) for revision, each in events.items()]
    leases = [Lease("p/leased", 2, 200)]
    return History("p/", operations, [Watched(0, 2, seen)], leases), events


def stale_read(history: History, events: dict[int, list[Event]]) -> None:
    history.operations[7] = operation(8, "get", (130, 140), 3, found=[("p/k", "2", 3)])


def wrong_read(history: History, events: dict[int, list[Event]]) -> None:
    history.operations[2].found = [("p/k", "1", 2)]


def lost_write(history: History, events: dict[int, list[Event]]) -> None:
    events[3] = []


def write_of_nobody(history: History, events: dict[int, list[Event]]) -> None:
    events[9] = [(True, "p/k", "77")]


def deletion_of_nobody(history: History, events: dict[int, list[Event]]) -> None:
    events[9] = [(False, "p/k", "")]


def write_applied_twice(history: History, events: dict[int, list[Event]]) -> None:
    events[9] = [(True, "p/k", "2")]


def silent_write_applied_twice(history: History, events: dict[int, list[Event]]) -> None:
    events[9] = [(True, "p/k", "4")]


def silent_write_before_its_call(history: History, events: dict[int, list[Event]]) -> None:
    history.operations[3].call_ns = 125


def torn_write(history: History, events: dict[int, list[Event]]) -> None:
    history.operations[1].keys.append("p/b")


def refused_in_vain(history: History, events: dict[int, list[Event]]) -> None:
    history.operations[6].compared = 6


def missed_event(history: History, events: dict[int, list[Event]]) -> None:
    del history.watches[0].events[2]


def repeated_event(history: History, events: dict[int, list[Event]]) -> None:
    history.watches[0].events.insert(2, history.watches[0].events[2])


def early_expiry(history: History, events: dict[int, list[Event]]) -> None:
    history.leases[0].renewed_ns = 1_500_000_000


BREAKS: dict[Callable[[History, dict[int, list[Event]]], None], str] = {
    stale_read: "back in time",
    wrong_read: "wrong answer",
    lost_write: "lost or torn",
    write_of_nobody: "nobody wrote",
    deletion_of_nobody: "nobody made",
    write_applied_twice: "applied twice",
    silent_write_applied_twice: "applied twice",
    silent_write_before_its_call: "back in time",
    torn_write: "lost or torn",
    refused_in_vain: "nothing had changed",
    missed_event: "watch from",
    repeated_event: "watch from",
    early_expiry: "before its lease was over",
}


def test_a_good_history_passes() -> None:
    history, events = sample()
    assert second_opinion(history) == ""
    assert violations(history, Truth(events, "p/")) == []
    assert second_opinion(history) == ""


@pytest.mark.parametrize("spoil", BREAKS, ids=lambda spoil: spoil.__name__)
def test_a_bad_history_is_told(spoil: Callable[[History, dict[int, list[Event]]], None]) -> None:
    history, events = copy.deepcopy(sample())
    spoil(history, events)
    found = violations(history, Truth(events, "p/"))
    assert any(BREAKS[spoil] in text for text in found), found


@pytest.mark.parametrize("spoil", [stale_read, wrong_read], ids=lambda spoil: spoil.__name__)
def test_it_is_told_without_events_too(
    spoil: Callable[[History, dict[int, list[Event]]], None],
) -> None:
    history, events = sample()
    spoil(history, events)
    with pytest.raises(Violation):
        second_opinion(history)
