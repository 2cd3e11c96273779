"""The way from this member to one other: a connection that is opened again whenever it is lost."""

import asyncio
import contextlib
import logging
import random
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from trimaran.daemons.peer_connection import (
    GREETING_TIMEOUT_S,
    Outgoing,
    PeerIdentity,
    PeerRefusedError,
    make_hello,
)
from trimaran.daemons.tls import TLSSide, explain
from trimaran.errors import ConfigError, ProtocolError
from trimaran.store.peer_frames import Purpose

LOG = logging.getLogger("trimaran.peers")
# A network that heals is noticed within a connection attempt and a pause: short beside the second
# or so that an election takes.
CONNECT_TIMEOUT_S: Final = 0.75
RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 0.4
REFUSED_RETRY_MAX_S: Final = 5.0
SILENCE_S: Final = 1.5
QUEUE_BYTES_MAX: Final = 64 * 1024**2
LOG_INTERVAL_S: Final = 60.0

# What opening a connection may end in.
OPEN_ERRORS: Final = (
    OSError,
    TimeoutError,
    ssl.SSLError,
    PeerRefusedError,
    ProtocolError,
    ConfigError,
)


async def open_connection(
    url: str,
    identity: PeerIdentity,
    addressee: int,
    purpose: Purpose,
    tls: TLSSide | None,
) -> Outgoing:
    """Connect to a member and greet it.

    Args:
        url: of its peers' side.
        identity: who this one is.
        addressee: the id of the member that must be there, 0 whoever is.
        purpose: what the connection is for.
        tls: for https URLs.

    Raises:
        OSError, TimeoutError, ssl.SSLError: it cannot be reached.
        PeerRefusedError: one of the two does not accept the other.
        ProtocolError: what is there is no member.
        ConfigError: the URL wants TLS and there is none.
    """
    parts = urlsplit(url)
    host, channel = parts.hostname or "", None
    if parts.scheme == "https":
        if tls is None:
            raise ConfigError(f"{url} wants TLS, which is not configured for peers")
        channel = tls.client_channel(host)
    hello = make_hello(identity, addressee, purpose)
    connection = Outgoing(hello, channel, None if tls is None else tls.check)
    try:
        async with asyncio.timeout(GREETING_TIMEOUT_S):
            await _connect(connection, host, parts.port or 2380)
            connection.set_timeouts(SILENCE_S)
            await connection.greeted
    except BaseException:
        connection.abort()
        raise
    return connection


