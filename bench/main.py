"""Find a benchmark by its name and run it: `./run bench [NAME ...] [--smoke] [OPTION ...]`.

A benchmark is a module of this folder with `main(smoke: bool = False)`. One that takes options of
its own has `main(smoke: bool = False, arguments: Sequence[str] = ())`; they are passed on when
exactly one benchmark is named. Without a name, all run.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent


def benchmarks() -> dict[str, str]:
    """Give name and first line of the docstring of each benchmark in this folder."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        tree = ast.parse(path.read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if path.name != Path(__file__).name and "main" in names:
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def usage(known: dict[str, str]) -> str:
    """Say what can be run."""
    lines = ["usage: ./run bench [NAME ...] [--smoke] [OPTION ...]", ""]
    lines += [f"  {name:<10} {line}" for name, line in known.items()]
    lines += ["", "Without a NAME all of them run. --smoke: tiny, to see that they work."]
    return "\n".join(lines)


def run(name: str, smoke: bool, arguments: Sequence[str]) -> int:
    """Run one benchmark and give its exit code."""
    module = importlib.import_module(name)
    if arguments and "arguments" not in inspect.signature(module.main).parameters:
        print(f"bench: {name} takes no options, but got: {' '.join(arguments)}", file=sys.stderr)
        return 2
    if arguments:
        return int(module.main(smoke=smoke, arguments=arguments) or 0)
    return int(module.main(smoke=smoke) or 0)


def main(arguments: Sequence[str]) -> int:
    """Run what the command line names; the exit code is the first that is not 0."""
    # The benchmarks start servers and hosts with the same helpers as the tests.
    for folder in (HERE.parent / "tests", HERE):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    known = benchmarks()
    names = []
    rest = list(arguments)
    while rest and not rest[0].startswith("-"):
        names.append(rest.pop(0))
    smoke = "--smoke" in rest
    rest = [argument for argument in rest if argument != "--smoke"]
    if not names and rest in (["-h"], ["--help"]):
        print(usage(known))
        return 0
    unknown = [name for name in names if name not in known]
    if unknown or (rest and len(names) != 1):
        problem = f"no benchmark named {', '.join(unknown)}" if unknown else "options need one NAME"
        print(f"bench: {problem}\n{usage(known)}", file=sys.stderr)
        return 2
    codes = [run(name, smoke, rest) for name in names or known]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
