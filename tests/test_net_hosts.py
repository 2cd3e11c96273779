"""The overlay on real kernels: namespaces as hosts, netd in each, a real store of each kind."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_server import StoreServer
from net_site import PREFIX, NetHost, NetSite, eventually, make_site

# Where the store's kind makes no difference, one is enough.
ONE_KIND = pytest.mark.parametrize("store_server", ["etcd"], indirect=True)


@pytest.fixture
def net_site(tmp_path: Path, store_endpoint: str) -> Iterator[NetSite]:
    """A bridge and a store, without hosts yet."""
    yield from make_site(tmp_path, store_endpoint)


def started(site: NetSite, count: int, backend: str = "vxlan", **more: Any) -> list[NetHost]:
    """Start hosts on a configured network and wait until each knows all others."""
    site.configure(backend, **more)
    hosts = [host.start() for host in site.add(count)]
    for host in hosts:
        host.wait_peers(count - 1)
    return hosts


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
def test_packets_cross_the_overlay(net_site: NetSite, backend: str) -> None:
    first, second, third = net_site.add(3)
    first.start()
    first.wait("waiting", lambda status: "configuration" in status["detail"])
    net_site.configure(backend)
    for host in (second, third):
        host.start()
    for host in (first, second, third):
        host.wait_peers(2)
    assert first.ping(second)
    assert third.ping(first)
    mtu = first.status()["mtu"]
    assert mtu == {"vxlan": 1450, "udp": 1472}[backend]
    assert first.ping(second, size=mtu - 28)
    assert first.transfer(second, 200_000) == 200_000

    environment = (first.folder / "subnet.env").read_text()
    base = first.overlay_address.rsplit(".", 1)[0]
    assert environment.splitlines() == [
        "FLANNEL_NETWORK=10.77.0.0/16",
        f"FLANNEL_SUBNET={base}.1/24",
        f"FLANNEL_MTU={mtu}",
        "FLANNEL_IPMASQ=false",
    ]
    check_record(net_site, first, backend)
    # A host that is gone takes its way with it.
    third.kill(signal.SIGTERM)
    net_site.etcdctl("del", f"{PREFIX}/subnets/{third.overlay_key}")
    first.wait_peers(1)
    if backend == "vxlan":
        assert set(first.routes()) == {second.subnet}
        assert len(first.ip("neighbor", "show", "dev", "flannel.1", "nud", "permanent")) == 1


def check_record(site: NetSite, host: NetHost, backend: str) -> None:
    """The record is flannel's, field by field and in order, with our owner after it."""
    raw = site.etcdctl("get", "--print-value-only", f"{PREFIX}/subnets/{host.overlay_key}").strip()
    expected: dict[str, Any] = {"PublicIP": host.address, "PublicIPv6": None}
    if backend == "vxlan":
        mac = host.ip("link", "show", "flannel.1")[0]["address"]
        expected |= {"BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": mac}}
    expected["HostID"] = f"id-{host.name}"
    assert raw == json.dumps(expected, separators=(",", ":"))


def test_a_flannel_host_is_a_peer(net_site: NetSite) -> None:
    (host,) = started(net_site, 1)
    record = (
        '{"PublicIP":"192.0.2.99","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"9a:3b:41:f2:6e:01"}}'
    )
    net_site.etcdctl("put", f"{PREFIX}/subnets/10.77.9.0-24", record)
    net_site.etcdctl("put", f"{PREFIX}/subnets/10.77.8.0-24", "{}")
    host.wait("degraded", lambda status: "10.77.8.0-24" in str(status["problems"]))
    net_site.etcdctl("del", f"{PREFIX}/subnets/10.77.8.0-24")
    host.wait_peers(1)
    route = host.routes()["10.77.9.0/24"]
    assert (route["gateway"], route["dev"], route["flags"]) == (
        "10.77.9.0",
        "flannel.1",
        ["onlink"],
    )
    fdb = host.run("bridge", "fdb", "show", "dev", "flannel.1")
    assert "9a:3b:41:f2:6e:01 dst 192.0.2.99 self permanent" in fdb
    moved = record.replace("192.0.2.99", "192.0.2.98").replace("6e:01", "6e:02")
    net_site.etcdctl("put", f"{PREFIX}/subnets/10.77.9.0-24", moved)
    eventually(
        lambda: (
            host.run("bridge", "fdb", "show", "dev", "flannel.1").split()[:3]
            == ["9a:3b:41:f2:6e:02", "dst", "192.0.2.98"]
        ),
        "the peer moved",
    )


