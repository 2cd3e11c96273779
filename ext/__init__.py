"""The compiled engines, and what a C program needs to build against them."""

from pathlib import Path


def get_include() -> str:
    """Return the folder that holds `trimaran/*.h`, for a compiler's -I."""
    return str(Path(__file__).parent / "include")


def get_library() -> str:
    """Return the path of `libtrimaran.so`, for linking a C program against the engines."""
    return str(Path(__file__).parent / "libtrimaran.so")
