"""The file of a saved snapshot: its chunks, then the SHA-256 of them all; and restoring it.

The chunks are those that members send each other; `ext/src/snapshot.h` has their format.
"""

import hashlib
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Final

from trimaran.daemons.data_directory import DataDirectory, open_data_directory
from trimaran.errors import ConfigError, CorruptionError
from trimaran.ext.checksum import crc32c
from trimaran.ext.raftlog import RaftLog
from trimaran.ext.snapshot import CHUNK_BYTES, StateBuilder
from trimaran.store.configuration import MEMBERS_ROW, decode_configuration, encode_members
from trimaran.store.options import StoreOptions

DIGEST_BYTES: Final = 32
ALIGNMENT: Final = 512
_HEAD: Final = struct.Struct("<4sIII")  # magic, checksum, number, size of the body
_RECORD: Final = struct.Struct("<III")  # of the header: kind, size, 0
_FACTS: Final = struct.Struct("<QQQQQqqQQ")
_MAGIC: Final = b"TRSC"
_REVISION: Final = struct.Struct(">q")

# Where the log of a restored cluster begins: past the first entry of one that is founded anew, so
# that who has only that, or nothing, is sent the state.
BASE_INDEX: Final = 2
BASE_TERM: Final = 1
# What a cluster that is restored makes anew: who its members are and what they have proposed.
MEMBERSHIP_ROWS: Final = (b"raft/", b"member/", b"removed/", b"cluster/", b"origin/")


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """What a file says of the state it holds.

    Attributes:
        hash: CRC-32C of all chunks.
        revision: of the store.
        compact_revision: -1 where nothing was compacted.
        changes: how many it holds, of all revisions that are kept.
        rows: how many it holds: leases, alarms, members and the like.
        total_bytes: of the file.
        index: of the last log entry it contains.
        version: of the format.
    """

    hash: int
    revision: int
    compact_revision: int
    changes: int
    rows: int
    total_bytes: int
    index: int
    version: int


