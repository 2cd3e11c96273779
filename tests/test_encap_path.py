"""The packet path with real TUN devices: two hosts as namespaces, joined by veth."""

import contextlib
import errno
import hashlib
import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import netns
from netns import Namespace, set_offloads
from packets import ICMP, UDP, Packet
from trimaran.ext.encap import PacketPath, checksum, open_tun, parse
from tunnels import NETWORK, PORT, SUBNET_LENGTH, UNDERLAY, UNDERLAY_DEVICE, Tunnel, two_hosts

pytestmark = pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not())

TIMEOUT_S = 20
UDP_SEGMENT = 103
IP_RECVERR = 11
IP_RECVTTL = 12
PAIRS = [("fast", "fast"), ("plain", "plain"), ("fast", "plain"), ("plain", "fast")]


@contextlib.contextmanager
def overlay(
    left_mode: str = "fast", right_mode: str = "fast", *, nic_like: bool = False, **options
) -> Iterator[tuple[Tunnel, Tunnel]]:
    """Two hosts that know each other's subnet."""
    with contextlib.ExitStack() as stack:
        left, right = stack.enter_context(two_hosts())
        set_offloads([left, right], UNDERLAY_DEVICE, nic_like=nic_like)
        one = stack.enter_context(Tunnel(left, 1, mode=left_mode, **options))
        other = stack.enter_context(Tunnel(right, 2, mode=right_mode, **options))
        one.route_to(other)
        other.route_to(one)
        yield one, other


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a counter; there is nothing to be woken by."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


def open_socket(namespace: Namespace, kind: socket.SocketKind, address: str) -> socket.socket:
    with namespace.entered():
        made = socket.socket(socket.AF_INET, kind)
    made.settimeout(TIMEOUT_S)
    made.bind((address, 0))
    return made


def content(length: int) -> bytes:
    """Bytes that repeat nowhere near, so that a lost or doubled piece shows."""
    return hashlib.shake_256(b"overlay").digest(1 << 20)[: length % (1 << 20)] + b"".join(
        hashlib.shake_256(str(number).encode()).digest(1 << 20) for number in range(length >> 20)
    )


def transfer(sender: Tunnel, receiver: Tunnel, data: bytes) -> None:
    """Send data over one TCP connection and compare what arrives."""
    found = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(
            open_socket(receiver.namespace, socket.SOCK_STREAM, receiver.address)
        )
        listener.listen()
        client = stack.enter_context(
            open_socket(sender.namespace, socket.SOCK_STREAM, sender.address)
        )

        def receive() -> None:
            server, _ = listener.accept()
            with server:
                server.settimeout(TIMEOUT_S)
                while piece := server.recv(1 << 20):
                    found.update(piece)

        thread = threading.Thread(target=receive)
        thread.start()
        client.connect(listener.getsockname())
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    assert found.hexdigest() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("nic_like", [False, True], ids=["offloads", "nic-like"])
@pytest.mark.parametrize("modes", PAIRS, ids="-".join)
def test_ping_and_tcp_both_ways(modes: tuple[str, str], nic_like: bool) -> None:
    with overlay(*modes, nic_like=nic_like) as (one, other):
        for near, far in ((one, other), (other, one)):
            near.namespace.run("ping", "-c", "2", "-i", "0.05", "-W", "5", far.address)
            transfer(near, far, content((24 << 20) + 12345))
        for near, far in ((one, other), (other, one)):
            counters = near.path.counters()
            assert counters["sent_bytes"] > 24 << 20
            assert counters["drop_malformed"] == counters["drop_wrong_source"] == 0
            sent, received = counters["sent_packets"], far.path.counters()["received_packets"]
            assert received <= sent
        if modes == ("fast", "fast") and one.offload:
            assert one.path.counters()["segmented_packets"] > 100
            assert other.path.counters()["coalesced_packets"] > 1000


def test_tcp_without_offloads_of_the_tun_device() -> None:
    with overlay(offload=False) as (one, other):
        assert not one.offload
        transfer(one, other, content(10 << 20))
        assert one.path.counters()["segmented_packets"] == 0


def test_plain_mode_on_a_device_with_offloads() -> None:
    with overlay("plain", "fast", offload=True) as (one, other):
        transfer(one, other, content(4 << 20))
        transfer(other, one, content(4 << 20))
        assert one.path.counters()["coalesced_packets"] == 0


