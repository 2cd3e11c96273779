"""Whether all members hold the same data: the leader compares hashes at one revision, now and then.

A hash reads everything, so the pause between two checks follows from what the last one took: all
checks together cost a fixed small share of one core.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from trimaran.errors import StoreError
from trimaran.ext import member as engine
from trimaran.store.peer_calls import Done, PeerMethod
from trimaran.wire import etcd_pb2 as pb

SHARE: Final = 0.01  # of one core, at most
ANSWER_TIMEOUT_S: Final = 600.0  # a hash reads everything
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


HashDone = Callable[[StateHash | StoreError], None]


class Ports(Protocol):
    """What the keeper needs of the node that it serves."""

    now_s: float

    @property
    def is_leader(self) -> bool: ...
    @property
    def revision(self) -> int: ...
    def others(self) -> list[int]: ...
    def hash_state(self, revision: int, done: HashDone) -> None: ...
    def read(self, done: Callable[[StoreError | None], None]) -> None: ...
    def call(
        self, peer: int, method: PeerMethod, payload: bytes, done: Done, timeout_s: float
    ) -> None: ...
    def propose(
        self, kind: int, request: bytes, done: Callable[[int | StoreError], None]
    ) -> None: ...


class CorruptionKeeper:
    """Compares the members' data while this one leads.

    Args:
        ports: the node.
        own: its id.
        interval_s: between two checks; 0 for none.

    Attributes:
        found: called with the ids of corrupt members, before the alarms are raised.
        checks: how many comparisons were made.
    """

    def __init__(self, ports: Ports, own: int, interval_s: float) -> None:
        self.found: Callable[[list[int]], None] = lambda members: None
        self.checks = 0
        self._ports = ports
        self._own = own
        self._interval_s = interval_s
        self._next_s = ports.now_s + interval_s
        self._is_checking = False

    def check(self, now_s: float) -> None:
        """Begin a comparison where one is due."""
        if self._interval_s <= 0 or now_s < self._next_s or self._is_checking:
            return
        self._next_s = now_s + self._interval_s
        others = self._ports.others()
        if self._ports.is_leader and others:
            self.compare(others)

    def compare(self, others: Sequence[int]) -> None:
        """Ask this member and the others for their hashes at the present revision."""
        self._is_checking = True
        began_s = self._ports.now_s
        revision = self._ports.revision
        hashes: dict[int, StateHash] = {}
        waiting = {self._own, *others}

        def told(member: int, outcome: StateHash | StoreError) -> None:
            waiting.discard(member)
            if isinstance(outcome, StateHash):
                hashes[member] = outcome
            if not waiting:
                self._compared(hashes, began_s)

        def answered(member: int, outcome: bytes | StoreError) -> None:
            told(member, outcome if isinstance(outcome, StoreError) else decode_hash(outcome))

        for peer in others:
            self._ports.call(
                peer,
                PeerMethod.HASH_KV,
                encode_request(revision),
                partial(answered, peer),
                ANSWER_TIMEOUT_S,
            )
        self._ports.hash_state(revision, partial(told, self._own))

    def serve(self, payload: bytes, answer: Done) -> None:
        """Answer a peer's HASH_KV, once its revision is applied here too."""
        revision = decode_request(payload)

        def hashed(outcome: StateHash | StoreError) -> None:
            answer(outcome if isinstance(outcome, StoreError) else encode_hash(outcome))

        def confirmed(error: StoreError | None) -> None:
            if error is not None:
                answer(error)
            else:
                self._ports.hash_state(revision, hashed)

        self._ports.read(confirmed)

    def _compared(self, hashes: Mapping[int, StateHash], began_s: float) -> None:
        self._is_checking = False
        self.checks += 1
        took_s = self._ports.now_s - began_s
        self._next_s = self._ports.now_s + pause_s(self._interval_s, took_s)
        corrupt = find_corrupt(hashes, self._own) if self._own in hashes else []
        if not corrupt:
            return
        self.found(corrupt)
        for member in corrupt:
            request = pb.AlarmRequest(
                action=pb.AlarmRequest.ACTIVATE, memberID=member, alarm=pb.CORRUPT
            )
            self._ports.propose(engine.ALARM, request.SerializeToString(), lambda outcome: None)
