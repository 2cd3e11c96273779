"""The fleet on three hosts with real systemd, against each kind of store."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_server import missing_reason
from fleet_site import PROGRAMS, BridgeStore, Fleet, main_pid
from hosts import Host, Site, why_not
from trimaran.fleet.records import LEADER_KEY, SCHEDULE, STATES, UNITS, LeaderRecord

# Short, so that the tests are; the failover test runs with the default.
TTL_S = 4
SLEEP = "[Unit]\nDescription=Sleeps\n[Service]\nExecStart=/bin/sleep 1000\n"


@pytest.fixture(scope="module", params=["etcd", "trimaran"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Three hosts and a store, for every test of this file that breaks none of them."""
    reason = why_not() or missing_reason(request.param)
    if reason:
        pytest.skip(reason)
    with Site() as site, BridgeStore(request.param, site) as store:
        fleet = Fleet(site, store)
        metadata = ["disk=ssd,zone=a", "disk=hdd,zone=a", "disk=ssd,zone=b"]
        fleet.start(3, f"--lease-ttl={TTL_S}", metadata=metadata)
        yield fleet


@pytest.fixture(autouse=True)
def _clean(fleet: Fleet) -> Iterator[None]:
    """Every test leaves the fleet without units."""
    yield
    units = fleet.keys(UNITS)
    if units:
        fleet.trimaran("unit", "destroy", *(key.removeprefix(UNITS) for key in units))
    assert fleet.keys(SCHEDULE) == []
    assert fleet.keys(STATES) == []


def write(folder: Path, name: str, fleet_section: str = "", text: str = SLEEP) -> Path:
    """Write a unit file."""
    path = folder / name
    path.write_text(text + (f"[X-Fleet]\n{fleet_section}\n" if fleet_section else ""))
    return path


def names(hosts: list[Host]) -> list[str]:
    """Host names."""
    return sorted(host.name for host in hosts)


def test_a_unit_through_its_life(fleet: Fleet, tmp_path: Path) -> None:
    path = write(tmp_path, "hello.service")
    assert "created" in fleet.trimaran("unit", "submit", path)
    assert fleet.trimaran("unit", "cat", "hello") == SLEEP
    (row,) = json.loads(fleet.trimaran("unit", "list-files", "--json"))
    assert (row["dstate"], row["state"], row["target"]) == ("inactive", "inactive", "-")

    assert "loaded on" in fleet.trimaran("unit", "load", "hello")
    (row,) = fleet.units()["hello.service"]
    assert (row["active"], row["sub"]) == ("inactive", "dead")

    assert "launched on" in fleet.trimaran("unit", "start", "hello")
    (host,) = fleet.hosts_of("hello.service")
    (row,) = fleet.units()["hello.service"]
    assert row["machine"] == f"{host.machine_id}/{host.address}"
    assert (row["active"], row["sub"]) == ("active", "running")
    status = json.loads(fleet.trimaran("unit", "status", "hello", "--json"))
    assert (status[0]["state"], status[0]["problem"]) == ("launched", "")

    fleet.trimaran("unit", "stop", "hello")
    assert fleet.hosts_of("hello.service") == []
    assert host.path("/run/systemd/system/hello.service").exists()
    fleet.trimaran("unit", "start", "hello")
    assert fleet.hosts_of("hello.service") == [host]

    fleet.trimaran("unit", "unload", "hello")
    assert not host.path("/run/systemd/system/hello.service").exists()
    assert host.ask("systemctl", "show", "-P", "LoadState", "hello") == "not-found"
    fleet.trimaran("unit", "destroy", "hello")
    assert fleet.hosts_of("hello.service") == []
    assert "no unit hello.service" in fleet.trimaran("unit", "status", "hello", code=1)


def test_tables_have_fleetctls_columns(fleet: Fleet, tmp_path: Path) -> None:
    fleet.trimaran("unit", "start", write(tmp_path, "hello.service"))
    short = fleet.hosts_of("hello.service")[0]
    label = f"{short.machine_id[:8]}.../{short.address}"
    lines = fleet.trimaran("unit", "list").splitlines()
    assert [line.split("\t") for line in lines] == [
        ["UNIT", "MACHINE", "ACTIVE", "SUB"],
        ["hello.service", label, "active", "running"],
    ]
    head, row = (line.split("\t") for line in fleet.trimaran("unit", "list-files").splitlines())
    assert head == ["UNIT", "HASH", "DSTATE", "STATE", "TARGET"]
    assert (row[0], len(row[1]), row[2:]) == ("hello.service", 7, ["launched", "launched", label])
    assert fleet.trimaran("unit", "list", "--no-legend", "--fields=unit,load") == (
        "hello.service\tloaded\n"
    )
    lines = fleet.trimaran("machine", "list", "--full").splitlines()
    assert lines[0].split("\t") == ["MACHINE", "IP", "METADATA"]
    assert sorted(line.split("\t")[1] for line in lines[1:]) == [h.address for h in fleet.hosts]
    assert any("disk=hdd,name=host2,zone=a" in line for line in lines)
    assert "knows" in fleet.trimaran("unit", "list", "--fields=bogus", code=2)


