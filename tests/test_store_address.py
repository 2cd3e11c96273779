"""Members of `trimaran-stored` that get other URLs: `member update`, then a restart with them."""

import pytest

from etcd_server import StoreServer, free_port, wait_leader
from etcdctl import call, revision
from test_store_intruders import active_peers, eventually_now, make_servers, started
from test_store_snapshot import trimaran
from trimaran.wire import etcd_pb2 as pb


def member_ids(servers: list[StoreServer]) -> dict[str, int]:
    members = call(servers[0], "Cluster/MemberList", pb.MemberListRequest()).members
    return {member.name: member.ID for member in members}


def move(server: StoreServer, asked: StoreServer) -> None:
    """Do what docs/store.md says: update first, then restart with the new URLs."""
    server.peer_port, server.client_port = free_port(), free_port()
    member_id = f"{member_ids([asked])[server.name]:x}"
    words = ("member", "update", member_id, "--peer-urls", server.peer_url)
    result = trimaran("--endpoints", asked.endpoint, *words)
    assert result.returncode == 0, result.stderr
    server.stop()
    server.initial_cluster = f"{server.name}={server.peer_url}"  # of a new cluster only
    server.start()


def test_members_get_other_urls_one_by_one() -> None:
    servers = make_servers()
    with started(servers):
        leader = wait_leader(servers)
        before = member_ids(servers)
        order = sorted(servers, key=lambda server: server is leader)  # the leader last
        for number, server in enumerate(order):
            asked = next(one for one in servers if one is not server)
            move(server, asked)
            for one in servers:
                eventually_now(lambda one=one: active_peers(one) == 2)  # type: ignore[misc]
                call(one, "KV/Put", pb.PutRequest(key=b"k%d" % number, value=one.name.encode()))
        listed = call(leader, "Cluster/MemberList", pb.MemberListRequest()).members
        urls = {one.name: ([*one.peerURLs], [*one.clientURLs]) for one in listed}
        assert urls == {one.name: ([one.peer_url], [one.endpoint]) for one in servers}
        assert member_ids(servers) == before
        # All at once, nobody has an old URL to go by.
        for server in servers:
            server.stop()
        for server in servers:
            server.spawn()
        for server in servers:
            server.wait_ready()
        wait_leader(servers)
        assert len({revision(server) for server in servers}) == 1


@pytest.mark.parametrize("words", [(), ("--initial-election-tick-advance=false",)])
def test_the_first_election_may_come_early(words: tuple[str, ...]) -> None:
    servers = make_servers(arguments=["--election-timeout=3000", *words])
    early = "the first election comes 26 ticks early"
    with started(servers):
        wait_leader(servers)
        told = [early in server.log_path.read_text() for server in servers]
        assert any(told) is not bool(words)


def test_a_member_that_moved_without_a_word_is_told_what_to_do() -> None:
    """Restarted with other URLs first: it says so, and the update afterwards mends it."""
    servers = make_servers()
    with started(servers):
        leader = wait_leader(servers)
        moved = next(server for server in servers if server is not leader)
        ids = member_ids(servers)
        moved.stop()
        moved.peer_port = free_port()
        moved.initial_cluster = f"{moved.name}={moved.peer_url}"
        moved.spawn()
        words = ("member", "update", f"{ids[moved.name]:x}", "--peer-urls", moved.peer_url)
        eventually_now(lambda: "member update " + words[2] in moved.log_path.read_text())
        result = trimaran("--endpoints", leader.endpoint, *words)
        assert result.returncode == 0, result.stderr
        moved.wait_ready()
        eventually_now(lambda: active_peers(leader) == 2)
        call(moved, "KV/Put", pb.PutRequest(key=b"k", value=b"v"))
