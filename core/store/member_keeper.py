"""The membership as one member sees it, and the changes that are asked for here.

Changes are planned and proposed by the leader, one at a time and in the order they came: each plan
rests on a table in which all earlier ones are applied. Other members pass requests on to it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from google.protobuf.message import DecodeError

from trimaran.errors import StoreError, etcd_error
from trimaran.ext import member as engine
from trimaran.store.cluster_version import (
    CLUSTER_KEY,
    cluster_version,
    decide,
    is_too_old,
    member_row,
    told_version,
)
from trimaran.store.configuration import encode_rows
from trimaran.store.membership import (
    HEALTH_INTERVAL_S,
    Change,
    Health,
    MemberTable,
    adopt,
    attributes_rows,
    plan_add,
    plan_promote,
    plan_remove,
    plan_update,
)
from trimaran.store.peer_calls import Done, PeerMethod
from trimaran.wire import etcd_pb2 as pb

if TYPE_CHECKING:
    from trimaran.store.node import NodeSettings

PUBLISH_RETRY_S: Final = 1.0

# Answers of one who does not lead and has done nothing.
_NOT_BEGUN: Final = (etcd_error("NOT_LEADER").message, etcd_error("NO_LEADER").message)
_TOO_FEW: Final = (etcd_error("NOT_ENOUGH_STARTED").message, etcd_error("UNHEALTHY").message)

MembersDone = Callable[[pb.Member | StoreError], None]
ReadDone = Callable[[StoreError | None], None]
ProposeDone = Callable[[int | StoreError], None]
Plan = Callable[[MemberTable], Change]


class Ports(Protocol):
    """What the keeper needs of the node that it serves."""

    now_s: float

    @property
    def member(self) -> engine.Member: ...

    @property
    def is_leader(self) -> bool: ...
    @property
    def leader(self) -> int: ...
    def propose(self, kind: int, request: bytes, done: ProposeDone) -> None: ...
    def propose_change(
        self,
        changes: Sequence[tuple[int, int]],
        rows: Sequence[tuple[bytes, bytes | None]],
        done: ReadDone,
    ) -> None: ...
    def read(self, done: ReadDone) -> None: ...
    def move_leader(self, target: int, done: ReadDone) -> None: ...
    def call_leader(self, method: PeerMethod, payload: bytes, done: Done) -> None: ...


@dataclass(frozen=True, slots=True)
class _Passing:
    """A request that waits for a leader to be sent to."""

    method: PeerMethod
    payload: bytes
    deadline_s: float
    done: MembersDone


class MemberKeeper:
    """The members of the cluster, known to one of them.

    Args:
        ports: the node.
        settings: who it is.

    Attributes:
        table: the members as applied here.
        is_removed: this member was removed from the cluster and has to stop.
        changed: called after the table has changed.
    """

    def __init__(self, ports: Ports, settings: "NodeSettings") -> None:
        self._ports = ports
        self._settings = settings
        self.table = MemberTable({})
        self.is_removed = False
        self.changed: Callable[[], None] = lambda: None
        self._rows_version = -1
        self._connected_s: dict[int, float] = {}
        self._queue: deque[tuple[Plan, MembersDone]] = deque()
        self._passing: list[_Passing] = []
        self._serve: dict[PeerMethod, Callable[[bytes, Done], None]] = {
            PeerMethod.MEMBER_ADD: self.serve_add,
            PeerMethod.MEMBER_REMOVE: self.serve_remove,
            PeerMethod.MEMBER_UPDATE: self.serve_update,
            PeerMethod.MEMBER_PROMOTE: self.serve_promote,
        }
        self._is_changing = False
        self._is_publishing = False
        self._next_publish_s = 0.0
        self._is_deciding = False
        self.versions: dict[bytes, bytes] = {}
        self.notice()

    def notice(self) -> None:
        """Read the table anew where its rows have changed."""
        version = self._ports.member.rows_version
        if version == self._rows_version:
            return
        self._rows_version = version
        member = self._ports.member
        self.table = MemberTable.from_rows([*member.rows(b"member/"), *member.rows(b"removed/")])
        self.versions = dict(member.rows(b"cluster/"))
        self.is_removed = self._settings.member_id in self.table.removed
        for peer in set(self._connected_s) - set(self.table.members):
            del self._connected_s[peer]
        self.changed()

    def connected(self, peer: int, now_s: float) -> None:
        """What is sent to a peer arrives."""
        self._connected_s.setdefault(peer, now_s)

    def reaches(self, peer: int) -> bool:
        """Whether there is a connection to a peer."""
        return peer in self._connected_s

    def lost(self, peer: int) -> None:
        """The connection to a peer is gone."""
        self._connected_s.pop(peer, None)

    def stop(self) -> None:
        """Fail the requests that wait."""
        waiting = [*(done for _, done in self._queue), *(one.done for one in self._passing)]
        self._queue.clear()
        self._passing.clear()
        for done in waiting:
            done(etcd_error("STOPPED"))

    def check(self, now_s: float) -> None:
        """Tell the others who this member is, until they know; decide the cluster's version."""
        self._pass_all()
        self._decide_version()
        if self._is_publishing or self._ports.leader == 0 or now_s < self._next_publish_s:
            return
        if self._settings.member_id not in self.table.members:
            self._adopt()
            return
        if self._is_known():
            return
        self._next_publish_s = now_s + PUBLISH_RETRY_S
        self._is_publishing = True

        def published(outcome: int | StoreError) -> None:
            self._is_publishing = False

        settings = self._settings
        rows = [
            *attributes_rows(settings.member_id, settings.name, settings.client_urls),
            member_row(settings.member_id, settings.version),
        ]
        self._ports.propose(engine.ROWS, encode_rows(rows), published)

    def _adopt(self) -> None:
        """Enter this member where its data has no table, because it is older than groups.

        It comes before any other change: members that join later replay it first.
        """
        settings = self._settings
        alone = self._ports.member.members()["voters"] == [settings.member_id]
        if not self._ports.is_leader or self._is_changing or self.table.members or not alone:
            return
        self._queue_change(
            lambda table: adopt(settings.member_id, settings.name, settings.peer_urls),
            lambda outcome: None,
        )

    def _is_known(self) -> bool:
        own = self.table.members[self._settings.member_id]
        return (
            own.name == self._settings.name
            and list(own.clientURLs) == sorted(self._settings.client_urls)
            and told_version(self.versions, own.ID) == self._settings.version
        )

    def _decide_version(self) -> None:
        if not self._ports.is_leader or self._is_deciding:
            return
        version = decide(self.versions, self.table.members)
        if version is None:
            return
        self._is_deciding = True

        def decided(outcome: int | StoreError) -> None:
            self._is_deciding = False

        rows = encode_rows([(CLUSTER_KEY, version.encode())])
        self._ports.propose(engine.ROWS, rows, decided)

    @property
    def version(self) -> str:
        """The version of the whole cluster, "" where none is decided yet."""
        return cluster_version(self.versions)

    @property
    def is_too_old(self) -> bool:
        """Whether the cluster has a later version than this program, which must not run then."""
        return is_too_old(self._settings.version, self.versions)

    @property
    def is_published(self) -> bool:
        """Whether the cluster knows this member as it is now, which needs a majority of it."""
        return self._settings.member_id in self.table.members and self._is_known()

    def health(self) -> Health:
        """What is known of the connections to the other members."""
        since_s = self._ports.now_s - HEALTH_INTERVAL_S
        steady = [peer for peer, at_s in self._connected_s.items() if at_s <= since_s]
        return Health(
            own_id=self._settings.member_id,
            active=tuple(self._connected_s),
            steady=steady,
            strict=self._settings.strict_reconfig_check,
        )

    def add(self, request: pb.MemberAddRequest, unix_s: int, done: MembersDone) -> None:
        """Add a member; done gets it."""
        if self._is_refused(self._plan_add(request, unix_s), done):
            return
        if not self._ports.is_leader:
            self._pass_on(PeerMethod.MEMBER_ADD, _stamp(unix_s) + _bytes(request), done)
            return
        self._queue_change(self._plan_add(request, unix_s), done)

    def remove(self, request: pb.MemberRemoveRequest, done: MembersDone) -> None:
        """Remove a member; done gets it as it was."""
        if self._is_refused(lambda table: plan_remove(table, request.ID, self.health()), done):
            return
        if not self._ports.is_leader:
            self._pass_on(PeerMethod.MEMBER_REMOVE, _bytes(request), done)
            return
        if self._settings.member_id == request.ID and len(self.table.voters) > 1:
            self._hand_over(request, done)
            return
        self._queue_change(lambda table: plan_remove(table, request.ID, self.health()), done)

    def _heir(self) -> int:
        """The voter to lead next: of those that are connected the furthest, 0 where none is."""
        progress = {
            peer: self._ports.member.raft_progress(peer)
            for peer in self._ports.member.members()["voters"]
            if peer in self._connected_s
        }
        reached = {peer: known["match"] for peer, known in progress.items() if known is not None}
        return max(reached, key=lambda peer: reached[peer], default=0)

    def _hand_over(self, request: pb.MemberRemoveRequest, done: MembersDone) -> None:
        """Have another member remove this one, which leads.

        A leader that removes itself is the only one to know for sure that the change is committed.
        Where it ended before it could tell, the others would need its vote to find out.
        """
        heir = self._heir()
        if heir == 0:
            done(etcd_error("UNHEALTHY"))
            return

        def moved(error: StoreError | None) -> None:
            if error is not None:
                done(error)
            else:
                self._pass_on(PeerMethod.MEMBER_REMOVE, _bytes(request), done)

        self._ports.move_leader(heir, moved)

    def update(self, request: pb.MemberUpdateRequest, done: MembersDone) -> None:
        """Give a member other peer URLs; done gets it as it is then."""
        if not self._ports.is_leader:
            self._pass_on(PeerMethod.MEMBER_UPDATE, _bytes(request), done)
            return
        self._queue_change(lambda table: plan_update(table, request.ID, request.peerURLs), done)

    def promote(self, request: pb.MemberPromoteRequest, done: MembersDone) -> None:
        """Let a learner vote; done gets it."""
        if not self._ports.is_leader:
            self._pass_on(PeerMethod.MEMBER_PROMOTE, _bytes(request), done)
            return
        self._queue_change(lambda table: self._plan_promote(table, request.ID), done)

    def serve_add(self, payload: bytes, answer: Done) -> None:
        """Answer a peer's MEMBER_ADD."""
        try:
            request = pb.MemberAddRequest.FromString(payload[8:])
        except DecodeError:
            answer(etcd_error("MEMBER_BAD_URLS"))
            return
        unix_s = int.from_bytes(payload[:8], "little")
        self._queue_change(self._plan_add(request, unix_s), _answering(answer))

    def serve_remove(self, payload: bytes, answer: Done) -> None:
        """Answer a peer's MEMBER_REMOVE."""
        self.remove(pb.MemberRemoveRequest.FromString(payload), _answering(answer))

    def serve_update(self, payload: bytes, answer: Done) -> None:
        """Answer a peer's MEMBER_UPDATE."""
        self.update(pb.MemberUpdateRequest.FromString(payload), _answering(answer))

    def serve_promote(self, payload: bytes, answer: Done) -> None:
        """Answer a peer's MEMBER_PROMOTE."""
        self.promote(pb.MemberPromoteRequest.FromString(payload), _answering(answer))

    def _is_refused(self, plan: Plan, done: MembersDone) -> bool:
        """Refuse at once what too few members are there for: nobody may be left to lead."""
        try:
            plan(self.table)
        except StoreError as error:
            if error.message in _TOO_FEW:
                done(error)
                return True
        return False

    def _plan_add(self, request: pb.MemberAddRequest, unix_s: int) -> Plan:
        return lambda table: plan_add(
            table,
            request.peerURLs,
            self.health(),
            unix_s=unix_s,
            is_learner=request.isLearner,
            learners_max=self._settings.max_learners,
        )

    def _plan_promote(self, table: MemberTable, member: int) -> Change:
        progress = self._ports.member.raft_progress(member)
        return plan_promote(
            table,
            member,
            match=progress["match"] if progress is not None else 0,
            leader_match=self._ports.member.status()["stable"],
            strict=self._settings.strict_reconfig_check,
        )

    def _pass_on(self, method: PeerMethod, payload: bytes, done: MembersDone) -> None:
        """Send a request on to the leader, as soon as there is one that can be reached."""
        deadline_s = self._ports.now_s + self._settings.request_timeout_s
        self._passing.append(_Passing(method, payload, deadline_s, done))
        self._pass_all()

    def _pass_all(self) -> None:
        waiting, self._passing = self._passing, []
        for one in waiting:
            if one.deadline_s <= self._ports.now_s:
                one.done(etcd_error("TIMEOUT"))
            elif self._ports.is_leader:
                self._serve[one.method](one.payload, self._from_leader(one))
            elif self._ports.leader in self._connected_s:
                self._ports.call_leader(one.method, one.payload, self._from_leader(one))
            else:
                self._passing.append(one)

    def _from_leader(self, one: "_Passing") -> Done:
        def answered(outcome: bytes | StoreError) -> None:
            if not isinstance(outcome, StoreError):
                member = pb.Member.FromString(outcome)
                is_own = self._settings.member_id == member.ID
                if is_own and one.method == PeerMethod.MEMBER_REMOVE:
                    # The others answer no reads of this one any more.
                    one.done(member)
                    return
                # The answer shall come from a table that has the change in it.
                self._ports.read(lambda error: one.done(member if error is None else error))
            elif outcome.message in _NOT_BEGUN:
                self._passing.append(one)
            else:
                one.done(outcome)

        return answered

    def _queue_change(self, plan: Plan, done: MembersDone) -> None:
        self._queue.append((plan, done))
        self._begin_next()

    def _begin_next(self) -> None:
        """Begin the next change: only when all before it are applied, and still the leader."""
        while self._queue and not self._is_changing:
            plan, done = self._queue.popleft()
            self._is_changing = True
            self._confirm(plan, done)

    def _confirm(self, plan: Plan, done: MembersDone) -> None:
        self._ports.read(lambda error: self._begin(plan, done, error))

    def _begin(self, plan: Plan, done: MembersDone, error: StoreError | None) -> None:
        self.notice()
        if error is None and not self._ports.is_leader:
            error = etcd_error("LEADER_CHANGED")
        change: Change | None = None
        if error is None:
            try:
                change = plan(self.table)
            except StoreError as refused:
                error = refused
        if error is not None or change is None:
            self._ended(done, error or etcd_error("LEADER_CHANGED"))
            return
        member = change.member

        def applied(error: StoreError | None) -> None:
            self.notice()
            self._ended(done, member if error is None else error)

        self._ports.propose_change(change.changes, change.rows, applied)

    def _ended(self, done: MembersDone, outcome: pb.Member | StoreError) -> None:
        self._is_changing = False
        done(outcome)
        self._begin_next()


def _bytes(
    request: pb.MemberAddRequest
    | pb.MemberRemoveRequest
    | pb.MemberUpdateRequest
    | pb.MemberPromoteRequest,
) -> bytes:
    return request.SerializeToString()


def _stamp(unix_s: int) -> bytes:
    return unix_s.to_bytes(8, "little")


def _answering(answer: Done) -> MembersDone:
    def answered(outcome: pb.Member | StoreError) -> None:
        answer(outcome if isinstance(outcome, StoreError) else outcome.SerializeToString())

    return answered
