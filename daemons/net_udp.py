"""The udp backend's ends: the TUN device, the UDP socket, and the packet path between them."""

import os
import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Final, Literal

from trimaran.ext.encap import PacketPath, open_tun
from trimaran.net.kernel import Link

SOCKET_BUFFER_BYTES: Final = 7 << 20
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33


class UdpPath:
    """Carries packets between a TUN device and the peers' UDP sockets.

    Attributes:
        name: of the TUN device, empty while there is none.
    """

    def __init__(self, mode: Literal["fast", "plain"] = "fast") -> None:
        self._mode = mode
        self._tun_fd = -1
        self._path: PacketPath | None = None
        self._shape: tuple[object, ...] = ()
        self._routes: dict[IPv4Network, tuple[IPv4Address, int]] = {}
        self.name = ""

    def open(self, link: Link) -> None:
        """Make the TUN device; one that was open is closed first.

        Raises:
            OSError: if the kernel refuses; the text says what to do.
        """
        self.close()
        self._tun_fd, self.name, _ = open_tun(link.name, link.mtu)

    @property
    def error(self) -> int:
        """The errno a running path ended with, 0 while it is well."""
        return abs(self._path.error) if self._path is not None else 0

    def update(
        self,
        network: IPv4Network,
        subnet_length: int,
        local: tuple[IPv4Address, int],
        peers: Mapping[IPv4Network, IPv4Address],
    ) -> None:
        """Run the path with these peers, starting or restarting it where its shape changed.

        Args:
            network: the overlay's range.
            subnet_length: prefix length of each peer's subnet.
            local: address and port to bind.
            peers: subnet -> address of its host; they listen on the same port.

        Raises:
            OSError: if the port is taken or the address not ours.
        """
        assert self._tun_fd >= 0
        shape = (network, subnet_length, local)
        if shape != self._shape:
            self._stop()
            self._start(network, subnet_length, local)
            self._shape = shape
        routes = {subnet: (host, local[1]) for subnet, host in peers.items()}
        if routes != self._routes:
            assert self._path is not None
            self._path.replace_routes(
                {str(subnet): (str(host), port) for subnet, (host, port) in routes.items()}
            )
            self._routes = routes

    def counters(self) -> dict[str, int]:
        """Return what the path has counted, empty while it does not run."""
        return dict(self._path.counters()) if self._path is not None else {}

    def close(self) -> None:
        """Stop the path and close the device, which the kernel then removes."""
        self._stop()
        if self._tun_fd >= 0:
            os.close(self._tun_fd)
        self._tun_fd, self.name = -1, ""

    def _start(
        self, network: IPv4Network, subnet_length: int, local: tuple[IPv4Address, int]
    ) -> None:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
                udp.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
            udp.bind((str(local[0]), local[1]))
            path = PacketPath(
                self._tun_fd,
                udp.fileno(),
                network=str(network),
                subnet_length=subnet_length,
                mode=self._mode,
            )
            path.start()
        except OSError as error:
            udp.close()
            place = f"UDP {local[0]}:{local[1]}"
            reason = os.strerror(error.errno or 0)
            text = f"{place}: {reason}; stop what uses it, or set the backend's Port"
            raise OSError(error.errno, text) from error
        self._udp = udp
        self._path = path

    def _stop(self) -> None:
        if self._path is not None:
            self._path.stop()
            self._udp.close()
        self._path, self._shape, self._routes = None, (), {}
