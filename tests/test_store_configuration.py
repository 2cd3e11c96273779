"""Both sides of the membership's bytes, Python's and the engine's, write and read the same."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store_member import LocalMember, Options
from trimaran.errors import ConfigError
from trimaran.ext import member as engine
from trimaran.ext.raftlog import RaftLog
from trimaran.store.configuration import (
    Configuration,
    Op,
    decode_configuration,
    encode_configuration,
    encode_rows,
)
from trimaran.store.membership import MemberTable, bootstrap_entry
from trimaran.wire import etcd_pb2 as pb

KEYS = st.sampled_from([b"member/a", b"member/b/attributes", b"removed/a", b"cluster/x"])
ROWS = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=50)), max_size=5)
# (rows, whether they come with a change of the configuration)
STEPS = st.lists(st.tuples(ROWS, st.booleans()), min_size=1, max_size=5)
CONFIGURATION = 1
Rows = list[tuple[bytes, bytes | None]]


def apply_to(model: dict[bytes, bytes], rows: Rows) -> None:
    for key, value in rows:
        if value is None:
            model.pop(key, None)
        else:
            model[key] = value


def rows_of(alone: LocalMember) -> dict[bytes, bytes]:
    prefixes = (b"member/", b"removed/", b"cluster/")
    return dict(row for prefix in prefixes for row in alone.member.rows(prefix))


@dataclass(frozen=True)
class CountedOptions(Options):
    """With what tells one life of a member from the next."""

    incarnation: int = 3


@dataclass(frozen=True)
class FoundedOptions(CountedOptions):
    """With the entry that founds a cluster."""

    bootstrap: bytes = b""


class Counted(LocalMember):
    """A member in its third life."""

    options_class = CountedOptions


class Founded(LocalMember):
    """A member whose log begins with the entry that founds its cluster."""

    options_class = FoundedOptions

    def _leads(self) -> bool:
        # It may stand for election only when that entry is applied.
        if self.member.status()["role"] == engine.FOLLOWER:
            self.member.campaign()
        return super()._leads()


class Encoded:
    """A request that is bytes already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:
        return self._data


@given(STEPS)
@settings(max_examples=25, deadline=None)
def test_rows_and_changes_are_the_same_on_both_sides(steps: list[tuple[Rows, bool]]) -> None:
    model: dict[bytes, bytes] = {}
    changed: list[Rows] = []
    with tempfile.TemporaryDirectory(prefix="trimaran-membership-") as folder:
        with Counted(Path(folder)) as alone:
            own = alone.options.member_id
            for number, (rows, with_change) in enumerate(steps, 1000):
                if with_change:
                    changed.append(rows)
                    alone.member.propose_change([(Op.ADD_VOTER, own)], rows, number)
                    alone._turn_until(lambda n=number: took(alone, n))
                else:
                    alone.apply(engine.ROWS, Encoded(encode_rows(rows)))
                apply_to(model, rows)
                assert rows_of(alone) == model
        log = RaftLog(Path(folder) / "log")
        entries = log.read(log.first_index, log.last_index)
        log.close()
    found = [entry.data for entry in entries if entry.type == CONFIGURATION and entry.data]
    read = [decode_configuration(data) for data in found]
    assert [list(entry.rows) for entry in read] == changed
    assert all(entry.changes == ((Op.ADD_VOTER, own),) for entry in read)
    assert all((entry.origin, entry.incarnation) == (own, 3) for entry in read)
    assert [encode_configuration(entry) for entry in read] == found


def took(alone: LocalMember, token: int) -> bool:
    """Whether a proposal's outcome is there; it must be good."""
    outcomes = [result for result in alone.member.results() if result[0] == token]
    assert all(error == 0 for _, _, error, *_ in outcomes)
    return bool(outcomes)


def test_the_engine_reads_the_entry_that_founds_a_cluster(tmp_path: Path) -> None:
    cluster = {"m": ("http://a:1", "http://b:1")}
    entry = bootstrap_entry(cluster, "t")
    own = decode_configuration(entry).changes[0][1]
    for life in (1, 2):  # what is founded already is not founded again
        options = {"member_id": own, "bootstrap": entry, "incarnation": life}
        with Founded(tmp_path, **options) as founded:
            table = MemberTable.from_rows(founded.member.rows(b"member/"))
            assert table.by_peer_urls(cluster["m"]) == table.members[own]
            assert founded.member.members()["voters"] == [own]
            founded.apply(engine.PUT, pb.PutRequest(key=b"k"))


def test_a_foreign_configuration_is_refused() -> None:
    """What Python refuses to read, the engine does not take for a founding entry either."""
    good = encode_configuration(Configuration(((Op.ADD_VOTER, 9),), ()))
    for bad in (good[:-1], good + b"\0", b"\2" + good[1:], good.replace(b"\1", b"\7")):
        with (
            tempfile.TemporaryDirectory(prefix="trimaran-membership-") as folder,
            pytest.raises(ConfigError, match="first entry"),
        ):
            Founded(Path(folder), bootstrap=bad)
