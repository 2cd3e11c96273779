"""The raft log under kill -9, torn and damaged journals, and a full disk."""

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimaran.errors import CorruptionError
from trimaran.ext.raftlog import Entry, HardState, RaftLog, crc32c

JOURNAL_BYTES = 64 << 10
BLOCK = 4096

# Appends entries whose data tells their index, and prints each last index once it is durable.
WRITER = """
import random, sys
from trimaran.ext.raftlog import Entry, HardState, LogThread, RaftLog
directory, seed, threaded = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "thread"
chance = random.Random(seed)
log = RaftLog(directory, journal_size_bytes=1 << 20)
thread = LogThread(log) if threaded else None
index = log.last_index
term = log.hard_state.term + 1
print(index, flush=True)
while True:
    count = chance.randint(1, 5)
    batch = [
        Entry(index + 1 + i, term, f"{index + 1 + i}.".encode() * chance.choice([1, 50, 3000]))
        for i in range(count)
    ]
    state = HardState(term, 1, index) if chance.random() < 0.5 else None
    index += count
    if thread is None:
        log.append(batch, state)
        print(index, flush=True)
    else:
        thread.submit(batch, state)
        print(max(thread.completed().index, 0), flush=True)
        if chance.random() < 0.02:
            log.settle()
    if thread is None and chance.random() < 0.02:
        log.compact(max(index - 100, 0))
"""


def check_entries(log: RaftLog) -> None:
    for entry in log.read(log.first_index, log.last_index):
        assert entry.data.startswith(f"{entry.index}.".encode())
        assert len(set(entry.data.split(b"."))) <= 2


@pytest.mark.parametrize("mode", ["direct", "thread"])
def test_nothing_acknowledged_is_lost_by_kill(tmp_path: Path, mode: str) -> None:
    chance = random.Random(7)
    for turn in range(10):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path / "log", str(turn), mode],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        acknowledged = 0
        for _ in range(chance.randint(1, 400)):
            acknowledged = max(acknowledged, int(writer.stdout.readline()))
        writer.kill()
        for line in writer.stdout.read().splitlines(keepends=True):
            if line.endswith("\n"):
                acknowledged = max(acknowledged, int(line))
        writer.wait(timeout=30)
        log = RaftLog(tmp_path / "log")
        assert log.last_index >= acknowledged
        check_entries(log)
        log.close()


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a log that was killed: 5 entries in LMDB, 6 records of 1 block after them."""
    directory = tmp_path_factory.mktemp("crashed")
    log = RaftLog(directory / "log", journal_size_bytes=JOURNAL_BYTES)
    for index in range(1, 6):
        log.append([Entry(index, 1, f"{index}.".encode() * 800)])
    log.settle()
    for index in range(6, 12):
        log.append([Entry(index, 1, f"{index}.".encode())], HardState(1, 1, 3))
    shutil.copytree(directory / "log", directory / "copy")
    log.close()
    return directory / "copy"


@pytest.fixture
def copy(crashed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(crashed, tmp_path / "log"))


def journal_blocks(directory: Path) -> list[int]:
    """Offsets of the file's blocks that start a record of the tail (its payload is short)."""
    content = (directory / "journal").read_bytes()
    found = []
    for offset in range(BLOCK, len(content), BLOCK):
        size = int.from_bytes(content[offset + 12 : offset + 16], sys.byteorder)
        if content[offset : offset + 4] == b"TRMJ" and size < 200:
            found.append(offset)
    return found


def damage(directory: Path, offset: int, data: bytes) -> None:
    with (directory / "journal").open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_replay(copy: Path) -> None:
    log = RaftLog(copy)
    assert log.last_index == 11
    assert log.status.replayed_entries == 6
    check_entries(log)
    log.close()


@pytest.mark.parametrize("within", [0, 4, 8, 30, 45, 88])
def test_a_torn_last_record_is_discarded(copy: Path, within: int) -> None:
    last = journal_blocks(copy)[-1]
    damage(copy, last + within, b"\xa5\x5a\xa5")
    log = RaftLog(copy)
    assert log.last_index == 10
    log.append([Entry(11, 2, b"11.")], HardState(2, 0, 3))
    log.close()
    log = RaftLog(copy)
    assert log.read(11, 11) == [Entry(11, 2, b"11.")]
    log.close()


