"""The engines built for the simulator: gRPC replaced by calls of simulated clients, and, where a
mutant is wanted, a line of the source replaced by a wrong one.

The extension modules find their library by its name, and the loader does not load a second one of
a name that is loaded already: so loading this build before `trimaran.ext` is imported puts it
under all of them.
"""

import ctypes
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build/simulation"
FLAGS = ("-O2", "-g", "-std=gnu11", "-fPIC", "-UNDEBUG", "-Wall", "-Wextra")
INCLUDE = tuple(f"-I{ROOT}/{path}" for path in ("ext/include", "ext/src", "build/generated"))
# Assertions of the engines end the process; the simulator shows what they say.
LIBRARIES = ("-llmdb", "-lz", "-lpthread")


@dataclass(frozen=True)
class Edit:
    """A place of the sources and what a mutant has there instead.

    Attributes:
        path: from the project's top.
        original: text that is there exactly once.
        replacement: what stands there in the mutant.
    """

    path: str
    original: str
    replacement: str

    def applied(self, text: str | None = None) -> str:
        """The file's text, or what other edits have made of it, with the replacement."""
        text = text or (ROOT / self.path).read_text()
        found = text.count(self.original)
        if found != 1:
            raise LookupError(f"{self.path} has {found} times, not once:\n{self.original}")
        return text.replace(self.original, self.replacement)


def sources() -> list[Path]:
    """The C files of the simulator's library."""
    engines = [path for path in (ROOT / "ext/src").glob("*.c") if path.name[:4] != "rpc_"]
    own = [Path(__file__).with_name("calls.c")]
    return sorted([*engines, *own])


def compile_one(source: Path, text: str, name: str) -> Path:
    """Compile a file, unless it has been compiled with the same headers and flags before."""
    digest = sha256(f"{text}{_headers()}{FLAGS}".encode()).hexdigest()[:16]
    target = FOLDER / f"{name}-{digest}.o"
    if not target.exists():
        for old in FOLDER.glob(f"{name}-*.o"):
            old.unlink()
        # From standard input, so that a mutant's text needs no file beside the others.
        temporary = f"{target}.{os.getpid()}"
        # What a mutant leaves unused is no fault.
        quiet = ["-w"] if name.startswith("mutant") else []
        line = [
            "cc",
            *FLAGS,
            *quiet,
            *INCLUDE,
            f"-I{source.parent}",
            "-x",
            "c",
            "-",
            "-c",
            "-o",
            temporary,
        ]
        marked = f'#line 1 "{source}"\n{text}'
        subprocess.run(line, input=marked, text=True, check=True, timeout=300)
        os.replace(temporary, target)
    return target


def _headers() -> str:
    paths = [*(ROOT / "ext").rglob("*.h"), *(ROOT / "build/generated").glob("*.h")]
    return "".join(f"{path}{path.read_text()}" for path in sorted(paths))


def build(edits: Sequence[Edit] = ()) -> Path:
    """Build the library, with a mutant's edits of C files; returns its path."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    changed: dict[Path, str] = {}
    for edit in edits:
        path = ROOT / edit.path
        changed[path] = edit.applied(changed.get(path))
    jobs = []
    for source in sources():
        text = changed.get(source)
        mutant = "" if text is None else f"mutant-{sha256(text.encode()).hexdigest()[:8]}-"
        jobs.append((source, text or source.read_text(), mutant + source.stem))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(path) for path in pool.map(lambda job: compile_one(*job), jobs)]
    name = sha256("".join(objects).encode()).hexdigest()[:16]
    target = FOLDER / name / "libtrimaran.so"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        temporary = f"{target}.{os.getpid()}"
        link = ["cc", "-shared", "-Wl,-soname,libtrimaran.so", *objects, *LIBRARIES]
        subprocess.run([*link, "-o", temporary], check=True, timeout=300)
        os.replace(temporary, target)
    return target


def load(path: Path) -> ctypes.CDLL:
    """Load a build for this process; must come before the first import of the engines."""
    loaded = [name for name in sys.modules if name.startswith("trimaran.ext.")]
    assert not loaded, f"{loaded} came before the simulator's library"
    return ctypes.CDLL(str(path))


def replace_module(edit: Edit) -> None:
    """Have the mutant of a module of core/ in its place; must come before it is imported."""
    name = ".".join(["trimaran", *Path(edit.path).with_suffix("").parts[1:]])
    assert name not in sys.modules, f"{name} is imported already"
    parent, _, child = name.rpartition(".")
    module = types.ModuleType(name)
    module.__file__ = str(ROOT / edit.path)
    sys.modules[name] = module
    setattr(importlib.import_module(parent), child, module)
    exec(compile(edit.applied(), module.__file__, "exec"), module.__dict__)
