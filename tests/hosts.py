"""Test hosts: a real systemd each, in namespaces of its own, on one Ethernet bridge.

    with Site() as site:
        first, second = site.start(2)
        first.run("ping", "-c1", second.address)
        second.power_off()

A host is `systemd` as PID 1 in new pid, mount, uts, ipc, cgroup and network namespaces, over an
overlay of this machine's `/` whose upper layer is a tmpfs. It boots in about 0.3 s. The checkout is
mounted read-only at its own path, so this Python and the `trimaran` commands run inside.

Nothing has a name outside the namespaces except one cgroup directory a site: mounts, links and
namespaces vanish with their processes. A guardian process, which also holds the bridge, waits on a
pipe from the process that made the site. When the pipe closes, by `close()` or by any death of that
process, the guardian kills the hosts and removes their cgroups; sites whose owner and guardian both
died are swept when the next one starts.

Needs root, systemd, dbus, iproute2 and util-linux; `why_not()` tells what is missing.
"""

import contextlib
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

CHECKOUT = Path(__file__).resolve().parent.parent
CGROUP_ROOT = Path("/sys/fs/cgroup/unified")
if not CGROUP_ROOT.is_dir():
    CGROUP_ROOT = Path("/sys/fs/cgroup")
SITE_PATTERN = re.compile(r"trimaran-site-(\d+)-(\d+)-\d+")
NETWORK_PREFIX = "10.77.0."
BRIDGE_HOST_NUMBER = 254
BOOT_TIMEOUT_S = 30.0
PROGRAMS = ("systemctl", "dbus-daemon", "ip", "nsenter", "unshare", "pivot_root", "setpriv")

