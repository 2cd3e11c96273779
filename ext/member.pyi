"""One store member: raft, its log on disk, the MVCC state and the hot gRPC methods.

A turn of the owner's loop is: let the RPC server read (its handler gathers writes and answers
reads), `turn`, then let the RPC server write. `turn` is also due when `log_fd` is readable, and
`collect` when `state_fd` is.
"""

from typing import Final, Protocol

PUT: Final = 1
DELETE: Final = 2
TXN: Final = 3
COMPACT: Final = 4
LEASE_GRANT: Final = 5
LEASE_REVOKE: Final = 6
ALARM: Final = 7

class Options(Protocol):
    """What a member is opened with; directories exist, sizes are in bytes."""

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

    def results(self) -> list[tuple[int, int, int, int, int, int]] | tuple[()]:
        """Take outcomes: (token, kind, error, revision, lease, ttl_s).

        Token 0 is an operation of somebody else that concerns a lease; error is 0 or the place of
        the row in `ETCD_ERRORS`, from 1.
        """

    def status(self) -> dict[str, int]:
        """Return raft's status: role, id, leader, term, vote, commit, applied, last_index, ..."""

    @property
    def revision(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...
    def leases(self) -> list[tuple[int, int]]:
        """Return (id, granted TTL in seconds) of every lease."""

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

    def counts(self) -> dict[str, int]:
        """Return counters of requests, entries, watch streams and watchers."""
