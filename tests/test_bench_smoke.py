"""Every benchmark works: each runs for a moment, with parameters too small to measure anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "bench").glob("*.py") if path.stem != "main")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "bench" / "main.py"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name: str) -> None:
    if "def main(" not in (ROOT / "bench" / f"{name}.py").read_text():
        pytest.skip("a helper, not a benchmark")
    answer = run(name, "--smoke")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1, answer.stdout
    assert json.loads(lines[0])["bench"] == name


def test_store_with_many_keys() -> None:
    answer = run("store", "--smoke", "--keys", "100")
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_unknown_name_is_refused() -> None:
    answer = run("nothing-of-this-name")
    assert answer.returncode == 2
    assert "no benchmark named nothing-of-this-name" in answer.stderr
    assert "store" in answer.stderr
