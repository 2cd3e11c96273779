"""Ports that speak HTTP/1.1 only, plain or through TLS: for those who look, not for clients."""

import asyncio
import socket
from collections.abc import Sequence

from trimaran.daemons.listening import SecureSocket
from trimaran.daemons.secure_clients import HttpFactory, SecureClients
from trimaran.daemons.tls import TLSSide


def _idle() -> None:
    """There is no engine to wake."""


class HttpPorts:
    """Listening sockets of an HTTP server.

    Args:
        http: makes the protocol of a connection (an aiohttp `web.Server`).
        tls: for sockets of the class SecureSocket.
    """

    def __init__(self, http: HttpFactory, tls: TLSSide | None) -> None:
        self._http = http
        self._secure: SecureClients | None = None
        if tls is not None:
            speaking = tls.speaking(("http/1.1",))
            self._secure = SecureClients(None, speaking, http, _idle, _idle)
        self._servers: list[asyncio.Server] = []

    async def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Accept on sockets, which are closed with `stop`."""
        loop = asyncio.get_running_loop()
        for listening in sockets:
            if isinstance(listening, SecureSocket):
                assert self._secure is not None, "https URLs are refused without certificates"
                await self._secure.listen([listening])
            else:
                self._servers.append(await loop.create_server(self._http, sock=listening))

    def end_revoked(self) -> None:
        """End connections whose certificate has been revoked since they were let in."""
        if self._secure is not None:
            self._secure.end_revoked()

    def stop(self) -> None:
        """Accept no more."""
        for server in self._servers:
            server.close()
        if self._secure is not None:
            self._secure.stop_listening()
