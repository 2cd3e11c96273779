"""From configuration, own subnet and peers to the kernel state that carries the overlay."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from trimaran.net.config import (
    DEFAULT_UDP_PORT,
    AllocOptions,
    NetworkConfig,
    UdpOptions,
    VxlanOptions,
)
from trimaran.net.kernel import (
    Address,
    Forwarding,
    KernelState,
    Link,
    Neighbour,
    Route,
    VxlanParameters,
)
from trimaran.net.records import SubnetRecord, valid_mac
from trimaran.net.underlay import Underlay

VXLAN_OVERHEAD_BYTES: Final = 50  # Outer IPv4, UDP and vxlan headers and the inner Ethernet one.
UDP_OVERHEAD_BYTES: Final = 28  # Outer IPv4 and UDP headers.


@dataclass(frozen=True)
class Overlay:
    """Everything this host needs for its part of the overlay.

    Attributes:
        kernel: the desired kernel state.
        device: name of the overlay's device, empty for `alloc`.
        mtu: of the overlay, in bytes.
        peers: subnet -> address of its host, for the userspace path.
        ignored: subnet -> why its record cannot be used.
    """

    kernel: KernelState
    device: str
    mtu: int
    peers: dict[IPv4Network, IPv4Address] = field(default_factory=dict)
    ignored: dict[IPv4Network, str] = field(default_factory=dict)


def owner_alias(prefix: str) -> str:
    """Return the alias that marks a device as ours, by the network's prefix in the store."""
    return f"trimaran {prefix}"


def build_overlay(
    config: NetworkConfig,
    own: SubnetRecord,
    records: Iterable[SubnetRecord],
    underlay: Underlay,
    *,
    prefix: str,
) -> Overlay:
    """Compute the desired state.

    Args:
        config: the network.
        own: this host's record.
        records: every record; this host's own is passed over.
        underlay: the interface packets leave by.
        prefix: of the network in the store; it marks our devices.

    Returns:
        the overlay.
    """
    peers, ignored = _usable_peers(config, own, records)
    backend = config.backend
    if isinstance(backend, VxlanOptions):
        return _vxlan_overlay(backend, own, peers, ignored, underlay, owner_alias(prefix))
    hosts = {peer.subnet: peer.public_ip for peer in peers}
    if isinstance(backend, UdpOptions):
        mtu = underlay.mtu - UDP_OVERHEAD_BYTES
        # A second network of the host needs another port, and so gets another device.
        tun_name = "flannel0" if backend.port == DEFAULT_UDP_PORT else f"flannel{backend.port}"
        kernel = KernelState(
            links={tun_name: Link(tun_name, "tun", mtu, alias=owner_alias(prefix))},
            addresses=frozenset({Address(tun_name, own.subnet.network_address, 32)}),
            # One route for the whole network: an unknown destination is answered by the path.
            routes=frozenset({Route(config.network, tun_name)}),
        )
        return Overlay(kernel, tun_name, mtu, hosts, ignored)
    assert isinstance(backend, AllocOptions)
    return Overlay(KernelState(), "", underlay.mtu, hosts, ignored)


def _usable_peers(
    config: NetworkConfig, own: SubnetRecord, records: Iterable[SubnetRecord]
) -> tuple[list[SubnetRecord], dict[IPv4Network, str]]:
    peers: list[SubnetRecord] = []
    ignored: dict[IPv4Network, str] = {}
    macs = {valid_mac(own.data("VtepMAC")): own.subnet}
    for record in sorted(records, key=lambda item: item.subnet):
        if record.subnet == own.subnet:
            continue
        reason = _unusable(config, own, record)
        mac = valid_mac(record.data("VtepMAC"))
        if not reason and mac is not None and macs.setdefault(mac, record.subnet) != record.subnet:
            # One forwarding entry per address: the second host would cut off the first.
            reason = f"has the VtepMAC of {macs[mac]}; do the hosts share a machine id?"
        if reason:
            ignored[record.subnet] = reason
        else:
            peers.append(record)
    return peers, ignored


def _unusable(config: NetworkConfig, own: SubnetRecord, record: SubnetRecord) -> str:
    """Say why a peer's record cannot be used, empty if it can."""
    if not record.subnet.subnet_of(config.network):
        return f"outside {config.network}"
    if record.subnet.overlaps(own.subnet):
        return f"overlaps this host's subnet {own.subnet}"
    if record.public_ip == own.public_ip:
        return f"has this host's public address {own.public_ip}"
    backend = config.backend
    if isinstance(backend, VxlanOptions):
        if record.backend_type != "vxlan":
            return f"backend is {record.backend_type or 'not given'}, not vxlan"
        if record.data("VNI") not in (None, backend.vni):
            return f"VNI is {record.data('VNI')}, not {backend.vni}"
        if valid_mac(record.data("VtepMAC")) is None:
            return "VtepMAC is missing or not a hardware address"
    elif isinstance(backend, UdpOptions) and record.backend_type not in ("", "udp"):
        return f"backend is {record.backend_type}, not udp"
    return ""


def _vxlan_overlay(
    backend: VxlanOptions,
    own: SubnetRecord,
    peers: list[SubnetRecord],
    ignored: dict[IPv4Network, str],
    underlay: Underlay,
    alias: str,
) -> Overlay:
    name = f"flannel.{backend.vni}"
    mtu = (backend.mtu or underlay.mtu) - VXLAN_OVERHEAD_BYTES
    mac = valid_mac(own.data("VtepMAC"))
    assert mac is not None
    parameters = VxlanParameters(
        vni=backend.vni,
        port=backend.port,
        local=own.public_ip if own.public_ip in underlay.addresses else underlay.address,
        underlay=underlay.name,
        learning=backend.learning,
        gbp=backend.gbp,
    )
    neighbours: set[Neighbour] = set()
    forwardings: set[Forwarding] = set()
    routes: set[Route] = set()
    for peer in peers:
        gateway = peer.subnet.network_address
        if backend.direct_routing and underlay.on_link(peer.public_ip):
            routes.add(Route(peer.subnet, underlay.name, peer.public_ip))
            continue
        peer_mac = valid_mac(peer.data("VtepMAC"))
        assert peer_mac is not None
        neighbours.add(Neighbour(name, gateway, peer_mac))
        forwardings.add(Forwarding(name, peer_mac, peer.public_ip))
        routes.add(Route(peer.subnet, name, gateway, onlink=True))
    kernel = KernelState(
        links={name: Link(name, "vxlan", mtu, mac, alias=alias, vxlan=parameters)},
        addresses=frozenset({Address(name, own.subnet.network_address, 32)}),
        neighbours=frozenset(neighbours),
        forwardings=frozenset(forwardings),
        routes=frozenset(routes),
    )
    hosts = {peer.subnet: peer.public_ip for peer in peers}
    return Overlay(kernel, name, mtu, hosts, ignored)
