"""The state store on a disk that is full: it waits, loses nothing, and closes all the same."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from store_engine import PUT, Engine
from trimaran.wire import etcd_pb2 as pb

ROUNDS = 39


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "trimaran-store-test", str(mount)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("this system does not let root mount a tmpfs")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def fill(directory: Path, leave: int) -> Path:
    """Use up a disk but for some bytes; returns the file that does."""
    filler = directory / "filler"
    descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while os.write(descriptor, bytes(4096)):
            pass
    os.ftruncate(descriptor, os.fstat(descriptor).st_size - leave)
    os.close(descriptor)
    return filler


def write(engine: Engine, value_bytes: int) -> None:
    for index in range(1, ROUNDS + 1):
        request = pb.PutRequest(key=b"k%d" % index, value=bytes(value_bytes))
        assert engine.apply(index, PUT, request.SerializeToString())[0] == ""


@pytest.mark.parametrize(
    ("value_bytes", "leave"),
    [
        pytest.param(100, 0, id="nothing fits"),
        pytest.param(100, 8192, id="a page fits"),
        pytest.param(30_000, 40_960, id="a write ends short"),
    ],
)
def test_a_commit_waits_for_room(small_disk: Path, value_bytes: int, leave: int) -> None:
    with Engine(small_disk / "state") as engine:
        assert engine.state().applied == 0
        filler = fill(small_disk, leave)
        write(engine, value_bytes)
        assert engine.seal()
        assert engine.wait_for_error() == "No space left on device"
        assert engine.state().persisted == 0
        assert len(engine.scan(0)) == ROUNDS
        filler.unlink()
        engine.collect()
        assert engine.state().persisted == ROUNDS
    with Engine(small_disk / "state") as engine:
        assert (engine.state().applied, len(engine.scan(0))) == (ROUNDS, ROUNDS)


@pytest.mark.parametrize("sealed", [True, False])
def test_closing_does_not_wait_for_room(small_disk: Path, sealed: bool) -> None:
    with Engine(small_disk / "state") as engine:
        assert engine.state().applied == 0
        filler = fill(small_disk, 0)
        write(engine, 30_000)
        if sealed:
            assert engine.seal()
    filler.unlink()
    with Engine(small_disk / "state") as engine:
        # The log goes on from here.
        assert engine.state().applied == 0
        write(engine, 30_000)


def test_a_full_disk_from_the_start(small_disk: Path) -> None:
    (small_disk / "state").mkdir()
    filler = fill(small_disk, 0)
    with pytest.raises(AssertionError, match="open: -28"):
        Engine(small_disk / "state").state()
    filler.unlink()
    with Engine(small_disk / "state") as engine:
        assert engine.state().applied == 0
