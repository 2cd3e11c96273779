"""Whether all members hold the same data: the leader compares hashes at one revision, now and then.

A hash reads everything, so the pause between two checks follows from what the last one took: all
checks together cost a fixed small share of one core.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SHARE: Final = 0.01  # of one core, at most
_REVISION: Final = struct.Struct("<q")
_HASH: Final = struct.Struct("<Iqq")


@dataclass(frozen=True, slots=True)
class StateHash:
    """A member's hash of its data.

    Attributes:
        value: as HashKV answers it.
        revision: up to which it was taken.
        compact_revision: of the member at that time; hashes compare only where these are equal.
    """

    value: int
    revision: int
    compact_revision: int


def encode_request(revision: int) -> bytes:
    """Make the payload of a HASH_KV request."""
    return _REVISION.pack(revision)


def decode_request(payload: bytes) -> int:
    """Read the payload of a HASH_KV request; raises struct.error where it is none."""
    revision: int = _REVISION.unpack(payload)[0]
    return revision


def encode_hash(known: StateHash) -> bytes:
    """Make the payload of the answer."""
    return _HASH.pack(known.value, known.revision, known.compact_revision)


def decode_hash(payload: bytes) -> StateHash:
    """Read the payload of an answer; raises struct.error where it is none."""
    return StateHash(*_HASH.unpack(payload))


def pause_s(interval_s: float, took_s: float) -> float:
    """Return how long to wait until the next check.

    Args:
        interval_s: as configured.
        took_s: what the last check took.
    """
    return max(interval_s, took_s / SHARE)


def find_corrupt(hashes: Mapping[int, StateHash], own: int) -> list[int]:
    """Find the members whose data differs.

    Args:
        hashes: by member, those that answered, of one revision.
        own: the leader's id.

    Returns:
        ids of those that differ from the majority of the comparable ones; where there is no
        majority, all of them that differ from the leader, and the leader.
    """
    mine = hashes[own]
    comparable = {
        member: known.value
        for member, known in hashes.items()
        if known.revision == mine.revision and known.compact_revision == mine.compact_revision
    }
    values = list(comparable.values())
    if len(set(values)) <= 1:
        return []
    best = max(set(values), key=values.count)
    if values.count(best) * 2 > len(values):
        return sorted(member for member, value in comparable.items() if value != best)
    differing = (member for member, value in comparable.items() if value != mine.value)
    return [*sorted(differing), own]
