"""`trimaran up`: options, one failing part, signals, and a whole host on real systemd."""

import asyncio
import contextlib
import ipaddress
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import HostStarter
from etcd_server import free_port
from hosts import Host, HostError, why_not
from trimaran.daemons import up
from trimaran.daemons.up_options import (
    choose_advertise,
    choose_listen,
    join_address,
    normal_url,
    read_join,
)
from trimaran.daemons.up_parts import StoreAccess
from trimaran.errors import ConfigError
from trimaran.up.records import ClusterSettings
from trimaran.up.token import JoinToken

TRIMARAN = str(Path(sys.executable).parent / "trimaran")
UNITS = sorted(path.name for path in up.UNIT_FILE.parent.glob("*.service"))
TIMEOUT_S = 60

# `up` leaves notes in /run; these tests must not touch the machine's.
OWN_RUN = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh"]
if os.geteuid() != 0:
    OWN_RUN = []


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.0.0.1", "http://10.0.0.1:2379"),
        ("10.0.0.1:99", "http://10.0.0.1:99"),
        ("https://store", "https://store:2379"),
        ("http://[fd00::1]:5", "http://[fd00::1]:5"),
    ],
)
def test_a_host_to_join_is_completed_to_a_url(text: str, url: str) -> None:
    assert normal_url(text) == url


@pytest.mark.parametrize("text", ["", "ftp://x", "http://:1", "http://x:0", "http://x:70000"])
def test_what_names_no_store_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="names no store"):
        normal_url(text)


def test_the_store_always_listens_where_its_own_host_looks() -> None:
    assert choose_listen(()) == ("127.0.0.1",)
    assert choose_listen(("10.0.0.1",)) == ("127.0.0.1", "10.0.0.1")
    assert choose_listen(("0.0.0.0",)) == ("0.0.0.0",)
    assert choose_listen(("127.0.0.2",)) == ("127.0.0.2",)
    with pytest.raises(ConfigError, match="not an IP address"):
        choose_listen(("eth0",))


def test_the_advertised_address_is_the_one_others_reach() -> None:
    assert choose_advertise("10.0.0.9", ("127.0.0.1",), None) == "10.0.0.9"
    assert choose_advertise(None, ("127.0.0.1", "10.0.0.1"), None) == "10.0.0.1"
    assert choose_advertise(None, ("127.0.0.1",), "http://127.0.0.1:2379") == "127.0.0.1"
    with pytest.raises(ConfigError, match="not an IP address"):
        choose_advertise("here", (), None)


def test_what_to_join_is_read() -> None:
    token = JoinToken(("10.0.0.1:2382",), bytes(32), bytes(32), 1)
    text = token.encode()
    assert read_join(None, None) == (False, None, ())
    assert read_join(text, None) == (True, token, ())
    assert read_join("10.0.0.2", text) == (True, token, ("10.0.0.2:2382",))
    assert read_join("[fd00::1]:5", None) == (True, None, ("[fd00::1]:5",))
    for join, given in ((None, text), (text, text), ("10.0.0.1", "x"), ("a/b", text)):
        with pytest.raises(ConfigError):
            read_join(join, given)
    assert join_address("host") == "host:2382"


class FakePart:
    """A part that writes down what is asked of it."""

    def __init__(self, name: str, calls: list[str], start_error: Exception | None = None) -> None:
        self.name = name
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls = calls
        self._start_error = start_error

    async def start(self) -> str:
        self._calls.append(f"start {self.name}")
        if self._start_error:
            raise self._start_error
        return "there"

    async def stop(self) -> None:
        self._calls.append(f"stop {self.name}")

    async def wait_failed(self) -> None:
        await asyncio.shield(self.failure)


