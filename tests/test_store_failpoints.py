"""Named places where the process can be killed: the table, and what is there after a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from store_member import Joiner, LocalMember
from trimaran.ext import failpoint
from trimaran.ext.raftlog import Entry, HardState, RaftLog
from trimaran.wire import etcd_pb2 as pb

TESTS = Path(__file__).parent


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


MEMBER_WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from store_member import LocalMember
from test_store_defragment import defragment
with LocalMember(Path(sys.argv[2])) as member:
    # More keys than one step of a compaction takes.
    while member.member.revision < 10:
        member.fill(b"fill%d/" % member.member.revision, 128)
    print(member.member.revision, flush=True)
    for number in range(member.member.revision, 90):
        print(member.put(b"k%d" % (number % 7), b"%d" % (number + 1) * 1000), flush=True)
        if number % 10 == 9:
            member.commit()
        if number % 40 == 19:
            member.compact(number - 5)
        if number % 40 == 29:
            defragment(member)
"""


@pytest.mark.parametrize(
    "name",
    [
        *("state-persist-before", "state-persist-after:2", "compaction-begin", "compaction-end:2"),
        *("compaction-step", "defragment-copy", "defragment-complete", "defragment-rename"),
        "defragment-placed",
    ],
)
def test_a_member_survives(name: str, tmp_path: Path) -> None:
    """Killed again and again at one place, it has what it acknowledged."""
    acknowledged = 0
    for turn in range(3):
        result = run(MEMBER_WRITER, name, TESTS, tmp_path)
        if turn == 0:
            assert result.returncode == -signal.SIGKILL, result.stderr
        told = [int(line) for line in result.stdout.split()]
        assert not told or told[0] >= acknowledged, "a write was lost"
        acknowledged = max([acknowledged, *told])
        with LocalMember(tmp_path) as member:
            assert member.member.revision >= acknowledged
            for revision in range(max(11, member.member.revision - 6), member.member.revision + 1):
                request = pb.RangeRequest(key=b"k%d" % ((revision - 1) % 7))
                found = pb.RangeResponse.FromString(
                    member.member.range(request.SerializeToString())
                )
                assert found.kvs[0].mod_revision == revision
                assert found.kvs[0].value == b"%d" % revision * 1000
            acknowledged = member.member.revision
        assert {path.name for path in tmp_path.iterdir()} == {"log", "state"}


CHANGER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from store_member import LocalMember
with LocalMember(Path(sys.argv[2])) as member:
    for number in range(5):
        print(member.put(b"k", b"%d" % number), flush=True)
    member.add_learner(11)
    member.commit()
"""


@pytest.mark.parametrize(
    ("name", "is_in_the_log"),
    [("membership-propose", False), ("membership-apply", True), ("membership-applied", True)],
)
def test_a_change_of_members_is_whole_or_not(
    name: str, is_in_the_log: bool, tmp_path: Path
) -> None:
    killed = run(CHANGER, name, TESTS, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with LocalMember(tmp_path) as member:
        assert member.member.revision == int(killed.stdout.split()[-1]) == 6
        assert member.member.members()["learners"] == ([11] if is_in_the_log else [])
        if not is_in_the_log:
            member.add_learner(11)
        assert member.member.rows(b"member/") == [(b"member/%016x" % 11, b"learner")]
    with LocalMember(tmp_path) as member:
        assert member.member.members()["learners"] == [11]


SENDER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from store_member import LocalMember
with LocalMember(Path(sys.argv[2])) as member:
    reader = member.member.snapshot()
    for number in range(reader.measure()[1]):
        Path(sys.argv[3], str(number)).write_bytes(reader.read(number))
"""

RECEIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from store_member import Joiner
joiner = Joiner(Path(sys.argv[2]))
chunks = sorted(Path(sys.argv[3]).iterdir(), key=lambda path: int(path.name))
joiner.receive([path.read_bytes() for path in chunks], 9)
joiner.member.close()
"""

SENT, INSTALLED = 300, 301


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chunks of a member's state, each in a file of its own."""
    source, chunks = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("chunks")
    with LocalMember(source) as member:
        for number in range(SENT):
            member.put(b"k%d" % number, b"%d" % number * 500)
        member.commit()
    for name in ("snapshot-send-begin", "snapshot-send-chunk:2"):
        killed = run(SENDER, name, TESTS, source, chunks)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = run(SENDER, "", TESTS, source, chunks)
    assert done.returncode == 0, done.stderr
    return chunks


@pytest.mark.parametrize(
    ("name", "is_installed"),
    [
        ("snapshot-receive-begin", False),
        ("snapshot-receive-chunk:2", False),
        ("snapshot-receive-end", False),
        ("install-begin", False),
        ("install-reset", True),
        ("install-rename", True),
        ("install-placed", True),
        ("install-end", True),
    ],
)
def test_an_install_is_whole_or_not(
    name: str, is_installed: bool, stream: Path, tmp_path: Path
) -> None:
    killed = run(RECEIVER, name, TESTS, tmp_path, stream)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    joiner = Joiner(tmp_path)
    assert joiner.member.revision == (INSTALLED if is_installed else 1)
    assert {path.name for path in tmp_path.iterdir()} == {"log", "state"}
    if is_installed:
        assert joiner.member.members()["voters"] == [9]
        assert joiner.member.status()["commit"] == joiner.member.log_range()[1]
    joiner.member.close()
    if not is_installed:
        again = run(RECEIVER, "", TESTS, tmp_path, stream)
        assert again.returncode == 0, again.stderr
        joiner = Joiner(tmp_path)
        assert joiner.member.revision == INSTALLED
        joiner.member.close()


def test_every_place_is_tried() -> None:
    """Each name stands in a test, here or where that part is tested."""
    texts = "".join(path.read_text() for path in Path(TESTS).rglob("test_*.py"))
    missing = [name for name in failpoint.names() if f'"{name}' not in texts]
    assert not missing
