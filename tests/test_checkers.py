"""The checkers of histories: good ones pass, each broken promise is found, and by its name."""

import io
import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from checkers import exclusion, linearizability, replay, watches
from checkers.exclusion import Hold, LeaseRecord
from checkers.history import (
    COMPARE_AND_PUT,
    DELETE,
    FAILED,
    GET,
    OK,
    PUT,
    UNKNOWN,
    Event,
    Operation,
    Pair,
    Violation,
    Watch,
    WatchResponse,
    WatchSegment,
    read_operations,
    write_operations,
)


def put(at: int, until: int, value: str, revision: int, key: str = "a") -> Operation:
    return Operation(1, PUT, key, at, value=value, end_time=until, outcome=OK, revision=revision)


def get(at: int, until: int, revision: int, *pairs: tuple[str, int], key: str = "a") -> Operation:
    shown = tuple(Pair(key, value, mod) for value, mod in pairs)
    return Operation(2, GET, key, at, end_time=until, outcome=OK, revision=revision, pairs=shown)


def swap(at: int, until: int, compare: int, value: str, revision: int, done: bool) -> Operation:
    return Operation(
        3, COMPARE_AND_PUT, "a", at, value=value, compare_revision=compare, end_time=until,
        outcome=OK, revision=revision, succeeded=done,
    )  # fmt: skip


def delete(at: int, until: int, deleted: int, revision: int, end: str = "") -> Operation:
    return Operation(
        4, DELETE, "a", at, end=end, end_time=until, outcome=OK, revision=revision, deleted=deleted
    )


def lost(operation: Operation) -> Operation:
    """The same without an answer."""
    return replace(
        operation, outcome=UNKNOWN, end_time=-1, revision=0, pairs=(), deleted=0, succeeded=True
    )


GOOD = {
    "nothing": [],
    "one after the other": [put(1, 2, "x", 2), get(3, 4, 2, ("x", 2))],
    "at the same time": [put(1, 9, "x", 3), put(1, 9, "y", 2), get(2, 3, 2, ("y", 2))],
    "a read of nothing": [get(1, 2, 1), put(1, 2, "x", 2)],
    "a lost write that happened": [lost(put(1, 2, "x", 0)), get(5, 6, 2, ("x", 2))],
    "a lost write that happened late": [
        lost(put(1, 2, "x", 0)), get(5, 6, 1), get(7, 8, 2, ("x", 2)),
    ],
    "a lost write that did not happen": [lost(put(1, 2, "x", 0)), get(5, 6, 1)],
    "a refused write": [replace(put(1, 2, "x", 0), outcome=FAILED), get(5, 6, 1)],
    "a swap": [put(1, 2, "x", 2), swap(3, 4, 2, "y", 3, True), get(5, 6, 3, ("y", 3))],
    "a swap that lost": [put(1, 2, "x", 2), swap(3, 4, 1, "y", 2, False), get(5, 6, 2, ("x", 2))],
    "a swap that lost to a lost write": [
        put(1, 2, "x", 2), lost(put(3, 4, "y", 0)), swap(5, 6, 2, "z", 3, False),
    ],
    "a lost delete": [put(1, 2, "x", 2), lost(delete(3, 4, 1, 0)), get(5, 6, 3)],
    "a range delete": [
        put(1, 2, "x", 2), put(3, 4, "y", 3, "b"), delete(5, 6, 2, 4, "c"), get(7, 8, 4, key="b"),
    ],
    "a lost range delete between others": [
        put(1, 2, "x", 2), lost(delete(3, 4, 1, 0, "c")), put(5, 6, "y", 4, "b"), get(7, 8, 4),
        get(9, 10, 4, ("y", 4), key="b"),
    ],
    "a stale read that is allowed": [
        put(1, 2, "x", 2), replace(get(3, 4, 1), serializable=True),
    ],
}  # fmt: skip

