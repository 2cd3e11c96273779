"""`./run simulate`: runs seeds on several processes and sums up what happened."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulation import library
from simulation.library import Edit
from simulation.mutants import MUTANTS
from simulation.options import draw
from simulation.seeds import CRASH, GREEN, KINDS, LIVENESS, SAFETY, Runner

TESTS = Path(__file__).resolve().parents[1]
FAILURES_SHOWN = 10


class Worker:
    """A process that runs every step-th seed; started again after a seed that ends it."""

    def __init__(
        self, kind: str, edits: Sequence[Edit], focus: Mapping[str, Any], seeds: range
    ) -> None:
        self._kind, self._edits, self._focus, self._seeds = kind, edits, focus, seeds
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def start(self) -> None:
        """Start, with the seeds that are left."""
        work = {
            "kind": self._kind,
            "edits": [[edit.path, edit.original, edit.replacement] for edit in self._edits],
            "focus": dict(self._focus),
            "seeds": [self._seeds.start, self._seeds.stop, self._seeds.step],
        }
        environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "simulation.seeds", json.dumps(work)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self._stopped:
            self._process.kill()

    def stop(self) -> None:
        """End at once."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def verdicts(self) -> Iterator[dict[str, Any]]:
        """Give the verdict of each seed."""
        while len(self._seeds) and not self._stopped:
            self.start()
            assert self._process is not None
            assert self._process.stdout is not None
            running: int | None = None
            for line in self._process.stdout:
                told = json.loads(line)
                running = told.get("begin")
                if running is None:
                    self._seeds = self._seeds[1:]
                    yield told
            _, errors = self._process.communicate()
            if running is None and len(self._seeds) and not self._stopped:
                raise RuntimeError(f"the simulator cannot start:\n{errors}")
            if running is not None and not self._stopped:
                self._seeds = self._seeds[1:]
                code = self._process.returncode
                name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                text = f"the process ended with {name}:\n{errors[-3000:]}"
                # The engines end the process where an invariant of theirs does not hold.
                checker = "assertion" if name == "SIGABRT" else "crash"
                yield {"seed": running, "code": CRASH, "checker": checker, "text": text}


def run_seeds(
    kind: str,
    edits: Sequence[Edit],
    first: int,
    count: int,
    jobs: int,
    focus: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run seeds on several processes; gives verdicts in no certain order."""
    import queue
    import threading

    library.build([edit for edit in edits if edit.path.endswith(".c")])
    jobs = max(1, min(jobs, count))
    workers = [
        Worker(kind, edits, focus or {}, range(first + n, first + count, jobs)) for n in range(jobs)
    ]
    verdicts: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()

    def work(worker: Worker) -> None:
        try:
            for verdict in worker.verdicts():
                verdicts.put(verdict)
        except BaseException as error:
            verdicts.put(error)
        verdicts.put(None)

    for worker in workers:
        threading.Thread(target=work, args=(worker,), daemon=True).start()
    try:
        while jobs:
            verdict = verdicts.get()
            if isinstance(verdict, BaseException):
                raise verdict
            if verdict is None:
                jobs -= 1
            else:
                yield verdict
    finally:
        for worker in workers:
            worker.stop()


class Summary:
    """What a run of many seeds has come to."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.done = 0
        self.counts: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.simulated_s = 0.0
        self.begun = time.monotonic()
        self._shown = 0.0

    def add(self, verdict: dict[str, Any]) -> None:
        """Take a seed's verdict."""
        self.done += 1
        if verdict["code"] == GREEN:
            self.counts.update(verdict["counts"])
            self.simulated_s += verdict["simulated_s"]
        else:
            self.failures.append(verdict)
            if len(self.failures) <= FAILURES_SHOWN:
                print(f"seed {verdict['seed']}: {verdict['text']}", flush=True)
        now = time.monotonic()
        if now - self._shown > 10:
            self._shown = now
            rate = self.done / (now - self.begun)
            print(
                f"{self.done}/{self.count} seeds, {len(self.failures)} failed, {rate:.1f}/s",
                file=sys.stderr,
                flush=True,
            )

    def show(self) -> None:
        """Print everything."""
        seconds = time.monotonic() - self.begun
        for name, count in sorted(self.counts.items()):
            print(f"  {count:>12,}  {name}")
        print(
            f"{self.done} seeds in {seconds:.0f} s ({seconds / max(1, self.done):.2f} s each), "
            f"{self.simulated_s / 3600:.1f} simulated hours; {len(self.failures)} failed"
        )
        by_checker = Counter(failure["checker"] for failure in self.failures)
        for checker, count in by_checker.most_common():
            seeds = [f["seed"] for f in self.failures if f["checker"] == checker]
            print(f"  {count} by '{checker}': seeds {sorted(seeds)[:20]}")

    @property
    def code(self) -> int:
        """The exit code: the worst of all."""
        codes = {failure["code"] for failure in self.failures}
        return next((code for code in (SAFETY, CRASH, LIVENESS) if code in codes), GREEN)


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(
        prog="./run simulate",
        description="Run whole clusters on a fake network, disk and clock, each from one seed.",
        epilog=f"Exit codes: {CRASH} a crash, {LIVENESS} no progress after the faults had ended, "
        f"{SAFETY} a promise broken, {GREEN} none of these.",
    )
    parser.add_argument("--seeds", type=int, default=100, help="how many [100]")
    parser.add_argument("--seed", type=int, default=0, help="the first [0]")
    parser.add_argument(
        "--kind", choices=KINDS, default="store", help="whole members, or raft alone"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="a deliberately broken build")
    parser.add_argument("--trace", action="store_true", help="run --seed alone and tell everything")
    options = parser.parse_args()
    mutant = MUTANTS.get(options.mutant)
    edits, focus = (mutant.edits, mutant.focus) if mutant else ((), {})
    if mutant:
        options.kind = mutant.kind
    if options.trace:
        print(f"seed {options.seed}: {draw(options.seed)}")
        verdict = Runner(options.kind, edits, focus).verdict(options.seed, show=True)
        print(json.dumps(verdict, indent=2) if verdict["code"] == GREEN else verdict["text"])
        return int(verdict["code"])
    print(f"seeds {options.seed} to {options.seed + options.seeds - 1} of kind {options.kind}")
    summary = Summary(options.seeds)
    first, count = options.seed, options.seeds
    for verdict in run_seeds(options.kind, edits, first, count, options.jobs, focus):
        summary.add(verdict)
    for failure in summary.failures[:FAILURES_SHOWN]:
        print(f"seed {failure['seed']}: {draw(failure['seed'])}")
    summary.show()
    return summary.code


if __name__ == "__main__":
    sys.exit(main())
