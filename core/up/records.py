"""What the store holds of a cluster of `trimaran up` hosts, and who may be added to it.

/trimaran/cluster/settings      ClusterSettings
/trimaran/cluster/hosts/ID      HostRecord, from joining until the host is forgotten
/trimaran/cluster/alive/ID      the host's name, on a lease that its daemon keeps
/trimaran/cluster/tokens/ID     TokenRecord
/trimaran/cluster/certificates/HOST/SERIAL   when a certificate ends, in seconds since 1970
/trimaran/cluster/revoked/SERIAL             the same, of one that counts no more
/trimaran/cluster/plan          what is done next about the members, in words
"""

import ipaddress
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, Self
from urllib.parse import urlsplit

from trimaran.errors import ConfigError, JoinRefusedError

PREFIX: Final = "/trimaran/cluster/"
SETTINGS_KEY: Final = PREFIX + "settings"
HOSTS: Final = PREFIX + "hosts/"
ALIVE: Final = PREFIX + "alive/"
TOKENS: Final = PREFIX + "tokens/"
CERTIFICATES: Final = PREFIX + "certificates/"
REVOKED: Final = PREFIX + "revoked/"
PLAN_KEY: Final = PREFIX + "plan"

STORE_MEMBERS_DEFAULT: Final = 3
STORE_MEMBERS_MAX: Final = 9
REPLACE_AFTER_DEFAULT_S: Final = 3600.0
CERTIFICATE_LIFETIME_DEFAULT_S: Final = 7 * 86400.0
CERTIFICATE_LIFETIME_MIN_S: Final = 20.0
_ID: Final = re.compile(r"[0-9a-f]{16}")
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_MACHINE: Final = re.compile(r"[A-Za-z0-9_-]{0,64}")


def host_key(host_id: str) -> str:
    """The key of a host's record."""
    return HOSTS + host_id


def alive_key(host_id: str) -> str:
    """The key that is there as long as a host's daemon runs."""
    return ALIVE + host_id


def certificate_key(host_id: str, serial: int) -> str:
    """The key under which a host's certificate is remembered for as long as it is good."""
    return f"{CERTIFICATES}{host_id}/{serial:x}"


def serials_of(keys: Iterable[bytes]) -> tuple[int, ...]:
    """The serial numbers in keys of certificates; what is none is left out."""
    found = set()
    for key in keys:
        text = key.decode("ascii", "replace").rpartition("/")[2]
        if re.fullmatch(r"[0-9a-f]{1,40}", text):
            found.add(int(text, 16))
    return tuple(sorted(found))


def token_key(token_id: str) -> str:
    """The key of a join token's record."""
    return TOKENS + token_id


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What holds for the whole cluster.

    Attributes:
        store_members: how many members the store shall have.
        replace_after_s: how long a member may be away before another host takes its place, in
            seconds; 0 for never by itself.
        certificate_lifetime_s: how long certificates of hosts last, in seconds.
    """

    store_members: int = STORE_MEMBERS_DEFAULT
    replace_after_s: float = REPLACE_AFTER_DEFAULT_S
    certificate_lifetime_s: float = CERTIFICATE_LIFETIME_DEFAULT_S

    def __post_init__(self) -> None:
        if not 1 <= self.store_members <= STORE_MEMBERS_MAX:
            raise ConfigError(
                f"a store of {self.store_members} members: give 1 to {STORE_MEMBERS_MAX}; 3 or 5 "
                "are usual"
            )
        if not 0 <= self.replace_after_s <= 10**9:
            raise ConfigError("the time until a member is replaced is out of range")
        if not CERTIFICATE_LIFETIME_MIN_S <= self.certificate_lifetime_s <= 10**9:
            raise ConfigError(
                f"certificates must last {CERTIFICATE_LIFETIME_MIN_S:g} s or more to be renewed"
            )

    def encode(self) -> bytes:
        """Write the settings as the store's value."""
        return json.dumps(
            {
                "storeMembers": self.store_members,
                "replaceAfter": self.replace_after_s,
                "certificateLifetime": self.certificate_lifetime_s,
            }
        ).encode()

    @classmethod
    def decode(cls, data: bytes | None) -> Self:
        """Read the store's value; what is missing has its default.

        Raises:
            ConfigError: a value is out of range.
            ValueError: it is no such record.
        """
        fields = json.loads(data) if data else {}
        if not isinstance(fields, dict):
            raise ValueError("no object")
        return cls(
            _number(fields, "storeMembers", STORE_MEMBERS_DEFAULT, int),
            _number(fields, "replaceAfter", REPLACE_AFTER_DEFAULT_S, float),
            _number(fields, "certificateLifetime", CERTIFICATE_LIFETIME_DEFAULT_S, float),
        )


