"""Writers that remember what was acknowledged, and the check of a store against that memory."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS

CALL_TIMEOUT_S = 20.0
KEYS_OF_WRITER = 8
EVERYTHING = {"key": b"\0", "range_end": b"\0"}


@dataclass
class Operation:
    """One write that was sent.

    Attributes:
        number: unique; also in every value it writes.
        kind: "put", "txn", "delete" or "swap" (a put if the key is unchanged).
        keys: what it writes or deletes. All or nothing of it may be found.
        lease: of its keys.
        after: the highest revision acknowledged to anyone when it was sent.
        revision: where it was acknowledged; 0 without an answer.
        took_effect: the answer said that something was written.
    """

    number: int
    kind: str
    keys: tuple[bytes, ...]
    lease: int
    after: int
    revision: int = 0
    took_effect: bool = False

    @property
    def value(self) -> bytes:
        """What it writes: names the operation."""
        return b"%d" % self.number


@dataclass
class Memory:
    """What the writers know, over all runs of the store.

    Attributes:
        operations: by number.
        leases: those whose grant was acknowledged, with their time to live in seconds.
        acknowledged: the highest revision any answer had.
        history: events by revision, as found by the last check.
    """

    operations: dict[int, Operation] = field(default_factory=dict)
    leases: dict[int, int] = field(default_factory=dict)
    acknowledged: int = 0
    history: dict[int, list[Any]] = field(default_factory=dict)
    numbers: Any = field(default_factory=itertools.count)


def connect(address: str) -> grpc.aio.Channel:
    """Open a connection that is shared with no other channel."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return grpc.aio.insecure_channel(address, options=options)


async def call(channel: grpc.aio.Channel, name: str, request: Any) -> Any:
    """Make a call, named as e.g. "KV/Put"."""
    method = METHODS[f"/etcdserverpb.{name}"]
    return await channel.unary_unary(
        method.path, method.request.SerializeToString, method.response.FromString
    )(request, timeout=CALL_TIMEOUT_S)


