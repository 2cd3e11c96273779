"""The raft log's durable append beside the bare flush and LMDB, and the watch index's match.

How long does a lone append of 200 bytes take, by each way of making it durable; how many bytes a
second go through the log thread when many are in flight; what does one match in a large watch index
cost? All in one run, in rounds of turns, so that a slow spell of the disk falls on each way alike.
"""

import hashlib
import json
import mmap
import os
import select
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trimaran.ext.raftlog import Entry, LogThread, RaftLog
from trimaran.ext.watchindex import WatchIndex

VALUE_BYTES = 200
Append = Callable[[bytes], None]


def percentile(sorted_values: Sequence[float], part: float) -> float:
    """Return the value that a part (0 to 1) of the sorted values does not exceed."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * part))]


class RawFile:
    """Blocks written in turn to a file that has been written before."""

    SIZE_BYTES = 8 << 20

    def __init__(self, path: Path, flags: int, flush: bool) -> None:
        with path.open("wb") as file:
            file.write(bytes(self.SIZE_BYTES))
            os.fsync(file.fileno())
        self.descriptor = os.open(path, os.O_RDWR | flags)
        self.flush = flush
        self.block = mmap.mmap(-1, 4096)  # aligned, as O_DIRECT asks
        self.offset = 0

    def append(self, value: bytes) -> None:
        """Write one block that begins with value, durably."""
        self.block[: len(value)] = value
        os.pwrite(self.descriptor, self.block, self.offset)
        if self.flush:
            os.fdatasync(self.descriptor)
        self.offset = (self.offset + len(self.block)) % self.SIZE_BYTES


class LmdbLog:
    """One full-sync LMDB commit for each entry, as the log would be without its journal."""

    def __init__(self, path: Path) -> None:
        import lmdb

        self.environment = lmdb.open(str(path), map_size=1 << 30)
        self.index = 0

    def append(self, value: bytes) -> None:
        """Commit one entry."""
        self.index += 1
        with self.environment.begin(write=True) as transaction:
            transaction.put(self.index.to_bytes(8, "big"), value, append=True)


class Engine:
    """The raft log, appended to in one of three ways."""

    def __init__(self, path: Path, way: str, journal_bytes: int) -> None:
        self.log = RaftLog(path, journal_size_bytes=journal_bytes)
        self.thread = None if way == "log" else LogThread(self.log)
        self.way = way
        self.poll = select.poll()
        if self.thread is not None:
            self.poll.register(self.thread.fileno(), select.POLLIN)

    def append(self, value: bytes) -> None:
        """Append one entry and wait until it is durable."""
        entries = [Entry(self.log.last_index + 1, 1, value)]
        if self.thread is None:
            self.log.append(entries)
        elif self.way == "log thread, inline":
            self.thread.append(entries)
        else:
            sequence = self.thread.submit(entries)
            while self.thread.completed().sequence < sequence:
                self.poll.poll()

    def close(self) -> None:
        """Stop the thread and close the log."""
        if self.thread is not None:
            self.thread.stop()
        self.log.close()


def lone_appends(folder: Path, rounds: int, per_round: int, journal_bytes: int) -> dict[str, list]:
    """Time each way of appending in turns; seconds of each append, sorted."""
    engines = [
        Engine(folder / f"log{number}", way, journal_bytes)
        for number, way in enumerate(("log", "log thread, inline", "log thread, submitted"))
    ]
    ways: dict[str, Append] = {
        "pwrite + fdatasync": RawFile(folder / "plain", 0, True).append,
        "O_DIRECT + O_DSYNC": RawFile(folder / "direct", os.O_DIRECT | os.O_DSYNC, False).append,
        "LMDB commit": LmdbLog(folder / "lmdb").append,
        **{engine.way: engine.append for engine in engines},
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    value = b"x" * VALUE_BYTES
    for _ in range(rounds):
        for way, append in ways.items():
            for _ in range(per_round):
                start = time.perf_counter()
                append(value)
                times[way].append(time.perf_counter() - start)
    for engine in engines:
        engine.close()
    return {way: sorted(found) for way, found in times.items()}


def stream(folder: Path, total_bytes: int, entry_bytes: int, in_flight: int) -> float:
    """Append entries with some always in flight, through the thread; bytes a second."""
    log = RaftLog(folder / f"stream{entry_bytes}")
    thread = LogThread(log)
    poll = select.poll()
    poll.register(thread.fileno(), select.POLLIN)
    value = b"x" * entry_bytes
    count = max(in_flight, total_bytes // entry_bytes)
    start = time.perf_counter()
    for index in range(1, count + 1):
        last = thread.submit([Entry(index, 1, value)])
        while last - thread.completed().sequence >= in_flight:
            poll.poll()
    while thread.completed().sequence < last:
        poll.poll()
    elapsed_s = time.perf_counter() - start
    thread.stop()
    log.close()
    return count * entry_bytes / elapsed_s


def watch_matches(keys: int, ranges: int, times: int) -> dict[str, float]:
    """Fill a watch index; time one match and count its memory for each registration."""
    index = WatchIndex(1)
    for number in range(keys):
        index.insert(b"/registry/pods/%09d" % number, b"", None)
    key_bytes = index.memory_bytes / max(keys, 1)
    for number in range(ranges):
        prefix = b"/registry/%05d/" % number
        index.insert(prefix, prefix[:-1] + b"0", None)
    found = {}
    for what, key in {
        "one key": b"/registry/pods/%09d" % (keys // 2),
        "one range": b"/registry/%05d/x" % (ranges // 2),
        "nothing": b"/nothing",
    }.items():
        start = time.perf_counter()
        matched = index.count_matches(key, times)
        found[f"match {what}, ns"] = (time.perf_counter() - start) / times * 1e9
        assert matched == (0 if what == "nothing" else times)
    return {"memory of a key's watch, bytes": key_bytes, **found}


def main(smoke: bool = False) -> int:
    """Run it; smoke is a tenth of a second of each."""
    rounds, per_round = (1, 20) if smoke else (10, 200)
    journal_bytes = 1 << 20 if smoke else 0
    keys, ranges, times = (1000, 100, 1000) if smoke else (1_000_000, 5000, 1_000_000)
    total_bytes = 1 << 20 if smoke else 256 << 20
    folder = Path(tempfile.mkdtemp(prefix="trimaran-bench-log-"))
    print(f"log: {rounds} rounds of {per_round} appends of {VALUE_BYTES} bytes, in {folder}")
    try:
        times_of = lone_appends(folder, rounds, per_round, journal_bytes)
        rates = {f"{size} bytes": stream(folder, total_bytes, size, 64) for size in (4096, 65536)}
    finally:
        shutil.rmtree(folder)
    result: dict[str, object] = {"bench": "log", "smoke": smoke, "append_us": {}}
    for way, found in times_of.items():
        row = {f"p{int(part * 100)}": round(percentile(found, part) * 1e6) for part in (0.5, 0.99)}
        result["append_us"][way] = row  # type: ignore[index]
        print(f"  {way:<24} p50 {row['p50']:>5} us   p99 {row['p99']:>5} us")
    for what, rate in rates.items():
        print(f"  64 in flight, {what:<12} {rate / 1e6:>7.0f} MB/s")
    watch = watch_matches(keys, ranges, times)
    for what, value in watch.items():
        print(f"  {what:<32} {value:>7.0f}   ({keys} keys, {ranges} ranges)")
    result["stream_mb_s"] = {what: round(rate / 1e6) for what, rate in rates.items()}
    result["watchindex"] = {what: round(value) for what, value in watch.items()}
    result["hash"] = hashlib.sha256(repr(sorted(times_of)).encode()).hexdigest()[:12]
    print(json.dumps(result))
    return 0
