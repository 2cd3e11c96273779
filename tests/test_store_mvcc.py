"""The MVCC state against a plain model: random operations, restarts and crashes at any moment."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from store_engine import (
    COMPACT,
    DELETE,
    LEASE_GRANT,
    LEASE_REVOKE,
    PUT,
    TXN,
    Change,
    Engine,
)
from store_model import Model, RefusedError, Version
from trimaran.wire import etcd_pb2 as pb

KEYS = [b"a", b"a\0", b"ab", b"b", b"b\xff", b"c", b"\0", b"\xff", b"key/1", b"key/2", b"k" * 300]
ENDS = [b"", b"", b"", b"\0", b"b", b"c", b"key0", b"\xff", b"a\0", b"a"]
Operation = tuple[int, bytes]


def refusal(run: Callable[[], None]) -> str:
    """Return the model's error, "" where it refuses nothing."""
    try:
        run()
    except RefusedError as error:
        return str(error)
    return ""


class Walk:
    """A random walk of an engine and its model, in step."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self.engine = Engine(directory)
        self.model = Model()
        self.index = 0
        self.sealed = False
        self.log: dict[int, Operation] = {}

    # Requests.

    def key(self) -> bytes:
        return self.random.choice(KEYS)

    def revision(self) -> int:
        return self.random.randint(-1, self.model.revision + 1)

    def lease(self) -> int:
        return self.random.choice([0, 0, 0, 1, 2, -5, 1 << 62])

    def put(self) -> pb.PutRequest:
        ignore_value = self.random.random() < 0.1
        ignore_lease = self.random.random() < 0.1
        return pb.PutRequest(
            key=self.key(),
            value=b"" if ignore_value else self.random.randbytes(self.random.choice([0, 3, 300])),
            lease=0 if ignore_lease else self.lease(),
            prev_kv=self.random.random() < 0.3,
            ignore_value=ignore_value,
            ignore_lease=ignore_lease,
        )

    def delete(self) -> pb.DeleteRangeRequest:
        return pb.DeleteRangeRequest(
            key=self.key(),
            range_end=self.random.choice(ENDS),
            prev_kv=self.random.random() < 0.3,
        )

    def range(self) -> pb.RangeRequest:
        def sometimes(value: int) -> int:
            return value if self.random.random() < 0.15 else 0

        return pb.RangeRequest(
            key=self.key(),
            range_end=self.random.choice([*ENDS, b"\0", b"\xff\xff"]),
            limit=self.random.choice([0, 0, -1, 1, 2, 5, 2**63 - 1]),
            revision=sometimes(self.revision()) or self.random.choice([0, self.revision()]),
            sort_order=self.random.choice([0, 0, 1, 2]),
            sort_target=self.random.choice([0, 0, 1, 2, 3, 4]),
            keys_only=self.random.random() < 0.2,
            count_only=self.random.random() < 0.1,
            min_mod_revision=sometimes(self.revision()),
            max_mod_revision=sometimes(self.revision()),
            min_create_revision=sometimes(self.revision()),
            max_create_revision=sometimes(self.revision()),
        )

    def compare(self) -> pb.Compare:
        target = self.random.randrange(5)
        compare = pb.Compare(
            result=self.random.randrange(4),
            target=target,
            key=self.key(),
            range_end=self.random.choice(ENDS),
        )
        if target == pb.Compare.VALUE:
            compare.value = self.random.randbytes(self.random.randrange(2))
        else:
            name = ("version", "create_revision", "mod_revision", "", "lease")[target]
            setattr(compare, name, self.random.randrange(4))
        return compare

    def txn(self, depth: int = 0) -> pb.TxnRequest:
        txn = pb.TxnRequest(compare=[self.compare() for _ in range(self.random.choice([0, 1, 2]))])
        for branch in (txn.success, txn.failure):
            for _ in range(self.random.choice([0, 1, 3])):
                kind = self.random.random()
                if kind < 0.4:
                    branch.add(request_put=self.put())
                elif kind < 0.6:
                    branch.add(request_delete_range=self.delete())
                elif kind < 0.8:
                    branch.add(request_range=self.range())
                elif depth < 3:
                    branch.add(request_txn=self.txn(depth + 1))
        return txn

    # Steps.

    def apply(self, kind: int, request: bytes) -> tuple[str, bytes]:
        self.index += 1
        self.log[self.index] = (kind, request)
        return self.engine.apply(self.index, kind, request)

    def expect(self, kind: int, request: bytes, run: object, answer_type: type) -> None:
        """Apply in both, compare error and answer."""
        assert callable(run)
        try:
            wanted, wanted_error = run(), ""
        except RefusedError as error:
            wanted, wanted_error = None, str(error)
        error, data = self.apply(kind, request)
        assert error == wanted_error
        if wanted is None:
            assert data == b""
            return
        answer = answer_type.FromString(data)
        header = pb.ResponseHeader(cluster_id=7, member_id=8, revision=self.model.revision)
        assert answer.header == header
        answer.ClearField("header")
        assert answer == wanted
        # What the engine wrote is also how protobuf itself would.
        answer.header.CopyFrom(header)
        assert answer.SerializeToString() == data

    def write(self) -> None:
        kind = self.random.random()
        if kind < 0.45:
            put = self.put()

            def run_put() -> pb.PutResponse:
                self.model.check_put(put, lease_first=True)
                answer = self.model.put(put, [0])
                self.model.revision += 1
                return answer

            self.expect(PUT, put.SerializeToString(), run_put, pb.PutResponse)
        elif kind < 0.6:
            delete = self.delete()

            def run_delete() -> pb.DeleteRangeResponse:
                count = [0]
                answer = self.model.delete(delete, count)
                self.model.revision += count[0] > 0
                return answer

            self.expect(DELETE, delete.SerializeToString(), run_delete, pb.DeleteRangeResponse)
        else:
            txn = self.txn()
            if self.engine.check_txn(txn.SerializeToString()) == "":
                self.expect(
                    TXN, txn.SerializeToString(), lambda: self.model.txn(txn), pb.TxnResponse
                )

    def change_lease(self) -> None:
        lease = self.random.choice([1, 2, 3, -5, 1 << 62, -(1 << 63)])
        if self.random.random() < 0.7:
            error, _ = self.apply(
                LEASE_GRANT, pb.LeaseGrantRequest(ID=lease, TTL=lease & 255).SerializeToString()
            )
            assert error == ("LEASE_EXISTS" if lease in self.model.leases else "")
            self.model.leases.setdefault(lease, lease & 255)
            return
        error, _ = self.apply(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease).SerializeToString())
        assert error == refusal(lambda: self.model.revoke(lease))

    def compact(self) -> None:
        revision = self.revision()
        request = pb.CompactionRequest(revision=revision).SerializeToString()
        self.expect(
            COMPACT,
            request,
            lambda: self.model.compact(revision) or pb.CompactionResponse(),
            pb.CompactionResponse,
        )

    def read(self) -> None:
        request = self.range()
        error, data = self.engine.range(request.SerializeToString())
        assert error == refusal(lambda: self.model.check_range(request, in_txn=False))
        if error:
            return
        answer = pb.RangeResponse.FromString(data)
        assert answer.header.revision == self.model.revision
        answer.ClearField("header")
        assert answer == self.model.range(request, self.model.revision)

    def commit(self) -> None:
        if self.sealed and self.random.random() < 0.5:
            self.engine.collect()
            self.sealed = False
        elif not self.sealed:
            self.sealed = self.engine.seal()

    def reopen(self) -> None:
        self.engine.reopen()
        self.sealed = False
        assert self.engine.state().applied == self.index

    def crash(self) -> None:
        """Lose the process, then replay the log from where the state stands on disk."""
        self.engine.kill()
        self.engine = Engine(self.directory)
        self.sealed = False
        applied = self.engine.state().applied
        assert applied <= self.index
        for index in range(applied + 1, self.index + 1):
            self.engine.apply(index, *self.log[index])

    def step(self) -> None:
        kind = self.random.random()
        if kind < 0.5:
            self.write()
        elif kind < 0.6:
            self.change_lease()
        elif kind < 0.62:
            self.compact()
        elif kind < 0.7:
            self.engine.compact_step(self.random.choice([1, 3, 100]))
        elif kind < 0.8:
            self.commit()
        elif kind < 0.98:
            self.read()
        elif kind < 0.99:
            self.reopen()
        else:
            self.crash()

    # Checks of everything.

    def check_changes(self, found: list[Change], wanted: list[Version]) -> None:
        assert [(c.main, c.sub, c.tombstone) for c in found] == [
            (v.main, v.sub, v.deleted) for v in wanted
        ]
        for change, version in zip(found, wanted, strict=True):
            assert pb.KeyValue.FromString(change.data) == version.message()

    def check(self) -> None:
        state, model = self.engine.state(), self.model
        assert (state.revision, state.compact_revision) == (model.revision, model.compact_revision)
        assert state.leases == {
            lease: (ttl_s, model.lease_keys(lease)) for lease, ttl_s in model.leases.items()
        }
        start = max(model.compact_revision, 1)
        for revision in range(start, model.revision + 1):
            request = pb.RangeRequest(key=b"\0", range_end=b"\0", revision=revision)
            error, data = self.engine.range(request.SerializeToString())
            assert error == ""
            assert pb.RangeResponse.FromString(data).kvs == model.range(request, revision).kvs
        later = [v for v in model.changes if v.main >= model.compact_revision]
        if state.compacting:
            return
        gone = model.dropped()
        kept = [v for v in model.changes if (v.main, v.sub) not in gone]
        self.check_changes(self.engine.scan(start), [v for v in later if v in kept])
        for key in KEYS:
            found = self.engine.history(key, start)
            self.check_changes(found, [v for v in kept if v.key == key and v.main >= start])


@pytest.mark.parametrize("seed", range(6))
def test_state_is_that_of_the_model(tmp_path: Path, seed: int) -> None:
    walk = Walk(tmp_path / "state", seed)
    for number in range(350):
        walk.step()
        if number % 50 == 49:
            walk.check()
    while walk.engine.compact_step(1000):
        pass
    walk.check()
    walk.reopen()
    walk.check()
    gone = walk.model.dropped()
    kept = [v for v in walk.model.changes if (v.main, v.sub) not in gone]
    walk.check_changes(walk.engine.scan(0), kept)
    with walk.engine:
        pass