class SnapshotFile:
    """Reads the chunks of a file once, in order, and checks them.

    Args:
        path: of the file.
        skip_hash_check: take a file whose SHA-256 is missing or wrong.
    """

    def __init__(self, path: str, *, skip_hash_check: bool = False) -> None:
        self.path = path
        self.skip_hash_check = skip_hash_check
        self.facts: SnapshotFacts | None = None

    def chunks(self) -> Iterator[bytes]:
        """Yield every chunk; `facts` is there after the last.

        Raises:
            ConfigError: there is no such file.
            CorruptionError: it is damaged, cut, or no snapshot.
        """
        try:
            with open(self.path, "rb") as file:
                yield from self._chunks(file, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {error.strerror}") from None

    def _refuse(self, reason: str) -> CorruptionError:
        return CorruptionError(f"{self.path} is refused, and nothing was changed: {reason}")

    def _chunks(self, file: BufferedReader, total_bytes: int) -> Iterator[bytes]:
        has_digest = total_bytes % ALIGNMENT == DIGEST_BYTES
        if not file.peek(len(_MAGIC)).startswith(_MAGIC):
            raise self._refuse(
                "it is no snapshot of this store; those of etcd have another format: move its "
                "keys with `etcdctl make-mirror`"
            )
        if not has_digest and total_bytes % ALIGNMENT != 0:
            raise self._refuse(f"it is cut after {total_bytes} bytes; take another copy of it")
        if not has_digest and not self.skip_hash_check:
            raise self._refuse("its SHA-256 is missing; --skip-hash-check takes it nevertheless")
        left, number, checksum = total_bytes - DIGEST_BYTES * has_digest, 0, 0
        digest, first = hashlib.sha256(), b""
        while left > 0:
            chunk = self._chunk(file, number)
            digest.update(chunk)
            checksum = crc32c(chunk, checksum)
            first = first or chunk
            left -= len(chunk)
            number += 1
            yield chunk
        if has_digest and not self.skip_hash_check and file.read() != digest.digest():
            raise self._refuse("its SHA-256 does not fit; take another copy of it")
        self.facts = self._facts(first, checksum, total_bytes)

    def _chunk(self, file: BinaryIO, number: int) -> bytes:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or head[:4] != _MAGIC:
            raise self._refuse(
                f"there is no chunk {number} where it should be; take another copy of it"
            )
        _, checksum, found, size = _HEAD.unpack(head)
        body = file.read(size) if size <= CHUNK_BYTES - _HEAD.size else b""
        if len(body) != size or found != number or crc32c(head[8:] + body) != checksum:
            raise self._refuse(f"chunk {number} is damaged; take another copy of it")
        return head + body

    def _facts(self, first: bytes, checksum: int, total_bytes: int) -> SnapshotFacts:
        at = _HEAD.size + _RECORD.size
        if len(first) < at + _FACTS.size:
            raise self._refuse("it has no header")
        version, index, _, _, _, revision, compacted, rows, changes = _FACTS.unpack_from(first, at)
        return SnapshotFacts(
            checksum, revision, compacted, changes, rows, total_bytes, index, version
        )


def read_status(path: str) -> SnapshotFacts:
    """Check a file and say what it holds.

    Raises:
        ConfigError, CorruptionError: it cannot be read, or is no whole snapshot.
    """
    file = SnapshotFile(path)
    for _ in file.chunks():
        pass
    assert file.facts is not None
    return file.facts


def _flush(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _found(builder: StateBuilder, directory: DataDirectory) -> None:
    """Name the members of the new cluster in a state, as if its log had done so.

    A log that began with the first entry would lead who joins later to a state without what was
    restored. Who was started without the snapshot is elected by nobody who has it.
    """
    assert directory.bootstrap is not None
    founding = decode_configuration(directory.bootstrap)
    for key, value in founding.rows:
        builder.set(key, value)
    builder.set(MEMBERS_ROW, encode_members([member for _, member in founding.changes]))
    builder.set_applied(BASE_INDEX, BASE_TERM)


def restore(
    path: str,
    options: StoreOptions,
    *,
    skip_hash_check: bool = False,
    bump_revision: int = 0,
    mark_compacted: bool = False,
) -> SnapshotFacts:
    """Make the data directory of a member of a new cluster that begins with a saved state.

    Args:
        path: of the file.
        options: of the new member; --data-dir must not be there yet.
        skip_hash_check: take a file whose SHA-256 is missing or wrong.
        bump_revision: by how much the new cluster's revision is beyond the saved one.
        mark_compacted: whether all revisions up to there count as compacted, so that watchers
            learn that they missed something.

    Returns:
        what the file held.

    Raises:
        ConfigError: the file or the directory cannot be used.
        CorruptionError: the file is damaged.
    """
    target = Path(options.data_dir)
    if target.exists():
        raise ConfigError(f"--data-dir {target} is there already: give one that is not")
    aside = target.with_name(f"{target.name}.restoring")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        directory = open_data_directory(replace(options, data_dir=str(aside)))
        file = SnapshotFile(path, skip_hash_check=skip_hash_check)
        builder = StateBuilder(directory.state)
        for chunk in file.chunks():
            builder.write(chunk)
        assert file.facts is not None
        for prefix in MEMBERSHIP_ROWS:
            builder.remove(prefix)
        _found(builder, directory)
        if bump_revision > 0:
            revision = _REVISION.pack(file.facts.revision + bump_revision)
            builder.set(b"revision/base", revision)
            if mark_compacted:
                builder.set(b"compact/scheduled", revision)
        builder.finish()
        log = RaftLog(directory.log)
        try:
            log.reset(BASE_INDEX, BASE_TERM, (BASE_TERM, 0, BASE_INDEX))
        finally:
            log.close()
        _flush(aside)
        os.rename(aside, target)
        _flush(target.absolute().parent)
    except OSError as error:
        raise ConfigError(f"cannot restore into {target}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return file.facts
