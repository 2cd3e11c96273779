"""One member of the store as a pure driver: inputs are calls, outputs are frames and callbacks.

The engine (`trimaran.ext.member`) holds raft, the log, the state and the hot methods; the node adds
what is decided rarely: leases, membership, alarms, calls between members. It has no clock, no
socket and no loop of its own: a daemon drives it on a real network, the simulator on a fake one.
Every `done` is called exactly once, from within a later call of this class.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from trimaran.errors import ETCD_ERRORS, StatusCode, StoreError, etcd_error
from trimaran.ext import member as engine
from trimaran.ext import peer as peer_frames
from trimaran.store.corruption import CorruptionKeeper, HashDone
from trimaran.store.lease_keeper import LeaseKeeper
from trimaran.store.logpolicy import LogHold, log_compaction_target
from trimaran.store.member_keeper import MemberKeeper
from trimaran.store.peer_calls import (
    REQUEST,
    RESPONSE,
    Done,
    PeerCalls,
    PeerMethod,
    PeerRequest,
    encode_answer,
    parse_request,
)
from trimaran.wire import etcd_pb2 as pb

LEADER: Final = 2
_ERROR_NAMES: Final = ("", *ETCD_ERRORS)

ProposeDone = Callable[[int | StoreError], None]
ReadDone = Callable[[StoreError | None], None]


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What a node is told of itself.

    Attributes:
        member_id, cluster_id: as derived or given by the cluster.
        name: of the member.
        client_urls: what it advertises to clients.
        version: of this program, "3.6.0".
        election_timeout_s: of the raft group.
        request_timeout_s: after which an unanswered request of a client fails.
        snapshot_count: entries to gather before the log is cut.
        catch_up_entries: entries kept for members that lag.
        strict_reconfig_check: whether changes that endanger the quorum are refused.
        max_learners: how many members may be learners at a time.
        hash_interval_s: between comparisons of the members' data, 0 for none.
        peer_urls: what it advertises to other members.
        first_call: number of the first call to a peer; differs from start to start.
    """

    member_id: int
    cluster_id: int
    name: str
    client_urls: tuple[str, ...]
    version: str
    election_timeout_s: float
    request_timeout_s: float
    snapshot_count: int
    catch_up_entries: int
    strict_reconfig_check: bool = True
    max_learners: int = 1
    hash_interval_s: float = 0.0
    peer_urls: tuple[str, ...] = ()
    first_call: int = 1