# The path of the commands inside a host: the checkout's own programs first.
HOST_ENVIRONMENT = {
    "PATH": f"{CHECKOUT}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}

# Units that would reach past the host's walls (kernel settings, devices, the clock) or wait for
# hardware that is not there.
MASKED_UNITS = """
dev-hugepages.mount dev-mqueue.mount proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount
sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount
systemd-ask-password-console.path systemd-ask-password-wall.path systemd-binfmt.service
systemd-journal-flush.service systemd-journald-audit.socket systemd-logind.service
systemd-modules-load.service systemd-networkd.service systemd-pcrphase-sysinit.service
systemd-random-seed.service systemd-remount-fs.service systemd-resolved.service
systemd-sysctl.service systemd-sysusers.service systemd-timesyncd.service
systemd-tmpfiles-setup-dev.service systemd-tmpfiles-setup.service systemd-udev-trigger.service
systemd-udevd.service systemd-update-utmp.service
"""

# Arguments: cgroup directory. Runs in the bridge's network namespace until its standard input
# ends, then takes everything down.
GUARDIAN = r"""
trap '' INT TERM HUP
# A bridge without an address of its own takes the lowest of its ports, and so a new one when that
# port goes: the other hosts then send to the old one for seconds.
ip link add name lan address 02:00:0a:4d:00:fe type bridge || exit 1
ip addr add "$2" dev lan && ip link set lan up || exit 1
ip link set lo up
echo ready
exec >/dev/null
cat
echo 1 >"$1/cgroup.kill"
tries=0
until find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || [ ! -d "$1" ]; do
    tries=$((tries + 1)); [ $tries -lt 500 ] || exit 1
    sleep 0.01
done
"""

# Arguments: cgroup directory, then the command.
ENTER_CGROUP = 'echo 0 >"$1/cgroup.procs"; shift; exec "$@"'

# Arguments: host name, names of masked units, directories to show inside. All mounts are made in
# the host's own mount namespace, on top of /run, which every machine has.
INIT = r"""
set -e
name=$1 masked=$2
shift 2
hostname "$name"
mount --make-rprivate /
mount -t tmpfs -o mode=755 "$name" /run
cd /run
mkdir upper work root visible
number=0
for directory in "$@"; do
    mkdir visible/$number
    [ -d "$directory" ] && mount --bind "$directory" visible/$number
    number=$((number + 1))
done
mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work overlay root
cd root

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t proc proc mnt
mount --bind mnt/sys/net proc/sys/net
umount -l mnt
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755,size=4m tmpfs dev
for device in null zero full random urandom tty fuse; do
    [ -e /dev/$device ] || continue
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm dev/net
mknod -m 666 dev/net/tun c 10 200
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
number=0
for directory in "$@"; do
    mkdir -p "./$directory"
    mount --rbind /run/visible/$number "./$directory"
    mount -o remount,bind,ro "./$directory"
    number=$((number + 1))
done

echo "$name" >etc/hostname
rm -f etc/machine-id
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
rm -rf etc/systemd/system etc/resolv.conf etc/flannel etc/trimaran var/lib/trimaran var/log/journal
mkdir -p etc/systemd/system
for unit in $masked; do ln -s /dev/null etc/systemd/system/$unit; done
cat >etc/systemd/system/test-host.target <<UNIT
[Unit]
Description=Test host
DefaultDependencies=no
Requires=dbus.socket systemd-journald.socket systemd-journald.service
After=dbus.socket systemd-journald.socket
AllowIsolate=yes
UNIT

mkdir run/outside
pivot_root . run/outside
umount -l /run/outside
rmdir /run/outside
exec setpriv --bounding-set -sys_time,-sys_module env -i container=other LANG=C.UTF-8 \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin "$SYSTEMD" --unit=test-host.target --log-target=journal \
    </dev/null
"""


class HostError(Exception):
    """A test host did not start, or a command inside it failed; the text carries its output."""


def systemd_program() -> Path | None:
    """Where systemd's own program is, or None."""
    for path in (Path("/usr/lib/systemd/systemd"), Path("/lib/systemd/systemd")):
        if path.exists():
            return path
    return None


def why_not() -> str | None:
    """Say why test hosts cannot run on this machine, or None where they can."""
    if os.geteuid() != 0:
        return "test hosts need root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if systemd_program() is None:
        missing.append("systemd")
    if missing:
        return f"test hosts need {', '.join(missing)}"
    if not (CGROUP_ROOT / "cgroup.procs").exists() or not os.access(CGROUP_ROOT, os.W_OK):
        return f"test hosts need a writable cgroup2 hierarchy at {CGROUP_ROOT}"
    command = ["unshare", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--net", "--fork"]
    attempt = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if attempt.returncode != 0:
        return f"test hosts need namespaces: {attempt.stderr.strip()}"
    return None


def start_ticks(pid: int) -> int:
    """The moment a process started, in clock ticks since boot; 0 where it is gone or dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def remove_cgroup(directory: Path, timeout_s: float = 5.0) -> None:
    """Kill every process in a cgroup and remove it with those below it."""
    deadline = time.monotonic() + timeout_s
    while directory.exists():
        try:
            (directory / "cgroup.kill").write_text("1")
            for folder, _, _ in os.walk(directory, topdown=False):
                os.rmdir(folder)
        except FileNotFoundError:
            continue
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def abandoned() -> list[Path]:
    """The cgroups of sites whose owner has died."""
    found = []
    for directory in CGROUP_ROOT.glob("trimaran-site-*"):
        match = SITE_PATTERN.fullmatch(directory.name)
        if match and start_ticks(int(match[1])) != int(match[2]):
            found.append(directory)
    return found


def sweep() -> list[str]:
    """Remove what sites left whose owner and guardian have died, and return their names."""
    swept = abandoned()
    for directory in swept:
        remove_cgroup(directory)
    return [directory.name for directory in swept]


def namespaces_of(pid: int) -> set[str]:
    """The namespaces of a process, by kind and inode, without those it shares with this one."""
    found = set()
    for kind in ("pid", "mnt", "net", "cgroup"):
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/{pid}/ns/{kind}")
            if name != os.readlink(f"/proc/self/ns/{kind}"):
                found.add(name)
    return found


def leftovers(site: "Site") -> list[str]:
    """What is left of a closed site: its cgroup, and processes in namespaces of its hosts.

    Mounts, devices, addresses and routes cannot outlive those: they are in the namespaces.
    """
    remains = [str(site.cgroup)] if site.cgroup.exists() else []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not start_ticks(int(entry.name)):
            continue
        if namespaces_of(int(entry.name)) & site.namespaces:
            with contextlib.suppress(OSError):
                remains.append(f"process {entry.name} {(entry / 'comm').read_text().strip()}")
    return remains


class Host:
    """One running test host.

    Attributes:
        name: its host name.
        address: its IPv4 address on the site's bridge.
        pid: the process id of its systemd, seen from outside.
    """

    def __init__(self, site: "Site", name: str, number: int) -> None:
        self.site = site
        self.name = name
        self.number = number
        self.address = f"{NETWORK_PREFIX}{number}"
        self.cgroup = site.cgroup / name
        self.pid = 0
        self._ticks = 0
        self._port = f"port{number}"
        self._process = self._launch()

    def _launch(self) -> "subprocess.Popen[str]":
        self.cgroup.mkdir()
        visible = dict.fromkeys([str(CHECKOUT), os.path.realpath(sys.base_prefix)])
        visible.pop("/usr", None)
        unshare = ["unshare", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--net"]
        command = [
            *("sh", "-c", ENTER_CGROUP, "sh", str(self.cgroup)),
            *(*unshare, "--fork", "--kill-child=KILL"),
            *("bash", "-c", INIT, "init", self.name, MASKED_UNITS, *visible),
        ]
        return subprocess.Popen(
            command,
            cwd="/",
            env={**os.environ, "SYSTEMD": str(systemd_program())},
            stdin=subprocess.DEVNULL,
            stdout=self.site.log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def await_namespaces(self, deadline: float) -> None:
        """Wait until the host's first process is there."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        while not self.pid:
            self._check_alive(deadline, "did not start")
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = children.read_text().split()
                self.pid = int(text[0]) if text else 0
                self._ticks = start_ticks(self.pid)
            time.sleep(0.002)

    def await_boot(self, deadline: float) -> None:
        """Wait until its systemd has started the target and its message bus answers."""
        while not self.path("/run/dbus/system_bus_socket").exists():
            self._check_alive(deadline, "did not boot")
            time.sleep(0.005)
        # Until systemd listens, the question itself fails; "degraded" is a started system too.
        while self.ask("systemctl", "is-system-running", "--wait") not in ("running", "degraded"):
            self._check_alive(deadline, "did not finish booting")
            time.sleep(0.01)

    def _check_alive(self, deadline: float, problem: str) -> None:
        if self._process.poll() is not None or time.monotonic() > deadline:
            raise HostError(f"test host {self.name} {problem}: {self.site.read_log()}")

    @property
    def running(self) -> bool:
        """Whether the host has power."""
        return self._process.poll() is None

    @property
    def bus_address(self) -> str:
        """The D-Bus address of its system bus, usable from outside by root."""
        return f"unix:path=/proc/{self.pid}/root/run/dbus/system_bus_socket"

    @property
    def machine_id(self) -> str:
        """The host's /etc/machine-id."""
        return self.path("/etc/machine-id").read_text().strip()

    def path(self, inside: str | Path) -> Path:
        """The path, from outside, of a file of the host (absolute symbolic links lead outside)."""
        return Path(f"/proc/{self.pid}/root/{inside}")

    def command(self, *arguments: str | Path, env: dict[str, str] | None = None) -> list[str]:
        """The command line that runs `arguments` inside the host, for any subprocess call."""
        environment = [
            f"{key}={value}" for key, value in {**HOST_ENVIRONMENT, **(env or {})}.items()
        ]
        inside = ["env", "-i", *environment, *map(str, arguments)]
        return ["nsenter", "--target", str(self.pid), "--all", *inside]

    def run(
        self,
        *arguments: str | Path,
        check: bool = True,
        timeout_s: float = 60.0,
        input: str | None = None,
        env: dict[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command inside the host and return its exit code and output.

        Raises:
            HostError: it failed, and `check` is set.
            subprocess.TimeoutExpired: it took longer than `timeout_s`.
        """
        result = subprocess.run(
            self.command(*arguments, env=env),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and result.returncode != 0:
            line = " ".join(map(str, arguments))
            raise HostError(
                f"on {self.name}: `{line}` exited with {result.returncode}: "
                f"{result.stderr.strip()} {result.stdout.strip()}"
            )
        return result

    def ask(self, *arguments: str | Path, timeout_s: float = 60.0) -> str:
        """Run a command inside the host, whether it succeeds or not, and return what it printed."""
        return self.run(*arguments, check=False, timeout_s=timeout_s).stdout.strip()

    def spawn(
        self, *arguments: str | Path, env: dict[str, str] | None = None, **options: object
    ) -> "subprocess.Popen[str]":
        """Start a command inside the host; `options` go to Popen. It dies with the host."""
        settings: dict[str, object] = {"text": True, "stdin": subprocess.DEVNULL, **options}
        return subprocess.Popen(self.command(*arguments, env=env), **settings)  # type: ignore

    def write_unit(self, name: str, text: str) -> None:
        """Put a unit file into the host's /etc/systemd/system and have systemd read it."""
        self.path(f"/etc/systemd/system/{name}").write_text(text)
        self.run("systemctl", "daemon-reload")

    def disconnect(self) -> None:
        """Pull the network cable."""
        self.site.run("ip", "link", "set", self._port, "down")

    def connect(self) -> None:
        """Plug the network cable in again."""
        self.site.run("ip", "link", "set", self._port, "up")

    def power_off(self) -> None:
        """Cut the power: every process of the host is gone at once, without a word to anyone."""
        while self.running:
            with contextlib.suppress(FileNotFoundError):
                self.cgroup.joinpath("cgroup.kill").write_text("1")
            # Who was not in the group yet, or is being born, is met by the next attempt.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
        self._process.wait()
        # Its systemd is dead when all its processes are; only then are the namespaces empty.
        while self._ticks and start_ticks(self.pid) == self._ticks:
            time.sleep(0.001)


class Site:
    """Some test hosts on one bridge, and the guardian that takes them down.

    Addresses are 10.77.0.N for the Nth host; 10.77.0.254 is the bridge itself, in a namespace where
    `run` and `spawn` work too (a place for a store, or for a client on no host).
    """

    _count = 0

    def __init__(self) -> None:
        reason = why_not()
        if reason:
            raise HostError(reason)
        sweep()
        Site._count += 1
        pid = os.getpid()
        self.cgroup = CGROUP_ROOT / f"trimaran-site-{pid}-{start_ticks(pid)}-{Site._count}"
        self.cgroup.mkdir()
        self.hosts: list[Host] = []
        self.namespaces: set[str] = set()
        self.address = f"{NETWORK_PREFIX}{BRIDGE_HOST_NUMBER}"
        self.log = os.memfd_create("test-hosts")
        self._guardian = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", GUARDIAN, "site", self.cgroup, f"{self.address}/24"],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._guardian.stdout is not None
        if self._guardian.stdout.read(6) != b"ready\n":
            self.close()
            raise HostError("the bridge of the test hosts could not be made")

    def __enter__(self) -> "Site":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, count: int, names: Sequence[str] = ()) -> list[Host]:
        """Boot `count` more hosts at once and return them when all have booted.

        Args:
            count: how many.
            names: their host names; host1, host2, ... where not given.
        """
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        first = len(self.hosts) + 1
        assert first + count - 1 < BRIDGE_HOST_NUMBER
        started = []
        for number in range(first, first + count):
            name = names[number - first] if names else f"host{number}"
            self.hosts.append(Host(self, name, number))
            started.append(self.hosts[-1])
        for host in started:
            host.await_namespaces(deadline)
            self.namespaces |= namespaces_of(host.pid)
            self._plug_in(host)
        for host in started:
            host.await_boot(deadline)
        return started

    def _plug_in(self, host: Host) -> None:
        """Give a host its cable: a veth pair between its network namespace and the bridge."""
        port = f"port{host.number}"
        outside = (
            f"link add {port} type veth peer name eth0 netns {host.pid}\n"
            f"link set {port} master lan up\n"
        )
        inside = (
            f"link set lo up\naddr add {host.address}/24 dev eth0\nlink set eth0 up\n"
            f"route add default via {self.address}\n"
        )
        for pid, batch in ((self._guardian.pid, outside), (host.pid, inside)):
            command = ["nsenter", "--target", str(pid), "--net", "ip", "-batch", "-"]
            result = subprocess.run(
                command, input=batch, text=True, capture_output=True, check=False
            )
            if result.returncode != 0:
                raise HostError(f"the cable of {host.name}: {result.stderr.strip()}")

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line that runs `arguments` in the bridge's network namespace."""
        inside = ["nsenter", "--target", str(self._guardian.pid), "--net"]
        return [*inside, *map(str, arguments)]

    def run(self, *arguments: str | Path, timeout_s: float = 60.0) -> str:
        """Run a command on the bridge (this machine's files, its network) and return its output."""
        result = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if result.returncode != 0:
            raise HostError(f"on the bridge: {arguments} failed: {result.stderr.strip()}")
        return result.stdout.strip()

    def read_log(self) -> str:
        """What the hosts' first steps printed so far."""
        size = os.fstat(self.log).st_size
        return os.pread(self.log, size, 0).decode(errors="replace").strip() or "no output"

    def close(self) -> None:
        """Take every host down and leave nothing behind; calling it again does nothing."""
        guardian = self._guardian
        if guardian.stdin and not guardian.stdin.closed:
            guardian.stdin.close()
        code = guardian.wait()
        if guardian.stdout:
            guardian.stdout.close()
        for host in self.hosts:
            host.power_off()
        if self.log >= 0:
            os.close(self.log)
            self.log = -1
        if self.cgroup.exists():
            remove_cgroup(self.cgroup)
        assert code in (0, 1)


@contextlib.contextmanager
def start_hosts(count: int, names: Sequence[str] = ()) -> Iterator[list[Host]]:
    """Run `count` hosts for the length of a `with` block."""
    with Site() as site:
        yield site.start(count, names)


def main() -> None:
    """Run test hosts by hand: `python tests/hosts.py [COUNT]`, until Ctrl-C."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with start_hosts(count) as hosts:
        for host in hosts:
            print(f"{host.name} {host.address}: nsenter --target {host.pid} --all bash")
        with contextlib.suppress(KeyboardInterrupt):
            select.select([], [], [])


if __name__ == "__main__":
    main()
