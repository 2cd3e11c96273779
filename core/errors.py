"""Every exception Trimaran raises, and etcd's table of errors as clients know it.

The table is the only copy: the build writes it as a C header for the compiled engines, so that
both sides answer the same code with the same text. Clients compare these texts byte for byte.
"""

from enum import IntEnum
from typing import Final


class StatusCode(IntEnum):
    """gRPC status codes, by number as they go over the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class TrimaranError(Exception):
    """The root of every error this package raises on purpose."""


class ConfigError(TrimaranError):
    """An option, file or environment variable is wrong; the text says what to change."""


class InvalidUnitError(TrimaranError):
    """A unit file or unit name cannot be accepted; the text names the line or option."""


class UnitNotFoundError(TrimaranError):
    """No unit of that name is known to the fleet."""


class NetworkConfigError(TrimaranError):
    """The network configuration in the store is missing, malformed or contradicts itself."""


class SubnetExhaustedError(TrimaranError):
    """Every subnet of the configured range is leased to another host."""


class CorruptionError(TrimaranError):
    """Stored data fails its checks; the daemon stops rather than serve it."""


class ProtocolError(TrimaranError):
    """What came from another member is no sound frame; its connection is closed."""


class JoinRefusedError(TrimaranError):
    """A host may not join the cluster; the text says what to do.

    Attributes:
        reason: one word for logs and counters.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class StoreError(TrimaranError):
    """An answer of the store that is not OK.

    Attributes:
        code: the gRPC status code.
        message: the text exactly as the server sent it.
    """

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class StoreUnavailableError(StoreError):
    """No endpoint answered in time; a write may or may not have taken effect."""


class CompactedError(StoreError):
    """The revision asked for has been compacted away.

    Attributes:
        compact_revision: the oldest revision still readable, 0 where the server did not say.
    """

    def __init__(self, message: str, compact_revision: int = 0) -> None:
        super().__init__(StatusCode.OUT_OF_RANGE, message)
        self.compact_revision = compact_revision


# Name in the code -> (gRPC status, text). The texts are part of etcd's interface: its clients
# decide by them whether to retry. Order is the order of the C enumeration.
ETCD_ERRORS: Final[dict[str, tuple[StatusCode, str]]] = {
    "EMPTY_KEY": (StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided"),
    "KEY_NOT_FOUND": (StatusCode.INVALID_ARGUMENT, "etcdserver: key not found"),
    "VALUE_PROVIDED": (StatusCode.INVALID_ARGUMENT, "etcdserver: value is provided"),
    "LEASE_PROVIDED": (StatusCode.INVALID_ARGUMENT, "etcdserver: lease is provided"),
    "TOO_MANY_OPS": (
        StatusCode.INVALID_ARGUMENT,
        "etcdserver: too many operations in txn request",
    ),
    "DUPLICATE_KEY": (
        StatusCode.INVALID_ARGUMENT,
        "etcdserver: duplicate key given in txn request",
    ),
    "INVALID_SORT_OPTION": (StatusCode.INVALID_ARGUMENT, "etcdserver: invalid sort option"),
    "REQUEST_TOO_LARGE": (StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large"),
    "COMPACTED": (
        StatusCode.OUT_OF_RANGE,
        "etcdserver: mvcc: required revision has been compacted",
    ),
    "FUTURE_REVISION": (
        StatusCode.OUT_OF_RANGE,
        "etcdserver: mvcc: required revision is a future revision",
    ),
    "LEASE_TTL_TOO_LARGE": (StatusCode.OUT_OF_RANGE, "etcdserver: too large lease TTL"),
    "NO_SPACE": (
        StatusCode.RESOURCE_EXHAUSTED,
        "etcdserver: mvcc: database space exceeded",
    ),
    "TOO_MANY_REQUESTS": (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    "LEASE_NOT_FOUND": (StatusCode.NOT_FOUND, "etcdserver: requested lease not found"),
    "LEASE_EXISTS": (StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists"),
    "CORRUPT": (StatusCode.DATA_LOSS, "etcdserver: corrupt cluster"),
    "NO_LEADER": (StatusCode.UNAVAILABLE, "etcdserver: no leader"),
    "STOPPED": (StatusCode.UNAVAILABLE, "etcdserver: server stopped"),
    "TIMEOUT": (StatusCode.UNAVAILABLE, "etcdserver: request timed out"),
    "TIMEOUT_CONNECTION_LOST": (
        StatusCode.UNAVAILABLE,
        "etcdserver: request timed out, possibly due to connection lost",
    ),
    "TIMEOUT_LEADER_FAILED": (
        StatusCode.UNAVAILABLE,
        "etcdserver: request timed out, possibly due to previous leader failure",
    ),
    "LEADER_CHANGED": (StatusCode.UNAVAILABLE, "etcdserver: leader changed"),
    "NOT_LEADER": (StatusCode.FAILED_PRECONDITION, "etcdserver: not leader"),
    "BAD_LEADER_TRANSFEREE": (
        StatusCode.FAILED_PRECONDITION,
        "etcdserver: bad leader transferee",
    ),
    "TIMEOUT_LEADER_TRANSFER": (
        StatusCode.UNKNOWN,
        "etcdserver: request timed out, leader transfer took too long",
    ),
    "LEARNER": (StatusCode.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner"),
    "MEMBER_NOT_FOUND": (StatusCode.NOT_FOUND, "etcdserver: member not found"),
    "MEMBER_EXISTS": (StatusCode.FAILED_PRECONDITION, "etcdserver: member ID already exist"),
    "PEER_URL_EXISTS": (StatusCode.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists"),
    "MEMBER_BAD_URLS": (
        StatusCode.INVALID_ARGUMENT,
        "etcdserver: given member URLs are invalid",
    ),
    # etcd means FAILED_PRECONDITION; what it sends is UNKNOWN.
    "NOT_ENOUGH_STARTED": (
        StatusCode.UNKNOWN,
        "etcdserver: re-configuration failed due to not enough started members",
    ),
    "MEMBER_NOT_LEARNER": (
        StatusCode.FAILED_PRECONDITION,
        "etcdserver: can only promote a learner member",
    ),
    "LEARNER_NOT_READY": (
        StatusCode.FAILED_PRECONDITION,
        "etcdserver: can only promote a learner member which is in sync with leader",
    ),
    "TOO_MANY_LEARNERS": (
        StatusCode.FAILED_PRECONDITION,
        "etcdserver: too many learner members in cluster",
    ),
    "UNHEALTHY": (StatusCode.UNAVAILABLE, "etcdserver: unhealthy cluster"),
    "CLUSTER_ID_MISMATCH": (StatusCode.FAILED_PRECONDITION, "etcdserver: cluster ID mismatch"),
}


def etcd_error(name: str) -> StoreError:
    """Build the exception for one row of `ETCD_ERRORS`.

    Args:
        name: a key of the table.

    Returns:
        the error, ready to raise.
    """
    code, message = ETCD_ERRORS[name]
    if name == "COMPACTED":
        return CompactedError(message)
    return StoreError(code, message)