@ONE_KIND
def test_the_kernel_is_repaired_and_stale_state_removed(net_site: NetSite) -> None:
    first, second = started(net_site, 2)
    subnet = first.status()["subnet"]
    index = first.ip("link", "show", "flannel.1")[0]["ifindex"]
    assert first.kill(signal.SIGKILL) < 0
    assert first.ping(second)
    # While the daemon is away: leftovers of former peers, and a peer's route lost.
    onlink = ("via", "10.77.200.0", "dev", "flannel.1", "onlink")
    first.run("ip", "route", "add", "10.77.200.0/24", *onlink, "proto", "84")
    first.run("ip", "route", "add", "10.77.201.0/24", *onlink)
    first.run("ip", "route", "add", "10.77.202.0/24", "dev", "eth0", "proto", "84")
    first.run("ip", "route", "add", "10.99.0.0/24", "dev", "eth0", "proto", "84")
    first.run(
        "ip",
        "neighbor",
        "add",
        "10.77.200.0",
        "lladdr",
        "02:00:00:00:00:07",
        "dev",
        "flannel.1",
        "nud",
        "permanent",
    )
    first.run("ip", "route", "del", second.subnet)
    first.start()
    first.wait_peers(1)
    assert first.status()["subnet"] == subnet
    assert first.ip("link", "show", "flannel.1")[0]["ifindex"] == index
    # Outside the network nothing is ours to remove.
    assert set(first.routes()) == {second.subnet, "10.99.0.0/24"}
    assert not first.ip("route", "show", "10.77.201.0/24")
    assert len(first.ip("neighbor", "show", "dev", "flannel.1", "nud", "permanent")) == 1
    assert first.ping(second)

    for damage in (
        ("link", "del", "flannel.1"),
        ("link", "set", "flannel.1", "down"),
        ("route", "flush", "proto", "84"),
        ("address", "flush", "dev", "flannel.1"),
        ("neighbor", "flush", "dev", "flannel.1", "nud", "permanent"),
        ("link", "set", "flannel.1", "address", "02:00:00:00:00:09"),
    ):
        first.run("ip", *damage)
        eventually(lambda: first.ping(second) and second.ping(first), " ".join(damage))
    # The underlay's MTU and address may change under a running daemon.
    first.run("ip", "link", "set", "eth0", "mtu", "1400")
    first.wait(check=lambda status: status["mtu"] == 1350)
    first.run("ip", "address", "del", "192.0.2.1/24", "dev", "eth0")
    first.run("ip", "address", "add", "192.0.2.101/24", "dev", "eth0")
    first.run("ip", "route", "replace", "default", "dev", "eth0")
    first.wait(check=lambda status: status["public_ip"] == "192.0.2.101")
    eventually(lambda: first.ping(second), "a new public address")
    assert first.status()["subnet"] == subnet
    # What belongs to someone else is reported, not removed.
    first.run("ip", "route", "add", "10.77.210.0/24", "dev", "eth0")
    record = '{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VtepMAC":"%s"}}'
    net_site.etcdctl("put", f"{PREFIX}/subnets/10.77.210.0-24", record % "02:00:00:00:00:0a")
    first.wait("degraded", lambda status: "someone else" in str(status["problems"]))
    first.run("ip", "route", "del", "10.77.210.0/24", "dev", "eth0")
    first.wait_peers(2)


def test_a_lost_lease_is_taken_again(net_site: NetSite) -> None:
    first, second = started(net_site, 2)
    subnet = first.status()["subnet"]
    # The operator deletes the record: the same subnet comes back, and the daemon stays.
    net_site.etcdctl("del", f"{PREFIX}/subnets/{first.overlay_key}")
    eventually(lambda: first.overlay_key in net_site.records(), "the record is back")
    # The lease itself is revoked.
    net_site.etcdctl("lease", "revoke", first.wait()["lease"])
    eventually(lambda: first.overlay_key in net_site.records(), "the record is back")
    second.wait_peers(1)
    assert first.status()["subnet"] == subnet
    # Cut off beyond its lease, and the subnet given to another meanwhile: never overwritten.
    first.kill()
    foreign = '{"PublicIP":"192.0.2.66","PublicIPv6":null,"HostID":"other"}'
    net_site.etcdctl("put", f"{PREFIX}/subnets/{first.overlay_key}", foreign)
    old_key = first.overlay_key
    first.start()
    first.wait(check=lambda status: status["subnet"] != subnet)
    assert net_site.records()[old_key]["HostID"] == "other"
    # A record without lease is the operator's reservation, and stays one.
    value = net_site.etcdctl("get", "--print-value-only", f"{PREFIX}/subnets/{second.overlay_key}")
    net_site.etcdctl("put", f"{PREFIX}/subnets/{second.overlay_key}", value.strip())
    second.wait(check=lambda status: status["lease"] == "0")


def test_two_hosts_race_for_the_last_subnet(net_site: NetSite) -> None:
    net_site.configure(SubnetMin="10.77.5.0", SubnetMax="10.77.5.0")
    first, second = (host.start() for host in net_site.add(2))
    holder, loser = eventually(
        lambda: next(
            (
                pair
                for pair in ((first, second), (second, first))
                if pair[0].status().get("state") == "running"
                and "all 1 subnets" in str(pair[1].status().get("problems"))
            ),
            None,
        ),
        "one has it, the other says that there is none",
    )
    assert set(net_site.records()) == {"10.77.5.0-24"}
    holder.kill(signal.SIGTERM)
    net_site.etcdctl("del", f"{PREFIX}/subnets/10.77.5.0-24")
    loser.wait(check=lambda status: status["subnet"] == "10.77.5.0/24")


