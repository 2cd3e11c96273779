"""Network namespaces without names: they vanish with the process, however it ends.

Needs root. Used by the benchmarks and by the tests of the packet path.
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


class Namespace:
    """A network namespace held open by a descriptor of this process, its loopback up, no IPv6."""

    def __init__(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.unshare(CLONE_NEWNET), "cannot make a network namespace")
            try:
                self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                _check(_libc.setns(home, CLONE_NEWNET), "cannot go back to the own namespace")
        finally:
            os.close(home)
        self.run("ip", "link", "set", "lo", "up")
        # The kernel shall send nothing of its own into the devices to come.
        self.run("sysctl", "-eqw", "net.ipv6.conf.default.disable_ipv6=1")

    @property
    def path(self) -> str:
        """Where other processes of root find the namespace while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Make sockets and TUN devices in the namespace; only for this thread."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _check(_libc.setns(self.fd, CLONE_NEWNET), "cannot enter the namespace")
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "cannot go back to the own namespace")
            os.close(home)

    def command(self, *words: str) -> list[str]:
        """The command line that runs words in the namespace and dies with this process."""
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self.path}", *words]

    def run(self, *words: str, timeout_s: float = 30) -> str:
        """Run a command to its end and return its output; RuntimeError if it fails."""
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command; the caller ends it."""
        return subprocess.Popen(self.command(*words), text=True, **options)

    def close(self) -> None:
        """Let go of the namespace; it ends with its last process and descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(left: Namespace, right: Namespace, device: str, network: str, mtu: int) -> None:
    """Join two namespaces by a veth pair: addresses .1 and .2 of network, e.g. "192.0.2"."""
    left.run(
        *f"ip link add {device} mtu {mtu} type veth peer name {device} mtu {mtu}".split(),
        *("netns", right.path),
    )
    for number, namespace in enumerate((left, right), start=1):
        namespace.run("ip", "address", "add", f"{network}.{number}/24", "dev", device)
        namespace.run("ip", "link", "set", device, "up")


def set_offloads(namespaces: list[Namespace], device: str, *, nic_like: bool) -> None:
    """Let veth carry large packets whole, or segment them before it as before a plain NIC.

    GRO stays on either way, as it is on network cards.
    """
    state = "off" if nic_like else "on"
    words = f"tso {state} gso {state} tx-udp-segmentation {state} gro on".split()
    for namespace in namespaces:
        namespace.run("ethtool", "-K", device, *words)


def why_not() -> str:
    """Why namespaces and TUN devices cannot be used here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    try:
        Namespace().close()
    except (OSError, RuntimeError) as error:
        return f"network namespaces do not work here: {error}"
    return ""
