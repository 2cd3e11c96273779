"""An asyncio client of any etcd v3 endpoint list.

    async with Client(["http://127.0.0.1:2379"]) as client:
        await client.put("name", "value")
        async with client.watch("jobs/", prefix=True) as changes:
            async for batch in changes: ...

Reads go to another endpoint when one fails; a write that may have taken effect is never repeated.
"""

from trimaran.client.cluster import ClusterCalls
from trimaran.client.endpoints import Dialing, TLSOptions
from trimaran.client.kv import KeyValueCalls
from trimaran.client.lease import KeepAlive, LeaseCalls
from trimaran.client.ops import Compare, Delete, Get, Op, Put, Txn, prefix_range_end
from trimaran.client.results import (
    DeleteResult,
    Event,
    EventType,
    KeyValue,
    Lease,
    LeaseStatus,
    Member,
    PutResult,
    RangeResult,
    Status,
    TxnResult,
    WatchBatch,
)
from trimaran.client.watch import WatchCalls, Watcher


class Client(KeyValueCalls, WatchCalls, LeaseCalls, ClusterCalls):
    """A client of the store; see `Caller` for its arguments and `call` for what it raises.

    It does nothing until it is used, belongs to the event loop of its first use, and is closed
    by `close()` or at the end of its `async with`.
    """


__all__ = [
    "Client",
    "Compare",
    "Delete",
    "DeleteResult",
    "Dialing",
    "Event",
    "EventType",
    "Get",
    "KeepAlive",
    "KeyValue",
    "Lease",
    "LeaseStatus",
    "Member",
    "Op",
    "Put",
    "PutResult",
    "RangeResult",
    "Status",
    "TLSOptions",
    "Txn",
    "TxnResult",
    "WatchBatch",
    "Watcher",
    "prefix_range_end",
]
