"""Leases of a cluster: the leader keeps their clock, every other member asks it.

What the leader decides by its clock (that a lease has expired, how much time one has left) goes
through the log with the leader's term, and is void in another term: a leader that was paused or cut
off must not act on a clock that nobody follows any more. Remaining times are recorded in the state
now and then, so that a change of leaders does not start every lease anew.
"""

import struct
from collections.abc import Callable
from typing import Final, Protocol

from trimaran.errors import StoreError
from trimaran.ext import member as engine
from trimaran.store.lessor import Lessor
from trimaran.store.peer_calls import Done, PeerMethod
from trimaran.wire import etcd_pb2 as pb

LEASES_A_CHECK: Final = 500
CHECKPOINTS_A_CHECK: Final = 1000
CHECK_INTERVAL_S: Final = 0.5

_ID: Final = struct.Struct("<q")
_TIMES: Final = struct.Struct("<qq")
_TERM: Final = struct.Struct("<Q")

ProposeDone = Callable[[int | StoreError], None]
ReadDone = Callable[[StoreError | None], None]
RenewDone = Callable[[int | StoreError], None]
TimesDone = Callable[[tuple[int, int] | StoreError | None], None]


class Ports(Protocol):
    """What the keeper needs of the node that it serves."""

    now_s: float

    @property
    def is_leader(self) -> bool: ...
    @property
    def term(self) -> int: ...
    def propose(self, kind: int, request: bytes, done: ProposeDone) -> None: ...
    def read(self, done: ReadDone) -> None: ...
    def call_leader(self, method: PeerMethod, payload: bytes, done: Done) -> None: ...


