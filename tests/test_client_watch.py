"""Watches deliver every change once and in order, whatever happens to connection and server."""

import asyncio
import contextlib
import random
from collections.abc import Iterator

import pytest

from aio import Proxy, eventually, run
from etcd_server import StoreServer, missing_reason, store_cluster, wait_leader
from trimaran.client import Client, Delete, EventType, Put, TLSOptions, Watcher
from trimaran.client.watch import cancel_error
from trimaran.errors import (
    CompactedError,
    ConfigError,
    StatusCode,
    StoreError,
    StoreUnavailableError,
)

PROGRESS_100_MS = {
    "3.5": "--experimental-watch-progress-notify-interval=100ms",
    "trimaran": "--watch-progress-notify-interval=100ms",
}


@pytest.fixture(scope="module", params=["3.4", "3.5", "trimaran"])
def server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    reason = missing_reason(request.param)
    if reason is not None:
        pytest.skip(reason)
    with StoreServer(request.param) as server:
        yield server


async def keys_until(watcher: Watcher, last: str) -> list[tuple[str, str, int]]:
    """Read events until the key `last` is put: type, key and revision of each."""
    seen: list[tuple[str, str, int]] = []
    async for batch in watcher:
        assert not batch.compacted
        for event in batch.events:
            seen.append((event.type.name, event.kv.key.decode(), event.kv.mod_revision))
        if batch.events:
            assert batch.revision == batch.events[-1].kv.mod_revision
            assert len({event.kv.mod_revision for event in batch.events}) >= 1
        if seen and seen[-1][1] == last:
            return seen
    raise AssertionError("the watch ended")


def test_changes_come_in_order_and_whole(server: StoreServer) -> None:
    async def main() -> None:
        async with (
            Client([server.endpoint]) as client,
            client.watch("w/", prefix=True, prev_kv=True) as watcher,
        ):
            await watcher.started()
            assert watcher.connected
            first = await client.put("w/a", "1")
            await client.put("elsewhere", "x")
            second = await client.txn([], [Put("w/b", "2"), Put("w/c", "3"), Delete("w/a")])
            batch = await anext(watcher)
            assert batch.revision == first.revision
            assert [(e.type, e.kv.value, e.prev_kv) for e in batch.events] == [
                (EventType.PUT, b"1", None)
            ]
            batch = await anext(watcher)
            assert batch.revision == second.revision
            assert [(e.type.name, e.kv.key) for e in batch.events] == [
                ("PUT", b"w/b"),
                ("PUT", b"w/c"),
                ("DELETE", b"w/a"),
            ]
            previous = batch.events[2].prev_kv
            assert previous is not None
            assert previous.value == b"1"
            await client.delete("w/", prefix=True)

    run(main())


def test_the_past_is_delivered_from_the_start_revision(server: StoreServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint]) as client:
            start = (await client.put("past/0", "")).revision
            for number in range(1, 1500):
                await client.put(f"past/{number}", "")
            async with client.watch("past/", prefix=True, start_revision=start) as watcher:
                seen = await keys_until(watcher, "past/1499")
            assert [key for _, key, _ in seen] == [f"past/{n}" for n in range(1500)]
            async with client.watch("past/", prefix=True, start_revision=start + 1501) as later:
                await later.started()
                await client.put("past/too early", "")
                await client.put("past/then", "")
                assert (await anext(later)).revision == start + 1501

    run(main())


def test_filters_and_single_keys_and_ranges(server: StoreServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint]) as client, contextlib.AsyncExitStack() as stack:
            watchers = [
                client.watch("f/a"),
                client.watch("f/a", range_end="f/c"),
                client.watch("f/", prefix=True, filters=["nodelete"]),
                client.watch("f/", prefix=True, filters=["noput"]),
                client.watch("f/b", from_key=True),
            ]
            for watcher in watchers:
                await stack.enter_async_context(watcher)
                await watcher.started()
            for key in ("f/a", "f/b", "f/c"):
                await client.put(key, "")
            await client.delete("f/", prefix=True)
            expected = [
                ["PUT f/a", "DELETE f/a"],
                ["PUT f/a", "PUT f/b", "DELETE f/a", "DELETE f/b"],
                ["PUT f/a", "PUT f/b", "PUT f/c"],
                ["DELETE f/a", "DELETE f/b", "DELETE f/c"],
                ["PUT f/b", "PUT f/c", "DELETE f/b", "DELETE f/c"],
            ]
            for watcher, events in zip(watchers, expected, strict=True):
                seen: list[str] = []
                while len(seen) < len(events):
                    batch = await anext(watcher)
                    seen += [f"{e.type.name} {e.kv.key.decode()}" for e in batch.events]
                assert seen == events

    run(main())


