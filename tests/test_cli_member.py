"""`trimaran member` on a real cluster of three, and on a store without any host of `up`."""

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from etcd_server import StoreServer, free_port, missing_reason, store_cluster, wait_leader
from test_cli import TIMEOUT_S, run
from trimaran.daemons.cli_member import readable_size

KINDS = ["3.5"]


@pytest.fixture(scope="module", params=KINDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[list[StoreServer]]:
    """Three members."""
    reason = missing_reason(request.param)
    if reason is not None:
        pytest.skip(reason)
    with store_cluster(3, request.param) as servers:
        yield servers


def rows(cluster: list[StoreServer], *arguments: str) -> list[dict[str, object]]:
    """A table as JSON, asked of one member."""
    output = run("member", *arguments, "-o", "json", endpoint=cluster[0].endpoint).stdout
    found: list[dict[str, object]] = json.loads(output)
    return found


def roles(cluster: list[StoreServer]) -> dict[object, object]:
    """What each member does, by name."""
    return {row["name"]: row["role"] for row in rows(cluster, "status")}


def persist(arguments: tuple[str, ...], endpoint: str) -> "subprocess.CompletedProcess[str]":
    """Repeat a command until it is not refused any more."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while (result := run(*arguments, endpoint=endpoint, code=None)).returncode != 0:
        assert time.monotonic() < deadline_s, result
        assert "; " in result.stderr, result
    return result


def test_one_endpoint_tells_of_all_members(cluster: list[StoreServer]) -> None:
    wait_leader(cluster)
    listed = rows(cluster, "list")
    assert [row["name"] for row in listed] == sorted(str(row["name"]) for row in listed)
    states = rows(cluster, "status")
    assert {row["id"] for row in states} == {row["id"] for row in listed}
    assert sorted(str(row["role"]) for row in states) == ["follower", "follower", "leader"]
    assert {row["health"] for row in states} == {"healthy"}
    table = run("member", "status", endpoint=cluster[1].endpoint).stdout
    assert table.splitlines()[0].split("\t")[:4] == ["ID", "NAME", "ROLE", "HEALTH"]


def test_the_lead_moves(cluster: list[StoreServer]) -> None:
    leader = wait_leader(cluster)
    follower = next(server for server in cluster if server is not leader)
    other = next(server for server in cluster if server not in (leader, follower))
    output = run("member", "move-leader", follower.name, endpoint=other.endpoint).stdout
    assert f"{follower.name} (" in output
    assert f"in place of {leader.name}" in output
    assert roles(cluster)[follower.name] == "leader"
    again = run("member", "move-leader", follower.name, endpoint=other.endpoint).stdout
    assert "leads already" in again
    run("member", "move-leader", endpoint=follower.endpoint)
    assert roles(cluster)[follower.name] == "follower"


def test_a_learner_is_added_promoted_and_removed(cluster: list[StoreServer]) -> None:
    endpoint = cluster[0].endpoint
    port, client_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ("member", "add", "fresh", "--learner", "--peer-urls", url)
    # A member that has been away must have been back for five seconds.
    added = persist(arguments, endpoint)
    environment = dict(line.split("=", 1) for line in added.stdout.splitlines())
    assert environment["ETCD_INITIAL_CLUSTER_STATE"] == '"existing"'
    assert f"fresh={url}" in environment["ETCD_INITIAL_CLUSTER"]
    found = next(row for row in rows(cluster, "status") if row["role"] == "learner")
    assert found["health"] == "not started"
    refused = run("member", "promote", str(found["id"]), endpoint=endpoint, code=1)
    assert "can only promote a learner member which is in sync" in refused.stderr
    server = StoreServer(
        cluster[0].kind,
        name="fresh",
        arguments=["--initial-cluster-state=existing"],
        client_port=client_port,
        peer_port=port,
        initial_cluster=environment["ETCD_INITIAL_CLUSTER"].strip('"'),
    )
    try:
        server.spawn()
        promoted = persist(("member", "promote", "fresh"), endpoint)
        assert "votes from now on" in promoted.stdout
        assert roles(cluster)["fresh"] in ("follower", "leader")
        removed = run("member", "remove", "fresh", endpoint=endpoint).stdout
        assert removed == f"member {found['id']} fresh is removed\n"
        assert len(rows(cluster, "list")) == 3
    finally:
        server.close()


def test_a_member_that_is_away_is_shown(cluster: list[StoreServer]) -> None:
    away = cluster[2]
    away.kill()
    try:
        states = {row["name"]: row for row in rows(cluster, "status")}
        assert states[away.name]["health"] == "no answer"
        assert states[cluster[0].name]["health"] == "healthy"
    finally:
        away.start()


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["remove", "nobody"], 1, "the store has no member nobody; there are m0 ("),
        (["promote", "m0"], 1, "can only promote a learner"),
        (["add", "host4"], 1, "no host host4"),
        (["add", "host4", "--learner"], 2, "--learner goes with --peer-urls"),
        (["add", "x", "--peer-urls", "nonsense"], 1, "the store refused"),
        (["scale", "5"], 1, "no host of `trimaran up` keeps this store's members"),
        (["scale", "0"], 1, "give 1 to 9"),
        (["move-leader", "nobody"], 1, "no member nobody"),
        (["list", "-o", "xml"], 2, "xml"),
    ],
)
def test_what_cannot_be_is_explained(
    cluster: list[StoreServer], arguments: list[str], code: int, complaint: str
) -> None:
    wait_leader(cluster)
    result = run("member", *arguments, endpoint=cluster[0].endpoint, code=code)
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "command", ["list", "status", "add", "remove", "promote", "move-leader", "scale"]
)
def test_every_command_has_examples(command: str) -> None:
    assert f"trimaran member {command}" in run("member", command, "--help").stdout


def test_names_of_members_are_completed(
    cluster: list[StoreServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TRIMARAN_COMPLETE", "bash_complete")
    words = f"trimaran --endpoints {cluster[0].endpoint} member remove m"
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert run().stdout.split() == ["plain,m0", "plain,m1", "plain,m2"]
    monkeypatch.setenv("COMP_WORDS", words.replace(cluster[0].endpoint, "http://127.0.0.1:1"))
    assert run().stdout.split() == []


def test_the_environment_is_for_etcdctl(cluster: list[StoreServer]) -> None:
    lines = run("env", endpoint=cluster[0].endpoint).stdout.splitlines()
    assert f"export ETCDCTL_ENDPOINTS={cluster[0].endpoint}" in lines
    unset = run("env", "--unset", endpoint=cluster[0].endpoint).stdout
    assert "unset ETCDCTL_KEY" in unset
    fields = json.loads(run("env", "--json", endpoint=cluster[0].endpoint).stdout)
    assert fields["ETCDCTL_ENDPOINTS"] == cluster[0].endpoint


def test_without_a_majority_everybody_says_so() -> None:
    with store_cluster(2, "trimaran") as (first, second):
        run("kv", "put", "key", "1", endpoint=first.endpoint)
        second.kill()
        refused = run("--timeout", "1", "kv", "put", "key", "2", endpoint=first.endpoint, code=3)
        assert "`trimaran member status` tells how its members are" in refused.stderr
        assert "in term 2" in first.log_tail(10_000)
        deadline_s = time.monotonic() + TIMEOUT_S
        while "no leader is known" not in first.log_tail(10_000):
            assert time.monotonic() < deadline_s, first.log_tail()


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 KiB"),
        (73728, "72 KiB"),
        (5 * 1024**2 // 2, "2.5 MiB"),
        (3 * 1024**3 // 2, "1.50 GiB"),
    ],
)
def test_sizes_are_readable(size_bytes: int, text: str) -> None:
    assert readable_size(size_bytes) == text