class Node:
    """A member at work.

    Args:
        member: the engine, open.
        settings: who it is.
        now_s: the time, on a steady clock that every call uses.

    Attributes:
        now_s: the time as last told.
        no_space: called when a write was refused for want of space, before the alarm is raised.
        hash_state: hashes the data up to a revision that is applied, without holding up the node.
        frames: calls and answers that `take_frames` would give.
        leader_changed: called with the leader's id, 0 for none, when it is another than before.
    """

    def __init__(self, member: engine.Member, settings: NodeSettings, now_s: float) -> None:
        self.member = member
        self.settings = settings
        self.now_s = now_s
        self.no_space: Callable[[], None] = lambda: None
        self.hash_state: Callable[[int, HashDone], None] = _hash_nothing
        self.leader_changed: Callable[[int], None] = lambda leader: None
        self.leases = LeaseKeeper(self, settings.election_timeout_s)
        self.members = MemberKeeper(self, settings)
        self.corruption = CorruptionKeeper(self, settings.member_id, settings.hash_interval_s)
        self._calls = PeerCalls(settings.first_call)
        self._proposals: dict[int, ProposeDone] = {}
        self._reads: dict[int, ReadDone] = {}
        self._transfers: list[tuple[int, float, ReadDone]] = []
        self._token = 0
        self.frames: list[tuple[int, bytes]] = []
        self._parsers: dict[int, peer_frames.PeerParser] = {}
        self._status = member.status()
        self._status_version = member.status_version
        self._log_cut = 0
        self._log_hold = LogHold()
        self._raising_no_space = False
        self.leases.reload(self._leases(), now_s)

    # What time and the network bring.

    def tick(self, now_s: float) -> None:
        """One heartbeat interval has passed."""
        self.now_s = now_s
        self.member.set_clock(int(now_s * 1e6))
        self.member.tick()
        self._calls.expire(now_s)
        self._check_transfers()
        self.leases.check(now_s)
        self.members.check(now_s)
        self.corruption.check(now_s)
        if self.member.take_no_space():
            self.raise_no_space()

    def receive(self, peer: int, data: bytes, now_s: float) -> None:
        """Bytes came from a peer, in pieces of any size.

        Raises:
            ProtocolError: they are no frames; the connection has to be closed.
        """
        self._take(peer, self._parser(peer, now_s).feed(data))

    def receive_from(self, peer: int, wire: peer_frames.PeerWire, now_s: float) -> int:
        """Bytes of a peer wait at its socket.

        Returns:
            how many there were, 0 where the peer sends no more.

        Raises:
            ProtocolError: they are no frames; the connection has to be closed.
            OSError: the connection is lost, or none came after all (BlockingIOError).
        """
        frames: list[tuple[int, bytes]] = []
        count = self._parser(peer, now_s).receive(wire, frames)
        if frames:
            self._take(peer, frames)
        return count

    def opened(self, peer: int, now_s: float) -> None:
        """A peer has connected to this member: its stream of bytes begins anew."""
        self._parsers.pop(peer, None)

    def connected(self, peer: int, now_s: float) -> None:
        """What is sent to a peer arrives again."""
        self.members.connected(peer, now_s)

    def lost(self, peer: int, now_s: float) -> None:
        """The connection to a peer is gone; what was sent last may not have arrived."""
        self.now_s = now_s
        self.members.lost(peer)
        self._calls.lost(peer)
        self.member.unreachable(peer)

    def gone(self, peer: int, now_s: float) -> None:
        """A peer's machine answers that nobody listens there any more: its process has ended."""
        self.now_s = now_s
        self.member.unreachable(peer, gone=True)

    def turn(self, now_s: float) -> bool:
        """Do all that can be done without waiting; True where another turn would find work."""
        self.now_s = now_s
        # A leader that was stopped must not answer reads by a lease that ended meanwhile.
        self.member.set_clock(int(now_s * 1e6))
        more = self.member.turn()
        self.turned(now_s)
        return more

    def turned(self, now_s: float) -> None:
        """The member has had a turn: tell who waits for what came of it."""
        self.now_s = now_s
        results = self.member.results()
        if results:
            self._deliver(results)
        self._notice_status()

    def outgoing(self) -> list[tuple[int, bytes]]:
        """Take what is to be sent: (member id, whole frames)."""
        return [*self.member.messages(), *self.take_frames()]

    def take_frames(self) -> list[tuple[int, bytes]]:
        """Take calls and answers to peers, which do not come from the engine."""
        frames, self.frames = self.frames, []
        return frames

    def persisted(self) -> None:
        """The state was committed: drop log entries that nobody needs any more.

        To be asked again where the disk is full: nothing is committed then until there is room.
        """
        target = log_compaction_target(
            first_index=self.member.log_range()[0],
            persisted_index=self.member.persisted_index,
            snapshot_count=self.settings.snapshot_count,
            catch_up_entries=self.settings.catch_up_entries,
        )
        holds = self._holds_log() and self.member.disk_error() == 0
        if holds or target is None:
            return
        if target > self._log_cut:
            self._log_cut = target
            self.member.compact_log(target)

    def _holds_log(self) -> bool:
        """Whether a member takes over the state, and needs the log from there on."""
        progress = {}
        if self.member.is_leader:
            progress = {
                peer: self.member.raft_progress(peer) if self.members.reaches(peer) else None
                for peer in self.others()
            }
        return self._log_hold.update(progress, self.member.persisted_index, self.now_s)

    def replaced(self, now_s: float) -> None:
        """The state was replaced by a snapshot."""
        self.leases.reload(self._leases(), now_s)

    def stop(self) -> None:
        """Fail everything that waits: the member stops."""
        self._calls.stop()
        self.members.stop()
        waiting = [*self._proposals.values()]
        reads = [*self._reads.values(), *(done for _, _, done in self._transfers)]
        self._proposals.clear()
        self._reads.clear()
        self._transfers.clear()
        for proposed in waiting:
            proposed(etcd_error("STOPPED"))
        for read in reads:
            read(etcd_error("STOPPED"))

    # What clients ask for.

    @property
    def is_leader(self) -> bool:
        """Whether this member leads, as far as it knows."""
        return self._status["role"] == LEADER

    @property
    def leader(self) -> int:
        """The id of the leader, 0 where none is known."""
        return self._status["leader"]

    @property
    def term(self) -> int:
        """Raft's term."""
        return self._status["term"]

    @property
    def is_learner(self) -> bool:
        """Whether this member only learns."""
        return bool(self._status["is_learner"])

    def propose(self, kind: int, request: bytes, done: ProposeDone) -> None:
        """Put an operation through the log; done gets the revision after it was applied."""
        self._proposals[self._next_token()] = done
        self.member.submit(kind, request, self._token)

    def propose_change(
        self,
        changes: Sequence[tuple[int, int]],
        rows: Sequence[tuple[bytes, bytes | None]],
        done: ReadDone,
    ) -> None:
        """Change the configuration and rows of the small table with it."""

        def proposed(outcome: int | StoreError) -> None:
            done(outcome if isinstance(outcome, StoreError) else None)

        self._proposals[self._next_token()] = proposed
        self.member.propose_change(changes, rows, self._token)

    def read(self, done: ReadDone) -> None:
        """Wait until reads here see everything that was acknowledged anywhere before."""
        self._reads[self._next_token()] = done
        self.member.read(self._token)

    def move_leader(self, target: int, done: ReadDone) -> None:
        """Have another voter lead; done is called once it does."""
        if not self.is_leader:
            done(etcd_error("NOT_LEADER"))
        elif target not in self.member.members()["voters"]:
            done(etcd_error("BAD_LEADER_TRANSFEREE"))
        elif target == self.settings.member_id:
            done(None)
        else:
            deadline_s = self.now_s + 2 * self.settings.election_timeout_s
            try:
                self.member.transfer(target)
            except StoreError as error:
                done(error)
                return
            self._transfers.append((target, deadline_s, done))

    @property
    def revision(self) -> int:
        """The revision of the data here."""
        return self.member.revision

    def others(self) -> list[int]:
        """The ids of the other members."""
        return [
            member for member in self.members.table.members if member != self.settings.member_id
        ]

    def call(
        self,
        peer: int,
        method: PeerMethod,
        payload: bytes,
        done: Done,
        timeout_s: float | None = None,
    ) -> None:
        """Ask a peer.

        Args:
            timeout_s: until an answer must be there, the time-out of requests where None.
        """
        deadline_s = self.now_s + (timeout_s or self.settings.request_timeout_s)
        body = self._calls.begin(peer, method, payload, deadline_s, done)
        self.frames.append((peer, peer_frames.encode_frame(REQUEST, body)))

    def call_leader(self, method: PeerMethod, payload: bytes, done: Done) -> None:
        """Ask the leader, which is somebody else."""
        if self.leader in (0, self.settings.member_id):
            done(etcd_error("NO_LEADER" if self.leader == 0 else "LEADER_CHANGED"))
        else:
            self.call(self.leader, method, payload, done)

    def _leases(self) -> list[tuple[int, int, int]]:
        recorded = dict(self.member.checkpoints())
        return [(lease, ttl_s, recorded.get(lease, 0)) for lease, ttl_s in self.member.leases()]

    def _parser(self, peer: int, now_s: float) -> peer_frames.PeerParser:
        """What reads a peer's stream; the time is told first, as what comes may depend on it."""
        self.now_s = now_s
        self.member.set_clock(int(now_s * 1e6))
        parser = self._parsers.get(peer)
        if parser is None:
            parser = self._parsers[peer] = peer_frames.PeerParser(self.member, peer)
        return parser

    def _take(self, peer: int, frames: list[tuple[int, bytes]]) -> None:
        """Frames that are no business of the engine."""
        for kind, body in frames:
            if kind == REQUEST:
                self._serve(peer, body)
            elif kind == RESPONSE:
                self._calls.answer(peer, body)

    def _next_token(self) -> int:
        self._token += 1
        return self._token

    def _deliver(self, results: list[tuple[int, int, int, int, int, int]]) -> None:
        """Tell the lessor of leases, and those who wait of their outcome."""
        for token, kind, error, revision, lease, ttl_s in results:
            if error == 0 and lease != 0:
                self.leases.applied(kind, lease, ttl_s, self.now_s)
            failure = etcd_error(_ERROR_NAMES[error]) if error else None
            if kind == engine.READ:
                read = self._reads.pop(token, None)
                if read is not None:
                    read(failure)
                continue
            proposed = self._proposals.pop(token, None)
            if proposed is not None:
                proposed(failure or revision)

    def _notice_status(self) -> None:
        version = self.member.status_version
        if version != self._status_version:
            self._status_version = version
            was_leader, was_term, led_by = self.is_leader, self.term, self.leader
            self._status = self.member.status()
            if self.is_leader and not (was_leader and was_term == self.term):
                self.leases.lead(self._leases(), self.now_s)
            self._check_transfers()
            if self.leader != led_by:
                self.leader_changed(self.leader)
        self.members.notice()

    def _check_transfers(self) -> None:
        """End transfers that are done or have taken too long."""
        if not self._transfers:
            return
        waiting, self._transfers = self._transfers, []
        for target, deadline_s, done in waiting:
            if self.leader == target:
                done(None)
            elif deadline_s <= self.now_s:
                done(etcd_error("TIMEOUT_LEADER_TRANSFER"))
            else:
                self._transfers.append((target, deadline_s, done))

    def _serve(self, peer: int, body: bytes) -> None:
        request = parse_request(body)
        if request is None:
            return

        def answer(outcome: bytes | StoreError) -> None:
            frame = peer_frames.encode_frame(RESPONSE, encode_answer(request.number, outcome))
            self.frames.append((peer, frame))

        self._dispatch(request, answer)

    def serve_call(self, method: int, payload: bytes, answer: Done) -> None:
        """Answer a call of somebody who may be no member, on a connection of its own."""
        if method != PeerMethod.MEMBERS:
            answer(StoreError(StatusCode.UNIMPLEMENTED, f"unknown method {method}"))
            return

        def confirmed(error: StoreError | None) -> None:
            answer(self._member_list() if error is None else error)

        try:
            request = pb.MemberListRequest.FromString(payload)
        except DecodeError:
            answer(StoreError(StatusCode.INTERNAL, "malformed request of a member"))
            return
        if request.linearizable:
            self.read(confirmed)
        else:
            confirmed(None)

    def _member_list(self) -> bytes:
        header = pb.ResponseHeader(
            cluster_id=self.settings.cluster_id,
            member_id=self.settings.member_id,
            raft_term=self.term,
        )
        self.members.notice()
        members = self.members.table.listed()
        return pb.MemberListResponse(header=header, members=members).SerializeToString()

    def _dispatch(self, request: PeerRequest, answer: Done) -> None:
        serve: dict[int, Callable[[bytes, Done], None]] = {
            PeerMethod.LEASE_RENEW: self.leases.serve_renew,
            PeerMethod.LEASE_TIME_TO_LIVE: self.leases.serve_time_to_live,
            PeerMethod.MEMBER_ADD: self.members.serve_add,
            PeerMethod.MEMBER_REMOVE: self.members.serve_remove,
            PeerMethod.MEMBER_UPDATE: self.members.serve_update,
            PeerMethod.MEMBER_PROMOTE: self.members.serve_promote,
        }
        method = serve.get(request.method)
        if request.method == PeerMethod.HASH_KV:
            method = self.corruption.serve
        elif method is None:
            answer(StoreError(StatusCode.UNIMPLEMENTED, f"unknown method {request.method}"))
            return
        elif not self.is_leader:
            answer(etcd_error("NOT_LEADER"))
            return
        try:
            method(request.payload, answer)
        except (DecodeError, struct.error):
            answer(StoreError(StatusCode.INTERNAL, "malformed request of a member"))

    def raise_no_space(self) -> None:
        """Have every member refuse writes until an operator has made room."""
        alarm = (self.settings.member_id, pb.NOSPACE)
        if self._raising_no_space or alarm in self.member.alarms():
            return
        self._raising_no_space = True
        self.no_space()

        def raised(outcome: int | StoreError) -> None:
            self._raising_no_space = False

        request = pb.AlarmRequest(
            action=pb.AlarmRequest.ACTIVATE,
            memberID=self.settings.member_id,
            alarm=pb.NOSPACE,
        )
        self.propose(engine.ALARM, request.SerializeToString(), raised)


def _hash_nothing(revision: int, done: HashDone) -> None:
    done(StoreError(StatusCode.UNIMPLEMENTED, "nobody hashes the data here"))
