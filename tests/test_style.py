"""The rules of the code, as tests: tools, sizes, import direction, and files that belong together.

CONTRIBUTING.md says why each rule is there.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimaran._version import VERSION

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = ("core", "ext", "daemons", "bench", "tests")
GENERATED = {"core/wire/etcd_pb2.py", "core/wire/etcd_pb2.pyi"}
LINES_OF_FUNCTION_MAX = 70
LINES_OF_FILE_MAX = 600
COLUMNS_MAX = 100

# What would make a decision depend on something that is not its argument.
IMPURE_MODULES = {
    *("asyncio", "concurrent", "multiprocessing", "queue", "sched", "signal", "threading"),
    *("select", "selectors", "socket", "socketserver", "ssl", "http", "urllib", "subprocess"),
    *("random", "secrets", "time", "uuid", "tempfile", "shutil"),
    *("aiohttp", "click", "dbus_fast", "grpc", "pyroute2", "rich", "uvloop"),
}
# In halves, so that this file does not name what it looks for.
LEFTOVER_MARKS = ("TO", "DO"), ("FIX", "ME"), ("XX", "X")


def sources(*suffixes: str) -> list[Path]:
    """Every source file with one of these endings, generated ones excepted."""
    found = [ROOT / "setup.py"] if ".py" in suffixes else []
    for folder in SOURCE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes and name_of(path) not in GENERATED:
                found.append(path)
    return found


def name_of(path: Path) -> str:
    """A file's path from the project's top."""
    return path.relative_to(ROOT).as_posix()


def tool(*arguments: str) -> None:
    """Run one of the environment's tools and fail with its output."""
    result = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{' '.join(arguments)}:\n{result.stdout}{result.stderr}"


def test_ruff_finds_nothing() -> None:
    tool("ruff", "check", "--quiet")


def test_ruff_would_format_nothing() -> None:
    tool("ruff", "format", "--check", "--quiet")


def test_types_are_strict() -> None:
    tool("mypy")


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    """The name and the length in lines of every function of a Python file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


CYTHON_FUNCTION = re.compile(r"( *)(?:async def|def|cdef|cpdef)\b(?!.*\b(?:class|extern)\b)(.*)\(")


def cython_functions(path: Path) -> Iterator[tuple[str, int]]:
    """The same for Cython, whose functions end where the indentation returns."""
    lines = path.read_text().splitlines()
    for start, line in enumerate(lines):
        match = CYTHON_FUNCTION.match(line)
        if not match:
            continue
        last = start
        for number in range(start + 1, len(lines)):
            text = lines[number]
            indent = len(text) - len(text.lstrip())
            if text.strip() and indent <= len(match[1]) and not text.lstrip().startswith(")"):
                break
            if text.strip():
                last = number
        yield match[2].split()[-1], last - start + 1


def c_functions(path: Path) -> Iterator[tuple[str, int]]:
    """The same for C, where only a function's own braces stand in the first column."""
    signature = start = None
    for number, line in enumerate(path.read_text().splitlines()):
        if start is not None:
            if line.startswith("}"):
                yield signature or "?", number - start + 1
                signature = start = None
        elif re.match(r"[A-Za-z_].*\(", line) and not line.rstrip().endswith(";"):
            signature, begun = line.split("(")[0].split()[-1].lstrip("*"), number
            start = begun if line.rstrip().endswith("{") else None
        elif signature and line.rstrip().endswith("{"):
            start = begun
        elif line.rstrip().endswith((";", "}")):
            signature = None


FUNCTIONS = {
    ".py": python_functions,
    ".pyx": cython_functions,
    ".c": c_functions,
    ".h": c_functions,
}


@pytest.mark.parametrize(
    ("suffix", "text", "expected"),
    [
        (".py", "def a():\n    x = 1\n    return x\n\nasync def b(): ...\n", [("a", 3), ("b", 1)]),
        (".pyx", "cdef int a(\n    int x,\n) nogil:\n    return x\n\n\nb = 1\n", [("a", 4)]),
        (".pyx", "cdef class A:\n    def b(self):\n        pass\n\n    cdef int c\n", [("b", 2)]),
        (".c", "static int a(void) {\n    b();\n}\nint c;\nint d(int x,\n  int y)\n{\n}\n", None),
    ],
)
def test_functions_are_measured(
    tmp_path: Path, suffix: str, text: str, expected: list[tuple[str, int]] | None
) -> None:
    path = tmp_path / f"sample{suffix}"
    path.write_text(text)
    assert list(FUNCTIONS[suffix](path)) == (expected or [("a", 3), ("d", 4)])


def test_no_function_is_too_long() -> None:
    long = [
        f"{name_of(path)}: {name} has {length} lines"
        for path in sources(*FUNCTIONS)
        for name, length in FUNCTIONS[path.suffix](path)
        if length > LINES_OF_FUNCTION_MAX
    ]
    assert not long, "\n".join(long)


def test_no_file_and_no_line_is_too_long() -> None:
    long = []
    for path in sources(".py", ".pyi", ".pyx", ".pxd", ".c", ".h"):
        lines = path.read_text().splitlines()
        if len(lines) > LINES_OF_FILE_MAX:
            long.append(f"{name_of(path)}: {len(lines)} lines")
        long += [
            f"{name_of(path)}:{number}: {len(line)} columns"
            for number, line in enumerate(lines, 1)
            if len(line) > COLUMNS_MAX
        ]
    assert not long, "\n".join(long)