class LeaseKeeper:
    """The leases of one member.

    Args:
        ports: the node.
        extend_s: a new leader's grace for clients to find it, in seconds.
    """

    def __init__(self, ports: Ports, extend_s: float) -> None:
        self.lessor = Lessor()
        self._ports = ports
        self._extend_s = extend_s
        self._next_check_s = 0.0

    def lead(self, leases: list[tuple[int, int, int]], now_s: float) -> None:
        """This member leads from now on; leases are as the state has them."""
        self.lessor.restore(leases, now_s, self._extend_s)

    def reload(self, leases: list[tuple[int, int, int]], now_s: float) -> None:
        """The state was replaced as a whole."""
        self.lessor.restore(leases, now_s, self._extend_s)

    def applied(self, kind: int, lease: int, ttl_s: int, now_s: float) -> None:
        """An operation on a lease was applied, whoever proposed it."""
        if kind == engine.LEASE_GRANT:
            self.lessor.grant(lease, ttl_s, now_s)
        elif kind in (engine.LEASE_REVOKE, engine.LEASE_EXPIRE) and lease != 0:
            self.lessor.revoke(lease)

    def check(self, now_s: float) -> None:
        """Let expired leases go and record remaining times; only a leader does."""
        if not self._ports.is_leader or now_s < self._next_check_s:
            return
        self._next_check_s = now_s + CHECK_INTERVAL_S
        for lease_id in self.lessor.expired(now_s, LEASES_A_CHECK):
            self._expire(lease_id)
        due = self.lessor.checkpoints(now_s)[:CHECKPOINTS_A_CHECK]
        if due:
            self._record(due, lambda outcome: None)

    def renew(self, lease_id: int, done: RenewDone) -> None:
        """Start a lease's time anew; done gets its time to live in seconds, 0 where it is gone."""
        if self._ports.is_leader:
            self._renew_here(lease_id, done)
            return

        def answered(outcome: bytes | StoreError) -> None:
            done(outcome if isinstance(outcome, StoreError) else _ID.unpack(outcome)[0])

        self._ports.call_leader(PeerMethod.LEASE_RENEW, _ID.pack(lease_id), answered)

    def time_to_live(self, lease_id: int, done: TimesDone) -> None:
        """Ask for a lease's (remaining, granted) whole seconds; done gets None where it is gone."""
        if self._ports.is_leader:
            self._time_here(lease_id, done)
            return

        def answered(outcome: bytes | StoreError) -> None:
            if isinstance(outcome, StoreError):
                done(outcome)
            else:
                remaining_s, granted_s = _TIMES.unpack(outcome)
                done((remaining_s, granted_s) if granted_s > 0 else None)

        self._ports.call_leader(PeerMethod.LEASE_TIME_TO_LIVE, _ID.pack(lease_id), answered)

    def serve_renew(self, payload: bytes, answer: Callable[[bytes | StoreError], None]) -> None:
        """Answer a peer's LEASE_RENEW."""

        def renewed(outcome: int | StoreError) -> None:
            answer(outcome if isinstance(outcome, StoreError) else _ID.pack(outcome))

        self._renew_here(_ID.unpack(payload)[0], renewed)

    def serve_time_to_live(
        self, payload: bytes, answer: Callable[[bytes | StoreError], None]
    ) -> None:
        """Answer a peer's LEASE_TIME_TO_LIVE."""

        def told(outcome: tuple[int, int] | StoreError | None) -> None:
            answer(
                outcome if isinstance(outcome, StoreError) else _TIMES.pack(*(outcome or (-1, 0)))
            )

        self._time_here(_ID.unpack(payload)[0], told)

    def _renew_here(self, lease_id: int, done: RenewDone) -> None:
        """Renew as leader: only after the others have confirmed that it leads still.

        A leader that is deposed meanwhile gets its read confirmed all the same, by the next one,
        whose clock is the one to be set: the renewal goes there.
        """
        term = self._ports.term

        def confirmed(error: StoreError | None) -> None:
            if error is not None:
                done(error)
                return
            if not self._leads_in(term):
                self.renew(lease_id, done)
                return
            now_s = self._ports.now_s
            lower = self.lessor.is_recorded_lower(lease_id)
            ttl_s = self.lessor.renew(lease_id, now_s)
            if ttl_s == 0 or not lower:
                done(ttl_s)
                return
            self._record(
                [(lease_id, ttl_s)],
                lambda outcome: done(outcome if isinstance(outcome, StoreError) else ttl_s),
            )

        self._ports.read(confirmed)

    def _time_here(self, lease_id: int, done: TimesDone) -> None:
        term = self._ports.term

        def confirmed(error: StoreError | None) -> None:
            if error is not None:
                done(error)
            elif not self._leads_in(term):
                self.time_to_live(lease_id, done)
            else:
                done(self.lessor.time_to_live(lease_id, self._ports.now_s))

        self._ports.read(confirmed)

    def _leads_in(self, term: int) -> bool:
        """Whether this member has led ever since it did in that term."""
        return self._ports.is_leader and self._ports.term == term

    def _expire(self, lease_id: int) -> None:
        def revoked(outcome: int | StoreError) -> None:
            # An expiry of an earlier term is void and leaves the lease to the present leader.
            self.lessor.retry(lease_id, self._ports.now_s)

        request = pb.LeaseRevokeRequest(ID=lease_id).SerializeToString()
        body = _TERM.pack(self._ports.term) + request
        self._ports.propose(engine.LEASE_EXPIRE, body, revoked)

    def _record(self, rows: list[tuple[int, int]], done: ProposeDone) -> None:
        request = pb.LeaseCheckpointRequest()
        for lease_id, remaining_s in rows:
            request.checkpoints.add(ID=lease_id, remaining_TTL=remaining_s)
            # A shortening counts from now on, so that a renewal in between is recorded after it.
            self.lessor.record(lease_id, remaining_s, only_lower=True)

        def recorded(outcome: int | StoreError) -> None:
            if not isinstance(outcome, StoreError):
                for lease_id, remaining_s in rows:
                    self.lessor.record(lease_id, remaining_s)
            done(outcome)

        body = _TERM.pack(self._ports.term) + request.SerializeToString()
        self._ports.propose(engine.LEASE_CHECKPOINT, body, recorded)
