"""Clients that come through TLS: gRPC for the compiled engine, HTTP/1.1 for what serves the rest.

A connection costs a few Python calls for each piece of the network that holds requests, however
many these are: the engine takes the decrypted bytes whole, and gives its replies in one piece.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final

from cryptography import x509

from trimaran.daemons.certificates import common_name
from trimaran.daemons.connection import Connection, TLSChannel
from trimaran.daemons.refusals import Refusals
from trimaran.daemons.tls import TLSSide, explain
from trimaran.ext import rpc

LOG = logging.getLogger("trimaran.clients")
HANDSHAKE_TIMEOUT_S: Final = 10.0
HANDSHAKES_MAX: Final = 4096
TAKES_MAX: Final = 4  # of 256 KiB each from one connection before others have their turn
PREFACE: Final = b"PRI"  # no method of HTTP/1.1 begins so (RFC 9113 §3.4)
HttpFactory = Callable[[], asyncio.Protocol]


class SecureClient(Connection):
    """One client.

    Attributes:
        common_name: of the certificate it has shown, "" where there is none.
    """

    def __init__(self, clients: "SecureClients", tls: TLSChannel) -> None:
        super().__init__(tls)
        self.common_name = ""
        self._clients = clients
        self._first = b""
        self._engine: rpc.RpcChannel | None = None
        self._http: asyncio.Protocol | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._clients.begun(self)
        super().connection_made(transport)

    def opened(self) -> None:
        assert self.tls is not None
        reason, text = self._clients.tls.check(self.tls)
        if text:
            self._clients.refuse(self, reason, text)
            self.close()
            return
        certificate = self.tls.certificate
        if certificate is not None:
            self.common_name = common_name(x509.load_der_x509_certificate(certificate))
        if self.tls.protocol == "h2":
            self._speak_grpc()
        elif self.tls.protocol is not None:
            self._speak_http()

    def received(self, data: bytes) -> None:
        if self._engine is None and self._http is None:
            self._first += data
            if len(self._first) < len(PREFACE):
                return
            data, self._first = self._first, b""
            if data.startswith(PREFACE):
                self._speak_grpc()
            else:
                self._speak_http()
        if self._engine is not None:
            self._engine.feed(data)
            self._clients.turn_soon()
        elif self._http is not None:
            self._http.data_received(data)

    def send_replies(self) -> None:
        """Send what the engine has for this client, as far as the network takes it."""
        engine = self._engine
        if engine is None:
            return
        for _ in range(TAKES_MAX):
            if self.paused:
                return
            data = engine.take()
            if data is None:
                self.close()
                return
            if not data:
                return
            self.write(data)
            # Who waits for room in the queue of a call is told by a flush.
            self._clients.flush_soon()
        self._clients.has_output(engine)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._http is not None:
            self._http.pause_writing()

    def drained(self) -> None:
        if self._http is not None:
            self._http.resume_writing()
        else:
            self.send_replies()

    def tls_failed(self, error: ssl.SSLError) -> None:
        self._clients.refuse(self, *explain(error))

    def closed(self, error: Exception | None) -> None:
        self._clients.ended(self, self._engine)
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        if self._http is not None:
            self._http.connection_lost(error)
            self._http = None

    def _speak_grpc(self) -> None:
        self._engine = self._clients.attach(self)
        if self._engine is None:
            self.close()

    def _speak_http(self) -> None:
        self._clients.settled(self)
        make = self._clients.http
        if make is None:
            self.close()
            return
        self._http = make()
        self._http.connection_made(_HttpTransport(self, self._http))


class _HttpTransport(asyncio.Transport):
    """A client as an HTTP/1.1 server wants to see it."""

    def __init__(self, connection: SecureClient, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self._connection = connection
        self._protocol = protocol
        self._reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._connection.write(bytes(data))

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        self._connection.close()

    def abort(self) -> None:
        self._connection.abort()

    def is_closing(self) -> bool:
        return self._connection.is_closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        found = self._connection.extra(name)
        return default if found is None else found

    def pause_reading(self) -> None:
        self._reading = False
        self._connection.set_reading(False)

    def resume_reading(self) -> None:
        self._reading = True
        self._connection.set_reading(True)

    def is_reading(self) -> bool:
        return self._reading

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The connection has its own."""

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False


