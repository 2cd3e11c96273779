"""Defragmentation: the file shrinks, nothing is lost, and serving goes on meanwhile."""

import contextlib
import errno
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from etcd_server import StoreServer, missing_reason
from etcdctl import VERSIONS, Etcdctl, binary, call
from store_member import LocalMember
from trimaran.errors import CorruptionError
from trimaran.ext.snapshot import StateBuilder
from trimaran.wire import etcd_pb2 as pb


def defragment(member: LocalMember) -> None:
    """One whole defragmentation, with nothing beside it."""
    work = member.member.defragment()
    try:
        work.copy()
        while not work.hold():
            member.member.collect()
        work.renew()
        work.copy()
        work.finish()
        work.swap()
    finally:
        work.end()
        work.clean()


def contents(member: LocalMember) -> tuple[int, int, int]:
    """A checksum of the keys, the compact revision, and the index that contains them."""
    member.commit()
    reader = member.member.snapshot()
    try:
        return reader.hash_keys(reader.revision), reader.compact_revision, reader.index
    finally:
        reader.close()


def churn(member: LocalMember, rng: random.Random, count: int) -> None:
    for _ in range(count):
        key = b"k%d" % rng.randrange(200)
        if rng.random() < 0.2:
            member.delete(key)
        else:
            member.put(key, rng.randbytes(rng.randrange(5000)))


def test_the_file_shrinks_and_holds_the_same(tmp_path: Path) -> None:
    rng = random.Random(1)
    with LocalMember(tmp_path) as member:
        churn(member, rng, 800)
        revision = member.put(b"last")
        member.delete(b"k", b"l")
        member.compact(revision + 1)
        before, size = contents(member), member.member.sizes()[0]
        defragment(member)
        assert member.member.sizes()[0] < size / 2
        assert contents(member) == before
        churn(member, rng, 100)
        after = contents(member)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"log", "state"}
        assert {path.name for path in member.state.iterdir()} == {"data.mdb", "lock.mdb"}
    with LocalMember(tmp_path) as member:
        assert contents(member)[:2] == after[:2]


def test_what_happens_meanwhile_is_kept(tmp_path: Path) -> None:
    """Between the steps there are writes, commits and compactions."""
    rng = random.Random(2)
    with LocalMember(tmp_path / "a") as member, LocalMember(tmp_path / "b") as other:
        for one in (member, other):
            churn(one, random.Random(5), 300)
        work = member.member.defragment()
        for step in range(4):
            work.copy()
            seed = rng.random()
            for one in (member, other):
                churn(one, random.Random(seed), 60)
                one.compact(one.member.revision - 20 * (step + 1) - 1)
                one.commit()
            work.renew()
        assert work.hold()
        for one in (member, other):
            churn(one, random.Random(9), 30)
            one.compact(one.member.revision - 10)
        assert not member.member.seal()
        work.renew()
        work.copy()
        work.finish()
        work.swap()
        work.end()
        work.clean()
        assert contents(member) == contents(other)
    with LocalMember(tmp_path / "a") as member, LocalMember(tmp_path / "b") as other:
        assert contents(member) == contents(other)


def test_readers_outlive_the_swap(tmp_path: Path) -> None:
    with LocalMember(tmp_path) as member:
        churn(member, random.Random(3), 200)
        member.commit()
        reader = member.member.snapshot()
        before = reader.hash()
        defragment(member)
        churn(member, random.Random(4), 200)
        member.commit()
        assert reader.hash() == before
        reader.close()


def test_given_up_it_leaves_nothing(tmp_path: Path) -> None:
    with LocalMember(tmp_path) as member:
        churn(member, random.Random(3), 100)
        before = contents(member)
        work = member.member.defragment()
        work.copy()
        assert work.hold()
        work.end()
        work.clean()
        assert contents(member) == before
        assert not (tmp_path / "state.copy").exists()
        with pytest.raises(OSError, match="replaced"):
            work.renew()


@pytest.fixture
def server() -> Iterator[StoreServer]:
    with StoreServer("trimaran", name="defragment") as server:
        yield server


def test_serving_goes_on(server: StoreServer) -> None:
    """Writers write all the time; what they were told of is there afterwards."""
    stop = threading.Event()
    acknowledged: list[bytes] = []

    def write() -> None:
        with grpc.insecure_channel(server.address) as channel:
            put = channel.unary_unary(
                "/etcdserverpb.KV/Put",
                pb.PutRequest.SerializeToString,
                pb.PutResponse.FromString,
            )
            number = 0
            while not stop.is_set():
                key = b"w%d" % number
                put(pb.PutRequest(key=key, value=b"v" * 2000), timeout=20)
                acknowledged.append(key)
                number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            assert call(server, "Maintenance/Defragment", pb.DefragmentRequest()) == (
                pb.DefragmentResponse()
            )
    finally:
        stop.set()
        writer.join()
    server.kill()
    server.start()
    request = pb.RangeRequest(key=b"w", range_end=b"x", keys_only=True)
    found = {kv.key for kv in call(server, "KV/Range", request).kvs}
    assert found >= set(acknowledged)


@pytest.mark.parametrize("version", VERSIONS)
def test_etcdctl_defrag(version: str, server: StoreServer) -> None:
    if binary(version) is None or missing_reason("3.5") is not None:
        pytest.skip("etcd is not installed here")
    with StoreServer("3.5", name="defragment-etcd") as reference:
        outputs = []
        for one in (reference, server):
            tool = Etcdctl(version, one)
            tool.run("put a 1")
            result = tool.run("defrag")
            outputs.append((result.code, result.output.replace(one.address, "X")))
            assert call(one, "Maintenance/Defragment", pb.DefragmentRequest()) == (
                pb.DefragmentResponse()
            )
        assert outputs[1] == outputs[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=96m", "trimaran-defragment-test", str(mount)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("this system does not let root mount a tmpfs")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def fill_disk(directory: Path) -> Path:
    """Use up a disk; returns the file that does."""
    filler = directory / "filler"
    descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while os.write(descriptor, bytes(4096)):
            pass
    os.close(descriptor)
    return filler


def test_a_full_disk_changes_nothing(small_disk: Path, tmp_path: Path) -> None:
    """The copy is given up; so is a state that arrives, which can begin anew later."""
    with LocalMember(small_disk / "a") as member:
        churn(member, random.Random(3), 300)
        before = contents(member)
        reader = member.member.snapshot()
        chunks = [reader.read(number) for number in range(reader.measure()[1])]
        reader.close()
        filler = fill_disk(small_disk)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            defragment(member)
        assert caught.value.errno == errno.ENOSPC
        filler.unlink()
        defragment(member)
        assert contents(member) == before
    filler = fill_disk(small_disk)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        StateBuilder(small_disk / "new")
    assert caught.value.errno == errno.ENOSPC
    filler.unlink()
    builder = StateBuilder(small_disk / "new")
    builder.write(chunks[0])
    with pytest.raises(CorruptionError, match="missing"):
        builder.write(chunks[0])
    with pytest.raises(CorruptionError, match="missing"):
        builder.write(chunks[1])  # nothing can follow what was refused
    builder.close()
    builder = StateBuilder(small_disk / "new")
    for chunk in chunks:
        builder.write(chunk)
    builder.finish()
