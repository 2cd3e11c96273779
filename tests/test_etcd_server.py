"""The helper that starts stores starts what it says, and keeps data over a kill."""

import urllib.request

import pytest

from etcd_server import StoreServer, missing_reason, store_cluster, wait_leader


@pytest.mark.parametrize(("kind", "version"), [("3.4", b'"3.4.'), ("3.5", b'"3.5.')])
def test_starts_and_restarts_on_its_data(kind: str, version: bytes) -> None:
    reason = missing_reason(kind)
    if reason is not None:
        pytest.skip(reason)
    with StoreServer(kind) as server:
        with urllib.request.urlopen(f"{server.endpoint}/version", timeout=5) as answer:
            assert version in answer.read()
        endpoint, member = server.endpoint, server.folder / "data" / "member"
        assert member.is_dir()
        server.restart()
        assert server.endpoint == endpoint
        assert server.healthy()
    assert not server.folder.exists()


def test_cluster_has_one_leader() -> None:
    reason = missing_reason("3.5")
    if reason is not None:
        pytest.skip(reason)
    with store_cluster(3, "3.5") as servers:
        leader = wait_leader(servers)
        assert [server.is_leader() for server in servers].count(True) == 1
        leader.kill()
        rest = [server for server in servers if server is not leader]
        assert wait_leader(rest) in rest
