"""One store member: raft, its log on disk, the MVCC state and the hot gRPC methods.

A turn of the owner's loop is: let the RPC server and the peers' parsers read (writes are
gathered, reads answered or queued), `turn`, send what `messages` gives, let the RPC server write.
Where `turn` says so, another one is due once the messages are on their way: a leader's own flush
waits for that.
`turn` is also due when `log_fd` is readable, and `collect` when `state_fd` is.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from trimaran.ext.snapshot import Defragment, PreparedState, SnapshotReader

PUT: Final = 1
DELETE: Final = 2
TXN: Final = 3
COMPACT: Final = 4
LEASE_GRANT: Final = 5
LEASE_REVOKE: Final = 6
ALARM: Final = 7
ROWS: Final = 8
# These begin with 64 bits of the leader's term, and count in that term only.
LEASE_CHECKPOINT: Final = 9
LEASE_EXPIRE: Final = 10
# Kinds of result that are no operations.
READ: Final = 100
CHANGE: Final = 101

# Operations of a change of configuration.
ADD_VOTER: Final = 1
ADD_LEARNER: Final = 2
REMOVE: Final = 3

# Roles.
FOLLOWER: Final = 0
CANDIDATE: Final = 1
LEADER: Final = 2
PRE_CANDIDATE: Final = 3

class Options(Protocol):
    """What a member is opened with; directories exist, sizes are in bytes.

    These may be left away:

    - incarnation: counts the starts of the member on this data, from 1; never the same twice.
    - bootstrap: the entry that founds the cluster, written where the data is new; None in a member
      that joins one. Without the attribute, new data is a group of this member alone.
    - request_timeout_ticks: after which a request is answered "request timed out"; 0 is never.
    - lease_us: how long a leader may answer reads on its own; 0 is not at all. Needs `set_clock`.
    - pre_vote, max_message_bytes: as raft's.
    - manual_log: nothing is durable before `flush_log`, and no thread writes the log.
    """

    @property
    def log_directory(self) -> str: ...
    @property
    def state_directory(self) -> str: ...
    @property
    def journal_size_bytes(self) -> int: ...
    @property
    def map_size_bytes(self) -> int: ...
    @property
    def hash_seed(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def cluster_id(self) -> int: ...
    @property
    def member_id(self) -> int: ...
    @property
    def election_ticks(self) -> int: ...
    @property
    def heartbeat_ticks(self) -> int: ...
    @property
    def max_txn_ops(self) -> int: ...
    @property
    def max_request_bytes(self) -> int: ...
    @property
    def quota_bytes(self) -> int: ...
    @property
    def max_pending_bytes(self) -> int: ...
    @property
    def max_uncommitted_bytes(self) -> int: ...

class Member:
    """A member opened on its directories; it holds them until `close`.

    Raises:
        ConfigError: a directory cannot be used, or another process has it.
        CorruptionError: what is stored contradicts its checksums or itself.
    """

    def __init__(self, options: Options) -> None: ...
    def close(self) -> None:
        """Write everything to disk and let go of it. May be repeated."""

    def abandon(self) -> None:
        """Let go of everything as a crash would: what is not durable yet is lost."""

    @property
    def member_id(self) -> int: ...
    @property
    def handler(self) -> object:
        """The capsule "trimaran.rpc_handler" for an RpcServer, which must be closed first."""

    @property
    def log_fd(self) -> int: ...
    @property
    def state_fd(self) -> int: ...
    def turn(self) -> bool:
        """Do all that can be done without waiting; True where another turn would find work."""

    def tick(self) -> None:
        """Let one tick of raft's time pass."""

    def campaign(self) -> None:
        """Stand for election now."""

    def submit(self, kind: int, request: bytes, token: int) -> None:
        """Propose an operation with the next turn; its outcome comes from `results`."""

    def read(self, token: int) -> None:
        """Ask for a result of kind READ once all that was acknowledged before now is applied."""

    def range(self, request: bytes) -> bytes:
        """Answer a RangeRequest from what is applied here.

        Raises:
            StoreError: it cannot be answered.
            ValueError: it is no RangeRequest.
        """

    def messages(self) -> list[tuple[int, bytes]]:
        """Take what is to be sent to other members: frames in order, one piece for each."""

    def snapshot_requests(self) -> list[int]:
        """Take the members to stream a snapshot to, each until `snapshot_sent` or `_failed`."""

    def snapshot_sent(self, to: int, index: int) -> None:
        """A member has the whole snapshot, which ends with the entry of that index."""

    def snapshot_failed(self, to: int) -> None:
        """A member has not got it; it will be asked for again."""

    def install(self, sender: int, term: int, prepared: PreparedState) -> bool:
        """Put a state that a leader has sent in the place of this member's own.

        Args:
            sender: the leader.
            term: its term when it began to send.
            prepared: the state; holds the old one afterwards, and is to be closed then, which
                takes long.

        Returns:
            False where it is no news. On a full disk True, and `is_installing` until there is room.
        """

    @property
    def is_installing(self) -> bool: ...
    def unreachable(self, peer_id: int, gone: bool = False) -> None:
        """What was sent to a member lately may be lost.

        Args:
            peer_id: the member's.
            gone: its process has ended, as far as its machine tells; a hint.
        """

    def set_clock(self, now_us: int) -> None:
        """Tell the time of a clock that never goes back, for the leader's lease."""

    def propose_change(
        self,
        changes: Sequence[tuple[int, int]],
        rows: Sequence[tuple[bytes, bytes | None]],
        token: int,
    ) -> None:
        """Propose a change of the members; its outcome is a result of kind CHANGE.

        Args:
            changes: (op, member id); more than one are made together, by joint consensus.
            rows: set with the change where it takes effect; None removes a row.
            token: not 0.

        Raises:
            ValueError: a change or row is none that there may be.
        """

    def members(self) -> dict[str, list[int]]:
        """Return the configuration as applied: voters, outgoing, learners, learners_next."""

    def rows(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Return the applied rows that describe the cluster, by key, on disk already or not."""

    @property
    def rows_version(self) -> int:
        """Grows whenever a row or the configuration changes."""

    @property
    def is_leader(self) -> bool: ...
    def transfer(self, to: int) -> None:
        """Hand the leadership over to a voter.

        Raises:
            StoreError: this member does not lead, or that one is no voter.
        """

    def raft_progress(self, peer_id: int) -> dict[str, int] | None:
        """Return what a leader knows of a member: match, next, state, active, is_learner, ...

        None where this is not the leader, or that is no member.
        """

    @property
    def log_queue(self) -> int:
        """Submissions to a manual log that are not durable yet."""

    def flush_log(self, count: int) -> None:
        """Make the oldest submissions to a manual log durable, at most so many.

        Raises:
            OSError: the log is full.
        """

    def commit(self) -> bool:
        """Commit what is applied and wait for it; False where nothing was."""

    def results(self) -> list[tuple[int, int, int, int, int, int]] | tuple[()]:
        """Take outcomes: (token, kind, error, revision, lease, ttl_s).

        Token 0 is an operation of somebody else that concerns a lease; error is 0 or the place of
        the row in `ETCD_ERRORS`, from 1.
        """

    def status(self) -> dict[str, int]:
        """Return raft's status: role, id, leader, term, vote, commit, applied, last_index, ..."""

    @property
    def status_version(self) -> int:
        """Grows whenever the role, the leader or the term changes."""

    @property
    def revision(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...
    def leases(self) -> list[tuple[int, int]]:
        """Return (id, granted TTL in seconds) of every lease."""

    def checkpoints(self) -> list[tuple[int, int]]:
        """Return (id, remaining seconds) of the leases whose leader had that written down."""

    def lease_keys(self, lease_id: int) -> list[bytes]:
        """Return the keys attached to a lease, sorted. KeyError where there is no such lease."""

    def alarms(self) -> list[tuple[int, int]]:
        """Return (member id, kind) of every raised alarm."""

    def take_no_space(self) -> bool:
        """Return True once after a write was refused because of the quota."""

    def seal(self) -> bool:
        """Begin to commit what is applied; False where nothing is, or a commit is under way."""

    def collect(self) -> bool:
        """Take note of an ended commit."""

    @property
    def pending_bytes(self) -> int:
        """Bytes applied and not yet committed to the state store."""

    @property
    def persisted_index(self) -> int:
        """The last log index that the committed state holds."""

    def sizes(self) -> tuple[int, int]:
        """Return the state file's used size and the size of what it holds, in bytes."""

    def disk_error(self) -> int:
        """Return the errno that writes wait for (ENOSPC), 0 where all is well."""

    def log_range(self) -> tuple[int, int]:
        """Return the first and last index of the raft log."""

    def compact_log(self, index: int) -> None:
        """Drop log entries up to index, soon, on a thread of the log."""

    def progress(self) -> None:
        """Notify quiet watchers of the revision they have reached."""

    def snapshot(self) -> SnapshotReader:
        """Take a snapshot of what the state has committed."""

    def defragment(self) -> Defragment:
        """Begin a compact copy of the state.

        Raises:
            OSError: there is no room for it.
        """

    def counts(self) -> dict[str, int]:
        """Return counters of requests, entries, watch streams and watchers."""

def encode_rows(rows: Sequence[tuple[bytes, bytes | None]]) -> bytes:
    """Return rows as an operation of kind ROWS and configuration entries carry them."""
