"""HTTP/2 by hand, for tests that send what no proper client would.

Frames are made and taken apart byte by byte (RFC 9113 §4, §6); header blocks use only literal
fields without indexing and without Huffman coding (RFC 7541 §6.2.2). What the server sends is
decoded by nghttp2's inflater, through ctypes.
"""

import ctypes
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION = 9
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
ENHANCE_YOUR_CALM, PROTOCOL_ERROR, REFUSED_STREAM = 11, 1, 7


@dataclass(frozen=True)
class Frame:
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Make a frame; nothing is checked."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def split(data: bytes) -> Iterator[Frame]:
    """Take whole frames apart.

    Raises:
        ValueError: data ends within a frame.
    """
    while data:
        size = int.from_bytes(data[:3], "big")
        if len(data) < 9 + size:
            raise ValueError(f"{len(data)} bytes left, a frame of {size} begun")
        kind, flags, stream = struct.unpack(">BBI", data[3:9])
        yield Frame(kind, flags, stream, data[9 : 9 + size])
        data = data[9 + size :]


def _integer(value: int, prefix_bits: int, first: int) -> bytes:
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes([first | value])
    encoded = [first | limit]
    value -= limit
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def block(fields: Sequence[tuple[str, str]]) -> bytes:
    """Encode header fields."""
    encoded = b""
    for name, value in fields:
        encoded += b"\0" + _integer(len(name), 7, 0) + name.encode()
        encoded += _integer(len(value), 7, 0) + value.encode()
    return encoded


def request_fields(path: str, **others: str) -> list[tuple[str, str]]:
    """Give the header fields of a gRPC request; "_" in other names stands for "-"."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")]
    fields += [("content-type", "application/grpc"), ("te", "trailers")]
    return fields + [(name.replace("_", "-"), value) for name, value in others.items()]


def open_request(stream: int, path: str, flags: int = 0, **others: str) -> bytes:
    """Make the HEADERS frame that begins a request."""
    return frame(HEADERS, END_HEADERS | flags, stream, block(request_fields(path, **others)))


def message(data: bytes = b"", compressed: int = 0) -> bytes:
    """Put gRPC's five bytes before a message."""
    return struct.pack(">BI", compressed, len(data)) + data


class _HeaderField(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.POINTER(ctypes.c_uint8)),
        ("value", ctypes.POINTER(ctypes.c_uint8)),
        ("name_size", ctypes.c_size_t),
        ("value_size", ctypes.c_size_t),
        ("flags", ctypes.c_uint8),
    ]


class Inflater:
    """The header decoder of one connection, by nghttp2."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnghttp2.so.14")
        self._inflate = self._library.nghttp2_hd_inflate_hd2
        self._inflate.restype = ctypes.c_ssize_t
        self._inflate.argtypes = [
            *(ctypes.c_void_p, ctypes.POINTER(_HeaderField), ctypes.POINTER(ctypes.c_int)),
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int),
        ]
        self._pointer = ctypes.c_void_p()
        assert self._library.nghttp2_hd_inflate_new(ctypes.byref(self._pointer)) == 0

    def __del__(self) -> None:
        self._library.nghttp2_hd_inflate_del(self._pointer)

    def decode(self, data: bytes) -> dict[str, str]:
        """Decode one whole header block."""
        fields: dict[str, str] = {}
        while True:
            field, flags = _HeaderField(), ctypes.c_int(0)
            used = self._inflate(
                self._pointer, ctypes.byref(field), ctypes.byref(flags), data, len(data), 1
            )
            assert used >= 0, used
            data = data[used:]
            if flags.value & 2:
                name = ctypes.string_at(field.name, field.name_size).decode()
                fields[name] = ctypes.string_at(field.value, field.value_size).decode()
            if flags.value & 1:
                self._library.nghttp2_hd_inflate_end_headers(self._pointer)
                return fields
