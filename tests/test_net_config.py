"""The network's configuration, records and subnet.env: tables, and bytes as flannel writes them."""

import contextlib
import json
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran.errors import NetworkConfigError
from trimaran.net.config import (
    AllocOptions,
    BackendOptions,
    UdpOptions,
    VxlanOptions,
    parse_config,
)
from trimaran.net.environment import format_environment, parse_environment_subnet
from trimaran.net.records import (
    SubnetRecord,
    format_record,
    format_subnet_key,
    own_record,
    parse_record,
    parse_subnet_key,
    valid_mac,
)

RANGES = [
    # Network, further keys -> prefix length, first subnet, last subnet
    ("10.3.0.0/16", {}, 24, "10.3.1.0", "10.3.255.0"),
    ("10.3.7.9/16", {}, 24, "10.3.1.0", "10.3.255.0"),
    ("10.0.0.0/8", {}, 24, "10.0.1.0", "10.255.255.0"),
    ("10.3.0.0/22", {}, 24, "10.3.1.0", "10.3.3.0"),
    ("10.3.0.0/23", {}, 25, "10.3.0.128", "10.3.1.128"),
    ("10.3.0.0/28", {}, 30, "10.3.0.4", "10.3.0.12"),
    ("10.3.0.0/16", {"SubnetLen": 28}, 28, "10.3.0.16", "10.3.255.240"),
    ("10.3.0.0/16", {"subnetlen": 18}, 18, "10.3.64.0", "10.3.192.0"),
    ("10.3.0.0/16", {"SubnetMin": "10.3.5.0", "SubnetMax": "10.3.8.0"}, 24, "10.3.5.0", "10.3.8.0"),
    ("10.3.0.0/16", {"SubnetMin": "10.3.0.0"}, 24, "10.3.0.0", "10.3.255.0"),
    ("10.3.0.0/16", {"SubnetLen": None, "Extra": [1]}, 24, "10.3.1.0", "10.3.255.0"),
]


@pytest.mark.parametrize(("network", "more", "length", "first", "last"), RANGES)
def test_ranges(network: str, more: dict[str, object], length: int, first: str, last: str) -> None:
    config = parse_config(json.dumps({"Network": network, **more}))
    assert config.subnet_length == length
    assert (str(config.subnet_min), str(config.subnet_max)) == (first, last)
    assert config.subnet_at(0) == IPv4Network(f"{first}/{length}")
    assert config.subnet_at(config.subnet_count - 1) == IPv4Network(f"{last}/{length}")
    assert all(config.fits(config.subnet_at(i)) for i in range(min(config.subnet_count, 300)))


BACKENDS: list[tuple[object, BackendOptions]] = [
    (None, UdpOptions()),
    ({"Type": "udp", "Port": 9000}, UdpOptions(9000)),
    ({"Type": "alloc"}, AllocOptions()),
    ({"Type": "vxlan"}, VxlanOptions()),
    ({"TYPE": "VXLAN", "vni": 7, "Port": 0}, VxlanOptions(vni=7)),
    (
        {
            "Type": "vxlan",
            "VNI": 16777215,
            "Port": 4789,
            "MTU": 1400,
            "GBP": True,
            "Learning": True,
            "DirectRouting": True,
        },
        VxlanOptions(16777215, 4789, 1400, True, True, True),
    ),
]


@pytest.mark.parametrize(("backend", "expected"), BACKENDS)
def test_backends(backend: object, expected: BackendOptions) -> None:
    document = {"Network": "10.0.0.0/8", "Backend": backend}
    assert parse_config(json.dumps(document)).backend == expected


