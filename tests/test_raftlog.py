"""The raft log against a plain list: append, replace, compact, settle, reopen."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from trimaran.errors import CorruptionError
from trimaran.ext.raftlog import Entry, HardState, LogThread, RaftLog, crc32c

SMALL_JOURNAL_BYTES = 64 << 10


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RaftLog]:
    opened = RaftLog(tmp_path / "log", journal_size_bytes=SMALL_JOURNAL_BYTES)
    yield opened
    opened.close()


def entries(first: int, count: int, term: int = 1, size: int = 20) -> list[Entry]:
    return [Entry(i, term, f"{i}.".encode() * (size // 2)) for i in range(first, first + count)]


def test_new_log_is_empty(log: RaftLog) -> None:
    assert (log.first_index, log.last_index) == (1, 0)
    assert log.term(0) == 0
    assert log.hard_state == HardState(0, 0, 0)
    with pytest.raises(IndexError):
        log.read(1, 1)
    with pytest.raises(IndexError):
        log.term(1)


def test_entries_and_hard_state_survive_reopening(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written = [Entry(1, 3, b""), Entry(2, 3, b"\0\1\xff", 7), Entry(3, 4, b"x" * 9000)]
    log = RaftLog(path)
    log.append(written, HardState(4, 99, 2))
    log.close()
    log = RaftLog(path)
    assert log.read(1, 3) == written
    assert log.hard_state == HardState(4, 99, 2)
    assert [log.term(i) for i in (1, 2, 3)] == [3, 3, 4]
    log.close()


def test_a_new_suffix_replaces_the_old_one(log: RaftLog) -> None:
    log.append(entries(1, 10))
    log.settle()
    log.append(entries(11, 5))
    log.append(entries(5, 3, term=2))
    assert log.last_index == 7
    assert log.read(1, 7) == entries(1, 4) + entries(5, 3, term=2)
    log.settle()
    assert log.read(1, 7) == entries(1, 4) + entries(5, 3, term=2)
    with pytest.raises(IndexError):
        log.read(7, 8)


@pytest.mark.parametrize(
    ("batch", "state"),
    [
        (entries(12, 1), None),  # leaves a hole
        (entries(3, 1), None),  # compacted
        (entries(4, 1), None),  # committed
        ([*entries(11, 1), *entries(13, 1)], None),  # not consecutive
        (entries(11, 1), HardState(1, 0, 12)),  # commits what is not there
        ([], HardState(1, 0, 11)),
    ],
)
def test_a_bad_append_changes_nothing(
    log: RaftLog, batch: list[Entry], state: HardState | None
) -> None:
    log.append(entries(1, 10), HardState(1, 0, 5))
    log.compact(3)
    with pytest.raises(OSError, match="Invalid argument") as caught:
        log.append(batch, state)
    assert caught.value.errno == errno.EINVAL
    assert log.read(4, 10) == entries(4, 7)
    assert log.hard_state == HardState(1, 0, 5)


def test_read_stops_at_max_bytes_but_gives_one(log: RaftLog) -> None:
    log.append(entries(1, 4, size=100))
    log.settle()
    log.append(entries(5, 4, size=100))
    size = len(log.read(1, 1)[0].data)
    assert [e.index for e in log.read(1, 8, 1)] == [1]
    assert [e.index for e in log.read(1, 8, 3 * size)] == [1, 2, 3]
    assert [e.index for e in log.read(1, 8, 6 * size)] == [1, 2, 3, 4, 5, 6]
    assert [e.index for e in log.read(6, 8, 0)] == [6]


def test_compaction_keeps_the_marker_s_term(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", journal_size_bytes=SMALL_JOURNAL_BYTES)
    log.append(entries(1, 50, term=1))
    log.append(entries(51, 50, term=2))
    log.compact(60)
    log.compact(10)
    assert (log.first_index, log.last_index, log.term(60)) == (61, 100, 2)
    with pytest.raises(IndexError):
        log.read(60, 61)
    with pytest.raises(OSError, match="Invalid"):
        log.compact(101)
    log.compact(100)
    log.close()
    log = RaftLog(tmp_path / "log")
    assert (log.first_index, log.last_index, log.term(100)) == (101, 100, 2)
    log.append(entries(101, 1, term=3))
    assert log.read(101, 101) == entries(101, 1, term=3)
    log.close()


def test_entries_larger_than_the_journal(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", journal_size_bytes=SMALL_JOURNAL_BYTES)
    log.append(entries(1, 3))
    big = [Entry(4, 2, os.urandom(5 << 20)), Entry(5, 2, b"small")]
    log.append(big, HardState(2, 1, 3))
    log.append(entries(6, 1, term=2))
    expected = entries(1, 3) + big + entries(6, 1, term=2)
    assert log.read(1, 6) == expected
    log.close()
    log = RaftLog(tmp_path / "log")
    assert log.read(1, 6) == expected
    assert log.hard_state == HardState(2, 1, 3)
    log.close()


def test_the_journal_wraps_many_times(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", journal_size_bytes=SMALL_JOURNAL_BYTES)
    index = 1
    for size in [10, 3000, 5000, 12000, 1] * 40:
        log.append([Entry(index, 1, b"v" * size)])
        index += 1
    assert log.status.settles > 10
    assert log.status.journal_used_bytes <= log.status.journal_bytes
    assert [len(e.data) for e in log.read(1, 5)] == [10, 3000, 5000, 12000, 1]
    assert log.last_index == 200
    log.close()


def test_directory_in_use(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log")
    with pytest.raises(BlockingIOError, match="in use"):
        RaftLog(tmp_path / "log")
    code = (
        "import sys\n"
        "from trimaran.ext.raftlog import RaftLog\n"
        "try: RaftLog(sys.argv[1])\n"
        "except BlockingIOError: sys.exit(42)\n"
    )
    other = subprocess.run([sys.executable, "-c", code, tmp_path / "log"], timeout=60, check=False)
    assert other.returncode == 42
    log.close()
    RaftLog(tmp_path / "log").close()


def test_bad_places_and_options(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RaftLog(tmp_path / "missing" / "log")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        RaftLog(tmp_path / "file")
    with pytest.raises(OSError, match="64 KiB"):
        RaftLog(tmp_path / "log", journal_size_bytes=100)
    log = RaftLog(tmp_path / "log")
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.append(entries(1, 1))


def fill(log: RaftLog) -> int:
    """Append until there is no space; return the index that was refused."""
    for index in range(1, 10_000):
        try:
            log.append([Entry(index, 1, b"v" * 3000)])
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return index
    raise AssertionError("the log never filled up")


def test_full_map_leaves_the_log_usable(tmp_path: Path) -> None:
    log = RaftLog(
        tmp_path / "log", journal_size_bytes=SMALL_JOURNAL_BYTES, map_size_bytes=256 << 10
    )
    index = fill(log)
    assert log.last_index == index - 1
    assert len(log.read(1, index - 1)) == index - 1
    with pytest.raises(OSError, match="No space"):
        log.close()
    log = RaftLog(tmp_path / "log")
    assert log.last_index == index - 1
    log.append([Entry(index, 1, b"now there is room")])
    log.close()


def test_buffered_journal(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", buffered=True, journal_size_bytes=SMALL_JOURNAL_BYTES)
    log.append(entries(1, 5))
    assert not log.status.direct
    log.close()
    log = RaftLog(tmp_path / "log", buffered=True)
    assert log.read(1, 5) == entries(1, 5)
    log.close()


def test_crc32c_known_values_and_both_ways() -> None:
    # RFC 3720 B.4.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_crc32c_portable_agrees_and_continues(one: bytes, two: bytes) -> None:
    assert crc32c(one + two) == crc32c(two, crc32c(one))
    assert crc32c(one + two) == crc32c(one + two, portable=True)


class LogModel(RuleBasedStateMachine):
    """The log beside a list of entries, a marker and a hard state."""

    directory: Path

    @initialize()
    def start(self) -> None:
        self.log = RaftLog(self.directory, journal_size_bytes=SMALL_JOURNAL_BYTES)
        self.held: list[Entry] = []
        self.marker = (0, 0)
        self.state = HardState(0, 0, 0)

    @property
    def last(self) -> int:
        return self.marker[0] + len(self.held)

    @rule(
        back=st.integers(0, 8),
        sizes=st.lists(st.sampled_from([0, 1, 200, 3000, 9000, 30000]), max_size=6),
        state=st.booleans(),
        ahead=st.integers(0, 3),
    )
    def append(self, back: int, sizes: list[int], state: bool, ahead: int) -> None:
        lowest = max(self.marker[0], self.state.commit) + 1
        first = max(self.last + 1 - back, lowest)
        term = self.state.term + 1
        new = [Entry(first + i, term, bytes([i]) * size, i) for i, size in enumerate(sizes)]
        kept = self.held[: first - self.marker[0] - 1] if new else self.held
        after = None
        if state:
            last = self.marker[0] + len(kept) + len(new)
            after = HardState(term, back, min(max(self.state.commit, last - ahead), last))
        self.log.append(new, after)
        self.held = kept + new
        self.state = after or self.state

    @rule(back=st.integers(0, 20))
    def compact(self, back: int) -> None:
        index = max(self.last - back, 0)
        self.log.compact(index)
        if index > self.marker[0]:
            drop = index - self.marker[0]
            self.marker = (index, self.held[drop - 1].term)
            self.held = self.held[drop:]

    @rule()
    def settle(self) -> None:
        self.log.settle()

    @rule(ahead=st.integers(0, 30))
    def reset(self, ahead: int) -> None:
        """Go on after a snapshot: before, at or past the end of what is held."""
        index = max(self.state.commit, self.last - 10, 0) + ahead + 1
        term = self.state.term + 1
        self.log.reset(index, term)
        self.marker, self.held = (index, term), []
        self.state = self.state._replace(commit=index)

    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.log = RaftLog(self.directory)

    @rule()
    def reopen_after_a_kill(self) -> None:
        """The files as a kill would leave them: copied while the log is open."""
        copy = Path(f"{self.directory}.copy")
        subprocess.run(["rm", "-rf", copy], check=True)
        subprocess.run(["cp", "-r", self.directory, copy], check=True)
        other = RaftLog(copy)
        assert other.hard_state == self.state
        assert other.last_index == self.last
        if self.held:
            assert other.read(self.marker[0] + 1, self.last) == self.held
        other.close()

    @precondition(lambda self: hasattr(self, "held"))
    @invariant()
    def agrees(self) -> None:
        assert self.log.first_index == self.marker[0] + 1
        assert self.log.last_index == self.last
        assert self.log.hard_state == self.state
        assert self.log.term(self.marker[0]) == self.marker[1]
        if self.held:
            assert self.log.read(self.marker[0] + 1, self.last) == self.held
            assert self.log.term(self.last) == self.held[-1].term

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.log.close()


def test_agrees_with_a_list(tmp_path: Path) -> None:
    numbers = iter(range(1 << 30))

    class Machine(LogModel):
        def __init__(self) -> None:
            self.directory = tmp_path / f"log{next(numbers)}"
            super().__init__()

    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_reset_goes_on_after_a_snapshot(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", journal_size_bytes=SMALL_JOURNAL_BYTES)
    log.append(entries(1, 300, size=1000))
    log.settle()
    log.append(entries(301, 20), HardState(3, 9, 310))
    with pytest.raises(OSError, match="Invalid argument"):
        log.reset(309, 2)  # would lose a committed entry
    log.reset(315, 2)
    for _ in range(2):
        assert (log.first_index, log.last_index, log.term(315)) == (316, 315, 2)
        assert log.hard_state == HardState(3, 9, 315)
        assert log.status.journal_used_bytes == 0
        with pytest.raises(IndexError):
            log.read(300, 300)
        log.close()
        log = RaftLog(tmp_path / "log")
    log.append(entries(316, 2, term=4))
    assert log.read(316, 317) == entries(316, 2, term=4)
    log.close()


def test_reset_waits_for_what_is_queued(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", journal_size_bytes=SMALL_JOURNAL_BYTES)
    thread = LogThread(log)
    for first in range(1, 200, 2):
        thread.submit(entries(first, 2), HardState(7, 3, first))
    last = thread.submit(hard_state=HardState(8, 5, 200))
    thread.reset(1000, 6)
    assert thread.completed() == (last, 1000, 6, 0)
    assert log.hard_state == HardState(8, 5, 1000)
    assert thread.append(entries(1001, 1, term=8)) == last + 1
    thread.stop()
    log.close()
    log = RaftLog(tmp_path / "log")
    assert log.read(1001, 1001) == entries(1001, 1, term=8)
    log.close()


def test_reading_does_not_hold_up_appends(tmp_path: Path) -> None:
    """Threads read what is in LMDB and what is not, while appends, settles and cuts go on."""
    log = RaftLog(tmp_path / "log", journal_size_bytes=1 << 20)
    log.append(entries(1, 100, size=3000))
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        while not stop.is_set():
            first, last = log.first_index, log.last_index
            try:
                for entry in log.read(first, last):
                    assert entry.data.startswith(f"{entry.index}.".encode())
            except IndexError:  # cut meanwhile
                continue
            except BaseException as error:
                failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for first in range(101, 2000, 10):
        log.append(entries(first, 10, size=3000))
        if first % 300 == 1:
            log.compact(first - 50)
    stop.set()
    for reader in readers:
        reader.join()
    assert not failures
    log.close()


def test_a_corrupt_environment_is_refused(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", journal_size_bytes=SMALL_JOURNAL_BYTES)
    log.append(entries(1, 100, size=1000))
    log.close()
    data = tmp_path / "log" / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(whole[: 5 * 4096])
    with pytest.raises(CorruptionError):
        RaftLog(tmp_path / "log")
    data.write_bytes(b"not LMDB at all" * 1000)
    with pytest.raises(CorruptionError):
        RaftLog(tmp_path / "log")
    data.write_bytes(whole)
    RaftLog(tmp_path / "log").close()
