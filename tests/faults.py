"""Run faults on clusters of real processes, many times, and print a table.

    .venv/bin/python tests/faults.py --rounds 10 --scenario all [--kind trimaran] [--seed N]
    .venv/bin/python tests/faults.py --rounds 10 --scenario failpoints everywhere

Needs root. The scenarios are those of store_scenarios.py ("all"), and those of store_failpoints.py
with one member killed at a failpoint ("failpoints") or all of them ("everywhere"); each also by its
own name. A violation ends the cluster, whose folder with logs and histories is then kept.

"back" is the time from the moment where a majority could serve to the first write that was asked
for after it and acknowledged; "silent" the longest time without any acknowledged write.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import store_failpoints
from store_cluster import Cluster, why_not
from store_scenarios import SCENARIOS, Result, run

SIZE = {"majority-ring": 5}


def run_rounds(name: str, options: argparse.Namespace) -> tuple[list[Result], list[str]]:
    """Run a scenario several times on one cluster, on a new one after a failure."""
    results: list[Result] = []
    failures: list[str] = []
    cluster: Cluster | None = None
    try:
        for number in range(options.rounds):
            if cluster is None:
                flags = () if name in SCENARIOS else store_failpoints.FLAGS
                size = options.size or SIZE.get(name, 3)
                cluster = Cluster(options.kind, size, arguments=flags)
                cluster.start()
            seed = options.seed + number
            try:
                run_it = run if name in SCENARIOS else store_failpoints.run
                results += run_it(cluster, [name], f"{name}-{number}/", seed)
            except Exception:
                kept = Path(tempfile.mkdtemp(prefix=f"trimaran-faults-kept-{name}-"))
                shutil.copytree(cluster.folder, kept, dirs_exist_ok=True)
                text = f"{name}, seed {seed}, kept in {kept}:\n{traceback.format_exc(limit=-3)}"
                print(text, flush=True)
                failures.append(text)
                cluster.close()
                cluster = None
            else:
                print(line_of(results[-1:]), flush=True)
    finally:
        if cluster is not None:
            cluster.close()
    return results, failures


HEADINGS = (
    f"{'scenario':<33} {'rounds':>6} {'back, median s':>14} {'worst s':>8} {'silent s':>8} "
    f"{'elections':>9} {'operations':>10} {'unanswered':>10} {'seconds':>8}"
)


def notes_of(results: list[Result]) -> str:
    """What the rounds have to tell, each thing once and how often."""
    counts = Counter(f"{name}: {note}" for r in results for name, note in r.notes.items())
    return "".join(f"  {note} ({count})" for note, count in counts.items())


def line_of(results: list[Result]) -> str:
    """One line of the table."""
    back = [result.back_s for result in results]
    return (
        f"{results[0].name:<33} {len(results):>6} {statistics.median(back):>14.2f} "
        f"{max(back):>8.2f} {max(r.counts['longest_silence_s'] for r in results):>8.2f} "
        f"{sum(result.elections for result in results):>9} "
        f"{sum(result.counts['answered'] for result in results):>10} "
        f"{sum(result.counts['unanswered_writes'] for result in results):>10} "
        f"{sum(result.seconds for result in results):>8.1f}"
        f"{notes_of(results)}"
    )


def main() -> int:
    """Run what the command line asks for; the exit code is 1 where anything failed."""
    parser = argparse.ArgumentParser(description="faults on clusters of real processes")
    parser.add_argument("--kind", default="trimaran", help="3.4 3.5 trimaran")
    families = {
        "all": list(SCENARIOS),
        "failpoints": list(store_failpoints.PLACES),
        "everywhere": list(store_failpoints.EVERYWHERE),
    }
    choices = [*families, *(name for names in families.values() for name in names)]
    parser.add_argument("--scenario", nargs="+", default=["all"], choices=choices)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--size", type=int, default=0, help="members; by default 3, a ring has 5")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    reason = why_not(options.kind)
    if reason:
        print(f"faults: {reason}", file=sys.stderr)
        return 1
    names = [name for asked in options.scenario for name in families.get(asked, [asked])]
    print(HEADINGS, flush=True)
    table = []
    failures = []
    for name in names:
        results, failed = run_rounds(name, options)
        failures += failed
        if results:
            table.append(results)
    print(f"\n{options.kind}\n{HEADINGS}")
    for results in table:
        print(line_of(results))
    worst = {results[0].name: round(max(r.back_s for r in results), 3) for results in table}
    print(json.dumps({"kind": options.kind, "failures": len(failures), "back_s": worst}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
