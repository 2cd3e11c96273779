"""A recorded history of clients, and whether a linearizable store can have answered so.

Every answer of the store carries a revision, and the store itself can be asked for all its events
by revision. That order is a claim, and with it the check is exact and cheap: a write must be in the
events at the revision it was answered with, whole and once; a read must show the keys as they were
at its revision; and no call may be at an earlier revision than a call that had returned before it
was made. Without an answer a write may have happened or not, but not before it was made.
"""

import bisect
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from checkers import history as record
from checkers import linearizability

# (is it a put, key, value)
Event = tuple[bool, str, str]


@dataclass
class Operation:
    """One call of one client.

    Attributes:
        number: unique in the history.
        client: who called; the calls of one client do not overlap, those of a prober may.
        member: number of the member asked.
        kind: "put", "puts" (several in one txn), "swap" (a put if the key is at `compared`),
            "delete", "get" or "list" (all keys with the prefix `keys[0]`).
        keys: what it reads or writes.
        value: what it writes; different for each operation.
        compared: the mod_revision that a swap expects.
        call_ns, return_ns: on the machine's monotonic clock; return_ns is 0 without an answer.
        revision: of the store, from the answer's header.
        took_effect: of a write: the answer said that something changed.
        found: what a read, or a swap that did not take effect, found: key, value, mod_revision.
        serializable: the read may be of the past.
        error: why there is no answer.
    """

    number: int
    client: int
    member: int
    kind: str
    keys: list[str]
    value: str = ""
    compared: int = 0
    call_ns: int = 0
    return_ns: int = 0
    revision: int = 0
    took_effect: bool = False
    found: list[tuple[str, str, int]] = field(default_factory=list)
    serializable: bool = False
    error: str = ""

    @property
    def is_write(self) -> bool:
        """Whether it can change something."""
        return self.kind not in ("get", "list")


@dataclass
class Watched:
    """What one watch saw: events in the order they arrived, with the time of each.

    Attributes:
        member: number of the first member that was asked.
        start: the revision it began at.
        events: revision, event, arrival in nanoseconds.
        resumed: how often it had to be opened again.
    """

    member: int
    start: int
    events: list[tuple[int, Event, int]] = field(default_factory=list)
    resumed: int = 0

    @property
    def next_revision(self) -> int:
        """From where to go on. A revision comes whole or not at all."""
        return self.events[-1][0] + 1 if self.events else self.start


@dataclass
class Lease:
    """A lease of a client: granted, its key put, kept alive for a while, then left alone.

    Attributes:
        key: that hangs on it.
        ttl_s: as granted.
        renewed_ns: when the last call that kept it alive, and succeeded, was made.
    """

    key: str
    ttl_s: int
    renewed_ns: int


@dataclass
class History:
    """All that clients recorded."""

    prefix: str
    operations: list[Operation] = field(default_factory=list)
    watches: list[Watched] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it as one JSON object."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "History":
        """Read what save wrote."""
        found = json.loads(path.read_text())
        operations = [Operation(**fields) for fields in found["operations"]]
        for operation in operations:
            operation.found = [(key, value, revision) for key, value, revision in operation.found]
        watches = [
            Watched(
                each["member"],
                each["start"],
                [(revision, tuple(event), at) for revision, event, at in each["events"]],
                each["resumed"],
            )
            for each in found["watches"]
        ]
        leases = [Lease(**fields) for fields in found["leases"]]
        return cls(found["prefix"], operations, watches, leases)


class Truth:
    """The store's events, as it tells them after the load: which keys were there when.

    Args:
        events: by revision, each revision's in any order.
        prefix: of the keys that count; before the first event none of them was there.
    """

    def __init__(self, events: dict[int, list[Event]], prefix: str) -> None:
        self.events = {
            revision: sorted(e for e in found if e[1].startswith(prefix))
            for revision, found in events.items()
        }
        self.last = max(events, default=0)
        self._by_key: dict[str, list[tuple[int, bool, str]]] = {}
        for revision in sorted(self.events):
            for is_put, key, value in self.events[revision]:
                self._by_key.setdefault(key, []).append((revision, is_put, value))

    def at(self, key: str, revision: int) -> tuple[str, str, int] | None:
        """A key as it was at a revision: key, value, mod_revision; None where it was not there."""
        changes = self._by_key.get(key, [])
        place = bisect.bisect_right(changes, revision, key=lambda change: change[0])
        if place == 0 or not changes[place - 1][1]:
            return None
        return key, changes[place - 1][2], changes[place - 1][0]

    def all_with(self, prefix: str, revision: int) -> list[tuple[str, str, int]]:
        """All keys with a prefix as they were at a revision."""
        keys = (self.at(key, revision) for key in sorted(self._by_key) if key.startswith(prefix))
        return [found for found in keys if found is not None]

    def with_prefix(self, prefix: str, first: int) -> list[tuple[int, Event]]:
        """The events of keys with a prefix from a revision on, in order."""
        return [
            (revision, event)
            for revision in sorted(self.events)
            if revision >= first
            for event in self.events[revision]
            if event[1].startswith(prefix)
        ]


