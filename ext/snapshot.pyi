"""A member's state as a whole: streamed out, built anew from a stream, hashed, copied compactly.

A stream is a sequence of chunks, each with a checksum; `snapshot.h` has the format. Objects may be
used on any thread, by one at a time, except where it says "on the loop".
"""

from os import PathLike
from typing import Final, Protocol

CHUNK_BYTES: Final[int]

class StateOptions(Protocol):
    """The part of `member.Options` that concerns the state."""

    @property
    def state_directory(self) -> str: ...
    @property
    def map_size_bytes(self) -> int: ...
    @property
    def hash_seed(self) -> int: ...
    @property
    def cluster_id(self) -> int: ...
    @property
    def member_id(self) -> int: ...

class SnapshotReader:
    """A read transaction on what a state has committed, from `Member.snapshot` (on the loop).

    Args:
        directory: of a state that nobody else has open.

    Raises:
        OSError: there is no state there, or no memory for it.
        CorruptionError: it cannot be read; so does every method.
    """

    def __init__(self, directory: str | PathLike[str] | None = None) -> None: ...
    def close(self) -> None: ...
    @property
    def facts(self) -> dict[str, int]:
        """The stream's header: version, index, term, cluster_id, member_id, revision,
        compact_revision, rows and changes (how many there are)."""
    @property
    def index(self) -> int:
        """Of the last log entry it contains."""
    @property
    def term(self) -> int: ...
    @property
    def revision(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...
    def row(self, key: bytes) -> bytes | None:
        """Return a row of the small table."""
    def measure(self) -> tuple[int, int]:
        """Return size in bytes and number of chunks of the stream; reads through everything."""
    def read(self, number: int) -> bytes:
        """Return a chunk; those out of order take longer.

        Raises:
            IndexError: past the last.
        """
    def hash_keys(self, revision: int) -> int:
        """Return etcd's hash of the keys up to a revision.

        Raises:
            ValueError: it is before the compact revision or past the snapshot's.
        """
    def hash(self) -> int:
        """Return a checksum of everything."""

class StateBuilder:
    """A state being built in a directory of its own, which is made anew.

    Raises:
        OSError: the disk is full or refuses; so does every method. Nothing of it is good then.
    """

    directory: str
    def __init__(self, directory: str | PathLike[str], *, map_size_bytes: int = ...) -> None: ...
    def close(self) -> None: ...
    @property
    def next_chunk(self) -> int:
        """The number of the chunk that `write` expects."""
    @property
    def facts(self) -> dict[str, int]:
        """The stream's header, zeroes before the first chunk."""
    def write(self, chunk: bytes | memoryview) -> None:
        """Take the next chunk.

        Raises:
            CorruptionError: it is damaged or not the next; the text says what is wrong.
        """
    def set(self, key: bytes, value: bytes | None) -> None:
        """Set a row of the small table, or remove it."""
    def remove(self, prefix: bytes) -> None:
        """Remove all rows whose key starts with prefix."""
    def set_applied(self, index: int, term: int) -> None:
        """Set the index and term of the last log entry contained."""
    def finish(self) -> None:
        """Flush everything and close.

        Raises:
            CorruptionError: the stream has not come to its end.
        """

def complete(state_directory: str | PathLike[str], index: int) -> None:
    """Say, durably, that what is built in `state_directory`.new is whole and contains index."""

def recover(state_directory: str | PathLike[str], log_marker: int) -> None:
    """Finish or undo, before the state is opened, what a crash interrupted.

    Args:
        state_directory: of the state.
        log_marker: the index that the log begins after.
    """

class PreparedState:
    """A complete `state_directory`.new, opened and indexed, for `Member.install`.

    Raises:
        OSError: it is not there or not complete.
        CorruptionError: it is not what it says.
    """

    directory: str
    index: int
    term: int
    revision: int
    members: bytes | None
    def __init__(self, options: StateOptions) -> None: ...
    def close(self) -> None:
        """Let go of the state that it holds, after an install the replaced one."""

class Defragment:
    """A compact copy of a running member's state, from `Member.defragment`.

    `copy`, then `renew` (on the loop) and `copy` as often as is useful, then `hold` until it
    returns True, `renew`, `copy`, `finish`, `swap` (on the loop); in any case `end` (on the loop)
    and `clean` in the end.

    Raises:
        OSError: the disk is full or refuses, or a snapshot has replaced the state (ECANCELED);
            so does every method.
    """

    def copy(self) -> None:
        """Copy what is committed, or what has been since the last copy."""
    def renew(self) -> None:
        """Let the next copy begin where the last one ended."""
    def hold(self) -> bool:
        """Keep the state from committing; True once no commit is under way. On the loop."""
    def finish(self) -> None:
        """Flush the copy."""
    def swap(self) -> None:
        """Put the copy in the place of the state. On the loop."""
    def end(self) -> None:
        """Let the state commit again. On the loop. May be repeated."""
    def clean(self) -> None:
        """Remove what is left over."""
