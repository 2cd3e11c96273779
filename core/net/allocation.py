"""Which subnet this host takes: a decision from what the store holds, one step at a time.

The caller lists the records, asks for a decision, carries it out in a transaction on the revision
it was based on, and after a lost race lists and asks again. So no interleaving of hosts gives a
subnet to two of them, and a host cut off for longer than its lease never overwrites its successor.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from trimaran.errors import SubnetExhaustedError
from trimaran.net.config import NetworkConfig
from trimaran.net.records import StoredRecord, SubnetRecord, own_record


@dataclass(frozen=True)
class HostIdentity:
    """What tells this host from the others.

    Attributes:
        host_id: stable over restarts, e.g. the machine id.
        public_ip: its address on the underlay.
        mac: address its vxlan device has.
    """

    host_id: str
    public_ip: IPv4Address
    mac: str


@dataclass(frozen=True)
class Keep:
    """The stored record is this host's and up to date."""

    stored: StoredRecord


@dataclass(frozen=True)
class Update:
    """Rewrite this host's record, if its revision is unchanged."""

    stored: StoredRecord
    record: SubnetRecord


@dataclass(frozen=True)
class Create:
    """Write a record whose key must not exist yet."""

    record: SubnetRecord


@dataclass(frozen=True)
class Remove:
    """Delete this host's record, if its revision is unchanged; then decide again."""

    stored: StoredRecord
    reason: str


Decision = Keep | Update | Create | Remove


def decide(
    config: NetworkConfig,
    stored: Sequence[StoredRecord],
    host: HostIdentity,
    preferred: Iterable[IPv4Network] = (),
) -> Decision:
    """Decide the next step towards exactly one correct record of this host.

    Args:
        config: the network.
        stored: every record of the network, from one revision.
        host: this host.
        preferred: subnets held before, most recent first; taken again where they are free.

    Returns:
        the step.

    Raises:
        SubnetExhaustedError: if this host has no subnet and none is free.
    """
    preferred = tuple(preferred)
    mine = own_records(stored, host, preferred)
    for position, item in enumerate(mine):
        if not config.fits(item.record.subnet):
            return Remove(item, f"it is outside the subnets of {config.network}")
        if item.record.ipv6_subnet is not None:
            return Remove(item, "it is a dual-stack record and the network has IPv4 only")
        if position > 0:
            return Remove(item, f"this host also holds {mine[0].record.subnet}")
    mine = mine or adoptable_records(config, stored, host)
    if mine:
        current = mine[0]
        wanted = own_record(
            current.record.subnet, host.public_ip, host.host_id, config.backend, host.mac
        )
        return Keep(current) if current.record == wanted else Update(current, wanted)
    taken = {item.record.subnet for item in stored}
    subnet = _choose(config, taken, host.host_id, preferred)
    return Create(own_record(subnet, host.public_ip, host.host_id, config.backend, host.mac))


def own_records(
    stored: Iterable[StoredRecord], host: HostIdentity, preferred: Sequence[IPv4Network] = ()
) -> list[StoredRecord]:
    """Pick the records this host wrote, the one to keep first."""
    return sorted(
        (item for item in stored if item.record.host_id == host.host_id),
        key=lambda item: (item.record.subnet not in preferred, item.record.subnet),
    )


def adoptable_records(
    config: NetworkConfig, stored: Iterable[StoredRecord], host: HostIdentity
) -> list[StoredRecord]:
    """Pick records without an owner that have this host's public address.

    flannel wrote them, and judges by the address alone; so a host that moves from flannel keeps
    its subnet. A record of another owner is never ours, even with our public address.
    """
    return [
        item
        for item in stored
        if not item.record.host_id
        and item.record.public_ip == host.public_ip
        and item.record.ipv6_subnet is None
        and config.fits(item.record.subnet)
    ]


def duplicate_addresses(stored: Iterable[StoredRecord], host: HostIdentity) -> list[StoredRecord]:
    """Find records of other hosts that claim this host's public address."""
    return [
        item
        for item in stored
        if item.record.public_ip == host.public_ip and item.record.host_id not in ("", host.host_id)
    ]


def _choose(
    config: NetworkConfig,
    taken: set[IPv4Network],
    host_id: str,
    preferred: Iterable[IPv4Network],
) -> IPv4Network:
    """Take a preferred subnet, else the first free one from a place that the host id gives.

    The place keeps hosts that start together apart, and gives a host that lost everything its
    old subnet again where that is free.
    """
    # Records of another length overlap; after a change of SubnetLen both are there for a while.
    odd = [subnet for subnet in taken if subnet.prefixlen != config.subnet_length]

    def free(subnet: IPv4Network) -> bool:
        return subnet not in taken and not any(subnet.overlaps(other) for other in odd)

    for subnet in preferred:
        if config.fits(subnet) and free(subnet):
            return subnet
    count = config.subnet_count
    start = int.from_bytes(hashlib.sha256(host_id.encode()).digest()[:8], "big") % count
    for offset in range(count):
        subnet = config.subnet_at((start + offset) % count)
        if free(subnet):
            return subnet
    raise SubnetExhaustedError(
        f"all {count} subnets of {config.network} are leased; remove a record of a host that is "
        "gone (trimaran net leases), or widen the network"
    )


def derive_mac(host_id: str, vni: int) -> str:
    """Derive the hardware address of the vxlan device.

    It follows from the identity, so that a device made anew has the address peers already know.

    Args:
        host_id: this host's identity.
        vni: the network identifier, so that two networks of one host differ.

    Returns:
        a locally administered unicast address.
    """
    digest = hashlib.sha256(f"vxlan {vni} {host_id}".encode()).digest()
    first = (digest[0] & 0xFC) | 0x02
    return ":".join(f"{byte:02x}" for byte in (first, *digest[1:6]))
