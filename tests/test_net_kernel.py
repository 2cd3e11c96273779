"""Desired kernel state and the steps towards it, from any state the kernel may be in."""

import errno
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from net_model import KernelModel
from trimaran.errors import ConfigError
from trimaran.net import rtnetlink
from trimaran.net.allocation import derive_mac
from trimaran.net.config import NetworkConfig, parse_config
from trimaran.net.kernel import (
    ROUTE_PROTOCOL,
    Add,
    Address,
    ChangeLink,
    Conflict,
    CreateLink,
    Delete,
    DeleteLink,
    Entry,
    Forwarding,
    KernelState,
    Link,
    Neighbour,
    Route,
    Step,
    VxlanParameters,
    difference,
    entry_key,
)
from trimaran.net.overlay import build_overlay, owner_alias
from trimaran.net.records import SubnetRecord, own_record
from trimaran.net.underlay import DefaultRoute, Interface, Underlay, choose_underlay

OWNER = owner_alias("/t")
NETWORK = IPv4Network("10.3.0.0/16")
UNDERLAY = Underlay(
    "eth0",
    1500,
    IPv4Address("192.0.2.1"),
    IPv4Address("192.0.2.1"),
    (IPv4Address("192.0.2.1"),),
    (IPv4Network("192.0.2.0/24"),),
)


def config(kind: str = "vxlan", **options: Any) -> NetworkConfig:
    import json

    return parse_config(json.dumps({"Network": str(NETWORK), "Backend": {"Type": kind, **options}}))


def record(number: int, network: NetworkConfig, address: str = "") -> SubnetRecord:
    return own_record(
        IPv4Network(f"10.3.{number}.0/24"),
        IPv4Address(address or f"192.0.2.{number}"),
        f"h{number}",
        network.backend,
        derive_mac(f"h{number}", 1),
    )


def desired_state(peers: set[int], **options: Any) -> KernelState:
    network = config(**options)
    records = [record(number, network) for number in sorted(peers | {1})]
    return build_overlay(network, records[0], records, UNDERLAY, prefix="/t").kernel


def small(items: Any) -> Any:
    return st.frozensets(items, max_size=4)


LINK_NAMES = st.sampled_from(["flannel.1", "flannel0", "flannel.7", "eth0", "br0"])
MACS = st.sampled_from([derive_mac(f"h{number}", 1) for number in range(1, 5)])
HOSTS = st.integers(0, 5).map(lambda i: IPv4Address(f"192.0.2.{i}"))
BASES = st.integers(0, 6).map(lambda i: IPv4Address(f"10.3.{i}.0"))
VXLAN = st.builds(
    VxlanParameters,
    vni=st.sampled_from([1, 7]),
    port=st.sampled_from([8472, 4789]),
    local=st.sampled_from([None, IPv4Address("192.0.2.1")]),
    underlay=st.sampled_from(["eth0", ""]),
    learning=st.booleans(),
    other_options=st.booleans(),
)


@st.composite
def kernel_states(draw: Any) -> KernelState:
    """Any state with an eth0 of the host, and leftovers of ours, of flannel and of operators."""
    links = {"eth0": Link("eth0", "", 1500, "02:00:00:00:00:01")}
    for name in draw(st.sets(LINK_NAMES)) - {"eth0"}:
        kind = "bridge" if name == "br0" else "tun" if name == "flannel0" else "vxlan"
        links[name] = Link(
            name,
            kind,
            draw(st.sampled_from([1450, 1472, 9000])),
            "" if kind == "tun" else draw(MACS),
            draw(st.booleans()),
            "" if kind == "bridge" else draw(st.sampled_from(["", OWNER])),
            draw(VXLAN) if kind == "vxlan" else None,
        )
    names = st.sampled_from(sorted(links))
    entries = {
        "addresses": st.builds(Address, names, BASES, st.just(32)),
        "neighbours": st.builds(Neighbour, names, BASES, MACS),
        "forwardings": st.builds(Forwarding, names, MACS, HOSTS),
        "routes": st.builds(
            Route,
            BASES.map(lambda address: IPv4Network(f"{address}/24")) | st.just(NETWORK),
            names,
            st.none() | BASES,
            st.booleans(),
            st.just(ROUTE_PROTOCOL) | st.just(3),
            st.sampled_from([0, 50]),
        ),
    }
    tables: dict[str, frozenset[Any]] = {}
    for table, strategy in entries.items():
        drawn = draw(small(strategy))
        tables[table] = frozenset({entry_key(entry): entry for entry in drawn}.values())
    return KernelState(links, **tables)