BAD = [
    ("{", "not JSON"),
    ("[]", "must be a JSON object"),
    ("{}", "Network is missing"),
    ('{"Network": 7}', "Network must be a string"),
    ('{"Network": "10.0.0.0"}', "prefix length"),
    ('{"Network": "10.0.0.0/33"}', "Network"),
    ('{"Network": "fd00::/48"}', "Network"),
    ('{"Network": "10.0.0.0/29"}', "too small"),
    ('{"Network": "10.0.0.0/16", "SubnetLen": 31}', "at most 30"),
    ('{"Network": "10.0.0.0/16", "SubnetLen": 17}', "at least 18"),
    ('{"Network": "10.0.0.0/16", "SubnetLen": "24"}', "must be a number"),
    ('{"Network": "10.0.0.0/16", "SubnetLen": true}', "must be a number"),
    ('{"Network": "10.0.0.0/16", "SubnetMin": "10.1.0.0"}', "not in Network"),
    ('{"Network": "10.0.0.0/16", "SubnetMax": "10.0.7.1"}', "not the base"),
    ('{"Network": "10.0.0.0/16", "SubnetMin": "10.0.9.0", "SubnetMax": "10.0.8.0"}', "after"),
    ('{"Network": "10.0.0.0/16", "SubnetMin": "x"}', "SubnetMin"),
    ('{"Network": "10.0.0.0/16", "EnableIPv4": false}', "EnableIPv4"),
    ('{"Network": "10.0.0.0/16", "EnableIPv6": true}', "EnableIPv6"),
    ('{"Network": "10.0.0.0/16", "Backend": {"Type": "host-gw"}}', "alloc, udp, vxlan"),
    ('{"Network": "10.0.0.0/16", "Backend": {}}', "alloc, udp, vxlan"),
    ('{"Network": "10.0.0.0/16", "Backend": "vxlan"}', "must be a JSON object"),
    ('{"Network": "10.0.0.0/16", "Backend": {"Type": "vxlan", "VNI": 16777216}}', "VNI"),
    ('{"Network": "10.0.0.0/16", "Backend": {"Type": "vxlan", "MTU": 100}}', "MTU"),
    ('{"Network": "10.0.0.0/16", "Backend": {"Type": "vxlan", "GBP": 1}}', "GBP"),
    ('{"Network": "10.0.0.0/16", "Backend": {"Type": "udp", "Port": 65536}}', "Port"),
]


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_bad_configurations_say_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(NetworkConfigError, match=reason):
        parse_config(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.ip_addresses().map(str),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Network", "SubnetLen", "SubnetMin", "Backend", "Type", "VNI", "PublicIP"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    for parse in (parse_config, lambda value: parse_record("10.3.1.0-24", value)):
        with contextlib.suppress(NetworkConfigError):
            parse(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "config",
        "10.3.1.0",
        "10.3.1.1-24",
        "10.3.1.0-33",
        "x-24",
        "10.3.1.0-24&fd00::1-64",
        "10.3.1.0-24/x",
        "10.3.999.0-24",
    ],
)
def test_bad_keys_are_refused(text: str) -> None:
    with pytest.raises(NetworkConfigError):
        parse_subnet_key(text)


def test_keys_have_flannels_form() -> None:
    subnet, ipv6 = IPv4Network("10.12.13.0/24"), IPv6Network("fd00:12:13::/56")
    assert format_subnet_key(subnet) == "10.12.13.0-24"
    assert format_subnet_key(subnet, ipv6) == "10.12.13.0-24&fd00:12:13::-56"
    assert parse_subnet_key("10.12.13.0-24&fd00:12:13::-56") == (subnet, ipv6)


# Values as flanneld writes them into etcd, by backend.
FLANNEL_RECORDS = {
    "vxlan": b'{"PublicIP":"172.18.0.3","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"9a:3b:41:f2:6e:01"}}',
    "udp": b'{"PublicIP":"172.18.0.3","PublicIPv6":null}',
    "host-gw": b'{"PublicIP":"172.18.0.3","PublicIPv6":null,"BackendType":"host-gw"}',
}


@pytest.mark.parametrize("value", FLANNEL_RECORDS.values(), ids=FLANNEL_RECORDS)
def test_flannels_records_survive_a_round_trip_byte_for_byte(value: bytes) -> None:
    record = parse_record("10.3.7.0-24", value)
    assert record.public_ip == IPv4Address("172.18.0.3")
    assert record.subnet == IPv4Network("10.3.7.0/24")
    assert format_record(record).encode() == value


def test_our_record_is_flannels_with_an_owner() -> None:
    subnet, address = IPv4Network("10.3.7.0/24"), IPv4Address("172.18.0.3")
    ours = own_record(subnet, address, "m1", VxlanOptions(), "9a:3b:41:f2:6e:01")
    theirs = FLANNEL_RECORDS["vxlan"].decode()
    assert format_record(ours) == theirs[:-1] + ',"HostID":"m1"}'
    udp = own_record(subnet, address, "m1", UdpOptions(), "")
    assert format_record(udp) == FLANNEL_RECORDS["udp"].decode()[:-1] + ',"HostID":"m1"}'


@given(
    st.builds(
        SubnetRecord,
        subnet=st.integers(0, 255).map(lambda i: IPv4Network((10 << 24 | i << 8, 24))),
        public_ip=st.ip_addresses(v=4),
        backend_type=st.sampled_from(["", "vxlan", "udp"]),
        backend_data=st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4)).map(
            lambda values: tuple(values.items())
        ),
        host_id=st.text(max_size=5),
        public_ipv6=st.none() | st.ip_addresses(v=6).map(str),
    )
)
def test_records_survive_a_round_trip(record: SubnetRecord) -> None:
    assert parse_record(format_subnet_key(record.subnet), format_record(record).encode()) == record


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("9A:3B:41:F2:6E:01", "9a:3b:41:f2:6e:01"),
        ("01:00:5e:00:00:01", None),
        ("00:00:00:00:00:00", None),
        ("9a:3b:41:f2:6e", None),
        (7, None),
        (None, None),
    ],
)
def test_hardware_addresses(value: object, expected: str | None) -> None:
    assert valid_mac(value) == expected


def test_subnet_env_is_flannels() -> None:
    text = format_environment(IPv4Network("10.3.0.0/16"), IPv4Network("10.3.7.0/24"), 1450)
    assert text == (
        "FLANNEL_NETWORK=10.3.0.0/16\nFLANNEL_SUBNET=10.3.7.1/24\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )
    assert parse_environment_subnet(text) == IPv4Network("10.3.7.0/24")
    assert parse_environment_subnet("FLANNEL_SUBNET=x\n") is None
    assert parse_environment_subnet("") is None
