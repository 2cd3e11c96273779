"""Is there one order of all operations that explains every response, and agrees with time?

Every response of etcd tells the store's revision, which fixes the order of the operations that were
answered: by revision, a write before the reads of its revision. That order must agree with time
(what was answered before another was asked comes first), and walking it must yield each response.
What is left to search for is where the operations of unknown outcome belong. One whose value was
read has its revision from there. Any other can matter only just before a response that is not
explained without it, so the search tries them there and nowhere else, and remembers what failed.
Keys that no operation connects are searched apart.

A history that is explained is never refused. One that is not may pass in a corner: where a swap
lost to a write that nobody has read, that write's revision is taken to be any.

After Wing and Gong, "Testing and verifying concurrent objects", and Lowe's memoization.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter

from checkers.history import (
    COMPARE_AND_PUT,
    DELETE,
    FAILED,
    GET,
    OK,
    PUT,
    UNKNOWN,
    Operation,
    Violation,
)

CHECKER = "linearizability"
STEPS_MAX = 300_000
SHOWN_MAX = 12
NEVER = 1 << 62

# The value and the mod_revision of each key that exists; revision -1: written by an operation of
# unknown outcome that nobody has read, so it may be any.
State = dict[str, tuple[str, int]]
UNREAD = -1


class UndecidedError(Exception):
    """The search took more steps than allowed; nothing is known."""


@dataclass
class Summary:
    """What was looked at."""

    operations: int = 0
    unknown: int = 0
    resolved: int = 0
    steps: int = 0


def check(operations: Iterable[Operation], steps_max: int = STEPS_MAX) -> Summary:
    """Check a history; keys with a lease must not be in it, as they go by themselves.

    Args:
        operations: those of all clients, in any order, with unique values for the best verdict.
        steps_max: bounds the search.

    Returns:
        What was looked at.

    Raises:
        Violation: no order explains the history.
        UndecidedError: the search was given up.
    """
    kept = [
        replace(operation)
        for operation in operations
        if operation.outcome != FAILED and not operation.serializable
        if operation.outcome == OK or operation.kind != GET
    ]
    summary = Summary(operations=len(kept))
    summary.unknown = sum(operation.outcome == UNKNOWN for operation in kept)
    summary.resolved = _resolve_unknown(kept)
    known = sorted(
        (operation for operation in kept if operation.outcome == OK),
        key=lambda operation: (operation.revision, not operation.writes, operation.call),
    )
    _check_order(known)
    unknown = _by_key([operation for operation in kept if operation.outcome == UNKNOWN], known)
    taken = [operation.revision for operation in known if operation.writes]
    for part, loose in _partition(known, unknown):
        search = _Search(part, loose, taken, steps_max - summary.steps)
        search.run()
        summary.steps += search.steps
    return summary


def _resolve_unknown(operations: list[Operation]) -> int:
    """Give each operation of unknown outcome whose value was read the revision it was read with."""
    writers: dict[str, Operation | None] = {}
    for operation in operations:
        if operation.kind in (PUT, COMPARE_AND_PUT):
            # A value written twice tells nothing.
            writers[operation.value] = None if operation.value in writers else operation
    resolved = 0
    for reader in operations:
        for pair in reader.pairs:
            writer = writers.get(pair.value)
            if writer is None or writer.key != pair.key or writer.outcome != UNKNOWN:
                continue
            writer.outcome, writer.revision = OK, pair.mod_revision
            writer.end_time, writer.succeeded = NEVER, True
            resolved += 1
    return resolved


def _check_order(known: Sequence[Operation]) -> None:
    """Check that the order of revisions agrees with time, and that writes share none."""
    for before, after in pairwise(known):
        if before.writes and after.writes and before.revision == after.revision:
            raise Violation(CHECKER, f"two writes have one revision:\n  {before}\n  {after}")
    earliest: Operation | None = None  # of those later in the order, the first to be answered
    for operation in reversed(known):
        if earliest is not None and earliest.end_time < operation.call:
            raise Violation(
                CHECKER,
                "an operation was answered with an older state than one that had been answered "
                f"before it was asked:\n  {earliest}\n  {operation}",
            )
        if earliest is None or operation.end_time < earliest.end_time:
            earliest = operation


def _by_key(unknown: Sequence[Operation], known: Sequence[Operation]) -> list[Operation]:
    """Take a lost deletion of a range for one of each key in it, which may each have happened.

    Else its place would matter to keys that are written between it and the first that misses what
    it deleted. That a range goes at once is checked with the account of the store (`replay`).
    """
    keys = {operation.key for operation in (*known, *unknown)}
    keys |= {pair.key for operation in known for pair in operation.pairs}
    parts = []
    for operation in unknown:
        if operation.end:
            covered = sorted(key for key in keys if operation.covers(key))
            parts += [replace(operation, key=key, end="") for key in covered]
        else:
            parts.append(operation)
    return parts


def _partition(
    known: Sequence[Operation], unknown: Sequence[Operation]
) -> list[tuple[list[Operation], list[Operation]]]:
    """Split operations so that no two parts have a key in common; the order is kept."""
    keys = sorted(
        {operation.key for operation in (*known, *unknown) if not operation.end}
        | {pair.key for operation in known for pair in operation.pairs}
        | {operation.key for operation in (*known, *unknown)}
    )
    parent = list(range(len(keys)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for operation in (*known, *unknown):
        if operation.end:  # an answered one
            first = bisect_left(keys, operation.key)
            last = len(keys) if operation.end == "\0" else bisect_left(keys, operation.end)
            for place in range(first + 1, last):
                parent[root(place)] = root(first)
    parts: dict[int, tuple[list[Operation], list[Operation]]] = {}
    for side, operations in enumerate((known, unknown)):
        for operation in operations:
            part = parts.setdefault(root(bisect_left(keys, operation.key)), ([], []))
            part[side].append(operation)
    return list(parts.values())


def _apply_unknown(state: State, operation: Operation) -> State | None:
    """The state after an operation of unknown outcome; None where it would change nothing."""
    if operation.kind == DELETE:
        left = {key: held for key, held in state.items() if key != operation.key}
        return left if len(left) < len(state) else None
    if operation.kind == COMPARE_AND_PUT:
        have = state.get(operation.key, ("", 0))[1]
        if have not in (operation.compare_revision, UNREAD):
            return None
        if have == UNREAD and operation.compare_revision == 0:
            return None
    return {**state, operation.key: (operation.value, UNREAD)}


def _refuses(state: State, operation: Operation) -> str:
    """Carry out an answered operation in place; returns what contradicts its response, or ""."""
    if operation.kind == GET:
        return _refuses_read(state, operation)
    if operation.kind == DELETE:
        gone = [key for key in state if operation.covers(key)]
        if len(gone) != operation.deleted:
            return f"{len(gone)} keys were there to delete"
        for key in gone:
            del state[key]
        return ""
    if operation.kind == COMPARE_AND_PUT:
        have = state.get(operation.key, ("", 0))[1]
        if operation.succeeded:
            possible = have == operation.compare_revision
            possible = possible or (have == UNREAD and operation.compare_revision != 0)
        else:
            possible = have != operation.compare_revision
        if not possible:
            return f"the key's mod_revision was {have}"
        if not operation.succeeded:
            return ""
    state[operation.key] = (operation.value, operation.revision)
    return ""


def _refuses_read(state: State, operation: Operation) -> str:
    """The same for a read."""
    read = {pair.key: (pair.value, pair.mod_revision) for pair in operation.pairs}
    if operation.end:
        there = {key: held for key, held in state.items() if operation.covers(key)}
    else:
        there = {operation.key: state[operation.key]} if operation.key in state else {}
    if read == there:
        return ""
    for key in sorted(read.keys() | there.keys()):
        have, shown = there.get(key), read.get(key)
        if have is None:
            return f"{key!r} was not there"
        if shown is None:
            return f"{key!r} was {have[0]!r}@{have[1]}"
        if have[0] != shown[0] or have[1] not in (shown[1], UNREAD):
            return f"{key!r} was {have[0]!r}@{have[1]}"
    for key, (value, revision) in read.items():
        state[key] = (value, revision)
    return ""


@dataclass
class _Choice:
    """Where a response was not explained: the state there, and what is still to be tried."""

    place: int
    used: int
    state: State
    candidates: list[int]


class _Search:
    """Walks the answered operations of one part, placing those of unknown outcome."""

    def __init__(
        self,
        known: Sequence[Operation],
        unknown: Sequence[Operation],
        taken: Sequence[int],
        steps_max: int,
    ) -> None:
        self.known = known
        self.unknown = sorted(unknown, key=attrgetter("call"))
        self.taken = taken  # revisions of answered writes, of all parts
        self.steps_max = steps_max
        self.steps = 0
        self.failed: set[tuple[int, int, frozenset[tuple[str, tuple[str, int]]]]] = set()
        self.furthest: tuple[int, State, str] = (-1, {}, "")
        # An operation of unknown outcome comes after all that was answered before it was asked.
        answered = sorted((operation.end_time, at) for at, operation in enumerate(known))
        self.first_place: list[int] = []
        place, taken = 0, 0
        for operation in self.unknown:
            while taken < len(answered) and answered[taken][0] < operation.call:
                place = max(place, answered[taken][1] + 1)
                taken += 1
            self.first_place.append(place)

    def run(self) -> None:
        """Search; raises where nothing is found."""
        stack: list[_Choice] = []
        found = self._walk(0, 0, {}, stack)
        while not found:
            while stack and not stack[-1].candidates:
                choice = stack.pop()
                self.failed.add((choice.place, choice.used, frozenset(choice.state.items())))
            if not stack:
                raise Violation(CHECKER, self._explain())
            choice = stack[-1]
            chosen = choice.candidates.pop(0)
            state = _apply_unknown(choice.state, self.unknown[chosen])
            assert state is not None
            found = self._walk(choice.place, choice.used | 1 << chosen, state, stack)

    def _walk(self, place: int, used: int, state: State, stack: list[_Choice]) -> bool:
        """Go on until the end (True), or until a response that is not explained."""
        state = dict(state)
        while place < len(self.known):
            self.steps += 1
            if self.steps > self.steps_max:
                raise UndecidedError(f"no verdict after {self.steps_max} steps")
            operation = self.known[place]
            reason = _refuses(state, operation)
            if reason:
                if place > self.furthest[0]:
                    self.furthest = (place, state, reason)
                if (place, used, frozenset(state.items())) not in self.failed:
                    candidates = self._candidates(place, used, state)
                    stack.append(_Choice(place, used, state, candidates))
                return False
            place += 1
        return True

    def _candidates(self, place: int, used: int, state: State) -> list[int]:
        """The operations of unknown outcome that may come just before this place and change it."""
        wanted = self.known[place]
        return [
            at
            for at, operation in enumerate(self.unknown)
            if self.first_place[at] <= place
            and not used >> at & 1
            and wanted.covers(operation.key)
            and _apply_unknown(state, operation) is not None
            and self._has_room(at, place, state)
        ]

    def _has_room(self, at: int, place: int, state: State) -> bool:
        """Whether a revision is free for a lost write: after what it would have changed."""
        lost, wanted = self.unknown[at], self.known[place]
        low = 1
        if self.first_place[at] > 0:
            low = max(low, self.known[self.first_place[at] - 1].revision)
        for earlier in range(place - 1, -1, -1):
            before = self.known[earlier]
            # Whatever saw or set the key would have been another with the lost write before it.
            refused = before.kind == COMPARE_AND_PUT and not before.succeeded
            if not refused and before.covers(lost.key):
                low = max(low, before.revision)
                break
        high = wanted.revision - wanted.writes
        return bisect_right(self.taken, high) - bisect_right(self.taken, low) < high - low

    def _explain(self) -> str:
        place, _, reason = self.furthest
        operation = self.known[place]
        lines = [f"no order explains\n  {operation}\nas there {reason}; before it came"]
        related = [
            other
            for other in self.known[:place]
            if other.end or operation.end or other.key == operation.key
        ]
        lines += [f"  {other}" for other in related[-SHOWN_MAX:]] or ["  nothing"]
        if self.unknown:
            lines.append("and of unknown outcome were")
            lines += [f"  {other}" for other in self.unknown[:SHOWN_MAX]]
        return "\n".join(lines)
