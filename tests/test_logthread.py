"""The native log thread: submissions complete in order, coalesced, without the GIL."""

import errno
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimaran.ext.raftlog import Completion, Entry, HardState, LogThread, RaftLog


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RaftLog]:
    opened = RaftLog(tmp_path / "log", journal_size_bytes=1 << 20)
    yield opened
    opened.close()


def wait_for(thread: LogThread, sequence: int) -> Completion:
    poll = select.poll()
    poll.register(thread.fileno(), select.POLLIN)
    while (completion := thread.completed()).sequence < sequence:
        assert poll.poll(30_000), "the log thread did not finish in 30 s"
    return completion


def test_submissions_become_durable(log: RaftLog) -> None:
    thread = LogThread(log)
    sequence = 0
    for index in range(1, 501):
        sequence = thread.submit([Entry(index, 1, b"x" * 100)], HardState(1, 1, index - 1))
    assert sequence == 500
    assert wait_for(thread, sequence) == Completion(500, 500, 1, 0)
    thread.stop()
    assert log.last_index == 500
    assert log.hard_state == HardState(1, 1, 499)
    assert log.status.appends < 500, "nothing was coalesced"


def test_a_conflicting_submission_replaces_an_earlier_one(log: RaftLog) -> None:
    thread = LogThread(log)
    thread.submit([Entry(i, 1, b"old") for i in range(1, 11)])
    thread.submit([], HardState(2, 3, 0))
    last = thread.submit([Entry(5, 2, b"new")])
    assert wait_for(thread, last) == Completion(3, 5, 2, 0)
    thread.stop()
    assert [e.data for e in log.read(1, 5)] == [b"old"] * 4 + [b"new"]


def test_append_on_the_calling_thread(log: RaftLog) -> None:
    thread = LogThread(log)
    assert thread.append([Entry(1, 1, b"a")]) == 1
    assert thread.completed() == Completion(1, 1, 1, 0)
    assert thread.submit([Entry(2, 1, b"b")]) == 2
    assert wait_for(thread, 2).index == 2
    assert thread.append([Entry(3, 1, b"c")]) == 3
    thread.stop()
    assert log.last_index == 3


def test_append_gives_way_to_the_thread(log: RaftLog) -> None:
    thread = LogThread(log)
    index = 0

    def append_until_refused() -> None:
        nonlocal index
        while index < 10_000:
            index += 1
            thread.submit([Entry(index, 1, b"x" * 100_000)])
            thread.append([Entry(index + 1, 1, b"y")])
            index += 1

    with pytest.raises(BlockingIOError):
        append_until_refused()
    thread.stop()
    assert log.last_index == index


def test_stop_finishes_what_is_queued(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log")
    thread = LogThread(log)
    for index in range(1, 201):
        thread.submit([Entry(index, 1, b"x" * 10_000)])
    with pytest.raises(ValueError, match="stop"):
        log.close()
    thread.stop()
    thread.stop()
    log.close()
    log = RaftLog(tmp_path / "log")
    assert log.last_index == 200
    log.close()


def test_idle_journal_is_emptied(log: RaftLog) -> None:
    thread = LogThread(log)
    thread.append([Entry(1, 1, b"a")])
    poll = select.poll()
    for _ in range(400):
        if log.status.journal_used_bytes == 0:
            break
        poll.poll(25)
    assert log.status.journal_used_bytes == 0
    assert log.status.settles == 1
    thread.stop()


def test_compaction_elsewhere(log: RaftLog) -> None:
    thread = LogThread(log)
    last = thread.submit([Entry(i, 1, b"x" * 100) for i in range(1, 101)])
    wait_for(thread, last)
    with pytest.raises(ValueError, match="not in the log"):
        thread.compact(101)
    thread.compact(50)
    thread.compact(40)
    poll = select.poll()
    for _ in range(400):
        if log.first_index == 51:
            break
        poll.poll(25)
    assert log.first_index == 51
    thread.stop()


def test_a_full_log_is_told_and_waited_for(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", journal_size_bytes=64 << 10, map_size_bytes=512 << 10)
    thread = LogThread(log)
    index = 0
    while thread.completed().error == 0 and index < 1000:
        index += 1
        wait = thread.submit([Entry(index, 1, b"x" * 8000)])
        poll = select.poll()
        poll.register(thread.fileno(), select.POLLIN)
        while (now := thread.completed()).sequence < wait and now.error == 0:
            poll.poll(1000)
    assert thread.completed().error == -errno.ENOSPC
    assert log.last_index == index - 1
    # Room is made: the queue goes through by itself.
    log.compact(index - 2)
    assert wait_for(thread, index).error == 0
    thread.stop()
    assert log.last_index == index
    log.close()
