"""Frames between members: their envelope, and the greeting that opens every connection.

A frame is its size (32 bits, of everything after the checksum), a CRC-32C of everything after
it, version, kind, 16 bits of zero, and the body; numbers are little-endian. Kinds below 64 are
raft's and parsed by the engine (`ext/src/peerframe.h`); those from 64 on are read here.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from trimaran.errors import ProtocolError
from trimaran.ext.checksum import crc32c
from trimaran.ext.peer import encode_frame as encode_frame

FRAME_VERSION: Final = 1
HELLO: Final = 64
REFUSED: Final = 71

# What a member speaks: the lowest and the highest version of the protocol.
PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1

HELLO_BYTES_MAX: Final = 4096
FRAME_BYTES_MAX: Final = 64 * 1024**2

_ENVELOPE: Final = struct.Struct("<II")  # size, checksum
_HEAD: Final = struct.Struct("<BBH")  # version, kind, zero
_HELLO: Final = struct.Struct("<QQQBBB")  # cluster, sender, addressee, purpose, protocols
_VERSION_BYTES_MAX: Final = 64


class Purpose(IntEnum):
    """What a connection is for, as its opener says."""

    MESSAGES = 1  # raft's messages and calls, from the opener to the other
    CALL = 2  # one call, possibly by one who is not a member yet
    SNAPSHOT = 3  # one snapshot, from the opener to the other


class Refusal(IntEnum):
    """Why a connection is refused; numbers go over the wire."""

    WRONG_CLUSTER = 1
    WRONG_MEMBER = 2  # meant for another member, or from one that cannot be
    REMOVED = 3
    VERSION = 4
    PROTOCOL = 5  # what came was no sound frame
    TIMEOUT = 6  # nothing came
    CERTIFICATE = 7
    OVERLOAD = 8


REFUSAL_TEXTS: Final = {
    Refusal.WRONG_CLUSTER: "it belongs to another cluster",
    Refusal.WRONG_MEMBER: "it is meant for another member, or says it is one that it cannot be",
    Refusal.REMOVED: "the member has been removed from the cluster",
    Refusal.VERSION: "it speaks no common version of the protocol",
    Refusal.PROTOCOL: "it does not send sound frames",
    Refusal.TIMEOUT: "it says nothing",
    Refusal.CERTIFICATE: "its certificate is not accepted",
    Refusal.OVERLOAD: "too many connections are being opened",
}


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame on a connection, and its answer.

    Attributes:
        cluster_id: 0 in a call of one who does not know it yet.
        sender: the member's id, 0 likewise.
        addressee: the id of the member it is for, 0 in a call to whoever is there.
        purpose: of the connection.
        protocol_min, protocol_max: versions of the protocol the sender speaks.
        version: of the sender's server, "3.6.0".
    """

    cluster_id: int
    sender: int
    addressee: int
    purpose: Purpose
    version: str
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX

    def encode(self) -> bytes:
        """Make the whole frame."""
        head = _HELLO.pack(
            self.cluster_id,
            self.sender,
            self.addressee,
            self.purpose,
            self.protocol_min,
            self.protocol_max,
        )
        return encode_frame(HELLO, head + self.version.encode("ascii", "replace"))

    @classmethod
    def parse(cls, body: bytes) -> "Hello":
        """Read the body of a frame.

        Raises:
            ProtocolError: it is no greeting.
        """
        if not _HELLO.size <= len(body) <= _HELLO.size + _VERSION_BYTES_MAX:
            raise ProtocolError(f"a greeting of {len(body)} bytes")
        cluster, sender, addressee, purpose, lowest, highest = _HELLO.unpack_from(body)
        try:
            known = Purpose(purpose)
            version = body[_HELLO.size :].decode("ascii")
        except ValueError:
            raise ProtocolError("a greeting that makes no sense") from None
        return cls(cluster, sender, addressee, known, version, lowest, highest)


def check_hello(hello: Hello, cluster_id: int, member_id: int) -> Refusal | None:
    """Check the greeting of one who connects to this member.

    Args:
        hello: what it said.
        cluster_id, member_id: this member's own.

    Returns:
        why it is refused, None where it is not.
    """
    if hello.protocol_min > PROTOCOL_MAX or hello.protocol_max < PROTOCOL_MIN:
        return Refusal.VERSION
    is_call = hello.purpose == Purpose.CALL
    if hello.cluster_id != cluster_id and not (is_call and hello.cluster_id == 0):
        return Refusal.WRONG_CLUSTER
    if hello.addressee != member_id and not (is_call and hello.addressee == 0):
        return Refusal.WRONG_MEMBER
    if hello.sender == member_id or (hello.sender == 0 and not is_call):
        return Refusal.WRONG_MEMBER
    return None


def encode_refusal(refusal: Refusal) -> bytes:
    """Make the frame that says why a connection is closed."""
    return encode_frame(REFUSED, bytes([refusal]))


def parse_refusal(body: bytes) -> Refusal:
    """Read the body of a REFUSED frame; what is not known counts as PROTOCOL."""
    try:
        return Refusal(body[0])
    except (IndexError, ValueError):
        return Refusal.PROTOCOL


class FrameReader:
    """Finds frames in a stream of bytes, in pieces of any size.

    Args:
        bytes_max: the largest frame taken, so that nobody makes this member hold more.
    """

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self._buffer = bytearray()
        self._start = 0

    def add(self, data: bytes | memoryview) -> None:
        """Take bytes that arrived."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next(self) -> tuple[int, bytes] | None:
        """Take one whole frame off: (kind, body); None where it has not arrived yet.

        Raises:
            ProtocolError: what arrived is no sound frame; the stream is of no use any more.
        """
        at = self._start
        if len(self._buffer) - at < _ENVELOPE.size:
            return None
        size, checksum = _ENVELOPE.unpack_from(self._buffer, at)
        if not _HEAD.size <= size <= self.bytes_max:
            raise ProtocolError(f"a frame of {size} bytes")
        begin, end = at + _ENVELOPE.size, at + _ENVELOPE.size + size
        if len(self._buffer) < end:
            return None
        rest = bytes(memoryview(self._buffer)[begin:end])
        if crc32c(rest) != checksum:
            raise ProtocolError("a frame whose checksum does not fit")
        version, kind, zero = _HEAD.unpack_from(rest)
        if version != FRAME_VERSION or zero != 0:
            raise ProtocolError(f"a frame of version {version}")
        self._start = end
        return kind, rest[_HEAD.size :]

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Take all whole frames off.

        Raises:
            ProtocolError: as `next`.
        """
        while (frame := self.next()) is not None:
            yield frame

    def rest(self) -> bytes:
        """Take everything that has not been read, as bytes for another reader."""
        rest = bytes(memoryview(self._buffer)[self._start :])
        self._buffer.clear()
        self._start = 0
        return rest
