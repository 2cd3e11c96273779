"""The pure parts of the packet path against plain models, and against whatever bytes come."""

import dataclasses
import shutil
import socket
import struct
import subprocess
from collections import defaultdict
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import packets
from packets import ACK, CWR, DONT_FRAGMENT, FIN, ICMP, MORE_FRAGMENTS, PSH, SYN, TCP, UDP, Packet
from trimaran.errors import ConfigError, NetworkConfigError
from trimaran.ext import encap

words = st.integers(0, 0xFFFF)
longs = st.integers(0, 0xFFFFFFFF)
options = st.integers(0, 10).flatmap(
    lambda count: st.binary(min_size=count * 4, max_size=count * 4)
)


@st.composite
def filler(draw, longest: int) -> bytes:
    """Bytes of any length up to longest, without drawing each."""
    seed = draw(st.binary(min_size=1, max_size=40))
    return (seed * (longest // len(seed) + 1))[: draw(st.integers(1, longest))]


@st.composite
def transport_packets(draw, longest: int = 3000, segmentable: bool = False) -> Packet:
    """TCP and UDP packets of all kinds; segmentable ones are as a receiver may join."""
    flags = ACK | draw(st.sampled_from([0, PSH, FIN, PSH | FIN]))
    if not segmentable:
        flags |= draw(st.sampled_from([0, CWR, SYN]))
    return Packet(
        protocol=draw(st.sampled_from([TCP, UDP])),
        payload=draw(filler(longest)),
        identification=draw(words),
        fragment=draw(st.sampled_from([0, DONT_FRAGMENT])),
        ttl=draw(st.integers(1, 255)),
        service=draw(st.integers(0, 255)),
        ip_options=b"" if segmentable else draw(options),
        source_port=draw(words),
        destination_port=draw(words),
        sequence=draw(longs),
        acknowledgement=draw(longs),
        flags=flags,
        window=draw(words),
        urgent=draw(words),
        tcp_options=draw(options),
    )


@given(st.binary(max_size=200))
def test_checksum_is_that_of_the_model(data: bytes) -> None:
    assert encap.checksum(data) == packets.checksum(data)
    assert encap.checksum(data * 300) == packets.checksum(data * 300)


def test_checksum_goes_on_from_a_sum() -> None:
    pseudo = packets.pseudo_header("10.5.1.7", "10.5.2.9", UDP, 12)
    body = Packet(protocol=UDP, payload=b"abcd").build()[20:]
    assert encap.checksum(body, 0xFFFF ^ packets.checksum(pseudo)) == 0


@given(transport_packets(), st.integers(1, 1500))
def test_segments_are_those_of_the_model(packet: Packet, gso_size: int) -> None:
    found = encap.segment(packet.build_partial(), packet.offload(gso_size))
    assert found == packet.segments(gso_size)


@given(transport_packets(), st.integers(0, 255))
def test_an_open_checksum_is_finished(packet: Packet, header_length: int) -> None:
    flags, _, _, _, start, field = packet.offload(0)
    offload = (flags, 0, header_length, 0, start, field)
    assert encap.segment(packet.build_partial(), offload) == [packet.build()]
    assert encap.segment(packet.build(), packets.NO_OFFLOAD) == [packet.build()]


@given(transport_packets(longest=60000, segmentable=True), st.integers(600, 9000))
def test_joined_segments_are_the_packet_again(packet: Packet, gso_size: int) -> None:
    segments = encap.segment(packet.build_partial(), packet.offload(gso_size))
    found = encap.coalesce(segments)
    if len(segments) == 1:
        assert found == [(packets.NO_OFFLOAD, segments[0])]
    elif len(segments) <= 128:
        assert found == [(packet.offload(gso_size), packet.build_partial())]


@st.composite
def flows(draw) -> list[Packet]:
    """Packets of few flows, in and out of sequence, so that joining is often tempting."""
    made: list[Packet] = []
    next_sequence: dict[int, int] = defaultdict(int)
    identification: dict[int, int] = defaultdict(int)
    for _ in range(draw(st.integers(1, 40))):
        flow = draw(st.integers(0, 2))
        length = draw(st.sampled_from([0, 1, 99, 100, 100, 100, 100, 101]))
        slip = draw(st.sampled_from([0, 0, 0, 0, 0, 0, 1, -100]))
        made.append(
            Packet(
                protocol=draw(st.sampled_from([TCP, TCP, TCP, UDP])),
                payload=bytes([len(made)]) * length,
                sequence=(next_sequence[flow] + slip) & 0xFFFFFFFF,
                source_port=flow,
                identification=(identification[flow] + (slip & 1)) & 0xFFFF,
                fragment=draw(st.sampled_from([0, 0, 0, DONT_FRAGMENT, MORE_FRAGMENTS, 3])),
                flags=draw(st.sampled_from([ACK] * 6 + [ACK | PSH, ACK | FIN, SYN, ACK | CWR])),
                window=draw(st.sampled_from([1000] * 9 + [1001])),
                service=draw(st.sampled_from([0] * 9 + [1])),
                ttl=draw(st.sampled_from([64] * 9 + [63])),
                tcp_options=draw(st.sampled_from([b""] * 9 + [b"\1\1\1\1"])),
                ip_options=draw(st.sampled_from([b""] * 9 + [b"\1\1\1\1"])),
            )
        )
        next_sequence[flow] += length
        identification[flow] += 1
    return made


def flow_of(packet: bytes) -> tuple[bytes, bytes]:
    start = (packet[0] & 15) * 4
    return packet[9:10] + packet[12:20], packet[start : start + 4]


def without_idle_identification(packet: bytes) -> bytes:
    """Where fragmentation is forbidden the identification means nothing (RFC 6864)."""
    if not int.from_bytes(packet[6:8], "big") & DONT_FRAGMENT:
        return packet
    return packet[:4] + packet[6:10] + packet[12:]


@settings(max_examples=300)
@given(flows(), st.booleans(), st.data())
def test_nothing_is_lost_changed_or_overtaken_by_joining(made, udp: bool, data) -> None:
    sent = [packet.build() for packet in made]
    broken = data.draw(st.integers(0, len(sent) - 1))
    sent[broken] = sent[broken][:-1] + bytes([sent[broken][-1] ^ 1])
    expected = defaultdict(list)
    arrived = defaultdict(list)
    for packet in sent:
        if encap.parse(packet)["verified"]:
            expected[flow_of(packet)].append(without_idle_identification(packet))
    for offload, packet in encap.coalesce(sent, udp=udp):
        for part in encap.segment(packet, offload):
            arrived[flow_of(part)].append(without_idle_identification(part))
    assert arrived == expected


def test_a_broken_checksum_is_not_hidden() -> None:
    segments = Packet(payload=b"a" * 3000).segments(1000)
    segments[1] = segments[1][:-1] + b"b"
    assert encap.coalesce(segments) == [(packets.NO_OFFLOAD, segment) for segment in segments]


def test_packets_of_several_flows_are_joined_each_with_its_own() -> None:
    flows = [Packet(payload=b"a" * 64000, source_port=number, flags=ACK) for number in range(20)]
    segments = [flow.segments(1000) for flow in flows]
    found = encap.coalesce([segment for row in zip(*segments, strict=True) for segment in row])
    assert len(found) <= 64
    assert sum(len(packet) - 40 for _, packet in found) == 20 * 64000


def test_udp_is_joined_only_where_asked() -> None:
    segments = Packet(protocol=UDP, payload=b"a" * 3000).segments(1000)
    assert len(encap.coalesce(segments, udp=True)) == 1
    assert len(encap.coalesce(segments, udp=False)) == 3


MALFORMED = {
    "empty": b"",
    "one byte": b"\x45",
    "half a header": Packet().build()[:10],
    "header longer than the packet": b"\x4f" + Packet().build()[1:40],
    "header shorter than 20": b"\x44" + Packet().build()[1:],
    "length past the end": Packet(payload=b"abc").build()[:-1],
    "bytes behind the end": Packet().build() + b"x",
    "half a TCP header": struct.pack("!BBHHHBBHLL", 0x45, 0, 30, 0, 0, 9, TCP, 0, 1, 2) + b"a" * 10,
    "TCP offset below 5": Packet().build()[:32] + b"\x40" + Packet().build()[33:],
    "TCP offset past the end": Packet().build()[:32] + b"\xf0" + Packet().build()[33:],
    "half a UDP header": struct.pack("!BBHHHBBHLL", 0x45, 0, 24, 0, 0, 9, UDP, 0, 1, 2) + b"a" * 4,
    "UDP length past the end": Packet(protocol=UDP).build()[:24] + b"\0\x09\0\0",
    "UDP length below 8": Packet(protocol=UDP).build()[:24] + b"\0\x07\0\0",
    "fragment past the longest packet": Packet(fragment=0x1FFF, payload=b"a" * 100).build(),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_packets_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="Bad message"):
        encap.parse(MALFORMED[name])
    assert encap.coalesce([MALFORMED[name]]) == []


def test_other_protocols_are_told_apart() -> None:
    with pytest.raises(ValueError, match="not supported"):
        encap.parse(b"\x60" + bytes(39))


def test_fields_of_a_packet() -> None:
    packet = Packet(payload=b"abc", ip_options=b"\1" * 8, tcp_options=b"\1" * 12, ttl=7)
    assert encap.parse(packet.build()) == {
        "source": int(IPv4Address("10.5.1.7")),
        "destination": int(IPv4Address("10.5.2.9")),
        "length": 63,
        "header_length": 28,
        "payload_offset": 60,
        "fragment_offset": 0,
        "protocol": TCP,
        "ttl": 7,
        "more_fragments": 0,
        "verified": True,
    }
    later = dataclasses.replace(packet, fragment=185, protocol=UDP).build()
    assert encap.parse(later)["payload_offset"] == 28


@given(st.binary(max_size=120), st.tuples(*[st.integers(0, 255)] * 2, *[words] * 4))
def test_any_bytes_and_any_offload(data: bytes, offload) -> None:
    whole = b"\x45\0" + struct.pack("!H", len(data) + 4) + data
    for packet in (data, whole):
        try:
            found = encap.segment(packet, offload)
        except ValueError:
            continue
        assert sum(map(len, found)) <= 65535 * 61
        for part in found:
            encap.parse(part)


@given(transport_packets(), st.tuples(*[st.integers(0, 255)] * 2, *[words] * 4), st.data())
def test_packets_with_broken_bytes(packet: Packet, offload, data) -> None:
    damaged = bytearray(packet.build_partial())
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, min(len(damaged), 80) - 1))] = data.draw(
            st.integers(0, 255)
        )
    for chosen in (offload, packet.offload(data.draw(words))):
        try:
            parts = encap.segment(bytes(damaged), chosen)
        except ValueError:
            continue
        for part in parts:
            encap.parse(part)
        encap.coalesce(parts)


