"""The data directory of a store member: its layout, and who it belongs to."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trimaran.errors import ConfigError, CorruptionError
from trimaran.store.identity import identify
from trimaran.store.membership import founding_entry, founding_members
from trimaran.store.options import StoreOptions
from trimaran.wire import etcd_pb2 as pb

FORMAT = 2
_FORMATS_READ = (1, 2)
_FILE = "member.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who wrote a data directory; it stays so, whatever the flags say later.

    Attributes:
        format: of the file.
        name: the member's at its first start.
        member_id, cluster_id: as derived, or as the cluster told that it joined.
        peer_urls: the member's at its first start.
        boots: how many times it has been started; tells one life of the member from the next.
        founders: the cluster's first members, each with id, name and peer_urls; empty for a
            member that joined a running cluster.
        peers: members of the cluster that this one joined, as they were then; like founders.
        removed: the cluster has removed this member; it never returns.
    """

    format: int
    name: str
    member_id: int
    cluster_id: int
    peer_urls: list[str]
    boots: int = 0
    founders: list[dict[str, Any]] = field(default_factory=list)
    peers: list[dict[str, Any]] = field(default_factory=list)
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Founding:
    """What a new directory is begun with, where the flags alone do not tell.

    Attributes:
        member_id, cluster_id: of the member and its cluster.
        founders: the first members, on each of them alike; empty to join a running cluster.
        peers: the members of that.
    """

    member_id: int
    cluster_id: int
    founders: tuple[pb.Member, ...] = ()
    peers: tuple[pb.Member, ...] = ()


def founding_of(
    options: StoreOptions, cluster: Mapping[str, Sequence[str]] | None = None, named: bool = True
) -> Founding:
    """Derive who founds a new cluster.

    Args:
        options: of this member.
        cluster: peer URLs by name; those of --initial-cluster where it is None.
        named: whether all members know each other by these names.
    """
    cluster = options.initial_cluster if cluster is None else cluster
    token = options.initial_cluster_token
    founders = founding_members(cluster, token)
    if not named:
        for member in founders:
            member.name = ""
    return Founding(*identify(options.name, cluster, token), tuple(founders))


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """An opened data directory.

    Attributes:
        log: folder of the raft log.
        state: folder of the state store.
        identity: the member it belongs to.
        bootstrap: the log's first entry, for a log that is empty; None for a member that gets its
            log from a running cluster.
    """

    log: Path
    state: Path
    identity: Identity
    bootstrap: bytes | None

    @property
    def incarnation(self) -> int:
        """The number of this life of the member, from 1."""
        return self.identity.boots

    @property
    def known(self) -> dict[int, tuple[str, ...]]:
        """Peer URLs by id of the first members seen, for as long as the log does not tell."""
        members = [*self.identity.founders, *self.identity.peers]
        return {member["id"]: tuple(member["peer_urls"]) for member in members}


def _flush_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _make_root(root: Path) -> None:
    """Make the directory and those above it, so that none is gone after a power cut."""
    missing = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        _flush_folder(path.parent)


def _write_identity(path: Path, identity: Identity) -> None:
    """Write the file whole or not at all: a torn one would lock the data out."""
    temporary = path.with_suffix(".new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(asdict(identity), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _flush_folder(path.parent)


def _are_urls(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(url, str) for url in value)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**64


def _is_member(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"id", "name", "peer_urls"}
        and _is_id(value["id"])
        and isinstance(value["name"], str)
        and _are_urls(value["peer_urls"])
    )


def _check_types(identity: Identity) -> None:
    if not _is_id(identity.member_id) or not _is_id(identity.cluster_id):
        raise ValueError("an id is no number of 64 bits")
    if not isinstance(identity.name, str) or not _are_urls(identity.peer_urls):
        raise ValueError("the name or a peer URL is no text")
    if type(identity.boots) is not int or not 0 <= identity.boots < 2**63:
        raise ValueError("the number of starts is none")
    for members in (identity.founders, identity.peers):
        if not isinstance(members, list) or not all(map(_is_member, members)):
            raise ValueError("a member has no id, name and peer URLs")
    if type(identity.removed) is not bool:
        raise ValueError("removed is neither true nor false")


