"""A bounded number of simulated seeds, and what makes them worth anything: see CONTRIBUTING.md."""

import pytest

from simulation.__main__ import run_seeds
from simulation.mutants import MUTANTS
from simulation.seeds import GREEN

SEEDS = {"store": 100, "raft": 100}


@pytest.mark.parametrize("kind", SEEDS)
def test_seeds_are_green(kind: str) -> None:
    failed = [v for v in run_seeds(kind, (), 0, SEEDS[kind], 2) if v["code"] != GREEN]
    told = "\n".join(f"seed {verdict['seed']}: {verdict['text']}" for verdict in failed)
    assert not failed, f"./run simulate --kind {kind} --trace --seed N shows one:\n{told}"


@pytest.mark.parametrize("kind", SEEDS)
def test_a_seed_decides_everything(kind: str) -> None:
    """Run the same seeds in different processes: every trace must be the same."""
    traces = [
        {verdict["seed"]: verdict["trace"] for verdict in run_seeds(kind, (), 200, 8, jobs)}
        for jobs in (1, 3)
    ]
    assert traces[0] == traces[1]


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    mutant = MUTANTS[name]
    found = []
    for verdict in run_seeds(mutant.kind, mutant.edits, 0, mutant.seeds, 2, mutant.focus):
        if verdict["code"] == GREEN:
            continue
        found.append(verdict["checker"])
        if found[-1] in mutant.checkers:
            return
    pytest.fail(f"{mutant.rule}: not caught by {sorted(mutant.checkers)}, but by {sorted(found)}")
