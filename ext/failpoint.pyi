"""Named places at which a test can kill the process; the table is in src/failpoint.h."""

def names() -> dict[str, str]:
    """Return where each place is, by its name."""

def hit(name: str) -> None:
    """Pass a place: kills the process where TRIMARAN_FAILPOINT arms it.

    Raises:
        KeyError: the table has no such name.
    """
