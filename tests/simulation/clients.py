"""Clients of the simulated cluster, and the record of what they asked and were told."""

import random
from collections.abc import Callable
from typing import Protocol

from checkers.history import (
    COMPARE_AND_PUT,
    DELETE,
    FAILED,
    GET,
    OK,
    PUT,
    Event,
    Operation,
    Pair,
    Watch,
    WatchResponse,
    WatchSegment,
)
from simulation.options import TICK_US, Options
from simulation.world import World
from trimaran.errors import StatusCode
from trimaran.wire import etcd_pb2 as pb

# Refused before anything was done, or for what the request is.
CERTAIN_FAILURES = {
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.OUT_OF_RANGE,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.RESOURCE_EXHAUSTED,
}
LEARNER = b"rpc not supported for learner"
CALL_US = 500  # from a client to a member, and back
COMPACTED = 11  # gRPC's OUT_OF_RANGE

Done = Callable[[int, bytes], None]


class Server(Protocol):
    """A host, as its clients see it."""

    number: int

    @property
    def serves(self) -> bool:
        """Whether anybody listens there."""

    def begin(self, name: str, request: bytes, answer: Done) -> int:
        """Begin a call; returns its number."""

    def message(self, number: int, request: bytes) -> None:
        """Go on with a stream."""

    def cancel(self, number: int) -> None:
        """Go away."""


class Cluster(Protocol):
    """Where clients find members."""

    def servers(self) -> list[Server]:
        """All hosts, those that are down included."""


class KvClient:
    """One client that does one operation after the other.

    Args:
        number: of the client.
        world, options: as everybody's.
        cluster: where to find members.
        history: takes every operation.
    """

    def __init__(
        self,
        number: int,
        world: World,
        options: Options,
        cluster: Cluster,
        history: list[Operation],
    ) -> None:
        self.number = number
        self.is_stopped = False
        self._world = world
        self._options = options
        self._cluster = cluster
        self._history = history
        self._chance = world.chance(f"client {number}")
        self._server: Server | None = None
        self._call = 0
        self._values = 0
        self._seen: dict[str, int] = {}  # the last mod_revision seen of each key
        self._pending: Operation | None = None
        self._timeout_us = self._chance.randint(5, 60) * TICK_US
        self._think()

    def _think(self) -> None:
        ticks = self._chance.expovariate(1 / self._options.think_ticks)
        self._world.after(int(ticks * TICK_US), self._ask)

    def _ask(self) -> None:
        if self.is_stopped:
            return
        servers = self._cluster.servers()
        if self._server not in servers or self._chance.random() < 0.05:
            self._server = self._chance.choice(servers)
        operation = self._draw()
        self._history.append(operation)
        self._pending = operation
        if not self._server.serves:
            self._world.after(CALL_US, self._refused, operation)
            return
        operation.note = f"member {self._server.number}"
        self._world.after(CALL_US, self._send, operation, self._server)
        self._world.after(self._timeout_us, self._time_out, operation)

    def _refused(self, operation: Operation) -> None:
        operation.outcome, operation.note = FAILED, "nobody listens"
        self._end(operation)

    def _draw(self) -> Operation:
        chance, options = self._chance, self._options
        key = f"k{chance.randrange(options.keys)}"
        at = self._world.now_us
        if chance.random() < options.reads:
            serializable = chance.random() < options.serializable
            end = "l" if options.keys > 1 and chance.random() < 0.1 else ""
            key = "k" if end else key
            return Operation(self.number, GET, key, at, end=end, serializable=serializable)
        self._values += 1
        value = f"{self.number}.{self._values}"
        if options.large_values and chance.random() < 0.3:
            value += "." * chance.randint(100, 3000)
        kind = chance.random()
        if kind < 0.55:
            return Operation(self.number, PUT, key, at, value=value)
        if kind < 0.7:
            end = "l" if options.keys > 1 and chance.random() < 0.2 else ""
            return Operation(self.number, DELETE, "k" if end else key, at, end=end)
        compare = self._seen.get(key, 0)
        return Operation(
            self.number, COMPARE_AND_PUT, key, at, value=value, compare_revision=compare
        )

    def _send(self, operation: Operation, server: Server) -> None:
        if operation is not self._pending:
            return
        if not server.serves:
            self._refused(operation)
            return
        name, request = encode(operation)

        def answered(status: int, data: bytes) -> None:
            if status == 0:
                return
            if status < 0:
                data = bytes(data)
            self._world.after(CALL_US, self._answered, operation, status, data)

        self._world.note("call", self.number, server.number, operation)
        self._call = server.begin(name, request, answered)

    def _answered(self, operation: Operation, status: int, data: bytes) -> None:
        if operation is not self._pending:
            return
        if status >= 0:
            operation.note += f" {data.decode()}"
            if status in CERTAIN_FAILURES or LEARNER in data:
                operation.outcome = FAILED
            self._world.count(f"answers {data.decode()}", self.number)
            self._end(operation)
            self._server = None
            return
        operation.outcome = OK
        operation.end_time = self._world.now_us
        decode(operation, data)
        for pair in operation.pairs:
            self._seen[pair.key] = pair.mod_revision
        if operation.writes:
            self._seen[operation.key] = 0 if operation.kind == DELETE else operation.revision
        elif operation.kind == COMPARE_AND_PUT:
            self._seen.pop(operation.key, None)
        self._world.count(f"{operation.kind} answered", operation)
        self._end(operation)

    def _time_out(self, operation: Operation) -> None:
        if operation is not self._pending:
            return
        self._world.count("calls timed out", operation)
        if self._server is not None and self._server.serves:
            self._server.cancel(self._call)
        self._server = None
        self._end(operation)

    def _end(self, operation: Operation) -> None:
        self._pending = None
        self._think()