class Writer:
    """Writes one thing after the other, in keys of its own and one shared by all.

    Args:
        channel: may be shared with other writers.
        memory: where everything sent is noted before it is sent.
        name: prefix of its keys.
        rng: what to write.
        answered: set with the first answer to a write.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        memory: Memory,
        name: bytes,
        rng: random.Random,
        answered: asyncio.Event,
    ) -> None:
        self.channel = channel
        self.memory = memory
        self.name = name
        self.rng = rng
        self.lease = 0
        self.answered = answered

    async def run(self) -> None:
        """Write until the store is gone."""
        try:
            granted = await call(self.channel, "Lease/LeaseGrant", pb.LeaseGrantRequest(TTL=5000))
            self.lease = granted.ID
            self.memory.leases[granted.ID] = granted.TTL
            while True:
                await self.write()
        except grpc.aio.AioRpcError as error:
            gone = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            if error.code() not in gone:
                raise

    def key(self, number: int) -> bytes:
        return b"%s/%d" % (self.name, number)

    async def write(self) -> None:
        """Send one random write and note the answer."""
        kind = self.rng.choices(("put", "txn", "delete", "swap"), (50, 25, 10, 15))[0]
        first = self.rng.randrange(KEYS_OF_WRITER)
        keys = (self.key(first),)
        if kind == "txn":
            keys = tuple(self.key((first + i) % KEYS_OF_WRITER) for i in range(3))
        elif kind == "delete":
            keys = tuple(self.key(i) for i in range(KEYS_OF_WRITER))
        elif kind == "swap":
            keys = (b"shared",)
        lease = self.lease if self.rng.random() < 0.2 and kind != "swap" else 0
        memory = self.memory
        operation = Operation(next(memory.numbers), kind, keys, lease, memory.acknowledged)
        memory.operations[operation.number] = operation
        reply, operation.took_effect = await getattr(self, kind)(operation)
        operation.revision = reply.header.revision
        memory.acknowledged = max(memory.acknowledged, operation.revision)
        self.answered.set()

    async def put(self, operation: Operation) -> tuple[Any, bool]:
        request = pb.PutRequest(key=operation.keys[0], value=operation.value, lease=operation.lease)
        return await call(self.channel, "KV/Put", request), True

    async def txn(self, operation: Operation) -> tuple[Any, bool]:
        request = pb.TxnRequest()
        for key in operation.keys:
            request.success.add().request_put.CopyFrom(
                pb.PutRequest(key=key, value=operation.value, lease=operation.lease)
            )
        return await call(self.channel, "KV/Txn", request), True

    async def delete(self, operation: Operation) -> tuple[Any, bool]:
        request = pb.DeleteRangeRequest(key=self.name + b"/", range_end=self.name + b"0")
        reply = await call(self.channel, "KV/DeleteRange", request)
        return reply, reply.deleted > 0

    async def swap(self, operation: Operation) -> tuple[Any, bool]:
        found = await call(self.channel, "KV/Range", pb.RangeRequest(key=b"shared"))
        assert found.header.revision >= operation.after, "a read went back in time"
        seen = found.kvs[0].mod_revision if found.kvs else 0
        request = pb.TxnRequest(
            compare=[pb.Compare(target=pb.Compare.MOD, key=b"shared", mod_revision=seen)]
        )
        request.success.add().request_put.CopyFrom(
            pb.PutRequest(key=b"shared", value=operation.value)
        )
        reply = await call(self.channel, "KV/Txn", request)
        return reply, reply.succeeded


async def load(
    address: str, memory: Memory, rng: random.Random, connections: int, writers: int, kill: Any
) -> None:
    """Let writers write until the store is killed.

    Args:
        address: of the store.
        memory: what they note in.
        rng: everything random.
        connections: how many.
        writers: how many on each connection.
        kill: called once, in the middle of the load; ends the store.
    """
    channels = [connect(address) for _ in range(connections)]
    answered = asyncio.Event()
    tasks = []
    for i, j in itertools.product(range(connections), range(writers)):
        seeded = random.Random(rng.random())
        writer = Writer(channels[i], memory, b"w%d-%d" % (i, j), seeded, answered)
        tasks.append(asyncio.create_task(writer.run()))
    first = asyncio.create_task(answered.wait())
    await asyncio.wait([first, *tasks], return_when=asyncio.FIRST_COMPLETED)
    first.cancel()
    # Not waiting for anything: the moment itself is what varies.
    await asyncio.sleep(rng.uniform(0.0, 0.4))
    kill()
    await asyncio.gather(*tasks)
    for channel in channels:
        await channel.close()


async def replay(channel: grpc.aio.Channel, until: int) -> dict[int, list[Any]]:
    """Watch everything from the beginning up to a revision; give the events by revision."""
    method = METHODS["/etcdserverpb.Watch/Watch"]
    stream = channel.stream_stream(
        method.path, method.request.SerializeToString, method.response.FromString
    )(timeout=60.0)
    create = pb.WatchCreateRequest(**EVERYTHING, start_revision=1)
    await stream.write(pb.WatchRequest(create_request=create))
    history: dict[int, list[Any]] = {}
    last = 0
    while max(history, default=1) < until:
        response = await stream.read()
        assert response is not grpc.aio.EOF, "the watch ended"
        assert not response.canceled, f"the watch was cancelled: {response}"
        for event in response.events:
            revision = event.kv.mod_revision
            assert revision >= last, f"revision {revision} after {last}"
            last = revision
            history.setdefault(revision, []).append(event)
    stream.cancel()
    return history


def fold(history: dict[int, list[Any]], until: int) -> dict[bytes, Any]:
    """Give the keys as they are at a revision, by the events up to it."""
    keys: dict[bytes, Any] = {}
    for revision in sorted(history):
        if revision > until:
            break
        for event in history[revision]:
            if event.type == pb.Event.DELETE:
                keys.pop(event.kv.key)
            else:
                keys[event.kv.key] = event.kv
    return keys


async def check(address: str, memory: Memory, rng: random.Random) -> None:
    """Check that a store that was killed and started again has what it acknowledged.

    Raises:
        AssertionError: something is lost, torn, out of order or invented.
    """
    channel = connect(address)
    now = (await call(channel, "KV/Range", pb.RangeRequest(key=b"x"))).header.revision
    assert now >= memory.acknowledged, f"at {now}, but {memory.acknowledged} was acknowledged"
    history = await replay(channel, now)
    assert sorted(history) == list(range(2, now + 1)), "the revisions have gaps"
    for revision, events in memory.history.items():
        assert history[revision] == events, f"revision {revision} is not what it was"
    memory.history = history
    check_operations(memory)
    for revision in (now, *(rng.randint(2, now) for _ in range(3))):
        request = pb.RangeRequest(**EVERYTHING, revision=revision)
        found = (await call(channel, "KV/Range", request)).kvs
        expected = fold(history, revision)
        assert {kv.key: kv for kv in found} == expected, f"wrong keys at revision {revision}"
    await check_leases(channel, memory, fold(history, now))
    await channel.close()


def check_operations(memory: Memory) -> None:
    """Check every revision against the one operation that made it, and every answer."""
    at = {o.revision: o for o in memory.operations.values() if o.revision and o.took_effect}
    unanswered: dict[bytes, int] = {}
    for operation in memory.operations.values():
        if operation.kind == "delete" and not operation.revision:
            unanswered[operation.keys[0]] = unanswered.get(operation.keys[0], 0) + 1
        if operation.took_effect:
            text = f"{operation} was acknowledged"
            assert operation.revision in memory.history, text
            assert operation.revision > operation.after, f"{text} out of order"
    for revision, events in memory.history.items():
        operation = at.get(revision)
        puts = [event for event in events if event.type == pb.Event.PUT]
        if puts:
            maker = memory.operations[int(puts[0].kv.value)]
            check_puts(maker, revision, events)
            assert operation is None or operation is maker, f"{operation} has events of {maker}"
        elif operation is not None:
            assert operation.kind == "delete", f"{operation} became a deletion"
        else:
            first = events[0].kv.key.rpartition(b"/")[0] + b"/0"
            unanswered[first] = unanswered.get(first, 0) - 1
            assert unanswered[first] >= 0, f"nobody deleted {first!r} at {revision}"


def check_puts(maker: Operation, revision: int, events: Sequence[Any]) -> None:
    """Check that a revision has all of what an operation writes, and nothing else."""
    assert maker.revision in (0, revision), f"{maker} is at {revision}"
    assert maker.took_effect or not maker.revision, f"{maker} was refused"
    keys = tuple(sorted(event.kv.key for event in events))
    assert keys == tuple(sorted(maker.keys)), f"{maker} is torn: {keys}"
    for event in events:
        assert event.kv.value == maker.value
        assert event.kv.lease == maker.lease


async def check_leases(channel: grpc.aio.Channel, memory: Memory, keys: dict[bytes, Any]) -> None:
    """Check that every lease is there with the keys that are on it."""
    found = await call(channel, "Lease/LeaseLeases", pb.LeaseLeasesRequest())
    assert memory.leases.keys() <= {lease.ID for lease in found.leases}
    for lease, ttl_s in memory.leases.items():
        request = pb.LeaseTimeToLiveRequest(ID=lease, keys=True)
        reply = await call(channel, "Lease/LeaseTimeToLive", request)
        assert reply.grantedTTL == ttl_s
        assert sorted(reply.keys) == sorted(k for k, kv in keys.items() if kv.lease == lease)
