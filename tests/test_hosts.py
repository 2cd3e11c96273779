"""The test hosts themselves: they boot, reach each other, lose power, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hosts
from conftest import HostStarter

RUNNER = """
import hosts, signal, sys
sys.path.insert(0, {tests!r})
with hosts.Site() as site:
    first, second = site.start(2)
    sleeper = first.spawn("sleep", "1000")
    print(site.cgroup, site._guardian.pid, first.pid, second.pid, sleeper.pid, flush=True)
    signal.pause()
"""


def test_hosts_are_machines_of_their_own(hosts: HostStarter) -> None:
    first, second = hosts(2)
    assert first.machine_id != second.machine_id
    assert first.ask("hostname") == "host1"
    assert first.ask("systemctl", "is-system-running") == "running"
    first.write_unit("greet.service", "[Service]\nExecStart=sleep 100\n")
    first.run("systemctl", "start", "greet.service")
    assert first.ask("systemctl", "is-active", "greet.service") == "active"
    assert second.ask("systemctl", "is-active", "greet.service") == "inactive"
    assert "trimaran" in first.run("python", "-c", "import trimaran; print(trimaran)").stdout


def test_a_host_without_power_or_cable_is_out_of_reach(hosts: HostStarter) -> None:
    first, second, third = hosts(3)

    def reaches(address: str) -> bool:
        return first.run("ping", "-c1", "-W1", address, check=False).returncode == 0

    assert reaches(second.address)
    assert reaches(third.address)
    second.disconnect()
    third.power_off()
    assert not reaches(second.address)
    assert not reaches(third.address)
    assert not third.running
    second.connect()
    assert reaches(second.address)


def test_a_failing_command_says_where_and_why(hosts: HostStarter) -> None:
    (host,) = hosts(1)
    with pytest.raises(hosts_error(), match=r"on host1: `ls /nowhere` exited with 2: .*nowhere"):
        host.run("ls", "/nowhere")
    assert host.run("ls", "/nowhere", check=False).returncode == 2


def hosts_error() -> type[Exception]:
    """The module's own exception (a fixture has taken its name in the tests above)."""
    return hosts.HostError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_runner_dies(number: signal.Signals) -> None:
    reason = hosts.why_not()
    if reason:
        pytest.skip(reason)
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER.format(tests=str(Path(__file__).parent))],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert runner.stdout is not None
    cgroup, *pids = runner.stdout.readline().split()
    assert all(hosts.start_ticks(int(pid)) for pid in pids)
    os.kill(runner.pid, number)
    runner.wait(20)
    deadline = time.monotonic() + 20
    while Path(cgroup).exists() or any(hosts.start_ticks(int(pid)) for pid in pids):
        assert time.monotonic() < deadline, "processes or the cgroup outlived the runner"
        time.sleep(0.01)


def test_sites_of_the_dead_are_swept_and_of_the_living_kept() -> None:
    reason = hosts.why_not()
    if reason:
        pytest.skip(reason)
    with subprocess.Popen(["true"]) as process:
        pass
    dead = hosts.CGROUP_ROOT / f"trimaran-site-{process.pid}-1-1"
    (dead / "host1").mkdir(parents=True)
    with hosts.Site() as site:
        assert not dead.exists()
        assert hosts.sweep() == []
        assert site.cgroup.exists()