def test_the_store_goes_and_comes_back(net_site: NetSite, store_server: StoreServer) -> None:
    first, second = started(net_site, 2, "udp")
    third = net_site.add(1)[0]
    store_server.kill()
    second.wait("degraded", lambda status: status["store_error"])
    assert first.ping(second)
    # A restart without the store carries packets from what was known.
    first.kill()
    first.start()
    first.wait("degraded", lambda status: status["device"] and status["store_error"])
    assert first.ping(second)
    store_server.start()
    third.start()
    for host in (first, second, third):
        host.wait_peers(2)
    assert third.ping(first)
    # A host that alone is cut off keeps its peers and converges afterwards.
    second.gate.set_open(False)
    third.kill(signal.SIGTERM)
    net_site.etcdctl("del", f"{PREFIX}/subnets/{third.overlay_key}")
    first.wait_peers(1)
    second.wait("degraded", lambda status: status["store_error"])
    assert second.status()["peers"] == 2
    assert second.ping(first)
    second.gate.set_open(True)
    second.wait_peers(1)


def test_a_new_configuration_is_applied_at_once(net_site: NetSite) -> None:
    first, second = started(net_site, 2, "vxlan")
    net_site.etcdctl("put", f"{PREFIX}/config", '{"Network": "10.77.0.0/16", "Backend": 7}')
    first.wait("degraded", lambda status: "last valid one stays" in str(status["problems"]))
    assert first.ping(second)
    net_site.configure("udp", network="10.78.0.0/16", SubnetLen=26)
    for host in (first, second):
        host.wait(
            check=lambda status: (
                status["peers"] == 1
                and status["backend"] == "udp"
                and status["subnet"].startswith("10.78.")
                and status["subnet"].endswith("/26")
            )
        )
    eventually(lambda: first.ping(second), "the new network")
    assert all(link["ifname"] != "flannel.1" for link in first.ip("link", "show"))
    assert set(first.routes()) == {"10.78.0.0/16"}
    assert len(net_site.records()) == 2


@ONE_KIND
def test_two_hosts_of_one_identity_are_told_apart(net_site: NetSite) -> None:
    net_site.configure()
    first, second = net_site.add(2)
    first.start(host_id="twin")
    first.wait()
    second.start(host_id="twin")
    first.wait("degraded", lambda status: "twin" in str(status["problems"]))
    assert set(net_site.records()) == {first.overlay_key}


def test_many_peers_come_and_go(net_site: NetSite) -> None:
    """A burst of records is set up by few comparisons."""
    (host,) = started(net_site, 1)
    keys = [f"10.77.{number}.0-24" for number in range(1, 256)]
    for start in range(0, len(keys), 100):
        operations = "".join(
            f'put {PREFIX}/subnets/{key} "{{\\"PublicIP\\":\\"198.51.100.{index + 1}\\",'
            f'\\"BackendType\\":\\"vxlan\\",\\"BackendData\\":{{\\"VtepMAC\\":'
            f'\\"02:00:00:00:{start:02x}:{index + 1:02x}\\"}}}}"\n'
            for index, key in enumerate(keys[start : start + 100])
            if key != host.overlay_key
        )
        net_site.etcdctl("txn", text=f"\n{operations}\n\n")
    host.wait_peers(254)
    assert len(host.routes()) == 254
    net_site.etcdctl("del", "--prefix", f"{PREFIX}/subnets/")
    host.wait_peers(0)
    eventually(lambda: set(net_site.records()) == {host.overlay_key}, "our own record is back")
    assert not host.routes()


@ONE_KIND
def test_two_networks_on_one_host(net_site: NetSite) -> None:
    """Each daemon keeps to its own devices; two hosts of one public address are reported."""
    first, second = started(net_site, 2, "udp")
    for prefix, network, backend in (
        ("/b", "10.91.0.0/16", {"Type": "udp", "Port": 9000}),
        ("/c", "10.92.0.0/16", {"Type": "vxlan", "VNI": 7}),
    ):
        document = {"Network": network, "Backend": backend}
        net_site.etcdctl("put", f"{prefix}/config", json.dumps(document))
    third, fourth = (first.second(prefix).start("--prefix", prefix) for prefix in ("/b", "/c"))
    third.wait()
    fourth.wait()
    names = {link["ifname"] for link in first.ip("link", "show")}
    assert names == {"lo", "eth0", "flannel0", "flannel9000", "flannel.7"}
    assert first.ping(second)
    record = '{"PublicIP":"192.0.2.1","PublicIPv6":null,"HostID":"copy"}'
    net_site.etcdctl("put", f"{PREFIX}/subnets/10.77.99.0-24", record)
    first.wait("degraded", lambda status: "host copy publishes" in str(status["problems"]))
