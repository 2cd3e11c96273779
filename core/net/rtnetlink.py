"""Route netlink (RFC 3549, linux/rtnetlink.h) as bytes: the few messages an overlay needs.

Only encoding and decoding; the socket is the caller's. Encoding a peer's entries with struct takes
microseconds, so that a host of a large network can compare and repair everything on every event.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Final

from trimaran.net.kernel import (
    Address,
    Entry,
    Forwarding,
    Link,
    Neighbour,
    Route,
    VxlanParameters,
)

# linux/netlink.h
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
FLAG_REQUEST: Final = 0x1
FLAG_ACK: Final = 0x4
FLAG_DUMP_INTERRUPTED: Final = 0x10
FLAG_REPLACE: Final = 0x100
FLAG_EXCLUSIVE: Final = 0x200
FLAG_DUMP: Final = 0x300
FLAG_CREATE: Final = 0x400
HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port

# linux/rtnetlink.h
NEW_LINK, DELETE_LINK, GET_LINK, SET_LINK = 16, 17, 18, 19
NEW_ADDRESS, DELETE_ADDRESS, GET_ADDRESS = 20, 21, 22
NEW_ROUTE, DELETE_ROUTE, GET_ROUTE = 24, 25, 26
NEW_NEIGHBOUR, DELETE_NEIGHBOUR, GET_NEIGHBOUR = 28, 29, 30
GROUPS: Final = 0x1 | 0x4 | 0x10 | 0x40  # link, neighbour, IPv4 address, IPv4 route

_LINK: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_NEIGHBOUR: Final = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # family .. type, flags
_ATTRIBUTE: Final = struct.Struct("=HH")

_AF_INET, _AF_BRIDGE = 2, 7
_UP = 0x1
_PERMANENT, _NO_ARP = 0x80, 0x40
_SELF = 0x2
_ONLINK = 0x4
_TABLE_MAIN = 254
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_UNICAST = 1
_NESTED_MASK: Final = 0x3FFF
DUMP_LINKS: Final = (GET_LINK, _LINK.pack(0, 0, 0, 0, 0))
DUMP_ADDRESSES: Final = (GET_ADDRESS, _ADDRESS.pack(_AF_INET, 0, 0, 0, 0))
DUMP_NEIGHBOURS: Final = (GET_NEIGHBOUR, _NEIGHBOUR.pack(_AF_INET, 0, 0, 0, 0))
DUMP_FORWARDINGS: Final = (GET_NEIGHBOUR, _NEIGHBOUR.pack(_AF_BRIDGE, 0, 0, 0, 0))
DUMP_ROUTES: Final = (GET_ROUTE, _ROUTE.pack(_AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))


@dataclass(frozen=True)
class Message:
    """One netlink message without its header."""

    type: int
    flags: int
    sequence: int
    body: bytes


@dataclass(frozen=True)
class LinkEntry:
    """A decoded device: what the kernel numbers it, and the number of a vxlan's underlay."""

    index: int
    link: Link
    underlay_index: int = 0


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Put a header before a body."""
    return HEADER.pack(HEADER.size + len(body), kind, flags | FLAG_REQUEST, sequence, 0) + body


def split_messages(data: bytes) -> Iterator[Message]:
    """Split one datagram of the kernel into its messages."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        assert HEADER.size <= length <= len(data) - offset
        yield Message(kind, flags, sequence, data[offset + HEADER.size : offset + length])
        offset += (length + 3) & ~3


def error_number(body: bytes) -> int:
    """Return the positive errno of an NLMSG_ERROR or NLMSG_DONE body, 0 for success."""
    return -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def _attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _NESTED_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def _number(value: int) -> bytes:
    return struct.pack("=I", value)


def _mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _mac_text(data: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in data)


def encode_create_link(link: Link, indexes: Mapping[str, int]) -> tuple[int, int, bytes]:
    """Encode the creation of a vxlan device; alias and state follow by `encode_change_link`.

    Args:
        link: the device.
        indexes: device name -> index; the underlay must be among them.

    Returns:
        message type, flags and body.
    """
    vxlan = link.vxlan
    assert vxlan is not None
    data = _attribute(1, _number(vxlan.vni))
    if vxlan.underlay:
        data += _attribute(3, _number(indexes[vxlan.underlay]))
    if vxlan.local is not None:
        data += _attribute(4, vxlan.local.packed)
    data += _attribute(7, bytes([vxlan.learning]))
    data += _attribute(15, struct.pack(">H", vxlan.port))
    if vxlan.gbp:
        data += _attribute(23, b"")
    info = _attribute(1, link.kind.encode()) + _attribute(2, data)
    body = _LINK.pack(0, 0, 0, 0, 0) + _attribute(3, link.name.encode() + b"\0")
    body += _attribute(4, _number(link.mtu)) + _attribute(1, _mac_bytes(link.mac))
    body += _attribute(18, info)
    return NEW_LINK, FLAG_CREATE | FLAG_EXCLUSIVE, body


