"""Random steps for the differential test: requests with few keys, so that they collide.

A step is made from a seed of its own and from what the reference answered so far. So a list of
step numbers is a whole test case: leaving some out leaves the others meaningful.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from trimaran.wire import etcd_pb2 as pb

KV, LEASE = "/etcdserverpb.KV", "/etcdserverpb.Lease"
# Prefixes of each other, with zero and highest bytes, and one beyond LMDB's limit for keys.
KEYS = (b"a", b"a\x00", b"ab", b"b", b"b/1", b"b/2", b"b\xff", b"c", b"\x00", b"\xff", b"k" * 600)
VALUES = (b"", b"0", b"1", b"2", b"two words", b"\x00\xff", b"v" * 300)
LEASE_IDS = (1, 2, 3, 2**63 - 1, -5)
STREAMS = 2
INT64_MAX = 2**63 - 1


@dataclass
class State:
    """What steps are made from: the reference's answers so far.

    Attributes:
        revision: the current one.
        compacted: the last one compacted.
        leases: those that exist.
        compactions: every revision that was compacted.
        watchers: by stream, the watchers that were created and the revision each starts from.
    """

    revision: int = 1
    compacted: int = 0
    leases: set[int] = field(default_factory=set)
    compactions: set[int] = field(default_factory=set)
    watchers: list[dict[int, int]] = field(default_factory=lambda: [{} for _ in range(STREAMS)])


@dataclass(frozen=True)
class Call:
    """One unary call, or one exchange on a stream that is closed after it."""

    path: str
    request: Any


@dataclass(frozen=True)
class WatchSend:
    """One message on a watch stream.

    Attributes:
        stream: which of the streams of the test case.
        request: the message.
    """

    stream: int
    request: Any


Step = Call | WatchSend


def prefix_end(key: bytes) -> bytes:
    """Give the end of the range of all keys with a prefix."""
    stripped = key.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\x00"


class StepMaker:
    """Makes the steps of one seed.

    Args:
        state: kept up to date by the caller.
        rng: the source of randomness of this one step.
    """

    def __init__(self, state: State, rng: random.Random) -> None:
        self.state = state
        self.rng = rng

    def step(self) -> Step:
        """Make one step."""
        makers: list[tuple[int, Any]] = [
            (30, self.put),
            (10, self.delete),
            (22, lambda: Call(f"{KV}/Range", self.range_request())),
            (18, lambda: Call(f"{KV}/Txn", self.txn_request())),
            (2, self.compact),
            (8, self.lease),
            (6, self.watch_create),
            (2, self.watch_cancel),
            (1, self.watch_progress),
        ]
        weights = [weight for weight, _ in makers]
        made: Step = self.rng.choices([maker for _, maker in makers], weights)[0]()
        return made

    def chance(self, percent: float) -> bool:
        """Give true in that many of a hundred cases."""
        return self.rng.random() * 100 < percent

    def key(self) -> bytes:
        """Pick a key, seldom an empty one."""
        return b"" if self.chance(2) else self.rng.choice(KEYS)

    def span(self) -> tuple[bytes, bytes]:
        """Pick a key and the end of its range: single, prefix, open, or any other key."""
        key = self.key()
        ends = (b"", b"", prefix_end(key), b"\x00", self.key(), key, key + b"\x00")
        if self.chance(15):
            return b"\x00", b"\x00"
        return key, self.rng.choice(ends)

    def near_revision(self) -> int:
        """Pick a revision: mostly a recent one, else one at or past an edge."""
        state = self.state
        if self.chance(60):
            return max(1, state.revision - self.rng.randrange(25))
        edges = (state.revision, state.revision + 1, state.compacted, state.compacted + 1)
        return self.rng.choice((*edges, state.compacted - 1, -1, 1, INT64_MAX, -(2**63)))

    def lease_id(self) -> int:
        """Pick a lease, more often one that exists."""
        if self.state.leases and self.chance(70):
            return self.rng.choice(sorted(self.state.leases))
        return self.rng.choice(LEASE_IDS)

    def range_request(self) -> Any:
        """Make a RangeRequest with any of its fields."""
        rng = self.rng
        key, end = self.span()
        request = pb.RangeRequest(key=key, range_end=end)
        if self.chance(35):
            request.revision = self.near_revision()
        if self.chance(35):
            request.limit = rng.choice((1, 2, 3, 5, -1, INT64_MAX))
        if self.chance(40):
            request.sort_order = rng.choice((0, 1, 2))
            request.sort_target = rng.choice((0, 1, 2, 3, 4))
        if self.chance(2):
            request.sort_order, request.sort_target = rng.choice(((3, 0), (1, 5), (-1, 0), (0, -1)))
        request.serializable = self.chance(20)
        request.keys_only = self.chance(15)
        request.count_only = self.chance(10)
        for name in ("min_mod", "max_mod", "min_create", "max_create"):
            if self.chance(8):
                setattr(request, f"{name}_revision", self.near_revision())
        return request

    def put_request(self) -> Any:
        """Make a PutRequest with any of its fields."""
        request = pb.PutRequest(key=self.key(), value=self.rng.choice(VALUES))
        if self.chance(20):
            request.lease = self.lease_id()
        request.prev_kv = self.chance(30)
        if self.chance(8):
            request.ignore_value = True
            request.value = self.rng.choice((b"", b"", b"", b"x"))
        if self.chance(8):
            request.ignore_lease = True
            request.lease = self.rng.choice((0, 0, 0, self.lease_id()))
        return request

    def put(self) -> Step:
        """Make a put."""
        return Call(f"{KV}/Put", self.put_request())

    def delete_request(self) -> Any:
        """Make a DeleteRangeRequest; single keys more often, or nothing would ever stay."""
        key, end = self.span() if self.chance(35) else (self.key(), b"")
        return pb.DeleteRangeRequest(key=key, range_end=end, prev_kv=self.chance(40))

    def delete(self) -> Step:
        """Make a delete."""
        return Call(f"{KV}/DeleteRange", self.delete_request())

    def compare(self) -> Any:
        """Make a condition; its value is often one that holds, seldom of another target."""
        rng = self.rng
        target = rng.choice((0, 1, 2, 3, 4))
        condition = pb.Compare(result=rng.choice((0, 0, 1, 2, 3)), target=target, key=self.key())
        if self.chance(2):
            condition.result = 5
        if self.chance(20):
            condition.key, condition.range_end = self.span()
        held = rng.choice((3, target)) if self.chance(3) else target
        if held == 0:
            condition.version = rng.choice((0, 0, 1, 2, 3, -1))
        elif held == 1:
            condition.create_revision = rng.choice((0, 0, self.near_revision()))
        elif held == 2:
            condition.mod_revision = rng.choice((0, 0, self.near_revision()))
        elif held == 3:
            condition.value = rng.choice(VALUES)
        else:
            condition.lease = rng.choice((0, 0, self.lease_id()))
        if self.chance(2):
            condition.ClearField("target_union" if condition.WhichOneof("target_union") else "key")
        return condition

    def operation(self, depth: int) -> Any:
        """Make one operation of a transaction."""
        kind = self.rng.choices(("put", "range", "delete", "txn", "none"), (45, 25, 15, 12, 1))[0]
        operation = pb.RequestOp()
        if kind == "put":
            operation.request_put.CopyFrom(self.put_request())
        elif kind == "range" or (kind == "txn" and depth >= 3):
            operation.request_range.CopyFrom(self.range_request())
            # Most ranges at odd revisions fail the whole transaction; keep those few.
            if self.chance(70):
                operation.request_range.revision = 0
        elif kind == "delete":
            operation.request_delete_range.CopyFrom(self.delete_request())
        elif kind == "txn":
            operation.request_txn.CopyFrom(self.txn_request(depth + 1))
        return operation

    def txn_request(self, depth: int = 1) -> Any:
        """Make a transaction, of a few operations on each side."""
        rng = self.rng
        request = pb.TxnRequest()
        request.compare.extend(self.compare() for _ in range(rng.choice((0, 1, 1, 2, 3))))
        for side in (request.success, request.failure):
            side.extend(self.operation(depth) for _ in range(rng.choice((0, 1, 1, 2, 2, 3))))
        if depth == 1 and self.chance(2):
            self.fill_up(request)
        return request

    def fill_up(self, request: Any) -> None:
        """Bring a transaction to or past the limit of 128 operations."""
        count = self.rng.choice((128, 129))
        if self.chance(50):
            del request.compare[:]
            request.compare.extend(pb.Compare(key=b"a", version=0) for _ in range(count))
        else:
            plain = pb.RequestOp(request_range=pb.RangeRequest(key=b"a"))
            request.failure.extend([plain] * max(0, count - len(request.failure)))

    def compact(self) -> Step:
        """Make a compaction."""
        revision = self.near_revision()
        if self.chance(50):
            revision = max(1, self.state.revision - self.rng.randrange(5, 40))
        request = pb.CompactionRequest(revision=revision, physical=self.chance(30))
        return Call(f"{KV}/Compact", request)

    def lease(self) -> Step:
        """Make any lease call. Times to live are long: nothing may expire during a test."""
        names = ("Grant", "Revoke", "TimeToLive", "Leases", "KeepAlive")
        name = self.rng.choices(names, (9, 4, 4, 2, 2))[0]
        if name == "Grant":
            ttl_s = self.rng.choice((600, 900, 1200, 5000, 9_000_000_000, 9_000_000_001))
            request: Any = pb.LeaseGrantRequest(ID=self.rng.choice(LEASE_IDS), TTL=ttl_s)
        elif name == "Revoke":
            request = pb.LeaseRevokeRequest(ID=self.lease_id())
        elif name == "TimeToLive":
            request = pb.LeaseTimeToLiveRequest(ID=self.lease_id(), keys=self.chance(70))
        elif name == "KeepAlive":
            request = pb.LeaseKeepAliveRequest(ID=self.lease_id())
        else:
            request = pb.LeaseLeasesRequest()
        return Call(f"{LEASE}/Lease{name}", request)

    def watch_create(self) -> Step:
        """Make a watcher with any of the fields, on one of the streams."""
        rng = self.rng
        key, end = self.span()
        create = pb.WatchCreateRequest(key=key, range_end=end)
        if self.chance(60):
            revision = self.near_revision()
            create.start_revision = revision if revision < INT64_MAX else self.state.revision + 3
        create.prev_kv = self.chance(40)
        create.fragment = self.chance(15)
        create.progress_notify = self.chance(15)
        if self.chance(25):
            create.filters.extend(rng.choices((0, 1), k=rng.choice((1, 1, 2))))
        if self.chance(25):
            # Not -1: that is also the number of every refusal, and versions confuse the two.
            create.watch_id = rng.choice((0, 1, 2, 5, 7, INT64_MAX))
        stream = rng.randrange(STREAMS)
        return WatchSend(stream, pb.WatchRequest(create_request=create))

    def watch_cancel(self) -> Step:
        """Make a cancellation, of a watcher that is there or seldom of none."""
        stream = self.rng.randrange(STREAMS)
        known = self.state.watchers[stream]
        watch_id = self.rng.choice(sorted(known)) if known and self.chance(85) else 99
        request = pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id))
        return WatchSend(stream, request)

    def watch_progress(self) -> Step:
        """Make a request for progress."""
        stream = self.rng.randrange(STREAMS)
        request = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
        return WatchSend(stream, request)