def foreign(state: KernelState, wanted: KernelState) -> set[Entry]:
    """What no step may touch."""
    ours = {name for name, link in state.links.items() if link.alias == OWNER} | set(wanted.links)
    entries = {*state.addresses, *state.neighbours, *state.forwardings, *state.routes}
    return {
        entry
        for entry in entries
        if entry.link not in ours
        and not (isinstance(entry, Route) and entry.protocol == ROUTE_PROTOCOL)
    }


@settings(max_examples=150, deadline=None)
@given(
    actual=kernel_states(),
    peers=st.sets(st.integers(2, 6)),
    options=st.sampled_from(
        [{"kind": "vxlan"}, {"kind": "udp"}, {"kind": "alloc"}, {"VNI": 7, "DirectRouting": True}]
    ),
)
def test_any_state_converges_and_foreign_things_stay(
    actual: KernelState, peers: set[int], options: dict[str, Any]
) -> None:
    wanted = desired_state(peers, **options)
    clash = {entry_key(entry) for entry in foreign(actual, wanted)}
    wanted = replace(
        wanted, routes=frozenset(e for e in wanted.routes if entry_key(e) not in clash)
    )
    kept = foreign(actual, wanted)
    model = KernelModel(actual)
    for step in difference(wanted, model.state(), OWNER, NETWORK):
        model.apply(step)
    # A changed hardware address drops neighbours, which the next round mends; nothing else waits.
    for step in difference(wanted, model.state(), OWNER, NETWORK):
        assert isinstance(step, Add)
        assert isinstance(step.entry, Neighbour)
        model.apply(step)
    assert difference(wanted, model.state(), OWNER, NETWORK) == []
    end = model.state()
    assert kept <= model.entries
    assert {name: end.links[name] for name in wanted.links} == wanted.links
    assert wanted.routes <= end.routes
    assert wanted.forwardings <= end.forwardings
    assert wanted.neighbours <= end.neighbours
    stale = {route for route in end.routes if route.protocol == ROUTE_PROTOCOL} - wanted.routes
    assert not stale
    assert {name for name, link in end.links.items() if link.alias == OWNER} == set(wanted.links)


def test_a_peer_that_moves_is_replaced_without_a_gap() -> None:
    network = config()
    before = [record(1, network), record(2, network)]
    after = [before[0], replace(before[1], public_ip=IPv4Address("192.0.2.77"))]
    states = [
        build_overlay(network, items[0], items, UNDERLAY, prefix="/t").kernel
        for items in (before, after)
    ]
    steps = difference(states[1], states[0], OWNER, NETWORK)
    moved = Forwarding("flannel.1", derive_mac("h2", 1), IPv4Address("192.0.2.77"))
    assert steps == [Add(moved, replace=True)]


@pytest.mark.parametrize(
    ("link", "text"),
    [
        (Link("flannel.1", "bridge", 1500), "bridge device"),
        (Link("flannel.1", "vxlan", 1450, alias="trimaran /other"), "belongs to"),
    ],
)
def test_a_foreign_device_is_in_the_way(link: Link, text: str) -> None:
    steps = difference(desired_state({2}), KernelState({link.name: link}), OWNER, NETWORK)
    assert len(steps) == 1
    assert isinstance(steps[0], Conflict)
    assert text in steps[0].text


UNUSABLE = [
    ({"subnet": IPv4Network("10.9.1.0/24")}, "outside"),
    ({"subnet": IPv4Network("10.3.1.0/25")}, "overlaps"),
    ({"public_ip": IPv4Address("192.0.2.1")}, "public address"),
    ({"backend_type": "host-gw"}, "backend is host-gw"),
    ({"backend_type": ""}, "not given"),
    ({"backend_data": (("VNI", 9), ("VtepMAC", derive_mac("h2", 1)))}, "VNI is 9"),
    ({"backend_data": (("VNI", 1),)}, "VtepMAC"),
    ({"backend_data": (("VtepMAC", derive_mac("h1", 1)),)}, "machine id"),
]


