"""Raft by its rules: one test per rule of the thesis, and traces in tests/traces/raft/.

A trace is a script of commands and what they print; raft_trace.py has the language. After a change
of behaviour run `pytest tests/test_raft.py --rewrite` and read the diff.
"""

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_trace import GroupTrace
from trimaran.errors import CorruptionError
from trimaran.ext.raft import Members, Message, Raft, Ready
from trimaran.ext.raftlog import Entry, HardState, RaftLog

TRACES = sorted((Path(__file__).parent / "traces" / "raft").glob("*.txt"))


def settle(raft: Raft) -> list[Ready]:
    """Carry out everything raft asks for, until it asks for nothing more."""
    done = []
    while raft.has_ready():
        ready = raft.ready()
        if ready.must_append:
            raft.append_done(ready.number)
        if ready.committed is not None:
            raft.applied(ready.committed[1])
        done.append(ready)
    return done


def leader(**options: int) -> Raft:
    raft = Raft(1, [1], **options)
    raft.campaign()
    settle(raft)
    assert raft.status.role == "leader"
    return raft


# Configuration.


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"id": 0}, "id is 0"),
        ({"voters": [0]}, "member's id is 0"),
        ({"voters": [1, 1]}, "same id"),
        ({"voters": range(1, 300)}, "more than 255"),
        ({"members": Members((), learners=(1,))}, "no voters"),
        ({"members": Members((1,), learners=(1,))}, "both voter and learner"),
        ({"members": Members((1,), learners_next=(2,))}, "no outgoing voter"),
        ({"members": Members((1,), auto_leave=True)}, "not joint"),
        ({"lease_us": 1, "check_quorum": False}, "check-quorum"),
        ({"election_ticks": 1}, "election_ticks"),
        ({"heartbeat_ticks": 0}, "election_ticks"),
        ({"first_index": 0}, "first and last"),
        ({"first_index": 5, "last_index": 3}, "first and last"),
    ],
)
def test_a_bad_configuration_is_refused(options: dict[str, object], text: str) -> None:
    arguments: dict[str, object] = {"id": 1, "voters": [1], **options}
    with pytest.raises(ValueError, match=text):
        Raft(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hard_state": (1, 1, 1)}, "committed"),
        ({"applied_index": 1}, "ahead"),
        ({"first_index": 5, "last_index": 9, "applied_index": 3}, "behind"),
        ({"last_index": 1, "last_term": 2, "hard_state": (1, 0, 0)}, "later term"),
    ],
)
def test_a_log_that_contradicts_the_state_is_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(CorruptionError, match=text):
        Raft(1, [1], **options)  # type: ignore[arg-type]


# §3.4, leader election.


def test_members_start_as_followers() -> None:
    assert Raft(1, [1]).status.role == "follower"
    assert not Raft(1, [1]).has_ready()


@given(seed=st.integers(0, 2**64 - 1), election_ticks=st.integers(2, 50))
def test_a_follower_campaigns_after_one_to_two_time_outs(seed: int, election_ticks: int) -> None:
    raft = Raft(1, [1], seed=seed, election_ticks=election_ticks)
    ticks = 0
    while raft.status.role == "follower":
        raft.tick()
        ticks += 1
    assert election_ticks <= ticks < 2 * election_ticks


def test_time_outs_vary_with_the_seed() -> None:
    def ticks_until_campaign(seed: int) -> int:
        raft = Raft(1, [1], seed=seed, election_ticks=100)
        ticks = 0
        while raft.status.role == "follower":
            raft.tick()
            ticks += 1
        return ticks

    assert len({ticks_until_campaign(seed) for seed in range(20)}) > 10


def test_a_candidate_increments_its_term_and_votes_for_itself() -> None:
    raft = Raft(7, [7], hard_state=(4, 3, 0))
    raft.campaign()
    assert raft.status[:5] == ("candidate", 7, 0, 5, 7)
    assert raft.ready().hard_state == HardState(5, 7, 0)


def test_a_candidate_whose_vote_stays_undurable_starts_a_new_term() -> None:
    raft = Raft(1, [1], election_ticks=5)
    raft.campaign()
    late = raft.ready()
    for _ in range(10):
        raft.tick()
    assert raft.status[0] == "candidate"
    assert raft.status.term >= 2
    raft.append_done(late.number)
    assert raft.status.role == "candidate", "a vote of an older term elected it"
    settle(raft)
    assert raft.status.role == "leader"


# §3.8, persisted state: a vote counts, and an entry is acknowledged, once it is on disk.


def test_a_vote_counts_once_it_is_durable() -> None:
    raft = Raft(1, [1])
    raft.campaign()
    ready = raft.ready()
    assert ready.must_append
    assert raft.status.role == "candidate"
    raft.append_done(ready.number)
    assert raft.status.role == "leader"


