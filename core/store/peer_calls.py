"""Calls from one member to another: numbered requests and their answers, as frames' bodies.

Time is an argument. A call ends exactly once: with the answer, with an error, when it takes too
long, or when the connection to the peer is lost.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from trimaran.errors import StatusCode, StoreError, etcd_error

REQUEST: Final = 65  # frame kinds
RESPONSE: Final = 66

_REQUEST_HEAD: Final = struct.Struct("<QB")  # number, method
_RESPONSE_HEAD: Final = struct.Struct("<QB")  # number, gRPC status

Done = Callable[[bytes | StoreError], None]


class PeerMethod(IntEnum):
    """What members ask of each other; numbers go over the wire."""

    LEASE_RENEW = 1
    LEASE_TIME_TO_LIVE = 2
    LEASE_LIST = 3
    MEMBER_ADD = 4
    MEMBER_REMOVE = 5
    MEMBER_UPDATE = 6
    MEMBER_PROMOTE = 7
    HASH_KV = 8
    MEMBERS = 9  # also asked by those who are no members yet


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """A request of a peer.

    Attributes:
        number: to be given back with the answer.
        method: what is asked, a number of `PeerMethod` or one that this version does not know.
        payload: the request's message.
    """

    number: int
    method: int
    payload: bytes


def parse_request(body: bytes) -> PeerRequest | None:
    """Read the body of a REQUEST frame; None where it is too short to be one."""
    if len(body) < _REQUEST_HEAD.size:
        return None
    number, method = _REQUEST_HEAD.unpack_from(body)
    return PeerRequest(number, method, body[_REQUEST_HEAD.size :])


def encode_answer(number: int, outcome: bytes | StoreError) -> bytes:
    """Make the body of the RESPONSE frame to request `number`."""
    if isinstance(outcome, StoreError):
        return _RESPONSE_HEAD.pack(number, outcome.code) + outcome.message.encode()
    return _RESPONSE_HEAD.pack(number, StatusCode.OK) + outcome


def _outcome(status: int, payload: bytes) -> bytes | StoreError:
    if status == StatusCode.OK:
        return payload
    try:
        code = StatusCode(status)
    except ValueError:
        code = StatusCode.UNKNOWN
    return StoreError(code, payload.decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class _Waiting:
    peer: int
    deadline_s: float
    done: Done


class PeerCalls:
    """The calls of one member that wait for an answer.

    Args:
        first_number: of the first request; differs from one start of the member to the next, so
            that a late answer to an earlier life is not taken for one of this.
    """

    def __init__(self, first_number: int) -> None:
        self._next = first_number
        self._waiting: dict[int, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(
        self, peer: int, method: PeerMethod, payload: bytes, deadline_s: float, done: Done
    ) -> bytes:
        """Begin a call.

        Args:
            peer: whom it goes to.
            method: what is asked.
            payload: its message.
            deadline_s: when to give up, on the clock that `expire` is given.
            done: called once, with the answer or the error.

        Returns:
            the body of the REQUEST frame to send.
        """
        number = self._next
        self._next = (self._next + 1) & (2**64 - 1)
        self._waiting[number] = _Waiting(peer, deadline_s, done)
        return _REQUEST_HEAD.pack(number, method) + payload

    def answer(self, peer: int, body: bytes) -> None:
        """Take the body of a RESPONSE frame; one that nobody waits for is dropped."""
        if len(body) < _RESPONSE_HEAD.size:
            return
        number, status = _RESPONSE_HEAD.unpack_from(body)
        waiting = self._waiting.get(number)
        if waiting is None or waiting.peer != peer:
            return
        del self._waiting[number]
        waiting.done(_outcome(status, body[_RESPONSE_HEAD.size :]))

    def expire(self, now_s: float) -> None:
        """End the calls whose time is over."""
        late = [number for number, call in self._waiting.items() if call.deadline_s <= now_s]
        for number in late:
            self._waiting.pop(number).done(etcd_error("TIMEOUT"))

    def lost(self, peer: int) -> None:
        """End the calls to a peer whose connection is gone: whether it acted is not known."""
        gone = [number for number, call in self._waiting.items() if call.peer == peer]
        for number in gone:
            self._waiting.pop(number).done(etcd_error("TIMEOUT_CONNECTION_LOST"))

    def stop(self) -> None:
        """End all calls: this member stops."""
        for number in list(self._waiting):
            self._waiting.pop(number).done(etcd_error("STOPPED"))
