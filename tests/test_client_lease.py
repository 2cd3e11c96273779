"""Leases: granted, renewed over broken connections, and known to be lost when they are."""

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest

from aio import Proxy, eventually, run
from etcd_server import StoreServer, missing_reason, store_cluster, wait_leader
from trimaran.client import Client, EventType
from trimaran.errors import StatusCode, StoreError


@pytest.fixture(scope="module", params=["3.4", "3.5", "trimaran"])
def server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    reason = missing_reason(request.param)
    if reason is not None:
        pytest.skip(reason)
    with StoreServer(request.param) as server:
        yield server


def test_grant_ask_revoke(server: StoreServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint]) as client:
            lease = await client.lease_grant(100)
            assert lease.ttl_s == 100
            named = await client.lease_grant(50, lease_id=0x77)
            assert named.id == 0x77
            with pytest.raises(StoreError) as caught:
                await client.lease_grant(50, lease_id=0x77)
            assert caught.value.code is StatusCode.FAILED_PRECONDITION
            assert {lease.id, 0x77} <= set(await client.leases())
            await client.put("lease/b", "", lease=lease.id)
            await client.put("lease/a", "", lease=lease.id)
            status = await client.lease_time_to_live(lease.id, keys=True)
            assert (status.id, status.granted_ttl_s) == (lease.id, 100)
            assert 90 <= status.ttl_s <= 100
            assert sorted(status.keys) == [b"lease/a", b"lease/b"]
            assert (await client.lease_time_to_live(lease.id)).keys == []
            async with client.watch("lease/", prefix=True) as watcher:
                await watcher.started()
                await client.lease_revoke(lease.id)
                batch = await anext(watcher)
                assert [(e.type, e.kv.key) for e in batch.events] == [
                    (EventType.DELETE, b"lease/a"),
                    (EventType.DELETE, b"lease/b"),
                ]
            assert (await client.lease_time_to_live(lease.id)).ttl_s == -1
            await client.lease_revoke(0x77)

    run(main())


def test_a_lease_that_is_kept_alive_lives_and_dies_without(server: StoreServer) -> None:
    async def main() -> None:
        async with (
            Client([server.endpoint]) as client,
            client.watch("alive/", prefix=True) as watcher,
        ):
            await watcher.started()
            kept, left = await client.lease_grant(2), await client.lease_grant(2)
            await client.put("alive/kept", "", lease=kept.id)
            await client.put("alive/left", "", lease=left.id)
            async with client.keep_alive(kept.id, kept.ttl_s) as keep_alive:
                await keep_alive.renewed()
                # The one that nobody renews is gone first, long after the TTL of the other.
                gone = []
                while not gone:
                    batch = await anext(watcher)
                    gone = [e.kv.key for e in batch.events if e.type is EventType.DELETE]
                assert gone == [b"alive/left"]
                assert not keep_alive.is_lost
                assert keep_alive.error is None
                assert 0 < keep_alive.deadline - time.monotonic() <= kept.ttl_s
            batch = await anext(watcher)
            assert batch.events[0].kv.key == b"alive/kept"

    run(main())


def test_a_revoked_lease_is_lost(server: StoreServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint]) as client:
            lease = await client.lease_grant(3)
            async with client.keep_alive(lease.id, lease.ttl_s) as keep_alive:
                await keep_alive.renewed()
                await client.lease_revoke(lease.id)
                await keep_alive.lost()
                # The store said so; the deadline had no need to pass.
                assert time.monotonic() < keep_alive.deadline
            async with client.keep_alive(0x4242, 60) as unknown:
                await unknown.lost()

    run(main())


def test_an_expired_lease_is_lost_when_the_store_cannot_be_reached(server: StoreServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint]) as client, Proxy(server.client_port) as proxy:
            lease = await client.lease_grant(2)
            async with (
                Client([proxy.endpoint]) as cut_off,
                cut_off.keep_alive(lease.id, lease.ttl_s) as keep_alive,
            ):
                await keep_alive.renewed()
                await proxy.refuse()
                await keep_alive.lost()
                assert time.monotonic() >= keep_alive.deadline
                assert keep_alive.error is not None

    run(main())


