"""The rules of membership: who may come and go, and how that is written."""

import contextlib
import hashlib
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran.errors import ETCD_ERRORS, CorruptionError, StoreError
from trimaran.store import configuration as conf
from trimaran.store import membership as ms
from trimaran.store.configuration import Configuration, Op
from trimaran.store.identity import cluster_id, member_id, runtime_member_id
from trimaran.store.membership import Change, Health, MemberTable
from trimaran.wire import etcd_pb2 as pb

U64 = st.integers(0, 2**64 - 1)
ROWS = st.lists(st.tuples(st.binary(max_size=40), st.none() | st.binary(max_size=60)), max_size=6)
CHANGES = st.lists(st.tuples(st.sampled_from(Op), U64), max_size=6)
CONFIGURATIONS = st.builds(
    lambda changes, rows, *numbers: Configuration(tuple(changes), tuple(rows), *numbers),
    CHANGES,
    ROWS,
    U64,
    U64,
    U64,
)


def url(number: int) -> str:
    return f"http://10.0.0.{number}:2380"


def table(started: str, removed: Sequence[int] = ()) -> MemberTable:
    """Make members 1, 2, ...: V a started voter, v one that is not, L and l learners."""
    members = {
        number: pb.Member(
            ID=number,
            name=f"m{number}" if mark.isupper() else "",
            peerURLs=[url(number)],
            isLearner=mark in "Ll",
        )
        for number, mark in enumerate(started, 1)
    }
    return MemberTable(members, frozenset(removed))


def healthy(members: MemberTable, *, down: Sequence[int] = (), young: Sequence[int] = ()) -> Health:
    active = set(members.members) - set(down) - {1}
    return Health(own_id=1, active=active, steady=active - set(young))


def outcome(plan: Callable[[], Change]) -> str:
    """Run a plan and give the name of its error, "" where it is allowed."""
    try:
        plan()
    except StoreError as error:
        row = (error.code, error.message)
        return next(name for name, known in ETCD_ERRORS.items() if known == row)
    return ""


@pytest.mark.parametrize(
    ("members", "learner", "down", "young", "error"),
    [
        ("V", False, [], [], ""),
        ("V", True, [], [], ""),
        ("Vv", False, [], [], "NOT_ENOUGH_STARTED"),
        ("Vv", True, [], [2], "UNHEALTHY"),
        ("VV", False, [], [], ""),
        ("VV", False, [2], [], "UNHEALTHY"),
        ("VV", False, [], [2], "UNHEALTHY"),
        ("VVv", False, [3], [], "NOT_ENOUGH_STARTED"),
        ("VVV", False, [3], [], "UNHEALTHY"),
        ("VVV", True, [3], [], "UNHEALTHY"),
        ("VVV", False, [], [], ""),
        ("VL", True, [], [], "TOO_MANY_LEARNERS"),
        ("Vl", True, [2], [], "TOO_MANY_LEARNERS"),
        ("Vl", False, [2], [], ""),
        ("VVVv", False, [], [], ""),
        ("VVvv", False, [], [], "NOT_ENOUGH_STARTED"),
    ],
)
def test_adding(members: str, learner: bool, down: list[int], young: list[int], error: str) -> None:
    now = table(members)
    health = healthy(now, down=down, young=young)

    def plan() -> Change:
        return ms.plan_add(now, [url(9)], health, unix_s=5, is_learner=learner)

    assert outcome(plan) == error
    if not error:
        change = plan()
        assert runtime_member_id([url(9)], 5) == change.member.ID
        assert change.changes == ((Op.ADD_LEARNER if learner else Op.ADD_VOTER, change.member.ID),)


def test_adding_without_the_strict_check() -> None:
    now = table("Vvv")
    health = Health(own_id=1, strict=False)
    assert outcome(lambda: ms.plan_add(now, [url(9)], health, unix_s=5)) == ""


@pytest.mark.parametrize(
    ("urls", "error"),
    [
        ([], "MEMBER_BAD_URLS"),
        (["nonsense"], "MEMBER_BAD_URLS"),
        (["http://a"], "MEMBER_BAD_URLS"),
        (["http://a:99999"], "MEMBER_BAD_URLS"),
        (["http://[::1"], "MEMBER_BAD_URLS"),
        (["http://a:1/path"], "MEMBER_BAD_URLS"),
        (["ftp://a:1"], "MEMBER_BAD_URLS"),
        ([url(1)], "PEER_URL_EXISTS"),
        ([url(7), url(1)], "PEER_URL_EXISTS"),
        ([" http://a:1 "], ""),
        (["https://a:1", "http://[::1]:1"], ""),
    ],
)
def test_urls_of_a_request(urls: list[str], error: str) -> None:
    now = table("VV")
    assert outcome(lambda: ms.plan_add(now, urls, healthy(now), unix_s=5)) == error
    if error != "PEER_URL_EXISTS":
        assert outcome(lambda: ms.plan_update(now, 2, urls)) == error


