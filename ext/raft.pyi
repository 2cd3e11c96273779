"""The raft state machine, for Python: tests and simulation. See `trimaran/raft.h`."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from trimaran.ext.raftlog import Entry, HardState

ROLES: tuple[str, ...]
MESSAGE_TYPES: tuple[str, ...]
CHANGES: tuple[str, ...]
PROGRESS_STATES: tuple[str, ...]
NORMAL: int
CONFIGURATION: int

class Log(Protocol):
    """What raft asks of a log; RaftLog is one. Both raise IndexError past its ends."""

    def term(self, index: int) -> int: ...
    def read(self, first: int, last: int, max_bytes: int = ...) -> list[Entry]: ...

class Members(NamedTuple):
    """Who belongs to a group; outgoing and learners_next where the configuration is joint."""

    voters: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False

class Message(NamedTuple):
    """A message between members; type is one of MESSAGE_TYPES. See `trimaran_raft_message`."""

    type: str
    sender: int
    to: int
    term: int
    log_term: int = 0
    index: int = 0  # type: ignore[assignment]  # a tuple's own method is of no use here
    commit: int = 0
    context: int = 0
    reject: bool = False
    hint_index: int = 0
    hint_term: int = 0
    force: bool = False
    entries: list[Entry] = ...
    members: Members | None = None

class Ready(NamedTuple):
    """What is to be done: append, send, apply, answer reads.

    Attributes:
        number: for append_done.
        must_append: hard_state or entries have to be made durable.
        committed: first and last index to apply.
        committed_entries: those entries; None where they are only in the log.
        read_states: (context, index) of each read that may be answered once index is applied.
        messages: to be sent, also before the append is done.
        install: index and term of the snapshot to be installed, with hard_state.
    """

    number: int
    must_append: bool
    status_changed: bool
    hard_state: HardState | None
    entries: list[Entry]
    committed: tuple[int, int] | None
    committed_entries: list[Entry] | None
    read_states: list[tuple[int, int]]
    messages: list[Message]
    install: tuple[int, int] | None

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
    transferee: int
    pending_configuration: int
    is_voter: bool
    is_learner: bool
    is_joint: bool
    lease_valid: bool

class Progress(NamedTuple):
    """What a leader knows of a member; state is one of PROGRESS_STATES."""

    match: int
    next: int
    state: str
    active: bool
    is_learner: bool
    inflight_messages: int
    inflight_bytes: int
    snapshot_index: int

class Raft:
    """One member of a raft group.

    Args:
        id: of this member, not 0.
        voters: the members, where all are voters.
        members: the members, where not; as applied in the state.
        log: where terms and entries that left the memory are read.
        election_ticks: without a leader before an election, to twice this.
        heartbeat_ticks: between a leader's heartbeats.
        seed: of the election time-outs.
        pre_vote, check_quorum: as the flags of raft.h.
        lease_us: reads by lease; needs set_clock.
        max_uncommitted_bytes: proposals are refused above; 0: no limit.
        max_message_bytes, max_inflight_messages, max_inflight_bytes: to one follower; 0: defaults.
        hard_state: as the log holds it.
        first_index, last_index, last_term: of the log; the term only where log is not given.
        applied_index: entries up to it are in the state.

    Raises:
        ValueError: the configuration contradicts itself.
        CorruptionError: the log and the state contradict each other.
    """

    def __init__(
        self,
        id: int,
        voters: Sequence[int] = (),
        *,
        members: Members | None = None,
        log: Log | None = None,
        election_ticks: int = 10,
        heartbeat_ticks: int = 1,
        seed: int = 0,
        pre_vote: bool = True,
        check_quorum: bool = True,
        lease_us: int = 0,
        max_uncommitted_bytes: int = 0,
        max_message_bytes: int = 0,
        max_inflight_messages: int = 0,
        max_inflight_bytes: int = 0,
        hard_state: HardState | tuple[int, int, int] = (0, 0, 0),
        first_index: int = 1,
        last_index: int = 0,
        last_term: int = 0,
        applied_index: int = 0,
    ) -> None: ...
    def tick(self) -> None: ...
    def set_clock(self, now_us: int) -> None: ...
    def campaign(self) -> None:
        """Stand for election without waiting for the time-out."""
    def step(self, message: Message) -> None:
        """Take a message of another member.

        Raises:
            KeyError: it is an answer, and its sender is no member.
            ValueError: its fields contradict each other.
            OSError: with errno EPROTO where no correct member sends it.
        """
    def propose(self, data: bytes | None = None, *, type: int = ...) -> int:
        """Append an entry and return its index.

        Raises:
            BlockingIOError: this member is not the leader, or hands its office over.
            OSError: with errno EBUSY where too much is uncommitted, EINPROGRESS where a change of
                configuration is under way.
        """
    def change(self, changes: Sequence[tuple[str, int]]) -> None:
        """Apply a CONFIGURATION entry: (one of CHANGES, id) each; none leaves a joint one.

        Raises:
            ValueError: they contradict each other or the configuration.
        """
    @property
    def members(self) -> Members: ...
    def transfer(self, to: int) -> None:
        """Hand the office over.

        Raises:
            BlockingIOError: this member is not the leader.
            FileNotFoundError: there is no such voter.
        """
    def read_index(self, context: int) -> None:
        """Ask for a read state with this context.

        Raises:
            BlockingIOError: no leader is known.
        """
    def has_ready(self) -> bool: ...
    def ready(self) -> Ready:
        """Take what is to be done; each thing is handed out once."""
    def append_done(self, number: int) -> None:
        """Tell that everything of the Readys up to number is durable."""
    def applied(self, index: int) -> None:
        """Tell that the committed entries up to index are applied."""
    def snapshot_installed(self) -> None: ...
    def compacted(self, first_index: int) -> None: ...
    def unreachable(self, id: int) -> None: ...
    def gone(self, id: int) -> None: ...
    def snapshot_sent(self, to: int, index: int) -> None: ...
    def snapshot_failed(self, to: int) -> None: ...
    @property
    def status(self) -> Status: ...
    def progress(self, id: int) -> Progress:
        """Return what is known of a member.

        Raises:
            KeyError: this is not the leader, or there is no such member.
        """
