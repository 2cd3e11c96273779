"""Snapshots between members: a leader streams its state to one that its log no longer reaches.

A stream has a connection of its own. The sender opens with what it is going to send, the receiver
answers with the chunk it needs next: the first, or where an earlier connection broke off. Chunks
follow at a bounded pace, so that the sender goes on serving; the last answer says whether the state
was taken.
"""

import asyncio
import contextlib
import logging
import secrets
import shutil
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from trimaran.daemons.peer_connection import PeerStream
from trimaran.daemons.peer_transport import PeerTransport
from trimaran.errors import CorruptionError, ProtocolError
from trimaran.ext import failpoint
from trimaran.ext.member import Member
from trimaran.ext.snapshot import PreparedState, SnapshotReader, StateBuilder, complete

if TYPE_CHECKING:
    from trimaran.ext.snapshot import StateOptions

LOG = logging.getLogger("trimaran.snapshots")
OPEN: Final = 67  # frame kinds
CHUNK: Final = 68
ACKNOWLEDGE: Final = 69

BYTES_PER_S_MAX: Final = 64 * 1024**2
# Reading a chunk may take this share of the time, so that a sender has a core left to serve.
BUSY_SHARE: Final = 0.25
ATTEMPTS: Final = 5
OPEN_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 60.0
RETRY_S: Final = 0.5

_OPEN: Final = struct.Struct("<QQQ")  # stream's number, raft's term, index of the last entry
_CHUNK: Final = struct.Struct("<Q")  # number; 2**64 - 1 ends the stream
_ACKNOWLEDGE: Final = struct.Struct("<Q")  # next chunk; at the end 1: taken, 0: no news
_END: Final = 2**64 - 1

Result = TypeVar("Result")


