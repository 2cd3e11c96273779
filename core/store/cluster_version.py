"""The version that all members of a cluster speak, for upgrades one member at a time.

Each member writes the version of its program into a row of its own when it starts. The leader sets
the cluster's version to the lowest of them, without the patch level, once all are known; it only
grows. What a later version adds to the log may be written only when the cluster has that version,
and a member whose program is older than the cluster's version must not run.
"""

from collections.abc import Collection, Mapping
from typing import Final

from trimaran.store.configuration import Row

CLUSTER_KEY: Final = b"cluster/version"
MEMBER_PREFIX: Final = b"cluster/member-version/"


def parse(text: str) -> tuple[int, int, int]:
    """Read "3.6.1"; (0, 0, 0) for what is no version."""
    parts = text.split(".")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        return 0, 0, 0
    return int(parts[0]), int(parts[1]), int(parts[2])


def member_row(member: int, version: str) -> Row:
    """The row by which a member tells its version."""
    return MEMBER_PREFIX + b"%016x" % member, version.encode()


def told_version(rows: Mapping[bytes, bytes], member: int) -> str:
    """The version that a member has told, "" where it has not."""
    return rows.get(MEMBER_PREFIX + b"%016x" % member, b"").decode(errors="replace")


def cluster_version(rows: Mapping[bytes, bytes]) -> str:
    """The cluster's version, "" where none is decided."""
    return rows.get(CLUSTER_KEY, b"").decode(errors="replace")


def decide(rows: Mapping[bytes, bytes], members: Collection[int]) -> str | None:
    """Decide on a new version of the cluster.

    Args:
        rows: those whose keys start with `cluster/`.
        members: ids of all members.

    Returns:
        the version to be written, None where it shall stay.
    """
    told = [parse(told_version(rows, member)) for member in members]
    if not told or (0, 0, 0) in told:
        return None
    lowest = min(told)
    if lowest[:2] <= parse(cluster_version(rows))[:2]:
        return None
    return f"{lowest[0]}.{lowest[1]}.0"


def is_too_old(version: str, rows: Mapping[bytes, bytes]) -> bool:
    """Tell whether a program of this version is older than the cluster."""
    return parse(version)[:2] < parse(cluster_version(rows))[:2]
