"""Reading and writing keys."""

from collections.abc import Sequence
from typing import Any

from trimaran.client.calls import Caller
from trimaran.client.ops import Compare, Delete, Get, Key, Op, Put, Txn
from trimaran.client.results import (
    DeleteResult,
    KeyValue,
    PutResult,
    RangeResult,
    TxnResult,
    delete_result,
    put_result,
    range_result,
    txn_result,
)
from trimaran.wire import etcd_pb2 as pb


class KeyValueCalls(Caller):
    """The KV service."""

    async def get(self, key: Key, **options: Any) -> RangeResult:
        """Read a key or a range.

        Args:
            key: the key, or the first one of the range.
            **options: the fields of `Get`: range_end (first key after the range), prefix (every
                key that begins with `key`), from_key (every key from `key` on); revision (read as
                of then; 0 is now); limit (0 is none); sort_order "none", "ascend", "descend";
                sort_target "key", "version", "create", "mod", "value"; serializable (the member's
                own view, without asking the leader); keys_only, count_only; min_mod_revision,
                max_mod_revision, min_create_revision, max_create_revision.

        Raises:
            CompactedError: the revision has been compacted away.
            StoreUnavailableError: no endpoint answered in time.
            StoreError: the store refused.
        """
        request = Get(key, **options).request()
        answer = await self.call(
            "/etcdserverpb.KV/Range", request, pb.RangeResponse, repeatable=True
        )
        return range_result(answer)

    async def get_one(self, key: Key, **options: Any) -> KeyValue | None:
        """Read one key, None where there is none; options and errors as `get`'s."""
        kvs = (await self.get(key, **options)).kvs
        return kvs[0] if kvs else None

    async def put(
        self,
        key: Key,
        value: Key = b"",
        *,
        lease: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
    ) -> PutResult:
        """Write a key.

        Args:
            key, value: bytes, or text that is sent as UTF-8.
            lease: id of the lease the key shall die with; 0 takes it off its lease.
            prev_kv: answer what the key was before.
            ignore_value: keep the key's value, change only its lease.
            ignore_lease: keep the key's lease, change only its value.

        Raises:
            StoreUnavailableError: it is not known whether the write took effect, unless the text
                says that no endpoint could be connected to: then it was not sent.
            StoreError: the store refused; nothing has changed.
        """
        operation = Put(key, value, lease, prev_kv, ignore_value, ignore_lease)
        answer = await self.call("/etcdserverpb.KV/Put", operation.request(), pb.PutResponse)
        return put_result(answer)

    async def delete(
        self,
        key: Key,
        *,
        range_end: Key | None = None,
        prefix: bool = False,
        from_key: bool = False,
        prev_kv: bool = False,
    ) -> DeleteResult:
        """Delete a key or a range; errors as `put`'s."""
        request = Delete(key, range_end, prefix, from_key, prev_kv).request()
        answer = await self.call("/etcdserverpb.KV/DeleteRange", request, pb.DeleteRangeResponse)
        return delete_result(answer)

    async def txn(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TxnResult:
        """Do the operations of `success` if all conditions hold, else those of `failure`.

        A transaction that only reads is repeated like a read; any other like a write.
        Errors as `put`'s.
        """
        txn = Txn(compare, success, failure)
        answer = await self.call(
            "/etcdserverpb.KV/Txn", txn.request(), pb.TxnResponse, repeatable=txn.reads_only()
        )
        return txn_result(answer)

    async def compact(self, revision: int, physical: bool = False) -> None:
        """Drop the history before a revision.

        Args:
            revision: the oldest one that stays readable.
            physical: answer only when the space is free.

        Raises:
            CompactedError: that has happened already.
            StoreError: the revision is in the future.
        """
        request = pb.CompactionRequest(revision=revision, physical=physical)
        await self.call("/etcdserverpb.KV/Compact", request, pb.CompactionResponse)
