"""Bytes between members that pass Python by: sockets read and written by the engine."""

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aio import eventually
from member_group import Group, put_request
from test_peer_transport import Site, run
from trimaran.daemons import connection
from trimaran.errors import ProtocolError
from trimaran.ext import member as engine
from trimaran.ext import turn
from trimaran.ext.peer import PeerParser, PeerWire, encode_frame
from trimaran.ext.turn import Turns

SMALL_BYTES = 4096


@contextmanager
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection that takes little before it takes no more."""
    one, two = socket.socketpair()
    with one, two:
        for end in (one, two):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BYTES)
        yield one, two


def everything(end: socket.socket) -> bytes:
    """Read what has arrived."""
    parts = []
    try:
        while part := end.recv(1 << 20):
            parts.append(part)
    except BlockingIOError:
        pass
    return b"".join(parts)


def test_frames_are_read_from_a_socket() -> None:
    parser, frames = PeerParser(None, 7), list[tuple[int, bytes]]()
    with sockets() as (one, two):
        wire = PeerWire(two.fileno())
        with pytest.raises(BlockingIOError):
            parser.receive(wire, frames)
        data = encode_frame(70, b"first") + encode_frame(71, b"second")
        one.send(data[:-3])
        assert parser.receive(wire, frames) == len(data) - 3
        assert frames == [(70, b"first")]
        one.send(data[-3:])
        assert parser.receive(wire, frames) == 3
        assert frames == [(70, b"first"), (71, b"second")]
        one.close()
        assert parser.receive(wire, frames) == 0
        wire.close()
        wire.close()
        with pytest.raises(OSError, match="Bad file"):
            parser.receive(wire, frames)
        with pytest.raises(ValueError, match="closed"):
            wire.fileno()


def test_what_is_no_frame_ends_a_socket_too() -> None:
    parser = PeerParser(None, 0xABC)
    with sockets() as (one, two):
        wire = PeerWire(two.fileno())
        one.send(b"GET / HTTP/1.1\r\n\r\n")
        for _ in range(2):
            with pytest.raises(ProtocolError, match=r"abc|carried"):
                parser.receive(wire, [])
            one.send(encode_frame(70, b"sound, but too late"))


def test_a_wire_is_a_descriptor_of_its_own() -> None:
    with sockets() as (one, two):
        wire = PeerWire(one.fileno())
        one.close()
        assert wire.send(b"abc") == 3
        assert everything(two) == b"abc"
        wire.blocked = True
        assert wire.send(b"abc") == 0
        wire.blocked = False
        wire.close()
        assert wire.send(b"abc") == 0
        assert two.recv(1) == b""
        assert wire.sent_bytes == 3
    with pytest.raises(OSError, match="Bad file"):
        PeerWire(-1)


def test_a_lost_connection_takes_nothing_and_stops_nobody() -> None:
    with sockets() as (one, two):
        wire = PeerWire(one.fileno())
        two.close()
        assert wire.send(b"abc") == 0
        assert wire.sent_bytes == 0


def test_turns_send_in_order_and_tell_what_is_left(tmp_path: Path) -> None:
    """What the socket takes and what is left over make one stream of sound frames."""
    group = Group(tmp_path, 2)
    try:
        leader = group.leader()
        member, other = group.members[leader], group.members[3 - leader]
        with sockets() as (one, two):
            turns = Turns(member, {3 - leader: PeerWire(one.fileno())})
            assert turns.turn() & turn.STATUS
            assert not turns.turn() & ~turn.UNSAVED
            for i in range(20):
                group.submit(leader, engine.PUT, put_request(b"key %d" % i, bytes(8000)))
                member.flush_log(1 << 30)
                turns.turn()
            news = turns.turn()
            assert news & turn.UNSENT
            left = turns.take_unsent()
            assert not turns.turn() & turn.UNSENT
            assert {peer for peer, _ in left} == {3 - leader}
            stream = everything(two) + b"".join(data for _, data in left)
            assert len(stream) > 20 * 8000
        assert PeerParser(other, leader).feed(stream) == []
        group.run()
        group.tick()
        assert other.revision == member.revision == 21
    finally:
        group.close()


def test_turns_tell_of_results_and_of_what_is_not_saved(tmp_path: Path) -> None:
    group = Group(tmp_path, 1)
    try:
        member = group.members[group.leader()]
        turns = Turns(member, {})
        turns.turn()
        member.results()
        member.submit(engine.PUT, put_request(b"a", b"b"), 1)
        news = 0
        while not news & turn.RESULTS:
            member.flush_log(1 << 30)
            news = turns.turn()
        assert news & turn.UNSAVED
        assert [row[0] for row in member.results()] == [1]
        member.commit()
        assert not turns.turn() & (turn.RESULTS | turn.UNSAVED)
    finally:
        group.close()
    with pytest.raises(ValueError, match="closed"):
        turns.turn()


class WireSite(Site):
    """A site that reads its members' sockets itself."""

    def __init__(self, member_id: int) -> None:
        super().__init__(member_id)
        self.parser = PeerParser(None, 0)
        self.reads = 0
        self.transport.on_readable = self.on_readable
        self.transport.on_read = self.on_read

    def on_opened(self, peer: int) -> None:
        super().on_opened(peer)
        self.parser = PeerParser(None, peer)

    def on_readable(self, peer: int, wire: PeerWire) -> int:
        return self.parser.receive(wire, self.frames)

    def on_read(self) -> None:
        self.reads += 1