def test_constraints_on_real_hosts(fleet: Fleet, tmp_path: Path) -> None:
    first, second, third = fleet.hosts
    pinned = write(tmp_path, "pinned.service", f"MachineID={second.machine_id}")
    follower = write(tmp_path, "follower.service", "MachineOf=pinned.service")
    metadata = write(
        tmp_path, "labels.service", 'MachineMetadata="disk=ssd"\nMachineMetadata="zone=b"'
    )
    everywhere = write(tmp_path, "every.service", "Global=true")
    some = write(tmp_path, "some.service", "Global=true\nMachineMetadata=disk=ssd")
    fleet.trimaran("unit", "start", pinned, follower, metadata, everywhere, some)
    assert fleet.hosts_of("pinned.service") == [second]
    assert fleet.hosts_of("follower.service") == [second]
    assert fleet.hosts_of("labels.service") == [third]
    assert fleet.hosts_of("every.service") == [first, second, third]
    assert fleet.hosts_of("some.service") == [first, third]
    assert len(fleet.units()["every.service"]) == 3
    fleet.trimaran("unit", "stop", "every")
    assert fleet.hosts_of("every.service") == []


def test_instances_in_conflict_spread(fleet: Fleet, tmp_path: Path) -> None:
    write(tmp_path, "web@.service", "Conflicts=web@*.service")
    fleet.trimaran("unit", "submit", tmp_path / "web@.service")
    fleet.trimaran("unit", "start", "web@1", "web@2", "web@3")
    places = [fleet.hosts_of(f"web@{number}.service") for number in (1, 2, 3)]
    assert names([host for (host,) in places]) == ["host1", "host2", "host3"]

    output = fleet.trimaran("unit", "start", "--timeout=1", "web@4", code=1)
    assert "none of 3 machines fits" in output
    assert "in conflict with web@2.service" in output
    assert "in conflict" in fleet.trimaran("unit", "status", "web@4", code=1)
    fleet.trimaran("unit", "destroy", "web@2")
    fleet.wait(lambda: fleet.hosts_of("web@4.service") == places[1], "web@4 takes the free place")

    assert "start an instance" in fleet.trimaran("unit", "start", "web@", code=1)


def test_a_restarted_daemon_leaves_units_alone(fleet: Fleet, tmp_path: Path) -> None:
    fleet.trimaran("unit", "start", write(tmp_path, "hello.service"))
    (host,) = fleet.hosts_of("hello.service")
    pid = main_pid(host, "hello.service")
    for name in ("KILL", "TERM"):
        host.run("systemctl", "kill", "--signal", name, "trimaran-fleetd")
        fleet.wait(
            lambda: host.ask("systemctl", "is-active", "trimaran-fleetd") != "active", "it ends"
        )
        host.run("systemctl", "reset-failed", "trimaran-fleetd", check=False)
        host.run("systemctl", "start", "trimaran-fleetd")
        assert host.machine_id in fleet.machines()
    # An order given now passes through the new daemon, after anything it would do at its start.
    fleet.trimaran("unit", "start", write(tmp_path, "every.service", "Global=true"))
    assert main_pid(host, "hello.service") == pid
    assert fleet.placed_on("hello.service") == [host]


def test_what_happened_while_the_daemon_was_away_is_made_good(fleet: Fleet, tmp_path: Path) -> None:
    fleet.trimaran("unit", "start", write(tmp_path, "hello.service"))
    (host,) = fleet.hosts_of("hello.service")
    host.run("systemctl", "stop", "trimaran-fleetd")
    fleet.trimaran("unit", "destroy", "--no-block", "hello")
    assert fleet.hosts_of("hello.service") == [host]
    host.run("systemctl", "start", "trimaran-fleetd")
    fleet.wait(lambda: not fleet.hosts_of("hello.service"), "the unit is stopped")
    fleet.wait(lambda: not host.path("/run/systemd/system/hello.service").exists(), "and removed")
    fleet.wait(lambda: fleet.keys(STATES) == [], "and forgotten")


