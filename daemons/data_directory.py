"""The data directory of a store member: its layout, and who it belongs to."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from trimaran.errors import ConfigError, CorruptionError
from trimaran.store.identity import identify
from trimaran.store.options import StoreOptions

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Who wrote a data directory; it stays so, whatever the flags say later."""

    format: int
    name: str
    member_id: int
    cluster_id: int
    peer_urls: list[str]


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """An opened data directory.

    Attributes:
        log: folder of the raft log.
        state: folder of the state store.
        identity: the member it belongs to.
    """

    log: Path
    state: Path
    identity: Identity


def _write_identity(path: Path, identity: Identity) -> None:
    """Write the file whole or not at all: a torn one would lock the data out."""
    temporary = path.with_suffix(".new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(asdict(identity), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check_types(identity: Identity) -> None:
    ids = (identity.member_id, identity.cluster_id)
    if not all(type(number) is int and 0 < number < 2**64 for number in ids):
        raise ValueError("an id is no number of 64 bits")
    texts = [identity.name, *identity.peer_urls]
    if not isinstance(identity.peer_urls, list) or not all(isinstance(t, str) for t in texts):
        raise ValueError("the name or a peer URL is no text")


def _read_identity(path: Path) -> Identity:
    try:
        identity = Identity(**json.loads(path.read_text(encoding="utf-8")))
        _check_types(identity)
    except (ValueError, TypeError) as error:
        raise CorruptionError(f"{path} cannot be read: {error}; restore the directory") from None
    if identity.format != FORMAT:
        raise ConfigError(
            f"{path} is of format {identity.format}, this version reads {FORMAT}: "
            "run the version that wrote it"
        )
    return identity


def _has_files(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def open_data_directory(options: StoreOptions) -> DataDirectory:
    """Open or create the directory of --data-dir.

    Returns:
        its folders and the member it belongs to.

    Raises:
        ConfigError: it cannot be created or written, or belongs to another program.
        CorruptionError: its identity cannot be read.
    """
    root = Path(options.data_dir)
    path = root / "member.json"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists() and (root / "member").exists():
            raise ConfigError(
                f"--data-dir {root} holds data of etcd itself, which has another format: "
                "give an empty directory"
            )
        if not path.exists() and any(_has_files(root / folder) for folder in ("log", "state")):
            raise ConfigError(
                f"--data-dir {root} has files in log/ or state/ but no member.json: "
                "restore it, or give an empty directory"
            )
        for folder in ("log", "state"):
            (root / folder).mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            ids = identify(options.name, options.initial_cluster, options.initial_cluster_token)
            peers = sorted(options.initial_advertise_peer_urls)
            _write_identity(path, Identity(FORMAT, options.name, *ids, peers))
        return DataDirectory(root / "log", root / "state", _read_identity(path))
    except OSError as error:
        raise ConfigError(f"cannot use --data-dir {root}: {error.strerror or error}") from None