@pytest.mark.parametrize("which", [0, 2, 4])
def test_a_hole_before_later_records_is_refused(copy: Path, which: int) -> None:
    damage(copy, journal_blocks(copy)[which] + 50, b"\xa5\x5a\xa5")
    for _ in range(2):
        with pytest.raises(CorruptionError, match="damaged"):
            RaftLog(copy)


def test_records_of_an_earlier_cycle_are_not_later_ones(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", journal_size_bytes=JOURNAL_BYTES)
    for index in range(1, 60):
        log.append([Entry(index, 1, f"{index}.".encode())])
    log.settle()
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    log.close()
    log = RaftLog(tmp_path / "copy")
    assert (log.last_index, log.status.replayed_entries) == (59, 0)
    log.close()


def test_committed_entries_missing_at_the_tail_are_noticed(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", journal_size_bytes=JOURNAL_BYTES)
    log.append([Entry(1, 1, b"1.")])
    log.append([Entry(2, 1, b"2.")])
    log.append([], HardState(1, 1, 2))
    log.settle()
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    log.close()
    other = RaftLog(tmp_path / "copy")
    assert other.hard_state.commit == 2
    other.close()


@pytest.mark.parametrize("what", ["missing", "empty", "cut", "other", "head"])
def test_a_wrong_journal_is_refused(copy: Path, tmp_path: Path, what: str) -> None:
    journal = copy / "journal"
    if what == "missing":
        journal.unlink()
    elif what == "empty":
        journal.write_bytes(b"")
    elif what == "cut":
        os.truncate(journal, journal.stat().st_size - 1)
    elif what == "other":
        RaftLog(tmp_path / "second", journal_size_bytes=JOURNAL_BYTES).close()
        shutil.copy(tmp_path / "second" / "journal", journal)
    else:
        damage(copy, 20, b"\x01")
    with pytest.raises(CorruptionError, match="journal"):
        RaftLog(copy)


def test_a_creation_cut_short_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "journal.new").write_bytes(b"half")
    (tmp_path / "log" / "journal").write_bytes(b"whole, but never entered in LMDB")
    log = RaftLog(tmp_path / "log", journal_size_bytes=JOURNAL_BYTES)
    log.append([Entry(1, 1, b"1.")])
    log.close()


def opens_or_refuses(directory: Path) -> None:
    """Open a copy: either an error, or a prefix of what was written (past LMDB's part)."""
    try:
        log = RaftLog(directory)
    except CorruptionError:
        return
    try:
        assert 5 <= log.last_index <= 11
        check_entries(log)
    finally:
        log.close()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_damage_to_the_journal(
    crashed: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    scratch = tmp_path_factory.mktemp("fuzz")
    directory = Path(shutil.copytree(crashed, scratch / "log"))
    size = (directory / "journal").stat().st_size
    edits = data.draw(
        st.lists(
            st.tuples(st.integers(0, size - 64), st.binary(min_size=1, max_size=64)),
            min_size=1,
            max_size=4,
        )
    )
    for offset, content in edits:
        damage(directory, offset, content)
    if data.draw(st.booleans()):
        os.truncate(directory / "journal", data.draw(st.integers(0, size)))
    opens_or_refuses(directory)
    shutil.rmtree(scratch)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_damage_to_the_tail(
    crashed: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """As above, but where it hurts, and by moving whole blocks of the same journal."""
    scratch = tmp_path_factory.mktemp("fuzz")
    directory = Path(shutil.copytree(crashed, scratch / "log"))
    content = bytearray((directory / "journal").read_bytes())
    blocks = len(content) // BLOCK
    for _ in range(data.draw(st.integers(1, 3))):
        source = data.draw(st.integers(0, blocks - 1)) * BLOCK
        target = data.draw(st.sampled_from(journal_blocks(directory)))
        if data.draw(st.booleans()):
            content[target : target + BLOCK] = content[source : source + BLOCK]
        else:
            content[target + data.draw(st.integers(0, 120))] ^= data.draw(st.integers(1, 255))
    (directory / "journal").write_bytes(content)
    opens_or_refuses(directory)
    shutil.rmtree(scratch)


def crafted_record(directory: Path, sequence: int, payload: bytes) -> bytes:
    """A record of this journal whose checksums hold, whatever its payload."""
    identity = (directory / "journal").read_bytes()[16:24]
    order = sys.byteorder
    tail = crc32c(payload).to_bytes(4, order) + len(payload).to_bytes(4, order)
    tail += identity + sequence.to_bytes(8, order)
    return b"TRMJ" + crc32c(tail).to_bytes(4, order) + tail + payload


def batch(first: int, sizes: list[int], data: bytes, count: int | None = None) -> bytes:
    """A record's payload: head, a row for each entry, data."""
    order = sys.byteorder
    head = (len(sizes) if count is None else count).to_bytes(4, order) + bytes(4)
    head += first.to_bytes(8, order) + bytes(24)
    rows = [bytes(8) + bytes(4) + size.to_bytes(4, order) for size in sizes]
    return head + b"".join(rows) + data


@pytest.mark.parametrize(
    ("payload", "fits"),
    [
        (batch(12, [3], b"12."), True),
        (batch(12, [], b""), True),
        (batch(8, [3], b"8.."), True),
        (batch(13, [3], b"13."), False),  # leaves a hole
        (batch(0, [3], b"0.."), False),
        (batch(12, [4], b"12."), False),  # sizes that do not add up
        (batch(12, [3], b"12.."), False),
        (batch(12, [3], b"12.", 2**32 - 1), False),
        (batch(12, [2**32 - 1] * 4, b""), False),
        (b"", False),
        (b"x", False),
        (bytes(39), False),
    ],
)
def test_a_record_that_does_not_fit_is_refused(copy: Path, payload: bytes, fits: bool) -> None:
    blocks = journal_blocks(copy)
    damage(copy, blocks[-1] + BLOCK, crafted_record(copy, 12, payload))
    if fits:
        log = RaftLog(copy)
        assert log.last_index in (8, 11, 12)
        log.close()
    else:
        with pytest.raises(CorruptionError, match="does not fit"):
            RaftLog(copy)


@settings(max_examples=60, deadline=None)
@given(payload=st.binary(max_size=200), sequence=st.integers(11, 14))
def test_random_records_with_right_checksums(
    crashed: Path, tmp_path_factory: pytest.TempPathFactory, payload: bytes, sequence: int
) -> None:
    scratch = tmp_path_factory.mktemp("fuzz")
    directory = Path(shutil.copytree(crashed, scratch / "log"))
    place = journal_blocks(directory)[-1] + BLOCK
    damage(directory, place, crafted_record(directory, sequence, payload))
    opens_or_refuses(directory)
    shutil.rmtree(scratch)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, mounted in this process's own mount namespace's /tmp."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "trimaran-raftlog-test", str(mount)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("this system does not let root mount a tmpfs")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def append_until_full(log: RaftLog) -> int:
    """Append until the disk is full; return the index that was refused."""
    for index in range(1, 10_000):
        try:
            log.append([Entry(index, 1, f"{index}.".encode() * 1000)])
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return index
    raise AssertionError("the disk never filled up")


def test_full_disk(small_disk: Path) -> None:
    log = RaftLog(small_disk / "log", journal_size_bytes=JOURNAL_BYTES)
    index = append_until_full(log)
    assert log.last_index == index - 1
    check_entries(log)
    with pytest.raises(OSError, match="No space"):
        log.close()
    (small_disk / "log2").mkdir()
    with pytest.raises(OSError, match="No space"):
        RaftLog(small_disk / "log2", journal_size_bytes=4 << 20)
    # Compacting makes room inside LMDB's file, also now, and the log goes on.
    log = RaftLog(small_disk / "log")
    assert log.last_index == index - 1
    log.compact(index // 2)
    for index_again in range(index, index + 20):
        log.append([Entry(index_again, 1, f"{index_again}.".encode() * 1000)])
    index += 20
    check_entries(log)
    log.close()
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    log = RaftLog(small_disk / "log")
    assert log.last_index == index - 1
    check_entries(log)
    log.append([Entry(index, 1, f"{index}.".encode())])
    log.close()
