"""Running coroutines in tests, and a TCP proxy that breaks connections when told to."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], timeout_s: float = 60.0) -> T:
    """Run a coroutine to its end; errors that nobody awaited fail it too."""
    unhandled: list[dict[str, Any]] = []

    async def watched() -> T:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, context: None if is_of_closed_loop(context) else unhandled.append(context)
        )
        async with asyncio.timeout(timeout_s):
            return await main

    result = asyncio.run(watched())
    assert not unhandled, unhandled
    return result


def is_of_closed_loop(context: dict[str, Any]) -> bool:
    """Recognise gRPC's complaint that a cancelled call of an earlier test's loop has now ended."""
    error = context.get("exception")
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


async def eventually(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]], timeout_s: float = 20.0
) -> None:
    """Poll until a condition holds; for what gives no event to wait for."""
    async with asyncio.timeout(timeout_s):
        while True:
            answer = condition()
            if await answer if isinstance(answer, Awaitable) else answer:
                return
            await asyncio.sleep(0.02)


class Proxy:
    """Passes bytes between its port and another one, until told to fail.

    Attributes:
        port: where new connections are passed to.
        blocked: reset new connections at once.
        swallow_answers: pass what clients send, and drop what the server answers.
        connections: how many have been accepted.
    """

    def __init__(self, port: int, listen_port: int = 0) -> None:
        self.port = port
        self.blocked = False
        self._listen_port = listen_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.swallow_answers = False
        self.connections = 0
        self.answer_held = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._listen_port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def endpoint(self) -> str:
        """URL of the proxy."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def refuse(self) -> None:
        """Cut all connections and accept no more."""
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Reset all connections that stand; new ones are accepted."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.blocked:
            writer.transport.abort()
            return
        self.connections += 1
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(far_writer)
        for source, sink, answers in (
            (reader, far_writer, False),
            (far_reader, writer, True),
        ):
            task = asyncio.create_task(self._pass(source, sink, answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if answers and self.swallow_answers:
                    self.answer_held.set()
                    continue
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