def test_an_entry_counts_once_it_is_durable() -> None:
    raft = leader()
    index = raft.propose(b"x")
    ready = raft.ready()
    assert ready.entries == [Entry(index, 1, b"x")]
    assert raft.status.commit < index
    assert not raft.has_ready()
    raft.append_done(ready.number)
    assert raft.status.commit == index
    assert raft.ready().committed_entries == [Entry(index, 1, b"x")]


def test_term_and_vote_come_before_anything_of_the_term() -> None:
    raft = Raft(1, [1])
    raft.campaign()
    first = raft.ready()
    assert first.hard_state == HardState(1, 1, 0)
    assert first.entries == []


def test_a_commit_index_alone_is_not_flushed() -> None:
    raft = leader()
    raft.propose(b"x")
    raft.append_done(raft.ready().number)
    ready = raft.ready()
    assert ready.committed is not None
    assert not ready.must_append
    assert ready.hard_state is None
    raft.propose(b"y")
    assert raft.ready().hard_state == HardState(1, 1, 2)


# §3.5, log replication; §10.2.1, the leader writes its disk in parallel.


def test_appends_in_flight_are_acknowledged_together_or_one_by_one() -> None:
    raft = leader()
    numbers = []
    for data in (b"a", b"b", b"c"):
        raft.propose(data)
        ready = raft.ready()
        assert [e.data for e in ready.entries] == [data]
        numbers.append(ready.number)
    raft.append_done(numbers[0])
    assert raft.status.commit == 2
    raft.append_done(numbers[2])
    assert raft.status.commit == 4
    committed = raft.ready()
    assert committed.committed == (2, 4)
    assert committed.committed_entries is not None
    assert [e.data for e in committed.committed_entries] == [b"a", b"b", b"c"]


def test_each_entry_is_handed_out_once_each_way() -> None:
    raft = leader()
    appended, committed = [], []
    for turn in range(300):
        for i in range(turn % 4):
            raft.propose(f"{turn}.{i}".encode())
        for ready in settle(raft):
            appended += ready.entries
            committed += ready.committed_entries or []
    assert [e.index for e in appended] == list(range(2, 2 + len(appended)))
    assert committed == appended


def test_proposals_elsewhere_than_on_the_leader_are_refused() -> None:
    raft = Raft(1, [1])
    with pytest.raises(BlockingIOError, match="not the leader"):
        raft.propose(b"x")
    with pytest.raises(BlockingIOError, match="no leader"):
        raft.read_index(1)
    assert raft.status.last_index == 0


def test_uncommitted_bytes_are_bounded() -> None:
    raft = leader(max_uncommitted_bytes=100)
    raft.propose(b"x" * 1000)
    with pytest.raises(OSError, match="not committed") as caught:
        raft.propose(b"y")
    assert caught.value.errno == errno.EBUSY
    settle(raft)
    assert raft.status.uncommitted_bytes == 0
    for _ in range(100):
        raft.propose(b"z")
    with pytest.raises(OSError, match="not committed"):
        raft.propose(b"z")


# §3.6.2, entries of earlier terms are committed with one of the leader's own.


def test_earlier_terms_are_committed_by_an_entry_of_the_leader_s_term() -> None:
    raft = Raft(1, [1], hard_state=(3, 1, 2), last_index=5, last_term=3, applied_index=2)
    assert raft.status.commit == 2
    raft.campaign()
    ready = raft.ready()
    raft.append_done(ready.number)
    assert raft.status.role == "leader"
    assert raft.status.commit == 2, "committed by counting copies of an earlier term's entries"
    ready = raft.ready()
    assert ready.entries == [Entry(6, 4, b"")]
    raft.append_done(ready.number)
    assert raft.status.commit == 6
    assert raft.ready()[5:7] == ((3, 5), None), "entries of before the start are in the log only"
    assert raft.ready()[5:7] == ((6, 6), [Entry(6, 4, b"")])


def test_applied_counts_as_committed() -> None:
    """The state may be ahead of the hard state's commit index, which is flushed with appends."""
    raft = Raft(1, [1], hard_state=(1, 1, 1), last_index=5, last_term=1, applied_index=4)
    assert raft.status.commit == 4
    raft.campaign()
    assert [r.committed for r in settle(raft) if r.committed] == [(5, 5), (6, 6)]


# §4: answers count only from members. What is asked by others is heard: they may be in a
# configuration that this member does not know yet.


def test_answers_of_strangers_are_refused() -> None:
    raft = leader()
    before = raft.status
    for type in ("vote-response", "pre-vote-response", "append-response", "heartbeat-response"):
        with pytest.raises(KeyError):
            raft.step(Message(type, sender=2, to=1, term=99, index=1))
    assert raft.status == before


# §6.4, linearizable reads.


def test_a_read_waits_for_an_entry_of_the_term() -> None:
    raft = Raft(1, [1], hard_state=(3, 1, 2), last_index=5, last_term=3, applied_index=2)
    raft.campaign()
    raft.append_done(raft.ready().number)
    raft.read_index(77)
    ready = raft.ready()
    assert ready.read_states == []
    raft.append_done(ready.number)
    assert raft.ready().read_states == [(77, 6)]
    raft.read_index(78)
    raft.read_index(79)
    assert next(iter(settle(raft))).read_states == [(78, 6), (79, 6)]