def encode_change_link(link: Link) -> tuple[int, int, bytes]:
    """Encode a device's MTU, hardware address, alias and state; the device goes by its name."""
    body = _LINK.pack(0, 0, 0, _UP if link.up else 0, _UP)
    body += _attribute(3, link.name.encode() + b"\0") + _attribute(4, _number(link.mtu))
    if link.mac:
        body += _attribute(1, _mac_bytes(link.mac))
    return SET_LINK, 0, body + _attribute(20, link.alias.encode())


def encode_delete_link(name: str) -> tuple[int, int, bytes]:
    """Encode the removal of a device by its name."""
    return DELETE_LINK, 0, _LINK.pack(0, 0, 0, 0, 0) + _attribute(3, name.encode() + b"\0")


def encode_add(
    entry: Entry, indexes: Mapping[str, int], *, replace: bool
) -> tuple[int, int, bytes]:
    """Encode the addition of an entry.

    Args:
        entry: what to add.
        indexes: device name -> index; the entry's device must be among them.
        replace: overwrite the entry with the same key instead of failing on it.

    Returns:
        message type, flags and body.
    """
    # Neighbours that failed or were learnt are not read, but are in the way of exclusive ones.
    replace |= isinstance(entry, Neighbour | Forwarding)
    flags = FLAG_CREATE | (FLAG_REPLACE if replace else FLAG_EXCLUSIVE)
    index = indexes[entry.link]
    if isinstance(entry, Address):
        return NEW_ADDRESS, flags, _address_body(entry, index)
    if isinstance(entry, Neighbour):
        return NEW_NEIGHBOUR, flags, _neighbour_body(entry, index)
    if isinstance(entry, Forwarding):
        return NEW_NEIGHBOUR, flags, _forwarding_body(entry, index)
    scope = _SCOPE_LINK if entry.gateway is None else _SCOPE_UNIVERSE
    return NEW_ROUTE, flags, _route_body(entry, index, scope)


def encode_delete(entry: Entry, indexes: Mapping[str, int]) -> tuple[int, int, bytes]:
    """Encode the removal of an entry."""
    index = indexes[entry.link]
    if isinstance(entry, Address):
        return DELETE_ADDRESS, 0, _address_body(entry, index)
    if isinstance(entry, Neighbour):
        return DELETE_NEIGHBOUR, 0, _neighbour_body(entry, index)
    if isinstance(entry, Forwarding):
        return DELETE_NEIGHBOUR, 0, _forwarding_body(entry, index)
    return DELETE_ROUTE, 0, _route_body(entry, index, _SCOPE_NOWHERE)


def _address_body(entry: Address, index: int) -> bytes:
    packed = entry.address.packed
    body = _ADDRESS.pack(_AF_INET, entry.prefix_length, 0, _SCOPE_UNIVERSE, index)
    return body + _attribute(1, packed) + _attribute(2, packed)


def _neighbour_body(entry: Neighbour, index: int) -> bytes:
    body = _NEIGHBOUR.pack(_AF_INET, index, _PERMANENT, 0, 0)
    return body + _attribute(1, entry.address.packed) + _attribute(2, _mac_bytes(entry.mac))


def _forwarding_body(entry: Forwarding, index: int) -> bytes:
    # Only these state and flag bits let a replacement change the destination.
    body = _NEIGHBOUR.pack(_AF_BRIDGE, index, _PERMANENT | _NO_ARP, _SELF, 0)
    return body + _attribute(1, entry.destination.packed) + _attribute(2, _mac_bytes(entry.mac))


def _route_body(entry: Route, index: int, scope: int) -> bytes:
    destination = entry.destination
    flags = _ONLINK if entry.onlink else 0
    body = _ROUTE.pack(
        _AF_INET, destination.prefixlen, 0, 0, _TABLE_MAIN, entry.protocol, scope, _UNICAST, flags
    )
    body += _attribute(1, destination.network_address.packed) + _attribute(4, _number(index))
    if entry.gateway is not None:
        body += _attribute(5, entry.gateway.packed)
    if entry.metric:
        body += _attribute(6, _number(entry.metric))
    return body


