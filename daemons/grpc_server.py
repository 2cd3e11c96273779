"""The gRPC server of a daemon: the compiled engine on the event loop.

Hot methods are answered by the engine's handler in C and never seen here. Every other method is a
coroutine: `add_unary` for one message each way, `add_stream` for any number. Connections that do
not speak HTTP/2 are passed to an HTTP/1.1 server, which is also asked for what comes over HTTP/2
and is no gRPC.
"""

import asyncio
import contextlib
import http.client
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from trimaran.daemons.listening import SecureSocket
from trimaran.daemons.plain_http import ask
from trimaran.daemons.refusals import Refusals
from trimaran.daemons.secure_clients import HttpFactory, SecureClients
from trimaran.daemons.tls import TLSSide
from trimaran.errors import StatusCode, StoreError
from trimaran.ext import rpc

LOG = logging.getLogger("trimaran.grpc")
TICK_S = 1.0
NOTICE_S = 0.1  # from the notice of shutdown until streams are ended
QUEUE_HIGH_BYTES = 1 << 20


class Call:
    """One call of a cold method, as its coroutine sees it.

    Attributes:
        path: the method, "/package.Service/Method".
        metadata: request headers other than gRPC's own, lower-case; repeated ones joined by ",".
        timeout_s: the client's time limit, 0 where it gave none.
    """

    def __init__(self, server: "GrpcServer", engine_call: rpc.RpcCall) -> None:
        self.path = engine_call.path
        self.metadata = engine_call.metadata
        self.timeout_s = engine_call.timeout_s
        self.task: asyncio.Task[None] | None = None
        self._server = server
        self._engine_call = engine_call
        self._messages: deque[bytes] = deque()
        self._half_closed = False
        self._wakeup: asyncio.Event = asyncio.Event()
        self._drained: asyncio.Event | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Wait for the next request message; the iteration ends when the client half-closes."""
        while not self._messages:
            if self._half_closed:
                raise StopAsyncIteration
            self._wakeup.clear()
            await self._wakeup.wait()
        message = self._messages.popleft()
        self._engine_call.consumed(len(message))
        self._server.flush_soon()
        return message

    @property
    def queued_bytes(self) -> int:
        """Bytes of replies the client has not taken yet."""
        return self._engine_call.queued_bytes

    @property
    def closed(self) -> bool:
        """Whether the stream is gone."""
        return self._engine_call.closed

    def send(self, message: bytes) -> bool:
        """Queue one reply message.

        Args:
            message: the encoded reply.

        Returns:
            False where the stream is gone already.
        """
        self._server.flush_soon()
        return self._engine_call.send(message)

    async def drain(self) -> None:
        """Wait until the client has taken enough for more to be queued."""
        while not self.closed and self.queued_bytes > QUEUE_HIGH_BYTES:
            self._drained = asyncio.Event()
            await self._drained.wait()

    def deliver(self, kind: int, data: bytes | None) -> None:
        """Take one event of the engine."""
        if kind == rpc.MESSAGE:
            assert data is not None
            self._messages.append(data)
            self._wakeup.set()
        elif kind == rpc.HALF_CLOSED:
            self._half_closed = True
            self._wakeup.set()
        else:
            if self._drained is not None:
                self._drained.set()
            if kind == rpc.CLOSED:
                self._engine_call.owner = None
                if self.task is not None:
                    self.task.cancel()

    def finish(self, code: StatusCode, message: str = "") -> None:
        """End the call with a status."""
        self._engine_call.finish(int(code), message)
        self._engine_call.owner = None  # or the two would keep each other alive
        self._server.flush_soon()


UnaryMethod = Callable[[bytes, Call], Awaitable[bytes]]
StreamMethod = Callable[[Call], Awaitable[None]]


class GrpcServer:
    """Serves gRPC, and HTTP/1.1 beside it, on listening sockets.

    Args:
        loop: the event loop, whose thread makes every call here.
        handler: capsule "trimaran.rpc_handler" of the hot methods, or None.
        limits: fields of `trimaran_rpc_options` in ext/src/rpc.h, by name.

    Attributes:
        before_flush: called once in each turn, after reading and before writing.
        admit: called with each call of a cold method before that; its StoreError ends the call.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, handler: object | None = None, **limits: int
    ) -> None:
        limits.setdefault("queue_high_bytes", QUEUE_HIGH_BYTES)
        self.before_flush: Callable[[], None] | None = None
        self.admit: Callable[[Call], None] | None = None
        self._loop = loop
        self._engine = rpc.RpcServer(handler, **limits)
        self._fileno = self._engine.fileno()
        self._methods: dict[str, StreamMethod] = {}
        self._services: set[str] = set()
        self._http: HttpFactory | None = None
        self._secure: SecureClients | None = None
        self._turn_handle: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._flush_handle: asyncio.Handle | None = None
        self._tick_handle: asyncio.TimerHandle | None = None
        self._all_gone: asyncio.Event | None = None  # set while stopping
        self._closed = False

    def add_unary(self, path: str, method: UnaryMethod) -> None:
        """Serve path, "/package.Service/Method", by `await method(request, call)`."""

        async def serve(call: Call) -> None:
            request = None
            async for message in call:
                if request is not None:
                    text = "cardinality violation: more than one request for a unary method"
                    raise StoreError(StatusCode.INTERNAL, text)
                request = message
            if request is None:
                raise StoreError(StatusCode.INTERNAL, "cardinality violation: no request message")
            call.send(await method(request, call))

        self.add_stream(path, serve)

    def add_stream(self, path: str, method: StreamMethod) -> None:
        """Serve path by `await method(call)`; returning ends the call with OK."""
        self._methods[path] = method
        self.add_service(path[1:].rpartition("/")[0])

    def add_service(self, name: str) -> None:
        """Make a service known, so that others of its methods are refused by name."""
        self._services.add(name)

    async def start(
        self,
        sockets: Sequence[socket.socket],
        http: HttpFactory | None = None,
        tls: TLSSide | None = None,
    ) -> None:
        """Begin to serve.

        Args:
            sockets: listening sockets; the server closes them.
            http: makes the protocol of a connection that does not speak HTTP/2 (an aiohttp
                `web.Server`); None closes such connections.
            tls: for those of the class SecureSocket.

        Raises:
            OSError: a socket cannot be watched.
        """
        self._http = http
        secure = [listening for listening in sockets if isinstance(listening, SecureSocket)]
        for number, listening in enumerate(sockets):
            if listening in secure:
                continue
            listening.setblocking(False)
            self._engine.listen(listening.fileno(), number)
            listening.detach()
        if secure:
            assert tls is not None, "https URLs are refused without certificates"
            self._secure = SecureClients(self._engine, tls, http, self._turn_soon, self.flush_soon)
            await self._secure.listen(secure)
        self._loop.add_reader(self._fileno, self._turn)
        self._tick_handle = self._loop.call_later(TICK_S, self._tick)

    def flush_soon(self) -> None:
        """Write what is queued, once the callbacks that are due have run."""
        if self._flush_handle is None and not self._closed:
            self._flush_handle = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is queued, now: for one who has just queued many replies outside a turn."""
        if self._closed:
            return
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        if self._engine.flush():
            self.flush_soon()
        if self._engine.pending:
            for event in self._engine.events():
                self._deliver(*event)
        if self._secure is not None:
            self._secure.send_replies()
        if self._all_gone is not None and self._engine.counters()["connections"] == 0:
            self._all_gone.set()

    def counters(self) -> dict[str, int]:
        """Return the engine's counters, by the names of `trimaran_rpc_counters`."""
        return self._engine.counters()

    @property
    def refusals(self) -> Refusals | None:
        """Clients that were not let in, None where TLS is off."""
        return None if self._secure is None else self._secure.refusals

    @property
    def tls(self) -> TLSSide | None:
        """TLS of the clients, None where it is off."""
        return None if self._secure is None else self._secure.tls

    def end_revoked(self) -> None:
        """End connections whose certificate has been revoked since they were let in."""
        if self._secure is not None:
            self._secure.end_revoked()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Stop accepting, end streams, let other open calls finish, then end what is left.

        Args:
            grace_s: how long open calls may take.
        """
        if self._closed or self._all_gone is not None:
            return
        self._all_gone = asyncio.Event()
        if self._secure is not None:
            self._secure.stop_listening()
        self._engine.shutdown()
        self.flush_soon()
        final_word = self._loop.call_later(min(NOTICE_S, grace_s), self._end_streams)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_gone.wait(), grace_s)
        final_word.cancel()
        self._closed = True
        self._loop.remove_reader(self._fileno)
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        if self._flush_handle is not None:
            self._flush_handle.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._engine.close()

    def _turn(self) -> None:
        """One turn: read and dispatch, let the owner act on the batch, write."""
        more = self._engine.poll()
        if self._engine.pending:
            for event in self._engine.events():
                self._deliver(*event)
        if self.before_flush is not None:
            self.before_flush()
        self.flush()
        if more:
            self._turn_soon()

    def _turn_soon(self) -> None:
        """Have a turn once all clients that have bytes now were read from."""
        if self._turn_handle is None:
            self._turn_handle = self._loop.call_soon(self._turn_again)

    def _turn_again(self) -> None:
        self._turn_handle = None
        if not self._closed:
            self._turn()

    def _end_streams(self) -> None:
        self._engine.tick()
        self.flush()

    def _tick(self) -> None:
        self._engine.tick()
        error = self._engine.counters()["accept_error"]
        if error != 0:
            LOG.warning("cannot accept connections for now: %s", OSError(-error, "accept"))
        self.flush()
        self._tick_handle = self._loop.call_later(TICK_S, self._tick)

    def _deliver(self, kind: int, subject: object, extra: object) -> None:
        if kind == rpc.FOREIGN:
            assert isinstance(subject, int)
            self._run(self._serve_foreign(subject))
            return
        if kind == rpc.OUTPUT:
            assert isinstance(subject, rpc.RpcChannel)
            if self._secure is not None:
                self._secure.has_output(subject)
            return
        assert isinstance(subject, rpc.RpcCall)
        if kind == rpc.OPEN:
            self._open(subject)
            return
        assert extra is None or isinstance(extra, bytes)
        if subject.owner is not None:
            subject.owner.deliver(kind, extra)

    def _open(self, engine_call: rpc.RpcCall) -> None:
        if engine_call.is_plain:
            self._run(self._serve_plain(engine_call))
            return
        call = Call(self, engine_call)
        method = self._methods.get(call.path)
        if method is None:
            call.finish(StatusCode.UNIMPLEMENTED, self._unknown(call.path))
            return
        engine_call.owner = call
        call.task = self._run(self._serve(method, call))

    def _unknown(self, path: str) -> str:
        """Name what is not there, in the words gRPC clients know from grpc-go."""
        service, slash, method = path.removeprefix("/").rpartition("/")
        if not slash:
            return f'malformed method name: "{path}"'
        if service not in self._services:
            return f"unknown service {service}"
        return f"unknown method {method} for service {service}"

    def _run(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, method: StreamMethod, call: Call) -> None:
        """Run a method and turn its outcome into a status."""
        try:
            if self.admit is not None:
                self.admit(call)
            async with asyncio.timeout(call.timeout_s or None) as limit:
                await method(call)
            call.finish(StatusCode.OK)
        except StoreError as error:
            call.finish(error.code, error.message)
        except TimeoutError:
            if not limit.expired():
                raise
            call.finish(StatusCode.DEADLINE_EXCEEDED, "context deadline exceeded")
        except asyncio.CancelledError:
            call.finish(StatusCode.CANCELLED, "context canceled")
            raise
        except Exception as error:
            LOG.exception("%s failed", call.path)
            call.finish(StatusCode.INTERNAL, f"internal error: {type(error).__name__}")

    async def _serve_plain(self, call: rpc.RpcCall) -> None:
        """Answer a request of HTTP/2 that is no gRPC."""
        if self._http is None:
            call.answer(404, "", 0, b"")
        else:
            try:
                answer = await ask(self._http, call.http_method, call.path)
                call.answer(answer.status, answer.content_type, answer.length, answer.body)
            except ValueError:
                call.answer(400, "", 0, b"")
            except (TimeoutError, http.client.HTTPException) as error:
                LOG.warning("%s %s: %s", call.http_method, call.path, error)
                call.answer(500, "", 0, b"")
        self.flush_soon()

    async def _serve_foreign(self, fd: int) -> None:
        connection = socket.socket(fileno=fd)
        if self._http is None:
            connection.close()
            return
        connection.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._http, connection)
        except OSError as error:
            LOG.info("a connection was lost before its HTTP request: %s", error)
            connection.close()
