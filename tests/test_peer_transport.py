"""The transport between members: frames, greetings, refusals, reconnection, streams and calls."""

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from aio import eventually
from trimaran.daemons import peer_link, peer_transport
from trimaran.daemons.listening import bind
from trimaran.daemons.network_metrics import NetworkCollector
from trimaran.daemons.peer_connection import PeerIdentity, PeerStream
from trimaran.daemons.peer_transport import PeerTransport, call_member
from trimaran.daemons.tls import TLSSide
from trimaran.errors import ProtocolError, StatusCode, StoreError
from trimaran.store.peer_calls import Done, PeerMethod
from trimaran.store.peer_frames import (
    HELLO,
    REFUSED,
    FrameReader,
    Hello,
    Purpose,
    Refusal,
    check_hello,
    encode_frame,
    parse_refusal,
)

CLUSTER = 0x77


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run on the loop that the daemons use."""

    async def watched() -> None:
        unhandled: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, it: unhandled.append(it))
        async with asyncio.timeout(60):
            await main
        assert not unhandled, unhandled

    uvloop.run(watched())


class Site:
    """One transport on a loopback port, and what it has been told."""

    def __init__(
        self,
        member_id: int,
        port: int = 0,
        cluster_id: int = CLUSTER,
        tls: TLSSide | None = None,
    ) -> None:
        self.transport = PeerTransport(PeerIdentity(cluster_id, member_id, "3.6.0"), tls)
        self.tls = tls
        self.id = member_id
        self.events: list[tuple[str, int]] = []
        self.received: dict[int, bytearray] = {}
        self.frames: list[tuple[int, bytes]] = []
        self.streams: list[PeerStream] = []
        transport = self.transport
        transport.on_opened = self.on_opened
        transport.on_data = self.on_data
        transport.on_connected = lambda peer: self.events.append(("connected", peer))
        transport.on_lost = lambda peer: self.events.append(("lost", peer))
        transport.on_gone = lambda peer: self.events.append(("gone", peer))
        transport.on_refused = lambda peer, why: self.events.append((why.name, peer))
        transport.on_stream = self.streams.append
        self._sockets = bind(f"http://127.0.0.1:{port}", "--listen-peer-urls")
        self.port = self._sockets[0].getsockname()[1]

    async def start(self) -> "Site":
        plain, secure = (self._sockets, []) if self.tls is None else ([], self._sockets)
        await self.transport.start(plain, secure)
        return self

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def on_opened(self, peer: int) -> None:
        self.events.append(("opened", peer))
        self.reader = FrameReader(1 << 20)

    def on_data(self, peer: int, data: bytes) -> None:
        self.reader.add(data)
        self.frames += self.reader.frames()


async def pair() -> tuple[Site, Site]:
    one, two = await Site(1).start(), await Site(2).start()
    for site in (one, two):
        site.transport.set_peers({1: [one.url], 2: [two.url]})
    await eventually(lambda: one.transport.is_connected(2) and two.transport.is_connected(1))
    return one, two


def frames_of(data: bytes, bytes_max: int = 1 << 20) -> list[tuple[int, bytes]]:
    reader = FrameReader(bytes_max)
    reader.add(data)
    return list(reader.frames())


def test_members_send_to_each_other() -> None:
    async def main() -> None:
        one, two = await pair()
        assert ("connected", 2) in one.events
        assert ("opened", 1) in two.events
        frames = [(64 + i % 100, bytes([i]) * (i * 37)) for i in range(100)]
        one.transport.send_all([(2, encode_frame(kind, body)) for kind, body in frames])
        assert two.transport.send(1, encode_frame(80, b"answer"))
        assert not one.transport.send(3, encode_frame(80, b"nobody"))
        await eventually(lambda: len(two.frames) == 100 and len(one.frames) == 1)
        assert two.frames == frames
        assert one.frames == [(80, b"answer")]
        assert two.transport.received_bytes[1] == sum(len(body) + 12 for _, body in frames)
        await one.transport.stop()
        await eventually(lambda: ("lost", 1) in two.events)
        await two.transport.stop()

    run(main())


def test_the_network_is_measured() -> None:
    async def main() -> None:
        one, two = await pair()
        one.transport.send(2, encode_frame(70, b"x"))
        await eventually(lambda: two.frames == [(70, b"x")])
        await say(two.port, b"GET / HTTP/1.1\r\n\r\n")
        figures = []
        for site in (one, two):
            collector = NetworkCollector(site.id, site.transport)
            registry = CollectorRegistry()
            registry.register(collector)
            figures.append(registry)
        value = figures[0].get_sample_value
        assert value("etcd_network_active_peers", {"Local": "1", "Remote": "2"}) == 1
        assert (value("etcd_network_peer_sent_bytes_total", {"To": "2"}) or 0) > 13
        assert 0 < (value("trimaran_peer_round_trip_seconds", {"To": "2"}) or 0) < 10
        assert value("trimaran_client_refused_total", {"reason": "expired"}) == 0
        value = figures[1].get_sample_value
        assert value("etcd_network_peer_received_bytes_total", {"From": "1"}) == 13
        assert value("trimaran_peer_refused_total", {"reason": "protocol"}) == 1
        for site in (one, two):
            await site.transport.stop()

    run(main())


def test_a_lost_member_is_connected_again() -> None:
    async def main() -> None:
        one, two = await pair()
        await two.transport.stop()
        await eventually(lambda: ("lost", 2) in one.events)
        again = await Site(2, two.port).start()
        again.transport.set_peers({1: [one.url]})
        await eventually(lambda: one.transport.is_connected(2) and again.transport.is_connected(1))
        one.transport.send(2, encode_frame(70, b"x"))
        await eventually(lambda: again.frames == [(70, b"x")])
        one.transport.set_peers({})
        await eventually(lambda: ("lost", 1) in again.events)
        assert not one.transport.send(2, b"")
        for site in (one, again):
            await site.transport.stop()

    run(main())


def test_a_process_that_has_ended_is_told_of_once() -> None:
    async def main() -> None:
        one, two = await pair()
        other = await Site(3).start()
        # Where one of two URLs still has a listener, nobody can tell.
        one.transport.set_peers({2: [two.url], 3: [other.url, two.url]})
        await eventually(lambda: one.transport.is_connected(3))
        one.events.clear()
        await other.transport.stop()
        await eventually(lambda: one.transport.links[3].failures >= 4)
        assert ("gone", 3) not in one.events
        await two.transport.stop()
        await eventually(lambda: one.transport.links[2].failures >= 4)
        assert one.events.count(("gone", 2)) == 1
        assert one.events.index(("lost", 2)) < one.events.index(("gone", 2))
        await one.transport.stop()

    run(main())


def test_every_address_and_every_url_is_tried() -> None:
    async def main() -> None:
        one, two = await Site(1).start(), await Site(2).start()
        by_name = two.url.replace("127.0.0.1", "localhost")  # ::1 too, where nobody listens
        one.transport.set_peers({2: ["http://127.0.0.1:1", by_name]})
        await eventually(lambda: one.transport.is_connected(2))
        assert one.transport.links[2].failures >= 1
        for site in (one, two):
            await site.transport.stop()

    run(main())


def test_a_member_that_takes_nothing_costs_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_link, "QUEUE_BYTES_MAX", 1 << 20)

    async def main() -> None:
        one, two = await pair()
        for connection in two.transport._receiving.values():
            connection.set_reading(False)
        frame = encode_frame(80, bytes(1 << 16))
        link = one.transport.links[2]
        while ("lost", 2) not in one.events:
            one.transport.send(2, frame)
            assert link._queued_bytes <= 1 << 20
        assert link.dropped_bytes % len(frame) == 0
        for connection in two.transport._receiving.values():
            connection.set_reading(True)
        one.transport.send(2, encode_frame(81, b"last"))
        # Whole frames were dropped: those that follow can be read.
        await eventually(lambda: bool(two.frames) and two.frames[-1] == (81, b"last"))
        for site in (one, two):
            await site.transport.stop()

    run(main())


async def say(port: int, data: bytes) -> list[tuple[int, bytes]]:
    """Connect, say something, and return the frames that come until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = b""
    try:
        while data := await reader.read(4096):
            answer += data
    except ConnectionError:
        pass
    writer.close()
    return frames_of(answer)


