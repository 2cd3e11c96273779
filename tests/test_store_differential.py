"""trimaran-stored answers as etcd does: random operations on both, every field compared."""

import pytest

from differential import compare
from etcd_server import missing_reason

# What runs each time; `python tests/differential.py --seeds N` goes further.
SEEDS = range(12)
STEPS = 300


def need(*kinds: str) -> None:
    for kind in kinds:
        reason = missing_reason(kind)
        if reason is not None:
            pytest.skip(reason)


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_same_answers(restart: bool) -> None:
    need("3.5", "trimaran")
    seeds = range(1000, 1004) if restart else SEEDS
    mismatch = compare(("3.5", "trimaran"), seeds, STEPS, restart=restart)
    assert mismatch is None, str(mismatch)


def test_the_harness_finds_nothing_between_equals() -> None:
    need("3.5")
    mismatch = compare(("3.5", "3.5"), range(2000, 2002), STEPS)
    assert mismatch is None, str(mismatch)
