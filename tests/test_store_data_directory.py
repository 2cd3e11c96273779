"""The data directory of a store member: who it belongs to, and what becomes of it."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from trimaran.daemons.data_directory import (
    Founding,
    mark_removed,
    open_data_directory,
    read_data_directory,
)
from trimaran.errors import ConfigError, CorruptionError
from trimaran.store.configuration import decode_configuration
from trimaran.store.identity import cluster_id, member_id
from trimaran.store.membership import MemberTable, bootstrap_entry
from trimaran.store.options import StoreOptions, complete

PEER = "http://localhost:2380"
CLUSTER = {"default": (PEER,), "b": ("http://b:1", "http://b:2")}


def options_for(directory: Path, **changes: object) -> StoreOptions:
    return complete({"data_dir": str(directory), **changes})


def test_a_directory_keeps_its_member(tmp_path: Path) -> None:
    made = open_data_directory(options_for(tmp_path / "a" / "b"))
    assert made.identity.member_id == 0x8E9E05C52164694D
    again = open_data_directory(options_for(tmp_path / "a" / "b", initial_cluster_token="other"))
    assert again == replace(made, identity=replace(made.identity, boots=2))
    assert (made.incarnation, again.incarnation) == (1, 2)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_start_that_was_cut_short_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "member.new").write_text('{"for')
    assert open_data_directory(options_for(tmp_path)).identity.name == "default"


@pytest.mark.parametrize("name", ["member", "log", "state"])
def test_a_foreign_directory_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "snap").write_text("theirs")
    with pytest.raises(ConfigError, match="give an empty directory"):
        open_data_directory(options_for(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]


GOOD = {"format": 1, "name": "n", "member_id": 1, "cluster_id": 2, "peer_urls": ["http://a:1"]}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "1", "{}", '{"format": 1}', "\0\0\0\0"),
        *(
            json.dumps({**GOOD, **change})
            for change in (
                *({"member_id": wrong} for wrong in ("1", None, -1, 0, 1 << 64, True, 1.5)),
                {"cluster_id": "x"},
                {"peer_urls": "http://a:1"},
                {"peer_urls": None},
                {"peer_urls": [1]},
                {"name": 5},
                {"more": 1},
                *({"format": wrong} for wrong in ("2", None, True, 2.0)),
                *({"format": 2, "boots": wrong} for wrong in ("1", -1, None, 1 << 63)),
                *({"format": 2, "removed": wrong} for wrong in (0, None)),
                *(
                    {"format": 2, "founders": wrong}
                    for wrong in (
                        None,
                        {},
                        [1],
                        [{}],
                        [{"id": 0, "name": "", "peer_urls": []}],
                        [{"id": 1, "name": 1, "peer_urls": []}],
                        [{"id": 1, "name": "", "peer_urls": [1]}],
                    )
                ),
            )
        ),
    ],
)
def test_a_damaged_identity_is_corruption(tmp_path: Path, text: str) -> None:
    (tmp_path / "member.json").write_text(text)
    with pytest.raises(CorruptionError, match=r"member\.json cannot be read"):
        open_data_directory(options_for(tmp_path))
    assert (tmp_path / "member.json").read_text() == text


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "member.json").write_text(json.dumps({**GOOD, "format": 3}))
    with pytest.raises(ConfigError, match="run the version that wrote it"):
        open_data_directory(options_for(tmp_path))


def test_bytes_that_are_no_text_are_corruption(tmp_path: Path) -> None:
    (tmp_path / "member.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(CorruptionError):
        open_data_directory(options_for(tmp_path))


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use --data-dir"):
        open_data_directory(options_for(tmp_path / place))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        open_data_directory(options_for(tmp_path))


def test_every_start_is_counted_durably(tmp_path: Path) -> None:
    options = options_for(tmp_path)
    assert read_data_directory(options) is None
    assert not (tmp_path / "member.json").exists()
    for count in range(1, 4):
        assert open_data_directory(options).incarnation == count
        found = read_data_directory(options)
        assert found is not None
        assert found.boots == count


def test_a_new_cluster_begins_with_its_members(tmp_path: Path) -> None:
    options = options_for(tmp_path, initial_cluster=CLUSTER)
    made = open_data_directory(options)
    assert made.bootstrap == bootstrap_entry(CLUSTER, "etcd-cluster")
    assert made.identity.member_id == member_id([PEER], "etcd-cluster")
    ids = [member_id(urls, "etcd-cluster") for urls in CLUSTER.values()]
    assert made.identity.cluster_id == cluster_id(ids)
    # A start that ended before its log was written begins with the same, whatever the flags say.
    changed = options_for(tmp_path, initial_cluster_token="t", name="other")
    assert open_data_directory(changed).bootstrap == made.bootstrap


def test_a_member_that_joins_has_no_first_entry(tmp_path: Path) -> None:
    options = options_for(tmp_path, initial_cluster_state="existing", initial_cluster=CLUSTER)
    made = open_data_directory(options, Founding(5, 6))
    assert (made.identity.member_id, made.identity.cluster_id, made.bootstrap) == (5, 6, None)
    again = open_data_directory(options)
    assert (again.identity.member_id, again.bootstrap) == (5, None)


def test_data_of_the_first_version_is_a_cluster_of_one(tmp_path: Path) -> None:
    (tmp_path / "member.json").write_text(json.dumps(GOOD))
    made = open_data_directory(options_for(tmp_path))
    assert (made.identity.format, made.incarnation) == (2, 1)
    assert made.bootstrap is not None
    entry = decode_configuration(made.bootstrap)
    table = MemberTable.from_rows((key, value or b"") for key, value in entry.rows)
    assert {m.ID: (m.name, *m.peerURLs) for m in table.voters} == {1: ("n", "http://a:1")}
    assert open_data_directory(options_for(tmp_path)).bootstrap == made.bootstrap


def test_a_removed_member_stays_away(tmp_path: Path) -> None:
    options = options_for(tmp_path)
    open_data_directory(options)
    mark_removed(options)
    for refused in (open_data_directory, read_data_directory):
        with pytest.raises(ConfigError, match="removed from cluster cdf818194e3a8c32 for good"):
            refused(options)