def run_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start_error: bool, fail_later: bool
) -> list[str]:
    """Run two fake parts and return the calls they got."""
    calls: list[str] = []

    async def run() -> None:
        error = ConfigError("no second") if start_error else None
        parts = [FakePart("first", calls), FakePart("second", calls, error)]
        access = StoreAccess(("http://127.0.0.1:1",))
        monkeypatch.setattr(up, "make_parts", lambda options: (access, parts))
        if fail_later:
            parts[0].failure.set_exception(ConfigError("first broke"))
        await up.run_host(options)

    options = up.UpOptions(
        name="here",
        data_dir=tmp_path,
        listen=("127.0.0.1",),
        port=1,
        peer_port=2,
        join_port=3,
        advertise="127.0.0.1",
        joins=False,
        token=None,
        join=(),
        endpoints=(),
        join_timeout_s=1,
        settings=ClusterSettings(),
        force_new_cluster=False,
        metadata={},
        fleet=False,
        net=False,
        network="10.0.0.0/8",
        backend="udp",
    )
    monkeypatch.setattr(up, "HOST_CONNECTION_FILE", tmp_path / "store.json")
    try:
        asyncio.run(run())
    except ConfigError as problem:
        calls.append(str(problem))
    except up.PartFailedError as problem:
        calls.append(str(problem))
    return calls


def test_a_part_that_cannot_start_stops_those_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = run_with(monkeypatch, tmp_path, start_error=True, fail_later=False)
    assert calls == ["start first", "start second", "stop first", "no second"]


def test_a_part_that_breaks_later_ends_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = run_with(monkeypatch, tmp_path, start_error=False, fail_later=True)
    assert calls[:4] == ["start first", "start second", "stop second", "stop first"]
    assert calls[4] == "first ended by itself: first broke"


def test_the_second_signal_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []

    async def run() -> None:
        signals, ended = up.StopSignals(), asyncio.Event()

        def end(code: int) -> None:
            codes.append(code)
            ended.set()

        monkeypatch.setattr(os, "_exit", end)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(signals.asked.wait(), TIMEOUT_S)
        assert codes == []
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(ended.wait(), TIMEOUT_S)

    asyncio.run(run())
    assert codes == [130]
    assert "without stopping" in capsys.readouterr().err


