"""A damaged data directory is refused, or what can be proven whole is served; never wrong data."""

import asyncio
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from durability import EVERYTHING, Memory, call, check, connect, fold, load, replay
from etcd_server import ServerStartError, StoreServer, missing_reason
from trimaran.wire import etcd_pb2 as pb

JOURNAL = Path("log") / "journal"


@dataclass
class Stopped:
    """A store that was killed under load, checked once, and stopped again.

    Attributes:
        server: not running.
        memory: what it has acknowledged, and its history.
        copy: its data directory as it was.
    """

    server: StoreServer
    memory: Memory
    copy: Path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopped]:
    reason = missing_reason("trimaran")
    if reason is not None:
        pytest.skip(reason)
    rng = random.Random(30)
    memory = Memory()
    copy = tmp_path_factory.mktemp("damage") / "copy"
    with StoreServer("trimaran", name="damage") as server:
        asyncio.run(load(server.address, memory, rng, 4, 4, server.kill))
        # As it was killed: the last writes are in the journal only.
        shutil.copytree(server.folder / "data", copy)
        server.start()
        asyncio.run(check(server.address, memory, rng))
        server.stop()
        yield Stopped(server, memory, copy)


def end_of_journal(data: bytes) -> int:
    """Find where the zeros begin that the journal is filled up with."""
    return len(data.rstrip(b"\0"))


def cut_tail(path: Path, rng: random.Random) -> None:
    size = end_of_journal(path.read_bytes())
    os.truncate(path, max(0, size - rng.randrange(1, 2000)))


def zero_tail(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    end = end_of_journal(data)
    start = max(0, end - rng.randrange(1, 2000))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)


def garbage_after(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    end = end_of_journal(data)
    data[end : end + 5000] = rng.randbytes(5000)
    path.write_bytes(data)


def garbage_at_end(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    end = end_of_journal(data)
    start = max(0, end - rng.randrange(1, 500))
    data[start:end] = rng.randbytes(end - start)
    path.write_bytes(data)


def flip_somewhere(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(end_of_journal(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def replace(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(10_000))


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


DAMAGES: list[tuple[Path, Callable[[Path, random.Random], None], int]] = [
    *((JOURNAL, damage, 4) for damage in (cut_tail, zero_tail, garbage_after, garbage_at_end)),
    (JOURNAL, flip_somewhere, 6),
    *((JOURNAL, damage, 1) for damage in (empty, replace, remove)),
    *((Path("log") / "data.mdb", damage, 1) for damage in (empty, replace, remove)),
    *((Path("state") / "data.mdb", damage, 1) for damage in (empty, replace, remove)),
    *((Path("member.json"), damage, 1) for damage in (empty, replace, remove)),
]
CASES = [(file, damage, i) for file, damage, count in DAMAGES for i in range(count)]


async def check_prefix(address: str, memory: Memory) -> int:
    """Check that a store has the first part of a history, whole; give how many revisions."""
    channel = connect(address)
    now = (await call(channel, "KV/Range", pb.RangeRequest(key=b"x"))).header.revision
    history = await replay(channel, now)
    assert history == {r: memory.history[r] for r in range(2, now + 1)}
    found = (await call(channel, "KV/Range", pb.RangeRequest(**EVERYTHING))).kvs
    assert {kv.key: kv for kv in found} == fold(memory.history, now)
    await channel.close()
    return int(now)


@pytest.mark.parametrize(
    ("file", "damage", "number"), CASES, ids=[f"{f.name} {d.__name__} {i}" for f, d, i in CASES]
)
def test_damaged(
    file: Path, damage: Callable[[Path, random.Random], None], number: int, stopped: Stopped
) -> None:
    server = stopped.server
    data = server.folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(stopped.copy, data)
    damage(data / file, random.Random(number))
    server.log_path.unlink(missing_ok=True)
    try:
        server.start()
    except ServerStartError:
        log = server.log_tail()
        assert "Traceback" not in log, log
        assert "trimaran-stored: " in log, log
        return
    kept = asyncio.run(check_prefix(server.address, stopped.memory))
    server.kill()
    # A tail that was never whole may be given up; nothing else may.
    if damage is garbage_after:
        assert kept == max(stopped.memory.history)
