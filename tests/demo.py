"""`./run demo`: four hosts, a store of three members, units that move, an overlay between them.

Boots four test hosts (see hosts.py), each with a real systemd, runs `trimaran up` on each, and
goes once through what Trimaran is for, with the power of two hosts cut on the way. Every step is
checked; the exit code is 0 only if all held.
"""

import argparse
import contextlib
import ipaddress
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from hosts import Host, HostError, Site, leftovers, why_not

UNITS = Path(__file__).resolve().parent / "demo_units"
WRITER = Path(__file__).resolve().parent / "demo_writer.py"
STORE_MEMBERS = 3
WRITES_BEFORE_CUT = 100
WEB_PORT = 8080
STEP_TIMEOUT_S = 30.0
MEMBERS_TIMEOUT_S = 60.0
WIDTH_MIN = 120  # of the timeline, where the terminal is narrower or there is none
BAR_WIDTH = 20
FAILOVER_MARGIN_S = 3.0
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Runs inside a host: asks each URL in turn until one answers with the text, and prints the answer.
FETCH = """
import sys, time, urllib.request
wanted, deadline, urls = sys.argv[1], time.monotonic() + float(sys.argv[2]), sys.argv[3:]
while time.monotonic() < deadline:
    for url in urls:
        try:
            page = urllib.request.urlopen(url, timeout=0.5).read().decode()
        except OSError:
            continue
        if wanted in page:
            sys.exit(print(page.strip(), "-", url))
    time.sleep(0.05)
sys.exit("no answer with " + repr(wanted) + " from " + " or ".join(urls))
"""


class StepError(Exception):
    """A step of the demo did not hold; the text says what was expected and what there was."""


@dataclass
class Step:
    """One line of the timeline: what was done, how long it took, and what is worth noting."""

    title: str
    begun_s: float
    seconds: float = 0.0
    note: str = ""
    held: bool = False


class Stage:
    """The demo's voice: prints each step as it happens, and the timeline at the end."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        if self._console.width < WIDTH_MIN:
            self._console.width = WIDTH_MIN
        self._begun_s = time.monotonic()
        self.steps: list[Step] = []

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Time a step; an exception marks it as not held and goes on."""
        self._console.print(Text(f"\n{title}", "bold"))
        begun_s = time.monotonic()
        step = Step(title, begun_s - self._begun_s)
        self.steps.append(step)
        try:
            yield step
            step.held = True
        except (Exception, KeyboardInterrupt) as error:
            step.note = "interrupted" if isinstance(error, KeyboardInterrupt) else "did not hold"
            if str(error):
                self._console.print(Text(f"  {error}", "red"))
            raise
        finally:
            step.seconds = time.monotonic() - begun_s
            mark = Text("  held", "green") if step.held else Text(f"  {step.note}", "bold red")
            self._console.print(Text.assemble(mark, (f" after {step.seconds:.2f} s", "dim")))

    def show(self, host: Host, command: str, output: str = "") -> None:
        """Print a command as one would type it on a host, and what it answered."""
        self._console.print(Text.assemble((f"  {host.name}$ ", "cyan"), command))
        for line in align(output):
            self._console.print(Text(f"    {line}", "dim"))

    def say(self, text: str) -> None:
        """Print a remark."""
        self._console.print(Text(f"  {text}"))

    def print_journals(self, hosts: list[Host]) -> None:
        """Print the end of what `trimaran up` logged on each host, to find out what went wrong."""
        for host in hosts:
            if host.running:
                log = host.ask("journalctl", "--unit=trimaran", "--output=cat", "--lines=20")
                self.show(host, "journalctl --unit=trimaran --lines=20", log)

    def print_timeline(self) -> None:
        """Print all steps with a bar from their beginning to their end."""
        whole_s = max(step.begun_s + step.seconds for step in self.steps)
        table = Table(box=None, padding=(0, 1), pad_edge=False)
        for column in ("", "step", "seconds", "", "note"):
            justify: JustifyMethod = "right" if column == "seconds" else "left"
            table.add_column(column, justify=justify, no_wrap=True)
        for step in self.steps:
            left = min(round(step.begun_s / whole_s * BAR_WIDTH), BAR_WIDTH - 1)
            length = max(1, round(step.seconds / whole_s * BAR_WIDTH))
            table.add_row(
                Text("✓", "green") if step.held else Text("✗", "bold red"),
                step.title,
                f"{step.seconds:.2f}",
                Text(" " * left + "━" * min(length, BAR_WIDTH - left), "cyan"),
                step.note,
            )
        self._console.print(Text("\nTimeline", "bold"))
        self._console.print(table)
        held = sum(step.held for step in self.steps)
        self._console.print(f"{held} of {len(self.steps)} steps held, {whole_s:.1f} s in all")