@pytest.mark.parametrize(("change", "reason"), UNUSABLE)
def test_unusable_records_are_named_with_a_reason(change: dict[str, Any], reason: str) -> None:
    network = config()
    own, peer = record(1, network), replace(record(2, network), **change)
    overlay = build_overlay(network, own, [own, peer], UNDERLAY, prefix="/t")
    assert not overlay.peers
    assert reason in overlay.ignored[peer.subnet]
    assert not overlay.kernel.routes


def test_flannels_old_vxlan_records_without_vni_are_used() -> None:
    network = config()
    peer = replace(record(2, network), backend_data=(("VtepMAC", "9A:3B:41:F2:6E:01"),))
    overlay = build_overlay(network, record(1, network), [peer], UNDERLAY, prefix="/t")
    assert overlay.kernel.forwardings == {
        Forwarding("flannel.1", "9a:3b:41:f2:6e:01", IPv4Address("192.0.2.2"))
    }


@pytest.mark.parametrize(
    ("kind", "options", "mtu", "device"),
    [
        ("vxlan", {}, 1450, "flannel.1"),
        ("vxlan", {"MTU": 9000, "VNI": 5}, 8950, "flannel.5"),
        ("udp", {}, 1472, "flannel0"),
        ("alloc", {}, 1500, ""),
    ],
)
def test_mtu_and_device(kind: str, options: dict[str, Any], mtu: int, device: str) -> None:
    network = config(kind, **options)
    own = record(1, network)
    overlay = build_overlay(network, own, [own], UNDERLAY, prefix="/t")
    assert (overlay.mtu, overlay.device) == (mtu, device)


def test_direct_routing_skips_the_tunnel_on_the_same_link() -> None:
    network = config(DirectRouting=True)
    near, far = record(2, network), record(3, network, "198.51.100.3")
    overlay = build_overlay(network, record(1, network), [near, far], UNDERLAY, prefix="/t")
    routes = {str(route.destination): route.link for route in overlay.kernel.routes}
    assert routes == {"10.3.2.0/24": "eth0", "10.3.3.0/24": "flannel.1"}


INTERFACES = (
    Interface(1, "lo", 65536, True, (IPv4Interface("127.0.0.1/8"),)),
    Interface(2, "eth0", 1500, True, tuple(map(IPv4Interface, ("169.254.1.1/16", "192.0.2.1/24")))),
    Interface(3, "eth1", 9000, True, (IPv4Interface("198.51.100.1/24"),)),
    Interface(4, "eth2", 1500, False, ()),
    Interface(5, "eth3", 1500, True, ()),
)
DEFAULTS = (DefaultRoute("eth1", 100), DefaultRoute("eth0", 10))


@pytest.mark.parametrize(
    ("iface", "public_ip", "expected"),
    [
        ("", "", ("eth0", "192.0.2.1", "192.0.2.1")),
        ("eth1", "", ("eth1", "198.51.100.1", "198.51.100.1")),
        ("198.51.100.1", "", ("eth1", "198.51.100.1", "198.51.100.1")),
        ("", "198.51.100.1", ("eth1", "198.51.100.1", "198.51.100.1")),
        ("eth0", "203.0.113.5", ("eth0", "192.0.2.1", "203.0.113.5")),
        ("eth0", "169.254.1.1", ("eth0", "169.254.1.1", "169.254.1.1")),
        ("eth9", "", "there are: eth0"),
        ("", "203.0.113.5", "--iface as well"),
        ("eth2", "", "down"),
        ("eth3", "", "no IPv4 address"),
    ],
)
def test_the_underlay_is_chosen_as_flannel_does(
    iface: str, public_ip: str, expected: tuple[str, str, str] | str
) -> None:
    address = IPv4Address(public_ip) if public_ip else None

    def choose() -> Underlay:
        return choose_underlay(INTERFACES, DEFAULTS, iface=iface, public_ip=address)

    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            choose()
        return
    found = choose()
    assert (found.name, str(found.address), str(found.public_ip)) == expected