def violations(history: History, truth: Truth) -> list[str]:
    """Tell everything in a history that a linearizable store cannot have done."""
    found = [
        *_written_wrong(history, truth),
        *_read_wrong(history.operations, truth),
        *_out_of_order(history.operations),
        *_watched_wrong(history, truth),
        *_expired_early(history),
    ]
    return found


def _expected_events(operation: Operation) -> list[Event]:
    if operation.kind == "delete":
        return [(False, key, "") for key in operation.keys]
    return sorted((True, key, operation.value) for key in operation.keys)


def _written_wrong(history: History, truth: Truth) -> Iterable[str]:
    """Compare writes with events, and give those without an answer the revision they are found at.

    Afterwards every write that happened has its revision and took_effect.
    """
    writers = {o.value: o for o in history.operations if o.is_write and o.kind != "delete"}
    silent_deletes: dict[str, list[Operation]] = {}
    claimed: set[int] = set()
    for operation in history.operations:
        if operation.is_write and operation.took_effect:
            claimed.add(operation.revision)
            events = truth.events.get(operation.revision)
            if events != _expected_events(operation):
                yield f"acknowledged write lost or torn: {operation}; there is {events}"
        elif operation.kind == "delete" and not operation.return_ns:
            silent_deletes.setdefault(operation.keys[0], []).append(operation)
    leased = {lease.key for lease in history.leases}
    for revision, events in truth.events.items():
        if not events or revision in claimed:
            continue
        is_put, key, value = events[0]
        if is_put:
            writer = writers.get(value)
            yield from _claim(writer, revision, events)
        elif key in leased:
            continue
        elif silent_deletes.get(key):
            # Which of several it was is not known; that there were enough of them is checked.
            silent_deletes[key].pop()
        else:
            yield f"nobody made revision {revision}: {events}"


def _claim(writer: Operation | None, revision: int, events: list[Event]) -> Iterable[str]:
    """Give a write without an answer the revision where its events are."""
    if writer is None:
        yield f"nobody wrote revision {revision}: {events}"
    elif writer.return_ns:
        yield f"applied twice, or after it was refused: {writer}, also at {revision}"
    elif writer.revision:
        yield f"applied twice without an answer: {writer}, also at {revision}"
    elif events != _expected_events(writer):
        yield f"torn at {revision}: {writer}; there is {events}"
    else:
        writer.revision = revision
        writer.took_effect = True


def _read_wrong(operations: Sequence[Operation], truth: Truth) -> Iterable[str]:
    for operation in operations:
        if not operation.return_ns or operation.took_effect:
            continue
        revision = operation.revision
        if operation.kind == "list":
            expected = truth.all_with(operation.keys[0], revision)
        elif operation.kind in ("get", "swap", "delete"):
            now = truth.at(operation.keys[0], revision)
            expected = [] if now is None else [now]
        else:
            continue
        if operation.kind == "swap" and expected and expected[0][2] == operation.compared:
            yield f"refused, though nothing had changed: {operation}"
        if operation.found != expected:
            yield f"wrong answer: {operation}; expected {expected}"


def _out_of_order(operations: Sequence[Operation]) -> Iterable[str]:
    """No call may be at an earlier revision than one that had returned when it was made."""
    moments: list[tuple[int, int, Operation]] = []
    for operation in operations:
        # Without an answer and without a trace it may not have happened at all.
        if not operation.revision or operation.serializable:
            continue
        moments.append((operation.call_ns, 0, operation))
        if operation.return_ns:
            moments.append((operation.return_ns, 1, operation))
    moments.sort(key=lambda moment: moment[:2])
    newest: Operation | None = None
    for _, is_return, operation in moments:
        if is_return:
            if newest is None or operation.revision > newest.revision:
                newest = operation
        elif newest is not None:
            least = newest.revision + (1 if operation.took_effect else 0)
            if operation.revision < least:
                yield f"went back in time: {operation} after {newest}"


