"""Frames between members: what is written can be read, what is damaged or forged is refused."""

import struct
import subprocess
from pathlib import Path

import pytest

from member_group import Group
from store_engine import program
from trimaran.errors import ProtocolError
from trimaran.ext.peer import FIRST_KIND, FRAME_BODY_MAX, PeerParser, encode_frame

SOURCES = ("configuration", "crc32c", "payload", "peerframe", "proposal", "rowtable")


@pytest.mark.parametrize("seed", range(3))
def test_random_frames_come_back_and_damaged_ones_stay_within_bounds(seed: int) -> None:
    line = [program("peer_frames", SOURCES), str(seed), "4000"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    decoded, refused = map(int, done.stdout.split())
    assert decoded > 100
    assert refused > 2000


def test_pythons_frames_come_in_any_pieces() -> None:
    bodies = [b"", b"x", bytes(range(256)) * 300]
    stream = b"".join(encode_frame(64 + i, body) for i, body in enumerate(bodies))
    expected = [(64 + i, body) for i, body in enumerate(bodies)]
    for size in (1, 7, 4096, len(stream)):
        parser = PeerParser(None, 1)
        frames = []
        for at in range(0, len(stream), size):
            frames += parser.feed(stream[at : at + size])
        assert frames == expected


def head(size: int, checksum: int = 0, version: int = 1, kind: int = 64, zero: int = 0) -> bytes:
    """Return a frame's head."""
    return struct.pack("<IIBBH", size, checksum, version, kind, zero)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (head(3), "kind or size"),
        (head(FRAME_BODY_MAX + 5), "kind or size"),
        (head(2**32 - 1), "kind or size"),
        (head(4, version=2), "version"),
        (head(4, kind=0), "kind or size"),
        (head(4, zero=1), "kind or size"),
        (head(4), "checksum"),
        (encode_frame(64, b"abc")[:-1] + b"d", "checksum"),
    ],
)
def test_what_is_no_frame_ends_the_connection(data: bytes, complaint: str) -> None:
    parser = PeerParser(None, 0xABC)
    with pytest.raises(ProtocolError, match=f"abc .*{complaint}"):
        parser.feed(data)
    with pytest.raises(ProtocolError, match="frame that is none"):
        parser.feed(encode_frame(64, b""))


def test_before_a_peer_is_known_it_may_say_nothing_to_the_member(tmp_path: Path) -> None:
    group = Group(tmp_path, 3)
    group.tick(30)
    group.network = lambda _sender, _to, _piece: []
    group.tick(1)
    taken: list[bytes] = []
    group.network = lambda _sender, _to, piece: taken.append(piece) or []
    group.tick(1)
    with pytest.raises(ProtocolError, match="no member sends"):
        PeerParser(None, 1).feed(taken[0])
    group.close()


def test_nobody_speaks_in_the_name_of_another(tmp_path: Path) -> None:
    group = Group(tmp_path, 3)
    leader = group.leader()
    first, second = (number for number in group.members if number != leader)
    taken: list[tuple[int, int, bytes]] = []
    group.network = lambda *row: taken.append(row) or []
    group.put(first, b"a", b"1")
    group.tick(2)
    group.network = lambda _sender, _to, piece: [piece]
    before = group.content(leader)
    forwards = [piece for sender, to, piece in taken if (sender, to) == (first, leader)]
    beats = [piece for sender, to, piece in taken if (sender, to) == (leader, first)]
    for piece, claimed, to in (
        (forwards[0], second, leader),  # a write
        (beats[0], second, first),  # a leader's message
        (beats[0], leader, second),  # one that was meant for another
    ):
        with pytest.raises(ProtocolError, match="no member sends"):
            PeerParser(group.members[to], claimed).feed(piece)
    assert group.content(leader) == before
    group.close()


def test_only_kinds_that_are_pythons_can_be_encoded() -> None:
    for kind in (0, 5, FIRST_KIND - 1, 256):
        with pytest.raises(ValueError, match="no frame"):
            encode_frame(kind, b"")
