"""How long a host with many vxlan peers takes to read, compare and repair its kernel state.

The daemon does this on every event, so it bounds how large a network one host can follow. Beside
it: the same tables read by pyroute2. In a namespace of its own; needs root.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import TypeVar

from pyroute2 import IPRoute

from netns import Namespace, why_not
from trimaran.daemons.netlink import Netlink
from trimaran.net.allocation import derive_mac
from trimaran.net.config import parse_config
from trimaran.net.kernel import difference
from trimaran.net.overlay import build_overlay, owner_alias
from trimaran.net.records import own_record
from trimaran.net.underlay import Underlay

PEERS = 1000
ROUNDS = 5
PREFIX = "/bench"
CONFIG = parse_config('{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}')
Value = TypeVar("Value")


def timed(work: Callable[[], Value]) -> tuple[float, Value]:
    """Run work and return the milliseconds it took, and its result."""
    start_s = time.perf_counter()
    result = work()
    return (time.perf_counter() - start_s) * 1000, result


def measure(peers: int, rounds: int) -> dict[str, float | str]:
    """Set up and compare in the current namespace; give milliseconds by what was done."""
    address = IPv4Address("192.0.2.1")
    underlay = Underlay("eth0", 1500, address, address, (address,))
    records = [
        own_record(
            CONFIG.subnet_at(i), address + i, f"h{i}", CONFIG.backend, derive_mac(f"h{i}", 1)
        )
        for i in range(peers + 1)
    ]
    netlink = Netlink()
    build_ms, overlay = timed(
        lambda: build_overlay(CONFIG, records[0], records, underlay, prefix=PREFIX)
    )
    desired = overlay.kernel

    def compare() -> tuple[float, float, int]:
        read_ms, actual = timed(netlink.read)
        compare_ms, steps = timed(
            lambda: difference(desired, actual.kernel, owner_alias(PREFIX), CONFIG.network)
        )
        problems = netlink.apply(steps, lambda link: None)
        assert not problems, problems
        return read_ms, compare_ms, len(steps)

    set_up_ms, (_, _, steps) = timed(compare)
    samples = [compare() for _ in range(rounds)]
    assert [count for _, _, count in samples] == [0] * rounds
    found = netlink.read().kernel.routes
    with IPRoute() as other:
        other_ms, _ = timed(lambda: [*other.get_routes(family=2), *other.get_neighbours(family=2)])
    netlink.close()
    digest = hashlib.sha256(repr(sorted(found, key=lambda route: route.destination)).encode())
    return {
        "entries": steps,
        "build_ms": build_ms,
        "set_up_ms": set_up_ms,
        "read_ms": min(sample[0] for sample in samples),
        "compare_ms": min(sample[1] for sample in samples),
        "pyroute2_read_ms": other_ms,
        "result": digest.hexdigest()[:16],
    }


def main(smoke: bool = False) -> int:
    """Measure and print the figures and one JSON line."""
    peers, rounds = (10, 1) if smoke else (PEERS, ROUNDS)
    reason = why_not()
    if reason:
        print(f"reconcile: skipped, {reason}", file=sys.stderr)
        print(json.dumps({"bench": "reconcile", "skipped": reason}))
        return 0
    print(f"reconcile: {peers} vxlan peers, best of {rounds}, {os.cpu_count()} cores")
    with Namespace() as namespace:
        namespace.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        namespace.run("ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
        namespace.run("ip", "link", "set", "eth0", "up")
        with namespace.entered():
            figures = measure(peers, rounds)
    for name, value in figures.items():
        print(
            f"  {name:<18}{value:>12.2f}"
            if isinstance(value, float)
            else f"  {name:<18}{value!s:>18}"
        )
    rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps({"bench": "reconcile", "peers": peers, "rounds": rounds, **rounded}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
