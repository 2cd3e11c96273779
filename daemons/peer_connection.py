"""The two ends of a connection between members, from its greeting on."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trimaran.daemons.connection import Connection, TLSChannel
from trimaran.errors import ProtocolError
from trimaran.store.peer_frames import (
    HELLO,
    HELLO_BYTES_MAX,
    REFUSAL_TEXTS,
    REFUSED,
    FrameReader,
    Hello,
    Purpose,
    Refusal,
    encode_frame,
    parse_refusal,
)

LOG = logging.getLogger("trimaran.peers")
GREETING_TIMEOUT_S: Final = 5.0
STREAM_QUEUE_BYTES_MAX: Final = 4 * 1024**2


class PeerRefusedError(Exception):
    """The other side, or this one, does not accept the connection.

    Attributes:
        refusal: why.
        is_ours: this side refused.
    """

    def __init__(self, refusal: Refusal, text: str = "", *, is_ours: bool = False) -> None:
        super().__init__(text or REFUSAL_TEXTS[refusal])
        self.refusal = refusal
        self.is_ours = is_ours


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a member is to others.

    Attributes:
        cluster_id, member_id: 0 where they are not known yet.
        version: of its server, "3.6.0".
    """

    cluster_id: int
    member_id: int
    version: str


class PeerStream:
    """Frames in both directions on a connection of its own: a snapshot's way.

    Attributes:
        peer: the other member's id.
    """

    def __init__(self, connection: Connection, peer: int) -> None:
        self.peer = peer
        self._connection = connection
        self._reader = FrameReader()
        self._frames: deque[tuple[int, bytes]] = deque()
        self._queued_bytes = 0
        self._changed = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None

    async def send(self, kind: int, body: bytes) -> None:
        """Send one frame once the network has taken those before it.

        Raises:
            ConnectionError: the connection is lost.
        """
        while self._connection.paused and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if self._ended or self._connection.is_closed:
            raise ConnectionError("the connection to the member is lost")
        self._connection.write(encode_frame(kind, body))

    async def receive(self) -> tuple[int, bytes] | None:
        """Wait for the next frame: (kind, body); None where the other side is done.

        Raises:
            ProtocolError: what came is no sound frame.
        """
        while not self._frames:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        kind, body = self._frames.popleft()
        self._queued_bytes -= len(body)
        if self._queued_bytes < STREAM_QUEUE_BYTES_MAX:
            self._connection.set_reading(True)
        return kind, body

    def close(self) -> None:
        """Send what was written, then close."""
        self._connection.close()

    def feed(self, data: bytes) -> None:
        """Take bytes of the connection."""
        self._reader.add(data)
        try:
            for kind, body in self._reader.frames():
                self._frames.append((kind, body))
                self._queued_bytes += len(body)
        except ProtocolError as error:
            self._error = error
            raise
        finally:
            self._changed.set()
        if self._queued_bytes >= STREAM_QUEUE_BYTES_MAX:
            self._connection.set_reading(False)

    def wake(self) -> None:
        """The network takes bytes again."""
        self._changed.set()

    def end(self, error: Exception | None = None) -> None:
        """The connection is over."""
        self._ended = True
        self._changed.set()