def test_a_large_revision_arrives_in_one_batch(server: StoreServer) -> None:
    """Its events with their previous values are larger than one message may be."""

    async def main() -> None:
        async with Client([server.endpoint]) as client:
            for number in range(5):
                await client.put(f"big/{number}", bytes([number]) * 1_000_000)
            async with client.watch("big/", prefix=True, prev_kv=True) as watcher:
                await watcher.started()
                await client.delete("big/", prefix=True)
                batch = await anext(watcher)
                values = [e.prev_kv.value for e in batch.events if e.prev_kv is not None]
                assert [(len(v), v[0]) for v in values] == [(1_000_000, n) for n in range(5)]

    run(main())


def test_a_watch_of_a_compacted_revision_says_so_and_goes_on(server: StoreServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint]) as client:
            first = await client.put("comp/a", "1")
            await client.put("comp/a", "2")
            third = await client.put("comp/a", "3")
            await client.compact(third.revision)
            async with client.watch("comp/a", start_revision=first.revision) as watcher:
                batch = await anext(watcher)
                assert (batch.compacted, batch.revision, batch.events) == (
                    True,
                    third.revision,
                    [],
                )
                after = await client.put("comp/a", "4")
                seen = [e.kv.mod_revision for e in (await anext(watcher)).events]
                while seen[-1] != after.revision:
                    seen += [e.kv.mod_revision for e in (await anext(watcher)).events]
                assert seen in ([third.revision, after.revision], [after.revision])

    run(main())


def test_a_compaction_while_the_connection_is_down(server: StoreServer) -> None:
    async def main() -> None:
        async with (
            Client([server.endpoint]) as writer,
            Proxy(server.client_port) as proxy,
            Client([proxy.endpoint]) as reader,
            reader.watch("down/", prefix=True) as watcher,
        ):
            await watcher.started()
            await writer.put("down/a", "1")
            assert len((await anext(watcher)).events) == 1
            proxy.blocked = True
            proxy.cut()
            await eventually(lambda: not watcher.connected)
            for number in range(3):
                last = await writer.put("down/a", str(number))
            await writer.compact(last.revision)
            proxy.blocked = False
            batch = await anext(watcher)
            assert (batch.compacted, batch.revision) == (True, last.revision)
            await writer.put("down/end", "")
            assert (await keys_until(watcher, "down/end"))[-1][0] == "PUT"

    run(main())


def test_it_resumes_after_cuts_without_loss_or_repetition(server: StoreServer) -> None:
    async def main() -> None:
        choice = random.Random(7)
        async with (
            Client([server.endpoint]) as writer,
            Proxy(server.client_port) as first,
            Proxy(server.client_port) as second,
            Client([first.endpoint, second.endpoint], jitter=lambda: 0.0) as reader,
            reader.watch("cut/", prefix=True) as watcher,
        ):
            await watcher.started()
            following = asyncio.create_task(keys_until(watcher, "cut/end"))
            written: list[tuple[str, str, int]] = []
            for number in range(300):
                if choice.random() < 0.05:
                    choice.choice([first, second]).cut()
                key = f"cut/{choice.randrange(20)}"
                put = await writer.put(key, str(number))
                written.append(("PUT", key, put.revision))
                if choice.random() < 0.2:
                    deleted = await writer.delete(key)
                    written.append(("DELETE", key, deleted.revision))
            last = await writer.put("cut/end", "")
            assert await following == [*written, ("PUT", "cut/end", last.revision)]
            assert first.connections + second.connections > 2

    run(main())


@pytest.mark.parametrize("kind", ["3.4", "3.5", "trimaran"])
def test_it_resumes_after_the_server_was_killed(kind: str) -> None:
    reason = missing_reason(kind)
    if reason is not None:
        pytest.skip(reason)

    async def main(server: StoreServer) -> None:
        async with (
            Client([server.endpoint], timeout_s=20) as client,
            client.watch("kill/", prefix=True) as watcher,
        ):
            await watcher.started()
            written = []
            for number in range(6):
                put = await client.put(f"kill/{number}", "")
                written.append(("PUT", f"kill/{number}", put.revision))
                if number % 2 == 1:
                    server.kill()
                    await eventually(lambda: not watcher.connected)
                    assert isinstance(watcher.error, StoreUnavailableError)
                    server.start()
            assert await keys_until(watcher, "kill/5") == written

    with StoreServer(kind) as server:
        run(main(server))


def test_it_moves_to_another_member_when_its_own_dies_or_loses_the_others() -> None:
    reason = missing_reason("3.5")
    if reason is not None:
        pytest.skip(reason)

    async def main(servers: list[StoreServer]) -> None:
        follower = next(server for server in servers if not server.is_leader())
        rest = [server for server in servers if server is not follower]
        endpoints = [server.endpoint for server in (follower, *rest)]
        async with (
            Client(endpoints, timeout_s=20) as reader,
            Client([server.endpoint for server in rest], timeout_s=20) as writer,
            reader.watch("move/", prefix=True) as watcher,
        ):
            await watcher.started()
            await writer.put("move/a", "")
            follower.kill()
            await writer.put("move/b", "")
            assert [key for _, key, _ in await keys_until(watcher, "move/b")] == [
                "move/a",
                "move/b",
            ]

    with store_cluster(3, "3.5") as servers:
        wait_leader(servers)
        run(main(servers), 90)


