"""The network configuration: flannel's JSON, checked and with its defaults filled in.

The value lives at `<prefix>/config` in the store. Keys are matched without regard to case and
unknown keys are ignored, as flannel does, so that one document serves both.
"""

import json
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from trimaran.errors import NetworkConfigError

DEFAULT_PREFIX: Final = "/coreos.com/network"
DEFAULT_VNI: Final = 1
DEFAULT_VXLAN_PORT: Final = 8472
DEFAULT_UDP_PORT: Final = 8285
SUPPORTED_BACKENDS: Final = ("alloc", "udp", "vxlan")
VNI_MAX: Final = (1 << 24) - 1
PORT_MAX: Final = 65535
MTU_MAX: Final = 65535
MTU_MIN: Final = 576


@dataclass(frozen=True)
class AllocOptions:
    """Backend `alloc`: a subnet and nothing in the kernel."""

    type: str = "alloc"


@dataclass(frozen=True)
class UdpOptions:
    """Backend `udp`: packets through a TUN device in userspace.

    Attributes:
        port: the UDP port every host of the network listens on.
    """

    port: int = DEFAULT_UDP_PORT
    type: str = "udp"


@dataclass(frozen=True)
class VxlanOptions:
    """Backend `vxlan`: the kernel encapsulates.

    Attributes:
        vni: the network identifier of every packet, 1..2^24-1.
        port: destination UDP port.
        mtu: MTU of the underlay, 0 to take that of the interface.
        gbp: carry the group policy extension.
        learning: learn addresses from received packets.
        direct_routing: reach hosts on the same link without encapsulation.
    """

    vni: int = DEFAULT_VNI
    port: int = DEFAULT_VXLAN_PORT
    mtu: int = 0
    gbp: bool = False
    learning: bool = False
    direct_routing: bool = False
    type: str = "vxlan"


BackendOptions = AllocOptions | UdpOptions | VxlanOptions


@dataclass(frozen=True)
class NetworkConfig:
    """One overlay network, complete.

    Attributes:
        network: the range all subnets come from.
        subnet_length: prefix length of each host's subnet.
        subnet_min: base address of the first subnet to give out.
        subnet_max: base address of the last.
        backend: how packets travel.
    """

    network: IPv4Network
    subnet_length: int
    subnet_min: IPv4Address
    subnet_max: IPv4Address
    backend: BackendOptions

    @property
    def subnet_count(self) -> int:
        """Number of subnets that may be given out."""
        step = 1 << (32 - self.subnet_length)
        return (int(self.subnet_max) - int(self.subnet_min)) // step + 1

    def subnet_at(self, index: int) -> IPv4Network:
        """Return the subnet number `index`, counted from subnet_min."""
        assert 0 <= index < self.subnet_count
        base = int(self.subnet_min) + (index << (32 - self.subnet_length))
        return IPv4Network((base, self.subnet_length))

    def fits(self, subnet: IPv4Network) -> bool:
        """Tell whether a subnet is one this network gives out."""
        return (
            subnet.prefixlen == self.subnet_length
            and self.subnet_min <= subnet.network_address <= self.subnet_max
        )


class _Fields:
    """Reads the keys of one JSON object without regard to case, checking their types."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise NetworkConfigError(f"{where} must be a JSON object, not {_show(value)}")
        self._where = where
        self._values = {key.lower(): item for key, item in value.items() if item is not None}

    def get(self, key: str) -> Any:
        return self._values.get(key.lower())

    def text(self, key: str) -> str:
        value = self.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise NetworkConfigError(f"{self._name(key)} must be a string, not {_show(value)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise NetworkConfigError(f"{self._name(key)} must be true or false, not {_show(value)}")
        return value

    def number(self, key: str, default: int, lowest: int, highest: int) -> int:
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise NetworkConfigError(f"{self._name(key)} must be a number, not {_show(value)}")
        if not lowest <= value <= highest:
            raise NetworkConfigError(
                f"{self._name(key)} is {value}; it must be between {lowest} and {highest}"
            )
        return value

    def _name(self, key: str) -> str:
        return f"{self._where}: {key}"


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def parse_config(text: str | bytes) -> NetworkConfig:
    """Parse and check the configuration document.

    Args:
        text: the JSON as stored.

    Returns:
        the configuration with every default filled in.

    Raises:
        NetworkConfigError: naming the key at fault and what would be right.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NetworkConfigError(
            f"network config is not JSON: {error}; write one with `trimaran net config set`"
        ) from error
    fields = _Fields(document, "network config")
    if not fields.flag("EnableIPv4", True):
        raise NetworkConfigError(
            "network config: EnableIPv4 is false; a subnet record needs an IPv4 part, "
            "so leave it out or set it to true"
        )
    if fields.flag("EnableIPv6", False):
        raise NetworkConfigError(
            "network config: EnableIPv6 is true, but this version carries IPv4 only; "
            "set EnableIPv6 to false"
        )
    network = _network(fields)
    length = _subnet_length(fields, network)
    subnet_min, subnet_max = _subnet_range(fields, network, length)
    backend = parse_backend(fields.get("Backend"))
    return NetworkConfig(network, length, subnet_min, subnet_max, backend)


