"""One TCP connection, plain or through TLS, whose bytes leave the moment they are written.

TLS runs over memory here instead of in the event loop's own transport, for three reasons: each
connection may have its own context, so that certificates are read anew without a restart; what is
written leaves at once; and buffers have bounds that we choose.
"""

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Final, Protocol, cast, runtime_checkable

from trimaran.ext.peer import PeerWire

HANDSHAKE_BYTES_MAX: Final = 128 * 1024
LINGER_S: Final = 5.0
_TCP_THIN_LINEAR_TIMEOUTS: Final = 16  # linux/tcp.h
_RTT_OFFSET: Final = 68  # of tcpi_rtt, microseconds, in linux/tcp.h's struct tcp_info
_READ_BYTES: Final = 64 * 1024


@runtime_checkable
class _HasOptions(Protocol):
    """A socket, or what uvloop gives for one."""

    def getsockopt(self, level: int, option: int, size: int) -> int | bytes:
        """As of sockets."""

    def fileno(self) -> int:
        """As of sockets."""


class TLSChannel:
    """TLS between bytes of the network and bytes of the application.

    Args:
        context: with certificates and trust.
        server_side: which side this is.
        server_name: the name that the other side's certificate must have, for a client.
    """

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool, server_name: str | None = None
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )
        self.established = False
        self.ended = False

    def start(self) -> None:
        """Begin the handshake.

        Raises:
            ssl.SSLError: there is no common ground.
        """
        self._shake()

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the network and return what they say.

        Raises:
            ssl.SSLError: the handshake failed or the stream is damaged; `output` may still hold
                the alert that tells the other side.
        """
        self._incoming.write(data)
        if not self.established:
            self._shake()
            if not self.established:
                return b""
        parts = []
        try:
            while part := self._object.read(_READ_BYTES):
                parts.append(part)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def send(self, data: bytes) -> None:
        """Encrypt data; `output` has the result."""
        if data:
            self._object.write(data)

    def output(self) -> bytes:
        """Take what is to go to the network."""
        return self._outgoing.read()

    def finish(self) -> None:
        """Tell the other side that no more comes; `output` has the words."""
        # It would wait for the other's word, which nobody needs.
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._object.unwrap()

    @property
    def protocol(self) -> str | None:
        """What was agreed on by ALPN (RFC 7301)."""
        return self._object.selected_alpn_protocol()

    @property
    def certificate(self) -> bytes | None:
        """The other side's certificate as DER, None where it has shown none."""
        return self._object.getpeercert(binary_form=True)

    def _shake(self) -> None:
        try:
            self._object.do_handshake()
            self.established = True
        except ssl.SSLWantReadError:
            pass


