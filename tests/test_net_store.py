"""Holding subnets in a real store: races, expiry, and what a view makes of events."""

import asyncio
import json
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran.client import Client
from trimaran.daemons.net_store import StoreFollower, SubnetHolder
from trimaran.errors import NetworkConfigError, SubnetExhaustedError
from trimaran.net.allocation import HostIdentity, derive_mac
from trimaran.net.config import parse_config
from trimaran.net.records import StoredRecord
from trimaran.net.view import NetworkView

PREFIX = "/t/network"
CONFIG = parse_config('{"Network": "10.3.0.0/20", "Backend": {"Type": "vxlan"}}')


def identity(number: int) -> HostIdentity:
    name = f"host-{number}"
    return HostIdentity(name, IPv4Address(f"192.0.2.{number}"), derive_mac(name, 1))


class Holder:
    """One host's side of the store, without a kernel."""

    def __init__(self, client: Client, number: int, ttl_s: int = 600) -> None:
        self.identity = identity(number)
        self.lost = asyncio.Event()
        self.view = NetworkView(PREFIX)
        self.follower = StoreFollower(client, self.view, lambda: None)
        self.holder = SubnetHolder(client, self.follower, ttl_s, self.lost.set)

    async def ensure(self, *preferred: IPv4Network) -> StoredRecord:
        return await self.holder.ensure(CONFIG, self.identity, preferred)


def run(work: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(bounded())


def test_hosts_that_start_together_never_share_a_subnet(store_endpoint: str) -> None:
    """Each decides on the same empty list, and all want the same subnet first."""

    async def work() -> None:
        async with Client([store_endpoint]) as client:
            hosts = [Holder(client, number) for number in range(1, 19)]
            favourite = CONFIG.subnet_at(4)
            results = await asyncio.gather(
                *(host.ensure(favourite) for host in hosts), return_exceptions=True
            )
            held = [item.record.subnet for item in results if isinstance(item, StoredRecord)]
            assert len(held) == len(set(held)) == CONFIG.subnet_count == 15
            assert favourite in held
            refused = [item for item in results if not isinstance(item, StoredRecord)]
            assert all(isinstance(item, SubnetExhaustedError) for item in refused)
            assert len(refused) == 3
            # Leases that lost a race were given back: one is left for each record.
            assert len(await client.leases()) == 15
            for host in hosts:
                await host.holder.close()

    run(work)


def test_the_lease_is_kept_and_runs_out_afterwards(store_endpoint: str) -> None:
    async def work() -> None:
        async with Client([store_endpoint]) as client:
            host = Holder(client, 1, ttl_s=2)
            stored = await host.ensure()
            key = f"{PREFIX}/subnets/{stored.key}"
            async with client.watch(key) as watcher:
                await watcher.started()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(aiter(watcher)), 3.5)
            # Asking again finds it in order: same revision, same lease.
            await host.follower.refresh()
            assert await host.ensure() == stored
            async with client.watch(key) as watcher:
                await watcher.started()
                await host.holder.close()
                batch = await anext(aiter(watcher))
            assert batch.events[0].kv.key.decode() == key
            assert await client.get_one(key) is None

    run(work)


def test_a_revoked_lease_is_noticed_and_replaced(store_endpoint: str) -> None:
    async def work() -> None:
        async with Client([store_endpoint]) as client:
            host = Holder(client, 1, ttl_s=2)
            stored = await host.ensure()
            await client.lease_revoke(stored.lease)
            await host.lost.wait()
            # What the view believes is out of date, and the transaction finds out.
            again = await host.ensure()
            assert again.record == stored.record
            assert again.lease != stored.lease
            await host.holder.close()

    run(work)


def test_another_time_to_live_moves_the_record_to_a_new_lease(store_endpoint: str) -> None:
    async def work() -> None:
        async with Client([store_endpoint]) as client:
            before = await Holder(client, 1, ttl_s=86400).ensure()
            host = Holder(client, 1, ttl_s=600)
            await host.follower.refresh()
            after = await host.ensure()
            assert after.record == before.record
            assert (await client.lease_time_to_live(after.lease)).granted_ttl_s == 600
            await host.holder.close()

    run(work)


KEYS = st.sampled_from([f"{PREFIX}/subnets/10.3.{number}.0-24" for number in (1, 2, 3)])
VALUES = st.sampled_from([b"{}", b'{"PublicIP":"192.0.2.1"}', b'{"PublicIP":"192.0.2.2"}'])


@given(st.lists(st.tuples(KEYS, st.none() | VALUES, st.booleans()), max_size=20), st.data())
def test_a_view_of_events_equals_a_view_of_lists(
    changes: list[tuple[str, bytes | None, bool]], data: Any
) -> None:
    """Own writes arrive before older events do, and some events arrive twice."""
    view, truth = NetworkView(PREFIX), dict[str, tuple[bytes, int]]()
    delayed: list[tuple[str, bytes | None, int]] = []

    def deliver(key: str, value: bytes | None, revision: int) -> None:
        if value is None:
            view.delete(key, revision)
        else:
            view.put(key, value, revision, 0)

    for revision, (key, value, own) in enumerate(changes, 2):
        if value is None:
            truth.pop(key, None)
        else:
            truth[key] = value, revision
        delayed.append((key, value, revision))
        if own and value not in (None, b"{}"):
            deliver(key, value, revision)
        while delayed and data.draw(st.booleans()):
            deliver(*delayed.pop(0))
    for event in delayed:
        deliver(*event)
    fresh = NetworkView(PREFIX)
    fresh.replace(
        [(key, value, revision, 0) for key, (value, revision) in truth.items()], len(changes) + 1
    )
    assert view.records == fresh.records
    assert view.bad_records == fresh.bad_records


def test_a_view_survives_its_cache() -> None:
    view = NetworkView(PREFIX)
    record = b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"HostID":"x"}'
    view.replace(
        [
            (f"{PREFIX}/config", b'{"Network":"10.3.0.0/20"}', 2, 0),
            (f"{PREFIX}/subnets/10.3.1.0-24", record, 3, 7),
        ],
        3,
    )
    copy = NetworkView(PREFIX)
    copy.load_cache(json.loads(json.dumps(view.to_cache())))
    assert copy.config == view.config
    assert [item.record for item in copy.records.values()] == [
        item.record for item in view.records.values()
    ]
    for damaged in (None, {}, {"config": "{"}, {"config": "{}", "records": 7}):
        with pytest.raises(NetworkConfigError):
            copy.load_cache(damaged)
    assert copy.config == view.config
