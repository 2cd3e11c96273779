"""Following the changes of keys over broken connections and dead endpoints."""

import asyncio
import contextlib
import re
import time
from collections.abc import Sequence
from typing import Any, Final, Literal, Self, TypeAlias

import grpc
import grpc.aio

from trimaran.client.calls import (
    STREAM_ERRORS,
    Caller,
    is_cancelled,
    store_error,
    stream_error,
)
from trimaran.client.ops import Key, key_range
from trimaran.client.results import WatchBatch, event
from trimaran.errors import StatusCode, StoreError, StoreUnavailableError
from trimaran.wire import etcd_pb2 as pb

Filter: TypeAlias = Literal["noput", "nodelete"]

_WATCH_PATH: Final = "/etcdserverpb.Watch/Watch"
# So many batches wait for a slow reader; after that the stream's flow control holds the server.
_QUEUE_LIMIT: Final = 64
# A stream that lived so long did not end for what ended the ones before it.
_STEADY_S: Final = 5.0
# A watch that is refused for its token is told so in words only.
_STATUS_TEXT: Final = re.compile(r"rpc error: code = (\w+) desc = (.*)", re.DOTALL)
# After these the same request may do on another endpoint or a moment later.
_PASSING: Final = frozenset(
    {
        StatusCode.UNAVAILABLE,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.CANCELLED,
        StatusCode.UNKNOWN,
        StatusCode.INTERNAL,
        StatusCode.ABORTED,
        StatusCode.RESOURCE_EXHAUSTED,
    }
)


class WatchCalls(Caller):
    """The Watch service."""

    def watch(
        self,
        key: Key,
        *,
        range_end: Key | None = None,
        prefix: bool = False,
        from_key: bool = False,
        start_revision: int = 0,
        prev_kv: bool = False,
        progress_notify: bool = False,
        filters: Sequence[Filter] = (),
    ) -> "Watcher":
        """Follow the changes of a key or a range; enter the result as a context and iterate it.

        Args:
            key, range_end, prefix, from_key: as `Client.get`'s.
            start_revision: first revision to deliver; 0 for what comes after the creation.
            prev_kv: give with each event what the key was before.
            progress_notify: give an empty batch now and then while nothing happens.
            filters: "noput", "nodelete" leave such events out.
        """
        if start_revision < 0:
            raise ValueError("start_revision must not be negative")
        first, end = key_range(key, range_end, prefix, from_key)
        request = pb.WatchCreateRequest(
            key=first,
            range_end=end,
            start_revision=start_revision,
            prev_kv=prev_kv,
            progress_notify=progress_notify,
            filters=[name.upper() for name in filters],
            fragment=True,
        )
        return Watcher(self, request)