def _watched_wrong(history: History, truth: Truth) -> Iterable[str]:
    for watched in history.watches:
        seen = sorted_within([(revision, event) for revision, event, _ in watched.events])
        expected = truth.with_prefix(history.prefix, watched.start)[: len(seen)]
        if seen != expected:
            wrong = next(
                (pair for pair in zip(seen, expected, strict=False) if pair[0] != pair[1]),
                (seen[-1:], expected[-1:]),
            )
            yield f"watch from {watched.start} at m{watched.member}: {wrong[0]} for {wrong[1]}"


def sorted_within(events: list[tuple[int, Event]]) -> list[tuple[int, Event]]:
    """Sort the events of each revision, and leave the revisions in their order."""
    result: list[tuple[int, Event]] = []
    group: list[tuple[int, Event]] = []
    for event in events:
        if group and group[0][0] != event[0]:
            result += sorted(group)
            group = []
        group.append(event)
    return result + sorted(group)


def _expired_early(history: History) -> Iterable[str]:
    renewed = {lease.key: lease for lease in history.leases}
    for watched in history.watches:
        for revision, (is_put, key, _), at_ns in watched.events:
            lease = renewed.get(key)
            if lease is None or is_put:
                continue
            if at_ns < lease.renewed_ns + lease.ttl_s * 1_000_000_000:
                early_s = (lease.renewed_ns - at_ns) / 1e9 + lease.ttl_s
                yield f"{key} went {early_s:.3f} s before its lease was over, at {revision}"


def second_opinion(history: History) -> str:
    """Have the plain keys judged by their answers alone, without the store's events.

    Returns:
        "" or why there is no verdict.

    Raises:
        record.Violation: no order of the operations explains what was answered.
    """
    plain = history.prefix + "k"
    rows = [
        row_of(operation)
        for operation in history.operations
        if operation.keys[0].startswith(plain) and operation.call_ns
    ]
    try:
        linearizability.check(rows)
    except linearizability.UndecidedError as error:
        return f"undecided: {error}"
    return ""


KINDS_OF_RECORD = {
    "put": record.PUT,
    "swap": record.COMPARE_AND_PUT,
    "delete": record.DELETE,
    "get": record.GET,
    "list": record.GET,
}


def row_of(operation: Operation) -> record.Operation:
    """Write an operation as the checkers read it."""
    key = operation.keys[0]
    end = key[:-1] + chr(ord(key[-1]) + 1) if operation.kind == "list" else ""
    pairs = [] if operation.kind == "swap" else operation.found
    return record.Operation(
        client=operation.client,
        kind=KINDS_OF_RECORD[operation.kind],
        key=key,
        end=end,
        value=operation.value,
        compare_revision=operation.compared if operation.kind == "swap" else -1,
        serializable=operation.serializable,
        call=operation.call_ns,
        end_time=operation.return_ns or -1,
        outcome=record.OK if operation.return_ns else record.UNKNOWN,
        revision=operation.revision if operation.return_ns else 0,
        pairs=tuple(record.Pair(*found) for found in pairs),
        deleted=int(operation.took_effect),
        succeeded=operation.took_effect or operation.kind != "swap",
        note=f"m{operation.member} {operation.error}",
    )


def summary(history: History) -> dict[str, Any]:
    """Count what happened."""
    answered = [o for o in history.operations if o.return_ns]
    written_ns = sorted(o.return_ns for o in answered if o.is_write)
    silences_ns = [after - before for before, after in itertools.pairwise(written_ns)]
    return {
        "longest_silence_s": max(silences_ns, default=0) / 1e9,
        "operations": len(history.operations),
        "answered": len(answered),
        "unanswered_writes": sum(o.is_write and not o.return_ns for o in history.operations),
        "found_without_answer": sum(o.took_effect and not o.return_ns for o in history.operations),
        "watched": sum(len(watched.events) for watched in history.watches),
        "watches_resumed": sum(watched.resumed for watched in history.watches),
    }