def hello(**changes: Any) -> Hello:
    fields = {"cluster_id": CLUSTER, "sender": 2, "addressee": 1, "purpose": Purpose.MESSAGES}
    return Hello(**(fields | {"version": "3.6.0"} | changes))


BAD_FIRST_WORDS = {
    "another cluster": (hello(cluster_id=9).encode(), Refusal.WRONG_CLUSTER),
    "another addressee": (hello(addressee=7).encode(), Refusal.WRONG_MEMBER),
    "itself": (hello(sender=1).encode(), Refusal.WRONG_MEMBER),
    "nobody": (hello(sender=0).encode(), Refusal.WRONG_MEMBER),
    "no cluster": (hello(cluster_id=0).encode(), Refusal.WRONG_CLUSTER),
    "a removed one": (hello(sender=13).encode(), Refusal.REMOVED),
    "a later protocol": (hello(protocol_min=9, protocol_max=9).encode(), Refusal.VERSION),
    "an old protocol": (hello(protocol_min=0, protocol_max=0).encode(), Refusal.VERSION),
    "no greeting": (encode_frame(80, b""), Refusal.PROTOCOL),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", Refusal.PROTOCOL),
    "corrupted": (hello().encode()[:-1] + b"?", Refusal.PROTOCOL),
    "frame version": (hello().encode()[:8] + b"\x09" + hello().encode()[9:], Refusal.PROTOCOL),
    "oversize": (b"\xff\xff\xff\x7f" + hello().encode()[4:], Refusal.PROTOCOL),
    "empty": (encode_frame(HELLO, b""), Refusal.PROTOCOL),
    "endless": (encode_frame(HELLO, bytes(4000)), Refusal.PROTOCOL),
    "unknown purpose": (
        encode_frame(HELLO, hello().encode()[12:36] + b"\x63\x01\x01"),
        Refusal.PROTOCOL,
    ),
}