class Watcher:
    """One watch: a context manager and an iterator of `WatchBatch`, on a stream of its own.

    When the stream breaks it opens another one, on another endpoint where that is better, at the
    first revision it has not delivered: nothing is lost or delivered twice. It ends with an
    error only for what no repetition mends: no permission, an impossible range, a closed client.

    Attributes:
        connected: a server is delivering at this moment.
        error: what the last stream ended with, None while it works.
    """

    def __init__(self, caller: Caller, request: pb.WatchCreateRequest) -> None:
        self.connected = False
        self.error: StoreError | None = None
        self._caller = caller
        self._request = request
        self._next_revision = request.start_revision
        self._cluster_id = 0
        self._denied = False
        self._fragments: list[pb.Event] = []
        self._batches: asyncio.Queue[WatchBatch | Exception] = asyncio.Queue(_QUEUE_LIMIT)
        self._started = asyncio.Event()
        self._failure: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        assert self._task is None, "a Watcher is entered once"
        self._task = asyncio.create_task(self._run())
        self._caller.run_in_background(self._task)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchBatch:
        if self._failure is not None and self._batches.empty():
            raise self._failure
        batch = await self._batches.get()
        if isinstance(batch, Exception):
            raise batch
        return batch

    async def started(self) -> None:
        """Return when a server has confirmed the watch.

        Raises:
            StoreError: the watch was refused.
            ConfigError: the client's TLS options do not work.
        """
        await self._started.wait()
        if self._failure is not None:
            raise self._failure

    async def _run(self) -> None:
        """Follow over one stream after another until that makes no sense any more."""
        backoff = self._caller.backoff()
        try:
            while True:
                revision, began_s = self._next_revision, time.monotonic()
                await self._follow()
                lived_s = time.monotonic() - began_s
                if self._next_revision != revision or lived_s > _STEADY_S:
                    backoff.reset()
                await asyncio.sleep(backoff.next_s())
        except Exception as error:
            # Whatever it is, it is the reader who must learn of it.
            self._fail(error)
        except asyncio.CancelledError:
            self._fail(StoreError(StatusCode.CANCELLED, "this watch or its client is closed"))
            raise
        finally:
            self.connected = False

    def _fail(self, error: Exception) -> None:
        """End the iteration with an error, after the batches that are there already."""
        self._failure = error
        self._started.set()
        if not self._batches.full():
            self._batches.put_nowait(error)

    async def _follow(self) -> None:
        """Open a stream and deliver what it brings; returns when another one is worth a try."""
        deadline_s = time.monotonic() + self._caller.timeout_s
        try:
            target, token, stream = await self._caller.open_stream(_WATCH_PATH, deadline_s)
        except StoreError as error:
            self.error = _passing(error)
            return
        try:
            await self._create(stream, deadline_s)
            self._caller.pool.succeeded(target)
            while True:
                response = await stream.read()
                if response is grpc.aio.EOF:
                    raise EOFError("the server ended the stream")
                await self._receive(response)
        except _CompactedAwayError:
            return
        except STREAM_ERRORS as error:
            self.error = stream_error(error)
        except asyncio.CancelledError:
            if is_cancelled() or not self._caller.pool.is_retired(target):
                raise
            self.error = StoreUnavailableError(StatusCode.UNAVAILABLE, "no endpoint any more")
        except StoreError as error:
            self.error = error
        finally:
            self.connected = False
            self._fragments.clear()
            stream.cancel()
        if self._caller.is_token_stale(self.error) or self._is_first_denial(token):
            self._caller.forget_token(token)
            return
        self.error = _passing(self.error)
        self._caller.pool.failed(target)

    def _is_first_denial(self, token: str) -> bool:
        """Tell whether a watch was denied for the first time since it stood, with a token.

        etcd before 3.6 says "permission denied" of a watch whose token it does not know, so that
        only a denial of a new token is one of the user.
        """
        if not token or self.error is None or self.error.code is not StatusCode.PERMISSION_DENIED:
            return False
        first, self._denied = not self._denied, True
        return first

    async def _create(self, stream: Any, deadline_s: float) -> None:
        """Ask for the watch and await the server's word that it stands."""
        self._request.start_revision = self._next_revision
        async with asyncio.timeout(max(0.1, deadline_s - time.monotonic())):
            await stream.write(pb.WatchRequest(create_request=self._request))
            response = await stream.read()
        if response is grpc.aio.EOF:
            raise EOFError("the server ended the stream")
        if response.canceled:
            await self._canceled(response)
        header = response.header
        if self._cluster_id not in (0, header.cluster_id):
            # Another store answers at this address now: what we saw is no part of its history.
            self._next_revision = header.revision + 1
            self._cluster_id = header.cluster_id
            await self._batches.put(WatchBatch(header.revision, [], compacted=True))
            raise _CompactedAwayError
        self._cluster_id = header.cluster_id
        if self._next_revision == 0:
            self._next_revision = header.revision + 1
        self.connected = True
        self._denied = False
        self.error = None
        self._started.set()

    async def _receive(self, response: pb.WatchResponse) -> None:
        """Deliver one response of a watch that stands."""
        if response.canceled:
            await self._canceled(response)
        self._fragments.extend(response.events)
        if response.fragment or response.created:
            return
        if self._fragments:
            events = [event(message) for message in self._fragments]
            self._fragments.clear()
            revision = events[-1].kv.mod_revision
        else:
            events, revision = [], response.header.revision
            if revision < self._next_revision - 1:
                return
        self._next_revision = revision + 1
        await self._batches.put(WatchBatch(revision, events))

    async def _canceled(self, response: pb.WatchResponse) -> None:
        """Take the end of a watch that the server has cancelled.

        Raises:
            _CompactedAwayError: events are lost; the reader has been told.
            StoreError: with the server's reason.
        """
        if response.compact_revision > 0:
            self._next_revision = response.compact_revision
            await self._batches.put(WatchBatch(response.compact_revision, [], compacted=True))
            raise _CompactedAwayError
        raise cancel_error(response.cancel_reason)


class _CompactedAwayError(Exception):
    """The watch has to be made again, at a revision that is set already."""


def _passing(error: StoreError | None) -> StoreError | None:
    """Give an error back that another attempt may mend; raise any other."""
    if error is not None and error.code not in _PASSING:
        raise error
    return error


def cancel_error(reason: str) -> StoreError:
    """Read the words in which a server says why it cancelled a watch.

    Args:
        reason: Go's text form of a gRPC status, or plain words, or nothing.
    """
    match = _STATUS_TEXT.fullmatch(reason)
    if match is None:
        code = StatusCode.INVALID_ARGUMENT if reason else StatusCode.UNAVAILABLE
        return store_error(code, reason or "the server cancelled the watch")
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", match[1]).upper().replace("CANCELED", "CANCELLED")
    code = StatusCode.__members__.get(name, StatusCode.UNKNOWN)
    return store_error(code, match[2])
