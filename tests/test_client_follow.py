"""A client that follows the members of its store, and the files of its certificates."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from aio import eventually, run
from certificates import LOOPBACK, Authority
from etcd_server import ServerTLS, StoreServer, missing_reason, store_cluster, wait_leader
from trimaran.client import Client, TLSOptions
from trimaran.errors import ConfigError


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[StoreServer]]:
    """Three members."""
    reason = missing_reason("3.5")
    if reason is not None:
        pytest.skip(reason)
    with store_cluster(3, "3.5") as servers:
        wait_leader(servers)
        yield servers


def test_it_uses_all_members_and_the_preferred_one_first(cluster: list[StoreServer]) -> None:
    urls = {server.endpoint for server in cluster}

    async def main() -> None:
        async with Client([cluster[0].endpoint]) as client:
            await client.sync(cluster[2].endpoint)
            assert set(client.pool.urls) == urls
            assert client.pool.urls[0] == cluster[2].endpoint
            following = asyncio.create_task(client.follow_members(0.05))
            client.pool.update([cluster[1].endpoint])
            await eventually(lambda: set(client.pool.urls) == urls)
            following.cancel()

    run(main())


def test_a_watch_goes_on_where_its_endpoint_is_none_any_more(cluster: list[StoreServer]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimaran.client.endpoints.RETIRE_S", 0.1)
        run(moved(cluster))


async def moved(cluster: list[StoreServer]) -> None:
    """Watch through one endpoint, take it away, and see the watch go on through another."""
    first, second, third = (server.endpoint for server in cluster)
    async with (
        Client([first]) as client,
        Client([second]) as writer,
        client.watch("follow/", prefix=True) as watcher,
    ):
        await watcher.started()
        await writer.put("follow/1", "a")
        assert (await anext(watcher)).events[0].kv.key == b"follow/1"
        client.pool.update([second, third])
        await eventually(lambda: not watcher.connected)
        await writer.put("follow/2", "b")
        assert (await anext(watcher)).events[0].kv.key == b"follow/2"
        await client.put("follow/3", "c")


def test_no_endpoint_is_no_update() -> None:
    async def main() -> None:
        async with Client(["http://127.0.0.1:1"]) as client:
            for wrong in ([], ["http://127.0.0.1:1", "ftp://x"]):
                with pytest.raises(ConfigError):
                    client.pool.update(wrong)
            assert client.pool.urls == ["http://127.0.0.1:1"]

    run(main())


@pytest.mark.parametrize("kind", ["3.5", "trimaran"])
def test_renewed_files_are_read_at_the_next_connection(kind: str, tmp_path: Path) -> None:
    reason = missing_reason(kind)
    if reason is not None:
        pytest.skip(reason)

    def renew() -> tuple[ServerTLS, TLSOptions]:
        """New certificates, of a new authority, under the same paths."""
        authority = Authority.create(tmp_path)
        shown = authority.issue("server", hosts=LOOPBACK)
        own = authority.issue("client")
        server_tls = ServerTLS(authority.path, shown.cert, shown.key, client_auth=True)
        return server_tls, TLSOptions(authority.path, own.cert, own.key)

    server_tls, client_tls = renew()

    async def main(server: StoreServer) -> None:
        async with Client([server.endpoint], tls=client_tls, timeout_s=20) as client:
            await client.put("k", "v")
            renew()
            await client.put("k", "the old connection stands")
            await asyncio.to_thread(server.stop)
            server.spawn()
            pair = await client.get_one("k")
            assert pair is not None
            assert pair.value == b"the old connection stands"

    with StoreServer(kind, tls=server_tls) as server:
        run(main(server))
