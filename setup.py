"""Build of the compiled engines: one shared C library, and one thin Cython unit an engine.

`ext/src/*.c` become `ext/libtrimaran.so`, which every Cython unit links and C programs may link
too; so each engine is compiled once and has one copy in the process.
"""

import importlib.util
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

os.chdir(Path(__file__).parent)
CFLAGS = ["-O3", "-g", "-std=gnu11", "-fPIC", "-UNDEBUG", "-Wall", "-Wextra", "-Werror=implicit"]
CFLAGS += ["-fno-semantic-interposition", "-Iext/include", "-Iext/src", "-Ibuild/generated"]
CFLAGS += os.environ.get("TRIMARAN_CFLAGS", "").split()
LIBRARIES = ["-llmdb", "-lnghttp2", "-lz", "-lpthread"]


def mirror_package() -> str:
    """Link core/, ext/ and daemons/ into build/tree as the package they install as.

    Cython and mypy find files by package path, which the source folders do not have.
    """
    package = Path("build/tree/trimaran")
    package.mkdir(parents=True, exist_ok=True)
    for link in package.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink()
    for source in [*Path("core").iterdir(), Path("ext"), Path("daemons")]:
        link = package / source.name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(source, package))
    return str(package.parent)


def write_error_table() -> None:
    """Write core/errors.py's table of etcd errors as the header the C engines include."""
    spec = importlib.util.spec_from_file_location("errors", "core/errors.py")
    assert spec is not None
    assert spec.loader is not None
    errors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(errors)
    rows = [
        f'    X({name}, {int(code)}, "{text}") \\\n'
        for name, (code, text) in errors.ETCD_ERRORS.items()
    ]
    write_if_changed(
        Path("build/generated/etcd_errors.h"),
        "/* Written by setup.py from core/errors.py. */\n#define TRIMARAN_ETCD_ERRORS(X) \\\n"
        + "".join(rows)
        + "    /* end */\n",
    )


def write_if_changed(path: Path, text: str) -> None:
    """Keep the time stamp of an unchanged file, so that nothing is compiled again for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def generate_messages() -> None:
    """Compile core/wire/etcd.proto to its Python module and stub, where it is older."""
    source, target = Path("core/wire/etcd.proto"), Path("core/wire/etcd_pb2.py")
    if not source.exists() or (target.exists() and newer(target, source)):
        return
    from grpc_tools import protoc

    package = "build/tree"
    arguments = ["protoc", f"-I{package}", f"--python_out={package}", f"--pyi_out={package}"]
    if protoc.main([*arguments, f"{package}/trimaran/wire/etcd.proto"]) != 0:
        raise SystemExit("core/wire/etcd.proto does not compile")


def newer(target: Path, *sources: Path) -> bool:
    """Tell whether target is at least as new as every source."""
    return all(target.stat().st_mtime >= source.stat().st_mtime for source in sources)


def build_library(target: Path) -> None:
    """Compile what changed in ext/src and link libtrimaran.so at target."""
    headers = [*Path("ext").rglob("*.h"), *Path("build/generated").glob("*.h"), Path("setup.py")]
    objects = Path("build/objects")
    objects.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> Path:
        output = objects / f"{source.stem}.o"
        if not (output.exists() and newer(output, source, *headers)):
            subprocess.check_call(["cc", *CFLAGS, "-c", str(source), "-o", str(output)])
        return output

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(compile_one, sorted(Path("ext/src").glob("*.c"))))
    if not (target.exists() and newer(target, *compiled)):
        target.parent.mkdir(parents=True, exist_ok=True)
        link = ["cc", "-shared", "-Wl,-soname,libtrimaran.so", *map(str, compiled)]
        temporary = f"{target}.new"
        subprocess.check_call([*link, *LIBRARIES, "-o", temporary])
        os.replace(temporary, target)


class BuildMessages(build_py):  # type: ignore[misc]
    """build_py finds the generated module only if it is there before the files are listed."""

    def run(self) -> None:
        mirror_package()
        generate_messages()
        super().run()


class BuildEngines(build_ext):  # type: ignore[misc]
    """Builds the C library first, beside the units, where each finds it by $ORIGIN."""

    def run(self) -> None:
        mirror_package()
        generate_messages()
        folder = Path("ext") if self.inplace else Path(self.build_lib) / "trimaran/ext"
        build_library(folder / "libtrimaran.so")
        for unit in self.extensions:
            unit.extra_link_args = [f"-L{folder}", "-ltrimaran", "-Wl,-rpath,$ORIGIN"]
        super().run()
        if getattr(self, "editable_mode", False):
            build_library(Path("ext/libtrimaran.so"))


def units() -> list[Extension]:
    """One extension for each ext/*.pyx."""
    return [
        Extension(
            f"trimaran.ext.{path.stem}",
            [str(path)],
            include_dirs=["ext/include", "ext/src", "build/generated"],
            extra_compile_args=["-O3", "-UNDEBUG", "-Wno-unreachable-code"],
            depends=[str(header) for header in Path("ext").rglob("*.h")],
        )
        for path in sorted(Path("ext").glob("*.pyx"))
    ]


write_error_table()
setup(
    cmdclass={"build_ext": BuildEngines, "build_py": BuildMessages},
    ext_modules=cythonize(
        units(),
        include_path=[mirror_package()],
        build_dir="build/cython",
        compiler_directives={"language_level": 3, "binding": True},
    ),
)