def parse_backend(value: Any) -> BackendOptions:
    """Parse the `Backend` object; a missing one means `udp`, as in flannel's code.

    Args:
        value: the decoded JSON value, None where the key is absent.

    Returns:
        the options of the named backend.

    Raises:
        NetworkConfigError: for an unknown type or an option out of its range.
    """
    if value is None:
        return UdpOptions()
    fields = _Fields(value, "network config: Backend")
    kind = fields.text("Type").lower()
    if kind == "alloc":
        return AllocOptions()
    if kind == "udp":
        return UdpOptions(port=fields.number("Port", DEFAULT_UDP_PORT, 1, PORT_MAX))
    if kind == "vxlan":
        mtu = fields.number("MTU", 0, 0, MTU_MAX)
        if 0 < mtu < MTU_MIN:
            raise NetworkConfigError(
                f"network config: Backend: MTU is {mtu}; use at least {MTU_MIN}, or 0 for the "
                "interface's"
            )
        return VxlanOptions(
            vni=fields.number("VNI", DEFAULT_VNI, 1, VNI_MAX),
            port=fields.number("Port", 0, 0, PORT_MAX) or DEFAULT_VXLAN_PORT,
            mtu=mtu,
            gbp=fields.flag("GBP", False),
            learning=fields.flag("Learning", False),
            direct_routing=fields.flag("DirectRouting", False),
        )
    supported = ", ".join(SUPPORTED_BACKENDS)
    raise NetworkConfigError(
        f"network config: Backend: Type {_show(fields.get('Type'))} is not supported; "
        f"use one of: {supported}"
    )


def _network(fields: _Fields) -> IPv4Network:
    text = fields.text("Network")
    if not text:
        raise NetworkConfigError(
            'network config: Network is missing; give a range such as "10.244.0.0/16"'
        )
    try:
        # Host bits are dropped rather than refused, as flannel does.
        network = IPv4Network(text, strict=False)
    except ValueError as error:
        raise NetworkConfigError(
            f'network config: Network: {error}; give a range such as "10.244.0.0/16"'
        ) from error
    if "/" not in text or network.prefixlen < 1:
        raise NetworkConfigError(f"network config: Network {text!r} needs a prefix length of 1..28")
    return network


def _subnet_length(fields: _Fields, network: IPv4Network) -> int:
    length = fields.number("SubnetLen", 0, 0, 32)
    if length == 0:
        if network.prefixlen > 28:
            raise NetworkConfigError(
                f"network config: Network {network} is too small; use a /28 or larger"
            )
        return 24 if network.prefixlen <= 22 else network.prefixlen + 2
    if length > 30:
        raise NetworkConfigError(f"network config: SubnetLen is {length}; use at most 30")
    if length < network.prefixlen + 2:
        # The first subnet is not given out, so fewer than four would serve one host.
        raise NetworkConfigError(
            f"network config: SubnetLen is {length}; Network {network} needs at least "
            f"{network.prefixlen + 2}"
        )
    return length


def _subnet_range(
    fields: _Fields, network: IPv4Network, length: int
) -> tuple[IPv4Address, IPv4Address]:
    size = 1 << (32 - length)
    # The first subnet's base is the network's own address, which hosts take for a broadcast.
    lowest = _bound(fields, "SubnetMin", network, length) or network.network_address + size
    highest = _bound(fields, "SubnetMax", network, length)
    if highest is None:
        highest = IPv4Address(int(network.broadcast_address) + 1 - size)
    if lowest > highest:
        raise NetworkConfigError(
            f"network config: SubnetMin {lowest} lies after SubnetMax {highest}"
        )
    return lowest, highest


def _bound(fields: _Fields, key: str, network: IPv4Network, length: int) -> IPv4Address | None:
    text = fields.text(key)
    if not text:
        return None
    try:
        address = IPv4Address(text)
    except ValueError as error:
        raise NetworkConfigError(f"network config: {key}: {error}") from error
    if address not in network:
        raise NetworkConfigError(f"network config: {key} {address} is not in Network {network}")
    if int(address) % (1 << (32 - length)):
        raise NetworkConfigError(
            f"network config: {key} {address} is not the base of a /{length} subnet"
        )
    return address
