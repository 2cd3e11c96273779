"""Members of one cluster: who leads, what is written once, what is read, who belongs to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from member_group import Group
from trimaran.errors import StoreError
from trimaran.ext import member as engine
from trimaran.ext.snapshot import PreparedState, StateBuilder, complete
from trimaran.wire import etcd_pb2 as pb


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    """Three members."""
    group = Group(tmp_path, 3)
    yield group
    group.close()


def followers(group: Group) -> list[int]:
    """Return those who do not lead."""
    leader = group.leader()
    return [number for number in group.members if number != leader]


def test_one_leads_and_all_write(group: Group) -> None:
    leader = group.leader()
    tokens = [group.put(number, b"k%d" % number, b"v") for number in group.members]
    assert [group.outcome(token)[:2] for token in tokens] == [(engine.PUT, "")] * 3
    assert len({group.content(number) for number in group.members}) == 1
    assert group.members[leader].status()["commit"] > 1
    assert group.members[leader].members()["voters"] == [1, 2, 3]
    assert group.members[1].rows(b"member/") == [
        (b"member/%016x" % number, b"member %d" % number) for number in (1, 2, 3)
    ]


def test_a_write_waits_for_a_majority(group: Group) -> None:
    leader = group.leader()
    others = followers(group)
    group.split({leader}, set(others))
    token = group.put(leader, b"a", b"1")
    group.tick(2)
    assert token not in group.results
    group.heal()
    assert group.outcome(token)[1] == ""


def test_writes_of_a_follower_outlive_the_leader(group: Group) -> None:
    leader = group.leader()
    first, second = followers(group)
    # The leader has them, and dies before it says so.
    group.cut = {(leader, first), (leader, second)}
    tokens = [group.put(first, b"k%d" % i, b"v") for i in range(5)]
    group.run()
    group.crash(leader)
    group.heal()
    assert [group.outcome(token)[1] for token in tokens] == [""] * 5
    group.start(leader)
    group.tick(2 * 10)
    assert len({group.content(number) for number in group.members}) == 1
    assert group.members[first].revision == 6


def test_without_a_majority_requests_time_out(group: Group) -> None:
    leader = group.leader()
    first, second = followers(group)
    group.crash(first)
    group.crash(second)
    write, read = group.put(leader, b"a", b"1"), group.read(leader)
    assert group.outcome(write)[1] == "TIMEOUT"
    assert group.outcome(read)[1] == "TIMEOUT"
    # Both began while the leader had a majority, and it has lost it since.
    assert group.members[leader].status()["leader"] == 0
    write = group.put(leader, b"b", b"1")
    assert group.outcome(write)[1] == "TIMEOUT"


def test_requests_wait_for_the_first_leader(tmp_path: Path) -> None:
    group = Group(tmp_path, 3)
    tokens = [group.put(1, b"a", b"1"), group.read(2)]
    assert [group.outcome(token)[1] for token in tokens] == ["", ""]
    group.close()


@pytest.mark.parametrize("seed", range(12))
def test_each_write_counts_once_whatever_the_network_does(tmp_path: Path, seed: int) -> None:
    """Each key is put with one request: a version above 1 is a write that counted twice."""
    group = Group(tmp_path, 3, seed)
    group.leader()
    held: list[tuple[int, int, bytes]] = []

    def shake(sender: int, to: int, piece: bytes) -> list[bytes]:
        """Lose, repeat and reorder; each piece is whole frames."""
        if held and group.random.random() < 0.5:
            group.late.append(held.pop(group.random.randrange(len(held))))
        kind = group.random.random()
        if kind < 0.1:
            return []
        if kind < 0.2:
            held.append((sender, to, piece))
            return []
        return [piece, piece] if kind < 0.35 else [piece]

    group.network = shake
    tokens: dict[int, int] = {}
    for round_ in range(60):
        number = group.random.choice(list(group.members))
        tokens[group.put(number, b"key-%d" % round_, b"v")] = round_
        group.step(number)
        if group.random.random() < 0.3:
            group.tick()
        if group.random.random() < 0.03:
            number = group.random.choice(list(group.members))
            group.crash(number)
            group.tick(group.random.randrange(30))
            group.start(number)
    group.network = lambda _sender, _to, piece: [piece]
    group.leader()
    group.tick(80)
    assert len({group.content(number) for number in group.members}) == 1
    one = group.members[1]
    for token, round_ in tokens.items():
        if group.results.get(token, (0, "?", 0))[1] == "":
            assert group.get(1, b"key-%d" % round_) == b"v", "an acknowledged write is lost"
    stored = one.range(pb.RangeRequest(key=b"key-", range_end=b"key.").SerializeToString())
    kvs = pb.RangeResponse.FromString(stored).kvs
    assert all(one.version == 1 for one in kvs)
    assert one.revision == 1 + len(kvs)
    group.close()


def test_reads_see_what_was_acknowledged_before(group: Group) -> None:
    leader = group.leader()
    for number in group.members:
        write = group.put(leader, b"a", b"%d" % number)
        assert group.outcome(write)[1] == ""
        read = group.read(number)
        assert group.outcome(read) == (engine.READ, "", group.results[write][2])
        assert group.get(number, b"a") == b"%d" % number


def test_a_deposed_leader_serves_no_old_value(group: Group) -> None:
    leader = group.leader()
    others = followers(group)
    assert group.outcome(group.put(leader, b"a", b"old"))[1] == ""
    group.split({leader}, set(others))
    read = group.read(leader)
    group.run()
    assert read not in group.results
    while not any(group.members[number].is_leader for number in others):
        group.tick()
    write = group.put(others[0], b"a", b"new")
    assert group.outcome(write)[1] == ""
    assert read not in group.results
    group.heal()
    assert group.outcome(read)[1] == ""
    assert group.get(leader, b"a") == b"new"


def test_a_question_that_is_lost_is_asked_again(group: Group) -> None:
    leader = group.leader()
    first, _ = followers(group)
    group.cut = {(first, leader)}
    read = group.read(first)
    group.run()
    group.heal()
    for _ in range(8):
        group.tick()
    assert group.results[read][1] == ""


def test_restart_of_all(group: Group) -> None:
    group.leader()
    tokens = [group.put(number, b"k%d" % number, b"v") for number in group.members]
    assert {group.outcome(token)[1] for token in tokens} == {""}
    group.members[1].commit()
    for number in (1, 2, 3):
        group.crash(number)
    for number in (1, 2, 3):
        group.start(number)
    group.leader()
    assert group.outcome(group.put(2, b"k4", b"v"))[1] == ""
    assert [group.get(2, b"k%d" % number) for number in range(1, 5)] == [b"v"] * 4


def test_members_come_and_go(group: Group) -> None:
    leader = group.leader()
    group.outcome(group.put(leader, b"a", b"1"))
    version = group.members[leader].rows_version
    added = group.change(followers(group)[0], [(engine.ADD_LEARNER, 4)], [(b"member/4", b"four")])
    assert group.outcome(added)[:2] == (engine.CHANGE, "")
    assert group.members[leader].rows_version > version
    group.start(4, joins=True)
    group.tick(5)
    assert group.members[4].status()["is_learner"] == 1
    assert group.get(4, b"a") == b"1"
    assert group.members[4].members() == group.members[leader].members()
    assert group.members[4].rows(b"member/") == group.members[leader].rows(b"member/")
    promoted = group.change(leader, [(engine.ADD_VOTER, 4)], [])
    assert group.outcome(promoted)[1] == ""
    removed = group.change(4, [(engine.REMOVE, leader)], [(b"member/%016x" % leader, None)])
    assert group.outcome(removed)[1] == ""
    group.crash(leader)
    new = group.leader()
    assert group.members[new].members()["voters"] == sorted({1, 2, 3, 4} - {leader})
    assert group.outcome(group.put(4, b"b", b"2"))[1] == ""


def test_two_changes_together_are_joint(group: Group) -> None:
    leader = group.leader()
    gone = followers(group)[0]
    token = group.change(leader, [(engine.ADD_VOTER, 5), (engine.REMOVE, gone)], [])
    group.start(5, joins=True)
    assert group.outcome(token)[1] == ""
    group.tick(3)
    members = group.members[leader].members()
    assert members["voters"] == sorted({1, 2, 3, 5} - {gone})
    assert members["outgoing"] == []


def test_who_is_no_member_cannot_be_removed(group: Group) -> None:
    leader = group.leader()
    token = group.change(leader, [(engine.REMOVE, 9)], [(b"removed/9", b"")])
    assert group.outcome(token)[1] == "MEMBER_NOT_FOUND"
    assert group.members[leader].rows(b"removed/") == []


def test_changes_wait_for_each_other(group: Group) -> None:
    leader = group.leader()
    tokens = [
        group.change(number, [(engine.ADD_LEARNER, 10 + number)], []) for number in group.members
    ]
    writes = [group.put(number, b"k", b"v") for number in group.members]
    assert [group.outcome(token)[1] for token in tokens + writes] == [""] * 6
    assert group.members[leader].members()["learners"] == [11, 12, 13]


def test_the_leader_hands_over(group: Group) -> None:
    leader = group.leader()
    other = followers(group)[0]
    with pytest.raises(StoreError, match="not leader"):
        group.members[other].transfer(leader)
    with pytest.raises(StoreError, match="bad leader transferee"):
        group.members[leader].transfer(99)
    group.members[leader].transfer(other)
    group.run()
    assert group.members[other].is_leader
    progress = group.members[other].raft_progress(leader)
    assert progress is not None
    assert progress["match"] == group.members[other].status()["commit"]
    assert group.members[leader].raft_progress(other) is None


def test_what_a_leader_decides_by_its_clock_is_void_in_another_term(group: Group) -> None:
    leader = group.leader()
    term = group.members[leader].status()["term"]
    grant = pb.LeaseGrantRequest(ID=5, TTL=60).SerializeToString()
    assert group.outcome(group.submit(leader, engine.LEASE_GRANT, grant))[1] == ""
    revoke = pb.LeaseRevokeRequest(ID=5).SerializeToString()
    for other_term in (term - 1, term + 1):
        body = other_term.to_bytes(8, "little") + revoke
        outcome = group.outcome(group.submit(leader, engine.LEASE_EXPIRE, body))
        assert outcome[1] == "LEADER_CHANGED"
    assert all(member.leases() == [(5, 60)] for member in group.members.values())
    body = term.to_bytes(8, "little") + revoke
    assert group.outcome(group.submit(leader, engine.LEASE_EXPIRE, body))[1] == ""
    assert all(member.leases() == [] for member in group.members.values())


def test_rows_and_checkpoints_are_replicated(group: Group) -> None:
    leader = group.leader()
    grant = pb.LeaseGrantRequest(ID=5, TTL=60).SerializeToString()
    assert group.outcome(group.submit(leader, engine.LEASE_GRANT, grant))[1] == ""
    checkpoint = pb.LeaseCheckpointRequest(
        checkpoints=[pb.LeaseCheckpoint(ID=5, remaining_TTL=21)]
    ).SerializeToString()
    term = group.members[leader].status()["term"]
    body = term.to_bytes(8, "little") + checkpoint
    assert group.outcome(group.submit(leader, engine.LEASE_CHECKPOINT, body))[1] == ""
    rows = engine.encode_rows([(b"cluster/version", b"3.6.0")])
    assert group.outcome(group.submit(leader, engine.ROWS, rows))[1] == ""
    for number in list(group.members):
        group.members[number].commit()
        group.crash(number)
    for number in (1, 2, 3):
        member = group.start(number)
        assert member.leases() == [(5, 60)]
        assert member.checkpoints() == [(5, 21)]
        assert member.rows(b"cluster/") == [(b"cluster/version", b"3.6.0")]
    bad = engine.encode_rows([(b"raft/members", b"")])
    assert group.outcome(group.submit(group.leader(), engine.ROWS, bad))[1] == "MALFORMED"


def stream(group: Group, leader: int, to: int) -> PreparedState:
    """Copy a leader's committed state beside a member's own, as a transport would."""
    group.members[leader].commit()
    folder = group.folder / f"member-{to}" / "state"
    reader = group.members[leader].snapshot()
    builder = StateBuilder(f"{folder}.new")
    for number in range(reader.measure()[1]):
        builder.write(reader.read(number))
    builder.finish()
    complete(str(folder), reader.index)
    reader.close()
    return PreparedState(group.options_of(to))


def lag(group: Group, number: int) -> int:
    """Write on while a member is away, and cut the log before it is back; returns the leader."""
    group.crash(number)
    leader = group.leader()
    for i in range(20):
        assert group.outcome(group.put(leader, b"n%d" % i, b"v"))[1] == ""
    group.members[leader].commit()
    group.members[leader].compact_log(group.members[leader].persisted_index)
    return leader


def test_a_member_that_was_away_too_long_gets_a_snapshot(group: Group) -> None:
    group.outcome(group.put(group.leader(), b"a", b"1"))
    behind = followers(group)[0]
    leader = lag(group, behind)
    member = group.start(behind)
    # It asks for a write of its own, which the snapshot may or may not hold.
    token = group.put(behind, b"own", b"1")
    asked = []
    for _ in range(30):
        group.tick()
        asked += group.members[leader].snapshot_requests()
    assert asked == [behind]
    assert group.content(behind) != group.content(leader)
    prepared = stream(group, leader, behind)
    version = member.rows_version
    assert member.install(leader, group.members[leader].status()["term"], prepared)
    assert not member.is_installing
    group.members[leader].snapshot_sent(behind, prepared.index)
    assert group.content(behind) == group.content(leader)
    assert member.rows_version > version
    prepared.close()
    assert group.outcome(token)[1] in {"", "TIMEOUT"}
    assert group.outcome(group.put(behind, b"b", b"2"))[1] == ""
    group.crash(behind)
    group.start(behind)
    group.tick(30)
    assert group.content(behind) == group.content(leader)


def test_a_snapshot_that_is_no_news_is_left(group: Group) -> None:
    leader = group.leader()
    group.outcome(group.put(leader, b"a", b"1"))
    other = followers(group)[0]
    prepared = stream(group, leader, other)
    before = group.content(other)
    assert not group.members[other].install(leader, 1, prepared)
    prepared.close()
    assert group.content(other) == before
    assert group.outcome(group.put(other, b"b", b"2"))[1] == ""
