"""The store's C engines in a process of their own, compiled with sanitizers: see store_engine.c."""

import atexit
import contextlib
import os
import shutil
import struct
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from trimaran.errors import ETCD_ERRORS

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    *("codec", "txncheck", "keyindex", "keytree", "leasetable", "crc32c", "state"),
    *("state_batch", "state_commit", "state_file"),
    *("mvcc", "mvcc_apply", "mvcc_compact", "mvcc_range", "mvcc_restore", "mvcc_txn"),
    *("mvcc_rows", "origintable", "rowtable", "payload", "proposal", "readqueue"),
    *("watchindex", "watchrange", "watchhub", "watchhub_send", "failpoint"),
    *("service", "service_apply"),
)
FLAGS = ("-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Errors by number, as the engines count them.
ERRORS = ("", *ETCD_ERRORS, "MALFORMED")

PUT, DELETE, TXN, COMPACT, LEASE_GRANT, LEASE_REVOKE, ALARM = range(1, 8)
METHODS = ("range", "put", "delete", "txn", "compact", "watch")


INDEX_SOURCES = ("keyindex", "keytree", "leasetable")
CODEC_SOURCES = ("codec", "txncheck")


@cache
def program(name: str, modules: tuple[str, ...] = SOURCES) -> str:
    """Compile tests/NAME.c with the store's own files, once in a process; returns its path."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    folder = Path(tempfile.mkdtemp(prefix="trimaran-store-engine-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    include = [f"-I{ROOT}/{path}" for path in ("ext/src", "ext/include", "build/generated")]

    def compile_one(source: Path) -> str:
        target = str(folder / f"{source.stem}.o")
        line = ["cc", *FLAGS, *include, "-c", str(source), "-o", target]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return target

    sources = [ROOT / f"ext/src/{source}.c" for source in modules]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [ROOT / f"tests/{name}.c", *sources]))
    target = str(folder / name)
    line = ["cc", *FLAGS, *objects, "-llmdb", "-lpthread", "-o", target]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    if "cannot find -l" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    return target


@dataclass(frozen=True)
class Sent:
    """Something sent to a client: a message, or the end of its call with a status."""

    call: int
    status: int  # -1: a message
    data: bytes


@dataclass(frozen=True)
class Change:
    """A stored change; data is a serialized KeyValue."""

    main: int
    sub: int
    tombstone: bool
    data: bytes


@dataclass(frozen=True)
class State:
    """What the engine tells of itself."""

    revision: int
    compact_revision: int
    compacting: bool
    applied: int
    persisted: int
    pending_bytes: int
    streams: int
    watchers: int
    behind: int
    alarms: list[tuple[int, int]]
    leases: dict[int, tuple[int, frozenset[bytes]]]


class Engine:
    """One engine process on a directory.

    Args:
        directory: of the state; made where it is missing.
        quota_bytes: 0 for none.
    """

    def __init__(self, directory: Path, quota_bytes: int = 0) -> None:
        directory.mkdir(exist_ok=True)
        self.sent: list[Sent] = []
        self._process = subprocess.Popen(
            [program("store_engine"), str(directory), str(quota_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.kill()
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._finish()

    def _finish(self) -> None:
        assert self._process.stderr is not None
        text = self._process.stderr.read().decode(errors="replace")
        code = self._process.wait(60)
        assert code == 0, f"the engine ended with {code}:\n{text[-8000:]}"

    def kill(self) -> None:
        """End the process as a power cut would, but for what the kernel has already."""
        self._process.kill()
        self._process.wait(60)

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) < size:
            self._finish()
            raise AssertionError("the engine ended early")
        return data

    def command(self, name: str, arguments: bytes = b"") -> tuple[int, bytes]:
        """Run one command; what it sends to clients is appended to `sent`."""
        assert self._process.stdin is not None
        frame = struct.pack("<I", len(arguments) + 1) + name.encode() + arguments
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(frame)
            self._process.stdin.flush()
        status, answer_size, sent_size = struct.unpack("<BII", self._read(9))
        answer, sent = self._read(answer_size), self._read(sent_size)
        at = 0
        while at < len(sent):
            call, code, size = struct.unpack_from("<Iii", sent, at)
            self.sent.append(Sent(call, code, sent[at + 12 : at + 12 + size]))
            at += 12 + size
        return status, answer

    def take_sent(self) -> list[Sent]:
        """Return what was sent since the last call."""
        taken, self.sent = self.sent, []
        return taken

    def apply(self, index: int, kind: int, request: bytes) -> tuple[str, bytes]:
        """Apply one operation as log entry index; returns (error, answer)."""
        error, answer = self.command("a", struct.pack("<QB", index, kind) + request)
        return ERRORS[error], answer

    def range(self, request: bytes) -> tuple[str, bytes]:
        """Answer a range request."""
        error, answer = self.command("r", request)
        return ERRORS[error], answer

    def read_txn(self, request: bytes) -> tuple[str, bytes]:
        """Answer a txn that only reads."""
        error, answer = self.command("t", request)
        return ERRORS[error], answer

    def check_txn(self, request: bytes, most: int = 128) -> str:
        """Check a txn before it would be proposed."""
        return ERRORS[self.command("k", struct.pack("<q", most) + request)[0]]

    def _changes(self, answer: bytes) -> list[Change]:
        changes: list[Change] = []
        at = 0
        while at < len(answer):
            main, sub, tombstone, size = struct.unpack_from("<qiII", answer, at)
            changes.append(Change(main, sub, bool(tombstone), answer[at + 20 : at + 20 + size]))
            at += 20 + size
        return changes

    def history(self, key: bytes, revision: int) -> list[Change]:
        """Return the changes of a key from a revision on."""
        return self._changes(self.command("h", struct.pack("<q", revision) + key)[1])

    def scan(self, revision: int) -> list[Change]:
        """Return all changes from a revision on."""
        return self._changes(self.command("s", struct.pack("<q", revision))[1])

    def seal(self) -> bool:
        """Hand the open batch to the thread that commits it."""
        return bool(self.command("e")[0])

    def collect(self) -> None:
        """Wait for the commit to end, and take note."""
        assert self.command("c")[0] == 1, "the commit did not end"

    def wait_for_error(self) -> str:
        """Wait until a commit has met an error that it waits out."""
        code, _ = self.command("f")
        return os.strerror(code)

    def compact_step(self, keys: int) -> bool:
        """Compact on; False where nothing was left to do."""
        return bool(self.command("q", struct.pack("<I", keys))[0])

    def reopen(self) -> None:
        """Close everything and open it again."""
        self.command("o")

    def state(self) -> State:
        """Return what the engine tells of itself."""
        answer = self.command("i")[1]
        numbers = struct.unpack_from("<9q", answer)
        (alarm_count,) = struct.unpack_from("<I", answer, 72)
        at = 76
        alarms = []
        for _ in range(alarm_count):
            alarms.append(struct.unpack_from("<Qi", answer, at))
            at += 12
        leases = {}
        while at < len(answer):
            lease, ttl_s, count = struct.unpack_from("<qqI", answer, at)
            at += 20
            keys = []
            for _ in range(count):
                (size,) = struct.unpack_from("<I", answer, at)
                keys.append(answer[at + 4 : at + 4 + size])
                at += 4 + size
            leases[lease] = (ttl_s, frozenset(keys))
        revision, compact_revision, compacting, *rest = numbers
        return State(revision, compact_revision, bool(compacting), *rest, alarms, leases)

    # A client of the hot methods, and the turn of a member.

    def message(self, call: int, method: str, request: bytes) -> None:
        """A client sends a message on a call, which begins with the first."""
        self.command("m", struct.pack("<IB", call, METHODS.index(method)) + request)

    def disconnect(self, call: int, method: str) -> None:
        """A client goes away."""
        self.command("x", struct.pack("<IB", call, METHODS.index(method)))

    def half_close(self, call: int, method: str) -> None:
        """A client says that it will send no more."""
        self.command("l", struct.pack("<IB", call, METHODS.index(method)))

    def set_queued(self, call: int, size: int) -> None:
        """Pretend that so many bytes are unread; with 0 the client has read on."""
        self.command("b", struct.pack("<IQ", call, size))

    def submit(self, token: int, kind: int, request: bytes) -> None:
        """Add an operation of a cold method."""
        self.command("u", struct.pack("<QB", token, kind) + request)

    def results(self) -> list[tuple[int, int, str, int, int]]:
        """Take (token, kind, error, revision, lease) of what was applied."""
        rows = struct.iter_unpack("<qIIqq", self.command("j")[1])
        return [(token, kind, ERRORS[error], *rest) for token, kind, error, *rest in rows]

    def propose(self) -> None:
        """Make an entry of what was gathered."""
        self.command("p")

    def apply_next(self) -> int:
        """Apply the oldest proposed entry; returns its index, 0 where there was none."""
        return int(struct.unpack("<q", self.command("y")[1])[0])

    def set_mode(
        self, *, reads_at_once: bool = False, learner: bool = False, leader: bool = True
    ) -> None:
        """Tell the service of the group."""
        self.command("w", bytes([reads_at_once | learner << 1 | leader << 2]))

    def confirm_reads(self, index: int) -> None:
        """Answer reads that wait, as of a log index, once that is applied."""
        self.command("d", struct.pack("<Q", index))

    def tick(self) -> None:
        """Let one tick pass; who waits for more than ten of them is told so."""
        self.command("v")

    def step(self) -> bool:
        """Go on with compaction, watchers and physical compactions."""
        return bool(self.command("z")[0])

    def progress(self) -> None:
        """Send progress notifications."""
        self.command("g")
