"""The command line against real stores: output for people, for pipes and as JSON; exit codes."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from etcd_server import StoreServer, free_port
from trimaran._version import VERSION

TRIMARAN = [str(Path(sys.executable).parent / "trimaran")]
TIMEOUT_S = 60


def run(
    *arguments: str, endpoint: str = "", input: str = "", code: int | None = 0
) -> "subprocess.CompletedProcess[str]":
    """Run the command in a process of its own and check its exit code."""
    result = subprocess.run(
        [*TRIMARAN, *(["--endpoints", endpoint] if endpoint else []), *arguments],
        input=input,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert code is None or result.returncode == code, (arguments, result)
    return result


def test_values_are_written_and_read(store_endpoint: str) -> None:
    run("kv", "put", "/app/color", "blue", endpoint=store_endpoint)
    run("kv", "put", "/app/size", endpoint=store_endpoint, input="ten\nmetres")
    assert run("kv", "get", "/app/color", endpoint=store_endpoint).stdout == "blue\n"
    assert run("kv", "get", "/app/size", endpoint=store_endpoint).stdout == "ten\nmetres\n"
    listing = run("kv", "get", "--prefix", "/app/c", endpoint=store_endpoint).stdout
    assert listing == "KEY\tVALUE\n/app/color\tblue\n"
    keys = run("kv", "get", "--prefix", "/app/", "--keys-only", endpoint=store_endpoint).stdout
    assert keys == "/app/color\n/app/size\n"
    before = run("kv", "put", "/app/color", "red", "--prev-kv", endpoint=store_endpoint).stdout
    assert before == "blue\n"
    old = run("kv", "get", "/app/color", "--revision", "2", endpoint=store_endpoint).stdout
    assert old == "blue\n"
    count = run("kv", "get", "--prefix", "", "--count-only", endpoint=store_endpoint).stdout
    assert count == "2\n"
    assert run("kv", "del", "--prefix", "/app/", endpoint=store_endpoint).stdout == "2\n"
    missing = run("kv", "get", "/app/color", endpoint=store_endpoint, code=1)
    assert "there is no key /app/color" in missing.stderr
    assert missing.stdout == ""


def test_json_keeps_every_field(store_endpoint: str) -> None:
    lease = run("lease", "grant", "60", endpoint=store_endpoint).stdout.strip()
    run("kv", "put", "k", "v", "--lease", lease, endpoint=store_endpoint)
    output = run("kv", "get", "k", "--json", endpoint=store_endpoint).stdout
    assert json.loads(output) == [
        {
            "key": "k",
            "value": "v",
            "create_revision": 2,
            "mod_revision": 2,
            "version": 1,
            "lease": lease,
        }
    ]


def test_leases_are_kept_listed_and_revoked(store_endpoint: str) -> None:
    lease = run("lease", "grant", "60", endpoint=store_endpoint).stdout.strip()
    run("kv", "put", "k", "v", "--lease", lease, endpoint=store_endpoint)
    assert lease in run("lease", "list", endpoint=store_endpoint).stdout.split()
    row = run("lease", "timetolive", lease, "--json", endpoint=store_endpoint).stdout
    (found,) = json.loads(row)
    assert (found["keys"], found["granted"]) == (["k"], 60)
    run("lease", "revoke", lease, endpoint=store_endpoint)
    run("kv", "get", "k", endpoint=store_endpoint, code=1)
    gone = run("lease", "timetolive", lease, endpoint=store_endpoint, code=1)
    assert f"there is no lease {lease}" in gone.stderr


def test_a_watch_prints_each_change_until_interrupted(store_endpoint: str) -> None:
    run("kv", "put", "/w/a", "1", endpoint=store_endpoint)
    run("kv", "del", "/w/a", endpoint=store_endpoint)
    command = [*TRIMARAN, "--endpoints", store_endpoint, "kv", "watch", "--prefix", "/w/"]
    with subprocess.Popen(
        [*command, "--revision", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watcher:
        assert watcher.stdout is not None
        assert watcher.stderr is not None
        assert watcher.stdout.readline() == "PUT\t/w/a\t1\n"
        assert watcher.stdout.readline() == "DELETE\t/w/a\t\n"
        run("kv", "put", "/w/b", "2", endpoint=store_endpoint)
        assert watcher.stdout.readline() == "PUT\t/w/b\t2\n"
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(TIMEOUT_S) == 130
        assert watcher.stderr.read().strip() == ""


def test_members_and_status_are_shown(store_endpoint: str) -> None:
    members = json.loads(run("member", "list", "--json", endpoint=store_endpoint).stdout)
    assert len(members) == 1
    both = f"{store_endpoint},http://127.0.0.1:{free_port()}"
    rows = json.loads(run("--timeout", "2", "status", "--json", endpoint=both).stdout)
    assert [row["health"] for row in rows] == ["healthy", "no answer"]
    assert rows[0]["role"] == "leader"
    assert isinstance(rows[0]["revision"], int)
    assert isinstance(rows[0]["size"], int)
    assert members[0]["learner"] is False
    assert isinstance(members[0]["peers"], list)


def test_a_terminal_gets_an_aligned_table(store_endpoint: str) -> None:
    run("kv", "put", "/a-long-key", "1", endpoint=store_endpoint)
    run("kv", "put", "/b", "2", endpoint=store_endpoint)
    arguments = ["--endpoints", store_endpoint, "kv", "get", "--prefix", "/"]
    assert on_terminal(arguments, TERM="dumb", COLUMNS="80") == [
        "KEY           VALUE",
        "/a-long-key   1",
        "/b            2",
    ]


def test_status_shows_what_is_wrong_with_a_store() -> None:
    with StoreServer("trimaran", name="quota", arguments=["--quota-backend-bytes=300000"]) as store:
        run("kv", "put", "k", endpoint=store.endpoint, input="x" * 250_000)
        refused = run("kv", "put", "l", endpoint=store.endpoint, input="x" * 250_000, code=1)
        assert "database space exceeded; delete what is not needed" in refused.stderr
        (row,) = json.loads(run("status", "--json", endpoint=store.endpoint).stdout)
        assert row["health"] == "alarm:NOSPACE"


def on_terminal(arguments: list[str], **environment: str) -> list[str]:
    """Run the command on a terminal and return the lines it shows."""
    leader, follower = pty.openpty()
    command = [*TRIMARAN, *arguments]
    everything = {**os.environ, **environment}
    subprocess.run(command, stdout=follower, env=everything, timeout=TIMEOUT_S, check=True)
    os.close(follower)
    lines = os.read(leader, 65536).decode().splitlines()
    os.close(leader)
    return lines


def test_a_narrow_terminal_breaks_no_field(store_endpoint: str) -> None:
    heading, row = on_terminal(["--endpoints", store_endpoint, "status"], COLUMNS="20", TERM="dumb")
    assert row.startswith(f"{store_endpoint}   healthy")
    assert heading.index("HEALTH") == row.index("healthy")


def test_only_a_willing_terminal_gets_bold_type(store_endpoint: str) -> None:
    arguments = ["--endpoints", store_endpoint, "member", "list"]
    assert on_terminal(arguments, TERM="xterm", NO_COLOR="")[0].startswith("\x1b[1mID")
    assert on_terminal(arguments, TERM="xterm", NO_COLOR="1")[0].startswith("ID")
    assert on_terminal(arguments, TERM="dumb", NO_COLOR="")[0].startswith("ID")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_no_harm(closed: str, store_endpoint: str) -> None:
    run("kv", "put", "k", "v", endpoint=store_endpoint)
    line = f'"$0" --endpoints "$1" kv get k {closed}'
    command = ["sh", "-c", line, *TRIMARAN, store_endpoint]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (result.returncode, result.stderr) == (0, "")


def test_bytes_that_are_no_text_are_kept_and_shown(store_endpoint: str) -> None:
    def trimaran(*arguments: bytes) -> bytes:
        line = [*TRIMARAN, "--endpoints", store_endpoint, "kv", *arguments]
        return subprocess.run(line, capture_output=True, timeout=TIMEOUT_S, check=True).stdout

    trimaran(b"put", b"/b/\xff", b"\xfe\x1b[31m\n")
    assert trimaran(b"get", b"/b/\xff") == b"\xfe\x1b[31m\n\n"
    assert trimaran(b"get", b"--prefix", b"/b/") == b"KEY\tVALUE\n/b/\\xff\t\\xfe\\x1b[31m\\n\n"
    (found,) = json.loads(trimaran(b"get", b"/b/\xff", b"--json"))
    assert (found["key_base64"], found["value_base64"]) == ("L2Iv/w==", "/htbMzFtCg==")
    assert trimaran(b"del", b"/b/\xff") == b"1\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["kv", "put", "", "v"], "give a key"),
        (["kv", "put", "k", "v", "--lease", "7f"], "trimaran lease list"),
        (["kv", "get", "k", "--revision", "99"], "trimaran status"),
        (["lease", "grant", "99999999999"], "9000000000 s"),
    ],
)
def test_what_the_store_refuses_comes_with_a_way_on(
    arguments: list[str], hint: str, store_endpoint: str
) -> None:
    assert hint in run(*arguments, endpoint=store_endpoint, code=1).stderr


def test_a_watch_without_a_store_says_so() -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    result = run("--timeout", "1", "kv", "watch", "k", endpoint=endpoint, code=3)
    assert "trimaran up" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_plain_store_asked_for_tls_gives_one_line(store_endpoint: str) -> None:
    endpoint = store_endpoint.replace("http:", "https:")
    result = run("--timeout", "1", "kv", "get", "k", endpoint=endpoint, code=3)
    assert len(result.stderr.splitlines()) == 1


def test_without_a_store_the_error_says_what_to_do() -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    result = run("--timeout", "1", "kv", "get", "k", endpoint=endpoint, code=3)
    assert result.stdout == ""
    assert "trimaran up" in result.stderr
    assert "--endpoints" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command"),
        (["kv", "get"], "Missing argument"),
        (["kv", "get", "a", "--prefix", "--from-key"], "give one of"),
        (["--endpoints", ",", "kv", "get", "a"], "--endpoints is empty"),
        (["--endpoints", "ftp://a:1", "kv", "get", "a"], "write http://HOST:PORT"),
        (["--endpoints", "http://a:999999", "kv", "get", "a"], "Port out of range"),
        (["kv", "get", "a", "--endpoints", "http://a:1"], "It goes before the command"),
        (["--cert", "/dev/null", "status"], "--cert and --key go together"),
        (["--cert", "/no/such/file", "status"], "does not exist"),
        (["lease", "revoke", "xyz"], "is not a lease id"),
        (["lease", "grant", "0"], "Invalid value"),
        (["up", "--join", "10.0.0.1", "--endpoints", "10.0.0.2"], "not both"),
    ],
)
def test_wrong_usage_is_told_apart(arguments: list[str], message: str) -> None:
    result = run(*arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", [[], ["--help"], ["kv", "--help"], ["kv", "get", "-h"]])
def test_help_is_there(command: list[str]) -> None:
    result = run(*command, code=0 if command else 2)
    assert "Usage: trimaran" in result.stdout + result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(shell: str) -> None:
    assert "_TRIMARAN_COMPLETE" in run("completion", shell).stdout


def test_the_version_is_the_package_s() -> None:
    assert run("--version").stdout == f"trimaran {VERSION}\n"


def test_a_reader_that_leaves_is_no_error(store_endpoint: str) -> None:
    command = [*TRIMARAN, "--endpoints", store_endpoint, "kv", "get", "--prefix", ""]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=TIMEOUT_S)
    os.close(writer)
    assert b"Traceback" not in result.stderr
    assert b"Exception" not in result.stderr
