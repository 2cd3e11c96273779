"""The first start of a member: founding a cluster, joining one, and finding the others."""

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from aio import run
from dns_server import DnsServer
from etcd_server import StoreServer
from trimaran.client import Client, Dialing
from trimaran.client.discovery import discover
from trimaran.daemons.bootstrap import Ask, found, peer_ask, same_urls
from trimaran.daemons.data_directory import Founding, founding_of, open_data_directory
from trimaran.daemons.discovery import discover_by_dns, discover_by_registry, registry_client
from trimaran.daemons.peer_connection import PeerIdentity
from trimaran.daemons.peer_transport import PeerTransport
from trimaran.errors import ConfigError
from trimaran.store.identity import cluster_id, member_id
from trimaran.store.options import StoreOptions, complete, read_options
from trimaran.store.peer_calls import Done, PeerMethod
from trimaran.wire import etcd_pb2 as pb

A, B, C = (f"http://127.0.0.1:{port}" for port in (23801, 23802, 23803))
CLUSTER = {"a": (A,), "b": (B,), "c": (C,)}
CLUSTER_ID = 77


def options_of(folder: Path, **changes: object) -> StoreOptions:
    values = {
        "name": "a",
        "data_dir": str(folder / "data"),
        "initial_advertise_peer_urls": (A,),
        "initial_cluster": CLUSTER,
    }
    return complete(values | changes)


def running(*members: pb.Member, cluster: int = CLUSTER_ID) -> pb.MemberListResponse:
    return pb.MemberListResponse(header=pb.ResponseHeader(cluster_id=cluster), members=members)


def member(number: int, *urls: str, started: bool = True) -> pb.Member:
    clients = [f"http://127.0.0.1:{number}"] if started else []
    return pb.Member(ID=number, name=f"n{number}", peerURLs=urls, clientURLs=clients)


def asking(answers: Mapping[str, pb.MemberListResponse]) -> Ask:
    async def ask(
        url: str, request: pb.MemberListRequest, timeout_s: float
    ) -> pb.MemberListResponse:
        assert timeout_s > 0
        if url not in answers:
            raise ConnectionError(f"no answer from {url}")
        return answers[url]

    return ask


def founded(options: StoreOptions, answers: Mapping[str, pb.MemberListResponse]) -> Founding | None:
    return run(found(options, asking(answers)))


def test_a_new_cluster_is_founded_from_the_flags(tmp_path: Path) -> None:
    options = options_of(tmp_path)
    founding = founded(options, {})
    assert founding == founding_of(options)
    assert founding is not None
    assert founding.member_id == member_id([A], "etcd-cluster")
    assert not (tmp_path / "data").exists()
    open_data_directory(options, founding)
    assert founded(options, {}) is None


def test_others_that_only_begin_too_do_not_matter(tmp_path: Path) -> None:
    options = options_of(tmp_path)
    founding = founding_of(options)
    begun = running(*founding.founders, cluster=founding.cluster_id)
    assert founded(options, {B: begun, C: running(member(1, A), cluster=5)}) == founding


def test_a_member_that_lost_its_data_is_not_founded_again(tmp_path: Path) -> None:
    options = options_of(tmp_path)
    founding = founding_of(options)
    known = running(member(founding.member_id, A), cluster=founding.cluster_id)
    with pytest.raises(ConfigError, match=r"has already been bootstrapped.*member remove"):
        founded(options, {C: known})