def test_another_store_at_the_same_address_is_told_like_a_compaction() -> None:
    reason = missing_reason("3.5")
    if reason is not None:
        pytest.skip(reason)

    async def main(old: StoreServer, new: StoreServer) -> None:
        async with (
            Proxy(old.client_port) as proxy,
            Client([proxy.endpoint]) as reader,
            Client([new.endpoint]) as writer,
            reader.watch("same/", prefix=True) as watcher,
        ):
            await watcher.started()
            proxy.port = new.client_port
            proxy.cut()
            batch = await anext(watcher)
            assert batch.compacted
            await writer.put("same/a", "")
            assert (await anext(watcher)).events[0].kv.key == b"same/a"

    with StoreServer("3.5", name="old") as old, StoreServer("3.5", name="new") as new:
        run(main(old, new))


@pytest.mark.parametrize("kind", ["3.5", "trimaran"])
def test_progress_is_reported(kind: str) -> None:
    reason = missing_reason(kind)
    if reason is not None:
        pytest.skip(reason)

    async def main(endpoint: str) -> None:
        async with (
            Client([endpoint]) as client,
            client.watch("quiet", progress_notify=True) as watcher,
        ):
            await watcher.started()
            put = await client.put("loud", "")
            async for batch in watcher:
                assert batch.events == []
                if batch.revision >= put.revision:
                    break

    with StoreServer(kind, arguments=[PROGRESS_100_MS[kind]]) as server:
        run(main(server.endpoint))


def test_a_slow_reader_loses_nothing(server: StoreServer) -> None:
    async def main() -> None:
        async with (
            Client([server.endpoint]) as client,
            client.watch("slow/", prefix=True) as watcher,
        ):
            await watcher.started()
            puts = [client.put(f"slow/{number}", b"x" * 1000) for number in range(500)]
            await asyncio.gather(*puts)
            await client.put("slow/end", "")
            seen = await keys_until(watcher, "slow/end")
            revisions = [revision for _, _, revision in seen]
            assert revisions == list(range(revisions[0], revisions[0] + 501))

    run(main())


def test_giving_up_a_read_does_not_break_the_watch(server: StoreServer) -> None:
    async def main() -> None:
        async with (
            Client([server.endpoint]) as client,
            client.watch("give/", prefix=True) as watcher,
        ):
            await watcher.started()
            for number in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await anext(watcher)
                await client.put("give/up", str(number))
                assert (await anext(watcher)).events[0].kv.value == str(number).encode()

    run(main())


def test_an_impossible_range_is_refused(server: StoreServer) -> None:
    async def main() -> None:
        async with (
            Client([server.endpoint]) as client,
            client.watch("b", range_end="a") as watcher,
        ):
            for attempt in (watcher.started(), anext(watcher), anext(watcher)):
                with pytest.raises(StoreError, match="range is empty") as caught:
                    await attempt
                assert caught.value.code is StatusCode.INVALID_ARGUMENT
            with pytest.raises(ValueError, match="negative"):
                client.watch("k", start_revision=-1)

    run(main())


def test_closing_the_client_ends_its_watches(server: StoreServer) -> None:
    async def main() -> None:
        client = Client([server.endpoint])
        async with client.watch("k") as watcher:
            await watcher.started()
            waiting = asyncio.create_task(anext(watcher))
            await asyncio.sleep(0)
            await client.close()
            with pytest.raises(StoreError, match="closed"):
                await waiting

    run(main())


def test_a_wrong_certificate_path_ends_the_watch(tmp_path: object) -> None:
    async def main() -> None:
        tls = TLSOptions(ca=f"{tmp_path}/none.pem")
        async with (
            Client(["https://127.0.0.1:1"], tls=tls) as client,
            client.watch("k") as watcher,
        ):
            with pytest.raises(ConfigError, match="cannot read"):
                await watcher.started()

    run(main())


@pytest.mark.parametrize(
    ("reason", "code", "message"),
    [
        (
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
            StatusCode.PERMISSION_DENIED,
            "etcdserver: permission denied",
        ),
        (
            "rpc error: code = Canceled desc = etcdserver: watch canceled",
            StatusCode.CANCELLED,
            "etcdserver: watch canceled",
        ),
        ("rpc error: code = Nonsense desc = x", StatusCode.UNKNOWN, "x"),
        ("", StatusCode.UNAVAILABLE, "the server cancelled the watch"),
        ("mvcc: no", StatusCode.INVALID_ARGUMENT, "mvcc: no"),
    ],
)
def test_cancel_reasons(reason: str, code: StatusCode, message: str) -> None:
    error = cancel_error(reason)
    assert (error.code, error.message) == (code, message)


def test_the_compacted_reason_is_a_compacted_error() -> None:
    text = "etcdserver: mvcc: required revision has been compacted"
    assert isinstance(cancel_error(f"rpc error: code = OutOfRange desc = {text}"), CompactedError)
