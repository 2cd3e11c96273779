"""The store's configuration file, in YAML and JSON, with etcd's keys."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran.errors import ConfigError
from trimaran.store.flags import Flag
from trimaran.store.options import FLAGS, StoreOptions, read_options

SAMPLE = """
# This is the shape of the file that etcd ships.
name: 'n1'
data-dir:
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
quota-backend-bytes: 0
listen-peer-urls: http://127.0.0.1:2380
listen-client-urls: http://127.0.0.1:2379
max-wals: 5
initial-advertise-peer-urls: http://127.0.0.1:2380
advertise-client-urls: http://127.0.0.1:2379
discovery-srv:
initial-cluster: n1=http://127.0.0.1:2380,n2=http://127.0.0.1:3380
initial-cluster-token: 'etcd-cluster'
initial-cluster-state: 'new'
strict-reconfig-check: false
watch-progress-notify-interval: 60000000000
client-transport-security:
peer-transport-security:
log-level: debug
force-new-cluster: false
"""


def options_of(text: str, words: list[str] | None = None) -> StoreOptions:
    return read_options([*(words or []), "--config-file=f"], {}, lambda path: text)


def test_the_sample() -> None:
    options = options_of(SAMPLE)
    assert (options.name, options.data_dir) == ("n1", "n1.etcd")
    assert options.initial_cluster["n2"] == ("http://127.0.0.1:3380",)
    assert options.strict_reconfig_check is False
    assert options.watch_progress_notify_interval_s == 60
    assert options.unknown_settings == ("max-wals",)
    assert options.config_file == "f"


def test_json_is_the_same() -> None:
    content = {"name": "n", "pre-vote": False, "max-txn-ops": 5, "experimental-max-learners": 3}
    options = options_of(json.dumps(content))
    assert (options.name, options.pre_vote, options.max_txn_ops) == ("n", False, 5)
    assert options.max_learners == 3


def test_flags_and_variables_are_ignored_beside_a_file() -> None:
    options = options_of("name: n", ["--name=other", "--max-txn-ops=7"])
    assert (options.name, options.max_txn_ops) == ("n", 128)
    environment = {"ETCD_CONFIG_FILE": "f", "ETCD_NAME": "other"}
    assert read_options([], environment, lambda path: "name: n").name == "n"


@pytest.mark.parametrize("text", ["", "# nothing", "{}", "name:\n"])
def test_an_empty_file_gives_the_defaults(text: str) -> None:
    assert options_of(text).name == "default"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "neither YAML nor JSON"),
        ("\0", "neither YAML nor JSON"),
        ("just words", "NAME: VALUE lines"),
        ("- name", "NAME: VALUE lines"),
        ("name: {a: b}", "name: write a text"),
        ("max-txn-ops: 1.5", "max-txn-ops: write a text"),
        ("max-txn-ops: many", "not a whole number"),
        ("max-txn-ops: true", "not a whole number"),
        ("pre-vote: 5", "not true or false"),
        ("max-learners: 1\nexperimental-max-learners: 1", "are the same"),
        ("peer-transport-security: 5", "indent its settings"),
        ("listen-client-urls: http://a:1", "--advertise-client-urls is required"),
        ("a: &a [*a]\nname: *a", "name: write a text"),
        ("[" * 5000, "neither YAML nor JSON"),
    ],
)
def test_wrong_files_are_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options_of(text)
    assert said in str(caught.value)


def test_unknown_keys_are_listed_with_their_group() -> None:
    options = options_of("wal-dir: /w\nconfig-file: x\nclient-transport-security: {no-such: 1}")
    assert options.unknown_settings == (
        "client-transport-security.no-such",
        "config-file",
        "wal-dir",
    )


@given(st.sampled_from(FLAGS), st.text(max_size=20))
def test_a_text_means_the_same_as_on_the_command_line(flag: Flag, text: str) -> None:
    if flag.name == "config-file" or not text:
        return

    def outcome(words: list[str], content: str) -> object:
        try:
            found = read_options(words, {}, lambda path: content)
        except ConfigError as error:
            return str(error)
        return getattr(found, flag.field)

    word = f"--{flag.name}={text}"
    assert outcome([word], "") == outcome(["--config-file=f"], json.dumps({flag.name: text}))


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        options_of(text)
