"""Maintenance calls that concern the state as a whole: snapshots, hashes, defragmentation.

All of them work on a read transaction in threads of the loop's executor, while the member goes on
serving. What they tell is what was applied when they were called.
"""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from trimaran._version import ETCD_VERSION
from trimaran.daemons.grpc_server import Call, GrpcServer
from trimaran.errors import StatusCode, StoreError, etcd_error
from trimaran.ext.checksum import crc32c
from trimaran.ext.snapshot import Defragment, SnapshotReader
from trimaran.wire import etcd_pb2 as pb

if TYPE_CHECKING:
    from trimaran.daemons.store_server import Stored

LOG = logging.getLogger("trimaran.store")
BLOB_BYTES: Final = 32 * 1024
READERS_MAX: Final = 4  # snapshots and hashes at a time; more wait
# A copy goes on beside the writes until what is left takes no longer than this.
CATCH_UP_S: Final = 0.2
CATCH_UP_ROUNDS: Final = 5

Result = TypeVar("Result")


async def in_thread(work: Callable[[], Result]) -> Result:
    """Run work in a thread of the executor."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


class StoreMaintenance:
    """The maintenance methods of one member.

    Args:
        store: the member at work.
    """

    def __init__(self, store: "Stored") -> None:
        self._store = store
        self._collected = asyncio.Event()
        self._readers = asyncio.Semaphore(READERS_MAX)
        self._defragmenting = asyncio.Lock()

    def register(self, server: GrpcServer) -> None:
        """Add every method to the server."""
        maintenance = "/etcdserverpb.Maintenance/"
        server.add_stream(maintenance + "Snapshot", self.snapshot)
        server.add_unary(maintenance + "Hash", self.hash)
        server.add_unary(maintenance + "HashKV", self.hash_kv)
        server.add_unary(maintenance + "Defragment", self.defragment)

    def collected(self) -> None:
        """A commit of the state has ended."""
        self._collected.set()

    async def _next_commit(self) -> None:
        self._collected.clear()
        await self._collected.wait()

    async def take(self) -> SnapshotReader:
        """Take a snapshot of everything that is applied now, once it is committed.

        Raises:
            OSError: there is no memory or no slot for it.
        """
        member = self._store.member
        index = member.status()["applied"]
        while member.persisted_index < index and member.pending_bytes > 0:
            member.seal()
            await self._next_commit()
        return member.snapshot()

    async def snapshot(self, call: Call) -> None:
        """Stream the whole state, and its SHA-256 in the last message."""
        async for _ in call:
            break
        async with self._readers:
            reader = await self.take()
            try:
                await self._send(reader, call)
            finally:
                await asyncio.shield(in_thread(reader.close))

    async def _send(self, reader: SnapshotReader, call: Call) -> None:
        started_s = time.monotonic()
        checksum = hashlib.sha256()
        left, chunks = await in_thread(reader.measure)
        LOG.info("sending a snapshot of %d bytes, revision %d", left, reader.revision)
        for number in range(chunks):
            chunk = await in_thread(lambda number=number: reader.read(number))  # type: ignore[misc]
            checksum.update(chunk)
            for at in range(0, len(chunk), BLOB_BYTES):
                blob = chunk[at : at + BLOB_BYTES]
                left -= len(blob)
                self._answer(call, left, blob)
            await call.drain()
            if call.closed:
                return
        self._answer(call, 0, checksum.digest())
        LOG.info("sent the snapshot in %.1f s", time.monotonic() - started_s)

    def _answer(self, call: Call, left: int, blob: bytes) -> None:
        answer = pb.SnapshotResponse(remaining_bytes=left, blob=blob, version=ETCD_VERSION)
        call.send(answer.SerializeToString())

    async def hash_kv(self, data: bytes, call: Call) -> bytes:
        """Hash the keys up to a revision, 0 for the current one, as etcd does."""
        request = pb.HashKVRequest.FromString(data)
        member = self._store.member
        header = self._store.header()
        wanted = request.revision or header.revision
        if 0 < wanted < member.compact_revision:
            raise etcd_error("COMPACTED")
        if wanted > header.revision:
            raise etcd_error("FUTURE_REVISION")
        found, compact_revision = await self.hash_of_keys(wanted)
        return pb.HashKVResponse(
            header=header, hash=found, compact_revision=compact_revision, hash_revision=wanted
        ).SerializeToString()

    async def hash_of_keys(self, revision: int) -> tuple[int, int]:
        """Hash the keys up to a revision, which is applied.

        Args:
            revision: of the history; one below 1 hashes nothing.

        Returns:
            the hash, and the compact revision it was made under.

        Raises:
            StoreError: the revision was compacted meanwhile.
        """
        if revision < 0:
            return crc32c(b"key"), self._store.member.compact_revision
        async with self._readers:
            reader = await self.take()
            try:
                if revision < reader.compact_revision:
                    raise etcd_error("COMPACTED")
                found = await in_thread(lambda: reader.hash_keys(revision))
                return found, reader.compact_revision
            finally:
                await asyncio.shield(in_thread(reader.close))

    async def hash(self, data: bytes, call: Call) -> bytes:
        """Make a checksum of everything, to compare members by."""
        header = self._store.header()
        async with self._readers:
            reader = await self.take()
            try:
                found = await in_thread(reader.hash)
            finally:
                await asyncio.shield(in_thread(reader.close))
        return pb.HashResponse(header=header, hash=found).SerializeToString()

    async def defragment(self, data: bytes, call: Call) -> bytes:
        """Give the room back that deleted data took in the state's file."""
        # Begun is ended, whether the client waits or not.
        await asyncio.shield(asyncio.ensure_future(self.defragment_state()))
        return pb.DefragmentResponse().SerializeToString()

    async def defragment_state(self) -> None:
        """Copy the state compactly and go on with the copy, while serving.

        Raises:
            StoreError: the disk has no room, or refuses; the state is what it was.
        """
        async with self._defragmenting:
            started_s, before = time.monotonic(), self._store.member.sizes()[0]
            try:
                work = self._store.member.defragment()
                try:
                    await self._copy(work)
                finally:
                    work.end()
                    await in_thread(work.clean)
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
                LOG.error("the state was not defragmented: %s", error)
                raise StoreError(StatusCode.UNKNOWN, f"cannot defragment: {reason}") from None
            LOG.info(
                "defragmented the state in %.1f s: %d bytes before, %d after",
                time.monotonic() - started_s,
                before,
                self._store.member.sizes()[0],
            )

    async def _copy(self, work: Defragment) -> None:
        for _ in range(CATCH_UP_ROUNDS):
            started_s = time.monotonic()
            await in_thread(work.copy)
            if time.monotonic() - started_s < CATCH_UP_S:
                break
            work.renew()
        while not work.hold():
            await self._next_commit()
        work.renew()
        await in_thread(work.copy)
        await in_thread(work.finish)
        work.swap()
