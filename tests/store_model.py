"""A plain model of the MVCC state: every version of every key in lists, searched from end to end.

Rules: etcd's documented semantics; nothing here is fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from trimaran.wire import etcd_pb2 as pb


@dataclass(frozen=True)
class Version:
    """One change of a key."""

    key: bytes
    main: int
    sub: int
    deleted: bool
    create: int = 0
    version: int = 0
    value: bytes = b""
    lease: int = 0

    def message(self) -> pb.KeyValue:
        """The stored message; a tombstone's has only the key."""
        if self.deleted:
            return pb.KeyValue(key=self.key)
        return pb.KeyValue(
            key=self.key,
            create_revision=self.create,
            mod_revision=self.main,
            version=self.version,
            value=self.value,
            lease=self.lease,
        )


def covers(key: bytes, end: bytes, wanted: bytes) -> bool:
    """Tell whether a request's key and range end take in a key."""
    if not end:
        return wanted == key
    return key <= wanted and (end == b"\0" or wanted < end)


class RefusedError(Exception):
    """The model refuses; the text is the error's name in the table."""


@dataclass
class Model:
    """The whole state."""

    revision: int = 1
    compact_revision: int = -1
    changes: list[Version] = field(default_factory=list)
    leases: dict[int, int] = field(default_factory=dict)
    alarms: set[tuple[int, int]] = field(default_factory=set)

    def live(self, revision: int) -> dict[bytes, Version]:
        """Return the keys that exist at a revision."""
        found: dict[bytes, Version] = {}
        for change in self.changes:
            if change.main <= revision:
                found[change.key] = change
        return {key: found[key] for key in sorted(found) if not found[key].deleted}

    def lease_keys(self, lease: int) -> frozenset[bytes]:
        """Return the keys attached to a lease."""
        return frozenset(k for k, v in self.live(self.revision).items() if v.lease == lease)

    def dropped(self) -> set[tuple[int, int]]:
        """Return the revisions that a finished compaction must have forgotten."""
        gone = set()
        for key in {change.key for change in self.changes}:
            past = [c for c in self.changes if c.key == key and c.main <= self.compact_revision]
            keep_last = past and not (past[-1].deleted and past[-1].main < self.compact_revision)
            gone |= {(c.main, c.sub) for c in (past[:-1] if keep_last else past)}
        return gone

    # Reads.

    def range(self, request: pb.RangeRequest, current: int) -> pb.RangeResponse:
        """Answer a range without its header."""
        revision = request.revision if request.revision > 0 else current
        found = [
            version
            for key, version in self.live(revision).items()
            if covers(request.key, request.range_end, key)
        ]
        answer = pb.RangeResponse(count=len(found))
        if request.count_only:
            return answer
        filtered = [version for version in found if self._passes(request, version)]
        sort = int(request.sort_order)
        limited = sort == 0 and len(filtered) == len(found) and not self._has_filter(request)
        if limited and request.limit > 0:
            filtered = filtered[: request.limit + 1]
        if sort == 0 and request.sort_target != pb.RangeRequest.KEY:
            sort = 1
        if sort:
            # Equal ones keep the order of keys either way.
            filtered.sort(key=lambda v: self._order(request.sort_target, v), reverse=sort == 2)
        if request.limit > 0 and len(filtered) > request.limit:
            filtered = filtered[: request.limit]
            answer.more = True
        for version in filtered:
            shown = replace(version, value=b"") if request.keys_only else version
            answer.kvs.append(shown.message())
        return answer

    @staticmethod
    def _has_filter(request: pb.RangeRequest) -> bool:
        return bool(
            request.min_mod_revision
            or request.max_mod_revision
            or request.min_create_revision
            or request.max_create_revision
        )

    @staticmethod
    def _passes(request: pb.RangeRequest, v: Version) -> bool:
        return (
            (not request.min_mod_revision or v.main >= request.min_mod_revision)
            and (not request.max_mod_revision or v.main <= request.max_mod_revision)
            and (not request.min_create_revision or v.create >= request.min_create_revision)
            and (not request.max_create_revision or v.create <= request.max_create_revision)
        )

    @staticmethod
    def _order(target: int, v: Version) -> int | bytes:
        return (v.key, v.version, v.create, v.main, v.value)[target]

    def check_range(self, request: pb.RangeRequest, in_txn: bool) -> None:
        """Refuse a range of a revision that is not there."""
        if request.revision == 0 or (request.revision < 0 and not in_txn):
            return
        if request.revision > self.revision:
            raise RefusedError("FUTURE_REVISION")
        if request.revision < self.compact_revision:
            raise RefusedError("COMPACTED")

    def compares(self, compare: pb.Compare) -> bool:
        """Evaluate one compare."""
        found: list[Version | None] = [
            version
            for key, version in self.live(self.revision).items()
            if covers(compare.key, compare.range_end, key)
        ]
        return all(self._compare_one(compare, version) for version in found or [None])

    @staticmethod
    def _compare_one(compare: pb.Compare, v: Version | None) -> bool:
        names = ("version", "create_revision", "mod_revision", "value", "lease")
        wanted = getattr(compare, names[compare.target])
        if compare.target == pb.Compare.VALUE:
            if v is None:
                return False
            have: int | bytes = v.value
        else:
            row = (v.version, v.create, v.main, None, v.lease) if v else (0, 0, 0, None, 0)
            number = row[compare.target]
            assert number is not None
            have = number
        order = (have > wanted) - (have < wanted)
        return (order == 0, order > 0, order < 0, order != 0)[compare.result]

    # Writes.

    def _main(self, count: int) -> int:
        return self.revision + 1 if count else self.revision

    def put(self, request: pb.PutRequest, count: list[int]) -> pb.PutResponse:
        """Put; count[0] is how many changes the revision being made has."""
        old = self.live(self.revision + 1).get(request.key)
        answer = pb.PutResponse()
        if request.prev_kv and old is not None:
            answer.prev_kv.CopyFrom(old.message())
        main = self.revision + 1
        self.changes.append(
            Version(
                request.key,
                main,
                count[0],
                False,
                old.create if old else main,
                old.version + 1 if old else 1,
                old.value if old and request.ignore_value else request.value,
                old.lease if old and request.ignore_lease else request.lease,
            )
        )
        count[0] += 1
        return answer

    def delete(self, request: pb.DeleteRangeRequest, count: list[int]) -> pb.DeleteRangeResponse:
        """Delete a key or a range."""
        answer = pb.DeleteRangeResponse()
        for key, old in self.live(self.revision + 1).items():
            if not covers(request.key, request.range_end, key):
                continue
            if request.prev_kv:
                answer.prev_kvs.append(old.message())
            answer.deleted += 1
            self.changes.append(Version(key, self.revision + 1, count[0], True))
            count[0] += 1
        return answer

    def check_put(self, request: pb.PutRequest, lease_first: bool) -> None:
        """Refuse what cannot be put now."""
        lease_gone = request.lease != 0 and request.lease not in self.leases
        if lease_gone and lease_first:
            raise RefusedError("LEASE_NOT_FOUND")
        kept = request.ignore_value or request.ignore_lease
        if kept and request.key not in self.live(self.revision):
            raise RefusedError("KEY_NOT_FOUND")
        if lease_gone:
            raise RefusedError("LEASE_NOT_FOUND")

    def _plan(self, txn: pb.TxnRequest) -> tuple[bool, list[tuple[pb.RequestOp, object]]]:
        succeeded = all(self.compares(compare) for compare in txn.compare)
        ops: Sequence[pb.RequestOp] = txn.success if succeeded else txn.failure
        return succeeded, [
            (op, self._plan(op.request_txn) if op.WhichOneof("request") == "request_txn" else None)
            for op in ops
        ]

    def _check_plan(self, plan: object, kind: str) -> None:
        assert isinstance(plan, tuple)
        for op, nested in plan[1]:
            which = op.WhichOneof("request")
            if nested is not None:
                self._check_plan(nested, kind)
            elif which == kind == "request_put":
                self.check_put(op.request_put, lease_first=False)
            elif which == kind == "request_range":
                self.check_range(op.request_range, in_txn=True)

    def _run(self, plan: object, count: list[int]) -> pb.TxnResponse:
        assert isinstance(plan, tuple)
        answer = pb.TxnResponse(succeeded=plan[0])
        for op, nested in plan[1]:
            out = answer.responses.add()
            which = op.WhichOneof("request")
            if which == "request_put":
                out.response_put.CopyFrom(self.put(op.request_put, count))
                out.response_put.header.revision = self.revision + 1
            elif which == "request_delete_range":
                out.response_delete_range.CopyFrom(self.delete(op.request_delete_range, count))
                out.response_delete_range.header.revision = self._main(count[0])
            elif which == "request_range":
                current = self._main(count[0])
                out.response_range.CopyFrom(self.range(op.request_range, current))
                out.response_range.header.revision = current
            else:
                out.response_txn.CopyFrom(self._run(nested, count))
                out.response_txn.header.SetInParent()
        return answer

    def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Run a txn."""
        plan = self._plan(request)
        self._check_plan(plan, "request_put")
        self._check_plan(plan, "request_range")
        count = [0]
        answer = self._run(plan, count)
        self.revision = self._main(count[0])
        return answer

    def compact(self, revision: int) -> None:
        """Set the compact revision."""
        if revision <= self.compact_revision:
            raise RefusedError("COMPACTED")
        if revision > self.revision:
            raise RefusedError("FUTURE_REVISION")
        self.compact_revision = revision

    def revoke(self, lease: int) -> None:
        """Revoke a lease: its keys go in one revision, in order."""
        if lease not in self.leases:
            raise RefusedError("LEASE_NOT_FOUND")
        keys = sorted(self.lease_keys(lease))
        self.changes += [Version(k, self.revision + 1, i, True) for i, k in enumerate(keys)]
        self.revision = self._main(len(keys))
        del self.leases[lease]
