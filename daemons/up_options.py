"""What `trimaran up` was asked to run, and how its options become that."""

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from trimaran.errors import ConfigError
from trimaran.up.records import ClusterSettings
from trimaran.up.token import PREFIX, JoinToken

DEFAULT_DATA_DIR: Final = "/var/lib/trimaran"
DEFAULT_PORT: Final = 2379
DEFAULT_PEER_PORT: Final = 2380
DEFAULT_JOIN_PORT: Final = 2382
DEFAULT_NETWORK: Final = "10.244.0.0/16"


@dataclass(frozen=True)
class UpOptions:
    """What `trimaran up` was asked to run.

    Attributes:
        name: this host's name, also of its member of the store.
        data_dir: where the host keeps identity and data, and the lock that makes this one `up`.
        listen: addresses that store and join endpoint listen on.
        port, peer_port, join_port: where the store serves clients and peers, and hosts join.
        advertise: the address at which other hosts reach this one.
        joins: whether this host joins a cluster, rather than beginning one.
        token: what it joins with; None where it has joined before.
        join: HOST:PORT of join endpoints to ask before those of the token.
        endpoints: URLs of a store that is not of this cluster, or empty.
        join_timeout_s: how long to wait for a cluster or store elsewhere.
        settings: of a cluster that this host begins.
        force_new_cluster: make this host's data a store of its own, without the other members.
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
    peer_port: int
    join_port: int
    advertise: str
    joins: bool
    token: JoinToken | None
    join: tuple[str, ...]
    endpoints: tuple[str, ...]
    join_timeout_s: float
    settings: ClusterSettings
    force_new_cluster: bool
    metadata: dict[str, str]
    fleet: bool
    net: bool
    network: str
    backend: str

    @property
    def embedded(self) -> bool:
        """Whether this host is of a cluster of its own kind, not beside an etcd."""
        return not self.endpoints

    @property
    def is_open(self) -> bool:
        """Whether other hosts can reach this one's store."""
        return any(not is_loopback(address) for address in self.listen)

    @property
    def address(self) -> str:
        """The address the cluster knows this host by."""
        return self.advertise if self.is_open else reach(self.listen[0])

    def url(self, port: int) -> str:
        """A URL of this host as the cluster knows it."""
        return f"https://{url_host(self.address)}:{port}"

    def listen_urls(self, port: int) -> tuple[str, ...]:
        """The URLs to listen on at a port."""
        return tuple(f"https://{url_host(address)}:{port}" for address in self.listen)


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


def read_join(
    join: str | None, token: str | None
) -> tuple[bool, JoinToken | None, tuple[str, ...]]:
    """Read --join and --token.

    Args:
        join: a token, or HOST[:PORT] of a join endpoint, or None.
        token: a token, or None.

    Returns:
        whether the host joins a cluster; with what token; where besides the token's addresses.

    Raises:
        ConfigError: they are neither.
    """
    if join is None:
        if token is not None:
            raise ConfigError("--token goes with --join HOST; or give the token as --join TOKEN")
        return False, None, ()
    if join.strip().startswith(PREFIX):
        if token is not None:
            raise ConfigError("--join has a token already; leave --token out")
        return True, JoinToken.parse(join), ()
    found = JoinToken.parse(token) if token is not None else None
    return True, found, (join_address(join),)


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
