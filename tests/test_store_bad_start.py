"""A store that cannot start says why and what to do, ends with an error, and leaves nothing behind.

The same commands run on etcd, to show that it refuses them too; the texts are our own.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etcd_server import StoreServer, command, free_port, missing_reason
from trimaran.store.options import FLAGS

START_TIMEOUT_S = 20.0
KINDS = ("trimaran", "3.5")


def base(kind: str, folder: Path, **changes: str | None) -> list[str]:
    """Make a command line that works, but for the changes; None leaves a flag out."""
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    flags: dict[str, str | None] = {
        "name": "m",
        "data_dir": str(folder / "data"),
        "listen_client_urls": client,
        "advertise_client_urls": client,
        "listen_peer_urls": peer,
        "initial_advertise_peer_urls": peer,
        "initial_cluster": f"m={peer}",
    }
    flags |= changes
    program = command(kind)
    assert program is not None
    return program + [
        f"--{name.replace('_', '-')}={value}" for name, value in flags.items() if value is not None
    ]


def refused(kind: str, line: list[str], **environment: str) -> str:
    """Run a store that must end with an error; give what it wrote."""
    done = subprocess.run(
        line,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        env={**os.environ, **environment},
    )
    output = done.stdout + done.stderr
    assert done.returncode > 0, f"ended with {done.returncode}: {output}"
    if kind == "trimaran":
        assert "Traceback" not in output, output
        assert 0 < len(output.splitlines()) <= 10, output
    return output


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of server that must refuse."""
    reason = missing_reason(request.param)
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


# What is wrong, as changed flags, and what the message must name.
BAD_OPTIONS: dict[str, tuple[dict[str, str], str]] = {
    "flag": ({"no_such_flag": "1"}, "no-such-flag"),
    "client URL": ({"listen_client_urls": "nonsense"}, "nonsense"),
    "client URL without port": ({"listen_client_urls": "http://127.0.0.1"}, "127.0.0.1"),
    "client URL with a name": ({"listen_client_urls": "http://no.such.host:99"}, "no.such.host"),
    "scheme": ({"listen_client_urls": "ftp://127.0.0.1:99"}, "ftp"),
    "port": ({"listen_client_urls": "http://127.0.0.1:99999"}, "99999"),
    "path": ({"listen_client_urls": "http://127.0.0.1:2379/path"}, "path"),
    "peer URL": ({"listen_peer_urls": "nonsense"}, "nonsense"),
    "advertised URL": ({"advertise_client_urls": "nonsense"}, "nonsense"),
    "number": ({"heartbeat_interval": "soon"}, "soon"),
    "no heartbeat": ({"heartbeat_interval": "0"}, "heartbeat"),
    "election before heartbeat": (
        {"heartbeat_interval": "1000", "election_timeout": "1000"},
        "election-timeout",
    ),
    "very long election": ({"election_timeout": "60000"}, "election-timeout"),
    "count": ({"snapshot_count": "-1"}, "snapshot-count"),
    "operations": ({"max_txn_ops": "many"}, "many"),
    "quota": ({"quota_backend_bytes": "2GB"}, "2GB"),
    "cluster state": ({"initial_cluster_state": "odd"}, "odd"),
    "cluster": ({"initial_cluster": "nonsense"}, "initial-cluster"),
    "other name": ({"name": "n"}, "initial-cluster"),
    "log level": ({"log_level": "loud"}, "loud"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name: str, kind: str, tmp_path: Path) -> None:
    changes, named = BAD_OPTIONS[name]
    output = refused(kind, base(kind, tmp_path, **changes))
    if kind == "trimaran":
        assert named in output
        assert not (tmp_path / "data").exists(), "a refused start left a data directory"


def test_listening_needs_an_address_to_advertise(kind: str, tmp_path: Path) -> None:
    output = refused(kind, base(kind, tmp_path, advertise_client_urls=None))
    assert "advertise-client-urls" in output


def test_flag_and_environment_contradict(kind: str, tmp_path: Path) -> None:
    output = refused(kind, base(kind, tmp_path), ETCD_NAME="n")
    assert "ETCD_NAME" in output or "name" in output


def test_argument_that_is_no_flag(kind: str, tmp_path: Path) -> None:
    output = refused(kind, [*base(kind, tmp_path), "start"])
    assert "start" in output


@contextmanager
def running(kind: str) -> Iterator[StoreServer]:
    with StoreServer(kind, name="first") as server:
        yield server
        # Whatever the second one did, the first goes on.
        assert server.healthy()


def test_port_in_use(kind: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        line = base(kind, tmp_path, listen_client_urls=url, advertise_client_urls=url)
        output = refused(kind, line)
    assert str(url.rpartition(":")[2]) in output
    assert "in use" in output


def test_address_of_another_host(kind: str, tmp_path: Path) -> None:
    # 192.0.2.1 is nobody's (RFC 5737).
    url = "http://192.0.2.1:2379"
    output = refused(kind, base(kind, tmp_path, listen_client_urls=url, advertise_client_urls=url))
    assert "192.0.2.1" in output
    if kind == "trimaran":
        assert "ip address" in output
        assert "stop what uses it" not in output


def test_data_directory_in_use(tmp_path: Path) -> None:
    # etcd waits for the lock of its file without end; we say who is in the way.
    reason = missing_reason("trimaran")
    if reason is not None:
        pytest.skip(reason)
    with running("trimaran") as first:
        data = str(first.folder / "data")
        output = refused("trimaran", base("trimaran", tmp_path, data_dir=data))
    assert data in output
    assert "in use" in output


@pytest.mark.parametrize("where", ["a file", "below a file", "no place to write"])
def test_data_directory_cannot_be_written(where: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something else")
    # Root may write anywhere but into the kernel's own file systems.
    places = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "data"}
    data = str(places.get(where, Path("/proc/no-place")))
    output = refused(kind, base(kind, tmp_path, data_dir=data))
    assert data in output
    assert (tmp_path / "file").read_text() == "something else"


def test_unknown_environment_is_only_warned_of(kind: str) -> None:
    os.environ["ETCD_NO_SUCH_OPTION"] = "1"
    try:
        with StoreServer(kind, name="env") as server:
            assert server.healthy()
            assert "ETCD_NO_SUCH_OPTION" in server.log_tail(20_000)
    finally:
        del os.environ["ETCD_NO_SUCH_OPTION"]


def test_help_shows_every_flag_with_its_default() -> None:
    program = command("trimaran")
    assert program is not None
    done = subprocess.run([*program, "--help"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line[:4] == "  --"}
    assert set(lines) == {f"--{flag.name}" for flag in FLAGS} | {"--version"}
    assert lines["--max-txn-ops"].endswith("[128]")
    assert lines["--listen-client-urls"].endswith("[http://localhost:2379]")
    assert lines["--watch-progress-notify-interval"].endswith("[600s]")
    assert "[" not in lines["--initial-cluster"]


def test_version_option(kind: str, tmp_path: Path) -> None:
    program = command(kind)
    assert program is not None
    done = subprocess.run([*program, "--version"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    assert "etcd Version: 3." in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_on_a_signal(number: int, kind: str) -> None:
    with StoreServer(kind, name="stop") as server:
        server.signal(number)
        process = server._process
        assert process is not None
        code = process.wait(START_TIMEOUT_S)
        # Go ends by the signal itself, once all is written.
        assert code in ((0,) if kind == "trimaran" else (0, -number))
        server._process = None
        server.start()