def test_replacing_a_text(fleet: Fleet, tmp_path: Path) -> None:
    path = write(tmp_path, "hello.service")
    fleet.trimaran("unit", "start", path)
    (host,) = fleet.hosts_of("hello.service")
    pid = main_pid(host, "hello.service")
    path.write_text("# Only a comment.\n" + SLEEP)
    fleet.trimaran("unit", "start", "--replace", path)
    assert main_pid(host, "hello.service") == pid
    path.write_text(SLEEP.replace("1000", "2000"))
    assert "--replace" in fleet.trimaran("unit", "start", path)
    assert main_pid(host, "hello.service") == pid
    fleet.trimaran("unit", "start", "--replace", path)
    assert "sleep 2000" in host.ask("systemctl", "show", "-P", "ExecStart", "hello")
    assert main_pid(host, "hello.service") not in (0, pid)


def test_failures_are_reported_with_their_reason(fleet: Fleet, tmp_path: Path) -> None:
    broken = write(
        tmp_path, "broken.service", text="[Service]\nExecStart=/bin/false\nType=oneshot\n"
    )
    output = fleet.trimaran("unit", "start", broken, code=1)
    assert "start job: failed" in output or "exit-code" in output
    unusable = write(tmp_path, "unusable.service", text="[Service]\nExecStart=relative/path\n")
    assert "unusable.service" in fleet.trimaran("unit", "start", unusable, code=1)
    (row,) = fleet.units()["unusable.service"]
    assert row["load"] == "bad-setting"
    done = write(tmp_path, "once.service", text="[Service]\nExecStart=/bin/true\nType=oneshot\n")
    assert "launched on" in fleet.trimaran("unit", "start", done)
    # Not one of the fleet's: a unit that the machines have themselves.
    taken = write(tmp_path, "dbus.service")
    output = fleet.trimaran("unit", "start", taken, code=1)
    assert "of its own" in output
    assert len(fleet.hosts_of("dbus.service")) == 3


def test_the_message_bus_may_restart(fleet: Fleet, tmp_path: Path) -> None:
    host = fleet.hosts[1]
    unit = f"MachineID={host.machine_id}"
    fleet.trimaran("unit", "start", write(tmp_path, "before.service", unit))
    pid = main_pid(host, "before.service")
    host.run("systemctl", "restart", "dbus")
    fleet.trimaran("unit", "start", write(tmp_path, "after.service", unit))
    assert main_pid(host, "before.service") == pid
    host.run("systemctl", "kill", "--signal", "KILL", "before.service")
    fleet.wait(lambda: "failed" in fleet.trimaran("unit", "list"), "signals come again")


def test_a_later_failure_shows(fleet: Fleet, tmp_path: Path) -> None:
    fleet.trimaran("unit", "start", write(tmp_path, "hello.service"))
    (host,) = fleet.hosts_of("hello.service")
    host.run("systemctl", "kill", "--signal", "KILL", "hello.service")
    fleet.wait(lambda: fleet.units()["hello.service"][0]["active"] == "failed", "the failure shows")
    assert "signal" in fleet.trimaran("unit", "status", "hello", code=1)


def test_bad_files_are_refused_and_change_nothing(fleet: Fleet, tmp_path: Path) -> None:
    good = write(tmp_path, "good.service")
    bad = write(tmp_path, "bad.service", "MachineMetadata=disk")
    output = fleet.trimaran("unit", "start", good, bad, code=1)
    assert "bad.service: line 6: MachineMetadata=disk is not of the form key=value" in output
    assert json.loads(fleet.trimaran("unit", "list-files", "--json")) == []
    assert "no file" in fleet.trimaran("unit", "start", tmp_path / "none.service", code=1)
    assert "ends in" in fleet.trimaran("unit", "start", tmp_path / "x.device", code=1)


def test_an_idle_fleet_writes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    fleet.trimaran("unit", "start", write(tmp_path, "hello.service"))
    # The reports after the start may still be on their way.
    fleet.wait(lambda: len(fleet.units()) == 1, "the unit is reported")

    def revision() -> int:
        answer = fleet.etcdctl("get", "", "--prefix", "--limit=1", "-w", "json")
        return int(json.loads(answer)["header"]["revision"])

    before = revision()
    with pytest.raises(subprocess.TimeoutExpired):
        # Changes for longer than a keep-alive takes; the watch ends by its timeout alone.
        fleet.etcdctl("watch", "", "--prefix", timeout_s=TTL_S / 2)
    assert revision() == before


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_a_store_away_for_long_stops_nothing(fleet: Fleet, tmp_path: Path, fault: str) -> None:
    since = time.time()
    fleet.trimaran("unit", "start", write(tmp_path, "every.service", "Global=true"))
    for number in range(3):
        fleet.trimaran("unit", "start", write(tmp_path, f"single{number}.service"))
    units = [("every.service", host) for host in fleet.hosts]
    units += [(f"single{n}.service", fleet.hosts_of(f"single{n}.service")[0]) for n in range(3)]
    pids = [main_pid(host, unit) for unit, host in units]
    # A frozen store finds all leases run out when it wakes.
    if fault == "killed":
        fleet.store.kill()
    else:
        fleet.store.signal(signal.SIGSTOP)
    fleet.wait_log("the store was out of reach", since)
    if fault == "killed":
        fleet.store.start()
    else:
        fleet.store.signal(signal.SIGCONT)
    fleet.wait(lambda: len(fleet.machines()) == 3, "all machines are back")
    # An order that passes through engine and agents comes after what they do on their return.
    fleet.trimaran("unit", "start", write(tmp_path, "after.service", "Global=true"))
    assert [main_pid(host, unit) for unit, host in units] == pids
    assert len(fleet.units()["every.service"]) == 3


