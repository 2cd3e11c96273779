"""The key index and the lease table: a model in C, with sanitizers."""

import subprocess

import pytest

from store_engine import INDEX_SOURCES, program


@pytest.mark.parametrize("seed", range(3))
def test_index_and_leases_are_those_of_the_model(seed: int) -> None:
    line = [program("store_index", INDEX_SOURCES), str(seed), "12000"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 1000
