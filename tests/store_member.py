"""One member of the store's engine in this process, driven by hand: no server, no loop."""

import select
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimaran.errors import ETCD_ERRORS, etcd_error
from trimaran.ext import member as engine
from trimaran.ext.snapshot import PreparedState, StateBuilder, complete
from trimaran.wire import etcd_pb2 as pb

LEADER = 2
ERROR_NAMES = ("", *ETCD_ERRORS)
WAIT_S = 0.02


@dataclass(frozen=True)
class Options:
    """What a member is opened with."""

    log_directory: str
    state_directory: str
    cluster_id: int = 7
    member_id: int = 9
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    max_txn_ops: int = 128
    max_request_bytes: int = 1 << 20
    quota_bytes: int = 0
    hash_seed: int = 1
    seed: int = 2
    journal_size_bytes: int = 1 << 20
    map_size_bytes: int = 1 << 34
    max_pending_bytes: int = 1 << 30
    max_uncommitted_bytes: int = 1 << 26


class LocalMember:
    """A member alone in its group, with its data below a directory.

    Args:
        directory: made where it is missing.
    """

    options_class = Options

    def __init__(self, directory: Path, **changes: Any) -> None:
        for folder in ("log", "state"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        self.state = directory / "state"
        self.options = self.options_class(str(directory / "log"), str(self.state), **changes)
        self.member = engine.Member(self.options)
        self.token = 0
        self.member.campaign()
        self._turn_until(self._leads)

    def __enter__(self) -> "LocalMember":
        return self

    def __exit__(self, *_: object) -> None:
        self.member.close()

    def _leads(self) -> bool:
        status = self.member.status()
        return status["role"] == LEADER and status["applied"] == status["last_index"]

    def _turn_until(self, done: Any) -> None:
        with select.epoll() as poll:
            poll.register(self.member.log_fd, select.EPOLLIN)
            while True:
                again = self.member.turn()
                if done():
                    return
                if not again:
                    poll.poll(WAIT_S)

    def apply(self, kind: int, request: Any) -> int:
        """Put one operation through the log; returns the revision after it."""
        self.token += 1
        self.member.submit(kind, request.SerializeToString(), self.token)
        return self._outcome()

    def add_learner(self, learner: int) -> int:
        """Add a member that has no vote, with a row about it."""
        self.token += 1
        rows = [(b"member/%016x" % learner, b"learner")]
        self.member.propose_change([(engine.ADD_LEARNER, learner)], rows, self.token)
        return self._outcome()

    def _outcome(self) -> int:
        found: list[tuple[int, ...]] = []

        def done() -> bool:
            found.extend(r for r in self.member.results() if r[0] == self.token)
            return bool(found)

        self._turn_until(done)
        _, _, error, revision, *_ = found[0]
        if error:
            raise etcd_error(ERROR_NAMES[error])
        return revision

    def put(self, key: bytes, value: bytes = b"", lease: int = 0) -> int:
        return self.apply(engine.PUT, pb.PutRequest(key=key, value=value, lease=lease))

    def delete(self, key: bytes, end: bytes = b"") -> int:
        return self.apply(engine.DELETE, pb.DeleteRangeRequest(key=key, range_end=end))

    def fill(self, prefix: bytes, count: int) -> int:
        """Put many keys in one revision."""
        request = pb.TxnRequest()
        for number in range(count):
            put = pb.PutRequest(key=prefix + b"%d" % number)
            request.success.add().request_put.CopyFrom(put)
        return self.apply(engine.TXN, request)

    def compact(self, revision: int) -> int:
        """Compact and wait until that is done."""
        reply = self.apply(engine.COMPACT, pb.CompactionRequest(revision=revision))
        while self.member.turn():
            pass
        return reply

    def grant(self, lease: int, ttl_s: int) -> None:
        self.apply(engine.LEASE_GRANT, pb.LeaseGrantRequest(ID=lease, TTL=ttl_s))

    def commit(self) -> None:
        """Commit everything that is applied."""
        while self.member.pending_bytes > 0:
            self.member.seal()
            with select.epoll() as poll:
                poll.register(self.member.state_fd, select.EPOLLIN)
                poll.poll(5)
            self.member.collect()


@dataclass(frozen=True)
class JoinerOptions(Options):
    """A member that knows nothing of its group yet."""

    member_id: int = 10
    bootstrap: bytes | None = None


class Joiner:
    """A member that gets its state from another.

    Args:
        directory: made where it is missing.
    """

    def __init__(self, directory: Path) -> None:
        for folder in ("log", "state"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        self.options = JoinerOptions(str(directory / "log"), str(directory / "state"))
        self.member = engine.Member(self.options)
        self.member.turn()

    def receive(self, chunks: list[bytes], sender: int) -> None:
        """Take a snapshot from a leader and install it."""
        builder = StateBuilder(f"{self.options.state_directory}.new")
        for chunk in chunks:
            builder.write(chunk)
        index = builder.facts["index"]
        builder.finish()
        complete(self.options.state_directory, index)
        prepared = PreparedState(self.options)
        assert self.member.install(sender, 5, prepared)
        self.member.turn()
        assert self.member.revision == prepared.revision
        prepared.close()
