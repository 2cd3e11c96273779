"""The engines built for the simulator: gRPC replaced by calls of simulated clients, and, where a
mutant is wanted, a line of the source replaced by a wrong one.

The extension modules find their library by its name, and the loader does not load a second one of
a name that is loaded already: so loading this build before `trimaran.ext` is imported puts it
under all of them.
"""

import ctypes
import os
import subprocess
import sys
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

    def applied(self) -> str:
        """The file's text with the replacement."""
        text = (ROOT / self.path).read_text()
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
        line = ["cc", *FLAGS, *INCLUDE, f"-I{source.parent}", "-x", "c", "-", "-c", "-o", temporary]
        marked = f'#line 1 "{source}"\n{text}'
        subprocess.run(line, input=marked, text=True, check=True, timeout=300)
        os.replace(temporary, target)
    return target


def _headers() -> str:
    paths = [*(ROOT / "ext").rglob("*.h"), *(ROOT / "build/generated").glob("*.h")]
    return "".join(f"{path}{path.read_text()}" for path in sorted(paths))


def build(edits: Sequence[Edit] = ()) -> Path:
    """Build the library, with the edits of a mutant; returns its path."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    changed = {ROOT / edit.path: edit.applied() for edit in edits}
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