def test_ids_never_return() -> None:
    new = runtime_member_id([url(9)], 5)
    now = table("V", removed=[new])
    plan = outcome(lambda: ms.plan_add(now, [url(9)], healthy(now), unix_s=5))
    assert plan == "MEMBER_NOT_FOUND"
    assert outcome(lambda: ms.plan_remove(now, new, healthy(now))) == "MEMBER_NOT_FOUND"


def test_an_id_that_exists() -> None:
    new = runtime_member_id([url(9)], 5)
    now = MemberTable({1: table("V").members[1], new: pb.Member(ID=new, name="x")})
    health = Health(own_id=1, active={new}, steady={new})
    assert outcome(lambda: ms.plan_add(now, [url(9)], health, unix_s=5)) == "MEMBER_EXISTS"


@pytest.mark.parametrize(
    ("members", "member", "down", "error"),
    [
        ("V", 1, [], "NOT_ENOUGH_STARTED"),
        ("V", 9, [], "MEMBER_NOT_FOUND"),
        ("VV", 2, [], ""),
        ("VV", 2, [2], ""),
        ("Vv", 1, [], "NOT_ENOUGH_STARTED"),
        ("Vv", 2, [2], ""),
        ("VVV", 1, [], ""),
        ("VVV", 2, [3], "UNHEALTHY"),
        ("VVV", 3, [3], ""),
        ("VVv", 2, [3], "NOT_ENOUGH_STARTED"),
        ("VVv", 3, [3], ""),
        ("VL", 2, [], ""),
        ("Vl", 2, [2], ""),
        ("VL", 1, [], "NOT_ENOUGH_STARTED"),
        ("VVVVV", 2, [4, 5], "UNHEALTHY"),
        ("VVVVV", 2, [5], ""),
    ],
)
def test_removing(members: str, member: int, down: list[int], error: str) -> None:
    now = table(members)
    assert outcome(lambda: ms.plan_remove(now, member, healthy(now, down=down))) == error
    if not error:
        after = applied(now, ms.plan_remove(now, member, healthy(now, down=down)))
        assert member not in after.members
        assert member in after.removed


@pytest.mark.parametrize(
    ("members", "member", "match", "error"),
    [
        ("VL", 2, 90, ""),
        ("VL", 2, 89, "LEARNER_NOT_READY"),
        ("VV", 2, 100, "MEMBER_NOT_LEARNER"),
        ("VV", 2, 10, "LEARNER_NOT_READY"),
        ("VL", 9, 100, "MEMBER_NOT_FOUND"),
        ("VLv", 2, 100, ""),
        ("VLvv", 2, 100, "NOT_ENOUGH_STARTED"),
    ],
)
def test_promoting(members: str, member: int, match: int, error: str) -> None:
    now = table(members)

    def plan() -> Change:
        return ms.plan_promote(now, member, match=match, leader_match=100)

    assert outcome(plan) == error
    if not error:
        assert plan().changes == ((Op.ADD_VOTER, member),)
        assert not applied(now, plan()).members[member].isLearner
        assert now.members[member].isLearner


def test_updating() -> None:
    now = table("VL")
    assert outcome(lambda: ms.plan_update(now, 9, [url(9)])) == "MEMBER_NOT_FOUND"
    assert outcome(lambda: ms.plan_update(now, 2, [url(1)])) == "PEER_URL_EXISTS"
    change = ms.plan_update(now, 2, [url(3), url(2)])
    assert change.changes == ((Op.ADD_LEARNER, 2),)
    after = applied(now, change)
    assert after.members[2].peerURLs == [url(2), url(3)]
    assert after.members[2].isLearner
    assert now.members[2].peerURLs == [url(2)]


def rows_of(members: MemberTable) -> dict[bytes, bytes]:
    rows = {ms.removed_key(number): b"" for number in members.removed}
    for number, member in members.members.items():
        rows[ms.member_key(number)] = member.SerializeToString()
    return rows


def applied(before: MemberTable, change: Change) -> MemberTable:
    """Apply a change's rows as the state does, through the bytes of the entry."""
    entry = conf.encode_configuration(Configuration(change.changes, change.rows))
    rows = rows_of(before)
    for key, value in conf.decode_configuration(entry).rows:
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value
    return MemberTable.from_rows(rows.items())


