"""The raft log and its native thread, for Python: tests, benchmarks and tools."""

from collections.abc import Iterable
from os import PathLike
from typing import NamedTuple

class Entry(NamedTuple):
    """One entry; type is raft's (0: normal)."""

    index: int  # type: ignore[assignment]  # a tuple's own method is of no use here
    term: int
    data: bytes
    type: int = 0

class HardState(NamedTuple):
    """What raft must not forget: its term, its vote in it (0: none), what it knows committed."""

    term: int
    vote: int
    commit: int

class Status(NamedTuple):
    """Counters since open, and the journal's room in bytes."""

    appends: int
    settles: int
    journal_bytes: int
    journal_used_bytes: int
    replayed_entries: int
    discarded_records: int
    direct: bool

class Completion(NamedTuple):
    """Submissions up to sequence are durable; the last entry of them; 0 or -errno while full."""

    sequence: int
    index: int  # type: ignore[assignment]
    term: int
    error: int

class RaftLog:
    """A raft log in a directory of its own.

    Args:
        directory: created where only its last part is missing.
        journal_size_bytes: of a new journal; 0: 64 MiB.
        map_size_bytes: the most that data.mdb may grow to; 0: 16 GiB.
        buffered: write the journal through the page cache.

    Raises:
        BlockingIOError: the directory is in use.
        CorruptionError: what is stored contradicts itself.
        OSError: with errno ENOSPC where nothing was changed.
    """

    directory: str
    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        journal_size_bytes: int = 0,
        map_size_bytes: int = 0,
        buffered: bool = False,
    ) -> None: ...
    def close(self) -> None: ...
    def append(
        self,
        entries: Iterable[Entry] = (),
        hard_state: HardState | tuple[int, int, int] | None = None,
    ) -> None:
        """Make entries and hard state durable; replaces a conflicting suffix."""
    def read(self, first: int, last: int, max_bytes: int = ...) -> list[Entry]:
        """Return entries first to last, fewer if their data passes max_bytes.

        Raises:
            IndexError: not all of them are in the log.
        """
    @property
    def first_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def hard_state(self) -> HardState: ...
    @property
    def status(self) -> Status: ...
    def term(self, index: int) -> int:
        """Return the term of an entry, or of the last one compacted.

        Raises:
            IndexError: it is not in the log.
        """
    def compact(self, index: int) -> None:
        """Drop the entries up to and with index."""
    def reset(
        self,
        index: int,
        term: int,
        hard_state: HardState | tuple[int, int, int] | None = None,
    ) -> None:
        """Drop everything, to go on after a snapshot of that index and term; durable."""
    def settle(self) -> None:
        """Move what is in the journal to LMDB."""

class LogThread:
    """The native thread on a log, which must be stopped before the log is closed."""

    def __init__(self, log: RaftLog) -> None: ...
    def fileno(self) -> int:
        """Return the descriptor that is readable when the completion has changed."""
    def submit(
        self,
        entries: Iterable[Entry] = (),
        hard_state: HardState | tuple[int, int, int] | None = None,
    ) -> int:
        """Queue for the thread and return the submission's number."""
    def append(
        self,
        entries: Iterable[Entry] = (),
        hard_state: HardState | tuple[int, int, int] | None = None,
    ) -> int:
        """Make durable on this thread and return the submission's number.

        Raises:
            BlockingIOError: the log is busy; submit instead.
        """
    def completed(self) -> Completion: ...
    def compact(self, index: int) -> None:
        """Have the entries up to and with index dropped, soon and elsewhere.

        Raises:
            ValueError: index is past the last durable entry.
        """
    def reset(self, index: int, term: int) -> None:
        """Wait for what is queued, then drop everything as `RaftLog.reset` does."""
    def stop(self) -> None:
        """Make everything queued durable and end the thread."""

def crc32c(data: bytes | bytearray | memoryview, crc: int = 0, *, portable: bool = False) -> int:
    """Return the CRC-32C of data, continued from crc."""