def test_a_hanging_store_loses_the_lease_at_the_deadline() -> None:
    reason = missing_reason("3.5")
    if reason is not None:
        pytest.skip(reason)

    async def main(server: StoreServer) -> None:
        async with Client([server.endpoint]) as client:
            lease = await client.lease_grant(2)
            async with client.keep_alive(lease.id, lease.ttl_s) as keep_alive:
                await keep_alive.renewed()
                server.signal(signal.SIGSTOP)
                await keep_alive.lost()
                assert time.monotonic() >= keep_alive.deadline

    with StoreServer("3.5") as server:
        run(main(server))


def test_it_goes_on_over_cuts_and_another_endpoint(server: StoreServer) -> None:
    async def main() -> None:
        async with (
            Proxy(server.client_port) as first,
            Proxy(server.client_port) as second,
            Client([first.endpoint, second.endpoint]) as client,
        ):
            lease = await client.lease_grant(3)
            async with client.keep_alive(lease.id, lease.ttl_s) as keep_alive:
                await keep_alive.renewed()

                async def is_renewed_again() -> None:
                    before = keep_alive.deadline
                    await eventually(lambda: keep_alive.deadline > before)

                for broken in (first, second, first):
                    broken.cut()
                    await is_renewed_again()
                assert not keep_alive.is_lost
            # A server that takes the request and never answers is given up for the other one.
            first.swallow_answers = True
            async with client.keep_alive(lease.id, lease.ttl_s) as keep_alive:
                await keep_alive.renewed()
                assert not keep_alive.is_lost

    run(main())


@pytest.mark.parametrize("kind", ["3.4", "3.5", "trimaran"])
def test_it_goes_on_after_the_store_was_killed_and_restarted(kind: str) -> None:
    reason = missing_reason(kind)
    if reason is not None:
        pytest.skip(reason)

    async def main(server: StoreServer) -> None:
        async with Client([server.endpoint]) as client:
            lease = await client.lease_grant(15)
            await client.put("k", "v", lease=lease.id)
            async with client.keep_alive(lease.id, lease.ttl_s) as keep_alive:
                await keep_alive.renewed()
                before = keep_alive.deadline
                await asyncio.to_thread(server.kill)
                server.start()
                await eventually(lambda: keep_alive.deadline > before)
                assert not keep_alive.is_lost
                assert await client.get_one("k") is not None

    with StoreServer(kind) as server:
        run(main(server))


def test_it_survives_the_death_of_the_leader() -> None:
    reason = missing_reason("3.5")
    if reason is not None:
        pytest.skip(reason)

    async def main(servers: list[StoreServer], leader: StoreServer) -> None:
        endpoints = [leader.endpoint, *(s.endpoint for s in servers if s is not leader)]
        async with Client(endpoints, timeout_s=20) as client:
            lease = await client.lease_grant(10)
            await client.put("k", "v", lease=lease.id)
            async with client.keep_alive(lease.id, lease.ttl_s) as keep_alive:
                await keep_alive.renewed()
                before = keep_alive.deadline
                leader.kill()
                await eventually(lambda: keep_alive.deadline > before)
                assert not keep_alive.is_lost
                assert await client.get_one("k") is not None

    with store_cluster(3, "3.5") as servers:
        run(main(servers, wait_leader(servers)), 90)


def test_closing_the_client_stops_keeping_alive(server: StoreServer) -> None:
    async def main() -> None:
        client = Client([server.endpoint])
        lease = await client.lease_grant(30)
        async with client.keep_alive(lease.id, lease.ttl_s) as keep_alive:
            await keep_alive.renewed()
            await client.close()
            await keep_alive.lost()

    run(main())