def test_a_wiped_store_stops_nothing(fleet: Fleet, tmp_path: Path) -> None:
    path = write(tmp_path, "hello.service")
    fleet.trimaran("unit", "start", path)
    (host,) = fleet.hosts_of("hello.service")
    pid = main_pid(host, "hello.service")
    fleet.etcdctl("del", "--prefix", "/trimaran/")
    fleet.wait(lambda: len(fleet.machines()) == 3, "all machines have registered again")
    fleet.trimaran("unit", "start", write(tmp_path, "every.service", "Global=true"))
    assert main_pid(host, "hello.service") == pid
    # Submitted again it may land elsewhere; then the copy nobody ordered is stopped.
    fleet.trimaran("unit", "start", path)
    fleet.wait(lambda: len(fleet.hosts_of("hello.service")) == 1, "one copy is left")


def test_only_the_elected_engine_decides(fleet: Fleet, tmp_path: Path) -> None:
    fleet.etcdctl("del", LEADER_KEY)
    fleet.trimaran("unit", "start", write(tmp_path, "hello.service"))
    # The daemons hang, and somebody else takes the seat; the old leader goes on as if it had it.
    for host in fleet.hosts:
        host.run("systemctl", "kill", "--signal", "STOP", "trimaran-fleetd")
    fleet.etcdctl("del", LEADER_KEY)
    fleet.etcdctl("put", LEADER_KEY, LeaderRecord("nobody").encode())
    for host in fleet.hosts:
        host.run("systemctl", "kill", "--signal", "CONT", "trimaran-fleetd")
    output = fleet.trimaran(
        "unit", "start", "--timeout=2", write(tmp_path, "other.service"), code=1
    )
    assert "other.service is not launched" in output
    assert fleet.hosts_of("other.service") == []
    fleet.etcdctl("del", LEADER_KEY)
    fleet.wait(lambda: len(fleet.hosts_of("other.service")) == 1, "a new engine decides")
    assert len(fleet.hosts_of("hello.service")) == 1


def test_a_partitioned_machine_gives_up_its_copy(fleet: Fleet, tmp_path: Path) -> None:
    fleet.trimaran("unit", "start", write(tmp_path, "hello.service"))
    (host,) = fleet.hosts_of("hello.service")
    host.disconnect()
    fleet.wait(lambda: len(fleet.hosts_of("hello.service")) == 2, "it starts elsewhere")
    host.connect()
    fleet.wait(lambda: len(fleet.hosts_of("hello.service")) == 1, "the old copy is stopped")
    assert fleet.hosts_of("hello.service") != [host]
    fleet.wait(lambda: host.machine_id in fleet.machines(), "the machine is back")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--machine-id", "a/b"], "letters, digits"),
        (["--metadata", "disk"], "key=value"),
        (["--metadata", "a=b,a=c"], "twice"),
        (["--lease-ttl", "1"], "--lease-ttl 3 or more"),
        (["--units-directory", "/tmp/nowhere"], "systemd does not read"),
        (["--bogus"], "No such option"),
        (["--endpoints", ","], "--endpoints is empty"),
    ],
)
def test_wrong_options(fleet: Fleet, arguments: list[str], complaint: str) -> None:
    result = fleet.hosts[0].run(PROGRAMS / "trimaran-fleetd", *arguments, check=False, timeout_s=20)
    assert result.returncode in (1, 2)
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_a_second_daemon_is_refused(fleet: Fleet) -> None:
    result = fleet.hosts[0].run(PROGRAMS / "trimaran-fleetd", check=False)
    assert result.returncode == 1
    assert "another fleet daemon runs" in result.stderr
    assert "Traceback" not in result.stderr


def test_no_systemd_is_said(fleet: Fleet) -> None:
    environment = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}
    result = fleet.hosts[0].run(PROGRAMS / "trimaran-fleetd", check=False, env=environment)
    assert result.returncode == 1
    assert "booted with systemd" in result.stderr
    assert "Traceback" not in result.stderr