def test_a_read_sees_every_write_acknowledged_before_it() -> None:
    raft = leader()
    index = raft.propose(b"x")
    raft.append_done(raft.ready().number)
    raft.read_index(1)
    raft.propose(b"y")
    assert raft.ready().read_states == [(1, index)]


# The caller's mistakes.


def test_a_caller_s_mistakes_are_told() -> None:
    raft = leader()
    with pytest.raises(ValueError, match="handed out"):
        raft.append_done(1000)
    with pytest.raises(ValueError, match="handed out"):
        raft.applied(1000)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    steps=st.lists(
        st.sampled_from(["tick", "propose", "read", "ready", "done", "apply", "crash"]),
        max_size=120,
    ),
)
def test_nothing_acknowledged_is_lost_and_all_is_applied_in_order(
    seed: int, steps: list[str]
) -> None:
    """Any order of events, with crashes that lose what was not yet durable."""
    disk: list[Entry] = []
    state = HardState(0, 0, 0)
    applied: list[Entry] = []
    in_flight: list[Ready] = []
    to_apply: list[Entry] = []
    acknowledged: dict[int, Entry] = {}
    raft = Raft(1, [1], seed=seed, election_ticks=3)

    def write(ready: Ready) -> None:
        nonlocal state
        state = ready.hard_state or state
        for entry in ready.entries:
            assert entry.index == len(disk) + 1
            disk.append(entry)

    for number, step in enumerate(steps):
        if step == "tick":
            raft.tick()
        elif step == "propose" and raft.status.role == "leader":
            raft.propose(f"{number}".encode())
        elif step == "read" and raft.status.role == "leader":
            raft.read_index(number)
        elif step == "ready" and raft.has_ready():
            ready = raft.ready()
            in_flight.append(ready)
            if ready.committed is not None:
                first, last = ready.committed
                entries = ready.committed_entries or disk[first - 1 : last]
                assert entries == disk[first - 1 : last], "committed before it was durable"
                to_apply += entries
            for _, index in ready.read_states:
                assert index >= max(acknowledged, default=0)
        elif step == "done" and in_flight:
            ready = in_flight.pop(0)
            write(ready)
            raft.append_done(ready.number)
        elif step == "apply" and to_apply:
            applied += to_apply
            acknowledged.update({e.index: e for e in to_apply})
            raft.applied(to_apply[-1].index)
            to_apply = []
        elif step == "crash":
            in_flight, to_apply = [], []
            raft = Raft(
                1,
                [1],
                seed=seed + number,
                election_ticks=3,
                hard_state=state,
                last_index=len(disk),
                last_term=disk[-1].term if disk else 0,
                applied_index=len(applied),
            )
        assert applied == disk[: len(applied)]
        assert raft.status.commit >= len(applied)
        assert raft.status.term >= state.term


def test_a_member_on_a_real_log_restarts_where_it_was(tmp_path: Path) -> None:
    log = RaftLog(tmp_path / "log", journal_size_bytes=64 << 10)
    applied: list[bytes] = []
    for life in range(1, 4):
        raft = Raft(
            1,
            [1],
            hard_state=log.hard_state,
            first_index=log.first_index,
            last_index=log.last_index,
            last_term=log.term(log.last_index),
            applied_index=len(applied),
        )
        for turn in range(21):
            if turn == 1:
                raft.campaign()
            if raft.status.role == "leader":
                raft.propose(f"{life}.{turn}".encode())
            while raft.has_ready():
                ready = raft.ready()
                if ready.must_append:
                    log.append(ready.entries, ready.hard_state)
                    raft.append_done(ready.number)
                if ready.committed is not None and turn < 16:
                    applied += [e.data for e in log.read(*ready.committed)]
                    raft.applied(ready.committed[1])
        log.close()
        log = RaftLog(tmp_path / "log")
    told = [data for data in applied if data]
    assert told[:5] == [b"1.2", b"1.3", b"1.4", b"1.5", b"1.6"]
    assert told == sorted(told, key=lambda data: [int(x) for x in data.split(b".")])
    assert log.hard_state.term == 3
    log.close()


# Traces.


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace(path: Path, request: pytest.FixtureRequest) -> None:
    trace = GroupTrace()
    written = []
    text = path.read_text()
    for block in text.strip("\n").split("\n\n"):
        commands = block.split("\n----")[0]
        output = [
            line
            for command in commands.split("\n")
            if not command.startswith("#")
            for line in trace.run(command)
        ]
        written.append("\n".join([commands, "----", *output]))
    result = "\n\n".join(written) + "\n"
    if request.config.getoption("--rewrite"):
        path.write_text(result)
    assert result == text or request.config.getoption("--rewrite")


def test_there_are_traces() -> None:
    assert TRACES
