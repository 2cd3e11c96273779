"""The C interface as others use it: C programs, a C extension, and the tables through cffi."""

import ctypes
import errno
import importlib.util
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import cffi
import pytest

import trimaran.ext
from trimaran.ext import capi

HERE = Path(__file__).parent / "c"
INCLUDE = Path(trimaran.ext.get_include())
HEADERS = sorted(INCLUDE.glob("trimaran/*.h"))
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def compile_program(source: Path, target: Path) -> None:
    library = Path(trimaran.ext.get_library())
    command = ["cc", "-std=c11", "-D_GNU_SOURCE", *WARNINGS, f"-I{INCLUDE}", str(source)]
    subprocess.run(
        [*command, str(library), f"-Wl,-rpath,{library.parent}", "-o", str(target)],
        check=True,
        timeout=120,
    )


@needs_compiler
@pytest.mark.parametrize(
    ("name", "arguments", "output"),
    [
        ("raftlog", ["log"], "read 1000 entries of 8893 bytes\n"),
        ("watchindex", [], r"2 watches in \d+ bytes\n"),
        ("encap", [], "5 segments\n"),
    ],
)
def test_c_program(tmp_path: Path, name: str, arguments: list[str], output: str) -> None:
    compile_program(HERE / f"{name}.c", tmp_path / name)
    result = subprocess.run(
        [tmp_path / name, *arguments],
        cwd=tmp_path,
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(output, result.stdout)


@needs_compiler
@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
@pytest.mark.parametrize("language", ["c", "c++"])
def test_each_header_stands_alone(header: Path, language: str) -> None:
    if language == "c++" and shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    standard = "-std=c11" if language == "c" else "-std=c++17"
    subprocess.run(
        ["cc", "-x", language, standard, *WARNINGS, "-fsyntax-only", f"-I{INCLUDE}", str(header)],
        check=True,
        timeout=120,
    )


@needs_compiler
def test_c_extension_through_the_capsules(tmp_path: Path) -> None:
    include = sysconfig.get_path("include")
    if not (Path(include) / "Python.h").exists():
        pytest.skip("there is no Python.h")
    target = tmp_path / f"extension{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = ["cc", "-shared", "-fPIC", f"-I{INCLUDE}", f"-I{include}", "-Wall", "-Werror"]
    subprocess.run(
        [*command, str(HERE / "extension.c"), "-o", str(target)], check=True, timeout=120
    )
    spec = importlib.util.spec_from_file_location("extension", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.sizes() == 0


def declarations(name: str) -> str:
    """A header's declarations, without what only the preprocessor understands."""
    text = (INCLUDE / "trimaran" / f"{name}.h").read_text()
    text = re.sub(r"#ifdef (__cplusplus|Py_PYTHON_H)\n.*?#endif\n", "", text, flags=re.S)
    return re.sub(r"^#.*$", "", text, flags=re.M)


@pytest.fixture(scope="module")
def ffi() -> cffi.FFI:
    ffi = cffi.FFI()
    for name in ("raftlog", "watchindex", "encap", "api"):
        ffi.cdef(declarations(name))
    return ffi


def table(ffi: cffi.FFI, name: str) -> Any:
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = get_pointer(getattr(capi, name), f"trimaran.ext.capi.{name}".encode())
    found = ffi.cast(f"const trimaran_{name}_api *", address)
    assert found.abi_version == 1
    assert found.size == ffi.sizeof(found[0])
    return found


@pytest.mark.parametrize("name", ["raftlog", "watchindex", "encap"])
def test_each_table_is_full(ffi: cffi.FFI, name: str) -> None:
    found = table(ffi, name)
    functions = [field for field, _ in ffi.typeof(found[0]).fields][2:]
    assert functions
    for function in functions:
        assert getattr(found, function) != ffi.NULL, function
    # Whatever a header declares is in its table.
    public = set(re.findall(rf"\btrimaran_{name}_(\w+)\(", declarations(name)))
    assert public == set(functions)


def test_raftlog_table(ffi: cffi.FFI, tmp_path: Path) -> None:
    log = table(ffi, "raftlog")
    handle = ffi.new("trimaran_raftlog **")
    path = str(tmp_path / "log").encode()
    assert log.open(str(tmp_path / "no" / "log").encode(), ffi.NULL, handle) == -errno.ENOENT
    assert b"cannot create" in ffi.string(log.open_error())
    options = ffi.new("trimaran_raftlog_options *", {"journal_size_bytes": 64 << 10})
    options.struct_size = ffi.sizeof(options[0])
    assert log.open(path, options, handle) == 0
    data = ffi.new("uint8_t[]", b"hello")
    entry = ffi.new("trimaran_entry *", {"index": 1, "term": 5, "size": 5, "data": data})
    state = ffi.new("trimaran_hard_state *", {"term": 5, "vote": 9, "commit": 1})
    assert log.append(handle[0], state, entry, 1) == 0
    assert log.append(handle[0], ffi.NULL, entry, 1) == -errno.EINVAL
    seen = []

    @ffi.callback("int(void *, const trimaran_entry *)")
    def visit(_context: object, found: Any) -> int:
        seen.append((found.index, found.term, bytes(ffi.buffer(found.data, found.size))))
        return 0

    assert log.read(handle[0], 1, 1, 100, visit, ffi.NULL) == 0
    assert seen == [(1, 5, b"hello")]
    assert (log.first_index(handle[0]), log.last_index(handle[0])) == (1, 1)
    term = ffi.new("uint64_t *")
    assert log.term(handle[0], 1, term) == 0
    assert term[0] == 5
    log.hard_state(handle[0], state)
    assert state.vote == 9
    assert log.settle(handle[0]) == 0
    assert log.compact(handle[0], 1) == 0
    status = ffi.new("trimaran_raftlog_status *")
    log.status_get(handle[0], status)
    assert status.appends == 1
    assert log.close(handle[0]) == 0


def test_watchindex_table(ffi: cffi.FFI) -> None:
    watches = table(ffi, "watchindex")
    handle = ffi.new("trimaran_watchindex **")
    made = ffi.new("trimaran_watch **")
    assert watches.create(7, handle) == 0
    watcher = ffi.new_handle("watcher")
    assert watches.insert(handle[0], b"a", 1, b"b", 1, watcher, made) == 0
    seen = []

    @ffi.callback("int(void *, void *)")
    def visit(_context: object, found: Any) -> int:
        seen.append(ffi.from_handle(found))
        return 3

    assert watches.match(handle[0], b"az", 2, visit, ffi.NULL) == 3
    assert seen == ["watcher"]
    assert watches.count(handle[0]) == 1
    assert watches.bytes(handle[0]) > 0
    watches.remove(handle[0], made[0])
    assert watches.match(handle[0], b"az", 2, visit, ffi.NULL) == 0
    watches.destroy(handle[0])


def test_encap_table(ffi: cffi.FFI) -> None:
    encap = table(ffi, "encap")
    # RFC 1071 section 3: the example's sum is ddf2.
    data = ffi.new("uint8_t[]", bytes.fromhex("0001f203f4f5f6f7"))
    folded = encap.fold(encap.sum(data, 8, 0))
    assert folded.to_bytes(2, "little") == bytes.fromhex("220d")
    parsed = ffi.new("trimaran_encap_packet *")
    assert encap.parse(data, 8, parsed) == -errno.EPFNOSUPPORT
