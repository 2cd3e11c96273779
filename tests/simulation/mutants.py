"""Deliberately broken variants, each of which a named checker has to catch."""

from dataclasses import dataclass

from simulation.library import Edit


@dataclass(frozen=True)
class Mutant:
    """One breach of a rule.

    Attributes:
        rule: what it breaks.
        edits: how.
        checkers: at least one of these has to notice, in a bounded number of seeds.
        kind: of the seeds.
        seeds: how many to try at most.
    """

    rule: str
    edits: tuple[Edit, ...]
    checkers: frozenset[str]
    kind: str = "store"
    seeds: int = 300


MUTANTS: dict[str, Mutant] = {}