async def wire_pair() -> tuple[WireSite, WireSite]:
    one, two = WireSite(1), WireSite(2)
    for site in (one, two):
        await site.start()
    for site in (one, two):
        site.transport.set_peers({1: [one.url], 2: [two.url]})
    await eventually(lambda: 2 in one.transport.wires and 1 in two.transport.wires)
    return one, two


def test_wires_and_the_transport_keep_one_order() -> None:
    async def main() -> None:
        one, two = await wire_pair()
        link = one.transport.links[2]
        before = link.sent_bytes
        (incoming,) = two.transport._receiving.values()
        asyncio.get_running_loop().remove_reader(incoming.wire.fileno())  # takes nothing for now
        expected, blocked = [], 0
        for i in range(600):
            body = i.to_bytes(4, "little") + bytes(20_000)
            expected.append((70, body))
            data = encode_frame(70, body)
            wire = one.transport.wires[2]
            blocked += wire.blocked
            sent = wire.send(data) if i % 3 else 0
            one.transport.send(2, data[sent:]) if sent < len(data) else None
        assert blocked > 100
        assert link._queued_bytes > 0
        incoming._is_wire_read = False
        incoming.wire.close()
        incoming.read_wire(
            lambda wire: two.transport._read(incoming, 1, wire), two.transport.on_read
        )
        await eventually(lambda: len(two.frames) == len(expected))
        assert two.frames == expected
        assert not one.transport.wires[2].blocked
        assert link.sent_bytes - before == sum(len(body) + 12 for _, body in expected)
        assert two.transport.received_bytes[1] == link.sent_bytes - before
        assert two.reads > 0
        for site in (one, two):
            await site.transport.stop()

    run(main())


def test_a_lost_wire_is_opened_again() -> None:
    async def main() -> None:
        one, two = await wire_pair()
        for _ in range(3):
            wire = one.transport.wires[2]
            (incoming,) = two.transport._receiving.values()
            incoming.abort()
            await eventually(lambda wire=wire: one.transport.wires.get(2) not in (None, wire))
            assert wire.send(b"abc") == 0
            frame = encode_frame(80, b"again")
            two.frames.clear()
            assert one.transport.wires[2].send(frame) == len(frame)
            await eventually(lambda: two.frames == [(80, b"again")])
        await one.transport.stop()
        assert not one.transport.wires
        await eventually(lambda: ("lost", 1) in two.events)
        await two.transport.stop()

    run(main())


def test_without_a_descriptor_the_event_loop_carries_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> PeerWire:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(connection, "PeerWire", refuse)

    async def main() -> None:
        one, two = await WireSite(1).start(), await WireSite(2).start()
        for site in (one, two):
            site.transport.set_peers({1: [one.url], 2: [two.url]})
        await eventually(lambda: one.transport.is_connected(2))
        assert one.transport.send(2, encode_frame(80, b"as ever"))
        await eventually(lambda: two.frames == [(80, b"as ever")])
        assert not one.transport.wires
        for site in (one, two):
            await site.transport.stop()

    run(main())


def test_an_error_while_reading_ends_the_connection() -> None:
    async def main() -> None:
        one, two = await wire_pair()
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, it: told.append(it))

        def fail(peer: int, wire: PeerWire) -> int:
            raise KeyError(peer)

        two.transport.on_readable = fail
        one.transport.wires[2].send(encode_frame(80, b"x"))
        await eventually(lambda: ("lost", 2) in one.events)
        assert isinstance(told[0]["exception"], KeyError)
        two.transport.on_readable = two.on_readable
        for site in (one, two):
            await site.transport.stop()

    run(main())


def test_what_is_no_frame_is_refused_and_counted() -> None:
    async def main() -> None:
        one, two = await wire_pair()
        one.transport.wires[2].send(b"\0" * 64)
        await eventually(lambda: two.transport.refusals.counts["protocol"] == 1)
        await eventually(lambda: ("lost", 2) in one.events)
        for site in (one, two):
            await site.transport.stop()

    run(main())
