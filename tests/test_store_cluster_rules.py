"""Rules of a cluster that need no cluster: its version, its hashes, calls between members."""

import pytest

from trimaran.errors import StatusCode, StoreError
from trimaran.store import cluster_version as versions
from trimaran.store.corruption import StateHash, decode_hash, encode_hash, find_corrupt, pause_s
from trimaran.store.peer_calls import PeerCalls, PeerMethod, encode_answer, parse_request


@pytest.mark.parametrize(
    ("told", "cluster", "decided"),
    [
        ({1: "3.6.4", 2: "3.6.9"}, "", "3.6.0"),
        ({1: "3.7.0", 2: "3.6.9"}, "", "3.6.0"),
        ({1: "3.7.0", 2: "3.7.1"}, "3.6.0", "3.7.0"),
        ({1: "3.7.0", 2: "3.6.9"}, "3.6.0", None),  # nothing new
        ({1: "3.6.0", 2: "3.6.9"}, "3.7.0", None),  # never back
        ({1: "3.7.0"}, "3.6.0", None),  # one has not told
        ({1: "3.7.0", 2: "junk"}, "3.6.0", None),
        ({}, "", None),
    ],
)
def test_the_cluster_speaks_the_lowest_version(
    told: dict[int, str], cluster: str, decided: str | None
) -> None:
    rows = dict(versions.member_row(member, version) for member, version in told.items())
    if cluster:
        rows[versions.CLUSTER_KEY] = cluster.encode()
    assert all(value is not None for value in rows.values())
    known = {key: value for key, value in rows.items() if value is not None}
    assert versions.decide(known, [1, 2]) == decided
    assert versions.cluster_version(known) == cluster


def test_a_program_older_than_the_cluster_must_not_run() -> None:
    rows = {versions.CLUSTER_KEY: b"3.7.0"}
    assert versions.is_too_old("3.6.9", rows)
    assert not versions.is_too_old("3.7.0", rows)
    assert not versions.is_too_old("3.6.9", {})


def hashes(*values: int) -> dict[int, StateHash]:
    return {member: StateHash(value, 10, 3) for member, value in enumerate(values, 1)}


@pytest.mark.parametrize(
    ("known", "own", "corrupt"),
    [
        (hashes(5, 5, 5), 1, []),
        (hashes(5, 6, 5), 1, [2]),
        (hashes(6, 5, 5), 1, [1]),
        (hashes(5, 6), 1, [2, 1]),
        (hashes(5), 1, []),
        ({1: StateHash(5, 10, 3), 2: StateHash(6, 10, 4)}, 1, []),  # compacted in between
        ({1: StateHash(5, 10, 3), 2: StateHash(6, 9, 3)}, 1, []),  # behind
    ],
)
def test_members_that_differ_from_the_majority_are_found(
    known: dict[int, StateHash], own: int, corrupt: list[int]
) -> None:
    assert find_corrupt(known, own) == corrupt


def test_a_hash_goes_over_the_wire() -> None:
    known = StateHash(2**32 - 1, 2**40, -1)
    assert decode_hash(encode_hash(known)) == known


def test_checks_cost_a_small_share() -> None:
    assert pause_s(60, 0.1) == 60
    assert pause_s(60, 30) == 3000


class Outcomes(list[bytes | StoreError]):
    """Outcomes of calls, in the order they came."""

    def codes(self) -> list[StatusCode]:
        return [outcome.code for outcome in self if isinstance(outcome, StoreError)]


def test_a_call_between_members_ends_once() -> None:
    calls, outcomes = PeerCalls(7), Outcomes()
    body = calls.begin(2, PeerMethod.LEASE_RENEW, b"ask", 10.0, outcomes.append)
    request = parse_request(body)
    assert request is not None
    assert (request.number, request.method, request.payload) == (7, 1, b"ask")
    answer = encode_answer(request.number, b"told")
    calls.answer(3, answer)  # not the one that was asked
    calls.answer(2, b"short")
    assert outcomes == []
    calls.answer(2, answer)
    calls.answer(2, answer)
    calls.expire(99.0)
    assert outcomes == [b"told"]


def test_calls_end_by_errors_time_and_loss() -> None:
    calls, outcomes = PeerCalls(2**64 - 1), Outcomes()
    for peer in (2, 2, 3, 4):
        calls.begin(peer, PeerMethod.MEMBER_ADD, b"", float(peer), outcomes.append)
    refused = StoreError(StatusCode.NOT_FOUND, "etcdserver: member not found")
    calls.answer(2, encode_answer(2**64 - 1, refused))
    assert str(outcomes[0]) == refused.message
    calls.lost(2)
    calls.expire(3.0)
    calls.stop()
    assert outcomes.codes() == [
        StatusCode.NOT_FOUND,
        StatusCode.UNAVAILABLE,
        StatusCode.UNAVAILABLE,
        StatusCode.UNAVAILABLE,
    ]
    assert len(calls) == 0


@pytest.mark.parametrize("body", [b"", b"12345678"])
def test_a_request_that_is_cut_is_none(body: bytes) -> None:
    assert parse_request(body) is None