def package_of(path: Path) -> str:
    """The package whose file this is: core/fleet/unit.py is in trimaran.fleet."""
    folder = path.relative_to(ROOT).parent.parts
    return ".".join(["trimaran", *(folder[1:] if folder[0] == "core" else folder)])


def python_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full module name of everything a Python file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package_of(path).split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


CYTHON_IMPORT = re.compile(r"\s*(?:from|c?import)\s+(trimaran[.\w]*)")


def cython_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of the modules of this project that a Cython file imports."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = CYTHON_IMPORT.match(line)
        if match:
            yield number, match[1]


def allowed(layer: str, module: str) -> bool:
    """Whether code of a layer may import a module: daemons -> core -> ext -> errors."""
    if module in ("core", "ext", "daemons") or module.split(".")[0] in ("core", "ext", "daemons"):
        return False  # the source folders are not packages
    if not module.startswith("trimaran.") or layer == "daemons":
        return True
    if layer == "core":
        return not module.startswith("trimaran.daemons")
    return module.startswith(("trimaran.ext", "trimaran.errors"))


def test_imports_point_one_way() -> None:
    wrong = []
    for layer in ("core", "ext", "daemons"):
        for path in sources(".py", ".pyi", ".pyx", ".pxd"):
            if not name_of(path).startswith(f"{layer}/"):
                continue
            reader = python_imports if path.suffix in (".py", ".pyi") else cython_imports
            wrong += [
                f"{name_of(path)}:{line}: {layer} must not import {module}"
                for line, module in reader(path)
                if not allowed(layer, module)
            ]
    assert not wrong, "\n".join(wrong)


def test_core_is_pure() -> None:
    """core/ neither reads a clock nor does input or output; core/client is the one exception."""
    wrong = []
    for path in (ROOT / "core").rglob("*.py"):
        if name_of(path).startswith("core/client/") or name_of(path) in GENERATED:
            continue
        wrong += [
            f"{name_of(path)}:{line}: imports {module}"
            for line, module in python_imports(path)
            if module.split(".")[0] in IMPURE_MODULES and not module.startswith("urllib.parse")
        ]
        wrong += [
            f"{name_of(path)}:{node.lineno}: calls {node.func.id}()"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("open", "print", "input")
        ]
    assert not wrong, "\n".join(wrong)


def test_every_engine_has_its_declarations_and_stub() -> None:
    missing = [
        f"{name_of(path)} has no {suffix}"
        for path in (ROOT / "ext").glob("*.pyx")
        for suffix in (".pxd", ".pyi")
        if not path.with_suffix(suffix).exists()
    ]
    assert not missing, "\n".join(missing)


def test_every_built_engine_has_its_source() -> None:
    """A renamed unit leaves its old library behind, which still imports."""
    stale = [
        name_of(path)
        for path in (ROOT / "ext").glob("*.so")
        if path.name != "libtrimaran.so"
        and not (ROOT / f"ext/{path.name.split('.')[0]}.pyx").exists()
    ]
    assert not stale, f"remove {stale}"


def test_every_global_c_symbol_is_ours() -> None:
    library = ROOT / "ext/libtrimaran.so"
    if not library.exists():
        pytest.skip("ext/libtrimaran.so is not built")
    listing = subprocess.check_output(["nm", "-D", "--defined-only", library], text=True)
    names = [line.split()[-1].split("@")[0] for line in listing.splitlines()]
    foreign = [name for name in names if not name.startswith("trimaran_")]
    assert set(foreign) <= {"_init", "_fini"}, foreign


def test_packages_are_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {
        package_of(path)
        for path in sources(".py")
        if path.name == "__init__.py" and name_of(path).startswith(("core", "ext", "daemons"))
    }
    listed = settings["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(folders)


def test_the_version_is_in_one_place() -> None:
    literal = re.compile(rf"[\"']{re.escape(VERSION)}[\"']")
    files = [*sources(".py", ".pyx", ".c", ".h"), ROOT / "pyproject.toml"]
    holders = [name_of(path) for path in files if literal.search(path.read_text())]
    assert holders == ["core/_version.py"]


def test_the_changelog_is_newest_first() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# ")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    versions = []
    for heading in headings:
        match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+) \((\d{4}-\d\d-\d\d|unreleased)\)", heading)
        assert match, f"'## {heading}' is not '## MAJOR.MINOR.PATCH (DATE or unreleased)'"
        versions.append(tuple(map(int, match.groups()[:3])))
    assert versions == sorted(set(versions), reverse=True)
    assert headings[0].split()[0] == VERSION
    unreleased = [heading for heading in headings if "unreleased" in heading]
    assert unreleased in ([], [headings[0]])


def test_nothing_is_left_to_do_in_the_code() -> None:
    pattern = re.compile(rf"\b({'|'.join(map(''.join, LEFTOVER_MARKS))})\b")
    files = [*sources(".py", ".pyi", ".pyx", ".pxd", ".c", ".h"), ROOT / "run"]
    files += ROOT.glob("*.md")
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)
