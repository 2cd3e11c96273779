"""`./run`, the one entry: it explains itself and refuses what it does not know."""

import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / "run"
VERBS = ("build", "demo", "test", "bench", "up")


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the script, which must not get as far as building."""
    return subprocess.run([RUN, *arguments], capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)])
def test_it_explains_itself(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert all(f"\n  {verb} " in result.stdout for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(("bulid",), "unknown verb 'bulid'"), (("build", "now"), "takes no arguments; got: now")],
)
def test_what_it_does_not_know_is_refused(arguments: tuple[str, ...], complaint: str) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert complaint in result.stderr
