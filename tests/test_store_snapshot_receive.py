"""Receiving a state from another member: what is left on the disk."""

import asyncio
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from member_group import Group
from trimaran.daemons.store_snapshots import ACKNOWLEDGE, CHUNK, OPEN, StoreSnapshots


class Stream:
    """What a sender says, and what it is answered."""

    def __init__(self, peer: int, frames: list[tuple[int, bytes]]) -> None:
        self.peer = peer
        self.frames = frames
        self.answers: list[tuple[int, bytes]] = []
        self.is_over = asyncio.Event()

    async def receive(self) -> tuple[int, bytes] | None:
        return self.frames.pop(0) if self.frames else None

    async def send(self, kind: int, body: bytes) -> None:
        self.answers.append((kind, body))

    def close(self) -> None:
        self.is_over.set()


def frames_of(group: Group, leader: int) -> list[tuple[int, bytes]]:
    """All that a leader says when it sends its state."""
    member = group.members[leader]
    member.commit()
    reader = member.snapshot()
    frames = [(OPEN, struct.pack("<QQQ", 1, member.status()["term"], reader.index))]
    for number in range(reader.measure()[1]):
        frames.append((CHUNK, struct.pack("<Q", number) + reader.read(number)))
    frames.append((CHUNK, struct.pack("<Q", 2**64 - 1)))
    reader.close()
    return frames


def test_a_state_that_is_not_needed_is_removed(tmp_path: Path) -> None:
    group = Group(tmp_path, 3)
    leader = group.leader()
    group.outcome(group.put(leader, b"a", b"1"))
    other = next(number for number in group.members if number != leader)
    group.tick(3)
    before = group.content(other)
    stream = Stream(leader, frames_of(group, leader))
    transport: Any = SimpleNamespace()

    async def receive() -> None:
        snapshots = StoreSnapshots(
            group.members[other],
            group.options_of(other),
            transport,
            take=lambda: asyncio.sleep(0),  # type: ignore[arg-type, return-value]
            installed=lambda: None,
            turn_soon=lambda: None,
        )
        transport.on_stream(stream)
        await stream.is_over.wait()
        assert snapshots.counts.receive_failures == 0
        await snapshots.stop()

    asyncio.run(asyncio.wait_for(receive(), 30))
    assert stream.answers[-1] == (ACKNOWLEDGE, struct.pack("<Q", 0))
    folder = Path(group.options_of(other).state_directory).parent
    assert {path.name for path in folder.iterdir()} == {"log", "state"}
    assert group.content(other) == before
    group.close()
