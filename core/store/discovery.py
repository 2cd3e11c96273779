"""How first members find each other: names of DNS records, and the registry in a store.

The registry is etcd's: whoever founds a cluster writes its size under
/_etcd/registry/TOKEN/_config/size, and each member enters itself under
/_etcd/registry/TOKEN/members/ID as NAME=URL,... The first ones to enter, up to the size, are the
cluster.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from trimaran.errors import ConfigError
from trimaran.store.flags import parse_cluster

REGISTRY: Final = "/_etcd/registry"
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """An SRV record: where a service is.

    Attributes:
        host, port: of the service; the host has no dot at its end.
        addresses: what the host resolves to, with the port.
    """

    host: str
    port: int
    addresses: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class Entry:
    """A member's entry in the registry.

    Attributes:
        key: in the store.
        value: NAME=URL,...
        create_revision: its place in the order of entries.
    """

    key: str
    value: str
    create_revision: int


def service_names(service: str, domain: str, suffix: str) -> dict[str, str]:
    """Give the names of the SRV records of a service, by the scheme of the URLs they stand for.

    Args:
        service: "etcd-server" or "etcd-client".
        domain: --discovery-srv.
        suffix: --discovery-srv-name, "" for none.
    """
    end = f"-{suffix}" if suffix else ""
    return {
        "https": f"_{service}-ssl{end}._tcp.{domain}",
        "http": f"_{service}{end}._tcp.{domain}",
    }


def service_urls(records: Mapping[str, Sequence[ServiceRecord]]) -> list[str]:
    """Give the URLs that SRV records stand for.

    Args:
        records: by scheme.
    """
    return [
        f"{scheme}://{_bracketed(record.host)}:{record.port}"
        for scheme, found in records.items()
        for record in found
    ]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def cluster_of_records(
    name: str,
    own_urls: Sequence[str],
    own_addresses: Collection[Address],
    records: Mapping[str, Sequence[ServiceRecord]],
    domain: str,
) -> dict[str, tuple[str, ...]]:
    """Make the initial cluster from SRV records.

    The names of the others are not in the records, and numbers stand for them.

    Args:
        name: of this member.
        own_urls: its advertised peer URLs.
        own_addresses: what those resolve to.
        records: by scheme.
        domain: --discovery-srv.

    Raises:
        ConfigError: this member is not among the records, or not as it advertises itself.
    """
    cluster: dict[str, tuple[str, ...]] = {}
    others = 0
    for scheme, found in records.items():
        for record in found:
            url = f"{scheme}://{_bracketed(record.host)}:{record.port}"
            if record.addresses.isdisjoint(own_addresses):
                cluster[str(others)] = (url,)
                others += 1
                continue
            if all(urlsplit(own).scheme != scheme for own in own_urls):
                raise ConfigError(
                    f"--discovery-srv {domain} names this member as {url}, which has another "
                    f"scheme than --initial-advertise-peer-urls {','.join(own_urls)}"
                )
            cluster[name] = (*cluster.get(name, ()), url)
    if not cluster:
        raise ConfigError(
            f"--discovery-srv {domain}: there are no SRV records "
            f"{' or '.join(service_names('etcd-server', domain, '').values())}"
        )
    if name not in cluster:
        raise ConfigError(
            f"--discovery-srv {domain} names no member with the address of "
            f"--initial-advertise-peer-urls {','.join(own_urls)}: add an SRV record for it"
        )
    if len(cluster[name]) != len(own_urls):
        raise ConfigError(
            f"--discovery-srv {domain} names this member as {','.join(cluster[name])}: give "
            "--initial-advertise-peer-urls the same"
        )
    return cluster


def size_key(token: str) -> str:
    """The key of a new cluster's size."""
    return f"{REGISTRY}/{token}/_config/size"


def entries_prefix(token: str) -> str:
    """What the keys of all entries begin with."""
    return f"{REGISTRY}/{token}/members/"


def entry_key(token: str, member: int) -> str:
    """The key of a member's entry."""
    return f"{entries_prefix(token)}{member:x}"


def entry_value(name: str, peer_urls: Sequence[str]) -> str:
    """What a member enters."""
    return ",".join(f"{name}={url}" for url in peer_urls)


def parse_size(token: str, value: bytes | None) -> int:
    """Read the size of the cluster to be.

    Raises:
        ConfigError: it is missing or none.
    """
    if value is None:
        raise ConfigError(
            f"discovery: size key not found: write how many members the cluster will have to "
            f"{size_key(token)}, e.g. etcdctl put {size_key(token)} 3"
        )
    if not re.fullmatch(rb"[0-9]{1,9}", value) or int(value) == 0:
        raise ConfigError(
            f"discovery: size key is bad: {size_key(token)} holds {value[:40]!r}, not the number "
            "of members"
        )
    return int(value)


def founders_of(entries: Sequence[Entry], size: int) -> list[Entry]:
    """Choose the cluster's first members from the registry: those who came first."""
    return sorted(entries, key=lambda entry: (entry.create_revision, entry.key))[:size]


def is_full(entries: Sequence[Entry], size: int, own_key: str) -> bool:
    """Tell whether the cluster has all its members, and this one is not among them."""
    founders = founders_of(entries, size)
    return len(founders) == size and all(entry.key != own_key for entry in founders)


def cluster_of_entries(entries: Sequence[Entry], size: int) -> dict[str, tuple[str, ...]] | None:
    """Make the initial cluster from the registry.

    Returns:
        peer URLs by name, None while members are missing.

    Raises:
        ConfigError: an entry makes no sense, or two members have the same name or URL.
    """
    founders = founders_of(entries, size)
    if len(founders) < size:
        return None
    cluster: dict[str, tuple[str, ...]] = {}
    urls: set[str] = set()
    for entry in founders:
        for name, given in parse_cluster(f"discovery-endpoints: {entry.key}", entry.value).items():
            if name in cluster or urls.intersection(given):
                raise ConfigError(
                    f"discovery: two members are entered as {name} or have the same URL: give "
                    "each its own --name and --initial-advertise-peer-urls, and take a new token"
                )
            cluster[name] = given
            urls.update(given)
    return cluster