def encode(operation: Operation) -> tuple[str, bytes]:
    """Give the call's name and the request of an operation."""
    key, end = operation.key.encode(), operation.end.encode()
    if operation.kind == GET:
        read = pb.RangeRequest(key=key, range_end=end, serializable=operation.serializable)
        return "range", read.SerializeToString()
    if operation.kind == DELETE:
        return "delete", pb.DeleteRangeRequest(key=key, range_end=end).SerializeToString()
    put = pb.PutRequest(key=key, value=operation.value.encode())
    if operation.kind == PUT:
        return "put", put.SerializeToString()
    txn = pb.TxnRequest()
    compare = txn.compare.add(target=pb.Compare.MOD, result=pb.Compare.EQUAL, key=key)
    compare.mod_revision = operation.compare_revision
    txn.success.add().request_put.CopyFrom(put)
    return "txn", txn.SerializeToString()


def decode(operation: Operation, data: bytes) -> None:
    """Fill in what an operation was answered."""
    answer: pb.RangeResponse | pb.PutResponse | pb.DeleteRangeResponse | pb.TxnResponse
    if operation.kind == GET:
        answer = pb.RangeResponse.FromString(data)
        operation.pairs = tuple(
            Pair(kv.key.decode(), kv.value.decode(), kv.mod_revision) for kv in answer.kvs
        )
    elif operation.kind == PUT:
        answer = pb.PutResponse.FromString(data)
    elif operation.kind == DELETE:
        answer = pb.DeleteRangeResponse.FromString(data)
        operation.deleted = answer.deleted
    else:
        answer = pb.TxnResponse.FromString(data)
        operation.succeeded = answer.succeeded
    operation.revision = answer.header.revision


class WatchClient:
    """A client that watches everything from the beginning, and resumes elsewhere when cut.

    Args:
        world: time and chance.
        cluster: where to find members.
        name: of the watcher.
        key, end: the range.
        stays: do not move to another member for no reason.
    """

    def __init__(
        self, world: World, cluster: Cluster, name: str, key: str, end: str, stays: bool = False
    ) -> None:
        self.watch = Watch(name, key, end)
        self.server: Server | None = None
        self.wanted: Server | None = None  # where to go next, if it serves
        self._world = world
        self._cluster = cluster
        self._chance: random.Random = world.chance(f"watch {name}")
        self._stays = stays
        self._call = 0
        self._attempt = 0
        self._open()

    @property
    def revision(self) -> int:
        """Up to where everything was seen."""
        return self.watch.next_revision() - 1

    def _open(self) -> None:
        self._attempt += 1
        if self.server is not None and self.server.serves:
            self.server.cancel(self._call)
        servers = [server for server in self._cluster.servers() if server.serves]
        self.server = None
        if not servers:
            self._world.after(TICK_US, self._open)
            return
        server = self.wanted if self.wanted in servers else self._chance.choice(servers)
        assert server is not None
        self.server = server
        start = max(self.watch.next_revision(), 1)
        if self.watch.segments and self.watch.segments[-1].compacted:
            start = max(start, self.watch.segments[-1].compacted)
        segment = WatchSegment(start, server.number)
        self.watch.segments.append(segment)
        request = pb.WatchRequest()
        create = request.create_request
        create.key, create.range_end = self.watch.key.encode(), self.watch.end.encode()
        create.start_revision, create.progress_notify = start, True
        attempt = self._attempt

        def answered(status: int, data: bytes) -> None:
            self._world.after(CALL_US, self._answered, attempt, segment, status, data)

        self._call = server.begin("watch", request.SerializeToString(), answered)
        self._world.count("watches opened", self.watch.name, server.number, start)
        if not self._stays:
            ticks = self._chance.randint(10, 120)
            self._world.after(ticks * TICK_US, self._move, attempt)
        self._world.after(self._chance.randint(5, 30) * TICK_US, self._ask_progress, attempt)

    def move(self, server: Server) -> None:
        """Go on at a certain member."""
        self.wanted = server
        self._open()

    def _move(self, attempt: int) -> None:
        if attempt == self._attempt:
            self._open()

    def _ask_progress(self, attempt: int) -> None:
        if attempt != self._attempt or self.server is None or not self.server.serves:
            return
        request = pb.WatchRequest()
        request.progress_request.SetInParent()
        self.server.message(self._call, request.SerializeToString())
        self._world.after(self._chance.randint(5, 30) * TICK_US, self._ask_progress, attempt)

    def gone(self, server: Server) -> None:
        """A member has crashed; its clients notice."""
        if self.server is server:
            self._attempt += 1
            self.server = None
            self._world.after(TICK_US, self._open)

    def _answered(self, attempt: int, segment: WatchSegment, status: int, data: bytes) -> None:
        if attempt != self._attempt:
            return
        if status >= 0:
            self.server = None
            self._attempt += 1
            self._world.after(TICK_US, self._open)
            return
        answer = pb.WatchResponse.FromString(data)
        if answer.created:
            return
        if answer.canceled:
            segment.compacted = answer.compact_revision
            self._world.count("watches cancelled", self.watch.name, answer.compact_revision)
            self._open()
            return
        events = tuple(
            Event(
                event.kv.mod_revision,
                event.kv.key.decode(),
                None if event.type == pb.Event.DELETE else event.kv.value.decode(),
            )
            for event in answer.events
        )
        self._world.counts["watch events"] += len(events)
        self._world.note("watched", self.watch.name, answer.header.revision, len(events))
        segment.responses.append(WatchResponse(events, answer.header.revision))
