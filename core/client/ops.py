"""Operations and comparisons as a caller writes them, and their wire form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self, TypeAlias

from trimaran.wire import etcd_pb2 as pb

Key: TypeAlias = str | bytes
Operator: TypeAlias = Literal["=", "!=", ">", "<"]
SortOrder: TypeAlias = Literal["none", "ascend", "descend"]
SortTarget: TypeAlias = Literal["key", "version", "create", "mod", "value"]

# As a range end it stands for "no end"; as a key, with that end, for the first key there can be.
_OPEN: Final = b"\0"
_OPERATORS: Final = {
    "=": pb.Compare.EQUAL,
    "!=": pb.Compare.NOT_EQUAL,
    ">": pb.Compare.GREATER,
    "<": pb.Compare.LESS,
}


def to_bytes(text: Key) -> bytes:
    """Encode a key or value; text is UTF-8."""
    return text.encode() if isinstance(text, str) else bytes(text)


def prefix_range_end(prefix: Key) -> bytes:
    """Compute the smallest key after all that begin with a prefix.

    Args:
        prefix: may be empty, which means every key.

    Returns:
        the range end for the API, "\\0" where there is no such key.
    """
    stripped = to_bytes(prefix).rstrip(b"\xff")
    if not stripped:
        return _OPEN
    return stripped[:-1] + bytes([stripped[-1] + 1])


def key_range(
    key: Key, range_end: Key | None, prefix: bool, from_key: bool = False
) -> tuple[bytes, bytes]:
    """Give key and range end of a request.

    Args:
        key: the first key; "" with prefix or from_key means the first there can be.
        range_end: first key after the range; None for the one key.
        prefix: every key that begins with `key`.
        from_key: every key from `key` on.

    Raises:
        ValueError: more than one of the three ways to name a range is used.
    """
    if (range_end is not None) + prefix + from_key > 1:
        raise ValueError("use one of range_end, prefix and from_key")
    first = to_bytes(key)
    if prefix:
        return first or _OPEN, prefix_range_end(first)
    if from_key:
        return first or _OPEN, _OPEN
    return first, to_bytes(range_end or b"")


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key or a range; see `Client.get` for what the fields mean."""

    key: Key
    range_end: Key | None = None
    prefix: bool = False
    from_key: bool = False
    revision: int = 0
    limit: int = 0
    sort_order: SortOrder = "none"
    sort_target: SortTarget = "key"
    serializable: bool = False
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0

    def request(self) -> pb.RangeRequest:
        """Give the wire form."""
        key, range_end = key_range(self.key, self.range_end, self.prefix, self.from_key)
        return pb.RangeRequest(
            key=key,
            range_end=range_end,
            limit=self.limit,
            revision=self.revision,
            sort_order=self.sort_order.upper(),
            sort_target=self.sort_target.upper(),
            serializable=self.serializable,
            keys_only=self.keys_only,
            count_only=self.count_only,
            min_mod_revision=self.min_mod_revision,
            max_mod_revision=self.max_mod_revision,
            min_create_revision=self.min_create_revision,
            max_create_revision=self.max_create_revision,
        )


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; see `Client.put` for what the fields mean."""

    key: Key
    value: Key = b""
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False

    def request(self) -> pb.PutRequest:
        """Give the wire form."""
        return pb.PutRequest(
            key=to_bytes(self.key),
            value=to_bytes(self.value),
            lease=self.lease,
            prev_kv=self.prev_kv,
            ignore_value=self.ignore_value,
            ignore_lease=self.ignore_lease,
        )


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key or a range; see `Client.delete` for what the fields mean."""

    key: Key
    range_end: Key | None = None
    prefix: bool = False
    from_key: bool = False
    prev_kv: bool = False

    def request(self) -> pb.DeleteRangeRequest:
        """Give the wire form."""
        key, range_end = key_range(self.key, self.range_end, self.prefix, self.from_key)
        return pb.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=self.prev_kv)


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction; make it with one of the class methods.

    A key that does not exist has version, revisions and lease 0, and no value compares true.
    Over a range (range_end or prefix) the condition must hold for each key in it.
    """

    target: Literal["version", "create", "mod", "value", "lease"]
    key: Key
    operator: Operator
    operand: int | bytes
    range_end: bytes = b""

    @classmethod
    def version(cls, key: Key, operator: Operator, version: int, *, prefix: bool = False) -> Self:
        """Compare how many puts the key has had since its creation; 0 means absent."""
        return cls("version", key, operator, version, prefix_range_end(key) if prefix else b"")

    @classmethod
    def create(cls, key: Key, operator: Operator, revision: int, *, prefix: bool = False) -> Self:
        """Compare the revision of the key's creation; 0 means absent."""
        return cls("create", key, operator, revision, prefix_range_end(key) if prefix else b"")

    @classmethod
    def mod(cls, key: Key, operator: Operator, revision: int, *, prefix: bool = False) -> Self:
        """Compare the revision of the key's last change; 0 means absent."""
        return cls("mod", key, operator, revision, prefix_range_end(key) if prefix else b"")

    @classmethod
    def value(cls, key: Key, operator: Operator, value: Key, *, prefix: bool = False) -> Self:
        """Compare the value; always false for an absent key, even with "!="."""
        end = prefix_range_end(key) if prefix else b""
        return cls("value", key, operator, to_bytes(value), end)

    @classmethod
    def lease(cls, key: Key, operator: Operator, lease: int, *, prefix: bool = False) -> Self:
        """Compare the id of the lease that the key hangs on; 0 means none."""
        return cls("lease", key, operator, lease, prefix_range_end(key) if prefix else b"")

    def request(self) -> pb.Compare:
        """Give the wire form.

        Raises:
            ValueError: the operator is none of "=", "!=", ">", "<".
        """
        if self.operator not in _OPERATORS:
            raise ValueError(f"operator {self.operator!r}: use one of {', '.join(_OPERATORS)}")
        message = pb.Compare(
            result=_OPERATORS[self.operator],
            target=self.target.upper(),
            key=to_bytes(self.key) or (_OPEN if self.range_end else b""),
            range_end=self.range_end,
        )
        field = f"{self.target}_revision" if self.target in ("create", "mod") else self.target
        setattr(message, field, self.operand)
        return message


@dataclass(frozen=True, slots=True)
class Txn:
    """A transaction, also inside another one."""

    compare: Sequence[Compare] = ()
    success: "Sequence[Op]" = ()
    failure: "Sequence[Op]" = ()

    def request(self) -> pb.TxnRequest:
        """Give the wire form."""
        return pb.TxnRequest(
            compare=[comparison.request() for comparison in self.compare],
            success=[_request_op(operation) for operation in self.success],
            failure=[_request_op(operation) for operation in self.failure],
        )

    def reads_only(self) -> bool:
        """Tell whether nothing in either branch can change the store."""
        return all(
            isinstance(operation, Get) or (isinstance(operation, Txn) and operation.reads_only())
            for operation in (*self.success, *self.failure)
        )


Op: TypeAlias = Get | Put | Delete | Txn


def _request_op(operation: Op) -> pb.RequestOp:
    match operation:
        case Get():
            return pb.RequestOp(request_range=operation.request())
        case Put():
            return pb.RequestOp(request_put=operation.request())
        case Delete():
            return pb.RequestOp(request_delete_range=operation.request())
        case Txn():
            return pb.RequestOp(request_txn=operation.request())