def _number(fields: dict[str, Any], name: str, default: Any, kind: type) -> Any:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | kind):
        raise ValueError(f"{name} is no number")
    return kind(value)


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A host of the cluster.

    Attributes:
        id: 16 hexadecimal digits that it drew when it joined.
        name: unique in the cluster; its member of the store has the same.
        address: IP address at which others reach it.
        client_url, peer_url: of its member of the store, where it has one.
        join_address: HOST:PORT of its join endpoint, likewise.
        key_hash: SHA-256 of its public key, hexadecimal.
        machine_id: its id in the fleet, empty where it takes no part in that.
        token: id of the token it joined with, empty for the first host.
        store: whether it may get a member of the store.
    """

    id: str
    name: str
    address: str
    client_url: str
    peer_url: str
    join_address: str
    key_hash: str
    machine_id: str = ""
    token: str = ""
    store: bool = True

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ConfigError(f"{self.id!r} is no id of a host")
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} cannot be a host's name: use up to 63 letters, digits, -, _ and ."
            )
        if not _MACHINE.fullmatch(self.machine_id):
            raise ConfigError(f"{self.machine_id!r} is no machine id")
        try:
            address = ipaddress.ip_address(self.address)
        except ValueError:
            raise ConfigError(f"{self.address!r} is not an IP address") from None
        if address.is_unspecified or address.is_multicast:
            raise ConfigError(f"{self.address} is no address of one host")
        for url in (self.client_url, self.peer_url, f"https://{self.join_address}"):
            _check_own_url(url, self.address)

    def encode(self) -> bytes:
        """Write the record as the store's value."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a value of the store or of a request; unknown fields are left to later versions.

        Raises:
            ValueError, ConfigError: it is no such record.
        """
        fields = json.loads(data)
        if not isinstance(fields, dict):
            raise ValueError("no object")
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        if not all(isinstance(value, bool if n == "store" else str) for n, value in known.items()):
            raise ValueError("a field is of the wrong type")
        try:
            return cls(**known)
        except TypeError:
            raise ValueError("a field is missing") from None


def _check_own_url(url: str, address: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "https" or parts.hostname != address or not port or parts.path:
        raise ConfigError(f"{url!r} is no URL of {address} with a port")


def check_newcomer(host: HostRecord, known: Iterable[HostRecord]) -> HostRecord | None:
    """Check that a host that joins takes nobody's place.

    Returns:
        its own record, where it joined before with the same key and did not hear the answer.

    Raises:
        JoinRefusedError: its id, name or address is another host's.
    """
    again = None
    for other in known:
        if other.id == host.id:
            if other.key_hash != host.key_hash:
                raise JoinRefusedError("taken", "a host with this id and another key has joined")
            again = other
            continue
        for what, mine, theirs in (
            ("name", host.name, other.name),
            ("address", host.address, other.address),
        ):
            same_place = what == "address" and host.join_address != other.join_address
            if mine == theirs and not same_place:
                raise JoinRefusedError(
                    "taken",
                    f"the cluster has a host with the {what} {mine} already: if that one is gone "
                    f"for good, forget it with `trimaran machine forget {other.name}`; otherwise "
                    f"give another --{'advertise' if what == 'address' else what}",
                )
    return again
