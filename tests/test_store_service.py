"""The hot methods between client and log: batches, refusals, and clients that go away."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from store_engine import ALARM, LEASE_GRANT, LEASE_REVOKE, PUT, Engine, Sent
from trimaran.errors import ETCD_ERRORS
from trimaran.wire import etcd_pb2 as pb


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "state") as engine:
        yield engine


def put_request(key: bytes, value: bytes = b"v", **fields: object) -> bytes:
    return pb.PutRequest(key=key, value=value, **fields).SerializeToString()


def finish(engine: Engine) -> None:
    """Propose what was gathered and apply all that was proposed."""
    engine.propose()
    while engine.apply_next():
        pass


def status_of(sent: list[Sent], call: int) -> tuple[int, str]:
    """How a call ended."""
    (end,) = [row for row in sent if row.call == call and row.status >= 0]
    return end.status, end.data.decode()


def failed(name: str) -> tuple[int, str]:
    code, text = ETCD_ERRORS[name]
    return int(code), text


def get(engine: Engine, key: bytes) -> list[bytes]:
    request = pb.RangeRequest(key=key).SerializeToString()
    return [kv.value for kv in pb.RangeResponse.FromString(engine.range(request)[1]).kvs]


def test_a_put_is_answered_when_applied(engine: Engine) -> None:
    engine.message(1, "put", put_request(b"a"))
    assert engine.take_sent() == []
    engine.propose()
    assert engine.take_sent() == []
    assert engine.apply_next() == 1
    message, end = engine.take_sent()
    assert pb.PutResponse.FromString(message.data).header.revision == 2
    assert (end.status, end.data) == (0, b"")
    assert get(engine, b"a") == [b"v"]


@pytest.mark.parametrize("moment", ["gathered", "proposed"])
def test_a_client_that_goes_away_leaves_its_put(engine: Engine, moment: str) -> None:
    engine.message(1, "put", put_request(b"a"))
    engine.message(2, "put", put_request(b"b"))
    if moment == "gathered":
        engine.disconnect(1, "put")
    engine.propose()
    if moment == "proposed":
        engine.disconnect(1, "put")
    # Its number may be taken by another call at once.
    engine.message(1, "put", put_request(b"c"))
    engine.apply_next()
    assert [sent.call for sent in engine.take_sent()] == [2, 2]
    finish(engine)
    assert [sent.call for sent in engine.take_sent()] == [1, 1]
    assert [get(engine, key) for key in (b"a", b"b", b"c")] == [[b"v"]] * 3


def test_a_second_message_ends_a_call_of_one(engine: Engine) -> None:
    engine.message(1, "put", put_request(b"a"))
    engine.message(1, "put", put_request(b"b"))
    assert status_of(engine.take_sent(), 1)[0] == 13
    finish(engine)
    assert engine.take_sent() == []
    assert (get(engine, b"a"), get(engine, b"b")) == ([b"v"], [])


def test_a_call_without_a_message_is_malformed(engine: Engine) -> None:
    engine.message(1, "put", put_request(b"a"))
    engine.half_close(1, "put")
    assert engine.take_sent() == []
    finish(engine)
    assert status_of(engine.take_sent(), 1)[0] == 0


def test_more_operations_than_a_batch_holds(engine: Engine) -> None:
    for call in range(1, 10_001):
        engine.message(call, "put", put_request(b"k%d" % call))
    finish(engine)
    sent = engine.take_sent()
    assert [row.call for row in sent if row.status == 0] == list(range(1, 10_001))
    assert engine.state().revision == 10_001
    assert engine.state().applied == 3


def test_more_bytes_than_a_batch_holds(engine: Engine) -> None:
    for call in range(1, 9):
        engine.message(call, "put", put_request(b"k%d" % call, bytes(1_500_000)))
    finish(engine)
    assert len([row for row in engine.take_sent() if row.status == 0]) == 8
    assert engine.state().applied == 8


def test_a_batch_that_waits_too_long_changes_nothing(engine: Engine) -> None:
    engine.message(1, "put", put_request(b"a"))
    engine.submit(7, LEASE_GRANT, pb.LeaseGrantRequest(ID=5, TTL=9).SerializeToString())
    engine.message(2, "put", put_request(b"b"))
    engine.disconnect(2, "put")
    for _ in range(11):
        engine.tick()
    assert status_of(engine.take_sent(), 1) == failed("TIMEOUT")
    assert [(row[0], row[2]) for row in engine.results()] == [(7, "TIMEOUT")]
    finish(engine)
    assert engine.state().applied == 0
    assert engine.state().leases == {}


@pytest.mark.parametrize(
    ("method", "request_", "error"),
    [
        ("put", put_request(b""), "EMPTY_KEY"),
        ("put", put_request(b"a", ignore_value=True), "VALUE_PROVIDED"),
        ("put", put_request(b"a", lease=1, ignore_lease=True), "LEASE_PROVIDED"),
        ("put", put_request(b"a", bytes(1_572_864)), "REQUEST_TOO_LARGE"),
        ("delete", pb.DeleteRangeRequest().SerializeToString(), "EMPTY_KEY"),
        ("range", pb.RangeRequest().SerializeToString(), "EMPTY_KEY"),
        ("range", pb.RangeRequest(key=b"a", revision=2**63 - 1).SerializeToString(), "FUTURE_R"),
        ("range", b"\x0a\x01a\x28\x07", "INVALID_SORT_OPTION"),
        ("range", b"\x0a\x01a\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "INVALID_SORT_OPTION"),
    ],
)
def test_bad_requests_are_refused_at_once(
    engine: Engine, method: str, request_: bytes, error: str
) -> None:
    name = next(name for name in ETCD_ERRORS if name.startswith(error))
    engine.message(1, method, request_)
    assert status_of(engine.take_sent(), 1) == failed(name)
    finish(engine)
    assert engine.state().applied == 0


@pytest.mark.parametrize(
    ("revision", "error"),
    [
        (-(1 << 63), "COMPACTED"),
        (-2, "COMPACTED"),
        (2**63 - 1, "FUTURE_REVISION"),
        (3, "FUTURE_REVISION"),
        (2, ""),
        (0, ""),
    ],
)
def test_compaction_at_extremes(engine: Engine, revision: int, error: str) -> None:
    engine.message(1, "put", put_request(b"a"))
    request = pb.CompactionRequest(revision=revision).SerializeToString()
    engine.message(2, "compact", request)
    finish(engine)
    assert status_of(engine.take_sent(), 2) == (failed(error) if error else (0, ""))


def commit(engine: Engine) -> None:
    assert engine.seal()
    engine.collect()


def test_a_physical_compaction_waits_for_the_disk(engine: Engine) -> None:
    for call in range(1, 30):
        engine.message(call, "put", put_request(b"a"))
    finish(engine)
    request = pb.CompactionRequest(revision=20, physical=True).SerializeToString()
    engine.take_sent()
    engine.message(100, "compact", request)
    finish(engine)
    commit(engine)
    engine.step()
    assert engine.take_sent() == [], "answered before it is done"
    commit(engine)
    engine.step()
    assert status_of(engine.take_sent(), 100)[0] == 0
    assert [change.main for change in engine.scan(0)] == list(range(20, 31))


@pytest.mark.parametrize("moment", ["gathered", "compacting", "committing", "replaced"])
def test_a_physical_compaction_whose_client_goes_away(engine: Engine, moment: str) -> None:
    engine.message(1, "put", put_request(b"a"))
    finish(engine)
    engine.take_sent()
    request = pb.CompactionRequest(revision=2, physical=True).SerializeToString()
    engine.message(2, "compact", request)
    if moment == "gathered":
        engine.disconnect(2, "compact")
    finish(engine)
    if moment == "compacting":
        engine.disconnect(2, "compact")
    engine.step()
    assert engine.seal()
    if moment == "committing":
        engine.disconnect(2, "compact")
    if moment == "replaced":
        engine.message(2, "compact", request)
        assert status_of(engine.take_sent(), 2)[0] == 13
    engine.collect()
    engine.step()
    assert engine.take_sent() == []
    # Where nobody waits any more nothing is left behind, which the sanitizer checks at the end.


def test_leases_of_any_number(engine: Engine) -> None:
    ids = [1, -1, 2**63 - 1, -(2**63), 1 << 32]
    for token, lease in enumerate(ids, 1):
        request = pb.LeaseGrantRequest(ID=lease, TTL=token).SerializeToString()
        engine.submit(token, LEASE_GRANT, request)
        engine.message(token, "put", put_request(b"k%d" % token, lease=lease))
    engine.submit(99, LEASE_GRANT, pb.LeaseGrantRequest(ID=-1, TTL=9).SerializeToString())
    engine.message(99, "put", put_request(b"none", lease=77))
    finish(engine)
    assert [(row[0], row[2], row[4]) for row in engine.results()] == [
        *((token, "", lease) for token, lease in enumerate(ids, 1)),
        (99, "LEASE_EXISTS", -1),
    ]
    assert status_of(engine.take_sent(), 99) == failed("LEASE_NOT_FOUND")
    engine.reopen()
    assert engine.state().leases == {
        lease: (token, frozenset({b"k%d" % token})) for token, lease in enumerate(ids, 1)
    }
    for token, lease in enumerate(ids, 1):
        request = pb.LeaseRevokeRequest(ID=lease).SerializeToString()
        engine.submit(token, LEASE_REVOKE, request)
    finish(engine)
    engine.reopen()
    assert engine.state().leases == {}
    assert get(engine, b"k1") == []


def alarm(engine: Engine, action: int, kind: int, member: int = 8) -> None:
    request = pb.AlarmRequest(action=action, memberID=member, alarm=kind)
    engine.submit(1, ALARM, request.SerializeToString())
    finish(engine)


NO_SPACE, CORRUPT = 1, 2


def test_a_full_quota_is_raised_and_cleared(tmp_path: Path) -> None:
    with Engine(tmp_path / "state", quota_bytes=200_000) as engine:
        engine.message(1, "put", put_request(b"a", bytes(100_000)))
        engine.message(2, "put", put_request(b"a", bytes(199_900)))
        finish(engine)
        assert status_of(engine.take_sent(), 2) == failed("NO_SPACE")
        alarm(engine, pb.AlarmRequest.ACTIVATE, NO_SPACE)
        alarm(engine, pb.AlarmRequest.ACTIVATE, NO_SPACE)
        engine.reopen()
        assert engine.state().alarms == [(8, NO_SPACE)]
        txn = pb.TxnRequest()
        txn.failure.add(request_put=pb.PutRequest(key=b"b"))
        engine.message(1, "put", put_request(b"b"))
        engine.message(2, "txn", txn.SerializeToString())
        engine.message(3, "delete", pb.DeleteRangeRequest(key=b"a").SerializeToString())
        engine.submit(4, LEASE_GRANT, pb.LeaseGrantRequest(ID=4, TTL=4).SerializeToString())
        finish(engine)
        sent = engine.take_sent()
        assert status_of(sent, 1) == status_of(sent, 2) == failed("NO_SPACE")
        assert status_of(sent, 3) == (0, "")
        assert engine.results()[-1][:3] == (4, LEASE_GRANT, "NO_SPACE")
        # The number of another member clears nothing.
        alarm(engine, pb.AlarmRequest.DEACTIVATE, NO_SPACE, member=0)
        assert engine.state().alarms == [(8, NO_SPACE)]
        alarm(engine, pb.AlarmRequest.DEACTIVATE, NO_SPACE)
        engine.message(1, "compact", pb.CompactionRequest(revision=3).SerializeToString())
        finish(engine)
        while engine.step():
            pass
        engine.reopen()
        assert engine.state().alarms == []
        engine.take_sent()
        engine.message(1, "put", put_request(b"a", bytes(100_000)))
        finish(engine)
        assert status_of(engine.take_sent(), 1) == (0, "")


def test_a_corrupt_cluster_changes_no_keys(engine: Engine) -> None:
    engine.message(1, "put", put_request(b"a"))
    finish(engine)
    alarm(engine, pb.AlarmRequest.ACTIVATE, CORRUPT)
    engine.take_sent()
    engine.message(1, "put", put_request(b"a", b"new"))
    engine.message(2, "compact", pb.CompactionRequest(revision=2).SerializeToString())
    finish(engine)
    sent = engine.take_sent()
    assert status_of(sent, 1) == status_of(sent, 2) == failed("CORRUPT")
    assert get(engine, b"a") == [b"v"]
    alarm(engine, pb.AlarmRequest.DEACTIVATE, CORRUPT)
    engine.message(1, "put", put_request(b"a", b"new"))
    finish(engine)
    assert get(engine, b"a") == [b"new"]


@pytest.mark.parametrize("kind", [3, 7, 256, 257, -1, 2**31 - 1])
def test_unknown_alarms_are_not_kept(engine: Engine, kind: int) -> None:
    alarm(engine, pb.AlarmRequest.ACTIVATE, kind)
    assert engine.state().alarms == []
    engine.reopen()
    assert engine.state().alarms == []


def test_entries_without_effect_reach_the_disk_too(engine: Engine) -> None:
    """Otherwise the log could never be cut while nothing but failing txns come."""
    txn = pb.TxnRequest(compare=[pb.Compare(key=b"a", version=9)])
    txn.success.add(request_put=pb.PutRequest(key=b"a"))
    engine.message(1, "txn", txn.SerializeToString())
    finish(engine)
    state = engine.state()
    assert (state.revision, state.applied, state.persisted) == (1, 1, 0)
    assert state.pending_bytes > 0
    commit(engine)
    assert engine.state().persisted == 1
    assert engine.state().pending_bytes == 0
    assert not engine.seal()


def test_leases_are_told_of_once(engine: Engine) -> None:
    engine.submit(1, PUT, put_request(b"a"))
    finish(engine)
    assert [(row[0], row[1], row[2], row[3]) for row in engine.results()] == [(1, PUT, "", 2)]
    assert engine.results() == []
