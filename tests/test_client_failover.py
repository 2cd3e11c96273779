"""Dead, mute and cut endpoints: reads go elsewhere, writes are never repeated."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from aio import Proxy, eventually, run
from etcd_server import StoreServer, free_port, missing_reason, store_cluster, wait_leader
from trimaran.client import Client, Compare, Get, Put, TLSOptions, Txn
from trimaran.client.calls import Backoff
from trimaran.client.endpoints import parse_endpoint
from trimaran.errors import ConfigError, StatusCode, StoreError, StoreUnavailableError


@pytest.fixture(scope="module", params=["3.5", "trimaran"])
def server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    reason = missing_reason(request.param)
    if reason is not None:
        pytest.skip(reason)
    with StoreServer(request.param) as server:
        yield server


def dead_endpoint() -> str:
    """A URL whose port refuses connections."""
    return f"http://127.0.0.1:{free_port()}"


@contextlib.asynccontextmanager
async def two_ways(
    server: StoreServer, timeout_s: float = 5.0
) -> AsyncIterator[tuple[Proxy, Proxy, Client]]:
    """Two proxies to one store, and a client that prefers the first."""
    async with (
        Proxy(server.client_port) as first,
        Proxy(server.client_port) as second,
        Client([first.endpoint, second.endpoint], timeout_s=timeout_s) as client,
    ):
        yield first, second, client


def test_a_dead_endpoint_is_passed_over_by_reads_and_writes(server: StoreServer) -> None:
    async def main() -> None:
        for dead in ([dead_endpoint()], [dead_endpoint(), dead_endpoint()]):
            async with Client([*dead, server.endpoint]) as client:
                put = await client.put("fo/dead", "1")
                assert (await client.get("fo/dead")).revision == put.revision
            async with Client([server.endpoint, *dead]) as client:
                await client.put("fo/dead", "2")

    run(main())


def test_no_endpoint_at_all_is_an_error_in_time() -> None:
    async def main() -> None:
        async with Client([dead_endpoint(), dead_endpoint()], timeout_s=0.5) as client:
            for request in (client.put("k", "v"), client.get("k"), client.members()):
                with pytest.raises(StoreUnavailableError, match="Connection refused"):
                    await request

    run(main())


def test_the_store_may_come_up_later(server: StoreServer) -> None:
    async def main() -> None:
        async with Proxy(server.client_port) as proxy:
            endpoint = proxy.endpoint
            await proxy.refuse()
            async with Client([endpoint], timeout_s=20) as client:
                write = asyncio.create_task(client.put("fo/late", "1"))
                await eventually(lambda: client.pool.by_url(endpoint).has_failed())
                assert not write.done()
                port = int(endpoint.rsplit(":", 1)[1])
                async with Proxy(server.client_port, port) as late:
                    assert (await write).revision > 1
                    assert late.connections == 1

    run(main())


WRITES: list[Callable[[Client], Awaitable[Any]]] = [
    lambda client: client.put("fo/w/key", "v"),
    lambda client: client.delete("fo/w/key"),
    lambda client: client.txn([], [Put("fo/w/key", "v")]),
    lambda client: client.txn([], [], [Txn([], [Put("fo/w/key", "v")])]),
    lambda client: client.compact(1),
    lambda client: client.lease_grant(60),
    lambda client: client.lease_revoke(1),
]


@pytest.mark.parametrize("number", range(len(WRITES)))
def test_a_write_whose_answer_is_lost_is_not_repeated(server: StoreServer, number: int) -> None:
    async def main() -> None:
        async with two_ways(server) as (first, second, client):
            await client.get("fo/w")
            first.swallow_answers = True
            write = asyncio.create_task(WRITES[number](client))  # type: ignore[arg-type]
            await first.answer_held.wait()
            first.cut()
            with pytest.raises(StoreUnavailableError) as caught:
                await write
            assert caught.value.code is StatusCode.UNAVAILABLE
            assert second.connections == 0
            # The next request finds the other endpoint by itself.
            first.swallow_answers = False
            await client.get("fo/w")

    run(main())


def test_a_lost_put_took_effect_once(server: StoreServer) -> None:
    async def main() -> None:
        async with two_ways(server) as (first, _, client):
            await client.delete("fo/once")
            first.swallow_answers = True
            write = asyncio.create_task(client.put("fo/once", "v"))
            async with Client([server.endpoint]) as observer:

                async def is_written() -> bool:
                    return await observer.get_one("fo/once") is not None

                await eventually(is_written)
                first.cut()
                with pytest.raises(StoreUnavailableError):
                    await write
                found = await observer.get_one("fo/once")
            assert found is not None
            assert found.version == 1

    run(main())


READS: list[Callable[[Client], Awaitable[Any]]] = [
    lambda client: client.get("fo/r"),
    lambda client: client.txn([Compare.version("fo/r", "=", 0)], [Get("fo/r")]),
    lambda client: client.members(),
    lambda client: client.status(),
    lambda client: client.leases(),
    lambda client: client.lease_time_to_live(1),
]


@pytest.mark.parametrize("number", range(len(READS)))
def test_a_read_whose_answer_is_lost_is_repeated(server: StoreServer, number: int) -> None:
    async def main() -> None:
        async with two_ways(server) as (first, second, client):
            await client.get("fo/r")
            first.swallow_answers = True
            read = asyncio.create_task(READS[number](client))  # type: ignore[arg-type]
            await first.answer_held.wait()
            first.cut()
            await read
            assert second.connections == 1

    run(main())


def test_a_mute_endpoint_costs_a_read_its_share_of_the_time(server: StoreServer) -> None:
    async def main() -> None:
        async with two_ways(server, timeout_s=4) as (first, second, client):
            await client.get("fo/mute")
            first.swallow_answers = True
            await client.get("fo/mute")
            assert second.connections == 1
            # The mute one is avoided from now on, so that a write does not run into it.
            await client.put("fo/mute", "v")

    run(main())


def test_a_write_to_a_hanging_server_is_reported_as_open(server: StoreServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint], timeout_s=1) as client:
            await client.delete("fo/hang")
            server.signal(signal.SIGSTOP)
            try:
                with pytest.raises(StoreUnavailableError) as caught:
                    await client.put("fo/hang", "v")
            finally:
                server.signal(signal.SIGCONT)
            assert caught.value.code is StatusCode.DEADLINE_EXCEEDED
            found = await client.get_one("fo/hang")
            assert found is None or found.version == 1

    run(main())


def test_after_a_kill_and_restart_the_client_goes_on() -> None:
    async def main(server: StoreServer) -> None:
        async with Client([server.endpoint], timeout_s=20) as client:
            put = await client.put("k", "v")
            await asyncio.to_thread(server.kill)
            read = asyncio.create_task(client.get_one("k"))
            server.start()
            found = await read
            assert found is not None
            assert found.mod_revision == put.revision

    with StoreServer("3.5") as server:
        run(main(server))


def test_the_leader_of_three_is_killed() -> None:
    """What was acknowledged is there, and what was not is there at most once."""
    reason = missing_reason("3.5")
    if reason is not None:
        pytest.skip(reason)

    async def main(servers: list[StoreServer], leader: StoreServer) -> None:
        # The leader is the client's first choice.
        endpoints = [leader.endpoint, *(s.endpoint for s in servers if s is not leader)]
        acknowledged, open_ended = [], []
        async with Client(endpoints, timeout_s=10) as client:
            for number in range(60):
                if number == 20:
                    leader.kill()
                key = f"l/{number:03}"
                try:
                    await client.put(key, "v")
                    acknowledged.append(key)
                except StoreUnavailableError:
                    open_ended.append(key)
            found = (await client.get("l/", prefix=True)).kvs
            assert all(kv.version == 1 for kv in found)
            keys = {kv.key.decode() for kv in found}
            assert set(acknowledged) <= keys <= {*acknowledged, *open_ended}
            assert len(acknowledged) > 50
            status = await client.status()
            assert status.leader not in (0, None)
            with pytest.raises(StoreUnavailableError):
                await Client([leader.endpoint], timeout_s=0.3).get("l")

    with store_cluster(3, "3.5") as servers:
        run(main(servers, wait_leader(servers)), 120)


def test_a_client_that_is_closed_says_so(server: StoreServer) -> None:
    async def main() -> None:
        client = Client([server.endpoint])
        await client.get("k")
        await client.close()
        await client.close()
        with pytest.raises(StoreError, match="closed"):
            await client.get("k")

    run(main())


def test_many_requests_at_once(server: StoreServer) -> None:
    async def main() -> None:
        async with Client([dead_endpoint(), server.endpoint]) as client:
            results = await asyncio.gather(*(client.put("fo/many", str(i)) for i in range(200)))
            assert len({result.revision for result in results}) == 200

    run(main())


@pytest.mark.parametrize(
    ("url", "tls", "expected"),
    [
        ("http://127.0.0.1:2379", False, ("127.0.0.1:2379", False)),
        ("https://store.example:99", True, ("store.example:99", True)),
        ("https://store.example:99/", False, ("store.example:99", True)),
        ("store:4001", False, ("store:4001", False)),
        ("store:4001", True, ("store:4001", True)),
        ("store", False, ("store:2379", False)),
        ("http://[::1]:2379", False, ("[::1]:2379", False)),
        ("unix:///run/store.sock", False, ("unix:/run/store.sock", False)),
    ],
)
def test_endpoints(url: str, tls: bool, expected: tuple[str, bool]) -> None:
    assert parse_endpoint(url, tls) == expected


@pytest.mark.parametrize(
    ("url", "tls"),
    [
        ("ftp://store", False),
        ("http://store:2379/v3", False),
        ("http://", False),
        ("http://store:port", False),
        ("http://store:99999", False),
        ("http://store:2379", True),
        ("", False),
    ],
)
def test_bad_endpoints(url: str, tls: bool) -> None:
    with pytest.raises(ConfigError):
        parse_endpoint(url, tls)


def test_bad_options() -> None:
    for endpoints, options in [
        ([], {}),
        ("http://127.0.0.1:2379", {}),
        (["http://127.0.0.1:2379"], {"user": "root"}),
        (["http://127.0.0.1:2379"], {"password": "x"}),
        (["http://127.0.0.1:2379"], {"tls": TLSOptions()}),
    ]:
        with pytest.raises(ConfigError):
            Client(endpoints, **options)  # type: ignore[arg-type]


def test_backoff_grows_to_a_limit_and_jitter_only_shortens() -> None:
    longest, shortest = Backoff(lambda: 1.0), Backoff(lambda: 0.0)
    times = [longest.next_s() for _ in range(10)]
    assert times == sorted(times)
    assert times[0] == 0.05
    assert times[-1] == 2.0
    assert [shortest.next_s() * 2 for _ in range(10)] == times
    longest.reset()
    assert longest.next_s() == 0.05
