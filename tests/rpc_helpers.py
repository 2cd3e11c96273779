"""A GrpcServer with hot methods in C and cold ones in Python, for tests and benchmarks."""

import ctypes
import shlex
import socket
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import trimaran.ext
from trimaran.daemons.listening import SecureSocket

ROOT = Path(__file__).parent.parent


@cache
def hot_library() -> ctypes.CDLL:
    """Compile tests/hot_methods.c against the engine, once in a process."""
    engine = Path(trimaran.ext.__file__).parent
    flags = shlex.split("-O2 -g -std=gnu11 -UNDEBUG -Wall -Wextra -shared -fPIC")
    with tempfile.TemporaryDirectory(prefix="trimaran-rpc-") as folder:
        target = Path(folder) / "hot_methods.so"
        command = ["cc", *flags, f"-I{ROOT}/ext/src", str(ROOT / "tests/hot_methods.c")]
        command += ["-o", str(target), f"-L{engine}", "-ltrimaran", f"-Wl,-rpath,{engine}"]
        subprocess.run(command, check=True, timeout=60)
        library = ctypes.CDLL(str(target))
    library.hot_handler.restype = ctypes.c_void_p
    return library


def hot_handler() -> object:
    """Return the capsule of the compiled hot methods."""
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    capsule: object = make(hot_library().hot_handler(), b"trimaran.rpc_handler", None)
    return capsule


class _Counts(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_long)
        for name in ("messages", "half_closed", "closed", "writable", "pumped_bytes")
    ]


def hot_counts() -> dict[str, int]:
    """Return how often each function of the handler has been called in this process."""
    counts = _Counts()
    hot_library().hot_counts(ctypes.byref(counts))
    return {name: getattr(counts, name) for name, _ in _Counts._fields_}


def listening_socket(secure: bool = False) -> tuple[socket.socket, int]:
    """Return a listening loopback socket, one for TLS if wanted, and its port."""
    listening = SecureSocket() if secure else socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    port: Any = listening.getsockname()[1]
    return listening, port
