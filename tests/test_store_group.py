"""One member among several: reads that wait, learners, calls that want a leader."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from store_engine import Engine, Sent
from trimaran.errors import ETCD_ERRORS
from trimaran.wire import etcd_pb2 as pb

WANTS_LEADER = 60_000


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "state") as engine:
        engine.message(1, "put", pb.PutRequest(key=b"a", value=b"1").SerializeToString())
        engine.propose()
        engine.apply_next()
        engine.take_sent()
        engine.set_mode()
        yield engine


def range_request(**fields: object) -> bytes:
    return pb.RangeRequest(key=b"a", **fields).SerializeToString()


def read_txn(*, serializable: bool = False) -> bytes:
    txn = pb.TxnRequest()
    txn.success.add().request_range.CopyFrom(pb.RangeRequest(key=b"a", serializable=serializable))
    return txn.SerializeToString()


def failures(sent: list[Sent]) -> dict[int, tuple[int, str]]:
    """How calls ended that have failed."""
    return {row.call: (row.status, row.data.decode()) for row in sent if row.status > 0}


def failed(name: str) -> tuple[int, str]:
    code, text = ETCD_ERRORS[name]
    return int(code), text


def test_a_linearizable_read_sees_what_is_applied_when_it_is_answered(engine: Engine) -> None:
    engine.message(1, "range", range_request())
    engine.message(2, "txn", read_txn())
    engine.message(3, "put", pb.PutRequest(key=b"a", value=b"2").SerializeToString())
    assert engine.take_sent() == []
    engine.confirm_reads(2)
    assert engine.take_sent() == []
    engine.propose()
    engine.apply_next()
    engine.take_sent()
    engine.confirm_reads(2)
    sent = {row.call: row.data for row in engine.take_sent() if row.status < 0}
    assert pb.RangeResponse.FromString(sent[1]).kvs[0].value == b"2"
    response = pb.TxnResponse.FromString(sent[2])
    assert response.responses[0].response_range.kvs[0].value == b"2"


def test_serializable_reads_do_not_wait(engine: Engine) -> None:
    engine.message(1, "range", range_request(serializable=True))
    engine.message(2, "txn", read_txn(serializable=True))
    engine.message(3, "txn", pb.TxnRequest().SerializeToString())
    assert [row.call for row in engine.take_sent() if row.status == 0] == [1, 2, 3]


def test_bad_reads_do_not_wait(engine: Engine) -> None:
    engine.message(1, "range", pb.RangeRequest().SerializeToString())
    engine.message(2, "range", b"\xff")
    assert failures(engine.take_sent()).keys() == {1, 2}


def test_clients_go_away_while_their_reads_wait(engine: Engine) -> None:
    for call in range(1, 3000):
        engine.message(call, "range", range_request())
    for call in range(1, 3000, 2):
        engine.disconnect(call, "range")
    engine.confirm_reads(1)
    answered = [row.call for row in engine.take_sent() if row.status == 0]
    assert answered == list(range(2, 3000, 2))


def test_reads_that_wait_too_long_are_told_so(engine: Engine) -> None:
    engine.message(1, "range", range_request())
    for _ in range(5):
        engine.tick()
    engine.message(2, "range", range_request())
    for _ in range(6):
        engine.tick()
    assert failures(engine.take_sent()) == {1: failed("TIMEOUT")}
    for _ in range(5):
        engine.tick()
    assert failures(engine.take_sent()) == {2: failed("TIMEOUT")}


def test_a_time_out_names_the_leader_that_was_lost(engine: Engine) -> None:
    engine.message(1, "range", range_request())
    engine.set_mode(leader=False)
    for _ in range(6):
        engine.tick()
    engine.set_mode()
    for _ in range(5):
        engine.tick()
    assert failures(engine.take_sent()) == {1: failed("TIMEOUT_LEADER_FAILED")}


def test_a_learner_serves_serializable_ranges_alone(engine: Engine) -> None:
    engine.set_mode(learner=True)
    engine.message(1, "range", range_request(serializable=True))
    engine.message(2, "range", range_request())
    engine.message(3, "txn", read_txn(serializable=True))
    engine.message(4, "put", pb.PutRequest(key=b"a").SerializeToString())
    create = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"a"))
    engine.message(5, "watch", create.SerializeToString())
    sent = engine.take_sent()
    assert [row.call for row in sent if row.status == 0] == [1]
    assert failures(sent) == dict.fromkeys((2, 3, 4, 5), failed("LEARNER"))


def test_who_wants_a_leader_does_not_wait_for_one(engine: Engine) -> None:
    engine.set_mode(leader=False)
    for call in (1, WANTS_LEADER):
        engine.message(call, "put", pb.PutRequest(key=b"a").SerializeToString())
        engine.message(call + 1, "range", range_request())
        engine.message(call + 2, "range", range_request(serializable=True))
    ended = failures(engine.take_sent())
    assert ended == dict.fromkeys(range(WANTS_LEADER, WANTS_LEADER + 3), failed("NO_LEADER"))


def test_a_watch_that_wants_a_leader_outlives_an_election_only(engine: Engine) -> None:
    create = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"a")).SerializeToString()
    for call in (1, WANTS_LEADER):
        engine.message(call, "watch", create)
    engine.set_mode(leader=False)
    for _ in range(29):
        engine.tick()
    assert failures(engine.take_sent()) == {}
    engine.tick()
    assert failures(engine.take_sent()) == {WANTS_LEADER: failed("NO_LEADER")}
    assert engine.state().streams == 1