def _read_identity(path: Path) -> Identity:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
        if type(found) is not int:
            raise ValueError("the format is no number")
        if found not in _FORMATS_READ:
            raise ConfigError(
                f"{path} is of format {found}, this version reads up to {FORMAT}: "
                "run the version that wrote it"
            )
        identity = Identity(**content)
        _check_types(identity)
        if found == 1:
            # The first version had clusters of one member only, and no other fields.
            identity = replace(
                identity,
                format=FORMAT,
                boots=0,
                founders=[_member(identity.member_id, identity.name, identity.peer_urls)],
                peers=[],
                removed=False,
            )
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptionError(f"{path} cannot be read: {error}; restore the directory") from None
    return identity


def _has_files(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _refuse_foreign(root: Path) -> None:
    if (root / _FILE).exists():
        return
    if (root / "member").exists():
        raise ConfigError(
            f"--data-dir {root} holds data of etcd itself, which has another format: "
            "give an empty directory"
        )
    if any(_has_files(root / folder) for folder in ("log", "state")):
        raise ConfigError(
            f"--data-dir {root} has files in log/ or state/ but no {_FILE}: "
            "restore it, or give an empty directory"
        )


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Let no other process read and rewrite the file at the same time."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turn an error of the system into one that names the flag."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot use --data-dir {root}: {error.strerror or error}") from None


def _member(member: int, name: str, peer_urls: Iterable[str]) -> dict[str, Any]:
    return {"id": member, "name": name, "peer_urls": sorted(peer_urls)}


def _first_identity(options: StoreOptions, founding: Founding | None) -> Identity:
    founding = founding or founding_of(options)
    return Identity(
        FORMAT,
        options.name,
        founding.member_id,
        founding.cluster_id,
        sorted(options.initial_advertise_peer_urls),
        founders=[_member(m.ID, m.name, m.peerURLs) for m in founding.founders],
        peers=[_member(m.ID, m.name, m.peerURLs) for m in founding.peers],
    )


def _bootstrap(identity: Identity) -> bytes | None:
    """Give the first entry of the log; the engine takes it only for a log that is empty."""
    if not identity.founders:
        return None
    return founding_entry(
        pb.Member(ID=member["id"], name=member["name"], peerURLs=member["peer_urls"])
        for member in identity.founders
    )


def read_data_directory(options: StoreOptions) -> Identity | None:
    """Look whom the directory of --data-dir belongs to, without changing anything.

    Returns:
        the member, None where there is none yet.

    Raises:
        ConfigError: it cannot be read, or belongs to another program or a removed member.
        CorruptionError: its identity cannot be read.
    """
    root = Path(options.data_dir)
    with _explained(root):
        _refuse_foreign(root)
        if not (root / _FILE).exists():
            return None
        identity = _read_identity(root / _FILE)
    if identity.removed:
        raise removed_error(options, identity)
    return identity


def removed_error(options: StoreOptions, identity: Identity) -> ConfigError:
    """The error of a member that its cluster has removed."""
    return ConfigError(
        f"member {identity.member_id:x} has been removed from cluster {identity.cluster_id:x} for "
        f"good: to return, add it as a new member (member add) and start it with an empty "
        f"--data-dir and --initial-cluster-state existing; {options.data_dir} is kept as it is"
    )


def open_data_directory(options: StoreOptions, founding: Founding | None = None) -> DataDirectory:
    """Open or create the directory of --data-dir, and count the start in it.

    Args:
        options: of the member.
        founding: who the member is, for a new directory of a member whose ids do not follow from
            --initial-cluster.

    Returns:
        its folders and the member it belongs to.

    Raises:
        ConfigError: it cannot be created or written, or belongs to another program or to a member
            that was removed.
        CorruptionError: its identity cannot be read.
    """
    root = Path(options.data_dir)
    path = root / _FILE
    with _explained(root):
        _make_root(root)
        with _alone(root):
            identity = read_data_directory(options)
            for folder in ("log", "state"):
                (root / folder).mkdir(mode=0o700, exist_ok=True)
            if identity is None:
                identity = _first_identity(options, founding)
            identity = replace(identity, boots=identity.boots + 1)
            _write_identity(path, identity)
    return DataDirectory(root / "log", root / "state", identity, _bootstrap(identity))


def mark_removed(options: StoreOptions) -> None:
    """Note that the cluster has removed this member, so that it is not started again.

    Raises:
        ConfigError, CorruptionError: the directory cannot be written or read.
    """
    root = Path(options.data_dir)
    with _explained(root), _alone(root):
        identity = _read_identity(root / _FILE)
        _write_identity(root / _FILE, replace(identity, removed=True))
