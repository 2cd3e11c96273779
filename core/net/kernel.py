"""Kernel state as values: what there should be, what there is, and the steps between the two.

Level-triggered: the steps are computed afresh from both states, never from what changed, so a
lost event, a crash half-way or an operator's hand cannot leave the two apart for good.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Final

ROUTE_PROTOCOL: Final = 84  # Unassigned in the kernel and in iproute2's rt_protos.
KERNEL_ROUTE_PROTOCOL: Final = 2


@dataclass(frozen=True)
class VxlanParameters:
    """What a vxlan device cannot change once made.

    Attributes:
        vni: network identifier.
        port: destination UDP port.
        local: source address of the outer packets.
        underlay: name of the device they leave by, empty for any.
        learning: whether the device learns addresses from packets.
        gbp: whether it carries the group policy extension.
        other_options: it has a group, miss notifications or external control, which we never set.
    """

    vni: int
    port: int
    local: IPv4Address | None
    underlay: str
    learning: bool = False
    gbp: bool = False
    other_options: bool = False


@dataclass(frozen=True)
class Link:
    """One network device.

    Attributes:
        name: its name.
        kind: `vxlan`, `tun` or whatever the kernel calls it, empty for hardware.
        mtu: in bytes.
        mac: hardware address, empty for a TUN device.
        up: whether it is administratively up.
        alias: free text of the device; ours says which network owns it.
        vxlan: parameters of a vxlan device, else None.
    """

    name: str
    kind: str
    mtu: int
    mac: str = ""
    up: bool = True
    alias: str = ""
    vxlan: VxlanParameters | None = None


@dataclass(frozen=True)
class Address:
    """An address of a device."""

    link: str
    address: IPv4Address
    prefix_length: int


@dataclass(frozen=True)
class Neighbour:
    """A permanent neighbour: the hardware address that stands for an overlay address."""

    link: str
    address: IPv4Address
    mac: str


@dataclass(frozen=True)
class Forwarding:
    """An entry of a vxlan device's forwarding database: the host behind a hardware address."""

    link: str
    mac: str
    destination: IPv4Address


@dataclass(frozen=True)
class Route:
    """A unicast route of the main table."""

    destination: IPv4Network
    link: str
    gateway: IPv4Address | None = None
    onlink: bool = False
    protocol: int = ROUTE_PROTOCOL
    metric: int = 0


Entry = Address | Neighbour | Forwarding | Route


@dataclass(frozen=True)
class KernelState:
    """Devices by name, and what hangs on them."""

    links: dict[str, Link] = field(default_factory=dict)
    addresses: frozenset[Address] = frozenset()
    neighbours: frozenset[Neighbour] = frozenset()
    forwardings: frozenset[Forwarding] = frozenset()
    routes: frozenset[Route] = frozenset()


@dataclass(frozen=True)
class CreateLink:
    """Make a device; it must not exist."""

    link: Link


@dataclass(frozen=True)
class ChangeLink:
    """Give an existing device the MTU, alias, state and, if not empty, hardware address."""

    link: Link


@dataclass(frozen=True)
class DeleteLink:
    """Remove a device and all that hangs on it."""

    name: str


@dataclass(frozen=True)
class Add:
    """Add an entry; `replace` where an entry of ours with the same key may be there."""

    entry: Entry
    replace: bool = False


@dataclass(frozen=True)
class Delete:
    """Remove an entry."""

    entry: Entry


@dataclass(frozen=True)
class Conflict:
    """Something that is not ours is in the way; the text says what to do."""

    text: str


Step = CreateLink | ChangeLink | DeleteLink | Add | Delete | Conflict