@pytest.mark.parametrize("modes", PAIRS, ids="-".join)
def test_udp_of_all_sizes(modes: tuple[str, str]) -> None:
    sizes = [0, 1, 7, 500, 1443, 1444, 1445, 1473, 2000, 9000, 40000, 65507]
    with (
        overlay(*modes) as (one, other),
        open_socket(one.namespace, socket.SOCK_DGRAM, one.address) as near,
        open_socket(other.namespace, socket.SOCK_DGRAM, other.address) as far,
    ):
        for size in sizes:
            data = content(size)
            near.sendto(data, far.getsockname())
            received, source = far.recvfrom(65536)
            assert received == data
            far.sendto(data, source)
            assert near.recv(65536) == data


@pytest.mark.parametrize("nic_like", [False, True], ids=["offloads", "nic-like"])
def test_runs_of_datagrams_keep_their_borders(nic_like: bool) -> None:
    with (
        overlay(nic_like=nic_like) as (one, other),
        open_socket(one.namespace, socket.SOCK_DGRAM, one.address) as near,
        open_socket(other.namespace, socket.SOCK_DGRAM, other.address) as far,
    ):
        data = content(30 * 1000 + 77)
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", 1000))]
        for _ in range(20):
            near.sendmsg([data], control, 0, far.getsockname())
            found = [far.recv(65536) for _ in range(31)]
            assert found == [data[at : at + 1000] for at in range(0, len(data), 1000)]


@pytest.mark.parametrize("mode", ["fast", "plain"])
def test_the_payload_is_the_bare_inner_packet(mode: str) -> None:
    """What flannel's udp backend puts on the wire, spoken here by a peer of a few lines."""
    with (
        overlay(mode, mode) as (one, other),
        open_socket(one.namespace, socket.SOCK_DGRAM, one.address) as near,
    ):
        other.path.stop()
        other.socket.setblocking(True)
        other.socket.settimeout(TIMEOUT_S)
        near.sendto(b"question", ("10.5.2.9", 53))
        wire, sender = other.socket.recvfrom(65536)
        assert sender == (one.underlay, PORT)
        fields = parse(wire)
        assert fields["verified"]
        assert (fields["length"], fields["ttl"]) == (len(wire), 63)
        assert wire[16:20] == socket.inet_aton("10.5.2.9")
        assert wire[28:] == b"question"
        assert checksum(wire[20:], 0xFFFF ^ checksum(wire[12:20] + b"\0\x11" + wire[24:26])) == 0
        answer = inner(b"answer", near.getsockname()[1], source_port=53)
        other.socket.sendto(answer.build(), sender)
        assert near.recvfrom(100) == (b"answer", ("10.5.2.9", 53))


def test_a_killed_benchmark_leaves_no_process() -> None:
    bench = Path(__file__).resolve().parent.parent / "bench" / "main.py"
    line = [sys.executable, str(bench), "overlay", "--rounds", "1"]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        seen: set[Path] = set()

        def iperf_runs() -> bool:
            seen.update(Path(f"/proc/{number}/comm") for number in children.read_text().split())
            return any(read_or_empty(path) == "iperf3" for path in seen)

        until(iperf_runs, "iperf3")
        process.kill()
        process.wait()
        until(lambda: all(read_or_empty(path) != "iperf3" for path in seen), "the end of iperf3")