@pytest.mark.parametrize("name", BAD_FIRST_WORDS)
def test_who_does_not_belong_is_refused(name: str, caplog: pytest.LogCaptureFixture) -> None:
    words, refusal = BAD_FIRST_WORDS[name]

    async def main() -> None:
        one = await Site(1).start()
        one.transport.admit = lambda member: Refusal.REMOVED if member == 13 else None
        for _ in range(3):
            frames = await say(one.port, words)
            assert [(kind, parse_refusal(body)) for kind, body in frames] == [(REFUSED, refusal)]
        assert one.transport.refusals.counts == {refusal.name.lower(): 3}
        assert one.events == []
        await one.transport.stop()

    run(main())
    told = [record for record in caplog.records if "refused a connection" in record.message]
    assert len(told) == 1, "once a minute is enough"


def test_a_refused_member_is_told_why() -> None:
    async def main() -> None:
        one, stranger = await Site(1).start(), await Site(2, cluster_id=9).start()
        stranger.transport.set_peers({1: [one.url]})
        await eventually(lambda: ("WRONG_CLUSTER", 1) in stranger.events)
        assert not stranger.transport.is_connected(1)
        for site in (one, stranger):
            await site.transport.stop()

    run(main())


def test_frames_after_the_greeting_are_checked() -> None:
    good = encode_frame(80, b"good")
    bad = {
        "corrupted": good[:-1] + b"?",
        "oversize": b"\xff\xff\xff\x7f" + good[4:],
        "frame version": good[:8] + b"\x07" + good[9:],
    }

    async def main() -> None:
        one = await Site(1).start()
        for number, what in enumerate(bad.values()):
            kinds = [kind for kind, _ in await say(one.port, hello().encode() + good + what)]
            assert kinds == [HELLO, REFUSED]
            assert one.frames == [(80, b"good")] * (number + 1)
        assert one.transport.refusals.counts == {"protocol": len(bad)}
        await one.transport.stop()

    run(main())


