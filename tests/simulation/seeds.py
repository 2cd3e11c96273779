"""Runs one seed after the other and tells of each in one line of JSON: the work of one process."""

import json
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from checkers.history import Violation
from simulation import library
from simulation.calls import CallLibrary
from simulation.library import Edit
from simulation.options import draw
from simulation.world import World

GREEN, CRASH, LIVENESS, SAFETY = 0, 127, 128, 129
KINDS = ("store", "raft")


class Runner:
    """Runs seeds of one kind in this process, which must not have loaded the engines yet.

    Args:
        kind: one of KINDS.
        edits: of a mutant.
        focus: options that are not drawn.
    """

    def __init__(
        self, kind: str, edits: Sequence[Edit] = (), focus: Mapping[str, Any] | None = None
    ) -> None:
        self.kind = kind
        self._focus = focus or {}
        built = library.build([edit for edit in edits if edit.path.endswith(".c")])
        self._library = CallLibrary(library.load(built))
        for edit in edits:
            if edit.path.endswith(".py"):
                library.replace_module(edit)

    def run(self, seed: int, show: bool = False) -> World:
        """Run one seed; raises `Violation`, or whatever else goes wrong."""
        # Not before the library is loaded.
        options = replace(draw(seed), **self._focus)
        if self.kind == "raft":
            from simulation import raft_cluster

            return raft_cluster.run(options, show)
        from simulation import store_cluster

        return store_cluster.run(options, self._library, show)

    def verdict(self, seed: int, show: bool = False) -> dict[str, Any]:
        """Run one seed and say what came of it."""
        begun = time.monotonic()
        try:
            world = self.run(seed, show)
        except Violation as violation:
            code = LIVENESS if violation.checker == "liveness" else SAFETY
            return {
                "seed": seed,
                "code": code,
                "checker": violation.checker,
                "text": str(violation),
            }
        except Exception:
            return {"seed": seed, "code": CRASH, "checker": "crash", "text": traceback.format_exc()}
        return {
            "seed": seed,
            "code": GREEN,
            "trace": world.trace,
            "counts": dict(world.counts),
            "simulated_s": world.now_us / 1e6,
            "seconds": time.monotonic() - begun,
        }


def main() -> None:
    """Run what the command line tells in JSON; write a line before and after each seed."""
    work = json.loads(sys.argv[1])
    runner = Runner(work["kind"], [Edit(*edit) for edit in work["edits"]], work["focus"])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    for seed in range(*work["seeds"]):
        out.write(json.dumps({"begin": seed}) + "\n")
        out.write(json.dumps(runner.verdict(seed)) + "\n")


if __name__ == "__main__":
    main()