def read_or_empty(path: Path) -> str:
    """The text of a file of /proc, empty once its process is gone."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_route_that_comes_and_goes_under_traffic() -> None:
    with (
        overlay() as (one, other),
        open_socket(one.namespace, socket.SOCK_DGRAM, one.address) as near,
        open_socket(other.namespace, socket.SOCK_DGRAM, other.address) as far,
    ):
        near.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        near.connect(far.getsockname())
        near.send(b"before")
        assert far.recv(100) == b"before"
        one.path.delete_route(other.subnet)
        near.send(b"lost")
        with pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)):
            near.recv(100)
        assert one.path.counters()["drop_no_route"] == 1
        assert one.path.counters()["icmp_errors"] == 1
        with pytest.raises(KeyError):
            one.path.delete_route(other.subnet)
        one.path.replace_routes({other.subnet: (other.underlay, PORT)})
        near.send(b"after")
        assert far.recv(100) == b"after"


def test_tables_change_while_a_stream_flows() -> None:
    done = threading.Event()
    with overlay() as (one, other):

        def change() -> None:
            for number in itertools.cycle(range(3, 250)):
                if done.is_set():
                    break
                peer = (f"{UNDERLAY}.{number}", PORT)
                routes = {other.subnet: (other.underlay, PORT), f"10.5.{number}.0/24": peer}
                one.path.replace_routes(routes | {f"10.5.{number}.64/26": peer})
                one.path.set_route(f"10.5.{number}.0/25", *peer)
                one.path.delete_route(f"10.5.{number}.64/26")

        thread = threading.Thread(target=change)
        thread.start()
        try:
            transfer(one, other, content(32 << 20))
        finally:
            done.set()
            thread.join()
        assert one.path.counters()["drop_no_route"] == 0


def inner(payload: bytes, port: int, **fields) -> Packet:
    """A UDP packet of a container of host 2 to one of host 1."""
    defaults = {"source": "10.5.2.9", "destination": "10.5.1.0", "protocol": UDP}
    return Packet(**(defaults | fields), payload=payload, destination_port=port)


@pytest.mark.parametrize("mode", ["fast", "plain"])
def test_only_the_owner_of_a_subnet_may_send_from_it(mode: str) -> None:
    with (
        overlay(mode, mode) as (one, other),
        open_socket(one.namespace, socket.SOCK_DGRAM, one.address) as near,
    ):
        port = near.getsockname()[1]
        other.path.stop()
        forged = [
            (other.socket, inner(b"forged", port, source="10.5.1.5")),
            (other.socket, inner(b"forged", port, source="10.5.7.5")),
            (other.socket, inner(b"forged", port, source="198.51.100.1")),
        ]
        with open_socket(other.namespace, socket.SOCK_DGRAM, other.underlay) as stranger:
            forged.append((stranger, inner(b"forged", port)))
            for sender, packet in forged:
                sender.sendto(packet.build(), (one.underlay, PORT))
        other.socket.sendto(inner(b"true", port).build(), (one.underlay, PORT))
        assert near.recv(100) == b"true"
        counters = one.path.counters()
        assert counters["drop_wrong_source"] == len(forged)
        assert counters["received_packets"] == 1


def test_the_source_check_can_be_switched_off() -> None:
    with (
        overlay(strict_source=False) as (one, other),
        open_socket(one.namespace, socket.SOCK_DGRAM, one.address) as near,
        open_socket(other.namespace, socket.SOCK_DGRAM, other.underlay) as stranger,
    ):
        packet = inner(b"let in", near.getsockname()[1])
        stranger.sendto(packet.build(), (one.underlay, PORT))
        assert near.recv(100) == b"let in"


HOSTILE = [
    b"",
    b"\x45",
    bytes(20),
    b"\x60" + bytes(39),
    b"\xff" * 1400,
    inner(b"abc", 1).build()[:-1],
    inner(b"abc", 1).build() + b"x",
    b"\x4f" + inner(b"abc", 1).build()[1:],
    b"\x41" + inner(b"abc", 1).build()[1:],
    inner(b"a" * 100, 1, fragment=0x1FFF).build(),
    inner(b"abc", 1).build()[:8] + b"\x41" + inner(b"abc", 1).build()[9:],
    inner(b"", 1).build()[:24] + b"\xff\xff\0\0",
]


@pytest.mark.parametrize("mode", ["fast", "plain"])
def test_hostile_datagrams_are_dropped_and_the_path_goes_on(mode: str) -> None:
    with (
        overlay(mode, mode) as (one, other),
        open_socket(one.namespace, socket.SOCK_DGRAM, one.address) as near,
    ):
        port = near.getsockname()[1]
        other.path.stop()
        good = [
            inner(b"options", port, ip_options=b"\1" * 40),
            inner(b"odd", port),
            inner(b"a" * 3000, port),
        ]
        for datagram in HOSTILE:
            other.socket.sendto(datagram, (one.underlay, PORT))
            other.socket.sendto(datagram * 2, (one.underlay, PORT))
        for packet in good:
            other.socket.sendto(packet.build(), (one.underlay, PORT))
            assert near.recv(4000) == packet.payload
        counters = one.path.counters()
        assert counters["received_packets"] == len(good)
        dropped = counters["drop_malformed"] + counters["drop_not_ipv4"]
        assert dropped == 2 * len(HOSTILE)
        assert one.path.error == 0


@pytest.mark.parametrize("mode", ["fast", "plain"])
def test_time_to_live_is_counted_down_and_its_end_told(mode: str) -> None:
    with (
        overlay(mode, mode) as (one, other),
        open_socket(one.namespace, socket.SOCK_DGRAM, one.address) as near,
        open_socket(other.namespace, socket.SOCK_DGRAM, other.address) as far,
    ):
        for ttl, end, source in ((1, one, NETWORK.split("/")[0]), (2, other, other.address)):
            with pytest.raises(RuntimeError) as caught:
                one.namespace.run("ping", "-c1", "-W5", "-t", str(ttl), other.address)
            assert f"From {source}" in str(caught.value)
            assert "Time to live exceeded" in str(caught.value)
            assert end.path.counters()["drop_ttl_expired"] == 1
        far.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        near.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
        near.sendto(b"hop", far.getsockname())
        _, control, _, _ = far.recvmsg(100, 100)
        assert control[0][2] == struct.pack("i", 62)


def test_no_more_icmp_errors_than_the_limit() -> None:
    with (
        overlay() as (one, _),
        open_socket(one.namespace, socket.SOCK_DGRAM, one.address) as near,
    ):
        start = time.monotonic()
        # No more than the device's queue holds, or the kernel drops some first.
        for _ in range(400):
            near.sendto(b"x", ("10.5.77.1", 9))
        until(lambda: one.path.counters()["drop_no_route"] == 400, "the drops")
        elapsed_s = time.monotonic() - start
        assert 0 < one.path.counters()["icmp_errors"] <= 51 + 100 * elapsed_s


def test_mtu_of_the_device_holds() -> None:
    with overlay() as (one, other):
        one.namespace.run("ping", "-c1", "-W5", "-M", "do", "-s", "1444", other.address)
        with pytest.raises(RuntimeError, match="mtu"):
            one.namespace.run("ping", "-c1", "-W5", "-M", "do", "-s", "1445", other.address)
        one.namespace.run("ping", "-c1", "-W5", "-M", "dont", "-s", "8000", other.address)


def test_a_device_larger_than_the_way_still_carries() -> None:
    """The kernel refuses segments longer than the way's MTU; they go singly, in fragments."""
    with overlay(mtu=4000) as (one, other):
        transfer(one, other, content(4 << 20))
        counters = one.path.counters()
        assert counters["segment_offload_failed"] > 0
        assert counters["drop_send_failed"] == 0