async def in_thread(work: Callable[[], Result]) -> Result:
    """Run work in a thread of the executor."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


@dataclass(slots=True)
class _Building:
    """A state that is being received."""

    peer: int
    number: int
    builder: StateBuilder


@dataclass(slots=True)
class SnapshotCounts:
    """What was sent and received since the start."""

    sent: int = 0
    send_failures: int = 0
    received: int = 0
    receive_failures: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class StoreSnapshots:
    """Sends the member's state to those that need it, and takes what is sent to it.

    Args:
        member: the engine.
        options: it was opened with.
        transport: between the members.
        take: takes a snapshot of all that is applied.
        installed: called after the state was replaced.
        turn_soon: called when the engine has got something to do.
    """

    def __init__(
        self,
        member: Member,
        options: "StateOptions",
        transport: PeerTransport,
        take: Callable[[], Awaitable[SnapshotReader]],
        installed: Callable[[], None],
        turn_soon: Callable[[], None],
    ) -> None:
        self.counts = SnapshotCounts()
        self._member = member
        self._options = options
        self._transport = transport
        self._take = take
        self._installed = installed
        self._turn_soon = turn_soon
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending: set[int] = set()
        self._building: _Building | None = None
        self._receiving = asyncio.Lock()
        transport.on_stream = lambda stream: self._run(self._receive(stream))

    def send_wanted(self) -> None:
        """Begin to send where raft asks for it; to be called after each turn."""
        for peer in self._member.snapshot_requests():
            if peer not in self._sending:
                self._sending.add(peer)
                self._run(self._send(peer))

    async def stop(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._building is not None:
            self._building.builder.close()

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Sending.

    async def _send(self, peer: int) -> None:
        index = 0
        try:
            index = await self._send_until_taken(peer)
            self.counts.sent += 1
        except (OSError, CorruptionError, ProtocolError, TimeoutError) as error:
            self.counts.send_failures += 1
            LOG.warning("sending a snapshot to member %x failed: %s", peer, error)
        finally:
            self._sending.discard(peer)
            if index > 0:
                self._member.snapshot_sent(peer, index)
            else:
                self._member.snapshot_failed(peer)
            self._turn_soon()

    async def _send_until_taken(self, peer: int) -> int:
        """Send one snapshot, over several connections if need be; returns its index."""
        reader = await self._take()
        number = secrets.randbits(63)
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    await self._send_once(peer, number, reader)
                    return reader.index
                except (ConnectionError, TimeoutError, ProtocolError):
                    if attempt == ATTEMPTS:
                        raise
                    await asyncio.sleep(RETRY_S)
            raise AssertionError("unreachable")
        finally:
            await asyncio.shield(in_thread(reader.close))

    async def _send_once(self, peer: int, number: int, reader: SnapshotReader) -> None:
        term = self._member.status()["term"]
        stream = await self._transport.open_stream(peer)
        try:
            failpoint.hit("snapshot-send-begin")
            await stream.send(OPEN, _OPEN.pack(number, term, reader.index))
            chunk = await self._acknowledged(stream)
            LOG.info(
                "sending a snapshot of revision %d to member %x%s",
                reader.revision,
                peer,
                f", on from chunk {chunk}" if chunk > 0 else "",
            )
            await self._send_chunks(stream, reader, chunk)
            await stream.send(CHUNK, _CHUNK.pack(_END))
            if await self._acknowledged(stream) == 0:
                LOG.info("member %x has no need of the snapshot any more", peer)
        finally:
            stream.close()

    async def _send_chunks(self, stream: PeerStream, reader: SnapshotReader, chunk: int) -> None:
        while True:
            started_s = time.monotonic()
            data = await in_thread(partial(_chunk_or_none, reader, chunk))
            if data is None:
                return
            took_s = time.monotonic() - started_s
            failpoint.hit("snapshot-send-chunk")
            await stream.send(CHUNK, _CHUNK.pack(chunk) + data)
            self.counts.sent_bytes += len(data)
            chunk += 1
            pace_s = max(len(data) / BYTES_PER_S_MAX, took_s / BUSY_SHARE)
            await asyncio.sleep(max(0.0, started_s + pace_s - time.monotonic()))

    async def _acknowledged(self, stream: PeerStream) -> int:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            frame = await stream.receive()
        if frame is None:
            raise ConnectionResetError("the other member closed the connection")
        kind, body = frame
        if kind != ACKNOWLEDGE or len(body) != _ACKNOWLEDGE.size:
            raise ProtocolError(f"a frame of kind {kind} where an acknowledgement belongs")
        number: int = _ACKNOWLEDGE.unpack(body)[0]
        return number

    # Receiving.

    async def _receive(self, stream: PeerStream) -> None:
        try:
            # Before its turn comes: who opens a stream and says nothing holds nobody up.
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                frame = await stream.receive()
            if frame is None:
                return
            async with self._receiving:
                await self._receive_alone(stream, *frame)
            self.counts.received += 1
        except (OSError, CorruptionError, ProtocolError, TimeoutError) as error:
            self.counts.receive_failures += 1
            LOG.warning("a snapshot from member %x was not received: %s", stream.peer, error)
        finally:
            stream.close()

    async def _receive_alone(self, stream: PeerStream, kind: int, body: bytes) -> None:
        if kind != OPEN or len(body) != _OPEN.size:
            raise ProtocolError(f"a frame of kind {kind} where a snapshot should begin")
        number, term, index = _OPEN.unpack(body)
        building = await self._begin(stream.peer, number)
        try:
            builder = building.builder
            await stream.send(ACKNOWLEDGE, _ACKNOWLEDGE.pack(builder.next_chunk))
            await self._receive_chunks(stream, builder)
            if builder.facts["index"] != index:
                raise ProtocolError("the snapshot is another than was announced")
        except CorruptionError:
            # What is damaged on the way is sent again from the start.
            await self._drop()
            raise
        taken = await self._install(building, term, index)
        await stream.send(ACKNOWLEDGE, _ACKNOWLEDGE.pack(int(taken)))

    async def _begin(self, peer: int, number: int) -> _Building:
        building = self._building
        if building is not None and (building.peer, building.number) == (peer, number):
            return building
        await self._drop()
        directory = f"{self._options.state_directory}.new"
        builder = await in_thread(
            lambda: StateBuilder(directory, map_size_bytes=self._options.map_size_bytes)
        )
        self._building = _Building(peer, number, builder)
        return self._building

    async def _drop(self) -> None:
        if self._building is not None:
            building, self._building = self._building, None
            await in_thread(building.builder.close)

    async def _receive_chunks(self, stream: PeerStream, builder: StateBuilder) -> None:
        while True:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                frame = await stream.receive()
            if frame is None:
                raise ConnectionResetError("the connection broke off")
            kind, body = frame
            if kind != CHUNK or len(body) < _CHUNK.size:
                raise ProtocolError(f"a frame of kind {kind} where a chunk belongs")
            number = _CHUNK.unpack_from(body)[0]
            if number == _END:
                return
            if number != builder.next_chunk:
                raise ProtocolError(f"chunk {number} instead of {builder.next_chunk}")
            await in_thread(partial(builder.write, memoryview(body)[_CHUNK.size :]))
            self.counts.received_bytes += len(body)

    async def _install(self, building: _Building, term: int, index: int) -> bool:
        """Put the state in the place of the member's, if raft takes it."""
        self._building = None
        state_directory = self._options.state_directory
        try:
            await in_thread(building.builder.finish)
            await in_thread(lambda: complete(state_directory, index))
            prepared = await in_thread(lambda: PreparedState(self._options))
        finally:
            await in_thread(building.builder.close)
        taken = self._member.install(building.peer, term, prepared)
        while taken and self._member.is_installing:
            self._turn_soon()
            await asyncio.sleep(RETRY_S)
        if taken:
            LOG.info("took over the state of member %x, up to entry %d", building.peer, index)
            self._installed()
        await in_thread(prepared.close)
        if not taken:
            await in_thread(partial(_discard, Path(f"{state_directory}.new")))
        self._turn_soon()
        return taken


def _discard(fresh: Path) -> None:
    """Remove a state that is not needed; its marker first, as the rest of it is not complete."""
    (fresh / "complete").unlink()
    shutil.rmtree(fresh)


def _chunk_or_none(reader: SnapshotReader, number: int) -> bytes | None:
    with contextlib.suppress(IndexError):
        return reader.read(number)
    return None
