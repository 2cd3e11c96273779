"""One TCP stream between two network namespaces, through each way there is to carry it.

Compared are the bare veth pair, the kernel's vxlan, and the packet path of the udp backend: one
packet for each system call as flannel's, and in batches with offloads. Each is measured twice: with
veth's offloads on, where kernel tunnels hand large packets from end to end unsegmented and no bit
is summed, and NIC-like, where large packets are cut before the veth as before a plain network card.
All share the machine's cores with iperf3, so trust the ratios. Needs root and iperf3; all it makes
vanishes with its process.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from netns import Namespace, set_offloads, why_not
from tunnels import UNDERLAY, UNDERLAY_DEVICE, Tunnel, two_hosts

RATIO_TARGET = 4.0
ROUNDS = 3
SECONDS = 3
OMIT_S = 0.5


@contextlib.contextmanager
def raw(left: Namespace, right: Namespace) -> Iterator[str]:
    """No overlay: what the underlay itself can do."""
    yield f"{UNDERLAY}.2"


@contextlib.contextmanager
def vxlan(left: Namespace, right: Namespace) -> Iterator[str]:
    """The kernel's own tunnel."""
    for number, namespace in enumerate((left, right), start=1):
        namespace.run(
            *f"ip link add vxlan0 mtu 1450 type vxlan id 1 dstport 8472 dev {UNDERLAY_DEVICE}"
            f" local {UNDERLAY}.{number} remote {UNDERLAY}.{3 - number}".split()
        )
        namespace.run("ip", "address", "add", f"10.6.0.{number}/24", "dev", "vxlan0")
        namespace.run("ip", "link", "set", "vxlan0", "up")
    yield "10.6.0.2"


def packet_path(mode: str) -> Callable[[Namespace, Namespace], contextlib.AbstractContextManager]:
    """The packet path in one of its modes."""

    @contextlib.contextmanager
    def case(left: Namespace, right: Namespace) -> Iterator[str]:
        with Tunnel(left, 1, mode=mode) as one, Tunnel(right, 2, mode=mode) as other:
            one.route_to(other)
            other.route_to(one)
            yield other.address

    return case


CASES = {
    "raw veth": raw,
    "kernel vxlan": vxlan,
    "udp, plain": packet_path("plain"),
    "udp, fast": packet_path("fast"),
}


def stream(left: Namespace, right: Namespace, address: str, seconds: int) -> float:
    """Run one TCP stream from left to right; received Gbit/s. 0 seconds is a few megabytes."""
    server = right.start("iperf3", "-s", "-1", "--forceflush", stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if "listening" in line:
                break
        extent = f"-t {seconds} -O {OMIT_S:g}" if seconds else "-n 4M"
        words = f"iperf3 -J -c {address} {extent}".split()
        answer = json.loads(left.run(*words, timeout_s=seconds + 30))
        server.wait(timeout=10)
        return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9
    finally:
        server.kill()
        server.communicate()


def measure(name: str, nic_like: bool, seconds: int) -> float:
    """Measure one case on fresh namespaces."""
    with two_hosts() as (left, right):
        set_offloads([left, right], UNDERLAY_DEVICE, nic_like=nic_like)
        with CASES[name](left, right) as address:
            left.run("ping", "-c", "1", "-W", "5", address)
            return stream(left, right, address, seconds)


def measure_all(rounds: int, seconds: int) -> dict[tuple[str, bool], float]:
    """Measure each case in each round, in turn, so that other load falls on all; medians."""
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(rounds):
        for nic_like in (False, True):
            for name in CASES:
                rate = measure(name, nic_like, seconds)
                found.setdefault((name, nic_like), []).append(rate)
    return {case: statistics.median(rates) for case, rates in found.items()}


def report(rates: dict[tuple[str, bool], float]) -> dict[bool, float]:
    """Print the table; the ratio of fast to plain, by whether NIC-like."""
    print(f"{'Gbit/s, one TCP stream':<24}{'offloads on':>14}{'NIC-like':>14}{'x plain':>14}")
    ratios = {nic: rates["udp, fast", nic] / rates["udp, plain", nic] for nic in (False, True)}
    for name in CASES:
        on, nic = rates[name, False], rates[name, True]
        times = [rates[name, state] / rates["udp, plain", state] for state in (False, True)]
        print(f"{name:<24}{on:>14.2f}{nic:>14.2f}{times[0]:>8.1f}{times[1]:>6.1f}")
    return ratios


def main(smoke: bool = False, arguments: Sequence[str] = ()) -> int:
    """Measure and print; exit code 1 if the fast mode is not 4 times the plain one.

    Args:
        smoke: a moment of each case, and any ratio will do.
        arguments: "--rounds N", "--seconds S".
    """
    reason = why_not()
    if reason:
        print(f"overlay: {reason}", file=sys.stderr)
        return 1
    rounds, seconds = (1, 0) if smoke else (ROUNDS, SECONDS)
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    rounds = int(options.pop("--rounds", rounds))
    seconds = int(options.pop("--seconds", seconds))
    if options:
        print(f"overlay: unknown option {next(iter(options))}", file=sys.stderr)
        return 2
    # Ctrl-C and a plain kill both unwind, so that children are waited for; after any other death
    # the kernel removes namespaces and devices, and kills the children.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parameters = {"rounds": rounds, "seconds": seconds, "mtu": 1500, "cores": os.cpu_count()}
    print("overlay:", ", ".join(f"{name} {value}" for name, value in parameters.items()))
    try:
        rates = measure_all(rounds, seconds)
    except KeyboardInterrupt:
        print("overlay: interrupted; nothing is left behind", file=sys.stderr)
        return 130
    ratios = report(rates)
    held = all(ratio >= RATIO_TARGET for ratio in ratios.values())
    print(f"fast against plain: {ratios[False]:.1f} with offloads on, {ratios[True]:.1f} NIC-like;")
    print(f"the target of {RATIO_TARGET:g} is {'met' if held else 'missed'}")
    gbits = {f"{name}{', nic-like' if nic else ''}": rates[name, nic] for name, nic in rates}
    line = {"bench": "overlay", **parameters, "gbit_s": gbits, "ratio": ratios[False]}
    print(json.dumps({**line, "ratio_nic_like": ratios[True]}))
    return 0 if smoke or held else 1