def test_joining(tmp_path: Path) -> None:
    options = options_of(tmp_path, initial_cluster_state="existing")
    cluster = running(member(1, B), member(2, A, started=False), member(3, C))
    founding = Founding(2, CLUSTER_ID, peers=tuple(cluster.members))
    assert founded(options, {C: cluster}) == founding
    # One that has not heard of the change yet does not hinder.
    behind = running(member(1, B), member(3, C))
    assert founded(options, {B: behind, C: cluster}) == founding
    # Names of hosts are compared by address.
    named = running(member(1, B), member(2, A.replace("127.0.0.1", "localhost"), started=False),
                    member(3, C))  # fmt: skip
    joined = founded(options, {B: named})
    assert joined is not None
    assert joined.member_id == 2
    # It is reached by those who are known until the log tells more, also after a second start.
    for start in (joined, None):
        directory = open_data_directory(options, start)
        assert directory.bootstrap is None
        assert directory.known[1] == (B,)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, "could not retrieve cluster information from the given URLs"),
        ({B: running(member(1, B))}, "member count is unequal"),
        ({B: running(member(1, B), member(3, C))}, "member count is unequal"),
        (
            {B: running(member(1, B), member(2, "http://127.0.0.1:9"), member(3, C))},
            "no match found for existing member (2,",
        ),
        ({B: running(member(1, B), member(2, A), member(3, C))}, "already been bootstrapped"),
        ({B: running(member(1, B), member(2, B), member(3, C))}, "(a) is unknown"),
    ],
)
def test_joining_is_refused(
    tmp_path: Path, answers: Mapping[str, pb.MemberListResponse], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        founded(options_of(tmp_path, initial_cluster_state="existing"), answers)
    assert said in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_joining_nobody(tmp_path: Path) -> None:
    alone = options_of(tmp_path, initial_cluster_state="existing", initial_cluster={"a": (A,)})
    with pytest.raises(ConfigError, match="copy what `member add` printed"):
        founded(alone, {})


def test_urls_are_compared_by_address() -> None:
    async def main() -> None:
        assert await same_urls(["http://localhost:1/"], ["http://127.0.0.1:1"])
        assert not await same_urls(["http://localhost:1"], ["http://127.0.0.1:2"])
        assert not await same_urls(["http://localhost:1"], ["https://127.0.0.1:1"])
        assert not await same_urls([A], [A, B])
        assert await same_urls([B, A], [A, B])

    run(main())


# Discovery by DNS.

RECORDS = {
    ("_etcd-server._tcp.x.test", "SRV"): [
        "0 0 23801 a.x.test.",
        "0 0 23802 b.x.test.",
        "10 0 23803 c.x.test.",
    ],
    ("_etcd-server-blue._tcp.x.test", "SRV"): ["0 0 23801 a.x.test."],
    ("a.x.test", "A"): ["127.0.0.1"],
    ("b.x.test", "A"): ["127.0.0.2"],
    ("c.x.test", "AAAA"): ["::1"],
}


def dns_options(folder: Path, **changes: object) -> StoreOptions:
    values = {
        "initial_cluster": {},
        "initial_advertise_peer_urls": ("http://a.x.test:23801",),
        "discovery_srv": "x.test",
    }
    return options_of(folder, **(values | changes))


def by_dns(options: StoreOptions, **server: object) -> dict[str, tuple[str, ...]]:
    async def main() -> dict[str, tuple[str, ...]]:
        async with DnsServer(RECORDS, **server) as dns:  # type: ignore[arg-type]
            return await discover_by_dns(options, dns.resolver())

    return run(main())


def test_members_in_dns(tmp_path: Path) -> None:
    assert by_dns(dns_options(tmp_path)) == {
        "a": ("http://a.x.test:23801",),
        "0": ("http://b.x.test:23802",),
        "1": ("http://c.x.test:23803",),
    }
    by_address = dns_options(tmp_path, initial_advertise_peer_urls=(A,))
    assert by_dns(by_address)["a"] == ("http://a.x.test:23801",)
    assert by_dns(dns_options(tmp_path, discovery_srv_name="blue")) == {
        "a": ("http://a.x.test:23801",)
    }


def test_members_found_by_dns_found_the_same_cluster(tmp_path: Path) -> None:
    foundings = []
    for name, url in (("a", "http://a.x.test:23801"), ("b", "http://b.x.test:23802")):
        options = dns_options(tmp_path / name, name=name, initial_advertise_peer_urls=(url,))
        founding = founding_of(options, by_dns(options), named=False)
        directory = open_data_directory(options, founding)
        foundings.append((founding.cluster_id, directory.bootstrap))
    assert foundings[0] == foundings[1]


@pytest.mark.parametrize(
    ("changes", "server", "said"),
    [
        ({"discovery_srv": "none.test"}, {}, "there are no SRV records _etcd-server-ssl._tcp"),
        ({"initial_advertise_peer_urls": (A.replace("01", "09"),)}, {}, "names no member with the"),
        (
            {"initial_advertise_peer_urls": (A, "http://127.0.0.1:9")},
            {},
            "give --initial-advertise-peer-urls the same",
        ),
        ({}, {"fails": True}, "DNS has no answer for a.x.test"),
    ],
)
def test_dns_that_does_not_help(
    tmp_path: Path, changes: dict[str, object], server: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        by_dns(dns_options(tmp_path, **changes), **server)
    assert said in str(caught.value)


def test_clients_find_endpoints_in_dns() -> None:
    records = {
        ("_etcd-client._tcp.x.test", "SRV"): ["5 0 2379 b.x.test.", "1 0 2379 a.x.test."],
        ("_etcd-client-ssl._tcp.x.test", "SRV"): ["9 0 443 s.x.test."],
    }

    async def main() -> None:
        async with DnsServer(records) as dns:
            assert await discover("x.test", resolver=dns.resolver()) == [
                "https://s.x.test:443",
                "http://a.x.test:2379",
                "http://b.x.test:2379",
            ]
            with pytest.raises(ConfigError, match=r"no SRV records _etcd-client-ssl-blue\._tcp"):
                await discover("x.test", "blue", resolver=dns.resolver())

    run(main())


# Discovery by the registry in a store.


def registry_options(server: StoreServer, folder: Path, name: str, url: str) -> StoreOptions:
    return options_of(
        folder,
        name=name,
        initial_cluster={},
        initial_advertise_peer_urls=(url,),
        discovery_endpoints=(server.endpoint,),
        discovery_token="t",
    )


def test_members_meet_in_a_registry(store_server: StoreServer, tmp_path: Path) -> None:
    a, b, c = (
        registry_options(store_server, tmp_path / name, name, urls[0])
        for name, urls in CLUSTER.items()
    )
    size, members = "/_etcd/registry/t/_config/size", "/_etcd/registry/t/members/"

    async def main() -> None:
        with pytest.raises(ConfigError, match=f"size key not found.*etcdctl put {size} 3"):
            await discover_by_registry(a)
        async with Client([store_server.endpoint]) as client:
            await client.put(size, "many")
            with pytest.raises(ConfigError, match="size key is bad"):
                await discover_by_registry(a)
            await client.put(size, "2")
            async with client.watch(members, prefix=True) as changes:
                await changes.started()
                first = asyncio.create_task(discover_by_registry(a))
                event = (await anext(changes)).events[0].kv
                assert event.key.decode() == f"{members}{member_id([A], 't'):x}"
                assert event.value.decode() == f"a={A}"
            assert not first.done()
            clusters = [await discover_by_registry(b), await first]
            assert clusters == [{"a": (A,), "b": (B,)}] * 2
            with pytest.raises(ConfigError, match="cluster is full"):
                await discover_by_registry(c)
            # One that was cut short after it had entered finds its place again.
            assert await discover_by_registry(a) == clusters[0]
            await client.put(size, "3")
            await client.put(f"{members}1", f"other={A}")
            with pytest.raises(ConfigError, match="have the same URL"):
                await discover_by_registry(a)

    run(main())
    ids = [member_id([url], "t") for url in (A, B)]
    founding = founding_of(a, {"a": (A,), "b": (B,)})
    assert (founding.member_id, founding.cluster_id) == (ids[0], cluster_id(ids))


def test_members_are_asked_over_the_peers_protocol(tmp_path: Path) -> None:
    founding = founding_of(options_of(tmp_path))
    known = running(member(founding.member_id, A), cluster=founding.cluster_id)
    requests: list[bytes] = []

    async def main() -> None:
        transport = PeerTransport(PeerIdentity(founding.cluster_id, 5, "3.6.0"))

        def serve(sender: int, method: int, payload: bytes, done: Done) -> None:
            assert (sender, method) == (0, PeerMethod.MEMBERS)
            requests.append(payload)
            done(known.SerializeToString())

        transport.on_call = serve
        listening = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        await transport.start([listening], [])
        try:
            options = options_of(tmp_path, initial_cluster={"a": (A,), "b": (url,)})
            assert await found(options, peer_ask()) == founding_of(options)
            known.header.cluster_id = founding_of(options).cluster_id
            with pytest.raises(ConfigError, match="already been bootstrapped"):
                await found(options, peer_ask())
        finally:
            await transport.stop()

    run(main())
    assert [pb.MemberListRequest.FromString(r).linearizable for r in requests] == [False] * 2


def test_the_way_to_the_registry_follows_its_flags() -> None:
    words = ["--discovery-endpoints=http://127.0.0.1:1", "--discovery-token=t"]
    times = ["--discovery-dial-timeout=3s", "--discovery-keepalive-time=20s"]
    options = read_options([*words, *times, "--discovery-keepalive-timeout=4s"], {})

    async def main() -> None:
        async with registry_client(options) as client:
            (endpoint,) = client.pool._endpoints
            assert endpoint._dialing == Dialing(3.0, 20.0, 4.0)
            said = dict(endpoint._dialing.options())
            assert said["grpc.min_reconnect_backoff_ms"] == 3000
            assert said["grpc.keepalive_time_ms"] == 20_000
            assert said["grpc.keepalive_timeout_ms"] == 4000

    run(main())
    # Pings more often than every 5 s would have the connection closed.
    assert dict(Dialing(keepalive_time_s=2.0).options())["grpc.keepalive_time_ms"] == 7000
