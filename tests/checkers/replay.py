"""Operations against the store's own account: every change it keeps, by revision.

With the account at hand nothing has to be searched for: what was acknowledged must be in it at the
revision that was told, once; what was refused must not; nobody's writes must not; and a read must
show what the account gives at the read's revision.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

from checkers.history import (
    COMPARE_AND_PUT,
    DELETE,
    FAILED,
    GET,
    OK,
    PUT,
    Event,
    Operation,
    Violation,
)

ACKNOWLEDGED = "acknowledged writes kept"
ONCE = "writes happen once"
INVENTED = "nothing invented"
READS = "reads show the state of their revision"
ACCOUNT = "revisions of the account"


class Account:
    """Every change of a store, from a first revision on."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.by_revision: dict[int, list[Event]] = defaultdict(list)
        self.by_key: dict[str, list[Event]] = defaultdict(list)
        before = 0
        for event in events:
            if event.revision < before:
                raise Violation(ACCOUNT, f"{event} comes after revision {before}")
            before = event.revision
            self.by_revision[event.revision].append(event)
            self.by_key[event.key].append(event)

    def at(self, key: str, revision: int) -> Event | None:
        """The event that made a key what it is at a revision; None where it does not exist."""
        changes = self.by_key.get(key, [])
        place = bisect_right(changes, revision, key=lambda event: event.revision)
        if place == 0 or changes[place - 1].value is None:
            return None
        return changes[place - 1]


def check(
    operations: Iterable[Operation], events: Sequence[Event], first_revision: int = 0
) -> None:
    """Check operations against the account of the store.

    Args:
        operations: of all clients; keys with a lease may be among them.
        events: every change from first_revision on, in order, as the store tells it in the end.
        first_revision: operations of an earlier revision are not looked at.

    Raises:
        Violation: which promise was broken.
    """
    account = Account(events)
    writers: dict[tuple[str, str], Operation] = {}
    for operation in operations:
        if operation.kind in (PUT, COMPARE_AND_PUT):
            writers[operation.key, operation.value] = operation
        if operation.outcome != OK or operation.revision < first_revision:
            continue
        if operation.kind == GET:
            _check_read(operation, account)
        elif operation.writes:
            _check_kept(operation, account)
    _check_writers(events, writers)


def _check_kept(operation: Operation, account: Account) -> None:
    there = account.by_revision.get(operation.revision, [])
    if operation.kind == DELETE:
        gone = [e for e in there if e.value is None and operation.covers(e.key)]
        kept = len(gone) == operation.deleted
    else:
        kept = any(e.key == operation.key and e.value == operation.value for e in there)
    if not kept:
        raise Violation(
            ACKNOWLEDGED,
            f"revision {operation.revision} has {there or 'no change'} instead of\n  {operation}",
        )


def _check_read(operation: Operation, account: Account) -> None:
    keys = {pair.key for pair in operation.pairs}
    if operation.end:
        keys |= {key for key in account.by_key if operation.covers(key)}
    else:
        keys.add(operation.key)
    shown = {pair.key: (pair.value, pair.mod_revision) for pair in operation.pairs}
    for key in keys:
        event = account.at(key, operation.revision)
        expected = (event.value, event.revision) if event else None
        if shown.get(key) != expected:
            raise Violation(
                READS,
                f"{key!r} was {expected or 'not there'} at revision {operation.revision}:\n"
                f"  {operation}",
            )


def _check_writers(events: Sequence[Event], writers: dict[tuple[str, str], Operation]) -> None:
    seen: dict[tuple[str, str], int] = {}
    for event in events:
        if event.value is None:
            continue
        what = event.key, event.value
        writer = writers.get(what)
        if writer is None:
            raise Violation(INVENTED, f"nobody wrote {event}")
        if writer.outcome == FAILED or not writer.succeeded:
            raise Violation(INVENTED, f"{event} was refused:\n  {writer}")
        if what in seen:
            raise Violation(ONCE, f"{event} was there at revision {seen[what]}:\n  {writer}")
        seen[what] = event.revision