@given(transport_packets(), st.integers(1, 255))
def test_a_hop_keeps_the_checksum_right(packet: Packet, ttl: int) -> None:
    before = dataclasses.replace(packet, ttl=ttl)
    after = dataclasses.replace(packet, ttl=ttl - 1)
    # Two checksums mean the same where the header's other words sum to nothing (RFC 1624, 3).
    found = encap.decrement_ttl(before.build())
    assert encap.parse(found)["verified"]
    assert found[:10] + found[12:] == after.build()[:10] + after.build()[12:]


def test_no_time_to_live_is_left_as_it_is() -> None:
    packet = Packet(ttl=0).build()
    assert encap.decrement_ttl(packet) == packet


def icmp(kind: int, payload: bytes = bytes(20)) -> Packet:
    return Packet(protocol=ICMP, payload=bytes([kind, 0, 0, 0]) + payload)


ANSWERED = {
    "TCP": (Packet(payload=b"abcdefgh"), True),
    "UDP with IP options": (Packet(protocol=UDP, payload=b"abc", ip_options=b"\1" * 40), True),
    "short": (Packet(protocol=99, payload=b"abc"), True),
    "first fragment": (Packet(fragment=MORE_FRAGMENTS, payload=b"abc"), True),
    "echo": (icmp(8), True),
    "later fragment": (Packet(fragment=1, payload=b"abc"), False),
    "unreachable": (icmp(3), False),
    "redirect": (icmp(5), False),
    "time exceeded": (icmp(11), False),
    "ICMP without type": (Packet(protocol=ICMP), False),
    "to a group": (Packet(destination="224.0.0.1"), False),
    "to all": (Packet(destination="255.255.255.255"), False),
    "from nobody": (Packet(source="0.0.0.0"), False),
    "from loopback": (Packet(source="127.0.0.1"), False),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_icmp_errors_answer_what_may_be_answered(name: str) -> None:
    packet, answered = ANSWERED[name]
    found = encap.icmp_error(packet.build(), "10.5.1.1", 3, 0)
    assert bool(found) == answered
    if answered:
        quoted = packet.build()[: packet.ip_header_length + 8]
        fields = encap.parse(found)
        assert fields["verified"]
        assert (fields["source"], fields["destination"]) == (
            int(IPv4Address("10.5.1.1")),
            int(IPv4Address(packet.source)),
        )
        assert found[20:22] == b"\x03\0"
        assert found[28:] == quoted
        assert packets.checksum(found[20:]) == 0


def lookup_model(routes: dict[str, tuple[str, int]], address: str) -> tuple[str, int] | None:
    matching = [
        IPv4Network(subnet) for subnet in routes if IPv4Address(address) in IPv4Network(subnet)
    ]
    if not matching:
        return None
    return routes[str(max(matching, key=lambda subnet: subnet.prefixlen))]


subnets = st.sampled_from(
    [f"10.5.{number}.0/24" for number in (0, 1, 2, 255)]
    + ["10.5.0.0/16", "10.5.0.0/23", "10.5.1.128/25", "10.5.1.129/32", "10.6.0.0/24", "0.0.0.0/0"]
)
peers = st.tuples(
    st.sampled_from(["192.0.2.1", "192.0.2.2", "255.255.255.255"]), st.integers(1, 65535)
)


@given(st.lists(st.tuples(st.sampled_from(["set", "delete", "replace"]), subnets, peers)))
def test_routes_are_those_of_the_model(steps) -> None:
    table = encap.Routes("10.5.0.0/16", 24)
    model: dict[str, tuple[str, int]] = {}
    for action, subnet, peer in steps:
        if action == "set":
            table.set(subnet, *peer)
            model[subnet] = peer
        elif action == "replace":
            model = {subnet: peer, "10.5.7.0/24": peer}
            table.replace(model)
        elif subnet in model:
            table.delete(subnet)
            del model[subnet]
        else:
            with pytest.raises(KeyError):
                table.delete(subnet)
        for address in ("10.5.0.0", "10.5.1.1", "10.5.1.129", "10.5.1.200", "10.5.255.255"):
            assert table.lookup(address) == lookup_model(model, address)
        for address in ("10.4.255.255", "10.6.0.0", "0.0.0.0", "255.255.255.255", "10.5.7.1"):
            assert table.lookup(address) == lookup_model(model, address)


@pytest.mark.parametrize(
    ("network", "length", "address"),
    [
        ("0.0.0.0/0", 22, "255.255.252.1"),
        ("10.0.0.0/8", 30, "10.255.255.252"),
        ("10.5.1.0/32", 32, "10.5.1.0"),
    ],
)
def test_networks_of_all_sizes(network: str, length: int, address: str) -> None:
    table = encap.Routes(network, length)
    subnet = str(IPv4Network(f"{address}/{length}", strict=False))
    table.set(subnet, "192.0.2.1", 8285)
    assert table.lookup(address) == ("192.0.2.1", 8285)
    assert table.lookup("9.255.255.255") is None


@pytest.mark.parametrize(
    ("network", "length"),
    [("10.0.0.0/8", 7), ("10.0.0.0/8", 31), ("0.0.0.0/0", 0), ("10.0.0.0/8", 33)],
)
def test_networks_that_do_not_fit_say_what_would(network: str, length: int) -> None:
    with pytest.raises(NetworkConfigError, match="choose from"):
        encap.Routes(network, length)


def test_bad_routes_change_nothing() -> None:
    table = encap.Routes("10.5.0.0/16", 24)
    table.set("10.5.1.0/24", "192.0.2.1", 8285)
    bad = {
        "10.5.1.1/24": ("192.0.2.2", 8285),
        "10.5.1.0/24": ("192.0.2.256", 8285),
        "nonsense": ("192.0.2.2", 8285),
        "10.5.2.0/24": ("192.0.2.2", 0),
    }
    for subnet, (host, port) in bad.items():
        with pytest.raises(NetworkConfigError):
            table.set(subnet, host, port)
        with pytest.raises(NetworkConfigError):
            table.replace({"10.5.3.0/24": ("192.0.2.3", 8285), subnet: (host, port)})
    assert table.lookup("10.5.1.1") == ("192.0.2.1", 8285)
    assert table.lookup("10.5.3.1") is None


def test_odd_prefixes_are_bounded() -> None:
    table = encap.Routes("10.0.0.0/8", 24)
    for number in range(1024):
        table.set(str(IPv4Network((0x0A000000 + number, 32))), "192.0.2.1", 1 + number)
    with pytest.raises(NetworkConfigError, match="No space"):
        table.set("10.1.1.1/32", "192.0.2.1", 1)
    assert table.lookup("10.0.3.255") == ("192.0.2.1", 1024)


def test_what_is_no_tun_device_is_refused() -> None:

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        with pytest.raises(OSError, match="not a TUN device"):
            encap.PacketPath(one.fileno(), one.fileno(), network="10.5.0.0/16", subnet_length=24)
        with pytest.raises(ConfigError, match="use 'fast' or 'plain'"):
            encap.PacketPath(1, 1, network="10.5.0.0/16", subnet_length=24, mode="quick")
    for name in ("", "a/b", "sixteen-byte-dev"):
        with pytest.raises(OSError, match="cannot open TUN device"):
            encap.open_tun(name, 1400)


@pytest.fixture(scope="session")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fuzz loop in C, compiled with the packet path's own files and with sanitizers."""
    root = Path(__file__).resolve().parent.parent
    program = str(tmp_path_factory.mktemp("fuzz") / "encap_fuzz")
    line = ["cc", "-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-pthread"]
    line += ["-fno-sanitize-recover=all", f"-I{root}/ext/include", f"-I{root}/ext/src"]
    sources = [str(path) for path in sorted((root / "ext/src").glob("encap_*.c"))]
    line += [*sources, str(root / "tests/encap_fuzz.c"), "-o", program]
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    if "cannot find -l" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_touched_out_of_bounds(fuzzer: str, seed: int) -> None:
    done = subprocess.run(
        [fuzzer, str(seed), "400"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000
