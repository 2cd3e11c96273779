"""What `trimaran up` was asked to run, and how its options become that."""

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from trimaran.errors import ConfigError

DEFAULT_DATA_DIR: Final = "/var/lib/trimaran"
DEFAULT_PORT: Final = 2379
DEFAULT_PEER_PORT: Final = 2380
DEFAULT_JOIN_PORT: Final = 2382
DEFAULT_NETWORK: Final = "10.244.0.0/16"


@dataclass(frozen=True)
class UpOptions:
    """What `trimaran up` was asked to run.

    Attributes:
        name: this host's name in the store's member list.
        data_dir: where the store keeps its data, and the lock that makes this host's one `up`.
        listen: addresses the embedded store listens on.
        port: its port.
        advertise: the address at which other hosts reach this one.
        join: URL of the store of the host to join, or None.
        endpoints: URLs of a store that exists already, or empty.
        join_timeout_s: how long to wait for a store that is not embedded.
        metadata: what this machine tells units about itself.
        fleet: whether to run units.
        net: whether to take part in the overlay network.
        network: range of the overlay, written to the store where no configuration is.
        backend: how packets travel, written likewise.
    """

    name: str
    data_dir: Path
    listen: tuple[str, ...]
    port: int
    advertise: str
    join: str | None
    endpoints: tuple[str, ...]
    join_timeout_s: float
    metadata: dict[str, str]
    fleet: bool
    net: bool
    network: str
    backend: str

    @property
    def embedded(self) -> bool:
        """Whether this host runs the store itself."""
        return not self.join and not self.endpoints

    @property
    def store_urls(self) -> tuple[str, ...]:
        """Where this host's own daemons reach the store."""
        if self.join:
            return (self.join,)
        return self.endpoints or (f"http://{url_host(reach(self.listen[0]))}:{self.port}",)


def is_loopback(address: str) -> bool:
    """Whether only this host reaches an address."""
    return ipaddress.ip_address(address).is_loopback


def is_any(address: str) -> bool:
    """Whether an address stands for all of the host's."""
    return ipaddress.ip_address(address).is_unspecified


def reach(address: str) -> str:
    """The address at which this host itself reaches what listens on `address`."""
    if not is_any(address):
        return address
    return "127.0.0.1" if ipaddress.ip_address(address).version == 4 else "::1"


def url_host(address: str) -> str:
    """An address as it stands in a URL."""
    return f"[{address}]" if ":" in address else address


def source_address(target: str, port: int) -> str | None:
    """The address from which this host would send to `target`, or None without a route."""
    try:
        family, _, _, _, address = socket.getaddrinfo(target, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # of a datagram socket: sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return None


def normal_url(text: str) -> str:
    """Complete HOST or HOST:PORT to the URL of a store.

    Raises:
        ConfigError: it is neither that nor a URL.
    """
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    try:
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise ConfigError(
            f"{text!r} names no store; write it like 10.0.0.1 or http://10.0.0.1:2379"
        )
    return f"{parts.scheme}://{url_host(parts.hostname)}:{port}"


def join_address(text: str) -> str:
    """Complete HOST to HOST:PORT of a join endpoint.

    Raises:
        ConfigError: it is neither.
    """
    parts = urlsplit(f"//{text}")
    try:
        port = DEFAULT_JOIN_PORT if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not parts.hostname or not port or parts.path or "://" in text or "@" in text:
        raise ConfigError(f"{text!r} names no host; write it like 10.0.0.1 or 10.0.0.1:2382")
    return f"{url_host(parts.hostname)}:{port}"


def choose_listen(given: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses the store listens on: always one that this host's own commands reach.

    Raises:
        ConfigError: one is not an address.
    """
    for address in given:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ConfigError(
                f"--listen {address!r} is not an IP address; 0.0.0.0 listens on all of them"
            ) from None
    if not given or any(is_loopback(address) or is_any(address) for address in given):
        return given or ("127.0.0.1",)
    return ("127.0.0.1", *given)


def choose_advertise(given: str | None, listen: tuple[str, ...], store: str | None) -> str:
    """The address at which other hosts reach this one: as given, else by the way to the store.

    Raises:
        ConfigError: it is not given and this host has no route to find it by.
    """
    if given:
        try:
            return str(ipaddress.ip_address(given))
        except ValueError:
            raise ConfigError(f"--advertise {given!r} is not an IP address") from None
    own = [address for address in listen if not is_loopback(address) and not is_any(address)]
    if own and not store:
        return own[0]
    # 192.0.2.1 is nobody's (RFC 5737), so it stands for "somewhere else" in the routing table.
    target = urlsplit(store).hostname if store else "192.0.2.1"
    assert target is not None
    address = source_address(target, 1)
    if address is None:
        where = f"to {target}" if store else "to other hosts"
        raise ConfigError(
            f"this host has no route {where}; say with --advertise at which address they reach it"
        )
    return address