def test_silence_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_transport, "GREETING_TIMEOUT_S", 0.1)
    monkeypatch.setattr(peer_transport, "UNGREETED_MAX", 8)

    async def main() -> None:
        one = await Site(1).start()
        frames = await say(one.port, hello().encode()[:-1])
        assert [parse_refusal(body) for _, body in frames] == [Refusal.TIMEOUT]
        # Many who say nothing do not keep a member out.
        idle = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(50)]
        two = await Site(2).start()
        two.transport.set_peers({1: [one.url]})
        await eventually(lambda: two.transport.is_connected(1))
        await eventually(lambda: one.transport.refusals.counts.total() == 51)
        assert one.transport.refusals.counts["overload"] >= 42
        for connection in idle:
            connection.close()
        for site in (one, two):
            await site.transport.stop()

    run(main())


def test_anyone_may_call_where_tls_lets_him() -> None:
    async def main() -> None:
        one = await Site(1).start()

        def serve(sender: int, method: int, payload: bytes, done: Done) -> None:
            if payload == b"bad":
                done(StoreError(StatusCode.NOT_FOUND, "not here"))
            elif payload != b"never":
                done(bytes([sender, method]) + payload * 1000)

        one.transport.on_call = serve
        nobody = PeerIdentity(0, 0, "3.6.0")
        method = PeerMethod.MEMBER_ADD
        who, answer = await call_member(one.url, method, b"x" * 100, nobody)
        assert (who.cluster_id, who.sender) == (CLUSTER, 1)
        assert answer == bytes([0, method]) + b"x" * 100_000
        with pytest.raises(StoreError, match="not here"):
            await call_member(one.url, method, b"bad", nobody)
        with pytest.raises(ConnectionError, match="no answer"):
            await call_member(one.url, method, b"never", nobody, timeout_s=0.1)
        with pytest.raises(ConnectionError, match="another cluster"):
            await call_member(one.url, method, b"", PeerIdentity(9, 2, "3.6.0"))
        await one.transport.stop()
        with pytest.raises(ConnectionError, match="refused"):
            await call_member(one.url, method, b"", nobody)

    run(main())


def test_a_stream_carries_much_in_little_memory() -> None:
    async def main() -> None:
        one, two = await pair()
        sending = await one.transport.open_stream(2)
        await eventually(lambda: bool(two.streams))
        receiving = two.streams[0]
        chunk, total = bytes(range(256)) * 1024, 128

        async def send() -> None:
            for number in range(total):
                await sending.send(68, number.to_bytes(4, "little") + chunk)
            assert await sending.receive() == (69, b"done")
            sending.close()

        task = asyncio.create_task(send())
        for number in range(total):
            frame = await receiving.receive()
            assert frame == (68, number.to_bytes(4, "little") + chunk)
            assert receiving._queued_bytes < 6 << 20
        await receiving.send(69, b"done")
        await task
        assert await receiving.receive() is None
        with pytest.raises(ConnectionError):
            await receiving.send(69, b"more")
        with pytest.raises(ConnectionError):
            await one.transport.open_stream(3)
        for site in (one, two):
            await site.transport.stop()

    run(main())


FRAMES = st.lists(st.tuples(st.integers(64, 255), st.binary(max_size=300)), max_size=6)


@given(frames=FRAMES, data=st.data())
def test_frames_survive_any_cut(frames: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(kind, body) for kind, body in frames)
    reader, found = FrameReader(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        reader.add(stream[:size])
        found += reader.frames()
        stream = stream[size:]
    assert found == frames
    assert reader.rest() == b""


@given(frames=FRAMES.filter(bool), data=st.data())
def test_a_damaged_frame_is_never_taken(
    frames: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(encode_frame(kind, body) for kind, body in frames))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] ^= data.draw(st.integers(1, 255))
    found = []
    reader = FrameReader(1 << 20)
    reader.add(bytes(stream))
    with contextlib.suppress(ProtocolError):
        found += reader.frames()
    assert found == frames[: len(found)]
    assert len(found) < len(frames)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_greeting_or_an_error(body: bytes) -> None:
    try:
        parsed = Hello.parse(body)
    except ProtocolError:
        return
    assert frames_of(parsed.encode()) == [(HELLO, body)]
    check_hello(parsed, CLUSTER, 1)
