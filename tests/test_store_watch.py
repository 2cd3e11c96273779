"""Watches in ways the random test cannot reach, and where the store follows 3.6 instead of 3.5.

What is the same in every version runs on etcd as well.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from differential import Target, WatchStream
from etcd_server import StoreServer, missing_reason
from trimaran.wire import etcd_pb2 as pb

KINDS = ("3.4", "3.5", "trimaran")
WAIT_S = 10.0
# Long enough for an answer that must not come to have come.
SILENCE_S = 0.5


@asynccontextmanager
async def started(kind: str) -> AsyncIterator[Target]:
    """Start a server, with its two watch streams open."""
    with StoreServer(kind, name="watch") as server:
        target = Target(server)
        target.open_streams()
        yield target
        await target.close_streams()
        await target.close()


def on(kinds: tuple[str, ...]) -> Callable[[Any], Any]:
    """Run an asynchronous test on servers of these kinds."""

    def decorate(test: Callable[[Target], Awaitable[None]]) -> Callable[[str], None]:
        @pytest.mark.parametrize("kind", kinds)
        def run(kind: str) -> None:
            reason = missing_reason(kind)
            if reason is not None:
                pytest.skip(reason)

            async def inner() -> None:
                async with started(kind) as target:
                    await asyncio.wait_for(test(target), 60.0)

            asyncio.run(inner())

        run.__doc__ = test.__doc__
        return run

    return decorate


async def put(target: Target, key: bytes, value: bytes = b"") -> int:
    outcome = await target.call("/etcdserverpb.KV/Put", pb.PutRequest(key=key, value=value))
    assert outcome.code == "OK", outcome
    return outcome.revision


async def send(stream: WatchStream, **message: Any) -> None:
    await stream.call.write(pb.WatchRequest(**message))


async def create(stream: WatchStream, **fields: Any) -> Any:
    """Make a watcher; give the answer."""
    before = stream.answers
    await send(stream, create_request=pb.WatchCreateRequest(**fields))
    assert await stream.wait_answers(before + 1)
    return [r for r in stream.responses if r.created][-1]


async def until(stream: WatchStream, done: Callable[[list[Any]], bool]) -> list[Any]:
    """Wait until the responses of a stream are enough; give them."""
    async with asyncio.timeout(WAIT_S):
        while not done(stream.responses):
            stream.arrived.clear()
            await stream.arrived.wait()
    return stream.responses


@on(KINDS)
async def test_large_events_come_in_fragments(target: Target) -> None:
    whole, parts = target.streams
    everything = {"key": b"big", "range_end": b"bih", "prev_kv": True}
    await create(whole, **everything)
    await create(parts, **everything, fragment=True)
    for letter in (b"x", b"y"):
        request = pb.TxnRequest()
        for name in (b"big1", b"big2"):
            operation = pb.PutRequest(key=name, value=letter * 700_000)
            request.success.add().request_put.CopyFrom(operation)
        outcome = await target.call("/etcdserverpb.KV/Txn", request)
        assert outcome.code == "OK"
    for stream in (whole, parts):
        await until(stream, lambda rs: sum(len(r.events) for r in rs) == 4)
    # With the values before them the second two events are 2.8 MB.
    assert [len(r.events) for r in whole.responses if r.events] == [2, 2]
    found = [r for r in parts.responses if r.events]
    assert [len(r.events) for r in found] == [2, 1, 1]
    assert [r.fragment for r in found] == [False, True, False]
    assert {r.header.revision for r in found[1:]} == {3}
    assert found[2].events[0].prev_kv.value == b"x" * 700_000


@on(KINDS)
async def test_history_of_many_revisions(target: Target) -> None:
    for i in range(2500):
        await put(target, b"many", b"%d" % i)
    stream = target.streams[0]
    await create(stream, key=b"many", start_revision=1)
    responses = await until(stream, lambda rs: sum(len(r.events) for r in rs) == 2500)
    found = [event for r in responses for event in r.events]
    assert [event.kv.mod_revision for event in found] == list(range(2, 2502))
    assert [event.kv.version for event in found] == list(range(1, 2501))
    assert max(len(r.events) for r in responses) <= 1000


@on(KINDS)
async def test_progress_follows_all_events(target: Target) -> None:
    stream = target.streams[0]
    await create(stream, key=b"a")
    revision = await put(target, b"a")
    await until(stream, lambda rs: any(r.events for r in rs))
    await put(target, b"b")
    await send(stream, progress_request=pb.WatchProgressRequest())
    responses = await until(stream, lambda rs: rs[-1].watch_id == -1)
    assert responses[-1].header.revision == revision + 1
    assert not responses[-1].events


@on(KINDS)
async def test_half_closed_stream_still_watches(target: Target) -> None:
    stream = target.streams[0]
    await create(stream, key=b"a")
    await stream.call.done_writing()
    await put(target, b"a", b"seen")
    responses = await until(stream, lambda rs: any(r.events for r in rs))
    assert responses[-1].events[0].kv.value == b"seen"


@on(KINDS)
async def test_later_start_revision_waits(target: Target) -> None:
    stream = target.streams[0]
    await create(stream, key=b"a", start_revision=4)
    for value in (b"2", b"3", b"4", b"5"):
        await put(target, b"a", value)
    responses = await until(stream, lambda rs: sum(len(r.events) for r in rs) == 2)
    assert [e.kv.value for r in responses for e in r.events] == [b"4", b"5"]


@on(KINDS)
async def test_a_thousand_watchers_of_one_key(target: Target) -> None:
    stream = target.streams[0]
    for _ in range(1000):
        await send(stream, create_request=pb.WatchCreateRequest(key=b"a"))
    assert await stream.wait_answers(1000)
    await put(target, b"a")
    responses = await until(stream, lambda rs: sum(len(r.events) for r in rs) == 1000)
    assert {r.watch_id for r in responses if r.events} == set(range(1000))


@on(KINDS)
async def test_expired_lease_deletes_its_keys_at_once(target: Target) -> None:
    stream = target.streams[0]
    await create(stream, key=b"l", range_end=b"m")
    grant = pb.LeaseGrantRequest(ID=1, TTL=2)
    assert (await target.call("/etcdserverpb.Lease/LeaseGrant", grant)).code == "OK"
    for key in (b"l2", b"l1"):
        await target.call("/etcdserverpb.KV/Put", pb.PutRequest(key=key, lease=1))
    responses = await until(stream, lambda rs: rs[-1].events[:1] != [] and rs[-1].events[0].type)
    assert [e.kv.key for e in responses[-1].events] == [b"l1", b"l2"]
    assert {e.kv.mod_revision for e in responses[-1].events} == {4}


# From here on 3.6, which the store follows.


@on(("trimaran",))
async def test_progress_without_watchers_is_not_answered(target: Target) -> None:
    stream = target.streams[0]
    await send(stream, progress_request=pb.WatchProgressRequest())
    await asyncio.sleep(SILENCE_S)
    assert stream.responses == []


@on(("trimaran",))
async def test_progress_before_the_start_is_not_answered(target: Target) -> None:
    stream = target.streams[0]
    await create(stream, key=b"a", start_revision=50)
    await send(stream, progress_request=pb.WatchProgressRequest())
    await asyncio.sleep(SILENCE_S)
    assert len(stream.responses) == 1


@on(("trimaran",))
async def test_negative_start_revision_is_refused(target: Target) -> None:
    answer = await create(target.streams[0], key=b"a", start_revision=-1)
    assert answer.created
    assert answer.canceled
    assert answer.watch_id == -1
    assert answer.cancel_reason.endswith("mvcc: required revision has been compacted")


@on(("trimaran",))
async def test_unknown_sort_is_refused(target: Target) -> None:
    for order, by in ((3, 0), (0, 5), (-1, 0), (0, -1)):
        request = pb.RangeRequest(key=b"a", sort_order=order, sort_target=by)
        outcome = await target.call("/etcdserverpb.KV/Range", request)
        assert (outcome.code, outcome.details) == (
            "INVALID_ARGUMENT",
            "etcdserver: invalid sort option",
        )


@on(("trimaran",))
async def test_deletion_at_the_compacted_revision_is_seen(target: Target) -> None:
    await put(target, b"a")
    await target.call("/etcdserverpb.KV/DeleteRange", pb.DeleteRangeRequest(key=b"a"))
    await put(target, b"b")
    request = pb.CompactionRequest(revision=3, physical=True)
    assert (await target.call("/etcdserverpb.KV/Compact", request)).code == "OK"
    stream = target.streams[0]
    await create(stream, key=b"\0", range_end=b"\0", start_revision=3)
    responses = await until(stream, lambda rs: sum(len(r.events) for r in rs) == 2)
    found = [event for r in responses for event in r.events]
    assert [(e.type, e.kv.key, e.kv.mod_revision) for e in found] == [(1, b"a", 3), (0, b"b", 4)]
