"""The peers' side of a member: its node on the transport between members."""

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from trimaran.daemons.listening import bind, close_all
from trimaran.daemons.peer_connection import PeerIdentity
from trimaran.daemons.peer_transport import PeerTransport
from trimaran.daemons.tls import TLSSide
from trimaran.ext.peer import PeerWire
from trimaran.store.node import Node
from trimaran.store.peer_calls import Done
from trimaran.store.peer_frames import Refusal


class StorePeers:
    """What connects a node to the other members.

    Args:
        node: the member's.
        identity: who it is.
        turn_soon: called when the node has got something to do.
        tls: for https URLs.

    Attributes:
        removed: called when a member says that this one is none any more.
    """

    def __init__(
        self,
        node: Node,
        identity: PeerIdentity,
        turn_soon: Callable[[], None],
        turn: Callable[[], None],
        tls: TLSSide | None = None,
    ) -> None:
        self.transport = PeerTransport(identity, tls)
        self.removed: Callable[[], None] = lambda: None
        self._node = node
        self._turn_soon = turn_soon
        self._known: Mapping[int, Sequence[str]] = {}
        self.transport.on_data = self._receive
        self.transport.on_readable = self._read
        self.transport.on_read = turn
        self.transport.on_opened = lambda peer: node.opened(peer, time.monotonic())
        self.transport.on_connected = lambda peer: node.connected(peer, time.monotonic())
        self.transport.on_lost = self._lost
        self.transport.on_gone = lambda peer: node.gone(peer, time.monotonic())
        self.transport.on_refused = self._refused
        self.transport.on_call = self._call
        self.transport.admit = self._admit

    async def start(self, urls: Sequence[str], known: Mapping[int, Sequence[str]]) -> None:
        """Listen, and connect to the members.

        Args:
            urls: to listen on.
            known: URLs of members by id, for as long as the table of members does not tell.

        Raises:
            ConfigError: a URL cannot be listened on.
        """
        plain: list[socket.socket] = []
        secure: list[socket.socket] = []
        try:
            for url in urls:
                sockets = secure if urlsplit(url).scheme == "https" else plain
                sockets += bind(url, "--listen-peer-urls")
        except BaseException:
            close_all([*plain, *secure])
            raise
        await self.transport.start(plain, secure)
        self._known = known
        self.members_changed()

    async def stop(self) -> None:
        """Close all connections."""
        await self.transport.stop()

    def members_changed(self) -> None:
        """Connect to the members as the table has them now."""
        table = self._node.members.table
        self.transport.set_peers(table.peer_urls() if table.members else self._known)

    def send(self, outgoing: Sequence[tuple[int, bytes]]) -> None:
        """Send what a turn has left, or the node's calls and answers: (member id, bytes)."""
        if outgoing:
            self.transport.send_all(outgoing)

    def _receive(self, peer: int, data: bytes) -> None:
        self._node.receive(peer, data, time.monotonic())
        self._turn_soon()

    def _read(self, peer: int, wire: PeerWire) -> int:
        return self._node.receive_from(peer, wire, time.monotonic())

    def _lost(self, peer: int) -> None:
        self._node.lost(peer, time.monotonic())
        self._turn_soon()

    def _refused(self, peer: int, refusal: Refusal) -> None:
        if refusal == Refusal.REMOVED:
            self.removed()

    def _admit(self, peer: int) -> Refusal | None:
        # One that is not in the table may have been added by an entry that is not here yet.
        return Refusal.REMOVED if peer in self._node.members.table.removed else None

    def _call(self, sender: int, method: int, payload: bytes, done: Done) -> None:
        self._node.serve_call(method, payload, done)
        self._turn_soon()
