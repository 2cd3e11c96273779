"""Calls of simulated clients on a member, as its service sees them: see calls.c."""

import ctypes
import struct
from collections.abc import Callable
from typing import Any

_ROW = struct.Struct("<QiI")
PATHS = {
    "range": b"/etcdserverpb.KV/Range",
    "put": b"/etcdserverpb.KV/Put",
    "delete": b"/etcdserverpb.KV/DeleteRange",
    "txn": b"/etcdserverpb.KV/Txn",
    "compact": b"/etcdserverpb.KV/Compact",
    "watch": b"/etcdserverpb.Watch/Watch",
}
# A message (status -1), or the end of the call with its gRPC status and text.
Answer = Callable[[int, bytes], None]


class CallLibrary:
    """The functions of calls.c in the simulator's library, and all open calls."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self.open = library.trimaran_simulated_open
        self.open.argtypes, self.open.restype = [ctypes.c_uint64], pointer
        self.method = library.trimaran_simulated_method
        self.method.argtypes = [pointer, ctypes.c_char_p]
        self.message = library.trimaran_simulated_message
        self.message.argtypes = [pointer, pointer, ctypes.c_int, ctypes.c_char_p, size]
        self.message.restype = None
        self.close = library.trimaran_simulated_close
        self.close.argtypes, self.close.restype = [pointer, pointer, ctypes.c_int], None
        self._take = library.trimaran_simulated_take
        self._take.argtypes, self._take.restype = [ctypes.POINTER(pointer)], size
        self._data = pointer()
        self.calls: dict[int, tuple[int, int, Answer]] = {}
        self.last = 0

    def deliver(self) -> None:
        """Hand out what members have answered. To be called after whatever they do."""
        size = self._take(ctypes.byref(self._data))
        rows = ctypes.string_at(self._data, size) if size else b""
        at = 0
        while at < len(rows):
            number, status, size = _ROW.unpack_from(rows, at)
            data = rows[at + _ROW.size : at + _ROW.size + size]
            at += _ROW.size + size
            answer = self.calls[number][2]
            if status >= 0:
                del self.calls[number]
            answer(status, data)


class MemberCalls:
    """The calls on one member.

    Args:
        library: where the calls are made.
        handler: the member's capsule.
    """

    def __init__(self, library: CallLibrary, handler: Any) -> None:
        unwrap = ctypes.pythonapi.PyCapsule_GetPointer
        unwrap.argtypes, unwrap.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
        self._library = library
        self._handler = unwrap(handler, b"trimaran.rpc_handler")
        self._methods = {name: library.method(self._handler, path) for name, path in PATHS.items()}
        self._mine: list[int] = []

    def begin(self, name: str, request: bytes, answer: Answer) -> int:
        """Begin a call with its first message; returns its number."""
        library = self._library
        library.last += 1
        number = library.last
        call = library.open(number)
        method = self._methods[name]
        library.calls[number] = call, method, answer
        self._mine.append(number)
        library.message(self._handler, call, method, request, len(request))
        library.deliver()
        return number

    def message(self, number: int, request: bytes) -> None:
        """Send a further message on a stream, if it has not ended."""
        if number in self._library.calls:
            call, method, _ = self._library.calls[number]
            self._library.message(self._handler, call, method, request, len(request))
            self._library.deliver()

    def cancel(self, number: int) -> None:
        """The client goes away; nothing more is answered."""
        self._library.deliver()  # it may have been answered, and be gone
        if number in self._library.calls:
            call, method, _ = self._library.calls.pop(number)
            self._library.close(self._handler, call, method)
            self._library.deliver()

    def close(self) -> None:
        """Every client loses its connection."""
        for number in self._mine:
            self.cancel(number)

    def deliver(self) -> None:
        """Hand out what the member has answered. To be called after each of its turns."""
        self._library.deliver()
        if len(self._mine) > 100:
            self._mine = [number for number in self._mine if number in self._library.calls]
