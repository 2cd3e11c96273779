"""A small fleet for the tests: a store on the bridge, and test hosts that run trimaran-fleetd."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etcd_server import StoreServer
from hosts import Host, Site

PROGRAMS = Path(sys.executable).parent
PORT = 2379
TIMEOUT_S = 30.0


class BridgeStore(StoreServer):
    """A store that listens on the bridge, where all test hosts reach it."""

    def __init__(self, kind: str, site: Site) -> None:
        self.site = site
        super().__init__(kind, client_port=PORT, peer_port=PORT + 1)

    @property
    def address(self) -> str:
        """Host and port of the clients' side."""
        return f"{self.site.address}:{self.client_port}"

    def _command_line(self) -> list[str]:
        return self.site.command(*super()._command_line())

    def healthy(self) -> bool:
        """Ask from the bridge whether it answers."""
        probe = (
            "import sys, urllib.request as r; o = r.build_opener(r.ProxyHandler({}));"
            "sys.exit(b'true' not in o.open(sys.argv[1] + '/health', timeout=2).read())"
        )
        command = self.site.command(sys.executable, "-c", probe, self.endpoint)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Fleet:
    """Hosts with a fleet daemon each, and the command line used from the bridge."""

    def __init__(self, site: Site, store: BridgeStore) -> None:
        self.site = site
        self.store = store
        self.endpoint = store.endpoint
        self.hosts: list[Host] = []

    def start(self, count: int, *options: str, metadata: Sequence[str] = ()) -> list[Host]:
        """Boot hosts, run the daemon on each, and wait until all are registered.

        Args:
            count: how many hosts.
            options: further options of every daemon.
            metadata: of each host, in order.
        """
        started = self.site.start(count)
        for number, host in enumerate(started):
            labels = f"name={host.name}"
            if number < len(metadata):
                labels += f",{metadata[number]}"
            self.run_daemon(host, f"--metadata={labels}", *options)
        self.hosts += started
        self.wait(lambda: len(self.machines()) == len(self.hosts), "all machines are registered")
        return started

    def run_daemon(self, host: Host, *options: str) -> None:
        """Run trimaran-fleetd on a host, as a unit of its systemd."""
        host.write_unit(
            "trimaran-fleetd.service",
            "[Service]\nType=notify\nKillMode=mixed\nRestart=no\n"
            f"ExecStart={PROGRAMS}/trimaran-fleetd --endpoints {self.endpoint} "
            + " ".join(options)
            + "\n",
        )
        host.run("systemctl", "start", "--no-block", "trimaran-fleetd")

    def trimaran(self, *arguments: str | Path, code: int = 0) -> str:
        """Run a command on the bridge and return what it printed, errors included.

        Args:
            arguments: after `trimaran --endpoints ...`.
            code: the exit code it must have.
        """
        command = self.site.command(PROGRAMS / "trimaran", "--endpoints", self.endpoint, *arguments)
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S * 3, check=False
        )
        assert result.returncode == code, f"{arguments}: {result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    def etcdctl(self, *arguments: str, timeout_s: float = TIMEOUT_S) -> str:
        """Run Debian's etcdctl on the bridge and return what it printed."""
        command = ["env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={self.endpoint}"]
        return self.site.run(*command, *arguments, timeout_s=timeout_s)

    def keys(self, prefix: str) -> list[str]:
        """The keys of the store below a prefix."""
        return self.etcdctl("get", "--prefix", "--keys-only", prefix).split()

    def machines(self) -> list[str]:
        """The ids of the machines that are present."""
        return [row["machine"] for row in json.loads(self.trimaran("machine", "list", "--json"))]

    def units(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of `unit list` by unit."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in json.loads(self.trimaran("unit", "list", "--json")):
            found.setdefault(row["unit"], []).append(row)
        return found

    def hosts_of(self, unit: str, active: str = "active") -> list[Host]:
        """The hosts whose systemd, asked itself, has a unit in a state."""
        running = [host for host in self.hosts if host.running]
        return [host for host in running if host.ask("systemctl", "is-active", unit) == active]

    def placed_on(self, unit: str) -> list[Host]:
        """The hosts that the fleet says have a unit active."""
        ids = {
            row["machine"].partition("/")[0]
            for row in self.units().get(unit, [])
            if row["active"] == "active"
        }
        return [host for host in self.hosts if host.running and host.machine_id in ids]

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Ask again and again until a condition holds."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"not in {timeout_s} s: {what}\n{self.logs()}"
            time.sleep(0.1)

    def wait_log(self, text: str, since_s: float) -> None:
        """Wait until every daemon has logged something after a moment of the wall clock."""
        journal = ("journalctl", "--no-pager", "-u", "trimaran-fleetd", f"--since=@{since_s:.3f}")

        def said(host: Host) -> bool:
            return text in host.ask(*journal)

        self.wait(lambda: all(said(host) for host in self.hosts), f"all log: {text}")

    def logs(self) -> str:
        """What the daemons have logged, for a failed test's report."""
        return "\n".join(
            f"--- {host.name} {host.machine_id}\n"
            + host.ask("journalctl", "-o", "short-precise", "--no-pager", "-u", "trimaran-fleetd")
            for host in self.hosts
            if host.running
        )


def main_pid(host: Host, unit: str) -> int:
    """The main process of a unit, as its systemd says."""
    return int(host.ask("systemctl", "show", "--property=MainPID", "--value", unit) or 0)
