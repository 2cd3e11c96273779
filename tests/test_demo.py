"""`./run demo` holds, again and again, and leaves nothing behind, interrupted or not."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hosts

DEMO = Path(__file__).parent / "demo.py"
TIMEOUT_S = 180

# Runs the demo as a child subreaper, so that every process it leaves becomes a child of this one,
# and says which those are.
REAPER = """
import ctypes, os, signal, subprocess, sys, time
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
demo = subprocess.Popen(sys.argv[1:])
signal.signal(signal.SIGTERM, lambda number, frame: demo.send_signal(number))
signal.signal(signal.SIGINT, lambda number, frame: demo.send_signal(number))
code = demo.wait()
deadline = time.monotonic() + 10
while True:
    try:
        pid, _ = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        break
    if time.monotonic() > deadline:
        os.system(f"ps --ppid {os.getpid()} -o pid=,args= | sed 's/^/LEFT /'")
        break
    if pid == 0:
        time.sleep(0.01)
sys.exit(code)
"""


def traces() -> set[str]:
    """What a run could leave on this machine besides processes."""
    commands = (["ip", "-o", "link"], ["ip", "route"], ["nft", "list", "ruleset"])
    found = {f"cgroup {path}" for path in hosts.abandoned()}
    for command in commands:
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found |= {f"{command[1]} {line}" for line in output.splitlines()}
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found |= {f"mount {line}" for line in mounts}
    found |= {f"file {path}" for path in Path("/run/trimaran").rglob("*")}
    found |= {f"file {path}" for path in Path("/run/flannel").rglob("*")}
    return found


@pytest.fixture
def unchanged() -> Iterator[None]:
    """Check that a test leaves the machine as it was."""
    reason = hosts.why_not()
    if reason:
        pytest.skip(reason)
    before = traces()
    yield
    assert traces() - before == set()


def start_demo() -> "subprocess.Popen[str]":
    """Start the demo under the reaper."""
    return subprocess.Popen(
        [sys.executable, "-c", REAPER, sys.executable, "-u", str(DEMO)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.parametrize("run", ["first", "second"])
@pytest.mark.usefixtures("unchanged")
def test_every_step_holds(run: str) -> None:
    demo = start_demo()
    output, _ = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 0, output
    assert "LEFT" not in output
    held, steps = re.findall(r"(\d+) of (\d+) steps held", output)[-1]
    assert held == steps
    took_s, limit_s = re.findall(r"([\d.]+) s after the cut, at most ([\d.]+) s", output)[-1]
    assert float(took_s) <= float(limit_s)
    assert re.search(r"\d{3,} writes, all there", output)


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "Boot four hosts"),
        (signal.SIGINT, "trimaran unit start"),
        (signal.SIGINT, "has lost its power"),
        (signal.SIGTERM, "systemctl start trimaran"),
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_nothing_is_left_of_an_interrupted_run(number: signal.Signals, moment: str) -> None:
    demo = start_demo()
    assert demo.stdout is not None
    for line in demo.stdout:
        if moment in line:
            # As a terminal does: the signal goes to the demo and to what it is running.
            os.killpg(demo.pid, number)
            break
    output, _ = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 130, output
    assert "LEFT" not in output
    assert "nothing is left" in output