def difference(
    desired: KernelState, actual: KernelState, owner: str, network: IPv4Network | None
) -> list[Step]:
    """Compute the steps from the actual state to the desired one.

    Ours, and so removed when not desired, are: devices with our alias; addresses, permanent
    neighbours and forwarding entries on desired devices; routes within `network` on desired
    devices whatever protocol they carry, save the kernel's own; and routes within `network` with
    our protocol anywhere. Nothing else is touched.

    Args:
        desired: what there should be.
        actual: what the kernel has.
        owner: the alias of this network's devices.
        network: the overlay's range; None while it is not known.

    Returns:
        the steps in an order in which each can succeed: removals, devices, entries, routes.
    """
    link_steps, fresh = _link_steps(desired, actual, owner)
    if any(isinstance(step, Conflict) for step in link_steps):
        return link_steps
    removals: list[Step] = []
    additions: list[Step] = []
    for wanted, present in _entry_sets(desired, actual, network):
        # What hangs on a device that goes or is made anew goes with it.
        remaining = {entry for entry in present if entry.link not in fresh}
        _entry_steps(wanted, remaining, removals, additions)
    removals.reverse()
    return removals + link_steps + additions


def _link_steps(
    desired: KernelState, actual: KernelState, owner: str
) -> tuple[list[Step], set[str]]:
    """Steps for devices, and the names of those that lose their entries by them."""
    steps: list[Step] = []
    fresh: set[str] = set()
    for name, link in sorted(actual.links.items()):
        if link.alias == owner and name not in desired.links:
            steps.append(DeleteLink(name))
            fresh.add(name)
    for name, link in sorted(desired.links.items()):
        present = actual.links.get(name)
        if present is None:
            steps.append(CreateLink(link))
            fresh.add(name)
        elif present.kind != link.kind:
            kind = present.kind or "hardware"
            steps.append(
                Conflict(f"device {name} exists and is a {kind} device, not {link.kind}: rename it")
            )
        elif present.alias not in ("", owner):
            steps.append(
                Conflict(f"device {name} belongs to {present.alias!r}: use another VNI or port")
            )
        elif present.vxlan != link.vxlan:
            steps += [DeleteLink(name), CreateLink(link)]
            fresh.add(name)
        elif present != link:
            # Setting even the same hardware address again makes the kernel drop all neighbours.
            mac = link.mac if link.mac != present.mac else ""
            steps.append(ChangeLink(replace(link, mac=mac)))
    return steps, fresh


def _entry_sets(
    desired: KernelState, actual: KernelState, network: IPv4Network | None
) -> Iterable[tuple[Iterable[Entry], Iterable[Entry]]]:
    """Pair the desired entries of each sort with those of the actual ones that are ours.

    In the order of addition: what a route needs comes before it.
    """
    links = desired.links
    yield desired.addresses, {entry for entry in actual.addresses if entry.link in links}
    yield desired.neighbours, {entry for entry in actual.neighbours if entry.link in links}
    yield desired.forwardings, {entry for entry in actual.forwardings if entry.link in links}
    yield (
        desired.routes,
        {
            entry
            for entry in actual.routes
            if network is not None
            and entry.protocol != KERNEL_ROUTE_PROTOCOL
            and (entry.link in links or entry.protocol == ROUTE_PROTOCOL)
            and (entry.destination == network or entry.destination.subnet_of(network))
        },
    )


def entry_key(entry: Entry) -> tuple[object, ...]:
    """Return what the kernel keeps only one entry for."""
    if isinstance(entry, Route):
        return (Route, entry.destination, entry.metric)
    if isinstance(entry, Neighbour):
        return (Neighbour, entry.link, entry.address)
    if isinstance(entry, Forwarding):
        return (Forwarding, entry.link, entry.mac)
    return (Address, entry.link, entry.address, entry.prefix_length)


def _entry_steps(
    wanted: Iterable[Entry],
    present: Iterable[Entry],
    removals: list[Step],
    additions: list[Step],
) -> None:
    wanted, present = set(wanted), set(present)
    if wanted == present:
        return
    wanted_keys = {entry_key(entry): entry for entry in wanted}
    present_keys: dict[tuple[object, ...], set[Entry]] = {}
    for entry in sorted(present, key=repr):
        key = entry_key(entry)
        present_keys.setdefault(key, set()).add(entry)
        if key not in wanted_keys:
            removals.append(Delete(entry))
    for key, entry in wanted_keys.items():
        there = present_keys.get(key, set())
        if entry not in there and len(there) == 1:
            # Replacing in one step leaves no moment without the entry.
            additions.append(Add(entry, replace=True))
            continue
        removals.extend(Delete(other) for other in there if other != entry)
        if entry not in there:
            additions.append(Add(entry))