class Outgoing(Connection):
    """A connection that this member opened to another.

    Args:
        hello: what to say first; its addressee is who must be there, 0 whoever is.
        tls: None for a plain connection.
        check: says what is wrong with the other's certificate, once the handshake is done; its
            second value is "" where nothing is.

    Attributes:
        greeted: done once the other has greeted back (its greeting) or has not (the error).
        lost: done once the connection is over, with what ended it.
        taken: called with bytes that come after the greeting.
    """

    def __init__(
        self,
        hello: Hello,
        tls: TLSChannel | None = None,
        check: Callable[[TLSChannel], tuple[str, str]] | None = None,
    ) -> None:
        super().__init__(tls)
        self._check_certificate = check
        loop = asyncio.get_running_loop()
        self.greeted: asyncio.Future[Hello] = loop.create_future()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()
        self.taken: Callable[[bytes], None] = self._take_word
        self.stream: PeerStream | None = None
        self.when_drained: Callable[[], None] = lambda: None
        self._hello = hello
        self._reader = FrameReader(HELLO_BYTES_MAX)
        self._error: Exception | None = None

    def opened(self) -> None:
        if self.tls is not None and self._check_certificate is not None:
            text = self._check_certificate(self.tls)[1]
            if text:
                self.fail(PeerRefusedError(Refusal.CERTIFICATE, text, is_ours=True))
                return
        self.write(self._hello.encode())

    def received(self, data: bytes) -> None:
        try:
            if self.greeted.done():
                self.taken(data)
            else:
                self._take_greeting(data)
        except (ProtocolError, PeerRefusedError) as error:
            self.fail(error)

    def drained(self) -> None:
        self.when_drained()

    def tls_failed(self, error: Exception) -> None:
        self._settle(error)

    def closed(self, error: Exception | None) -> None:
        self._settle(error or ConnectionResetError("the connection was closed"))
        if self.stream is not None:
            self.stream.end(self._error)
        if not self.lost.done():
            self.lost.set_result(self._error)

    def fail(self, error: Exception) -> None:
        """End the connection for an error of this side or the other's."""
        self._settle(error)
        self.abort()

    def become_stream(self, peer: int) -> PeerStream:
        """Pass frames in both directions from now on."""
        self.stream = PeerStream(self, peer)
        self.taken = self.stream.feed
        self.when_drained = self.stream.wake
        return self.stream

    def _settle(self, error: Exception) -> None:
        """Remember the first error, and tell who waits for the greeting."""
        self._error = self._error or error
        if not self.greeted.done():
            self.greeted.set_exception(error)
            self.greeted.exception()  # seen: whoever waits may have given up already

    def _take_greeting(self, data: bytes) -> None:
        self._reader.add(data)
        frame = self._reader.next()
        if frame is None:
            return
        kind, body = frame
        if kind == REFUSED:
            raise PeerRefusedError(parse_refusal(body))
        if kind != HELLO:
            raise ProtocolError(f"a frame of kind {kind} instead of a greeting")
        hello = Hello.parse(body)
        self._check(hello)
        self.greeted.set_result(hello)
        rest = self._reader.rest()
        if rest:
            self.taken(rest)

    def _check(self, hello: Hello) -> None:
        asked = self._hello
        if asked.cluster_id not in (0, hello.cluster_id):
            raise PeerRefusedError(Refusal.WRONG_CLUSTER, is_ours=True)
        if asked.addressee not in (0, hello.sender):
            text = f"member {hello.sender:x} is there instead"
            raise PeerRefusedError(Refusal.WRONG_MEMBER, text, is_ours=True)

    def _take_word(self, data: bytes) -> None:
        """After the greeting, nothing is expected but why the other side closes."""
        self._reader.add(data)
        for kind, body in self._reader.frames():
            if kind == REFUSED:
                raise PeerRefusedError(parse_refusal(body))


class Incoming(Connection):
    """A connection that another opened to this member.

    Args:
        owner: decides what becomes of it.
        tls: None for a plain connection.

    Attributes:
        hello: what the other said first, None until then.
    """

    def __init__(self, owner: "IncomingOwner", tls: TLSChannel | None = None) -> None:
        super().__init__(tls)
        self._owner = owner
        self._reader = FrameReader(HELLO_BYTES_MAX)
        self._taken: Callable[[bytes], None] | None = None
        self.hello: Hello | None = None
        self.when_drained: Callable[[], None] = lambda: None
        self.when_closed: Callable[[Exception | None], None] = lambda error: None

    def accept(self, taken: Callable[[bytes], None]) -> None:
        """Pass on the bytes that follow the greeting, also those that have come already.

        Args:
            taken: called with them; it may raise ProtocolError.
        """
        self._taken = taken
        self.set_reading(True)
        rest = self._reader.rest()
        if rest:
            self.received(rest)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._owner.begun(self)
        super().connection_made(transport)

    def received(self, data: bytes) -> None:
        try:
            if self._taken is not None:
                self._taken(data)
                return
            self._reader.add(data)
            if self.hello is None:
                self._take_greeting()
        except ProtocolError as error:
            self._owner.refuse(self, Refusal.PROTOCOL, str(error))

    def drained(self) -> None:
        self.when_drained()

    def tls_failed(self, error: Exception) -> None:
        self._owner.tls_failed(self, error)

    def closed(self, error: Exception | None) -> None:
        self._owner.ended(self)
        self.when_closed(error)

    def _take_greeting(self) -> None:
        frame = self._reader.next()
        if frame is None:
            return
        kind, body = frame
        if kind != HELLO:
            raise ProtocolError(f"a frame of kind {kind} instead of a greeting")
        self.hello = Hello.parse(body)
        self.set_reading(False)  # until it is accepted
        self._owner.greeted(self, self.hello)


class IncomingOwner:
    """What an incoming connection tells; see `PeerTransport`."""

    def begun(self, connection: Incoming) -> None:
        """It was accepted."""

    def greeted(self, connection: Incoming, hello: Hello) -> None:
        """It said who it is; to be accepted or refused, now or soon."""
        raise NotImplementedError

    def refuse(self, connection: Incoming, refusal: Refusal, text: str = "") -> None:
        """It sent what makes no sense."""

    def tls_failed(self, connection: Incoming, error: Exception) -> None:
        """Its handshake failed."""

    def ended(self, connection: Incoming) -> None:
        """It is over."""


def make_hello(identity: PeerIdentity, addressee: int, purpose: Purpose) -> Hello:
    """Say who this member is."""
    return Hello(identity.cluster_id, identity.member_id, addressee, purpose, identity.version)