BAD = {
    "a stale read": [put(1, 2, "x", 2), get(3, 4, 1)],
    "a lost acknowledged write": [put(1, 2, "x", 2), get(3, 4, 2)],
    "a value of nobody": [get(1, 2, 2, ("x", 2))],
    "a refused write that happened": [
        replace(put(1, 2, "x", 0), outcome=FAILED), get(5, 6, 2, ("x", 2)),
    ],
    "reads that go back": [
        lost(put(1, 2, "x", 0)), get(3, 4, 2, ("x", 2)), get(5, 6, 1),
    ],
    "a write that happened twice": [
        lost(put(1, 2, "x", 0)), get(3, 4, 2, ("x", 2)), put(5, 6, "y", 3), get(7, 8, 4, ("x", 4)),
    ],
    "one revision for two writes": [put(1, 9, "x", 2), put(1, 9, "y", 2)],
    "a revision told wrongly": [put(1, 2, "x", 3), get(3, 4, 3, ("x", 2))],
    "a lost write before it was asked": [get(1, 2, 2, ("x", 2)), lost(put(5, 6, "x", 0))],
    "a swap on a wrong revision": [put(1, 2, "x", 2), swap(3, 4, 1, "y", 3, True)],
    "a swap that lost for nothing": [put(1, 2, "x", 2), swap(3, 4, 2, "y", 2, False)],
    "two swaps that won": [
        put(1, 2, "x", 2), swap(3, 9, 2, "y", 3, True), swap(3, 9, 2, "z", 4, True),
    ],
    "a delete that counts wrongly": [put(1, 2, "x", 2), delete(3, 4, 0, 2)],
    "a deleted key that is back": [
        put(1, 2, "x", 2), delete(3, 4, 1, 3), get(5, 6, 3, ("x", 2)),
    ],
    "one lost delete for two": [
        put(1, 2, "x", 2), lost(delete(3, 4, 1, 0)), get(5, 6, 3), put(7, 8, "y", 4), get(9, 10, 5),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_linearizable_history_passes(name: str) -> None:
    linearizability.check(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_a_history_that_is_not_is_explained(name: str) -> None:
    with pytest.raises(Violation) as found:
        linearizability.check(BAD[name])
    assert found.value.checker == "linearizability"
    assert "client" in str(found.value)


def linearizable_by_trying(operations: list[Operation]) -> bool:
    """Try every order and every subset of the lost operations: slow and plain."""
    known = [operation for operation in operations if operation.outcome == OK]
    loose = [operation for operation in operations if operation.outcome == UNKNOWN]
    for count in range(len(loose) + 1):
        for chosen in itertools.combinations(loose, count):
            for order in itertools.permutations([*known, *chosen]):
                if agrees_with_time(order) and explains(order):
                    return True
    return False


def agrees_with_time(order: tuple[Operation, ...]) -> bool:
    return not any(
        later.outcome == OK and later.end_time < earlier.call
        for earlier, later in itertools.combinations(order, 2)
    )


def explains(order: tuple[Operation, ...]) -> bool:
    """Run the operations on a plain store whose revisions only have to grow.

    Others' keys may take revisions in between, so the revision of a lost write is free.
    """

    def run(place: int, low: int, state: dict[str, tuple[str, int]]) -> bool:
        if place == len(order):
            return True
        operation = order[place]
        known = operation.outcome == OK
        for revision in [operation.revision] if known else range(low, 9):
            after = dict(state)
            if operation.kind == GET:
                expected = tuple(Pair(k, *v) for k, v in state.items() if operation.covers(k))
                if operation.pairs != expected or revision < low:
                    continue
            else:
                have = state.get("a", ("", 0))[1]
                compared = operation.kind == COMPARE_AND_PUT
                writes = not compared or have == operation.compare_revision
                if operation.kind == DELETE:
                    writes = "a" in state
                    if known and operation.deleted != int(writes):
                        continue
                    after.pop("a", None)
                elif writes:
                    after["a"] = (operation.value, revision)
                if known and operation.writes != writes:
                    continue
                if revision < low + writes:
                    continue
            if run(place + 1, revision, after):
                return True
        return False

    return run(0, 1, {})


def random_history(chance: random.Random) -> list[Operation]:
    """A few operations that overlap, of which about a half is linearizable."""
    state: dict[str, tuple[str, int]] = {}
    revision, history = 1, []
    for number in range(chance.randint(2, 5)):
        at = number * 10 - chance.randint(0, 15)
        until = number * 10 + chance.randint(1, 15)
        kind = chance.choice([PUT, PUT, GET, GET, GET, DELETE, COMPARE_AND_PUT])
        value = f"v{number}"
        have = state.get("a", ("", 0))
        if kind == GET:
            operation = get(at, until, revision, *([have] if have[1] else []))
        elif kind == PUT:
            revision += 1
            operation = put(at, until, value, revision)
            state["a"] = (value, revision)
        elif kind == DELETE:
            revision += bool(have[1])
            operation = delete(at, until, int(bool(have[1])), revision)
            state.clear()
        else:
            compare = chance.choice([have[1], 2])
            done = compare == have[1]
            revision += done
            operation = swap(at, until, compare, value, revision, done)
            if done:
                state["a"] = (value, revision)
        history.append(operation)
    for place, operation in enumerate(history):
        if operation.kind != GET and chance.random() < 0.4:
            history[place] = lost(operation)
        elif chance.random() < 0.2:
            history[place] = spoiled(operation, chance)
    return history


def spoiled(operation: Operation, chance: random.Random) -> Operation:
    if operation.kind == GET and operation.pairs and chance.random() < 0.5:
        return replace(operation, pairs=())
    return replace(operation, revision=max(2, operation.revision + chance.choice([-1, 1])))


def test_verdicts_are_those_of_trying_everything() -> None:
    verdicts = {True: 0, False: 0}
    for seed in range(1500):
        history = random_history(random.Random(seed))
        expected = linearizable_by_trying(history)
        try:
            linearizability.check(history)
            found = True
        except Violation:
            found = False
        shown = "\n".join(map(str, history))
        assert found == expected, f"seed {seed}: expected {expected}\n{shown}"
        verdicts[expected] += 1
    assert min(verdicts.values()) > 200


def test_a_long_history_is_quickly_judged() -> None:
    """Thousands of lost writes and reads: the search must not branch where nothing forces it."""
    chance = random.Random(1)
    history, state, revision = [], {}, 1
    for number in range(20_000):
        key = f"k{chance.randrange(20)}"
        if chance.random() < 0.5:
            revision += 1
            state[key] = (f"v{number}", revision)
            operation = put(number * 2, number * 2 + 9, f"v{number}", revision, key)
            history.append(lost(operation) if chance.random() < 0.2 else operation)
        else:
            shown = [state[key]] if key in state else []
            history.append(get(number * 2, number * 2 + 1, revision, *shown, key=key))
    summary = linearizability.check(history)
    assert summary.unknown > 1000
    assert summary.steps < 2 * len(history)


def test_a_search_that_is_too_long_is_given_up() -> None:
    with pytest.raises(linearizability.UndecidedError):
        linearizability.check([put(i, i, f"v{i}", i + 2) for i in range(10)], steps_max=5)


def test_operations_are_written_and_read(tmp_path: Path) -> None:
    history = [get(1, 2, 5, ("x", 3)), lost(put(3, 4, "y", 0)), delete(5, 6, 1, 7, "z")]
    text = io.StringIO()
    write_operations(text, history)
    path = tmp_path / "history"
    path.write_text(text.getvalue())
    assert list(read_operations(path)) == history


EVENTS = [Event(2, "a", "x"), Event(3, "b", "y"), Event(4, "a", None), Event(4, "b", None)]


@pytest.mark.parametrize(
    ("operations", "checker"),
    [
        ([put(1, 2, "x", 2), put(1, 2, "y", 3, "b"), delete(3, 4, 2, 4, "c")], ""),
        ([lost(put(1, 2, "x", 2)), put(1, 2, "y", 3, "b"), lost(delete(3, 4, 2, 4, "c"))], ""),
        ([put(1, 2, "x", 2), put(1, 2, "y", 3, "b"), get(1, 2, 3, ("x", 2))], ""),
        ([put(1, 2, "x", 2), put(1, 2, "y", 3, "b"), get(1, 2, 4, ("x", 2))], replay.READS),
        ([put(1, 2, "x", 2), put(1, 2, "y", 3, "b"), get(1, 2, 3)], replay.READS),
        ([put(1, 2, "x", 3), put(1, 2, "y", 3, "b")], replay.ACKNOWLEDGED),
        ([put(1, 2, "x", 2), put(1, 2, "y", 3, "b"), delete(3, 4, 1, 4, "c")],
         replay.ACKNOWLEDGED),
        ([put(1, 2, "x", 2)], replay.INVENTED),
        ([put(1, 2, "x", 2), replace(put(1, 2, "y", 3, "b"), outcome=FAILED)], replay.INVENTED),
    ],
)  # fmt: skip
def test_the_account_is_compared(operations: list[Operation], checker: str) -> None:
    if not checker:
        replay.check(operations, EVENTS)
        return
    with pytest.raises(Violation) as found:
        replay.check(operations, EVENTS)
    assert found.value.checker == checker


def test_a_write_that_happened_twice_is_found_in_the_account() -> None:
    events = [Event(2, "a", "x"), Event(3, "a", None), Event(4, "a", "x")]
    with pytest.raises(Violation, match="writes happen once"):
        replay.check([lost(put(1, 2, "x", 2))], events)


def watched(*segments: tuple[int, list[tuple[list[Event], int]]]) -> Watch:
    made = [
        WatchSegment(start, 1, [WatchResponse(tuple(events), at) for events, at in responses])
        for start, responses in segments
    ]
    return Watch("w", "a", "z", made)


@pytest.mark.parametrize(
    ("segments", "checker"),
    [
        ([(1, [(EVENTS[:1], 2), (EVENTS[1:2], 3), (EVENTS[2:], 4)])], ""),
        ([(1, [(EVENTS, 4)])], ""),
        ([(1, [(EVENTS[:1], 2)]), (3, [(EVENTS[1:], 4)])], ""),
        ([(1, [([], 1), (EVENTS[:2], 3), ([], 3), (EVENTS[2:], 4), ([], 9)])], ""),
        ([(3, [(EVENTS[1:], 4)])], ""),
        ([(1, [(EVENTS[1:], 4)])], watches.COMPLETE),
        ([(1, [(EVENTS[:3], 4)])], watches.COMPLETE),
        ([(1, [(EVENTS[:3], 4), (EVENTS[3:], 4)])], watches.ATOMIC),
        ([(1, [([EVENTS[0], EVENTS[0]], 2)])], watches.UNIQUE),
        ([(1, [([EVENTS[1], EVENTS[0]], 3)])], watches.ORDER),
        ([(3, [(EVENTS, 4)])], watches.PROGRESS),
        ([(1, [(EVENTS[:1], 2), ([], 3), (EVENTS[1:], 4)])], watches.PROGRESS),
        ([(1, [([], 3)])], watches.COMPLETE),
        ([(1, [(EVENTS[:2], 2)])], watches.PROGRESS),
        ([(1, [([Event(2, "a", "other")], 2)])], watches.COMPLETE),
    ],
)
def test_watches_are_compared(
    segments: list[tuple[int, list[tuple[list[Event], int]]]], checker: str
) -> None:
    if not checker:
        watches.check(watched(*segments), EVENTS)
        return
    with pytest.raises(Violation) as found:
        watches.check(watched(*segments), EVENTS)
    assert found.value.checker == checker


def test_a_watcher_must_have_got_to_the_end() -> None:
    with pytest.raises(Violation, match="completeness"):
        watches.check(watched((1, [(EVENTS[:2], 3)])), EVENTS, last_revision=4)


def test_a_watch_resumes_after_what_it_has_seen() -> None:
    assert watched((1, [(EVENTS[:2], 3)])).next_revision() == 4
    assert watched((1, [(EVENTS[:2], 3), ([], 7)])).next_revision() == 8
    assert watched((1, [(EVENTS[:2], 3)]), (4, [])).next_revision() == 4


@pytest.mark.parametrize(
    ("record", "good"),
    [
        (LeaseRecord(1, [(10, 5)], gone_at=15), True),
        (LeaseRecord(1, [(10, 5)], gone_at=14), False),
        (LeaseRecord(1, [(10, 5), (14, 5)], gone_at=17), False),
        (LeaseRecord(1, [(10, 5), (14, 5)], gone_at=20), True),
        (LeaseRecord(1, [(10, 5)], gone_at=12, revoked_at=11), True),
        (LeaseRecord(1, [(10, 5)]), True),
    ],
)
def test_leases_live_as_long_as_promised(record: LeaseRecord, good: bool) -> None:
    if good:
        exclusion.check_leases([record])
    else:
        with pytest.raises(Violation, match="lives as long"):
            exclusion.check_leases([record])
        exclusion.check_leases([record], slack=3)


def test_a_lock_has_one_holder() -> None:
    exclusion.check_locks([Hold("l", "a", 1, 5), Hold("l", "b", 5, 9), Hold("m", "b", 2, 3)])
    with pytest.raises(Violation, match="two holders"):
        exclusion.check_locks([Hold("l", "a", 1, 5), Hold("l", "b", 4, 9)])
    with pytest.raises(Violation, match="two holders"):
        exclusion.check_locks([Hold("l", "a", 1, 9), Hold("l", "a", 2, 3), Hold("l", "b", 4, 5)])
