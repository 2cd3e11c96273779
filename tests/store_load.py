"""Clients that keep a cluster busy and record what they did; a process of its own.

    python tests/store_load.py --prefix P --seed N --history FILE ENDPOINT ...

Prints "ready" after the first answer of each member, then a line "CALL_NS RETURN_NS MEMBER" for
each answered write of the probers, of which one asks each member every 50 ms, without waiting for
the answer before. At the end of its standard input it writes a last key, waits until the watches
have seen it, and writes the history.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from store_history import Event, History, Lease, Operation, Watched
from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS

KEYS = 6
CLIENTS_OF_MEMBER = 3
# On average, between an answer and the next call of a client.
PAUSE_S = 0.03
PROBE_S = 0.05
CALL_TIMEOUT_S = 3.0
LAST_TIMEOUT_S = 30.0
LEASE_TTL_S = 4
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 100),
]

STREAM_ERRORS = (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError)


class Load:
    """All clients.

    Args:
        endpoints: HOST:PORT of each member.
        prefix: of every key.
        rng: everything random.
    """

    def __init__(self, endpoints: list[str], prefix: str, rng: random.Random) -> None:
        self.prefix = prefix
        self.rng = rng
        self.history = History(prefix)
        self.channels = [grpc.aio.insecure_channel(e, options=OPTIONS) for e in endpoints]
        self.stopping = asyncio.Event()
        self.answered = [asyncio.Event() for _ in endpoints]
        self.numbers = itertools.count(1)
        self.clients = itertools.count(1)
        self.first_revision = 0
        self.last_revision = 0
        self.probes: set[asyncio.Task[None]] = set()

    def operation(self, client: int, member: int, kind: str, keys: list[str]) -> Operation:
        """Note a call that is about to be made."""
        number = next(self.numbers)
        operation = Operation(number, client, member, kind, [self.prefix + key for key in keys])
        if operation.is_write:
            operation.value = str(number)
        self.history.operations.append(operation)
        return operation

    async def call(self, member: int, name: str, request: Any) -> Any:
        """Make a call, named as e.g. "KV/Put"."""
        method = METHODS[f"/etcdserverpb.{name}"]
        stub = self.channels[member].unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        return await stub(request, timeout=CALL_TIMEOUT_S)

    async def carry_out(self, operation: Operation) -> bool:
        """Send an operation and note its answer; False where there is none."""
        method, request = request_of(operation)
        operation.call_ns = time.monotonic_ns()
        try:
            answer = await self.call(operation.member, method, request)
        except grpc.aio.AioRpcError as error:
            operation.error = f"{error.code().name}: {error.details()}"
            return False
        operation.return_ns = time.monotonic_ns()
        operation.revision = answer.header.revision
        note_answer(operation, answer)
        self.answered[operation.member].set()
        return True

    async def client(self, member: int) -> None:
        """Make one call after the other at one member."""
        client = next(self.clients)
        rng = random.Random(self.rng.random())
        kinds = ("put", "puts", "swap", "delete", "get", "list")
        while not self.stopping.is_set():
            kind = rng.choices(kinds, (25, 8, 20, 7, 32, 8))[0]
            first = rng.randrange(KEYS)
            keys = [f"k{first}"]
            if kind == "puts":
                keys = [f"pair{first}-a", f"pair{first}-b"]
            if kind == "list":
                keys = [rng.choice(("k", "pair"))]
            if kind == "swap":
                await self.swap(client, member, keys)
            else:
                operation = self.operation(client, member, kind, keys)
                operation.serializable = kind in ("get", "list") and rng.random() < 0.2
                await self.carry_out(operation)
            await asyncio.sleep(rng.uniform(0, 2 * PAUSE_S))

    async def swap(self, client: int, member: int, keys: list[str]) -> None:
        """Read a key, and put it if it is unchanged."""
        read = self.operation(client, member, "get", keys)
        if await self.carry_out(read):
            swap = self.operation(client, member, "swap", keys)
            swap.compared = read.found[0][2] if read.found else 0
            await self.carry_out(swap)

    async def prober(self, member: int) -> None:
        """Write at a member at fixed times, whatever became of the writes before."""
        client = next(self.clients)
        while not self.stopping.is_set():
            task = asyncio.create_task(self.probe(client, member))
            self.probes.add(task)
            task.add_done_callback(self.probes.discard)
            await asyncio.sleep(PROBE_S)

    async def probe(self, client: int, member: int) -> None:
        """Write one key and tell of the answer."""
        operation = self.operation(client, member, "put", [f"probe{member}"])
        if await self.carry_out(operation):
            print(operation.call_ns, operation.return_ns, member, flush=True)

    async def leases(self, member: int) -> None:
        """Grant leases, keep each alive for a while, and leave it alone."""
        client = next(self.clients)
        rng = random.Random(self.rng.random())
        for number in itertools.count():
            if self.stopping.is_set():
                return
            key = f"leased{member}-{number}"
            with contextlib.suppress(*STREAM_ERRORS):
                start_ns = time.monotonic_ns()
                grant = pb.LeaseGrantRequest(TTL=LEASE_TTL_S)
                granted = await self.call(member, "Lease/LeaseGrant", grant)
                operation = self.operation(client, member, "put", [key])
                lease = Lease(self.prefix + key, granted.TTL, start_ns)
                self.history.leases.append(lease)
                operation.compared = granted.ID
                if await self.carry_out(operation):
                    await self.keep_alive(member, granted.ID, lease, rng.randrange(2, 6))
            await asyncio.sleep(PAUSE_S)

    async def keep_alive(self, member: int, lease_id: int, lease: Lease, times: int) -> None:
        """Renew a lease some times."""
        method = METHODS["/etcdserverpb.Lease/LeaseKeepAlive"]
        stub = self.channels[member].stream_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        for _ in range(times):
            stream = stub(timeout=CALL_TIMEOUT_S)
            call_ns = time.monotonic_ns()
            await stream.write(pb.LeaseKeepAliveRequest(ID=lease_id))
            answer = await stream.read()
            stream.cancel()
            if answer is grpc.aio.EOF or answer.TTL <= 0:
                return
            lease.renewed_ns = call_ns
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), LEASE_TTL_S / 8)

    async def watch(self, member: int) -> None:
        """Watch everything from the start of the load, at another member after each failure."""
        watched = Watched(member, self.first_revision)
        self.history.watches.append(watched)
        while not self.has_seen_all(watched):
            stream = self.open_watch(member)
            try:
                await self.follow(stream, watched)
            except STREAM_ERRORS:
                watched.resumed += 1
                member = (member + 1) % len(self.channels)
                await asyncio.sleep(PAUSE_S)
            finally:
                stream.cancel()

    def has_seen_all(self, watched: Watched) -> bool:
        """Whether a watch has come to the end of the load."""
        return 0 < self.last_revision < watched.next_revision

    def open_watch(self, member: int) -> Any:
        """Open a stream for watches that does not stay mute where there is no leader."""
        method = METHODS["/etcdserverpb.Watch/Watch"]
        return self.channels[member].stream_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )(metadata=(("hasleader", "true"),))

    async def follow(self, stream: Any, watched: Watched) -> None:
        """Read a watch until it ends or has seen all."""
        create = pb.WatchCreateRequest(
            key=self.prefix.encode(),
            range_end=prefix_end(self.prefix),
            start_revision=watched.next_revision,
        )
        await stream.write(pb.WatchRequest(create_request=create))
        while not self.has_seen_all(watched):
            response = await stream.read()
            now_ns = time.monotonic_ns()
            if response is grpc.aio.EOF or response.canceled:
                raise asyncio.InvalidStateError("the watch ended")
            for event in response.events:
                is_put = event.type == pb.Event.PUT
                text: Event = (is_put, event.kv.key.decode(), event.kv.value.decode())
                watched.events.append((event.kv.mod_revision, text, now_ns))

    async def run(self, stop: Callable[[], Awaitable[None]]) -> None:
        """Keep the cluster busy until told to stop, and let the watches come to the end."""
        await self.find_first_revision()
        members = range(len(self.channels))
        tasks = [
            asyncio.create_task(self.client(m)) for m in members for _ in range(CLIENTS_OF_MEMBER)
        ]
        tasks += [asyncio.create_task(self.prober(m)) for m in members]
        tasks += [asyncio.create_task(self.leases(m)) for m in members]
        watches = [asyncio.create_task(self.watch(m)) for m in members]
        for answered in self.answered:
            await answered.wait()
        print("ready", flush=True)
        await stop()
        self.stopping.set()
        await asyncio.gather(*tasks, *self.probes)
        await self.write_last()
        # One of them may be waiting at a member that has no leader.
        done, pending = await asyncio.wait(watches, timeout=LAST_TIMEOUT_S)
        if pending:
            raise TimeoutError(f"{len(pending)} watches have not seen {self.last_revision}")
        for task in done:
            task.result()

    async def find_first_revision(self) -> None:
        """Find out the revision before the load."""
        while not self.first_revision:
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await self.call(0, "KV/Range", pb.RangeRequest(key=b"x"))
                self.first_revision = answer.header.revision + 1

    async def write_last(self) -> None:
        """Write the last key, at whichever member takes it."""
        client = next(self.clients)
        deadline_s = time.monotonic() + LAST_TIMEOUT_S
        for member in itertools.cycle(range(len(self.channels))):
            operation = self.operation(client, member, "put", ["last"])
            if await self.carry_out(operation):
                self.last_revision = operation.revision
                return
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the last write is not taken: {operation.error}")
            await asyncio.sleep(PAUSE_S)


def prefix_end(prefix: str) -> bytes:
    """The first key after all keys with a prefix."""
    key = prefix.encode()
    return key[:-1] + bytes([key[-1] + 1])


def request_of(operation: Operation) -> tuple[str, Any]:
    """Give the method and the request of an operation."""
    key = operation.keys[0].encode()
    value = operation.value.encode()
    if operation.kind == "put":
        return "KV/Put", pb.PutRequest(key=key, value=value, lease=operation.compared)
    if operation.kind == "delete":
        return "KV/DeleteRange", pb.DeleteRangeRequest(key=key)
    if operation.kind == "get":
        return "KV/Range", pb.RangeRequest(key=key, serializable=operation.serializable)
    if operation.kind == "list":
        end = prefix_end(operation.keys[0])
        return "KV/Range", pb.RangeRequest(
            key=key, range_end=end, serializable=operation.serializable
        )
    txn = pb.TxnRequest()
    if operation.kind == "swap":
        compare = pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=operation.compared)
        txn.compare.append(compare)
        txn.failure.add().request_range.CopyFrom(pb.RangeRequest(key=key))
    for each in operation.keys:
        txn.success.add().request_put.CopyFrom(pb.PutRequest(key=each.encode(), value=value))
    return "KV/Txn", txn


def note_answer(operation: Operation, answer: Any) -> None:
    """Note what an answer says beside its revision."""
    kvs = []
    if operation.kind in ("get", "list"):
        kvs = answer.kvs
    elif operation.kind == "delete":
        operation.took_effect = answer.deleted > 0
    elif operation.kind == "swap":
        operation.took_effect = answer.succeeded
        if not answer.succeeded:
            kvs = answer.responses[0].response_range.kvs
    else:
        operation.took_effect = True
    operation.found = [(kv.key.decode(), kv.value.decode(), kv.mod_revision) for kv in kvs]


async def until_input_ends() -> None:
    """Wait for the end of standard input."""
    await asyncio.to_thread(sys.stdin.read)


def main() -> int:
    """Run the load; the exit code is 1 where it could not come to its end."""
    parser = argparse.ArgumentParser(description="keep a cluster busy and record what happened")
    parser.add_argument("--prefix", required=True, help="of every key")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--history", type=Path, required=True, help="file to write")
    parser.add_argument("endpoints", nargs="+", help="HOST:PORT of each member")
    options = parser.parse_args()

    async def run() -> None:
        load = Load(options.endpoints, options.prefix, random.Random(options.seed))
        try:
            await load.run(until_input_ends)
        finally:
            load.history.save(options.history)

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
