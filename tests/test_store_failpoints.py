"""Named places where the process can be killed: the table, and what is there after a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trimaran.ext.raftlog import Entry, HardState, RaftLog


def run(script: str, armed: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script with a failpoint armed."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "TRIMARAN_FAILPOINT": armed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_unknown_name_is_refused() -> None:
    for armed in ("nowhere", "log-append-before:0", "log-append-before:x", "log-append-before:1x"):
        result = run("import trimaran.ext.failpoint", armed)
        assert result.returncode == 2
        assert armed in result.stderr


def test_a_count_lets_passes_go_by() -> None:
    script = """
from trimaran.ext import failpoint
for number in range(5):
    failpoint.hit("install-begin")
    failpoint.hit("install-end")
    print(number, flush=True)
"""
    assert run(script, "install-end:3").stdout.split() == ["0", "1"]
    assert run(script, "install-end:9").stdout.split() == ["0", "1", "2", "3", "4"]


LOG_WRITER = """
import sys
from trimaran.ext.raftlog import Entry, HardState, RaftLog
log = RaftLog(sys.argv[1], journal_size_bytes=64 << 10)
for index in range(log.last_index + 1, 400):
    log.append([Entry(index, 1, b"%d." % index * 200)], HardState(1, 1, index - 1))
    print(index, flush=True)
    if index % 50 == 0:
        log.compact(index - 30)
"""


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "name",
    [
        *("log-append-before", "log-append-after", "journal-recycle-before"),
        *("journal-recycle-after", "log-compact-before", "log-compact-after"),
    ],
)
def test_the_log_survives(name: str, count: int, tmp_path: Path) -> None:
    result = run(LOG_WRITER, f"{name}:{count}", tmp_path / "log")
    assert result.returncode == -signal.SIGKILL, result.stderr
    acknowledged = int(result.stdout.split()[-1]) if result.stdout else 0
    log = RaftLog(tmp_path / "log")
    assert acknowledged <= log.last_index <= acknowledged + 1
    for entry in log.read(log.first_index, log.last_index):
        assert entry == Entry(entry.index, 1, b"%d." % entry.index * 200)
    next_entry = Entry(log.last_index + 1, 2, b"")
    log.append([next_entry], HardState(2, 0, log.last_index))
    assert log.read(log.last_index, log.last_index) == [next_entry]
    log.close()
