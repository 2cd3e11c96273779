"""A saved snapshot becomes a cluster of three, and of who joins it later or was not restored.

Wrong files are refused with a reason, and change nothing.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from etcd_server import StoreServer, free_port, missing_reason, wait_leader
from etcdctl import call, revision
from test_store_intruders import make_servers, started
from test_store_snapshot import everything, trimaran
from trimaran.daemons.snapshot_file import read_status
from trimaran.daemons.snapshot_file import restore as restore_file
from trimaran.errors import CorruptionError
from trimaran.store.options import read_options
from trimaran.wire import etcd_pb2 as pb

TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[pb.KeyValue]]:
    """A snapshot of one member, with compacted revisions and a lease, and its keys."""
    reason = missing_reason("trimaran")
    if reason is not None:
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("saved") / "backup.snap"
    with StoreServer("trimaran", name="old") as server:
        call(server, "Lease/LeaseGrant", pb.LeaseGrantRequest(ID=0x77, TTL=6000))
        for number in range(300):
            key = b"k%d" % (number % 200)
            call(server, "KV/Put", pb.PutRequest(key=key, value=b"v" * number, lease=0x77))
        call(server, "KV/Compact", pb.CompactionRequest(revision=50, physical=True))
        result = trimaran("--endpoints", server.endpoint, "snapshot", "save", path)
        assert result.returncode == 0, result.stderr
        return path, everything(server)


def restore(server: StoreServer, path: Path, *words: str) -> None:
    """Make a member's data with the flags that it will be started with."""
    assert server.initial_cluster is not None
    result = trimaran(
        *("snapshot", "restore", path, "--data-dir", server.folder / "data"),
        *("--name", server.name, "--initial-cluster", server.initial_cluster),
        *("--initial-advertise-peer-urls", server.peer_url, *words),
    )
    assert result.returncode == 0, result.stderr
    assert "Restored revision" in result.stdout


def await_same(servers: list[StoreServer], wanted: list[pb.KeyValue]) -> None:
    """Wait until every member has these keys by itself, at one revision."""

    def keys(server: StoreServer) -> list[pb.KeyValue]:
        request = pb.RangeRequest(key=b"\0", range_end=b"\0", serializable=True)
        return list(call(server, "KV/Range", request).kvs)

    await_true(lambda: all(keys(server) == wanted for server in servers))
    assert len({revision(server) for server in servers}) == 1
    hashes = {call(server, "Maintenance/HashKV", pb.HashKVRequest()).hash for server in servers}
    assert len(hashes) == 1


def await_true(condition: Callable[[], bool]) -> None:
    """Ask until a condition holds."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize("words", [(), ("--bump-revision", "1000", "--mark-compacted")])
def test_three_members_begin_with_a_snapshot(
    words: tuple[str, ...], saved: tuple[Path, list[pb.KeyValue]]
) -> None:
    path, wanted = saved
    servers = make_servers()
    for server in servers:
        restore(server, path, *words)
    with started(servers):
        leader = wait_leader(servers)
        await_same(servers, wanted)
        kept = call(leader, "Lease/LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=0x77, keys=True))
        assert len(kept.keys) == 200
        # Who comes later has an empty disk, and no part of the log holds what was restored.
        new = StoreServer("trimaran", name="m3", client_port=free_port(), peer_port=free_port())
        added = pb.MemberAddRequest(peerURLs=[new.peer_url])
        await_true(lambda: adds(leader, added))
        new.initial_cluster = f"{servers[0].initial_cluster},m3={new.peer_url}"
        new.arguments = ["--initial-cluster-state=existing"]
        try:
            new.start()
            call(leader, "KV/Put", pb.PutRequest(key=b"k0", value=b"new"))
            await_same([*servers, new], everything(leader))
            assert len(everything(new)) == len(wanted)
            servers[0].restart()
            await_same([*servers, new], everything(leader))
        finally:
            new.close()


def adds(server: StoreServer, request: pb.MemberAddRequest) -> bool:
    """Try to add a member, which the others must have been connected for."""
    try:
        call(server, "Cluster/MemberAdd", request)
    except grpc.RpcError as error:
        if "unhealthy cluster" not in str(error):
            raise
        return False
    return True


def test_a_member_that_was_not_restored_gets_the_state(
    saved: tuple[Path, list[pb.KeyValue]],
) -> None:
    path, wanted = saved
    servers = make_servers()
    for server in servers[:2]:
        restore(server, path)
    with started(servers):
        wait_leader(servers)
        await_same(servers, wanted)


def test_wrong_files_change_nothing(saved: tuple[Path, list[pb.KeyValue]], tmp_path: Path) -> None:
    path, _ = saved
    whole = path.read_bytes()
    bad, target = tmp_path / "bad.snap", tmp_path / "site" / "data"
    target.parent.mkdir()
    bolt = bytes(16) + b"\xed\xda\x0c\xed" + bytes(8192 - 20) + bytes(32)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    for content, said, at_all in (
        (whole[: len(whole) // 2 + 7], "is cut after", False),
        (whole[: -512 - 32], "its SHA-256 is missing", False),
        (whole[: -512 - 32] + whole[-32:], "take another copy", False),
        (whole[:-32], "its SHA-256 is missing", True),
        (bytes(flipped), "is damaged; take another copy", False),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "its SHA-256 does not fit", True),
        (bolt, "no snapshot of this store; those of etcd have another format", False),
        (b"", "no snapshot of this store", False),
        (whole[-32:], "no snapshot of this store", False),
    ):
        bad.write_bytes(content)
        options = read_options(["--data-dir", str(target)], {})
        for skip in (False, True):
            if skip and at_all:
                restore_file(str(bad), options, skip_hash_check=True)
                shutil.rmtree(target)
                continue
            with pytest.raises(CorruptionError) as caught:
                restore_file(str(bad), options, skip_hash_check=skip)
            assert str(bad) in str(caught.value)
            assert "nothing was changed" in str(caught.value)
            assert skip or said in str(caught.value)
            assert [*target.parent.iterdir()] == [], said
        with pytest.raises(CorruptionError):
            read_status(str(bad))
    result = trimaran("snapshot", "restore", bad, "--data-dir", target)
    assert result.returncode == 1
    assert "no snapshot of this store" in result.stderr
    assert [*target.parent.iterdir()] == []
    # A directory that is there is left as it is, whatever the file.
    target.mkdir()
    (target / "mine").write_text("x")
    result = trimaran("snapshot", "restore", path, "--data-dir", target)
    assert result.returncode == 1
    assert "is there already" in result.stderr
    assert (target / "mine").read_text() == "x"