class Up:
    """A `trimaran up` of the store alone, on this machine."""

    def __init__(self, tmp_path: Path, *options: str) -> None:
        self.notify_path = tmp_path / "notify"
        with contextlib.suppress(FileNotFoundError):
            self.notify_path.unlink()
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.bind(str(self.notify_path))
        self.notices.settimeout(TIMEOUT_S)
        self.process = subprocess.Popen(
            [*OWN_RUN, TRIMARAN, "up", "--no-fleet", "--no-net", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NOTIFY_SOCKET": str(self.notify_path)},
        )

    def await_notice(self, wanted: str) -> None:
        """Wait until the service manager would hear of it."""
        while wanted not in self.notices.recv(4096).decode().split("\n"):
            assert self.process.poll() is None, self.process.communicate()

    def finish(self, number: signal.Signals | None = None) -> tuple[int, str, str]:
        """Send a signal, and return exit code and output."""
        if number is not None:
            self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=TIMEOUT_S)
        self.notices.close()
        return self.process.returncode, output, errors


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A place for data."""
    return tmp_path / "data"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_uses_a_store_that_is_there_and_stops_cleanly(
    store_endpoint: str, tmp_path: Path, data_dir: Path, number: signal.Signals
) -> None:
    host = Up(tmp_path, "--data-dir", str(data_dir), "--endpoints", store_endpoint)
    host.await_notice("READY=1")
    code, output, errors = host.finish(number)
    assert (code, errors) == (0, "")
    assert re.search(r"^store: http.*version", output, re.MULTILINE)
    assert output.splitlines()[-2:] == ["store: stopped", "data: stopped"]


def test_a_data_directory_has_one_user(tmp_path: Path, data_dir: Path, store_endpoint: str) -> None:
    options = ("--data-dir", str(data_dir), "--endpoints", store_endpoint)
    first = Up(tmp_path, *options)
    first.await_notice("READY=1")
    code, output, errors = Up(tmp_path, *options).finish()
    assert code == 1
    assert f"in use by another `trimaran up` (process {first.process.pid})" in errors
    assert output == ""
    assert first.finish(signal.SIGTERM)[0] == 0
    again = Up(tmp_path, *options)
    again.await_notice("READY=1")
    assert again.finish(signal.SIGTERM)[0] == 0


def token_for(*ports: int) -> str:
    """A token of nobody that leads to ports of this machine."""
    addresses = tuple(f"127.0.0.1:{port}" for port in ports)
    return JoinToken(addresses, bytes(32), bytes(32), 2**32 - 1).encode()


def test_a_cluster_that_never_answers_is_given_up(tmp_path: Path, data_dir: Path) -> None:
    port = free_port()
    options = ("--data-dir", str(data_dir), "--join", token_for(port), "--join-timeout", "0.1")
    code, _, errors = Up(tmp_path, *options).finish()
    assert code == 1
    assert f"no host of the cluster answers at 127.0.0.1:{port}" in errors
    assert "is `trimaran up` running there" in errors
    assert "Traceback" not in errors


def test_a_store_that_never_answers_is_given_up(tmp_path: Path, data_dir: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    options = ("--data-dir", str(data_dir), "--endpoints", url, "--join-timeout", "0.1")
    code, _, errors = Up(tmp_path, *options).finish()
    assert code == 1
    assert f"no store answers at {url}" in errors
    assert "Traceback" not in errors


def test_without_a_token_no_host_joins(tmp_path: Path, data_dir: Path) -> None:
    options = ("--data-dir", str(data_dir), "--join", "127.0.0.1", "--advertise", "127.0.0.1")
    code, _, errors = Up(tmp_path, *options).finish()
    assert code == 1
    assert "trimaran token create" in errors


def test_ctrl_c_ends_the_wait_for_a_cluster(tmp_path: Path, data_dir: Path) -> None:
    host = Up(tmp_path, "--data-dir", str(data_dir), "--join", token_for(free_port()))
    host.await_notice("STATUS=starting cluster")
    code, output, _ = host.finish(signal.SIGINT)
    assert code == 130
    assert output.splitlines()[-1] == "data: stopped"


def test_a_data_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    code, _, errors = Up(tmp_path, "--data-dir", "/proc/nowhere").finish()
    assert code == 1
    assert "/proc/nowhere cannot be used" in errors
    assert "--data-dir" in errors


def test_without_root_it_says_how_to_go_on(tmp_path: Path) -> None:
    if why_not():
        pytest.skip(str(why_not()))
    command = ["unshare", "--user", TRIMARAN, "up", "--data-dir", str(tmp_path / "data")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 1
    assert "needs root" in result.stderr
    assert not (tmp_path / "data").exists()


def test_without_systemd_it_says_how_to_go_on(tmp_path: Path) -> None:
    if why_not():
        pytest.skip(str(why_not()))
    command = [*OWN_RUN, TRIMARAN, "up", "--data-dir", str(tmp_path / "data")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 1
    assert "not booted with it" in result.stderr
    assert not (tmp_path / "data").exists()


def test_the_printed_service_runs_this_command_line() -> None:
    command = [TRIMARAN, "up", "--join", "10.0.0.1", "--print-unit", "--metadata", "a=b c"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"ExecStart={TRIMARAN} up --join 10.0.0.1 --metadata 'a=b c'\n" in text
    assert "Type=notify" in text
    command = [TRIMARAN, "up", "--print-unit", "--name", r"50%\${HOME}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert r"up --name '50%%\\$${HOME}'" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["up", "--join", ""], "'--join': the value is empty"),
        (["up", "--endpoints", " "], "'--endpoints': the value is empty"),
        (["up", "--name", ""], "'--name': the value is empty"),
        (["up", "--data-dir", ""], "'--data-dir': the value is empty"),
        (["up", "--listen", "eth0"], "'eth0' is not an IP address"),
        (["up", "--join", "http://x"], "'http://x' names no host"),
        (["up", "--join", "trimaran1_abc"], "the join token is damaged"),
        (["up", "--join", "a", "--token", "b"], "this is no join token"),
        (["up", "--token", "b"], "--token goes with --join"),
        (["up", "--endpoints", "http://a:1", "--listen", "10.0.0.1"], "leave it out"),
        (["up", "--advertise", "127.0.0.1", "--store-members", "10"], "--store-members"),
        (["up", "--advertise", "127.0.0.1", "--certificate-lifetime", "1"], "last 20 s or more"),
        (["up", "--join", "a", "--endpoints", "b"], "not both"),
        (["up", "--advertise", "127.0.0.1", "--metadata", "x"], "'x' is not of the form"),
        (["--endpoints", "http://a:1", "up"], "trimaran up --endpoints URL"),
    ],
)
def test_a_wrong_command_line_starts_nothing(
    arguments: list[str], complaint: str, tmp_path: Path
) -> None:
    command = [*OWN_RUN, TRIMARAN, *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=tmp_path
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert complaint in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, data_dir: Path
) -> None:
    if why_not():
        pytest.skip(str(why_not()))
    options = ["--no-fleet", "--data-dir", str(data_dir), "--advertise", "127.0.0.1"]
    command = [*OWN_RUN, TRIMARAN, "up", *options, "--network", "10.9.0.0/31"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 1
    assert "10.9.0.0/31" in result.stderr
    assert not data_dir.exists()


def test_one_that_is_refused_leaves_the_running_ones_endpoints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    published = tmp_path / "store.json"
    published.write_text("http://10.0.0.1:2379\n")
    run_with(monkeypatch, tmp_path, start_error=True, fail_later=False)
    assert published.read_text() == "http://10.0.0.1:2379\n"


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_units(name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    unit = up.UNIT_FILE.with_name(name)
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    complaints = [line for line in result.stderr.splitlines() if unit.name in line]
    assert complaints == []


@pytest.fixture
def host(hosts: HostStarter) -> Host:
    """One test host."""
    return hosts(1)[0]


def start(host: Host, *options: str) -> str:
    """Run `trimaran up` as a service and return what it printed, whether it came up or not."""
    text = host.run("trimaran", "up", *options, "--print-unit").stdout
    host.write_unit("trimaran.service", text.replace("Restart=on-failure", "Restart=no"))
    host.run("systemctl", "start", "trimaran", check=False)
    return log_of(host)


def log_of(host: Host) -> str:
    """What `trimaran up` has printed."""
    return host.ask("journalctl", "--output=cat", "_SYSTEMD_UNIT=trimaran.service")


def test_units_and_the_overlay_outlive_a_restart(host: Host) -> None:
    output = start(host)
    assert "ready: host1 is up" in output, output
    host.path("/tmp/hello.service").write_text("[Service]\nExecStart=sleep 1000\n")
    host.run("trimaran", "unit", "start", "/tmp/hello.service")
    pid = host.ask("systemctl", "show", "--property=MainPID", "--value", "hello.service")
    route = host.ask("ip", "-brief", "address", "show", "flannel.1")
    assert pid != "0"
    assert route
    host.run("systemctl", "restart", "trimaran")
    assert host.ask("systemctl", "show", "--property=MainPID", "--value", "hello.service") == pid
    assert host.ask("ip", "-brief", "address", "show", "flannel.1") == route
    host.run("systemctl", "stop", "trimaran")
    assert host.ask("systemctl", "is-active", "hello.service") == "active"


def test_a_configuration_that_is_there_is_kept(host: Host) -> None:
    host.spawn("etcd", "--data-dir", "/tmp/etcd").poll()
    config = '{"Network":"10.9.0.0/16","Backend":{"Type":"udp"}}'
    host.run("etcdctl", "--dial-timeout=20s", "put", "/coreos.com/network/config", config)
    output = start(host, "--endpoints", "http://127.0.0.1:2379", "--no-fleet")
    assert re.search(r"net: 10\.9\.\d+\.0/24 of 10\.9\.0\.0/16 on \S+ \(udp\)", output), output
    stored = host.ask("etcdctl", "get", "/coreos.com/network/config", "--print-value-only")
    assert stored == config


def test_a_network_that_cannot_be_leaves_nothing_running(host: Host) -> None:
    output = start(host, "--network", "10.9.0.0/31")
    assert "ready" not in output
    assert "10.9.0.0/31" in output
    assert host.ask("ls", "/var/lib/trimaran") == ""
    assert "Traceback" not in output
    assert host.ask("systemctl", "is-active", "trimaran") == "failed"
    with pytest.raises(HostError):
        host.run("trimaran", "--timeout", "1", "status")


def test_a_port_that_is_taken_is_named(host: Host) -> None:
    listener = host.spawn("python3", "-m", "http.server", "--bind", "127.0.0.1", "2379")
    host.run(
        *("timeout", "20", "bash", "-c"),
        "until (: </dev/tcp/127.0.0.1/2379) 2>/dev/null; do sleep 0.05; done",
    )
    output = start(host)
    assert "port 2379 of 127.0.0.1 is taken" in output
    assert "--port" in output
    assert "Traceback" not in output
    assert host.ask("ip", "-brief", "link", "show", "flannel.1") == ""
    assert listener.poll() is None


def await_output(host: Host, wanted: str, *command: str) -> str:
    """Repeat a command on a host until its output has the wanted text, and return the output."""
    deadline = time.monotonic() + TIMEOUT_S
    while wanted not in (output := host.ask(*command)):
        assert time.monotonic() < deadline, (wanted, output, log_of(host))
        time.sleep(0.1)
    return output


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
def test_a_host_that_comes_first_waits_for_the_store(hosts: HostStarter, backend: str) -> None:
    first, second = hosts(2)
    assert "ready" in start(first, "--listen", first.address, "--backend", backend)
    token = first.ask("trimaran", "token", "create")
    first.run("systemctl", "stop", "trimaran")
    unit = second.run("trimaran", "up", "--join", token, "--print-unit").stdout
    second.write_unit("trimaran.service", unit)
    second.run("systemctl", "start", "--no-block", "trimaran")
    status = ("systemctl", "show", "--property=StatusText", "trimaran")
    await_output(second, "starting cluster", *status)
    first.run("systemctl", "start", "trimaran")
    await_output(second, "active", "systemctl", "is-active", "trimaran")
    assert f"({backend})" in log_of(second)
    subnet = second.ask("sh", "-c", ". /run/flannel/subnet.env; echo $FLANNEL_SUBNET")
    overlay_address = str(ipaddress.ip_interface(subnet).network.network_address)
    await_output(first, " 0% packet loss", "ping", "-c1", "-W1", overlay_address)
    machines = second.ask("trimaran", "machine", "list")
    assert first.address in machines
    assert second.address in machines


def test_a_killed_host_daemon_comes_back_and_units_do_not_notice(hosts: HostStarter) -> None:
    first, second = hosts(2)
    text = first.run("trimaran", "up", "--listen", first.address, "--print-unit").stdout
    first.write_unit("trimaran.service", text)
    first.run("systemctl", "start", "trimaran")
    start(second, "--join", first.ask("trimaran", "token", "create"))
    first.run("trimaran", "kv", "put", "/kept", "yes")
    second.path("/tmp/hello@.service").write_text(
        "[Service]\nExecStart=sleep 1000\n[X-Fleet]\nConflicts=hello@*.service\n"
    )
    second.run("trimaran", "unit", "start", "/tmp/hello@1.service", "/tmp/hello@2.service")

    def pids() -> list[str]:
        show = ("systemctl", "show", "--property=MainPID", "--value", "hello@*.service")
        return [host.ask(*show) for host in (first, second)]

    before = pids()
    assert all(int(pid) for pid in before)
    daemon = first.ask("systemctl", "show", "--property=MainPID", "--value", "trimaran")
    first.run("systemctl", "kill", "--signal=KILL", "trimaran")
    await_output(first, "yes", "trimaran", "--timeout", "1", "kv", "get", "/kept")
    await_output(first, "active", "systemctl", "is-active", "trimaran")
    assert daemon != first.ask("systemctl", "show", "--property=MainPID", "--value", "trimaran")
    second.run("trimaran", "kv", "put", "/kept", "still")
    listing = await_output(second, "running", "trimaran", "unit", "list")
    assert listing.count("running") == 2
    assert pids() == before


def test_the_daemons_run_as_services_of_their_own(host: Host) -> None:
    path = host.ask("printenv", "PATH")
    for name in ("stored", "netd", "fleetd"):
        unit = f"trimaran-{name}.service"
        text = up.UNIT_FILE.with_name(unit).read_text()
        host.write_unit(unit, text.replace("[Service]", f"[Service]\nEnvironment=PATH={path}"))
        host.run("systemctl", "start", "--no-block" if name == "netd" else "--quiet", unit)
    host.run("trimaran", "net", "config", "set", "--network", "10.9.0.0/16")
    for name in ("stored", "netd", "fleetd"):
        await_output(host, "active", "systemctl", "is-active", f"trimaran-{name}")
    await_output(host, "10.9.", "cat", "/run/flannel/subnet.env")
    assert host.address in host.ask("trimaran", "machine", "list")
    assert host.path("/var/lib/trimaran/store/member.json").exists()
