"""The store's options, ids and data directory: what they accept, and what they say otherwise."""

import contextlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran.errors import ConfigError
from trimaran.store.flags import parse_duration_s
from trimaran.store.identity import cluster_id, identify, member_id
from trimaran.store.logpolicy import HOLD_S_MAX, LogHold, log_compaction_target
from trimaran.store.options import (
    FLAGS,
    StoreOptions,
    read_options,
    unknown_variables,
)

PEER = "http://localhost:2380"


def test_defaults_are_those_of_etcd() -> None:
    options = read_options([], {})
    assert (options.name, options.data_dir) == ("default", "default.etcd")
    assert options.listen_client_urls == ("http://localhost:2379",)
    assert options.initial_cluster == {"default": (PEER,)}
    assert (options.max_txn_ops, options.max_request_bytes) == (128, 1_572_864)
    assert options.quota_bytes == 2 * 1024**3


@pytest.mark.parametrize(
    ("words", "environment", "field", "value"),
    [
        (["--name=n"], {}, "name", "n"),
        (["--name", "n"], {}, "name", "n"),
        (["-name", "n"], {}, "name", "n"),
        (["--name", "a", "--name=b"], {}, "name", "b"),
        (["--name", "-x"], {}, "name", "-x"),
        (["--name=a=b", "--initial-cluster=x=http://a:1"], {}, "error", "no member named"),
        ([], {"ETCD_NAME": "n"}, "data_dir", "n.etcd"),
        ([], {"ETCD_NAME": ""}, "name", "default"),
        ([], {"ETCD_LISTEN_CLIENT_URLS": ""}, "listen_client_urls", ("http://localhost:2379",)),
        (["--name=x"], {"ETCD_NAME": ""}, "name", "x"),
        (["--data-dir="], {}, "data_dir", "default.etcd"),
        (["--quota-backend-bytes=-1"], {}, "quota_bytes", 0),
        (["--quota-backend-bytes=5"], {}, "quota_bytes", 5),
        (["--election-timeout=5000"], {}, "election_timeout_ms", 5000),
        (["--watch-progress-notify-interval=1h1m0.5s"], {}, "watch_progress_notify_interval_s", 0),
        (["--listen-peer-urls=http://[::1]:1, http://a:2/"], {}, "listen_peer_urls", 0),
        (["--max-request-bytes=1073741824"], {}, "max_request_bytes", 1 << 30),
        (["--pre-vote"], {}, "pre_vote", True),
        ([], {}, "lease_reads", False),
        (["--lease-reads"], {}, "lease_reads", True),
        (["--pre-vote=F"], {}, "pre_vote", False),
        (["--strict-reconfig-check", "--name=n"], {}, "strict_reconfig_check", True),
        ([], {"ETCD_STRICT_RECONFIG_CHECK": "false"}, "strict_reconfig_check", False),
        (["--force-new-cluster"], {}, "force_new_cluster", True),
        (["--experimental-max-learners=2"], {}, "max_learners", 2),
        ([], {"ETCD_EXPERIMENTAL_MAX_LEARNERS": "2"}, "max_learners", 2),
        (["--experimental-corrupt-check-time=1m"], {}, "corrupt_check_time_s", 60),
        (["--corrupt-check-time=0"], {}, "corrupt_check_time_s", 0),
        (["--discovery-srv=example.org"], {}, "initial_cluster", {"default": (PEER,)}),
        (
            ["--discovery-endpoints=http://a:1,http://b:1", "--discovery-token=t"],
            {},
            "discovery_endpoints",
            ("http://a:1", "http://b:1"),
        ),
        (
            [
                "--name=b",
                "--initial-cluster=a=http://a:1,b=http://b:1,b=http://b:2",
                "--initial-advertise-peer-urls=http://b:2,http://b:1",
            ],
            {},
            "initial_cluster",
            {"a": ("http://a:1",), "b": ("http://b:1", "http://b:2")},
        ),
    ],
)
def test_options(words: list[str], environment: dict[str, str], field: str, value: object) -> None:
    known: dict[str, object] = {
        "watch_progress_notify_interval_s": 3660.5,
        "listen_peer_urls": ("http://[::1]:1", "http://a:2/"),
    }
    if field == "error":
        with pytest.raises(ConfigError, match=str(value)):
            read_options(words, environment)
        return
    assert getattr(read_options(words, environment), field) == known.get(field, value)


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--no-such"], {}, "unknown flag --no-such"),
        (["start"], {}, "'start' is not a flag"),
        (["--"], {}, "is not a flag"),
        (["--name"], {}, "--name needs a value"),
        (["--name="], {}, "--name is empty"),
        (["--name=a"], {"ETCD_NAME": "a"}, "unset one of them"),
        (["--listen-client-urls=http://a:1"], {}, "--advertise-client-urls is required"),
        ([], {"ETCD_LISTEN_CLIENT_URLS": "http://a:1"}, "--advertise-client-urls is required"),
        (["--listen-peer-urls=,"], {}, "is empty"),
        (["--listen-peer-urls=https://a:1"], {}, "needs a certificate"),
        (["--listen-peer-urls=unix://a:1"], {}, "must begin with http://"),
        (["--listen-peer-urls=http://a"], {}, "a host and a port"),
        (["--listen-peer-urls=http://:1"], {}, "a host and a port"),
        (["--listen-peer-urls=http://a:65536"], {}, "a host and a port"),
        (["--listen-peer-urls=http://[::1"], {}, "IPv6"),
        (["--listen-peer-urls=http://a:1/x"], {}, "must not have a path"),
        (["--initial-cluster=default=http://[::1"], {}, "IPv6"),
        (["--initial-cluster=default"], {}, "is not NAME=URL"),
        (["--initial-cluster=other=" + PEER], {}, "no member named 'default'"),
        (["--initial-cluster=default=http://x:1"], {}, "make them equal"),
        ([f"--initial-cluster=default={PEER},b={PEER}/"], {}, "twice"),
        (["--initial-cluster=,"], {}, "is empty"),
        (["--no-such", "x"], {}, "unknown flag"),
        (["--pre-vote", "false"], {}, "'false' is not a flag"),
        (["--pre-vote=no"], {}, "not true or false"),
        (
            ["--max-learners=1", "--experimental-max-learners=1"],
            {},
            "--max-learners and --experimental-max-learners are the same",
        ),
        ([], {"ETCD_MAX_LEARNERS": "1", "ETCD_EXPERIMENTAL_MAX_LEARNERS": "1"}, "unset one"),
        (["--max-learners=1"], {"ETCD_EXPERIMENTAL_MAX_LEARNERS": "1"}, "unset one"),
        (["--max-learners=-1"], {}, "negative"),
        (["--snapshot-catchup-entries=-1"], {}, "at least 0"),
        (["--compact-hash-check-time=0s"], {}, "above 0"),
        (["--corrupt-check-time=9000h"], {}, "at most a year"),
        (
            [f"--initial-cluster=default={PEER}", "--discovery-srv=example.org"],
            {},
            "--initial-cluster and --discovery-srv exclude each other",
        ),
        (
            ["--discovery-srv=x", "--discovery-endpoints=http://a:1", "--discovery-token=t"],
            {},
            "exclude each other",
        ),
        (["--discovery-token=t"], {}, "need each other"),
        (["--discovery-endpoints=http://a:1"], {}, "need each other"),
        (["--discovery-srv=x", "--initial-cluster-state=existing"], {}, "for new clusters"),
        (["--discovery-cert=x"], {}, "need each other"),
        (["--discovery-password=x"], {}, "needs --discovery-user"),
        (["--discovery-dial-timeout=0s"], {}, "above 0"),
        (["--discovery-insecure-skip-tls-verify"], {}, "not supported"),
        (["--initial-cluster-state=old"], {}, "not one of new, existing"),
        (["--log-level=loud"], {}, "'loud' is not one of"),
        (["--snapshot-count=1_0"], {}, "not a whole number"),
        (["--snapshot-count=٣"], {}, "not a whole number"),
        (["--snapshot-count=0"], {}, "above 0"),
        (["--quota-backend-bytes=9223372036854775808"], {}, "not a whole number"),
        (["--max-request-bytes=1073741825"], {}, "at most 1073741824"),
        (["--max-txn-ops=0"], {}, "above 0"),
        (["--heartbeat-interval=0"], {}, "above 0"),
        (["--election-timeout=499"], {}, "at least five times"),
        (["--election-timeout=50001"], {}, "at most 50000"),
        (["--watch-progress-notify-interval=10"], {}, "not a duration"),
        (["--watch-progress-notify-interval=-1s"], {}, "not a duration"),
        (["--watch-progress-notify-interval=99ms"], {}, "at least 100ms"),
        (["--watch-progress-notify-interval=999999999h"], {}, "at most a year"),
    ],
)
def test_wrong_options_are_named(
    words: list[str], environment: Mapping[str, str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_options(words, environment)
    assert said in str(caught.value)


@given(st.lists(st.text(max_size=30), max_size=4), st.sampled_from(FLAGS), st.text(max_size=30))
def test_any_words_are_read_or_refused(words: list[str], flag: object, text: str) -> None:
    name = getattr(flag, "name", "")
    for line in (words, [f"--{name}={text}"]):
        with contextlib.suppress(ConfigError):
            assert isinstance(read_options(line, {}), StoreOptions)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h30m", 5400), ("100ms", 0.1), ("1.5s", 1.5), (".5m", 30), ("10us", 1e-5), ("5µs", 5e-6)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


def test_unknown_variables_are_listed() -> None:
    environment = {"ETCD_NAME": "n", "ETCD_B": "1", "ETCD_A": "", "ETCDCTL_API": "3", "X": "y"}
    assert unknown_variables(environment) == ["ETCD_A", "ETCD_B"]


def test_ids_are_those_of_etcd() -> None:
    assert member_id([PEER], "etcd-cluster") == 0x8E9E05C52164694D
    assert cluster_id([0x8E9E05C52164694D]) == 0xCDF818194E3A8C32
    ids = (0x8E9E05C52164694D, 0xCDF818194E3A8C32)
    assert identify("default", {"default": (PEER,)}, "etcd-cluster") == ids


@given(st.permutations(["http://a:1", "http://b:2", "http://c:3"]), st.permutations([1, 2, 3]))
def test_ids_do_not_depend_on_order(urls: list[str], members: list[int]) -> None:
    assert member_id(urls, "t") == member_id(sorted(urls), "t")
    assert cluster_id(members) == cluster_id([1, 2, 3])


@given(
    first=st.integers(1, 50),
    persisted=st.integers(0, 200),
    count=st.integers(1, 50),
    kept=st.integers(0, 50),
)
def test_log_is_cut_behind_what_is_on_disk(
    first: int, persisted: int, count: int, kept: int
) -> None:
    target = log_compaction_target(
        first_index=first, persisted_index=persisted, snapshot_count=count, catch_up_entries=kept
    )
    if persisted - first >= count + kept:
        assert target == persisted - kept >= first
    else:
        assert target is None


def peer_at(match: int, state: int = 1) -> dict[str, int]:
    return {"match": match, "state": state}


def test_the_log_is_held_while_a_member_takes_over_the_state() -> None:
    hold = LogHold()
    # Who lags otherwise is no reason: it gets a snapshot.
    assert not hold.update({2: peer_at(5), 3: None}, 100, 0.0)
    assert hold.update({2: peer_at(5, 2), 3: peer_at(90)}, 110, 1.0)
    assert hold.update({2: peer_at(5, 0), 3: peer_at(90)}, 120, 2.0)
    assert hold.update({2: peer_at(119), 3: peer_at(90)}, 130, 3.0)
    assert not hold.update({2: peer_at(140), 3: peer_at(90)}, 140, 4.0)
    assert not hold.update({2: peer_at(140), 3: peer_at(90)}, 150, 5.0)


@pytest.mark.parametrize("later", [{}, {2: None}])
def test_the_log_is_not_held_for_who_is_gone(later: dict[int, dict[str, int] | None]) -> None:
    hold = LogHold()
    assert hold.update({2: peer_at(5, 2)}, 100, 0.0)
    assert not hold.update(later, 100, 1.0)
    assert not hold.update({2: peer_at(5)}, 100, 2.0)


def test_the_log_is_not_held_for_ever() -> None:
    hold = LogHold()
    assert hold.update({2: peer_at(5, 2)}, 100, 0.0)
    assert hold.update({2: peer_at(5, 2)}, 100, HOLD_S_MAX - 1)
    assert not hold.update({2: peer_at(5, 2)}, 100, HOLD_S_MAX)