class Connection(asyncio.Protocol):
    """A connection; what to do with it is the business of classes derived from this one.

    Args:
        tls: None for a plain connection.

    Attributes:
        paused: the network takes no more for now; what is written is kept in memory until
            `drained` is called.
        is_closed: nothing more comes or goes.
        wire: takes bytes, or gives them, beside the event loop; None unless asked for.
    """

    def __init__(self, tls: TLSChannel | None = None) -> None:
        self.tls = tls
        self.paused = False
        self.is_closed = False
        self.received_bytes = 0
        self._written_bytes = 0
        self.remote_host = ""
        self.remote = "?"
        self.wire: PeerWire | None = None
        self._transport: asyncio.Transport | None = None
        self._established = tls is None
        self._is_wire_read = False

    @property
    def sent_bytes(self) -> int:
        """Bytes ever sent, or waiting to leave."""
        return self._written_bytes + (0 if self.wire is None else self.wire.sent_bytes)

    # What derived classes do.

    def opened(self) -> None:
        """The connection stands; with TLS, the handshake is done."""

    def received(self, data: bytes) -> None:
        """Bytes of the application came."""

    def drained(self) -> None:
        """The network takes bytes again."""

    def closed(self, error: Exception | None) -> None:
        """The connection is over."""

    def tls_failed(self, error: ssl.SSLError) -> None:
        """The handshake failed, or the stream was damaged; the connection is being closed."""

    # What they use.

    def write(self, data: bytes) -> None:
        """Send data, now as far as the network takes it; before a handshake is done, nothing."""
        if self._transport is None or self.is_closed or not self._established:
            return
        if self.tls is not None:
            try:
                self.tls.send(data)
            except ssl.SSLError as error:
                self.tls_failed(error)
                self.abort()
                return
            data = self.tls.output()
        self._write_raw(data)

    def open_wire(self) -> PeerWire | None:
        """Have a way to the socket itself, for bytes that need not pass through Python.

        What is written here and what is sent there leave in the order of the calls: while the
        network takes no more of the one, the other is blocked. None where there is TLS.
        """
        wire = self.extra("socket")
        if self.tls is not None or self.is_closed or not isinstance(wire, _HasOptions):
            return None
        try:
            self.wire = PeerWire(wire.fileno())
        except OSError:
            return None  # no descriptor is left: the event loop carries the bytes
        self.wire.blocked = self.paused
        return self.wire

    def read_wire(self, take: Callable[[PeerWire], int], taken: Callable[[], None]) -> None:
        """Have bytes read from the socket itself from now on, where that can be.

        Args:
            take: called when bytes wait; returns how many it took, 0 at their end. It may raise
                OSError where the connection is lost.
            taken: called after that.
        """
        wire = self.open_wire()
        if wire is None:
            return
        self.set_reading(False)
        asyncio.get_running_loop().add_reader(wire.fileno(), self._read_wire, wire, take, taken)
        self._is_wire_read = True

    def close(self) -> None:
        """Send what was written, then close."""
        if self._transport is None or self.is_closed:
            return
        self.is_closed = True
        self._close_wire()
        if self.tls is not None and self._established:
            self.tls.finish()
            self._write_raw(self.tls.output())
        self._let_go()

    def abort(self) -> None:
        """Close at once and forget what has not left yet."""
        self.is_closed = True
        self._close_wire()
        if self._transport is not None:
            self._transport.abort()

    def set_reading(self, reading: bool) -> None:
        """Take bytes off the network, or leave them there; not where the wire is read."""
        if self._transport is None or self._transport.is_closing() or self._is_wire_read:
            return
        if reading and not self._transport.is_reading():
            self._transport.resume_reading()
        elif not reading and self._transport.is_reading():
            self._transport.pause_reading()

    def set_timeouts(self, silence_s: float) -> None:
        """Have the kernel end the connection when the other side's host answers nothing.

        Args:
            silence_s: how long what was sent may stay unanswered.
        """
        if self._transport is None or self.is_closed:
            return
        wire = self._transport.get_extra_info("socket")
        if wire is None or wire.family not in (socket.AF_INET, socket.AF_INET6):
            return
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence_s * 1000))
        # What few bytes are lost is sent again at a steady pace, not ever more rarely.
        wire.setsockopt(socket.IPPROTO_TCP, _TCP_THIN_LINEAR_TIMEOUTS, 1)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)

    def round_trip_s(self) -> float:
        """The round trip's time as the kernel measures it, 0 where it does not."""
        wire = self.extra("socket")
        if not isinstance(wire, _HasOptions):
            return 0.0
        try:
            info = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_OFFSET + 4)
        except OSError:
            return 0.0
        if not isinstance(info, bytes) or len(info) < _RTT_OFFSET + 4:
            return 0.0
        return int.from_bytes(info[_RTT_OFFSET:], sys.byteorder) / 1e6

    def extra(self, name: str) -> object:
        """What the transport knows of itself, as asyncio names it."""
        return None if self._transport is None else self._transport.get_extra_info(name)

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own is none by class
        self._transport = transport
        # Above the mark the loop hands bytes to the socket at once, not at the end of its turn.
        transport.set_write_buffer_limits(high=0)
        remote = transport.get_extra_info("peername")
        if isinstance(remote, tuple):
            self.remote_host = str(remote[0])
            host = f"[{remote[0]}]" if ":" in self.remote_host else remote[0]
            self.remote = f"{host}:{remote[1]}"
        if self.is_closed:
            transport.abort()
        elif self.tls is None:
            self.opened()
        else:
            self._advance(b"")

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        if self.is_closed:
            return
        if self.tls is None:
            self.received(data)
        else:
            self._advance(data)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.paused = True
        if self.wire is not None:
            self.wire.blocked = True

    def resume_writing(self) -> None:
        self.paused = False
        if not self.is_closed:
            self.drained()
        if self.wire is not None:
            self.wire.blocked = self.paused

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        self._close_wire()
        self.closed(error)
        self._transport = None

    def _write_raw(self, data: bytes) -> None:
        assert self._transport is not None
        if data:
            self._written_bytes += len(data)
            self._transport.write(data)

    def _read_wire(
        self, wire: PeerWire, take: Callable[[PeerWire], int], taken: Callable[[], None]
    ) -> None:
        try:
            count = take(wire)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        except Exception:
            # What follows cannot be told from what was lost here.
            self.abort()
            raise
        self.received_bytes += count
        if count == 0:
            self.close()
        taken()

    def _close_wire(self) -> None:
        """Let go of the socket before the event loop does, or it would stay open."""
        if self.wire is None:
            return
        if self._is_wire_read:
            asyncio.get_running_loop().remove_reader(self.wire.fileno())
            self._is_wire_read = False
        self._written_bytes += self.wire.sent_bytes
        self.wire.close()
        self.wire = None

    def _advance(self, data: bytes) -> None:
        """Take bytes of TLS, and answer where the handshake asks for it."""
        assert self.tls is not None
        try:
            if data:
                plain = self.tls.feed(data)
            else:
                plain = b""
                self.tls.start()
        except ssl.SSLError as error:
            self._write_raw(self.tls.output())
            self.tls_failed(error)
            self._end()
            return
        self._write_raw(self.tls.output())
        if not self._established:
            if not self.tls.established:
                if self.received_bytes > HANDSHAKE_BYTES_MAX:
                    self.abort()
                return
            self._established = True
            self.opened()
        if plain and not self.is_closed:
            self.received(plain)
        if self.tls.ended and not self.is_closed:
            self.close()

    def _end(self) -> None:
        """Close without a word of TLS, but let the alert leave."""
        self.is_closed = True
        self._close_wire()
        self._let_go()

    def _let_go(self) -> None:
        """Close, and give what is still to be sent a limited time to leave."""
        if self._transport is not None:
            self._transport.close()
            asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)