def test_stop_and_start_again() -> None:
    with overlay() as (one, other):
        with pytest.raises(OSError, match="cannot start"):
            one.path.start()
        for _ in range(3):
            one.path.stop()
            one.path.stop()
            one.path.start()
            one.namespace.run("ping", "-c1", "-W5", other.address)


def test_a_deleted_device_ends_the_path_and_says_so() -> None:
    with two_hosts() as (left, _), left.entered():
        tun_fd, name, _ = open_tun("gone%d", 1400)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind((f"{UNDERLAY}.1", 0))
            path = PacketPath(tun_fd, udp.fileno(), network=NETWORK, subnet_length=SUBNET_LENGTH)
            path.start()
            left.run("ip", "link", "set", name, "up")
            left.run("ip", "link", "delete", name)
            until(lambda: path.error != 0, "the end of the path")
            with pytest.raises(OSError, match="open it again"):
                path.stop()


def test_a_device_in_use_is_refused() -> None:
    with two_hosts() as (left, _), left.entered():
        open_tun("twice0", 1400)
        with pytest.raises(OSError, match="another process holds the device"):
            open_tun("twice0", 1400)


def test_no_route_for_icmp_errors_stays_unanswered() -> None:
    with overlay() as (one, _), one.namespace.entered():
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for kind in (3, 11):
                payload = bytes([kind, 1, *bytes(6)]) + Packet().build()[:28]
                packet = Packet(one.address, "10.5.9.9", ICMP, payload)
                raw.sendto(packet.build(), (packet.destination, 0))
        until(lambda: one.path.counters()["drop_no_route"] == 2, "the drops")
        assert one.path.counters()["icmp_errors"] == 0
