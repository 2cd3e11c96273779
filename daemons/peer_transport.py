"""Bytes between members: one connection from each member to each other.

A member sends on the connection it has opened itself and receives on those that others have
opened to it; only greetings and refusals go against the stream. Calls of those who are no members
yet, and snapshots, have connections of their own. Nothing here knows what the frames say.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Final

from trimaran.daemons.peer_connection import (
    GREETING_TIMEOUT_S,
    Incoming,
    IncomingOwner,
    Outgoing,
    PeerIdentity,
    PeerRefusedError,
    PeerStream,
    make_hello,
)
from trimaran.daemons.peer_link import (
    SILENCE_S,
    PeerLink,
    describe,
    open_connection,
)
from trimaran.daemons.refusals import Refusals
from trimaran.daemons.tls import TLSSide, explain
from trimaran.errors import ProtocolError, StoreError, etcd_error
from trimaran.ext.peer import PeerWire
from trimaran.store.peer_calls import (
    REQUEST,
    RESPONSE,
    Done,
    PeerCalls,
    PeerMethod,
    PeerRequest,
    encode_answer,
    parse_request,
)
from trimaran.store.peer_frames import (
    REFUSAL_TEXTS,
    FrameReader,
    Hello,
    Purpose,
    Refusal,
    check_hello,
    encode_frame,
    encode_refusal,
)

LOG = logging.getLogger("trimaran.peers")
UNGREETED_MAX: Final = 256  # connections that have not said who they are
OTHERS_MAX: Final = 64  # connections for calls and snapshots
CALL_TIMEOUT_S: Final = 10.0
CALL_BYTES_MAX: Final = 2 * 1024**2
PARTING_S: Final = 1.0  # how long a removed member is still sent to

ServeCall = Callable[[int, int, bytes, Done], None]


def _refuse_call(sender: int, method: int, payload: bytes, done: Done) -> None:
    done(etcd_error("STOPPED"))


class PeerTransport(IncomingOwner):
    """The peers' side of a member.

    Args:
        identity: who this member is.
        tls: for https URLs, both listening and connecting.

    Attributes:
        on_data: (peer, bytes) called with what a member sends, in pieces of any size; it may
            raise ProtocolError, which ends the connection.
        on_readable: (peer, wire) called instead, where there is no TLS, when bytes of a member wait
            at its socket, to take them; it may raise ProtocolError and OSError.
        on_read: called after that.
        on_opened: (peer) called before the first bytes of a new connection of a member.
        on_connected: (peer) called when what is sent to it arrives (again).
        on_lost: (peer) called when what was sent to it last may not have arrived.
        on_gone: (peer) called when its process has ended, as far as its machine tells.
        on_refused: (peer, refusal) called when a member does not accept this one.
        on_call: (sender or 0, method, payload, done) called with a call of `call_member`.
        on_stream: (stream) called when a member opens one; the coroutine it returns is run.
        wires: ways to the sockets of members that are connected without TLS, by their ids.
        tls: as given.
        admit: (member) says why a member is not accepted, None where it is.
    """

    def __init__(self, identity: PeerIdentity, tls: TLSSide | None = None) -> None:
        self.identity = identity
        self.on_data: Callable[[int, bytes], None] = lambda peer, data: None
        self.on_readable: Callable[[int, PeerWire], int] | None = None
        self.on_read: Callable[[], None] = lambda: None
        self.on_opened: Callable[[int], None] = lambda peer: None
        self.on_connected: Callable[[int], None] = lambda peer: None
        self.on_lost: Callable[[int], None] = lambda peer: None
        self.on_gone: Callable[[int], None] = lambda peer: None
        self.on_refused: Callable[[int, Refusal], None] = lambda peer, refusal: None
        self.on_call: ServeCall = _refuse_call
        self.on_stream: Callable[[PeerStream], None] = lambda stream: stream.close()
        self.admit: Callable[[int], Refusal | None] = lambda member: None
        self.links: dict[int, PeerLink] = {}
        self.wires: dict[int, PeerWire] = {}
        self.refusals = Refusals(LOG, "refused a connection to the peers' side")
        self.received_bytes: Counter[int] = Counter()
        self.tls = tls
        self._loop = asyncio.get_running_loop()
        self._servers: list[asyncio.Server] = []
        self._ungreeted: dict[Incoming, asyncio.TimerHandle] = {}
        self._receiving: dict[int, Incoming] = {}
        self._others: set[Incoming] = set()
        self._streams: set[Outgoing] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._parting: dict[int, asyncio.TimerHandle] = {}
        self._stopping = False

    async def start(self, plain: Iterable[socket.socket], secure: Iterable[socket.socket]) -> None:
        """Accept connections.

        Args:
            plain: listening sockets of http URLs; the transport closes them.
            secure: those of https URLs.
        """
        for sockets, use_tls in ((plain, False), (secure, True)):
            for listening in sockets:
                make = self._make_secure if use_tls else self._make_plain
                server = await self._loop.create_server(make, sock=listening, backlog=1024)
                self._servers.append(server)

    async def stop(self) -> None:
        """Close all connections."""
        self._stopping = True
        for server in self._servers:
            server.close()
        for timer in self._parting.values():
            timer.cancel()
        self._parting.clear()
        links = [*self.links.values()]
        self.links.clear()
        self.wires.clear()
        for link in links:
            await link.stop()
        for connection in [*self._ungreeted, *self._receiving.values(), *self._others]:
            connection.close()
        for task in self._tasks:
            task.cancel()

    def set_peers(self, urls_by_id: Mapping[int, Sequence[str]]) -> None:
        """Say who the members are; this one and those without URLs are left out.

        Who is no member any more is still sent to for a moment: that it has been removed, and what
        it waits to be answered.

        Args:
            urls_by_id: URLs of the peers' side by member id.
        """
        wanted = {
            peer: tuple(urls)
            for peer, urls in urls_by_id.items()
            if urls and peer != self.identity.member_id
        }
        for peer in self.links.keys() - wanted.keys() - self._parting.keys():
            self._parting[peer] = self._loop.call_later(PARTING_S, self._part, peer)
        for peer in self._parting.keys() & wanted.keys():
            self._parting.pop(peer).cancel()
        for peer, urls in wanted.items():
            link = self.links.get(peer)
            if link is not None:
                link.set_urls(urls)
            else:
                self.links[peer] = self._add(peer, urls)

    def _part(self, peer: int) -> None:
        del self._parting[peer]
        self.wires.pop(peer, None)
        self._background(self.links.pop(peer).stop())
        receiving = self._receiving.pop(peer, None)
        if receiving is not None:
            receiving.close()

    def send(self, peer: int, data: bytes) -> bool:
        """Send whole frames to a member.

        Returns:
            False where there is no connection to it; they are dropped then.
        """
        link = self.links.get(peer)
        return link is not None and link.send(data)

    def send_all(self, outgoing: Sequence[tuple[int, bytes]]) -> None:
        """Send what a turn has made: one write for each member.

        Args:
            outgoing: (member id, whole frames), any number for each.
        """
        if len(outgoing) == 1:
            self.send(*outgoing[0])
            return
        parts: dict[int, list[bytes]] = {}
        for peer, data in outgoing:
            parts.setdefault(peer, []).append(data)
        for peer, pieces in parts.items():
            self.send(peer, pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def is_connected(self, peer: int) -> bool:
        """Tell whether there is a connection to a member."""
        link = self.links.get(peer)
        return link is not None and link.connection is not None

    async def open_stream(self, peer: int) -> PeerStream:
        """Open a connection of its own for a snapshot.

        Raises:
            ConnectionError: the member cannot be reached.
        """
        link = self.links.get(peer)
        if link is None:
            raise ConnectionError(f"member {peer:x} has no URL")
        for url in link.urls:
            try:
                connection = await open_connection(
                    url, self.identity, peer, Purpose.SNAPSHOT, self.tls
                )
                self._streams = {one for one in self._streams if not one.is_closed}
                self._streams.add(connection)
                return connection.become_stream(peer)
            except Exception as error:
                reason = describe(error)
        raise ConnectionError(f"no connection to member {peer:x}: {reason}")

    def end_revoked(self) -> None:
        """End connections whose certificate has been revoked since they were opened."""
        if self.tls is None or not self.tls.look():
            return
        for incoming in [*self._ungreeted, *self._receiving.values(), *self._others]:
            text = self.tls.revocation(incoming.tls)
            if text and not incoming.is_closed:
                self._count_refusal(incoming, "revoked", f"{text}; its connection is ended")
                incoming.write(encode_refusal(Refusal.CERTIFICATE))
                incoming.close()
        links = [link.connection for link in self.links.values() if link.connection is not None]
        for outgoing in [*links, *self._streams]:
            text = self.tls.revocation(outgoing.tls)
            if text and not outgoing.is_closed:
                self.refusals.counts["revoked"] += 1
                outgoing.fail(PeerRefusedError(Refusal.CERTIFICATE, text, is_ours=True))

    # What incoming connections tell.

    def begun(self, connection: Incoming) -> None:
        if len(self._ungreeted) >= UNGREETED_MAX:
            # Members greet within a round trip: the oldest is the least likely to be one.
            self.refuse(next(iter(self._ungreeted)), Refusal.OVERLOAD)
        timer = self._loop.call_later(GREETING_TIMEOUT_S, self.refuse, connection, Refusal.TIMEOUT)
        self._ungreeted[connection] = timer

    def greeted(self, connection: Incoming, hello: Hello) -> None:
        refusal = self._judge(connection, hello)
        if refusal is not None:
            self._refuse_member(connection, hello, refusal)
        elif connection.tls is None or self.tls is None:
            self._accept(connection, hello)
        else:
            reason, text = self.tls.check(connection.tls)
            if text:
                self._refuse_member(connection, hello, Refusal.CERTIFICATE, text, reason)
            else:
                self._background(self._check_address(self.tls, connection, hello))

    def refuse(self, connection: Incoming, refusal: Refusal, text: str = "") -> None:
        reason = refusal.name.lower()
        self._count_refusal(connection, reason, text or REFUSAL_TEXTS[refusal])
        if not connection.is_closed:
            connection.write(encode_refusal(refusal))
            connection.close()

    def tls_failed(self, connection: Incoming, error: Exception) -> None:
        self._count_refusal(connection, *explain(error))

    def ended(self, connection: Incoming) -> None:
        timer = self._ungreeted.pop(connection, None)
        if timer is not None:
            timer.cancel()
        self._others.discard(connection)
        hello = connection.hello
        if hello is not None and self._receiving.get(hello.sender) is connection:
            del self._receiving[hello.sender]

    # Inside.

    def _make_plain(self) -> Incoming:
        return Incoming(self)

    def _make_secure(self) -> Incoming:
        assert self.tls is not None
        return Incoming(self, self.tls.server_channel())

    def _add(self, peer: int, urls: Sequence[str]) -> PeerLink:
        link = PeerLink(peer, urls, self.identity, self.tls)
        link.connected = lambda: self._connected(link)
        link.lost = lambda: self._lost(link)
        link.gone = lambda: self.on_gone(peer)
        link.refused = lambda error: self.on_refused(peer, error.refusal)
        link.start()
        return link

    def _connected(self, link: PeerLink) -> None:
        if link.connection is not None and link.connection.wire is not None:
            self.wires[link.peer] = link.connection.wire
        self.on_connected(link.peer)

    def _lost(self, link: PeerLink) -> None:
        if link.connection is None:
            self.wires.pop(link.peer, None)
        self.on_lost(link.peer)

    def _background(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _judge(self, connection: Incoming, hello: Hello) -> Refusal | None:
        refusal = check_hello(hello, self.identity.cluster_id, self.identity.member_id)
        if refusal is None and hello.sender != 0:
            refusal = self.admit(hello.sender)
        if refusal is None and hello.purpose != Purpose.MESSAGES:
            full = len(self._others) >= OTHERS_MAX
            refusal = Refusal.OVERLOAD if full or self._stopping else None
        return refusal

    async def _check_address(self, tls: TLSSide, connection: Incoming, hello: Hello) -> None:
        assert connection.tls is not None
        reason, text = await tls.check_address(connection.tls, connection.remote_host)
        if connection.is_closed:
            return
        if text:
            self._refuse_member(connection, hello, Refusal.CERTIFICATE, text, reason)
        else:
            self._accept(connection, hello)

    def _accept(self, connection: Incoming, hello: Hello) -> None:
        self._ungreeted.pop(connection).cancel()
        connection.set_timeouts(SILENCE_S)
        connection.write(make_hello(self.identity, hello.sender, hello.purpose).encode())
        begin = {
            Purpose.MESSAGES: self._begin_messages,
            Purpose.CALL: self._begin_call,
            Purpose.SNAPSHOT: self._begin_stream,
        }
        connection.accept(begin[hello.purpose](connection, hello.sender))
        if hello.purpose == Purpose.MESSAGES and self.on_readable is not None:
            connection.read_wire(
                lambda wire: self._read(connection, hello.sender, wire), self.on_read
            )

    def _refuse_member(
        self,
        connection: Incoming,
        hello: Hello,
        refusal: Refusal,
        text: str = "",
        reason: str = "",
    ) -> None:
        who = f"member {hello.sender:x} of cluster {hello.cluster_id:x}"
        reason = reason or refusal.name.lower()
        self._count_refusal(connection, reason, f"{who}: {text or REFUSAL_TEXTS[refusal]}")
        connection.write(encode_refusal(refusal))
        connection.close()

    def _count_refusal(self, connection: Incoming, reason: str, text: str) -> None:
        said = f"{connection.remote}: {text}"
        self.refusals.add(reason, connection.remote_host, said, self._loop.time())

    def _begin_messages(self, connection: Incoming, peer: int) -> Callable[[bytes], None]:
        before = self._receiving.get(peer)
        self._receiving[peer] = connection
        if before is not None:
            before.abort()
        self.on_opened(peer)
        link = self.links.get(peer)
        if link is not None:
            link.retry()

        def take(data: bytes) -> None:
            self.received_bytes[peer] += len(data)
            self.on_data(peer, data)

        return take

    def _read(self, connection: Incoming, peer: int, wire: PeerWire) -> int:
        assert self.on_readable is not None
        try:
            count = self.on_readable(peer, wire)
        except ProtocolError as error:
            self.refuse(connection, Refusal.PROTOCOL, str(error))
            return 0
        self.received_bytes[peer] += count
        return count

    def _begin_stream(self, connection: Incoming, peer: int) -> Callable[[bytes], None]:
        self._others.add(connection)
        stream = PeerStream(connection, peer)
        connection.when_drained = stream.wake
        connection.when_closed = stream.end
        self.on_stream(stream)
        return stream.feed

    def _begin_call(self, connection: Incoming, sender: int) -> Callable[[bytes], None]:
        self._others.add(connection)
        reader = FrameReader(CALL_BYTES_MAX)
        timer = self._loop.call_later(CALL_TIMEOUT_S, connection.close)
        connection.when_closed = lambda error: timer.cancel()

        def take(data: bytes) -> None:
            reader.add(data)
            for kind, body in reader.frames():
                request = parse_request(body) if kind == REQUEST else None
                if request is not None:
                    self._serve_call(connection, sender, request)

        return take

    def _serve_call(self, connection: Incoming, sender: int, request: PeerRequest) -> None:
        def done(outcome: bytes | StoreError) -> None:
            answer = encode_answer(request.number, outcome)
            connection.write(encode_frame(RESPONSE, answer))
            connection.close()

        self.on_call(sender, request.method, request.payload, done)


async def call_member(
    url: str,
    method: PeerMethod,
    payload: bytes,
    identity: PeerIdentity,
    tls: TLSSide | None = None,
    timeout_s: float = CALL_TIMEOUT_S,
) -> tuple[Hello, bytes]:
    """Ask whoever serves a URL, member or not: one call on a connection of its own.

    Args:
        url: of a peers' side.
        method: what is asked.
        payload: its message.
        identity: who asks; ids are 0 where they are not known yet.
        tls: for https URLs.
        timeout_s: until when the answer must be there.

    Returns:
        who answered, and the answer.

    Raises:
        StoreError: the answer is an error.
        ConnectionError: there is no answer; the text says why.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[bytes | StoreError] = loop.create_future()

    def settle(outcome: bytes | StoreError) -> None:
        if not answered.done():
            answered.set_result(outcome)

    calls, reader = PeerCalls(1), FrameReader(CALL_BYTES_MAX)

    def take(data: bytes) -> None:
        reader.add(data)
        for kind, body in reader.frames():
            if kind == RESPONSE:
                calls.answer(0, body)

    try:
        async with asyncio.timeout(timeout_s):
            connection = await open_connection(url, identity, 0, Purpose.CALL, tls)
            connection.taken = take
            connection.lost.add_done_callback(lambda _: calls.lost(0))
            connection.write(encode_frame(REQUEST, calls.begin(0, method, payload, 0, settle)))
            try:
                outcome = await answered
            finally:
                connection.close()
    except Exception as error:
        raise ConnectionError(f"no answer from {url}: {describe(error)}") from None
    if isinstance(outcome, StoreError):
        raise outcome
    return connection.greeted.result(), outcome