class SecureClients:
    """Accepts clients through TLS and carries their bytes to an engine.

    Args:
        engine: of the gRPC server; None closes clients of gRPC.
        tls: the clients' side.
        http: makes the protocol of a client that does not speak HTTP/2; None closes it.
        turn_soon: called when the engine has got something to do.
        flush_soon: called when the engine has got rid of something; `send_replies` follows.
    """

    def __init__(
        self,
        engine: rpc.RpcServer | None,
        tls: TLSSide,
        http: HttpFactory | None,
        turn_soon: Callable[[], None],
        flush_soon: Callable[[], None],
    ) -> None:
        self.tls = tls
        self.http = http
        self.turn_soon = turn_soon
        self.flush_soon = flush_soon
        self.refusals = Refusals(LOG, "refused a client")
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._servers: list[asyncio.Server] = []
        self._open: set[SecureClient] = set()
        self._unsettled: dict[SecureClient, asyncio.TimerHandle] = {}
        self._carried: dict[rpc.RpcChannel, SecureClient] = {}
        self._waiting: list[SecureClient] = []

    async def listen(self, sockets: Iterable[socket.socket]) -> None:
        """Accept on listening sockets, which are closed with the server."""
        for listening in sockets:
            server = await self._loop.create_server(self._make, sock=listening, backlog=1024)
            self._servers.append(server)

    def stop_listening(self) -> None:
        """Accept no more, and drop those who have not said yet what they speak."""
        for server in self._servers:
            server.close()
        for client in [*self._unsettled]:
            client.abort()

    def end_revoked(self) -> None:
        """End connections whose certificate has been revoked since they were let in."""
        if self.tls.look():
            for client in [*self._open]:
                text = self.tls.revocation(client.tls)
                if text and not client.is_closed:
                    self.refuse(client, "revoked", f"{text}; its connection is ended")
                    client.close()

    def has_output(self, channel: rpc.RpcChannel) -> None:
        """Note that the engine has bytes for a client."""
        client = self._carried.get(channel)
        if client is not None:
            self._waiting.append(client)

    def send_replies(self) -> None:
        """Send what the engine has for those noted."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for client in waiting:
                client.send_replies()

    def client_of(self, channel: rpc.RpcChannel) -> SecureClient | None:
        """The client whose bytes a channel carries."""
        return self._carried.get(channel)

    # What clients tell.

    def begun(self, client: SecureClient) -> None:
        """It was accepted."""
        self._open.add(client)
        if len(self._unsettled) >= HANDSHAKES_MAX:
            oldest = next(iter(self._unsettled))
            self.refuse(oldest, "overload", "too many handshakes are under way")
            oldest.abort()
        timer = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._late, client)
        self._unsettled[client] = timer

    def attach(self, client: SecureClient) -> rpc.RpcChannel | None:
        """It speaks gRPC; None where there is no room for it, or no gRPC."""
        self.settled(client)
        if self._engine is None:
            return None
        try:
            channel = self._engine.attach()
        except OSError as error:
            self.refuse(client, "overload", f"no room: {error.strerror}")
            return None
        self._carried[channel] = client
        self.turn_soon()
        return channel

    def settled(self, client: SecureClient) -> None:
        """It is known what it speaks."""
        timer = self._unsettled.pop(client, None)
        if timer is not None:
            timer.cancel()

    def refuse(self, client: SecureClient, reason: str, text: str) -> None:
        """It is not let in: count and log."""
        said = f"{client.remote}: {text}"
        self.refusals.add(reason, client.remote_host, said, self._loop.time())

    def ended(self, client: SecureClient, channel: rpc.RpcChannel | None) -> None:
        """Its connection is over."""
        self._open.discard(client)
        self.settled(client)
        if channel is not None:
            self._carried.pop(channel, None)
            self.turn_soon()

    def _make(self) -> SecureClient:
        return SecureClient(self, self.tls.server_channel())

    def _late(self, client: SecureClient) -> None:
        self.refuse(client, "timeout", f"no handshake within {HANDSHAKE_TIMEOUT_S:g} s")
        client.abort()
