"""Which interface and address carry the overlay's packets between hosts."""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from trimaran.errors import ConfigError


@dataclass(frozen=True)
class Interface:
    """A device with its IPv4 addresses.

    Attributes:
        index: the kernel's number of it.
        name: its name.
        mtu: in bytes.
        up: whether it is administratively up.
        addresses: in the kernel's order; link-local ones may be among them.
    """

    index: int
    name: str
    mtu: int
    up: bool
    addresses: tuple[IPv4Interface, ...] = ()


@dataclass(frozen=True)
class DefaultRoute:
    """A default route: the interface it leaves by, and its metric."""

    link: str
    metric: int = 0


@dataclass(frozen=True)
class Underlay:
    """The interface packets leave by and the address others reach this host at.

    Attributes:
        name: of the interface.
        mtu: of the interface, in bytes.
        address: to send from.
        public_ip: to publish; differs from `address` behind address translation.
        addresses: all of the interface.
        networks: directly connected ranges.
    """

    name: str
    mtu: int
    address: IPv4Address
    public_ip: IPv4Address
    addresses: tuple[IPv4Address, ...] = ()
    networks: tuple[IPv4Network, ...] = ()

    def on_link(self, address: IPv4Address) -> bool:
        """Tell whether an address is reached without a gateway."""
        return any(address in network for network in self.networks)


def choose_underlay(
    interfaces: Sequence[Interface],
    default_routes: Sequence[DefaultRoute],
    *,
    iface: str = "",
    public_ip: IPv4Address | None = None,
) -> Underlay:
    """Choose the underlay as flannel does: the option, else the address, else the default route.

    Args:
        interfaces: every device.
        default_routes: of the main table.
        iface: name or address of the interface wanted; empty to find it.
        public_ip: address to publish; without `iface`, the interface that has it is taken.

    Returns:
        the underlay.

    Raises:
        ConfigError: if there is none; the text says which option to give.
    """
    interface, wanted = _choose_interface(interfaces, default_routes, iface, public_ip)
    if not interface.up:
        raise ConfigError(f"interface {interface.name} is down; bring it up or give --iface")
    if not interface.addresses:
        raise ConfigError(f"interface {interface.name} has no IPv4 address; give it one")
    address = wanted
    if address is None:
        # A routable address before a link-local one.
        address = min(interface.addresses, key=lambda item: item.is_link_local).ip
    return Underlay(
        name=interface.name,
        mtu=interface.mtu,
        address=address,
        public_ip=public_ip or address,
        addresses=tuple(item.ip for item in interface.addresses),
        networks=tuple(item.network for item in interface.addresses),
    )


def _choose_interface(
    interfaces: Sequence[Interface],
    default_routes: Sequence[DefaultRoute],
    iface: str,
    public_ip: IPv4Address | None,
) -> tuple[Interface, IPv4Address | None]:
    by_name = {interface.name: interface for interface in interfaces}
    by_address = {item.ip: interface for interface in interfaces for item in interface.addresses}
    names = ", ".join(sorted(name for name in by_name if name != "lo")) or "none"
    if iface:
        if iface in by_name:
            interface = by_name[iface]
            own = {item.ip for item in interface.addresses}
            return interface, public_ip if public_ip in own else None
        address = _parse_address(iface)
        if address is not None and address in by_address:
            return by_address[address], address
        raise ConfigError(f"--iface {iface}: no such interface or address here; there are: {names}")
    if public_ip is not None:
        if public_ip in by_address:
            return by_address[public_ip], public_ip
        raise ConfigError(
            f"--public-ip {public_ip}: no interface has it; give --iface as well, one of: {names}"
        )
    for route in sorted(default_routes, key=lambda item: item.metric):
        if route.link in by_name:
            return by_name[route.link], None
    raise ConfigError(f"no default route to find the interface by; give --iface, one of: {names}")


def _parse_address(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text)
    except ValueError:
        return None
