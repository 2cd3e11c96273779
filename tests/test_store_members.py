"""Members come and go, and etcdctl of 3.4 and 3.5 finds no difference to a cluster of etcd."""

import os
from collections.abc import Callable, Iterator

import grpc
import pytest

from etcd_server import StoreServer, missing_reason
from etcdctl import VERSIONS, binary, call
from member_site import MemberSite
from trimaran.wire import etcd_pb2 as pb

REFERENCE = "3.5"
# Another kind than trimaran checks the test itself.
SUBJECT = os.environ.get("TRIMARAN_TEST_STORE", "trimaran")
FAST = ("--heartbeat-interval=50", "--election-timeout=500")
EXIT_TIMEOUT_S = 20.0

Scenario = Callable[[MemberSite], Iterator[None]]


def alone(site: MemberSite) -> Iterator[None]:
    """What one member answers."""
    site.start("m0")
    for line in (
        "member list",
        "member list -w table",
        "member list -w json",
        "member list -w fields",
        "member add",
        "member add m1",
        "member add m1 --peer-urls=nonsense",
        "member add m1 --peer-urls={peer:m0}",
        "member remove",
        "member remove nonsense",
        "member remove {m0}",
        "member remove 123456789abcdef",
        "member update 123456789abcdef --peer-urls={peer:m2}",
        "member update {m0} --peer-urls={peer:m0}",
        "member promote {m0}",
        "member promote 123456789abcdef",
    ):
        site.run(line)
        yield


def growing(site: MemberSite) -> Iterator[None]:
    """One member becomes three, the last by way of a learner."""
    site.start("m0")
    site.run("member add m1 --peer-urls={peer:m1}")
    yield
    site.start("m1", ["m0"], ready=False)
    yield
    site.servers["m1"].wait_ready()
    for line in (
        "member list",
        "endpoint health --cluster",
        "endpoint status --cluster",
        "member update {m1} --peer-urls={peer:m0}",
        "member update {m1} --peer-urls={local:m1}",
        "member list",
        "member update {m1} --peer-urls={peer:m1}",
    ):
        site.run(line)
    yield
    # Connections count when they have lasted for some seconds: until then both refuse.
    add = "member add m2 --peer-urls={peer:m2} --learner -w json"
    site.run_until(add, '"isLearner": true', at="m1")
    for line in (
        "member list -w json",
        "member list -w fields",
        "member add m3 --peer-urls={peer:m3} --learner",
        "member promote {m2}",
    ):
        site.run(line)
    yield
    site.start("m2", ["m0", "m1"], ready=False)
    yield
    site.run_until("member list", "ID-m2, started")
    site.run("get x", at="m2")
    site.run("get x --consistency=s", at="m2")
    site.run("member list", at="m2")
    site.run_until("member promote {m2}", "Member ID-m2 promoted", at="m1")
    for line in ("member promote {m2}", "member list", "endpoint status --cluster"):
        site.run(line)
    site.run("member list -w table", at="m2")


def shrinking(site: MemberSite) -> Iterator[None]:
    """Members are removed: a follower, one that never started, and in the end the leader."""
    site.start("m0")
    site.run("member add m1 --peer-urls={peer:m1}")
    yield
    site.start("m1", ["m0"], ready=False)
    yield
    site.servers["m1"].wait_ready()
    site.run_until("member remove {m1}", "removed from cluster")
    yield
    if site.kind == "trimaran":  # etcd may take long to notice that it is out
        removed = site.servers["m1"]
        assert removed.wait_exit(EXIT_TIMEOUT_S) == 1
        assert "has been removed" in removed.log_tail()
        removed.spawn()
        assert removed.wait_exit(EXIT_TIMEOUT_S) == 1
        assert "has been removed" in removed.log_tail(500)
    site.run("member list")
    site.run("member remove 123456789abcdef")
    site.run("member add m2 --peer-urls={peer:m2} --learner")
    yield
    site.run("member remove {m2}")
    site.run("member list")
    yield


SCENARIOS: dict[str, Scenario] = {s.__name__: s for s in (alone, growing, shrinking)}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_etcdctl_finds_no_difference(scenario: str, version: str) -> None:
    for kind in (REFERENCE, SUBJECT):
        reason = missing_reason(kind)
        if reason is not None:
            pytest.skip(reason)
    if binary(version) is None:
        pytest.skip(f"etcdctl {version} is not installed here")
    with (
        MemberSite(REFERENCE, version, FAST) as reference,
        MemberSite(SUBJECT, version, FAST) as subject,
    ):
        # Step by step on both, so that one side's waits are the other's too.
        for _ in zip(SCENARIOS[scenario](reference), SCENARIOS[scenario](subject), strict=True):
            assert "\n".join(subject.said) == "\n".join(reference.said)
        assert "\n".join(subject.said) == "\n".join(reference.said)


@pytest.fixture(scope="module")
def store() -> Iterator[StoreServer]:
    reason = missing_reason(SUBJECT)
    if reason is not None:
        pytest.skip(reason)
    with StoreServer(SUBJECT) as server:
        yield server


@pytest.mark.parametrize(
    ("name", "request_", "code", "text"),
    [
        ("MemberAdd", pb.MemberAddRequest(), "INVALID_ARGUMENT", "given member URLs are invalid"),
        (
            "MemberAdd",
            pb.MemberAddRequest(peerURLs=["http://a:1/x"]),
            "INVALID_ARGUMENT",
            "given member URLs are invalid",
        ),
        ("MemberRemove", pb.MemberRemoveRequest(ID=5), "NOT_FOUND", "member not found"),
        ("MemberPromote", pb.MemberPromoteRequest(ID=5), "NOT_FOUND", "member not found"),
        (
            "MemberUpdate",
            pb.MemberUpdateRequest(ID=5, peerURLs=["http://a:1"]),
            "NOT_FOUND",
            "member not found",
        ),
    ],
)
def test_codes(store: StoreServer, name: str, request_: object, code: str, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(store, f"Cluster/{name}", request_)
    assert caught.value.code().name == code  # type: ignore[attr-defined]
    assert caught.value.details() == f"etcdserver: {text}"  # type: ignore[attr-defined]


def test_the_last_member_is_not_removed(store: StoreServer) -> None:
    listed = call(store, "Cluster/MemberList", pb.MemberListRequest(linearizable=True))
    (member,) = listed.members  # type: ignore[attr-defined]
    with pytest.raises(grpc.RpcError) as caught:
        call(store, "Cluster/MemberRemove", pb.MemberRemoveRequest(ID=member.ID))
    assert caught.value.code() is grpc.StatusCode.UNKNOWN  # type: ignore[attr-defined]
    assert "not enough started members" in caught.value.details()  # type: ignore[attr-defined]
