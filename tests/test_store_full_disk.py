"""A disk that fills up under the store: nothing acknowledged is lost, and writing goes on after."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aio import eventually, run
from etcd_server import StoreServer
from trimaran.client import Client
from trimaran.errors import StoreUnavailableError

# The log's journal takes 64 MiB; what is left is the room for data.
SMALL, LARGE = "size=110m", "size=400m"
VALUE = "v" * 500_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that can be made larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", SMALL, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def fill(endpoint: str) -> int:
    """Put until the store does not answer any more; returns how many puts it acknowledged."""
    async with Client([endpoint], timeout_s=3) as client:
        for done in range(1000):
            try:
                await client.put(f"k{done}", VALUE)
            except StoreUnavailableError:
                return done
    raise AssertionError("the disk never filled up")


async def count(endpoint: str) -> int:
    async with Client([endpoint], timeout_s=5) as client:
        return (await client.get("k", prefix=True, count_only=True)).count


async def problems(endpoint: str) -> list[str]:
    async with Client([endpoint], timeout_s=5) as client:
        return (await client.status()).errors


async def is_well(endpoint: str) -> bool:
    return await problems(endpoint) == []


async def writes_again(endpoint: str) -> bool:
    try:
        async with Client([endpoint], timeout_s=5) as client:
            await client.put("after", "room")
    except StoreUnavailableError:
        return False
    return True


@pytest.mark.parametrize("killed", [False, True], ids=["waits", "killed"])
def test_a_full_disk_is_waited_out(small_disk: Path, killed: bool) -> None:
    data = f"--data-dir={small_disk / 'data'}"
    with StoreServer("trimaran", name="full", arguments=[data]) as server:
        acknowledged = run(fill(server.endpoint))
        assert acknowledged > 0
        # Reads are served while writes wait.
        assert run(count(server.endpoint)) >= acknowledged
        assert run(problems(server.endpoint)) == ["disk: No space left on device"]
        if killed:
            server.kill()
        subprocess.run(["mount", "-o", f"remount,{LARGE}", str(small_disk)], check=True)
        if killed:
            server.restart()
        run(eventually(lambda: writes_again(server.endpoint)))
        # The log goes on at once, the state with its next try: both must stop complaining.
        run(eventually(lambda: is_well(server.endpoint)))
        assert run(count(server.endpoint)) >= acknowledged
        server.kill()
        server.restart()
        assert run(count(server.endpoint)) >= acknowledged
