"""What is recorded of clients: operations, watch streams, leases and locks.

Times are integers of any one clock that all clients share (ticks, or nanoseconds). Values written
should be unique, so that a value read tells the write it comes from.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

GET, PUT, DELETE, COMPARE_AND_PUT = "get", "put", "delete", "compare_and_put"
# FAILED: refused, has certainly not happened and never will. UNKNOWN: may have happened, or may
# still happen at any later time.
OK, FAILED, UNKNOWN = "ok", "failed", "unknown"


class Violation(AssertionError):
    """A promise was broken.

    Attributes:
        checker: which promise.
    """

    def __init__(self, checker: str, text: str) -> None:
        super().__init__(f"{checker}: {text}")
        self.checker = checker


@dataclass(slots=True, frozen=True)
class Pair:
    """A key as a response shows it."""

    key: str
    value: str
    mod_revision: int


@dataclass(slots=True)
class Operation:
    """One request of one client, and what came of it.

    Attributes:
        client: who asked; for the explanation only.
        kind: GET, PUT, DELETE or COMPARE_AND_PUT.
        key, end: the range, as etcd's key and range_end ("" one key, "\\0" all from key on).
        value: what PUT and COMPARE_AND_PUT write.
        compare_revision: COMPARE_AND_PUT writes only where the key's mod_revision is this one
            (0: the key is not there).
        serializable: a GET that may be answered with an older state.
        call, end_time: when it was asked, and answered.
        outcome: OK, FAILED or UNKNOWN.
        revision: the response's header.
        pairs: what a GET returned.
        deleted: how many keys a DELETE removed.
        succeeded: whether a COMPARE_AND_PUT wrote.
    """

    client: int
    kind: str
    key: str
    call: int
    end: str = ""
    value: str = ""
    compare_revision: int = -1
    serializable: bool = False
    end_time: int = -1
    outcome: str = UNKNOWN
    revision: int = 0
    pairs: tuple[Pair, ...] = ()
    deleted: int = 0
    succeeded: bool = True
    note: str = ""  # an error's text, a member: for the explanation only

    @property
    def writes(self) -> bool:
        """Whether it took a revision, as far as its response tells."""
        if self.kind == PUT:
            return True
        if self.kind == DELETE:
            return self.deleted > 0
        return self.kind == COMPARE_AND_PUT and self.succeeded

    def covers(self, key: str) -> bool:
        """Whether a key is in the operation's range."""
        if not self.end:
            return key == self.key
        return key >= self.key and (self.end == "\0" or key < self.end)

    def __str__(self) -> str:
        what = {
            GET: f"get {self.key!r}",
            PUT: f"put {self.key!r} = {self.value!r}",
            DELETE: f"delete {self.key!r}",
            COMPARE_AND_PUT: f"put {self.key!r} = {self.value!r} "
            f"if its mod_revision is {self.compare_revision}",
        }[self.kind]
        if self.end:
            what += f" to {self.end!r}"
        if self.outcome != OK:
            answer = self.outcome
        elif self.kind == GET:
            shown = ", ".join(f"{p.key!r}={p.value!r}@{p.mod_revision}" for p in self.pairs)
            answer = f"[{shown}] at revision {self.revision}"
        elif self.kind == DELETE:
            answer = f"{self.deleted} deleted at revision {self.revision}"
        else:
            answer = f"{'done' if self.succeeded else 'not done'} at revision {self.revision}"
        until = self.end_time if self.end_time >= 0 else "..."
        note = f" ({self.note})" if self.note else ""
        return f"[{self.call}..{until}] client {self.client}: {what} -> {answer}{note}"


@dataclass(slots=True, frozen=True)
class Event:
    """One change of a key; value None is a deletion."""

    revision: int
    key: str
    value: str | None


@dataclass(slots=True)
class WatchResponse:
    """One message of a watch stream.

    Attributes:
        events: in the order of the message; none is a progress notification.
        revision: the response's header.
    """

    events: tuple[Event, ...]
    revision: int


@dataclass(slots=True)
class WatchSegment:
    """One watcher on one stream, from its creation until it is cut.

    Attributes:
        start: the first revision wanted.
        member: who served it.
        compacted: the compact revision it was cancelled with; 0: it was not.
    """

    start: int
    member: int = 0
    responses: list[WatchResponse] = field(default_factory=list)
    compacted: int = 0


@dataclass(slots=True)
class Watch:
    """A range watched by a client that resumes after what it has seen."""

    name: str
    key: str
    end: str = ""
    segments: list[WatchSegment] = field(default_factory=list)

    def covers(self, key: str) -> bool:
        """Whether a key is watched."""
        return Operation(0, GET, self.key, 0, self.end).covers(key)

    def next_revision(self) -> int:
        """Where to resume: after the last event or progress notification seen."""
        for segment in reversed(self.segments):
            if segment.responses:
                last = segment.responses[-1]
                if last.events:
                    return last.events[-1].revision + 1
                return max(last.revision + 1, segment.start)
            if segment.start:
                return segment.start
        return 0


def write_operations(file: TextIO, operations: Iterable[Operation]) -> None:
    """Write operations as one line of JSON each."""
    for operation in operations:
        row = {name: getattr(operation, name) for name in Operation.__slots__}
        row["pairs"] = [[pair.key, pair.value, pair.mod_revision] for pair in operation.pairs]
        file.write(json.dumps(row) + "\n")


def read_operations(path: Path) -> Iterator[Operation]:
    """Read what `write_operations` wrote."""
    with path.open() as file:
        for line in file:
            row = json.loads(line)
            row["pairs"] = tuple(Pair(*pair) for pair in row["pairs"])
            yield Operation(**row)
