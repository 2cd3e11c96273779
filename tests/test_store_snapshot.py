"""Snapshots of the whole state: streamed out, built anew, installed, saved and restored."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from etcd_server import StoreServer
from etcdctl import VERSIONS, binary, call, revision
from store_member import LocalMember
from trimaran.errors import CorruptionError
from trimaran.ext import snapshot
from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS


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


def trimaran(*words: object) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "trimaran.daemons.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def everything(server: StoreServer) -> list[pb.KeyValue]:
    return list(call(server, "KV/Range", pb.RangeRequest(key=b"\0", range_end=b"\0")).kvs)


@pytest.fixture(scope="module")
def filled() -> Iterator[StoreServer]:
    with StoreServer("trimaran", name="saved") as server:
        call(server, "Lease/LeaseGrant", pb.LeaseGrantRequest(ID=0x77, TTL=6000))
        for number in range(60):
            value = b"v" * (number * 500)
            call(server, "KV/Put", pb.PutRequest(key=b"k%d" % number, value=value, lease=0x77))
        call(server, "KV/DeleteRange", pb.DeleteRangeRequest(key=b"k7"))
        call(server, "KV/Compact", pb.CompactionRequest(revision=20, physical=True))
        yield server


@pytest.fixture(scope="module")
def saved(filled: StoreServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "backup.snap"
    result = trimaran("--endpoints", filled.endpoint, "snapshot", "save", path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"Snapshot saved at {path}\n"
    return path


def restore(server: StoreServer, path: Path, *words: object) -> None:
    """Make the data of a server that was not started yet."""
    flags = ("--data-dir", server.folder / "data", "--name", server.name)
    peers = ("--initial-advertise-peer-urls", server.peer_url)
    cluster = ("--initial-cluster", f"{server.name}={server.peer_url}")
    result = trimaran("snapshot", "restore", path, *flags, *peers, *cluster, *words)
    assert result.returncode == 0, result.stderr


def test_a_saved_store_is_restored(filled: StoreServer, saved: Path) -> None:
    server = StoreServer("trimaran", name="restored")
    try:
        restore(server, saved)
        server.start()
        assert everything(server) == everything(filled)
        assert revision(server) == revision(filled)
        lease = pb.LeaseTimeToLiveRequest(ID=0x77, keys=True)
        assert len(call(server, "Lease/LeaseTimeToLive", lease).keys) == 59
        members = call(server, "Cluster/MemberList", pb.MemberListRequest()).members
        assert [member.name for member in members] == ["restored"]
        assert call(server, "KV/Put", pb.PutRequest(key=b"new")).header.revision == 63
        server.restart()
        assert len(everything(server)) == 60
    finally:
        server.close()


def test_a_restored_store_may_begin_later(filled: StoreServer, saved: Path) -> None:
    server = StoreServer("trimaran", name="bumped")
    try:
        restore(server, saved, "--bump-revision", 1000, "--mark-compacted")
        server.start()
        assert everything(server) == everything(filled)
        later = revision(filled) + 1000
        assert revision(server) == later
        with pytest.raises(grpc.RpcError, match="compacted"):
            call(server, "KV/Range", pb.RangeRequest(key=b"k1", revision=later - 1))
        assert call(server, "KV/Put", pb.PutRequest(key=b"a")).header.revision == later + 1
        server.restart()
        assert revision(server) == later + 1
    finally:
        server.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_etcdctl_saves_the_same(
    version: str, filled: StoreServer, saved: Path, tmp_path: Path
) -> None:
    tool = binary(version)
    if tool is None:
        pytest.skip(f"etcdctl {version} is not installed here")
    path = tmp_path / "etcdctl.snap"
    result = subprocess.run(
        [tool, "--endpoints", filled.address, "snapshot", "save", path],
        env={**os.environ, "ETCDCTL_API": "3"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert path.read_bytes() == saved.read_bytes()


def test_status_of_a_file(filled: StoreServer, saved: Path, tmp_path: Path) -> None:
    result = trimaran("-o", "json", "snapshot", "status", saved)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["revision"] == revision(filled)
    assert facts["compact_revision"] == 20
    assert facts["total_bytes"] == saved.stat().st_size
    whole = saved.read_bytes()
    bad = tmp_path / "bad.snap"
    for content in (
        whole[:-32],
        whole[:-33],
        whole[:512] + whole[-32:],
        whole[:5000] + b"\1" + whole[5001:],
        whole[:-1] + b"\0",
        b"",
        b"x" * 544,
    ):
        bad.write_bytes(content)
        result = trimaran("snapshot", "status", bad)
        assert result.returncode == 1
        assert str(bad) in result.stderr
    bad.write_bytes(whole[:-1] + b"\0")
    words = ("--data-dir", tmp_path / "data", "--skip-hash-check")
    assert trimaran("snapshot", "restore", bad, *words[:2]).returncode == 1
    assert not (tmp_path / "data").exists()
    assert trimaran("snapshot", "restore", bad, *words).returncode == 0
    assert trimaran("snapshot", "restore", bad, *words).returncode == 1  # is there already


def test_the_stream_counts_down(filled: StoreServer) -> None:
    method = METHODS["/etcdserverpb.Maintenance/Snapshot"]
    with grpc.insecure_channel(filled.address) as channel:
        stream = channel.unary_stream(
            method.path, pb.SnapshotRequest.SerializeToString, method.response.FromString
        )
        answers = list(stream(pb.SnapshotRequest(), timeout=30))
    content = b"".join(answer.blob for answer in answers[:-1])
    left = len(content)
    for answer in answers[:-1]:
        assert len(answer.blob) <= 32 * 1024
        left -= len(answer.blob)
        assert answer.remaining_bytes == left
        assert answer.version == "3.6.0"
    assert answers[-1].remaining_bytes == 0
    assert answers[-1].blob == hashlib.sha256(content).digest()
