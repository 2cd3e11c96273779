"""HTTP without gRPC on a connection of HTTP/2: one request, asked of an HTTP/1.1 server in memory.

Clients that offer both protocols by ALPN get HTTP/2, and some of them only want to see /health. The
server that answers those of HTTP/1.1 answers them as well, over a transport that is no socket.
"""

import asyncio
import http.client
import io
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

TIMEOUT_S: Final = 60.0
_PATH: Final = re.compile(r"/[!-~]*")
HttpFactory = Callable[[], asyncio.Protocol]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an HTTP server says to a request.

    Attributes:
        length: of the body that a GET has, also where this is the answer to a HEAD.
    """

    status: int
    content_type: str
    length: int
    body: bytes


class _Memory(asyncio.Transport):
    """Keeps what a server writes until it closes the connection."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        for part in parts:
            self.write(part)

    def close(self) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self.closed.done()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        """There is nothing more to read."""

    def resume_reading(self) -> None:
        """There is nothing more to read."""

    def is_reading(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """It takes everything."""

    def get_write_buffer_size(self) -> int:
        return 0


class _Reply:
    """Bytes where `http.client` expects a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        """Give them as a file."""
        return io.BytesIO(self._data)


async def ask(make: HttpFactory, method: str, path: str) -> Answer:
    """Ask an HTTP/1.1 server.

    Args:
        make: its protocol for a connection (an aiohttp `web.Server`).
        method: GET or HEAD.
        path: with what follows a question mark.

    Raises:
        ValueError: the path cannot stand in a request.
        TimeoutError: there is no answer.
        http.client.HTTPException: what is said is no answer.
    """
    if not _PATH.fullmatch(path):
        raise ValueError("not a path")
    protocol, transport = make(), _Memory()
    protocol.connection_made(transport)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        protocol.data_received(head.encode())
        async with asyncio.timeout(TIMEOUT_S):
            await transport.closed
    finally:
        transport.close()
        protocol.connection_lost(None)
    reply = http.client.HTTPResponse(
        cast(socket.socket, _Reply(bytes(transport.written))), method=method
    )
    reply.begin()
    length = reply.getheader("content-length")
    body = reply.read()
    kind = reply.getheader("content-type", "")
    return Answer(reply.status, kind, int(length) if length else len(body), body)
