"""Members that were lost, removed, wiped, or that are the last of their cluster."""

import contextlib
import json
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_server import StoreServer, missing_reason, store_cluster, wait_leader
from etcdctl import Etcdctl, binary, call
from member_site import quiet_port
from trimaran.ext import member as engine
from trimaran.ext.raftlog import Entry, RaftLog
from trimaran.wire import etcd_pb2 as pb

KIND = "trimaran"
EXIT_TIMEOUT_S = 20.0
FAST = ("--heartbeat-interval=50", "--election-timeout=500")

pytestmark = pytest.mark.skipif(
    missing_reason(KIND) is not None or binary("3.5") is None, reason="no store or no etcdctl"
)


@pytest.fixture
def cluster() -> Iterator[list[StoreServer]]:
    with store_cluster(3, KIND, arguments=FAST) as servers:
        wait_leader(servers)
        yield servers


def etcdctl(server: StoreServer, line: str) -> str:
    result = Etcdctl("3.5", server).run(line)
    assert result.code == 0, str(result)
    return result.output


def eventually_etcdctl(server: StoreServer, line: str, timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    result = Etcdctl("3.5", server).run(line)
    while result.code != 0:
        assert time.monotonic() < deadline_s, str(result)
        time.sleep(0.1)
        result = Etcdctl("3.5", server).run(line)


def members(server: StoreServer) -> dict[str, int]:
    answer = call(server, "Cluster/MemberList", pb.MemberListRequest(linearizable=True))
    return {member.name: member.ID for member in answer.members}  # type: ignore[attr-defined]


def value_of(server: StoreServer, key: bytes) -> bytes:
    answer = call(server, "KV/Range", pb.RangeRequest(key=key))
    return answer.kvs[0].value if answer.kvs else b""  # type: ignore[attr-defined]


def refused(server: StoreServer) -> str:
    """Start a member that must not start; give the end of its log."""
    server.spawn()
    assert server.wait_exit(EXIT_TIMEOUT_S) == 1
    return server.log_tail(1500)


def joined(name: str, running: list[StoreServer], peer_port: int) -> StoreServer:
    """Make a member that joins running ones; it is not started."""
    cluster = [f"{server.name}={server.peer_url}" for server in running]
    return StoreServer(
        KIND,
        name=name,
        arguments=[*FAST, "--initial-cluster-state=existing"],
        client_port=quiet_port(),
        peer_port=peer_port,
        initial_cluster=",".join([*cluster, f"{name}=http://127.0.0.1:{peer_port}"]),
    )


def test_the_last_member_goes_on_by_force(cluster: list[StoreServer]) -> None:
    first, second, _ = cluster
    for number in range(20):
        etcdctl(first, f"put k{number} {number}")
    before = members(first)
    for server in cluster:
        server.kill()
    first.arguments.append("--force-new-cluster")
    first.start()
    assert members(first) == {"m0": before["m0"]}
    assert [value_of(first, b"k%d" % number) for number in (0, 19)] == [b"0", b"19"]
    assert "there will be two truths" in first.log_tail(100_000)
    etcdctl(first, "put after force")
    # The flag is left in place, and does no harm while the member is alone.
    first.restart()
    assert "is alone already" in first.log_tail(100_000)
    first.arguments.remove("--force-new-cluster")
    first.restart()
    assert value_of(first, b"after") == b"force"
    # One of the former others hears that it is out.
    assert "has been removed from cluster" in refused(second)
    assert "has been removed from cluster" in refused(second)
    peer_port = quiet_port()
    etcdctl(first, f"member add m3 --peer-urls=http://127.0.0.1:{peer_port}")
    with joined("m3", [first], peer_port) as new:
        assert value_of(new, b"after") == b"force"
        assert set(members(new)) == {"m0", "m3"}


def test_no_data_cannot_be_forced(tmp_path: Path) -> None:
    server = StoreServer(KIND, name="alone", arguments=["--force-new-cluster"])
    try:
        assert "has no data to make a cluster of" in refused(server)
    finally:
        server.close()


def test_a_learner_goes_on_by_force() -> None:
    with StoreServer(KIND, name="m0", arguments=FAST) as first:
        etcdctl(first, "put a 1")
        peer_port = quiet_port()
        etcdctl(first, f"member add m1 --learner --peer-urls=http://127.0.0.1:{peer_port}")
        learner = joined("m1", [first], peer_port)
        with contextlib.closing(learner):
            learner.start()
            etcdctl(first, "put a 2")
            answer = call(learner, "KV/Range", pb.RangeRequest(key=b"a", serializable=True))
            while answer.kvs[0].value != b"2":  # type: ignore[attr-defined]
                answer = call(learner, "KV/Range", pb.RangeRequest(key=b"a", serializable=True))
            first.kill()
            learner.kill()
            learner.arguments.append("--force-new-cluster")
            learner.start()
            assert list(members(learner)) == ["m1"]
            assert value_of(learner, b"a") == b"2"


def test_a_wiped_member_does_not_vote_again(cluster: list[StoreServer]) -> None:
    first, second, third = cluster
    etcdctl(first, "put a 1")
    second.kill()
    shutil.rmtree(second.folder / "data")
    said = refused(second)
    assert "has already been bootstrapped" in said
    assert not (second.folder / "data" / "member.json").exists()
    # What the message says helps.
    number = members(first)["m1"]
    assert f"member remove {number:x}" in said
    etcdctl(first, f"member remove {number:x}")
    # The others' connections count when they have lasted for some seconds.
    eventually_etcdctl(first, f"member add m1 --peer-urls={second.peer_url}")
    second.arguments.append("--initial-cluster-state=existing")
    second.start()
    assert value_of(second, b"a") == b"1"
    assert members(second)["m1"] != number
    assert set(members(third)) == {"m0", "m1", "m2"}


def test_a_member_removed_while_it_was_down(cluster: list[StoreServer]) -> None:
    first, second, _ = cluster
    number = members(first)["m1"]
    second.kill()
    etcdctl(first, f"member remove {number:x}")
    said = refused(second)
    assert f"member {number:x} has been removed from cluster" in said


def test_joining_without_being_added(cluster: list[StoreServer]) -> None:
    stranger = joined("m9", cluster, quiet_port())
    with contextlib.closing(stranger):
        assert "member count is unequal" in refused(stranger)


def test_members_that_meet_in_a_registry(store_server: StoreServer) -> None:
    etcdctl(store_server, "put /_etcd/registry/t/_config/size 2")
    found = [*FAST, f"--discovery-endpoints={store_server.endpoint}", "--discovery-token=t"]
    ports = [(quiet_port(), quiet_port()) for _ in range(3)]
    servers = [
        StoreServer(
            KIND,
            name=f"m{i}",
            arguments=found,
            client_port=client,
            peer_port=peer,
            initial_cluster=None,
        )
        for i, (client, peer) in enumerate(ports)
    ]
    try:
        for server in servers[:2]:
            server.spawn()
        for server in servers[:2]:
            server.wait_ready()
        assert set(members(servers[0])) == {"m0", "m1"}
        assert "cluster is full" in refused(servers[2])
    finally:
        for server in servers:
            server.close()


def test_data_of_the_first_version_grows_a_cluster(tmp_path: Path) -> None:
    """Such data has neither a first configuration entry nor rows of members."""
    with StoreServer(KIND, name="m0", arguments=FAST) as old:
        make_first_version(old)
        old.start()
        assert value_of(old, b"old") == b"data"
        assert list(members(old)) == ["m0"]
        kept = json.loads((old.folder / "data" / "member.json").read_text())
        assert members(old)["m0"] == kept["member_id"]
        old.restart()
        assert list(members(old)) == ["m0"]
        peer_port = quiet_port()
        etcdctl(old, f"member add m1 --peer-urls=http://127.0.0.1:{peer_port}")
        with joined("m1", [old], peer_port) as new:
            assert value_of(new, b"old") == b"data"
            assert set(members(new)) == {"m0", "m1"}


def make_first_version(server: StoreServer) -> None:
    """Stop a store and put data in its place as the first version wrote it."""
    server.stop()
    data = server.folder / "data"
    identity = json.loads((data / "member.json").read_text())
    for folder in ("log", "state"):
        shutil.rmtree(data / folder)
        (data / folder).mkdir()
    first = {key: identity[key] for key in ("name", "member_id", "cluster_id", "peer_urls")}
    (data / "member.json").write_text(json.dumps({"format": 1, **first}))
    put = pb.PutRequest(key=b"old", value=b"data").SerializeToString()
    batch = struct.pack("<BBI", 1, engine.PUT, len(put)) + put
    log = RaftLog(data / "log")
    log.append([Entry(1, 1, b""), Entry(2, 1, batch)], (1, identity["member_id"], 2))
    log.close()
