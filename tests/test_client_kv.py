"""Keys, ranges, transactions and errors of the client, against each real store."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from aio import run
from etcd_server import StoreServer, missing_reason
from trimaran.client import (
    Client,
    Compare,
    Delete,
    DeleteResult,
    Get,
    KeyValue,
    Put,
    PutResult,
    RangeResult,
    Txn,
    TxnResult,
    prefix_range_end,
)
from trimaran.client.ops import key_range
from trimaran.errors import CompactedError, ConfigError, StatusCode, StoreError


@pytest.fixture(scope="module", params=["3.4", "3.5", "trimaran"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    reason = missing_reason(request.param)
    if reason is not None:
        pytest.skip(reason)
    with StoreServer(request.param) as server:
        yield server.endpoint


def test_put_get_delete(endpoint: str) -> None:
    async def main() -> None:
        async with Client([endpoint]) as client:
            first = await client.put("basic/a", "1")
            second = await client.put(b"basic/a", b"\x00\xff", prev_kv=True)
            assert second.revision == first.revision + 1
            assert second.prev_kv == KeyValue(
                b"basic/a", b"1", first.revision, first.revision, 1, 0
            )
            found = await client.get_one("basic/a")
            assert found == KeyValue(b"basic/a", b"\x00\xff", first.revision, second.revision, 2, 0)
            old = await client.get_one("basic/a", revision=first.revision)
            assert old is not None
            assert old.value == b"1"
            gone = await client.delete("basic/a", prev_kv=True)
            assert gone == DeleteResult(1, [found], second.revision + 1)
            assert await client.get_one("basic/a") is None
            assert (await client.delete("basic/a")).deleted == 0

    run(main())


def test_put_keeps_value_or_lease(endpoint: str) -> None:
    async def main() -> None:
        async with Client([endpoint]) as client:
            lease = await client.lease_grant(60)
            await client.put("keep", "1", lease=lease.id)
            await client.put("keep", "2", ignore_lease=True)
            assert await _value_and_lease(client) == (b"2", lease.id)
            await client.put("keep", ignore_value=True)
            assert await _value_and_lease(client) == (b"2", 0)
            await client.lease_revoke(lease.id)

    async def _value_and_lease(client: Client) -> tuple[bytes, int]:
        kv = await client.get_one("keep")
        assert kv is not None
        return kv.value, kv.lease

    run(main())


RANGES: list[tuple[dict[str, Any], list[str], int, bool]] = [
    # options of get -> keys, count, more
    ({"key": "r/b"}, ["r/b"], 1, False),
    ({"key": "r/", "prefix": True}, ["r/a", "r/b", "r/c"], 3, False),
    ({"key": "r/a", "range_end": "r/c"}, ["r/a", "r/b"], 2, False),
    ({"key": "r/b", "range_end": "r/a"}, [], 0, False),
    ({"key": "r/c", "range_end": "r0"}, ["r/c"], 1, False),
    ({"key": "r/", "prefix": True, "limit": 2}, ["r/a", "r/b"], 3, True),
    ({"key": "r/", "prefix": True, "limit": 3}, ["r/a", "r/b", "r/c"], 3, False),
    ({"key": "r/", "prefix": True, "count_only": True}, [], 3, False),
    ({"key": "r/", "prefix": True, "serializable": True}, ["r/a", "r/b", "r/c"], 3, False),
    ({"key": "r/", "prefix": True, "sort_order": "descend"}, ["r/c", "r/b", "r/a"], 3, False),
    (
        {"key": "r/", "prefix": True, "sort_order": "ascend", "sort_target": "mod"},
        ["r/c", "r/a", "r/b"],
        3,
        False,
    ),
    (
        {"key": "r/", "prefix": True, "sort_order": "descend", "sort_target": "version"},
        ["r/b", "r/c", "r/a"],
        3,
        False,
    ),
    (
        {"key": "r/", "prefix": True, "sort_order": "ascend", "sort_target": "value"},
        ["r/b", "r/a", "r/c"],
        3,
        False,
    ),
]


def test_ranges(endpoint: str) -> None:
    async def main() -> None:
        async with Client([endpoint]) as client:
            await client.delete("r/", prefix=True)
            for key, value in ["c3", "c3", "a2", "b1", "b1", "b1"]:
                await client.put(f"r/{key}", value)
            for options, keys, count, more in RANGES:
                found = await client.get(**options)
                assert [kv.key.decode() for kv in found.kvs] == keys, options
                assert (found.count, found.more) == (count, more), options
                assert all(kv.value for kv in found.kvs)
            only_keys = await client.get("r/", prefix=True, keys_only=True)
            assert [kv.value for kv in only_keys.kvs] == [b"", b"", b""]
            last = await client.put("r/b", "1")
            newest = await client.get("r/", prefix=True, min_mod_revision=last.revision)
            assert [kv.key for kv in newest.kvs] == [b"r/b"]
            everything = await client.get("", prefix=True, count_only=True)
            assert everything.count == (await client.get("", from_key=True)).count >= 3
            assert (await client.delete("r/b", from_key=True)).deleted >= 2

    run(main())


# Key "t/x" has version 2 and value "v2"; "t/none" does not exist.
COMPARES: list[tuple[Compare, bool]] = [
    (Compare.version("t/x", "=", 2), True),
    (Compare.version("t/x", "!=", 2), False),
    (Compare.version("t/x", ">", 1), True),
    (Compare.version("t/x", "<", 2), False),
    (Compare.version("t/none", "=", 0), True),
    (Compare.create("t/none", "=", 0), True),
    (Compare.create("t/x", ">", 0), True),
    (Compare.mod("t/x", ">", 0), True),
    (Compare.mod("t/x", "<", 1), False),
    (Compare.value("t/x", "=", "v2"), True),
    (Compare.value("t/x", "<", b"v3"), True),
    (Compare.value("t/none", "!=", "v2"), False),
    (Compare.lease("t/x", "=", 0), True),
    (Compare.version("t/", ">", 0, prefix=True), True),
    (Compare.version("t/", ">", 1, prefix=True), False),
]


def test_compares(endpoint: str) -> None:
    async def main() -> None:
        async with Client([endpoint]) as client:
            await client.delete("t/", prefix=True)
            for key, value in [("t/x", "v1"), ("t/x", "v2"), ("t/y", "v1")]:
                await client.put(key, value)
            for compare, expected in COMPARES:
                assert (await client.txn([compare], [])).succeeded is expected, compare

    run(main())


def test_nested_txn(endpoint: str) -> None:
    async def main() -> None:
        async with Client([endpoint]) as client:
            await client.delete("n/", prefix=True)
            await client.put("n/old", "o")
            result = await client.txn(
                [Compare.create("n/new", "=", 0)],
                [
                    Put("n/new", "1"),
                    Get("n/", prefix=True, keys_only=True),
                    Txn(
                        [Compare.value("n/old", "=", "x")],
                        [Put("n/then", "")],
                        [Put("n/else", ""), Delete("n/old", prev_kv=True)],
                    ),
                ],
                [Get("n/new")],
            )
            assert result.succeeded
            put, found, nested = result.responses
            assert isinstance(put, PutResult)
            assert isinstance(found, RangeResult)
            assert [kv.key for kv in found.kvs] == [b"n/new", b"n/old"]
            assert isinstance(nested, TxnResult)
            assert not nested.succeeded
            deleted = nested.responses[1]
            assert isinstance(deleted, DeleteResult)
            assert [kv.value for kv in deleted.prev_kvs] == [b"o"]
            assert {kv.mod_revision for kv in (await client.get("n/", prefix=True)).kvs} == {
                result.revision
            }
            again = await client.txn([Compare.create("n/new", "=", 0)], [], [Get("n/new")])
            assert not again.succeeded
            assert isinstance(again.responses[0], RangeResult)

    run(main())


INVALID, OUT, MISSING = (
    StatusCode.INVALID_ARGUMENT,
    StatusCode.OUT_OF_RANGE,
    StatusCode.NOT_FOUND,
)
ERRORS: list[tuple[str, tuple[Any, ...], dict[str, Any], StatusCode, str]] = [
    ("put", ("",), {}, INVALID, "key is not provided"),
    ("get", ("",), {}, INVALID, "key is not provided"),
    ("delete", ("",), {}, INVALID, "key is not provided"),
    ("put", ("e/none",), {"ignore_value": True}, INVALID, "key not found"),
    ("put", ("e/none", "v"), {"ignore_value": True}, INVALID, "value is provided"),
    (
        "put",
        ("e/none", "v"),
        {"ignore_lease": True, "lease": 1},
        INVALID,
        "lease is provided",
    ),
    ("put", ("e/k",), {"lease": 0x1234}, MISSING, "requested lease not found"),
    ("put", ("e/k", b"x" * 1_700_000), {}, INVALID, "request is too large"),
    ("txn", ([], [Put("e/k"), Put("e/k")]), {}, INVALID, "duplicate key given in txn request"),
    ("txn", ([], [Get("e/k")] * 129), {}, INVALID, "too many operations in txn request"),
    (
        "get",
        ("e/k",),
        {"revision": 1 << 40},
        OUT,
        "mvcc: required revision is a future revision",
    ),
    ("compact", (1 << 40,), {}, OUT, "mvcc: required revision is a future revision"),
    ("lease_grant", (9_000_000_001,), {}, OUT, "too large lease TTL"),
    ("lease_revoke", (0x1234,), {}, MISSING, "requested lease not found"),
]


def test_errors_are_the_servers_words(endpoint: str) -> None:
    async def main() -> None:
        async with Client([endpoint]) as client:
            for name, args, options, code, text in ERRORS:
                before = (await client.get("e", prefix=True)).revision
                with pytest.raises(StoreError) as caught:
                    await getattr(client, name)(*args, **options)
                assert (caught.value.code, caught.value.message) == (code, f"etcdserver: {text}")
                assert (await client.get("e", prefix=True)).revision == before

    run(main())


def test_compaction(endpoint: str) -> None:
    async def main() -> None:
        async with Client([endpoint]) as client:
            first = await client.put("c", "1")
            second = await client.put("c", "2")
            await client.compact(second.revision, physical=True)
            assert (await client.get("c", revision=second.revision)).kvs[0].value == b"2"
            with pytest.raises(CompactedError):
                await client.get("c", revision=first.revision)
            with pytest.raises(CompactedError):
                await client.compact(second.revision)

    run(main())


def test_members_and_status(endpoint: str) -> None:
    async def main() -> None:
        async with Client([endpoint]) as client:
            (member,) = await client.members()
            assert member.name == "alone"
            assert member.client_urls == [endpoint]
            assert not member.is_learner
            status = await client.status(endpoint)
            assert status.member_id == status.leader == member.id
            assert status.revision == (await client.get("x")).revision
            assert status.db_size > 0
            with pytest.raises(ConfigError, match="none of this client's endpoints"):
                await client.status("http://127.0.0.1:1")

    run(main())


def test_under_the_loop_of_the_daemons(endpoint: str) -> None:
    async def main() -> None:
        async with Client([endpoint]) as client, client.watch("uv") as watcher:
            await watcher.started()
            lease = await client.lease_grant(5)
            async with client.keep_alive(lease.id, lease.ttl_s) as keep_alive:
                await keep_alive.renewed()
                put = await client.put("uv", "loop", lease=lease.id)
                assert (await anext(watcher)).revision == put.revision

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 30))


@given(prefix=st.binary(max_size=4), key=st.binary(min_size=1, max_size=6))
def test_prefix_range_end_is_the_prefix_exactly(prefix: bytes, key: bytes) -> None:
    first, end = key_range(prefix, None, True)
    in_range = key >= first and (end == b"\0" or key < end)
    assert in_range == key.startswith(prefix)
    assert end == prefix_range_end(prefix)


@pytest.mark.parametrize(
    "options",
    [{"prefix": True, "from_key": True}, {"prefix": True, "range_end": "x"}],
)
def test_a_range_is_named_in_one_way(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="use one of"):
        Get("k", **options).request()
    with pytest.raises(ValueError, match="operator"):
        Compare.version("k", "==", 1).request()  # type: ignore[arg-type]
