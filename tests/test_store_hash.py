"""HashKV gives what etcd gives for the same history, of 3.4 and of 3.5, at every revision."""

import random
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from etcd_server import StoreServer, missing_reason
from etcdctl import Etcdctl, binary, call
from trimaran.ext.checksum import crc32c
from trimaran.wire import etcd_pb2 as pb

SUBJECT = "trimaran"
REFERENCES = ("3.4", "3.5")


@pytest.fixture
def servers() -> Iterator[dict[str, StoreServer]]:
    """An empty server of each kind that can run here."""
    kinds = [kind for kind in (*REFERENCES, SUBJECT) if missing_reason(kind) is None]
    running: dict[str, StoreServer] = {}
    try:
        for kind in kinds:
            running[kind] = StoreServer(kind, name=f"hash-{kind}").__enter__()
        if len(running) < 2:
            pytest.skip("no etcd is installed here")
        yield running
    finally:
        for server in running.values():
            server.close()


def random_request(rng: random.Random, keys: int) -> tuple[str, Any]:
    """One write, in few keys."""
    key = b"k%d" % rng.randrange(keys)
    kind = rng.random()
    if kind < 0.55:
        lease = 0x51 if rng.random() < 0.2 else 0
        return "KV/Put", pb.PutRequest(key=key, value=rng.randbytes(rng.randrange(30)), lease=lease)
    if kind < 0.7:
        return "KV/DeleteRange", pb.DeleteRangeRequest(key=key)
    if kind < 0.8:
        return "KV/DeleteRange", pb.DeleteRangeRequest(key=b"k0", range_end=b"k3")
    request = pb.TxnRequest()
    for number in rng.sample(range(keys), 3):
        put = pb.PutRequest(key=b"k%d" % number, value=b"%d" % rng.randrange(1000))
        request.success.add().request_put.CopyFrom(put)
    request.success.add().request_delete_range.CopyFrom(pb.DeleteRangeRequest(key=b"gone"))
    return "KV/Txn", request


def outcome(server: StoreServer, request: Any, name: str = "Maintenance/HashKV") -> Any:
    """What a call comes to: hash and compact revision, or the error."""
    try:
        answer = call(server, name, request)
    except grpc.RpcError as error:
        return error.code(), error.details()
    if name != "Maintenance/HashKV":
        return answer.header.revision
    return answer.hash, answer.compact_revision, answer.header.revision


def everywhere(servers: dict[str, StoreServer], name: str, request: Any) -> Any:
    """Make a call on every server; their answers are alike."""
    outcomes = {kind: outcome(server, request, name) for kind, server in servers.items()}
    assert len(set(map(str, outcomes.values()))) == 1, f"{name} {request}: {outcomes}"
    return outcomes[SUBJECT]


def compare_hashes(servers: dict[str, StoreServer], compacted: int, revision: int) -> None:
    """Compare at revisions around what is compacted, what is current, and some between."""
    # 3.4 and the first 3.5 refuse the compact revision itself, later ones do not.
    interesting = {*range(compacted + 1, compacted + 9), *range(revision - 4, revision + 3)}
    for wanted in sorted({0, compacted - 1, *interesting} - {compacted}):
        if wanted >= 0:
            everywhere(servers, "Maintenance/HashKV", pb.HashKVRequest(revision=wanted))


@pytest.mark.parametrize("seed", range(4))
def test_the_same_history_has_the_same_hash(seed: int, servers: dict[str, StoreServer]) -> None:
    rng = random.Random(seed)
    everywhere(servers, "Lease/LeaseGrant", pb.LeaseGrantRequest(ID=0x51, TTL=6000))
    compare_hashes(servers, -1, 1)
    revision, compacted = 1, -1
    for _ in range(6):
        for _ in range(rng.randrange(5, 40)):
            revision = everywhere(servers, *random_request(rng, 8))
        compare_hashes(servers, compacted, revision)
        if rng.random() < 0.8:
            compacted = rng.randrange(max(compacted, 0) + 1, revision + 1)
            request = pb.CompactionRequest(revision=compacted, physical=True)
            everywhere(servers, "KV/Compact", request)
            compare_hashes(servers, compacted, revision)


def test_nothing_lives(servers: dict[str, StoreServer]) -> None:
    """etcd counts differently where no key exists at the revision asked for."""
    for number in range(6):
        everywhere(servers, "KV/Put", pb.PutRequest(key=b"k%d" % (number % 3)))
    everywhere(servers, "KV/DeleteRange", pb.DeleteRangeRequest(key=b"k0", range_end=b"k2"))
    everywhere(servers, "KV/DeleteRange", pb.DeleteRangeRequest(key=b"k2"))
    everywhere(servers, "KV/Put", pb.PutRequest(key=b"last"))
    revision = everywhere(servers, "KV/DeleteRange", pb.DeleteRangeRequest(key=b"last"))
    for compacted in (6, 8, 9, revision):
        everywhere(servers, "KV/Compact", pb.CompactionRequest(revision=compacted, physical=True))
        compare_hashes(servers, compacted, revision)


def test_the_compact_revision_itself_is_hashed(servers: dict[str, StoreServer]) -> None:
    """As 3.6 does; an unfinished compaction changes nothing."""
    server = servers[SUBJECT]
    for number in range(40):
        call(server, "KV/Put", pb.PutRequest(key=b"k%d" % (number % 4)))
    before = call(server, "Maintenance/HashKV", pb.HashKVRequest())
    assert before.compact_revision == -1
    assert before.hash_revision == before.header.revision
    call(server, "KV/Compact", pb.CompactionRequest(revision=20))
    at_once = call(server, "Maintenance/HashKV", pb.HashKVRequest(revision=20))
    assert (at_once.compact_revision, at_once.hash_revision) == (20, 20)
    assert call(server, "Maintenance/HashKV", pb.HashKVRequest(revision=20)).hash == at_once.hash
    nothing = call(server, "Maintenance/HashKV", pb.HashKVRequest(revision=-5))
    assert nothing.hash == crc32c(b"key")


def test_hash_of_everything(servers: dict[str, StoreServer]) -> None:
    server = servers[SUBJECT]
    first = call(server, "Maintenance/Hash", pb.HashRequest()).hash
    call(server, "KV/Put", pb.PutRequest(key=b"a"))
    assert call(server, "Maintenance/Hash", pb.HashRequest()).hash != first


@pytest.mark.parametrize("version", ["3.4", "3.5"])
def test_etcdctl_hashkv(version: str, servers: dict[str, StoreServer]) -> None:
    if binary(version) is None:
        pytest.skip(f"etcdctl {version} is not installed here")
    outputs = []
    for server in servers.values():
        tool = Etcdctl(version, server)
        tool.run("put a 1")
        outputs.append(tool.run("endpoint hashkv -w fields").output.replace(server.address, "X"))
    numbers = [[line for line in text.splitlines() if "Hash" in line] for text in outputs]
    assert numbers[-1] == numbers[0]
