"""Changes of the membership as bytes: the configuration entry of the log, and rows of the state.

A configuration entry carries raft's changes together with the rows that describe the members, so
that both become true at once. All numbers are little-endian:

    [u8 version = 1][u64 origin][u64 incarnation][u64 sequence]
    [u16 count]{[u8 op][u64 member id]}
    [u32 count]{[u32 size][key][u32 size or 0xffffffff][value]}

The second list alone is the request of a ROWS operation; the size 0xffffffff stands for a row
that is removed, and has no value. An entry of no bytes ends a joint configuration.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from trimaran.errors import CorruptionError

VERSION: Final = 1
ROW_REMOVED: Final = 0xFFFF_FFFF
# The state takes rows of these kinds only from an entry of the log.
ROW_PREFIXES: Final = (b"member/", b"removed/", b"cluster/")
_HEAD: Final = struct.Struct("<BQQQH")
_CHANGE: Final = struct.Struct("<BQ")
_SIZE: Final = struct.Struct("<I")
MEMBERS_ROW: Final = b"raft/members"
MEMBERS_VERSION: Final = 1
_MEMBERS_HEAD: Final = struct.Struct("<BB")
_COUNT: Final = struct.Struct("<H")

Row = tuple[bytes, bytes | None]


class Op(IntEnum):
    """What becomes of a member in raft; the numbers are in the log."""

    ADD_VOTER = 1
    ADD_LEARNER = 2
    REMOVE = 3


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration entry.

    Attributes:
        changes: (op, member id), all of them at once.
        rows: (key, value), in order; None removes the row.
        origin: id of the member that proposed it, 0 for the first entry of a cluster.
        incarnation: how many times the origin had been started.
        sequence: number of the entry among those of this incarnation, from 1.
    """

    changes: tuple[tuple[Op, int], ...]
    rows: tuple[Row, ...]
    origin: int = 0
    incarnation: int = 0
    sequence: int = 0


def encode_rows(rows: Sequence[Row]) -> bytes:
    """Encode rows as the request of a ROWS operation; None as a value removes the row."""
    parts = [_SIZE.pack(len(rows))]
    for key, value in rows:
        parts += (_SIZE.pack(len(key)), key)
        parts += (_SIZE.pack(ROW_REMOVED),) if value is None else (_SIZE.pack(len(value)), value)
    return b"".join(parts)


def encode_configuration(configuration: Configuration) -> bytes:
    """Encode a configuration entry."""
    parts = [
        _HEAD.pack(
            VERSION,
            configuration.origin,
            configuration.incarnation,
            configuration.sequence,
            len(configuration.changes),
        ),
        *(_CHANGE.pack(op, member_id) for op, member_id in configuration.changes),
        encode_rows(configuration.rows),
    ]
    return b"".join(parts)


def encode_members(voters: Sequence[int]) -> bytes:
    """Encode the row "raft/members" of a group without learners, as `configuration.h` has it."""
    ids = sorted(voters)
    empty = _COUNT.pack(0)
    parts = [_MEMBERS_HEAD.pack(MEMBERS_VERSION, 0), _COUNT.pack(len(ids))]
    parts += [member_id.to_bytes(8, "little") for member_id in ids]
    return b"".join([*parts, empty, empty, empty])


class _Reader:
    """Takes numbers and texts from bytes, and refuses to read past their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, size: int) -> bytes:
        end = self._offset + size
        if end > len(self._data):
            raise CorruptionError("an entry of the membership ends before its content does")
        piece = self._data[self._offset : end]
        self._offset = end
        return piece

    def numbers(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))

    def end(self) -> None:
        if self._offset != len(self._data):
            raise CorruptionError("an entry of the membership goes on after its content")


def _read_rows(reader: _Reader) -> tuple[Row, ...]:
    rows: list[Row] = []
    (count,) = reader.numbers(_SIZE)
    for _ in range(count):
        (key_size,) = reader.numbers(_SIZE)
        key = reader.take(key_size)
        (value_size,) = reader.numbers(_SIZE)
        rows.append((key, None if value_size == ROW_REMOVED else reader.take(value_size)))
    return tuple(rows)


def decode_rows(data: bytes) -> tuple[Row, ...]:
    """Decode the request of a ROWS operation.

    Raises:
        CorruptionError: the bytes are none.
    """
    reader = _Reader(data)
    rows = _read_rows(reader)
    reader.end()
    return rows


def decode_configuration(data: bytes) -> Configuration:
    """Decode a configuration entry; that of no bytes has neither changes nor rows.

    Raises:
        CorruptionError: the bytes are none.
    """
    if not data:
        return Configuration((), ())
    reader = _Reader(data)
    version, origin, incarnation, sequence, count = reader.numbers(_HEAD)
    if version != VERSION:
        raise CorruptionError(f"an entry of the membership is of version {version}, not {VERSION}")
    changes = []
    for _ in range(count):
        op, member_id = reader.numbers(_CHANGE)
        if op not in tuple(Op):
            raise CorruptionError(f"an entry of the membership has the unknown change {op}")
        changes.append((Op(op), member_id))
    rows = _read_rows(reader)
    reader.end()
    return Configuration(tuple(changes), rows, origin, incarnation, sequence)