async def _connect(connection: Outgoing, host: str, port: int) -> None:
    """Try the addresses of a host one after the other, none of them for long."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: OSError = ConnectionError(f"{host} has no address")
    for address in dict.fromkeys(str(one[4][0]) for one in found):
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: connection, address, port)
                return
        except TimeoutError:
            failure = TimeoutError(f"{address} does not answer")
        except OSError as error:
            failure = error
    raise failure


def describe(error: BaseException | None) -> str:
    """Say what an error of a connection means."""
    if isinstance(error, TimeoutError) and not str(error):
        return f"no answer within {GREETING_TIMEOUT_S:g} s"
    if isinstance(error, PeerRefusedError):
        return f"{'refused it' if error.is_ours else 'it refused this member'}: {error}"
    if isinstance(error, ssl.SSLError):
        return explain(error)[1]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class PeerLink:
    """Keeps one connection to a member open, and queues for it.

    Args:
        peer: the member's id.
        urls: of its peers' side; tried in turn.
        identity: who this one is.
        tls: for https URLs.

    Attributes:
        connection: the one in use, None while there is none.
        connected: called when there is one.
        lost: called when it is gone, or when queued bytes were dropped: what was sent last may
            not arrive.
        refused: called with why the other side does not accept this member.
        gone: called once after a connection was lost where nobody listens at any URL any more.
    """

    def __init__(
        self,
        peer: int,
        urls: Sequence[str],
        identity: PeerIdentity,
        tls: TLSSide | None = None,
    ) -> None:
        self.peer = peer
        self.urls = tuple(urls)
        self.connection: Outgoing | None = None
        self.connected: Callable[[], None] = lambda: None
        self.lost: Callable[[], None] = lambda: None
        self.refused: Callable[[PeerRefusedError], None] = lambda error: None
        self.gone: Callable[[], None] = lambda: None
        self.connects = 0
        self.failures = 0
        self.dropped_bytes = 0
        self._identity = identity
        self._tls = tls
        self._sent_bytes = 0
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._told_s = -LOG_INTERVAL_S
        self._deaf_urls = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def sent_bytes(self) -> int:
        """Bytes ever sent to the member."""
        return self._sent_bytes + (self.connection.sent_bytes if self.connection else 0)

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Close the connection and open no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self.connection is not None:
            self.connection.close()
            self._forget()

    def set_urls(self, urls: Sequence[str]) -> None:
        """Use other URLs from the next connection on.

        One that stands is kept: it leads to that member whatever the URLs say, and a wrong URL
        can be put right only while there is a majority.
        """
        if tuple(urls) != self.urls:
            self.urls = tuple(urls)
            self.retry()

    def retry(self) -> None:
        """Try again without waiting: the member gave a sign of life."""
        self._wake.set()

    def send(self, data: bytes) -> bool:
        """Send whole frames.

        Returns:
            False where there is no connection; they are dropped then.
        """
        connection = self.connection
        if connection is None or connection.is_closed:
            self.dropped_bytes += len(data)
            return False
        if not connection.paused:
            connection.write(data)
            return True
        self._queue.append(data)
        self._queued_bytes += len(data)
        if self._queued_bytes > QUEUE_BYTES_MAX:
            while self._queue and self._queued_bytes > QUEUE_BYTES_MAX // 2:
                dropped = len(self._queue.popleft())
                self._queued_bytes -= dropped
                self.dropped_bytes += dropped
            self.lost()
        return True

    async def _run(self) -> None:
        delay_s, turn = RETRY_MIN_S, 0
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            error = await self._connect_once(self.urls[turn % len(self.urls)])
            turn += 1
            if loop.time() - began_s > REFUSED_RETRY_MAX_S:
                delay_s = RETRY_MIN_S
            self._tell(error, loop.time())
            self._notice_end(error)
            longest = RETRY_MAX_S
            if isinstance(error, PeerRefusedError):
                longest = REFUSED_RETRY_MAX_S
                if not error.is_ours:
                    self.refused(error)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s * random.uniform(0.5, 1.0)):
                    await self._wake.wait()
            delay_s = min(delay_s * 2, longest)

    def _notice_end(self, error: BaseException | None) -> None:
        """Tell of a process that has ended: its machine refuses connections at all its URLs."""
        if not isinstance(error, ConnectionRefusedError):
            self._deaf_urls = 0
            return
        self._deaf_urls += 1
        if self._deaf_urls == len(self.urls):
            self.gone()

    async def _connect_once(self, url: str) -> BaseException | None:
        """Connect and wait until the connection is over; returns what ended it."""
        try:
            connection = await open_connection(
                url, self._identity, self.peer, Purpose.MESSAGES, self._tls
            )
        except OPEN_ERRORS as error:
            self.failures += 1
            return error
        connection.when_drained = self._drain
        self.connection = connection
        connection.open_wire()
        self.connects += 1
        self._told_s = -LOG_INTERVAL_S
        LOG.info("connected to member %x at %s", self.peer, url)
        self.connected()
        ended = await asyncio.shield(connection.lost)
        self._forget()
        self.lost()
        return ended

    def _drain(self) -> None:
        """Write what was queued while the network took nothing."""
        if self._queue and self.connection is not None:
            data = b"".join(self._queue)
            self._queue.clear()
            self._queued_bytes = 0
            self.connection.write(data)

    def _forget(self) -> None:
        """Let go of a connection and of what waits for it."""
        assert self.connection is not None
        self._sent_bytes += self.connection.sent_bytes
        self.dropped_bytes += self._queued_bytes
        self.connection = None
        self._queue.clear()
        self._queued_bytes = 0

    def _tell(self, error: BaseException | None, now_s: float) -> None:
        if now_s - self._told_s >= LOG_INTERVAL_S:
            self._told_s = now_s
            LOG.warning("no connection to member %x: %s; trying on", self.peer, describe(error))
