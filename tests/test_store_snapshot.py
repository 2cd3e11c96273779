"""Snapshots of the whole state: streamed out, built anew, installed, saved and restored."""

import hashlib
import random
from pathlib import Path

import pytest

from store_member import LocalMember
from trimaran.errors import CorruptionError
from trimaran.ext import snapshot


def fill(member: LocalMember, rng: random.Random, count: int) -> None:
    """A history with overwrites, deletions, leases and large values."""
    member.grant(0x1234, 600)
    for _ in range(count):
        key = b"key/%d" % rng.randrange(count)
        choice = rng.random()
        if choice < 0.1:
            member.delete(b"key/1", b"key/2")
        elif choice < 0.2:
            member.put(key, rng.randbytes(rng.randrange(300_000)))
        else:
            member.put(key, rng.randbytes(rng.randrange(300)), 0x1234 if choice < 0.3 else 0)
    member.compact(count // 3)


def stream(reader: snapshot.SnapshotReader) -> list[bytes]:
    size, count = reader.measure()
    chunks = [reader.read(number) for number in range(count)]
    assert sum(map(len, chunks)) == size
    assert size % 512 == 0
    with pytest.raises(IndexError):
        reader.read(count)
    return chunks


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], dict[str, int], int]:
    """Chunks, facts and hash of a state."""
    directory = tmp_path_factory.mktemp("taken")
    with LocalMember(directory) as member:
        fill(member, random.Random(5), 300)
        member.commit()
        reader = member.member.snapshot()
        assert reader.index == member.member.status()["applied"]
        assert reader.revision == member.member.revision
        return stream(reader), reader.facts, reader.hash()


def build(directory: Path, chunks: list[bytes]) -> None:
    builder = snapshot.StateBuilder(directory)
    for chunk in chunks:
        builder.write(chunk)
    builder.finish()


def test_a_state_is_built_from_its_stream(
    taken: tuple[list[bytes], dict[str, int], int], tmp_path: Path
) -> None:
    chunks, facts, checksum = taken
    assert len(chunks) > 10
    assert facts["revision"] > 200
    assert facts["compact_revision"] == 100
    build(tmp_path / "state", chunks)
    reader = snapshot.SnapshotReader(tmp_path / "state")
    assert reader.hash() == checksum
    again = stream(reader)
    assert {**reader.facts, "cluster_id": 7, "member_id": 9} == facts
    assert again[1:] == chunks[1:]


def test_chunks_come_in_any_order(
    taken: tuple[list[bytes], dict[str, int], int], tmp_path: Path
) -> None:
    chunks, _, _ = taken
    build(tmp_path / "state", chunks)
    reader = snapshot.SnapshotReader(tmp_path / "state")
    rng = random.Random(1)
    for _ in range(50):
        number = rng.randrange(1, len(chunks))
        assert reader.read(number) == chunks[number]


def test_the_snapshot_stays_as_it_was_taken(tmp_path: Path) -> None:
    with LocalMember(tmp_path) as member:
        fill(member, random.Random(6), 100)
        member.commit()
        reader = member.member.snapshot()
        before = hashlib.sha256(b"".join(stream(reader))).digest()
        fill_more = random.Random(7)
        for _ in range(100):
            member.put(b"key/%d" % fill_more.randrange(50), b"new")
        member.compact(150)
        member.commit()
        assert hashlib.sha256(b"".join(stream(reader))).digest() == before
        reader.close()
        with pytest.raises(ValueError, match="closed"):
            reader.measure()


def damage(chunks: list[bytes], rng: random.Random) -> list[bytes]:
    """One fault of the kinds that carriers make."""
    kind = rng.choice(["flip", "cut", "drop", "repeat", "swap", "short", "more", "foreign"])
    chunks = list(chunks)
    at = rng.randrange(len(chunks))
    if kind == "flip":
        place = rng.randrange(len(chunks[at]))
        flipped = bytes([chunks[at][place] ^ (1 << rng.randrange(8))])
        chunks[at] = chunks[at][:place] + flipped + chunks[at][place + 1 :]
    elif kind == "cut":
        chunks[at] = chunks[at][: rng.randrange(len(chunks[at]))]
    elif kind == "drop":
        del chunks[at]
    elif kind == "repeat":
        chunks.insert(at, chunks[at])
    elif kind == "swap":
        at = rng.randrange(len(chunks) - 1)
        chunks[at], chunks[at + 1] = chunks[at + 1], chunks[at]
    elif kind == "short":
        del chunks[at:]
    elif kind == "more":
        chunks.append(chunks[-1])
    else:
        chunks[at] = rng.randbytes(rng.randrange(1, 200_000))
    return chunks


def test_a_damaged_stream_is_refused(
    taken: tuple[list[bytes], dict[str, int], int], tmp_path: Path
) -> None:
    rng = random.Random(11)
    chunks = [taken[0][0], *taken[0][-3:]]
    with pytest.raises(CorruptionError, match="missing"):
        build(tmp_path / "state", chunks)
    for _ in range(60):
        with pytest.raises(CorruptionError, match="refused"):
            build(tmp_path / "state", damage(taken[0], rng))
    build(tmp_path / "state", taken[0])
