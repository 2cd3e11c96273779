"""The raft state machine, for Python: tests and simulation. See `trimaran/raft.h`."""

from collections.abc import Sequence
from typing import NamedTuple

from trimaran.ext.raftlog import Entry, HardState

ROLES: tuple[str, ...]

class Ready(NamedTuple):
    """What is to be done: append, apply, answer reads.

    Attributes:
        number: for append_done.
        must_append: hard_state or entries have to be made durable.
        committed: first and last index to apply.
        committed_entries: those entries; None where they are only in the log.
        read_states: (context, index) of each read that may be answered once index is applied.
    """

    number: int
    must_append: bool
    status_changed: bool
    hard_state: HardState | None
    entries: list[Entry]
    committed: tuple[int, int] | None
    committed_entries: list[Entry] | None
    read_states: list[tuple[int, int]]
    message_count: int

class Status(NamedTuple):
    """Where the member stands."""

    role: str
    id: int
    leader: int
    term: int
    vote: int
    commit: int
    applied: int
    stable: int
    last_index: int
    uncommitted_bytes: int

class Raft:
    """One member of a raft group.

    Args:
        id: of this member, not 0.
        voters: ids of all; only this one in this version.
        election_ticks: without a leader before an election, to twice this.
        heartbeat_ticks: between a leader's heartbeats.
        seed: of the election time-outs.
        max_uncommitted_bytes: proposals are refused above; 0: no limit.
        hard_state: as the log holds it.
        first_index, last_index, last_term: of the log.
        applied_index: entries up to it are in the state.

    Raises:
        ValueError: the configuration contradicts itself, or has several voters.
        CorruptionError: the log and the state contradict each other.
    """

    def __init__(
        self,
        id: int,
        voters: Sequence[int],
        *,
        election_ticks: int = 10,
        heartbeat_ticks: int = 1,
        seed: int = 0,
        max_uncommitted_bytes: int = 0,
        hard_state: HardState | tuple[int, int, int] = (0, 0, 0),
        first_index: int = 1,
        last_index: int = 0,
        last_term: int = 0,
        applied_index: int = 0,
    ) -> None: ...
    def tick(self) -> None: ...
    def campaign(self) -> None:
        """Stand for election without waiting for the time-out."""
    def step(self, *, sender: int, type: int = 0, term: int = 0) -> None:
        """Take a message of another member.

        Raises:
            KeyError: the sender is no member.
        """
    def propose(self, data: bytes | None = None) -> int:
        """Append an entry and return its index.

        Raises:
            BlockingIOError: this member is not the leader.
            OSError: with errno EBUSY where too much is uncommitted.
        """
    def read_index(self, context: int) -> None:
        """Ask for a read state with this context.

        Raises:
            BlockingIOError: this member is not the leader.
        """
    def has_ready(self) -> bool: ...
    def ready(self) -> Ready:
        """Take what is to be done; each thing is handed out once."""
    def append_done(self, number: int) -> None:
        """Tell that everything of the Readys up to number is durable."""
    def applied(self, index: int) -> None:
        """Tell that the committed entries up to index are applied."""
    @property
    def status(self) -> Status: ...