def align(output: str) -> list[str]:
    """Lines of fields with tabs between them, as the commands print in a pipe, in columns."""
    rows = [line.split("\t") for line in output.splitlines()]
    widths: dict[int, int] = {}
    for row in rows:
        for number, field in enumerate(row[:-1]):
            widths[number] = max(widths.get(number, 0), len(field))
    return [
        "   ".join(f"{field:{widths.get(n, 0)}}" for n, field in enumerate(row)) for row in rows
    ]


def run(stage: Stage, host: Host, *command: str, show_output: bool = True) -> str:
    """Run a command on a host, show it, and return what it printed."""
    output = host.run(*command, timeout_s=STEP_TIMEOUT_S).stdout.strip()
    stage.show(host, " ".join(command), output if show_output else "")
    return output


def await_true(what: str, condition: Callable[[], bool], timeout_s: float = STEP_TIMEOUT_S) -> None:
    """Ask again and again until a condition holds.

    Raises:
        StepError: it does not within the time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise StepError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.1)


def etcdctl(*arguments: str) -> tuple[str, ...]:
    """The command line of etcdctl on a host, with what `trimaran env` says."""
    return ("sh", "-c", f"eval $(trimaran env); etcdctl {shlex.join(arguments)}")


class Writer:
    """Writes keys on a host for the length of a `with` block.

    Attributes:
        acknowledged: the numbers of the writes that the store acknowledged.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._process: subprocess.Popen[str] | None = None
        self._times_s: list[float] = []
        self.acknowledged: list[str] = []

    def __enter__(self) -> "Writer":
        command = ("python3", WRITER)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = self._host.spawn(*command, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        output, _ = self._process.communicate(timeout=STEP_TIMEOUT_S)
        for line in output.splitlines():
            self._note(line)

    def _note(self, line: str) -> None:
        number, seconds = line.split()
        self.acknowledged.append(number)
        self._times_s.append(float(seconds))

    def await_writes(self, count: int) -> None:
        """Wait until so many more writes are acknowledged."""
        assert self._process is not None
        assert self._process.stdout is not None
        wanted = len(self.acknowledged) + count
        # A writer that is killed ends its output, and so the wait for it.
        patience = threading.Timer(STEP_TIMEOUT_S, self._process.kill)
        patience.start()
        try:
            while len(self.acknowledged) < wanted:
                line = self._process.stdout.readline()
                if not line:
                    raise StepError(f"no {count} writes within {STEP_TIMEOUT_S:g} s")
                self._note(line)
        finally:
            patience.cancel()

    @property
    def longest_gap_s(self) -> float:
        """The longest time without an acknowledged write."""
        pairs = zip(self._times_s, self._times_s[1:], strict=False)
        return max(after - before for before, after in pairs)


@dataclass(frozen=True)
class Placement:
    """Where a unit runs, as `trimaran unit list` says."""

    unit: str
    host: Host
    active: str
    sub: str


class Demo:
    """The hosts and what the demo does with them, in the order of the methods."""

    def __init__(self, stage: Stage, site: Site, backend: str) -> None:
        self.stage = stage
        self.site = site
        self.backend = backend
        self.spare: Host | None = None
        self.hosts: list[Host] = []
        self.token = ""

    def run(self) -> None:
        """Go through all steps; the first that does not hold ends the demo with its exception."""
        with self.stage.step("Boot four hosts") as step:
            self.boot()
            step.note = "real systemd, one bridge"
        with self.stage.step("trimaran up on three") as step:
            self.bring_up()
            step.note = "TLS everywhere; hosts join by token"
        with self.stage.step("Each holds the store") as step:
            self.await_members({host.name for host in self.hosts})
            step.note = "each learned before it got its vote"
        with self.stage.step("Write a key here, read it there") as step:
            self.share_configuration()
            step.note = "Debian's etcdctl"
        with self.stage.step("Submit and start units") as step:
            self.start_units()
            step.note = "2 web servers, 1 beacon a machine"
        with self.stage.step("Fetch a page across the overlay") as step:
            place = self.choose_victim()
            self.fetch_across(place)
            step.note = f"{place.unit} runs on {place.host.name}"
        with self.stage.step("A fourth host joins") as step:
            self.join(self.spare)
            self.await_units(len(self.hosts))
            step.note = "it uses the store of the three"
        self.lose_unit()
        self.lose_leader()

    def lose_unit(self) -> None:
        """Cut the power of a host that runs a unit."""
        with self.stage.step("Cut the power of that host") as step:
            victim = self.choose_victim()
            limit_s = self.machine_ttl_s(victim.host) + FAILOVER_MARGIN_S
            cut_s = time.monotonic()
            self.cut_power(victim.host, f"which runs {victim.unit}")
            step.note = f"{victim.host.name} is gone"
        with self.stage.step("The unit answers elsewhere") as step:
            self.await_answer(victim, limit_s)
            seconds = time.monotonic() - cut_s
            step.note = f"{seconds:.1f} s after the cut, at most {limit_s:g} s"
            if seconds > limit_s:
                raise StepError(f"failover took {seconds:.1f} s, more than {limit_s:g} s")
            self.show_units()
        with self.stage.step("Another host takes its place") as step:
            run(self.stage, self.hosts[0], "trimaran", "machine", "forget", victim.host.name)
            self.await_members({host.name for host in self.hosts})
            step.note = "three members again"

    def lose_leader(self) -> None:
        """Cut the power of the host that leads the store, while somebody writes."""
        with self.stage.step("Cut the power of the store's leader") as step:
            leader = self.lead_apart_from_units()
            with Writer(next(host for host in self.hosts if host is not leader)) as writer:
                writer.await_writes(WRITES_BEFORE_CUT)
                self.cut_power(leader, "which leads the store")
                writer.await_writes(WRITES_BEFORE_CUT)
            step.note = f"{leader.name}; writes waited {writer.longest_gap_s:.2f} s at most"
        with self.stage.step("Nothing that was acknowledged is lost") as step:
            step.note = self.check_writes(writer)
        with self.stage.step("Units and overlay carry on") as step:
            self.await_units(len(self.hosts))
            webs = self.placements_of_web()
            self.fetch_across(max(webs, key=lambda place: place.host is not self.hosts[0]))
            step.note = "both web servers run, where they were"

    def lead_apart_from_units(self) -> Host:
        """Hand the lead to a host without a web server: what is cut then is the store's leader."""
        busy = {place.host.name for place in self.placements_of_web()}
        idle = next(host for host in self.hosts if host.name not in busy)
        if self.leader() is not idle:
            run(self.stage, self.hosts[0], "trimaran", "member", "move-leader", idle.name)
        return idle

    def placements_of_web(self) -> list[Placement]:
        """Where the web servers run."""
        return [place for place in self.placements() if place.unit.startswith("web@")]

    def boot(self) -> None:
        """Start the hosts."""
        *self.hosts, self.spare = self.site.start(STORE_MEMBERS + 1)
        for host in (*self.hosts, self.spare):
            self.stage.say(f"{host.name}  {host.address}  machine {host.machine_id[:8]}")

    def bring_up(self) -> None:
        """Run `trimaran up` on three hosts; the first begins the cluster, the others join it."""
        first, *others = self.hosts
        self.install(first, "--listen", first.address, "--backend", self.backend)
        first.run("systemctl", "start", "trimaran.service")
        self.stage.show(first, "systemctl start trimaran", self.journal(first))
        create = ("trimaran", "token", "create", "--uses", str(STORE_MEMBERS))
        self.token = run(self.stage, first, *create)
        self.hosts = [first]
        for host in others:
            self.join(host)
        run(self.stage, self.hosts[1], "trimaran", "machine", "list")

    def join(self, host: Host) -> None:
        """Run `trimaran up` as a service on one more host."""
        self.install(host, "--join", self.token)
        host.run("systemctl", "start", "trimaran.service")
        self.stage.show(host, "systemctl start trimaran", self.journal(host))
        self.hosts.append(host)
        count = len(self.hosts)
        await_true(f"{count} machines registered", lambda: len(self.machines()) == count)

    def members(self) -> list[dict[str, object]]:
        """The rows of `trimaran member status`."""
        output = self.hosts[-1].ask("trimaran", "member", "status", "-o", "json")
        rows: list[dict[str, object]] = json.loads(output or "[]")
        return rows

    def await_members(self, names: set[str]) -> None:
        """Wait until these hosts, and no others, have members that vote and are healthy."""

        def settled() -> bool:
            rows = self.members()
            voters = {row["name"] for row in rows if row["role"] in ("leader", "follower")}
            return voters == names and all(row["health"] == "healthy" for row in rows)

        await_true(f"members on {', '.join(sorted(names))}", settled, MEMBERS_TIMEOUT_S)
        run(self.stage, self.hosts[-1], "trimaran", "member", "status")

    def leader(self) -> Host:
        """The host whose member leads."""
        name = next(row["name"] for row in self.members() if row["role"] == "leader")
        return next(host for host in self.hosts if host.name == name)

    def check_writes(self, writer: "Writer") -> str:
        """Check that every acknowledged write can be read on every host."""
        for host in self.hosts:
            found = set(host.run("python3", WRITER, "read").stdout.split())
            lost = [number for number in writer.acknowledged if number not in found]
            if lost:
                raise StepError(f"{host.name} has not {len(lost)} writes, as number {lost[0]}")
        count = len(writer.acknowledged)
        self.stage.say(f"{count} acknowledged writes are read back on every host")
        return f"{count} writes, all there"

    def install(self, host: Host, *options: str) -> None:
        """Write the service of `trimaran up` with some options."""
        command = ("trimaran", "up", *options, "--print-unit")
        unit = host.run(*command).stdout
        self.stage.show(host, " ".join(command) + " > /etc/systemd/system/trimaran.service")
        host.write_unit("trimaran.service", unit)

    def journal(self, host: Host) -> str:
        """What `trimaran up` has printed."""
        return host.ask(
            "journalctl", "-u", "trimaran", "-o", "cat", "_SYSTEMD_UNIT=trimaran.service"
        )

    def machines(self) -> list[dict[str, str]]:
        """The rows of `trimaran machine list`."""
        output = self.hosts[0].run("trimaran", "machine", "list", "--json").stdout
        rows: list[dict[str, str]] = json.loads(output)
        return rows

    def share_configuration(self) -> None:
        """Put a key with etcdctl on one host and read it on another, and with our own command."""
        first, second, third, *_ = self.hosts
        value = "blue"
        run(self.stage, first, *etcdctl("put", "/app/color", value))
        get = ("get", "/app/color", "--print-value-only")
        answers = [
            run(self.stage, second, *etcdctl(*get)),
            run(self.stage, third, "trimaran", "kv", "get", "/app/color"),
        ]
        if answers != [value, value]:
            raise StepError(f"wrote {value!r}, read {answers}")

    def start_units(self) -> None:
        """Hand the unit files to the fleet and wait until they run where they should."""
        second = self.hosts[1]
        files = [str(UNITS / name) for name in ("web@.service", "beacon.service")]
        run(self.stage, second, "trimaran", "unit", "submit", *files)
        units = ("web@1.service", "web@2.service", "beacon.service")
        run(self.stage, second, "trimaran", "unit", "start", *units)

        self.await_units(len(self.hosts))

    def await_units(self, machines: int) -> None:
        """Wait until two web servers run, and a beacon on every machine."""
        wanted = ["beacon.service"] * machines + ["web@1.service", "web@2.service"]

        def all_run() -> bool:
            running = [place for place in self.placements() if place.sub == "running"]
            return sorted(place.unit for place in running) == wanted

        await_true(f"two web servers and {machines} beacons run", all_run)
        self.show_units()
        hosts = [place.host.name for place in self.placements() if place.unit.startswith("web@")]
        if len(set(hosts)) != 2:
            raise StepError(f"web servers that conflict run together: {hosts}")

    def placements(self) -> list[Placement]:
        """Where units run, as the fleet says."""
        first = self.hosts[0]
        rows = json.loads(first.run("trimaran", "unit", "list", "--json").stdout)
        found = []
        for row in rows:
            for host in self.hosts:
                if host.address in row["machine"].split("/"):
                    found.append(Placement(row["unit"], host, row["active"], row["sub"]))
        return found

    def show_units(self) -> None:
        """Print `trimaran unit list`."""
        run(self.stage, self.hosts[0], "trimaran", "unit", "list")

    def choose_victim(self) -> Placement:
        """A web server whose host leads neither the store nor the fleet."""
        record = self.hosts[0].run("trimaran", "kv", "get", "/trimaran/fleet/leader").stdout
        engine = json.loads(record)["machineID"]
        leader = self.leader()
        free = [
            place
            for place in self.placements_of_web()
            if place.host.machine_id != engine and place.host is not self.hosts[0]
        ]
        return min(free, key=lambda place: place.host is leader)

    def overlay_url(self, host: Host) -> str:
        """The address of a host's web server in the overlay."""
        environment = host.path("/run/flannel/subnet.env").read_text()
        values = dict(line.split("=", 1) for line in environment.split())
        address = ipaddress.ip_interface(values["FLANNEL_SUBNET"]).network.network_address
        return f"http://{address}:{WEB_PORT}/"

    def fetch_across(self, place: Placement) -> None:
        """Ask the web server from the other hosts, at its host's overlay address."""
        url = self.overlay_url(place.host)
        address = urlsplit(url).hostname or ""
        route = run(self.stage, self.hosts[0], "ip", "route", "get", address)
        if "dev eth0" in route:
            raise StepError(f"{address} is reached past the overlay: {route}")
        wanted = place.unit.removesuffix(".service")
        for host in self.hosts:
            if host is not place.host:
                page = host.run("python3", "-c", FETCH, wanted, "10", url).stdout.strip()
                self.stage.show(host, f"fetch {url}", page)

    def machine_ttl_s(self, host: Host) -> int:
        """The time to live of the lease that a host's presence in the fleet hangs on."""
        first = self.hosts[0]
        output = first.run(*etcdctl("get", "--prefix", "/", "-w", "json")).stdout
        for record in json.loads(output)["kvs"]:
            key = b64decode(record["key"]).decode()
            if "/machines/" in key and host.machine_id in key and record.get("lease"):
                lease = f"{record['lease']:x}"
                status = first.run(*etcdctl("lease", "timetolive", lease, "-w", "json")).stdout
                return int(json.loads(status)["granted-ttl"])
        raise StepError(f"{host.name} has no presence on a lease in the store")

    def cut_power(self, host: Host, what: str) -> None:
        """SIGKILL every process of the host."""
        host.power_off()
        self.hosts.remove(host)
        self.stage.say(f"{host.name}, {what}, has lost its power")

    def await_answer(self, place: Placement, limit_s: float) -> None:
        """Ask the remaining hosts for the page until one has it."""
        asker = self.hosts[0]
        urls = [self.overlay_url(host) for host in self.hosts]
        wanted = place.unit.removesuffix(".service")
        patience = str(limit_s + STEP_TIMEOUT_S)
        fetch = ("python3", "-c", FETCH, wanted, patience, *urls)
        page = asker.run(*fetch, timeout_s=limit_s + 2 * STEP_TIMEOUT_S).stdout.strip()
        self.stage.show(asker, f"fetch {page.split()[-1]}", page)


def play(stage: Stage, backend: str) -> None:
    """Run the demo on hosts of its own, and check that nothing of them is left."""
    with Site() as site:
        try:
            Demo(stage, site, backend).run()
        except (HostError, StepError, subprocess.TimeoutExpired):
            stage.print_journals(site.hosts)
            raise
        finally:
            with stage.step("Take everything down") as step:
                site.close()
                remains = leftovers(site)
                step.note = "nothing is left" if not remains else "something is left"
                if remains:
                    raise StepError("left behind: " + ", ".join(remains))


def become_root() -> None:
    """Run again as root, since hosts need namespaces of every kind."""
    if os.geteuid() == 0:
        return
    sudo = shutil.which("sudo")
    if sudo is None:
        sys.exit("demo: test hosts need root, and there is no sudo; run it as root")
    os.execv(sudo, [sudo, sys.executable, *sys.argv])


def interrupt(number: int, frame: object) -> None:
    """End the demo at the first signal; further ones wait while everything is taken down."""
    for one in END_SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="./run demo", description="Four hosts and two power cuts."
    )
    parser.add_argument(
        "--backend", choices=["vxlan", "udp"], default="vxlan", help="of the overlay (%(default)s)"
    )
    options = parser.parse_args()
    become_root()
    reason = why_not()
    if reason:
        print(f"demo: {reason}", file=sys.stderr)
        return 1
    for number in END_SIGNALS:
        signal.signal(number, interrupt)
    stage = Stage()
    try:
        play(stage, options.backend)
        return 0
    except (HostError, StepError, subprocess.TimeoutExpired):
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    finally:
        if stage.steps:
            stage.print_timeline()


if __name__ == "__main__":
    sys.exit(main())
