"""What probes are told: /health, /livez and /readyz."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from store_cluster import Cluster, Member, why_not


def get(member: Member, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{member.endpoint}{path}", timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    reason = why_not("trimaran")
    if reason:
        pytest.skip(reason)
    with Cluster("trimaran", 3) as cluster:
        yield cluster


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/readyz/linearizable_read"])
def test_a_member_that_is_well_says_ok(cluster: Cluster, path: str) -> None:
    assert get(cluster.leader(), path) == (200, "ok\n")


def test_each_check_is_listed_on_request(cluster: Cluster) -> None:
    status, text = get(cluster.leader(), "/readyz?verbose&exclude=non_learner")
    assert status == 200
    names = ("data_corruption", "serializable_read", "linearizable_read", "non_learner")
    assert text == "".join(f"[+]{name} ok\n" for name in names) + "ok\n"
    assert get(cluster.leader(), "/readyz/no_such_check")[0] == 404


def test_without_a_majority_a_member_lives_and_is_not_ready(cluster: Cluster) -> None:
    leader = cluster.leader()
    left, other = cluster.followers(leader)
    for member in (leader, other):
        member.kill()
    try:
        assert get(left, "/livez") == (200, "ok\n")
        status, text = get(left, "/readyz")
        assert status == 503
        assert "[+]serializable_read ok\n[-]linearizable_read failed: " in text
        assert get(left, "/readyz?exclude=linearizable_read") == (200, "ok\n")
        status, text = get(left, "/health")
        assert (status, json.loads(text)["health"]) == (503, "false")
    finally:
        for member in (leader, other):
            member.start()
    assert json.loads(get(left, "/health")[1]) == {"health": "true", "reason": ""}
