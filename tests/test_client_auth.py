"""Users and passwords: tokens are fetched, renewed when refused, and errors reach the caller."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from aio import eventually, run
from etcd_server import StoreServer, missing_reason
from trimaran.client import Client, Put
from trimaran.errors import StatusCode, StoreError
from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS


@pytest.fixture(params=["3.4", "3.5"])
def server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    reason = missing_reason(request.param)
    if reason is not None:
        pytest.skip(reason)
    with StoreServer(request.param) as server:
        yield server


async def admin(client: Client, method: str, **fields: Any) -> None:
    """Send one request of the Auth service."""
    entry = METHODS[f"/etcdserverpb.Auth/{method}"]
    await client.call(entry.path, entry.request(**fields), entry.response)


async def enable(endpoint: str) -> None:
    """Make root and alice, who may do all below "a/", and turn authentication on."""
    async with Client([endpoint]) as client:
        await admin(client, "RoleAdd", name="root")
        await admin(client, "UserAdd", name="root", password="secret")
        await admin(client, "UserGrantRole", user="root", role="root")
        await admin(client, "UserAdd", name="alice", password="wonder")
        await admin(client, "RoleAdd", name="reader")
        permission = pb.Permission(permType=pb.Permission.READWRITE, key=b"a/", range_end=b"a0")
        await admin(client, "RoleGrantPermission", name="reader", perm=permission)
        await admin(client, "UserGrantRole", user="alice", role="reader")
        await admin(client, "AuthEnable")


@contextlib.asynccontextmanager
async def both(endpoint: str) -> AsyncIterator[tuple[Client, Client]]:
    """A client of root and one of alice."""
    async with (
        Client([endpoint], user="root", password="secret") as root,
        Client([endpoint], user="alice", password="wonder") as alice,
    ):
        yield root, alice


def test_permissions_and_passwords(server: StoreServer) -> None:
    async def main() -> None:
        await enable(server.endpoint)
        async with both(server.endpoint) as (root, alice):
            await root.put("b", "1")
            await alice.put("a/1", "1")
            assert (await alice.get("a/", prefix=True)).count == 1
            for attempt in (alice.get("b"), alice.put("b", "2"), alice.txn([], [Put("b", "2")])):
                with pytest.raises(StoreError) as caught:
                    await attempt
                assert caught.value.code is StatusCode.PERMISSION_DENIED
            async with alice.watch("b") as watcher:
                for attempt in (watcher.started(), anext(watcher)):
                    with pytest.raises(StoreError, match="permission denied") as caught:
                        await attempt
                assert caught.value.code is StatusCode.PERMISSION_DENIED
        async with Client([server.endpoint]) as nobody:
            with pytest.raises(StoreError, match="user name is empty"):
                await nobody.get("b")
        async with Client([server.endpoint], user="alice", password="wrong") as stranger:
            with pytest.raises(StoreError, match="authentication failed"):
                await stranger.put("a/1", "2")
            async with stranger.watch("a/") as watcher:
                with pytest.raises(StoreError, match="authentication failed"):
                    await watcher.started()

    run(main())


def test_tokens_are_renewed_after_a_restart(server: StoreServer) -> None:
    """A simple token is known only to the process that gave it out."""

    async def main() -> None:
        await enable(server.endpoint)
        async with both(server.endpoint) as (_, alice), alice.watch("a/", prefix=True) as watcher:
            await watcher.started()
            lease = await alice.lease_grant(30)
            async with alice.keep_alive(lease.id, lease.ttl_s) as keep_alive:
                await keep_alive.renewed()
                before = keep_alive.deadline
                await asyncio.to_thread(server.kill)
                server.start()
                requests = [alice.put(f"a/{n}", "", lease=lease.id) for n in range(10)]
                await asyncio.gather(*requests)
                seen = 0
                while seen < 10:
                    seen += len((await anext(watcher)).events)
                await eventually(lambda: keep_alive.deadline > before)
                found = await alice.get("a/", prefix=True)
                assert [kv.version for kv in found.kvs] == [1] * 10

    run(main())


@pytest.mark.parametrize("version", ["3.4", "3.5"])
def test_a_watch_renews_a_token_that_the_server_forgot(version: str) -> None:
    """etcd before 3.6 says of such a token that the permission is denied, and nothing more."""
    if (reason := missing_reason(version)) is not None:
        pytest.skip(reason)

    async def main(server: StoreServer) -> None:
        await enable(server.endpoint)
        async with both(server.endpoint) as (root, alice):
            await alice.put("a/1", "")
            # A restart gives back the tokens of the log's entries, and snapshots have none.
            for n in range(20):
                await root.put("b", str(n))
            await asyncio.to_thread(server.kill)
            server.start()
            async with alice.watch("a/", prefix=True) as watcher, alice.watch("b") as other:
                await watcher.started()
                with pytest.raises(StoreError, match="permission denied"):
                    await other.started()
                await alice.put("a/2", "")
                assert [event.kv.key for event in (await anext(watcher)).events] == [b"a/2"]

    with StoreServer(version, arguments=["--snapshot-count=5"]) as server:
        run(main(server))


def test_authentication_may_be_turned_on_and_off_under_a_client(server: StoreServer) -> None:
    async def main() -> None:
        async with both(server.endpoint) as (root, alice):
            await alice.put("a/1", "off")
            await enable(server.endpoint)
            await alice.put("a/1", "on")
            await root.put("b", "on")
            await admin(root, "UserChangePassword", name="alice", password="other")
            with pytest.raises(StoreError, match="authentication failed"):
                await alice.put("a/1", "x")
            await admin(root, "AuthDisable")
            await root.put("b", "off")

    run(main())
