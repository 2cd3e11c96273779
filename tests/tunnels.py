"""One end of a userspace overlay in a namespace: TUN device, UDP socket, packet path, routes."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Literal, Self

from netns import Namespace, connect
from trimaran.ext.encap import PacketPath, open_tun

NETWORK = "10.5.0.0/16"
SUBNET_LENGTH = 24
PORT = 8285
UNDERLAY = "192.0.2"
UNDERLAY_DEVICE = "eth0"
# The outer IPv4 and UDP headers.
OVERHEAD = 28


class Tunnel:
    """Host `number` of an overlay: subnet 10.5.<number>.0/24, underlay 192.0.2.<number>.

    Args:
        namespace: where its device and socket are.
        number: 1 to 254.
        mode: of the packet path.
        offload: make the TUN device with offloads; by default those of the mode.
        mtu: of the TUN device, in bytes.
        strict_source: as of `PacketPath`.
    """

    def __init__(
        self,
        namespace: Namespace,
        number: int,
        *,
        mode: Literal["fast", "plain"] = "fast",
        offload: bool | None = None,
        mtu: int = 1500 - OVERHEAD,
        strict_source: bool = True,
    ) -> None:
        self.namespace = namespace
        self.subnet = f"10.5.{number}.0/{SUBNET_LENGTH}"
        self.address = f"10.5.{number}.0"
        self.underlay = f"{UNDERLAY}.{number}"
        wanted = mode == "fast" if offload is None else offload
        with contextlib.ExitStack() as undo:
            with namespace.entered():
                self.tun_fd, self.device, self.offload = open_tun("tun%d", mtu, offload=wanted)
                undo.callback(os.close, self.tun_fd)
                self.socket = undo.enter_context(
                    socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                )
                self.socket.bind((self.underlay, PORT))
            namespace.run("ip", "address", "add", f"{self.address}/32", "dev", self.device)
            namespace.run("ip", "link", "set", self.device, "up")
            namespace.run("ip", "route", "add", NETWORK, "dev", self.device)
            self.path = PacketPath(
                self.tun_fd,
                self.socket.fileno(),
                network=NETWORK,
                subnet_length=SUBNET_LENGTH,
                mode=mode,
                strict_source=strict_source,
            )
            self.path.start()
            undo.callback(self.path.stop)
            self._undo = undo.pop_all()

    def route_to(self, other: Self) -> None:
        """Send packets for the other's subnet to it."""
        self.path.set_route(other.subnet, other.underlay, PORT)

    def close(self) -> None:
        """Stop carrying, and remove device and socket."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def two_hosts(mtu: int = 1500) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces joined by veth, as two hosts with a network card each."""
    with Namespace() as left, Namespace() as right:
        connect(left, right, UNDERLAY_DEVICE, UNDERLAY, mtu)
        yield left, right
