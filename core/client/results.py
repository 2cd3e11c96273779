"""What the store answers, as plain values."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from trimaran.wire import etcd_pb2 as pb


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it was at one revision.

    Attributes:
        key, value: bytes; the value is empty where only keys were asked for.
        create_revision: revision of the put that created the key.
        mod_revision: revision of its last change.
        version: how many puts since it was created; 0 in the event of a deletion.
        lease: id of the lease that the key dies with, 0 for none.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class EventType(IntEnum):
    """What happened to a key, with etcd's numbers."""

    PUT = 0
    DELETE = 1


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key; prev_kv is there only where it was asked for and existed."""

    type: EventType
    kv: KeyValue
    prev_kv: KeyValue | None


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Changes in the order of their revisions; those of one revision are never parted.

    Attributes:
        revision: every change up to and including this revision has been delivered. With
            compacted, the oldest revision that the watch could go on from.
        events: empty for a progress report and with compacted.
        compacted: changes were missed for good, because the store dropped their history: list
            again what you follow. The watch goes on by itself from `revision`.
    """

    revision: int
    events: list[Event]
    compacted: bool = False


@dataclass(frozen=True, slots=True)
class RangeResult:
    """Keys of a range; count is how many the range has whatever the limit."""

    kvs: list[KeyValue]
    count: int
    more: bool
    revision: int


@dataclass(frozen=True, slots=True)
class PutResult:
    """Revision of a put, and what it replaced where that was asked for."""

    revision: int
    prev_kv: KeyValue | None


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """How many keys a deletion removed, and which where that was asked for."""

    deleted: int
    prev_kvs: list[KeyValue]
    revision: int


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Which branch a transaction took and the answers of its operations, in their order."""

    succeeded: bool
    responses: "list[OpResult]"
    revision: int


OpResult: TypeAlias = RangeResult | PutResult | DeleteResult | TxnResult


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted lease; the server may have raised the TTL."""

    id: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """What is left of a lease; ttl_s is -1 where there is no such lease."""

    id: int
    ttl_s: int
    granted_ttl_s: int
    keys: list[bytes]


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the store's cluster; name and client_urls are empty before its first start."""

    id: int
    name: str
    peer_urls: list[str]
    client_urls: list[str]
    is_learner: bool


@dataclass(frozen=True, slots=True)
class Status:
    """How one member sees itself; sizes are bytes, leader is a member id, 0 for none."""

    version: str
    db_size: int
    db_size_in_use: int
    leader: int
    raft_index: int
    raft_applied_index: int
    raft_term: int
    member_id: int
    cluster_id: int
    revision: int
    is_learner: bool
    errors: list[str]


def key_value(message: pb.KeyValue) -> KeyValue:
    """Convert a key from the wire."""
    return KeyValue(
        message.key,
        message.value,
        message.create_revision,
        message.mod_revision,
        message.version,
        message.lease,
    )


def _previous(message: pb.PutResponse | pb.Event) -> KeyValue | None:
    return key_value(message.prev_kv) if message.HasField("prev_kv") else None


def event(message: pb.Event) -> Event:
    """Convert a watch event from the wire."""
    return Event(EventType(message.type), key_value(message.kv), _previous(message))


def range_result(message: pb.RangeResponse) -> RangeResult:
    """Convert the answer of a Range."""
    kvs = [key_value(kv) for kv in message.kvs]
    return RangeResult(kvs, message.count, message.more, message.header.revision)


def put_result(message: pb.PutResponse) -> PutResult:
    """Convert the answer of a Put."""
    return PutResult(message.header.revision, _previous(message))


def delete_result(message: pb.DeleteRangeResponse) -> DeleteResult:
    """Convert the answer of a DeleteRange."""
    previous = [key_value(kv) for kv in message.prev_kvs]
    return DeleteResult(message.deleted, previous, message.header.revision)


def txn_result(message: pb.TxnResponse) -> TxnResult:
    """Convert the answer of a Txn with all that is nested in it."""
    responses = [_op_result(response) for response in message.responses]
    return TxnResult(message.succeeded, responses, message.header.revision)


def _op_result(message: pb.ResponseOp) -> OpResult:
    kind = message.WhichOneof("response")
    if kind == "response_range":
        return range_result(message.response_range)
    if kind == "response_put":
        return put_result(message.response_put)
    if kind == "response_delete_range":
        return delete_result(message.response_delete_range)
    assert kind == "response_txn", f"the server answered an operation with {kind}"
    return txn_result(message.response_txn)


def members(messages: Iterable[pb.Member]) -> list[Member]:
    """Convert the members of a Cluster answer."""
    return [
        Member(m.ID, m.name, list(m.peerURLs), list(m.clientURLs), m.isLearner) for m in messages
    ]


def status(message: pb.StatusResponse) -> Status:
    """Convert the answer of a Status."""
    return Status(
        version=message.version,
        db_size=message.dbSize,
        db_size_in_use=message.dbSizeInUse,
        leader=message.leader,
        raft_index=message.raftIndex,
        raft_applied_index=message.raftAppliedIndex,
        raft_term=message.raftTerm,
        member_id=message.header.member_id,
        cluster_id=message.header.cluster_id,
        revision=message.header.revision,
        is_learner=message.isLearner,
        errors=list(message.errors),
    )
