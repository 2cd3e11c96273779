"""Subnet records as flannel writes them: the key names the subnet, the value its host.

Reading is tolerant (dual-stack keys, missing or unknown fields); writing gives exactly flannel's
fields in its order, and `HostID` after them, which flannel's decoder ignores.
"""

import json
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any, Final

from trimaran.errors import NetworkConfigError
from trimaran.net.config import BackendOptions, VxlanOptions

_KEY: Final = re.compile(r"(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([0-9a-fA-F:]+)-(\d+))?")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True)
class SubnetRecord:
    """Who holds one subnet and how to reach it.

    Attributes:
        subnet: the range leased.
        public_ip: address of the host on the underlay.
        backend_type: empty for `udp` and `alloc`, as flannel writes it.
        backend_data: what the backend publishes, by the names flannel uses.
        host_id: the host that wrote the record, empty where flannel did.
        ipv6_subnet: the IPv6 range of a dual-stack host, else None.
        public_ipv6: its IPv6 address as text, else None.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    backend_type: str = ""
    backend_data: tuple[tuple[str, str | int], ...] = ()
    host_id: str = ""
    ipv6_subnet: IPv6Network | None = None
    public_ipv6: str | None = None

    def data(self, name: str) -> str | int | None:
        """Return one value of the backend's data, None where it is absent."""
        return dict(self.backend_data).get(name)


@dataclass(frozen=True)
class StoredRecord:
    """A record with its place in the store.

    Attributes:
        record: the decoded value.
        key: its key without the prefix `subnets/`.
        mod_revision: revision of the last change, which writers compare.
        lease: id of the store's lease, 0 for a reservation, which never expires.
    """

    record: SubnetRecord
    key: str
    mod_revision: int
    lease: int = 0


def format_subnet_key(subnet: IPv4Network, ipv6_subnet: IPv6Network | None = None) -> str:
    """Return the last part of a record's key, e.g. `10.244.7.0-24`."""
    text = f"{subnet.network_address}-{subnet.prefixlen}"
    if ipv6_subnet is not None:
        text += f"&{ipv6_subnet.network_address}-{ipv6_subnet.prefixlen}"
    return text


def parse_subnet_key(text: str) -> tuple[IPv4Network, IPv6Network | None]:
    """Parse the last part of a record's key.

    Args:
        text: e.g. `10.244.7.0-24` or `10.244.7.0-24&fd00:7::-64`.

    Returns:
        the IPv4 subnet and the IPv6 one, None where the host is single-stack.

    Raises:
        NetworkConfigError: if it is not a subnet's key.
    """
    match = _KEY.fullmatch(text)
    if match is None:
        raise NetworkConfigError(f"{text!r} is not a subnet key such as 10.244.7.0-24")
    try:
        subnet = IPv4Network(f"{match[1]}/{match[2]}")
        ipv6_subnet = IPv6Network(f"{match[3]}/{match[4]}") if match[3] else None
    except ValueError as error:
        raise NetworkConfigError(f"{text!r} is not a subnet key: {error}") from error
    return subnet, ipv6_subnet


def parse_record(key: str, value: bytes) -> SubnetRecord:
    """Decode one record.

    Args:
        key: last part of the key.
        value: the stored JSON.

    Returns:
        the record.

    Raises:
        NetworkConfigError: if the key or the value cannot be a record.
    """
    subnet, ipv6_subnet = parse_subnet_key(key)
    try:
        document = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise NetworkConfigError(f"record {key}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise NetworkConfigError(f"record {key}: not a JSON object")
    fields = {name.lower(): item for name, item in document.items()}
    try:
        public_ip = IPv4Address(_text(fields.get("publicip")))
    except ValueError as error:
        raise NetworkConfigError(f"record {key}: PublicIP: {error}") from error
    return SubnetRecord(
        subnet=subnet,
        public_ip=public_ip,
        backend_type=_text(fields.get("backendtype")).lower(),
        backend_data=_backend_data(fields.get("backenddata")),
        host_id=_text(fields.get("hostid")),
        ipv6_subnet=ipv6_subnet,
        public_ipv6=_text(fields.get("publicipv6")) or None,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _backend_data(value: Any) -> tuple[tuple[str, str | int], ...]:
    if not isinstance(value, dict):
        return ()
    return tuple((name, item) for name, item in value.items() if isinstance(item, str | int))


def format_record(record: SubnetRecord) -> str:
    """Encode one record with flannel's fields in flannel's order, without spaces."""
    document: dict[str, Any] = {
        "PublicIP": str(record.public_ip),
        "PublicIPv6": record.public_ipv6,
    }
    if record.backend_type:
        document["BackendType"] = record.backend_type
    if record.backend_data:
        document["BackendData"] = dict(record.backend_data)
    if record.host_id:
        document["HostID"] = record.host_id
    return json.dumps(document, separators=(",", ":"))


def own_record(
    subnet: IPv4Network, public_ip: IPv4Address, host_id: str, backend: BackendOptions, mac: str
) -> SubnetRecord:
    """Build what this host publishes for a subnet.

    Args:
        subnet: the range it holds.
        public_ip: its address on the underlay.
        host_id: its identity.
        backend: the network's backend.
        mac: address of its vxlan device; unused by other backends.

    Returns:
        the record.
    """
    if isinstance(backend, VxlanOptions):
        data: tuple[tuple[str, str | int], ...] = (("VNI", backend.vni), ("VtepMAC", mac))
        return SubnetRecord(subnet, public_ip, "vxlan", data, host_id)
    # flannel's udp and alloc backends publish no type.
    return SubnetRecord(subnet, public_ip, host_id=host_id)


def valid_mac(value: object) -> str | None:
    """Return a unicast hardware address in lower case, None where the value is not one."""
    if not isinstance(value, str):
        return None
    text = value.lower()
    if _MAC.fullmatch(text) is None or int(text[:2], 16) & 1 or not int(text.replace(":", ""), 16):
        return None
    return text
