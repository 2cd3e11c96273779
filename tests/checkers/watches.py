"""Watch streams: ordered, unique, atomic, complete, resumable, as etcd promises.

See "KV API guarantees" of etcd's manual, "Watch APIs".
"""

from collections.abc import Sequence

from checkers.history import Event, Violation, Watch, WatchSegment

ORDER = "watch order"
UNIQUE = "watch events are unique"
ATOMIC = "watch events are atomic"
COMPLETE = "watch completeness"
PROGRESS = "watch progress notifications"


def check(watch: Watch, events: Sequence[Event], last_revision: int = 0) -> None:
    """Check what a client saw of a range over all its resumptions.

    Args:
        watch: what was seen.
        events: the store's account: every change, in order.
        last_revision: the watcher must have seen all up to this one; 0: as far as it got.

    Raises:
        Violation: which promise was broken.
    """
    for number, segment in enumerate(watch.segments):
        name = f"watch {watch.name}, segment {number} on member {segment.member:x}"
        seen = _check_segment(name, segment)
        if number + 1 == len(watch.segments):
            seen = max(seen, last_revision)
        _check_complete(name, watch, segment, events, seen)


def _check_segment(name: str, segment: WatchSegment) -> int:
    """Check a segment by itself; returns the revision up to which it must be complete."""
    seen = segment.start - 1
    told = 0  # the revision of the last event
    keys: set[str] = set()
    finished = segment.start - 1  # revisions up to here are said to be complete
    for response in segment.responses:
        revisions = [event.revision for event in response.events]
        if revisions and revisions[-1] > response.revision:
            raise Violation(PROGRESS, f"{name}: {response} tells of later than its own revision")
        if revisions and revisions[0] <= finished:
            raise Violation(
                ATOMIC if revisions[0] == told else PROGRESS,
                f"{name}: {response.events[0]} comes after revision {finished} was complete",
            )
        for event in response.events:
            if event.revision < seen or event.revision < segment.start:
                raise Violation(ORDER, f"{name}: {event} comes after revision {seen}")
            if event.revision > seen:
                keys.clear()
            if event.key in keys:
                raise Violation(UNIQUE, f"{name}: {event} comes twice")
            keys.add(event.key)
            seen = told = event.revision
        # Unless fragments were asked for, a revision does not go on in a further message.
        finished = max(finished, seen if revisions else response.revision)
        seen = max(seen, finished)
    return seen


def _check_complete(
    name: str, watch: Watch, segment: WatchSegment, events: Sequence[Event], seen: int
) -> None:
    expected = [
        event
        for event in events
        if segment.start <= event.revision <= seen and watch.covers(event.key)
    ]
    got = [event for response in segment.responses for event in response.events]
    if got == expected:
        return
    for place in range(max(len(got), len(expected))):
        have = got[place] if place < len(got) else None
        wanted = expected[place] if place < len(expected) else None
        if have != wanted:
            raise Violation(COMPLETE, f"{name}: got {have} where the store has {wanted}")