def test_no_default_route_asks_for_an_interface() -> None:
    with pytest.raises(ConfigError, match="give --iface, one of: eth0, eth1"):
        choose_underlay(INTERFACES, ())


def rebuild(kind: int, body: bytes) -> Any:
    """Decode with pyroute2, as an independent reader of the same format."""
    from pyroute2.netlink.rtnl import marshal

    reader = marshal.MarshalRtnl()
    data = rtnetlink.message(kind, 0, 7, body)
    (decoded,) = list(reader.parse(data))
    return decoded


INDEXES = {"flannel.1": 9, "eth0": 2}


def test_messages_read_the_same_elsewhere() -> None:
    link = desired_state({2}).links["flannel.1"]
    kind, _, body = rtnetlink.encode_create_link(link, INDEXES)
    decoded = rebuild(kind, body)
    info = decoded.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA")
    assert decoded.get_attr("IFLA_IFNAME") == "flannel.1"
    assert decoded.get_attr("IFLA_ADDRESS") == link.mac
    assert info.get_attr("IFLA_INFO_KIND") == "vxlan"
    assert data.get_attr("IFLA_VXLAN_ID") == 1
    assert data.get_attr("IFLA_VXLAN_PORT") == 8472
    assert data.get_attr("IFLA_VXLAN_LOCAL") == "192.0.2.1"
    assert data.get_attr("IFLA_VXLAN_LINK") == 2
    route = Route(
        IPv4Network("10.3.2.0/24"), "flannel.1", IPv4Address("10.3.2.0"), onlink=True, metric=5
    )
    kind, _, body = rtnetlink.encode_add(route, INDEXES, replace=False)
    decoded = rebuild(kind, body)
    assert (decoded["dst_len"], decoded["proto"], decoded["flags"]) == (24, 84, 4)
    assert decoded.get_attr("RTA_DST") == decoded.get_attr("RTA_GATEWAY") == "10.3.2.0"
    assert decoded.get_attr("RTA_OIF") == 9
    assert rtnetlink.decode_route(body, {9: "flannel.1"}) == route


@given(
    st.builds(Neighbour, st.just("flannel.1"), st.ip_addresses(v=4), MACS)
    | st.builds(Forwarding, st.just("flannel.1"), MACS, st.ip_addresses(v=4))
)
def test_neighbours_survive_a_round_trip(entry: Neighbour | Forwarding) -> None:
    _, _, body = rtnetlink.encode_add(entry, INDEXES, replace=True)
    assert rtnetlink.decode_neighbour(body, {9: "flannel.1"}) == entry


@given(st.builds(Address, st.just("eth0"), st.ip_addresses(v=4), st.integers(0, 32)))
def test_addresses_survive_a_round_trip(entry: Address) -> None:
    _, _, body = rtnetlink.encode_add(entry, INDEXES, replace=True)
    decoded = rtnetlink.decode_address(body)
    assert decoded == (2, IPv4Interface(f"{entry.address}/{entry.prefix_length}"))


@pytest.mark.parametrize(
    ("step", "code", "advice"),
    [
        (CreateLink(Link("flannel.1", "vxlan", 1450)), errno.EOPNOTSUPP, "module vxlan"),
        (CreateLink(Link("flannel.1", "vxlan", 1450)), errno.EEXIST, "choose another VNI"),
        (Add(Route(NETWORK, "flannel.1")), errno.EEXIST, "ip route show 10.3.0.0/16"),
        (Delete(Route(NETWORK, "flannel.1")), errno.EPERM, "remove route 10.3.0.0/16"),
    ],
)
def test_failures_say_what_to_do(step: Step, code: int, advice: str) -> None:
    from trimaran.daemons.netlink import explain

    assert advice in explain(step, code)


def test_steps_have_a_description() -> None:
    from trimaran.daemons.netlink import describe

    link = Link("flannel.1", "vxlan", 1450)
    entry = Route(NETWORK, "flannel.1")
    steps = [CreateLink(link), ChangeLink(link), DeleteLink("x"), Add(entry), Delete(entry)]
    assert len({describe(step) for step in steps}) == len(steps)