def test_attributes_are_the_members_own() -> None:
    now = table("Vl")
    rows = rows_of(now)
    rows |= {key: value or b"" for key, value in ms.attributes_rows(2, "new", ["http://c:1"])}
    told = MemberTable.from_rows(rows.items())
    assert (told.members[2].name, told.members[2].isLearner) == ("new", True)
    assert told.members[2].clientURLs == ["http://c:1"]
    assert told.by_peer_urls([url(2)]) == told.members[2]
    # They outlive changes of the same member by others.
    promoted = ms.plan_promote(told, 2, match=1, leader_match=1)
    rows |= {key: value or b"" for key, value in promoted.rows}
    assert MemberTable.from_rows(rows.items()).members[2].clientURLs == ["http://c:1"]
    # Those of a member that is gone make no member.
    rows.pop(ms.member_key(2))
    assert set(MemberTable.from_rows(rows.items()).members) == {1}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"member/1", b""),
        (b"member/000000000000000g", b""),
        (b"member/0000000000000002", b"\xff"),
        (b"member/0000000000000002", b""),
        (b"member/0000000000000002/attributes", b"\xff"),
        (b"removed/", b""),
    ],
)
def test_damaged_rows_are_corruption(key: bytes, value: bytes) -> None:
    with pytest.raises(CorruptionError):
        MemberTable.from_rows([(key, value)])


@given(st.permutations([("a", ("http://a:1", "http://a:2")), ("b", ("http://b:1",))]))
def test_every_first_member_writes_the_same(members: list[tuple[str, tuple[str, ...]]]) -> None:
    entry = ms.bootstrap_entry(dict(members), "t")
    assert entry == ms.bootstrap_entry(
        {"b": ("http://b:1",), "a": ("http://a:2", "http://a:1")}, "t"
    )
    read = conf.decode_configuration(entry)
    found = MemberTable.from_rows((key, value or b"") for key, value in read.rows)
    assert {m.name: tuple(m.peerURLs) for m in found.members.values()} == dict(members)
    assert [member for _, member in read.changes] == sorted(found.members)
    assert cluster_id(found.members) == cluster_id(member_id(urls, "t") for _, urls in members)


def test_an_entry_byte_for_byte() -> None:
    entry = Configuration(((Op.REMOVE, 2),), ((b"k", b"v"), (b"gone", None)), 3, 4, 5)
    assert conf.encode_configuration(entry).hex() == (
        "01" "0300000000000000" "0400000000000000" "0500000000000000"
        "0100" "03" "0200000000000000"
        "02000000" "01000000" "6b" "01000000" "76" "04000000" "676f6e65" "ffffffff"
    )  # fmt: skip


@given(CONFIGURATIONS)
def test_entries_are_read_as_written(configuration: Configuration) -> None:
    data = conf.encode_configuration(configuration)
    assert conf.decode_configuration(data) == configuration
    for end in range(1, len(data)):
        with pytest.raises(CorruptionError):
            conf.decode_configuration(data[:end])
    with pytest.raises(CorruptionError):
        conf.decode_configuration(data + b"\0")


@given(ROWS)
def test_rows_are_read_as_written(rows: list[tuple[bytes, bytes | None]]) -> None:
    assert list(conf.decode_rows(conf.encode_rows(rows))) == rows


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (conf.decode_configuration, conf.decode_rows):
        with contextlib.suppress(CorruptionError):
            read(data)
    with contextlib.suppress(CorruptionError):
        conf.decode_configuration(b"\1" + data)


def test_the_id_of_an_added_member() -> None:
    text = b"http://a:1http://b:21700000000"
    expected = int.from_bytes(hashlib.sha1(text).digest()[:8], "big")
    assert runtime_member_id(["http://b:2", "http://a:1"], 1_700_000_000) == expected


def test_a_cluster_of_one_by_force() -> None:
    now = table("VLV")
    entries = ms.force_new_cluster(now, 2, raft_ids=[1, 2, 3, 7], joint=True)
    assert entries[0] == b""
    read = [conf.decode_configuration(entry) for entry in entries[1:]]
    changes = [entry.changes for entry in read]
    assert changes == [((Op.ADD_VOTER, 2),), *(((Op.REMOVE, n),) for n in (1, 3, 7))]
    rows = rows_of(now)
    for entry in read:
        for key, value in entry.rows:
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
    after = MemberTable.from_rows(rows.items())
    assert set(after.members) == {2}
    assert not after.members[2].isLearner
    assert after.removed == {1, 3, 7}