def decode_link(body: bytes) -> LinkEntry:
    """Decode RTM_NEWLINK."""
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = _attributes(body, _LINK.size)
    info = _attributes(found.get(18, b""))
    kind = info.get(1, b"").rstrip(b"\0").decode("ascii", "replace")
    vxlan, underlay_index = None, 0
    if kind == "vxlan":
        vxlan, underlay_index = _decode_vxlan(_attributes(info.get(2, b"")))
    link = Link(
        name=found.get(3, b"").rstrip(b"\0").decode("utf-8", "surrogateescape"),
        kind=kind,
        mtu=struct.unpack("=I", found[4])[0] if 4 in found else 0,
        mac="" if kind == "tun" else _mac_text(found.get(1, b"")),
        up=bool(flags & _UP),
        alias=found.get(20, b"").rstrip(b"\0").decode("utf-8", "surrogateescape"),
        vxlan=vxlan,
    )
    return LinkEntry(index, link, underlay_index)


def _decode_vxlan(data: dict[int, bytes]) -> tuple[VxlanParameters, int]:
    """Decode a vxlan device's parameters; the caller names the underlay by its index."""
    misses_or_metadata = any(data.get(kind, b"\0") != b"\0" for kind in (13, 14, 25))
    parameters = VxlanParameters(
        vni=struct.unpack("=I", data[1])[0] if 1 in data else 0,
        port=struct.unpack(">H", data[15])[0] if 15 in data else 0,
        local=IPv4Address(data[4]) if 4 in data else None,
        underlay="",
        learning=data.get(7, b"\0") != b"\0",
        gbp=23 in data,
        other_options=2 in data or 16 in data or misses_or_metadata,
    )
    return parameters, struct.unpack("=I", data[3])[0] if 3 in data else 0


def decode_address(body: bytes) -> tuple[int, IPv4Interface] | None:
    """Decode RTM_NEWADDR of IPv4 to device index and address; None for anything else."""
    family, prefix_length, _, _, index = _ADDRESS.unpack_from(body)
    found = _attributes(body, _ADDRESS.size)
    local = found.get(2, found.get(1))
    if family != _AF_INET or local is None:
        return None
    return index, IPv4Interface((local, prefix_length))


def decode_neighbour(body: bytes, names: Mapping[int, str]) -> Neighbour | Forwarding | None:
    """Decode RTM_NEWNEIGH: permanent neighbours, and forwarding entries that have a destination.

    Args:
        body: the message.
        names: index -> name of the devices of interest; others give None.
    """
    family, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
    link = names.get(index)
    if link is None or not state & _PERMANENT:
        return None
    found = _attributes(body, _NEIGHBOUR.size)
    destination, mac = found.get(1), found.get(2)
    if destination is None or mac is None or len(destination) != 4 or len(mac) != 6:
        return None
    if family == _AF_BRIDGE:
        return Forwarding(link, _mac_text(mac), IPv4Address(destination))
    return Neighbour(link, IPv4Address(destination), _mac_text(mac)) if family == 2 else None


def decode_route(body: bytes, names: Mapping[int, str]) -> Route | None:
    """Decode RTM_NEWROUTE: single-path IPv4 unicast routes of the main table, else None."""
    family, length, _, _, table, protocol, _, kind, flags = _ROUTE.unpack_from(body)
    if family != _AF_INET or table != _TABLE_MAIN or kind != _UNICAST:
        return None
    found = _attributes(body, _ROUTE.size)
    link = names.get(struct.unpack("=I", found[4])[0]) if 4 in found else None
    if link is None:
        return None
    destination = IPv4Network((found.get(1, b"\0\0\0\0"), length))
    return Route(
        destination=destination,
        link=link,
        gateway=IPv4Address(found[5]) if 5 in found else None,
        onlink=bool(flags & _ONLINK),
        protocol=protocol,
        metric=struct.unpack("=I", found[6])[0] if 6 in found else 0,
    )


def event_index(item: Message) -> int:
    """Return the device a neighbour, address or link event is about, 0 where it names none."""
    if item.type in (NEW_NEIGHBOUR, DELETE_NEIGHBOUR):
        return int(_NEIGHBOUR.unpack_from(item.body)[1])
    if item.type in (NEW_ADDRESS, DELETE_ADDRESS):
        return int(_ADDRESS.unpack_from(item.body)[4])
    if item.type in (NEW_LINK, DELETE_LINK):
        return int(_LINK.unpack_from(item.body)[2])
    return 0
