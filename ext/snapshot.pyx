"""A member's state as a whole: streamed out, built anew from a stream, hashed, copied compactly."""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from trimaran.errors import CorruptionError

CHUNK_BYTES = TRIMARAN_SNAPSHOT_CHUNK_BYTES


cdef int check(int code, str what) except -1:
    if code == 0:
        return 0
    if code == -117:  # EUCLEAN
        raise CorruptionError(what)
    raise OSError(-code, f"{os.strerror(-code)}: {what}")


cdef trimaran_slice slice_of(const uint8_t[::1] data):
    cdef trimaran_slice found
    found.data = &data[0] if data.shape[0] > 0 else <const uint8_t *>b""
    found.size = data.shape[0]
    return found


cdef bytes bytes_of(trimaran_slice data):
    if data.data == NULL:
        return None
    return PyBytes_FromStringAndSize(<const char *>data.data, data.size)


cdef class SnapshotReader:
    def __init__(self, directory=None):
        cdef bytes path
        if directory is not None:
            path = os.fsencode(directory)
            check(trimaran_snapshot_open(path, &self.snapshot), os.fsdecode(path))

    def __dealloc__(self):
        self.close()

    @staticmethod
    cdef SnapshotReader take(void *state, uint64_t cluster_id, uint64_t member_id):
        cdef SnapshotReader reader = SnapshotReader()
        check(trimaran_snapshot_take(<trimaran_state *>state, cluster_id, member_id,
                                     &reader.snapshot), "a snapshot of the state")
        return reader

    cdef trimaran_snapshot *opened(self) except NULL:
        if self.snapshot == NULL:
            raise ValueError("the snapshot is closed")
        return self.snapshot

    def close(self):
        cdef trimaran_snapshot *snapshot = self.snapshot
        self.snapshot = NULL
        if snapshot != NULL:
            with nogil:
                trimaran_snapshot_close(snapshot)

    @property
    def facts(self):
        return <dict>trimaran_snapshot_facts_of(self.opened())[0]

    @property
    def index(self):
        return trimaran_snapshot_facts_of(self.opened()).index

    @property
    def term(self):
        return trimaran_snapshot_facts_of(self.opened()).term

    @property
    def revision(self):
        return trimaran_snapshot_facts_of(self.opened()).revision

    @property
    def compact_revision(self):
        return trimaran_snapshot_facts_of(self.opened()).compact_revision

    def row(self, key):
        return bytes_of(trimaran_snapshot_row(self.opened(), slice_of(key)))

    def measure(self):
        cdef trimaran_snapshot *snapshot = self.opened()
        cdef uint64_t size = 0
        cdef uint32_t chunks = 0
        cdef int code
        with nogil:
            code = trimaran_snapshot_measure(snapshot, &size, &chunks)
        check(code, "the state cannot be read")
        return size, chunks

    def read(self, uint32_t number):
        cdef trimaran_snapshot *snapshot = self.opened()
        cdef bytes chunk = PyBytes_FromStringAndSize(NULL, TRIMARAN_SNAPSHOT_CHUNK_BYTES)
        cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(chunk)
        cdef size_t size = 0
        cdef int code
        with nogil:
            code = trimaran_snapshot_chunk(snapshot, number, out, &size)
        if code == -2:  # ENOENT
            raise IndexError(f"the snapshot has no chunk {number}")
        check(code, "the state cannot be read")
        return chunk if size == TRIMARAN_SNAPSHOT_CHUNK_BYTES else chunk[:size]

    def hash_keys(self, int64_t revision):
        cdef trimaran_snapshot *snapshot = self.opened()
        cdef uint32_t found = 0
        cdef int code
        if not self.compact_revision <= revision <= self.revision:
            raise ValueError(f"revision {revision} is not in the snapshot")
        with nogil:
            code = trimaran_snapshot_hash_keys(snapshot, revision, &found)
        check(code, "the state cannot be read")
        return found

    def hash(self):
        cdef trimaran_snapshot *snapshot = self.opened()
        cdef uint32_t found = 0
        cdef int code
        with nogil:
            code = trimaran_snapshot_hash(snapshot, &found)
        check(code, "the state cannot be read")
        return found


cdef class StateBuilder:
    def __init__(self, directory, *, size_t map_size_bytes=256 << 30):
        cdef bytes path = os.fsencode(directory)
        self.directory = os.fsdecode(path)
        check(trimaran_state_builder_open(path, map_size_bytes, &self.builder), self.directory)

    def __dealloc__(self):
        self.close()

    cdef trimaran_state_builder *opened(self) except NULL:
        if self.builder == NULL:
            raise ValueError("the state is finished or given up")
        return self.builder

    cdef int check(self, int code) except -1:
        if code == -74:  # EBADMSG
            reason = trimaran_state_builder_reason(self.builder).decode()
            raise CorruptionError(f"the snapshot is refused: {reason}")
        return check(code, self.directory)

    def close(self):
        if self.builder != NULL:
            with nogil:
                trimaran_state_builder_close(self.builder)
            self.builder = NULL

    @property
    def next_chunk(self):
        return trimaran_state_builder_next_chunk(self.opened())

    @property
    def facts(self):
        return <dict>trimaran_state_builder_facts(self.opened())[0]

    def write(self, const uint8_t[::1] chunk not None):
        cdef trimaran_state_builder *builder = self.opened()
        cdef trimaran_slice data = slice_of(chunk)
        cdef int code
        with nogil:
            code = trimaran_state_builder_chunk(builder, data.data, data.size)
        self.check(code)

    def set(self, key, value):
        cdef trimaran_slice data
        data.data = NULL
        data.size = 0
        if value is not None:
            data = slice_of(value)
        self.check(trimaran_state_builder_set(self.opened(), slice_of(key), data))

    def remove(self, prefix):
        self.check(trimaran_state_builder_remove(self.opened(), slice_of(prefix)))

    def set_applied(self, uint64_t index, uint64_t term):
        self.check(trimaran_state_builder_set_applied(self.opened(), index, term))

    def finish(self):
        cdef trimaran_state_builder *builder = self.opened()
        cdef int code
        if self.next_chunk == 0:
            raise CorruptionError("the snapshot is refused: it is empty")
        with nogil:
            code = trimaran_state_builder_finish(builder)
        self.check(code)
        self.close()


def complete(state_directory, uint64_t index):
    cdef bytes path = os.fsencode(state_directory)
    cdef const char *name = path
    cdef int code
    with nogil:
        trimaran_failpoint(TRIMARAN_FAIL_SNAPSHOT_RECEIVE_END)
        code = trimaran_place_complete(name, index)
    check(code, os.fsdecode(path))


def recover(state_directory, uint64_t log_marker):
    cdef bytes path = os.fsencode(state_directory)
    cdef const char *name = path
    cdef int code
    with nogil:
        code = trimaran_place_recover(name, log_marker)
    check(code, os.fsdecode(path))


cdef class PreparedState:
    def __init__(self, options):
        cdef trimaran_mvcc_options state
        cdef bytes path = os.fsencode(f"{options.state_directory}.new")
        cdef bytes place = os.fsencode(options.state_directory)
        cdef SnapshotReader reader
        cdef uint64_t completed = 0
        cdef int code
        self.directory = options.state_directory
        check(trimaran_place_completed(place, &completed), f"{self.directory}.new")
        state.directory = path
        state.map_size_bytes = options.map_size_bytes
        state.hash_seed = options.hash_seed
        state.cluster_id = options.cluster_id
        state.member_id = options.member_id
        with nogil:
            code = trimaran_mvcc_open(&state, &self.mvcc)
        check(code, f"{self.directory}.new")
        self.revision = trimaran_mvcc_revision(self.mvcc)
        trimaran_state_applied(trimaran_mvcc_state(self.mvcc), &self.index, &self.term)
        if self.index != completed:
            raise CorruptionError(f"{self.directory}.new holds another snapshot than it says")
        reader = SnapshotReader.take(trimaran_mvcc_state(self.mvcc), 0, 0)
        self.members = reader.row(b"raft/members")
        reader.close()

    def __dealloc__(self):
        self.close()

    def close(self):
        cdef trimaran_mvcc *mvcc = self.mvcc
        self.mvcc = NULL
        if mvcc != NULL:
            with nogil:
                trimaran_mvcc_abandon(mvcc)


cdef class Defragment:
    @staticmethod
    cdef Defragment begin(object owner, void *mvcc, str directory, size_t map_size_bytes):
        cdef Defragment self = Defragment.__new__(Defragment)
        cdef bytes path = os.fsencode(f"{directory}.copy")
        self.directory = os.fsencode(directory)
        check(trimaran_state_builder_open(path, map_size_bytes, &self.builder), directory)
        self.owner = owner
        self.mvcc = <trimaran_mvcc *>mvcc
        self.state = trimaran_mvcc_state(self.mvcc)
        trimaran_state_track(self.state, True)
        self.take()
        return self

    def __dealloc__(self):
        if self.builder != NULL:
            trimaran_state_builder_close(self.builder)
        if self.snapshot != NULL:
            trimaran_snapshot_close(self.snapshot)
        free(self.dropped)

    cdef int check_state(self) except -1:
        if self.owner is None or trimaran_mvcc_state(self.mvcc) != self.state:
            raise OSError(125, "the state was replaced by a snapshot meanwhile")
        return 0

    cdef int add_dropped(self) except -1:
        # What the next copy has to drop: this is asked for more often than there are copies.
        cdef size_t count = 0
        cdef trimaran_change *fresh = trimaran_state_take_dropped(self.state, &count)
        cdef size_t whole = self.dropped_count + count
        cdef trimaran_change *grown = <trimaran_change *>realloc(
            self.dropped, (whole + 1) * sizeof(trimaran_change))
        if grown == NULL:
            free(fresh)
            raise MemoryError
        if count > 0:
            memcpy(grown + self.dropped_count, fresh, count * sizeof(trimaran_change))
        free(fresh)
        self.dropped = grown
        self.dropped_count = whole
        return 0

    cdef int take(self) except -1:
        self.check_state()
        if self.snapshot != NULL:
            trimaran_snapshot_close(self.snapshot)
            self.snapshot = NULL
        self.add_dropped()
        return check(trimaran_snapshot_take(self.state, 0, 0, &self.snapshot), "the state")

    def copy(self):
        cdef int code
        with nogil:
            code = trimaran_state_builder_copy(self.builder, self.snapshot, self.dropped,
                                               self.dropped_count)
        check(code, os.fsdecode(self.directory))
        self.dropped_count = 0

    def renew(self):
        self.take()

    def hold(self):
        self.check_state()
        trimaran_state_hold(self.state, True)
        return bool(trimaran_state_is_idle(self.state))

    def finish(self):
        cdef int code
        with nogil:
            code = trimaran_state_builder_finish(self.builder)
            trimaran_failpoint(TRIMARAN_FAIL_DEFRAGMENT_COMPLETE)
        check(code, os.fsdecode(self.directory))

    def swap(self):
        self.check_state()
        check(trimaran_place_copy(self.directory), os.fsdecode(self.directory))
        check(trimaran_state_builder_move(self.builder, self.state), os.fsdecode(self.directory))

    def end(self):
        if self.owner is not None and trimaran_mvcc_state(self.mvcc) == self.state:
            trimaran_state_track(self.state, False)
            trimaran_state_hold(self.state, False)
        self.owner = None

    def clean(self):
        cdef bytes copy = self.directory + b".copy"
        cdef const char *name = copy
        cdef const char *directory = self.directory
        cdef int code
        with nogil:
            if self.snapshot != NULL:
                trimaran_snapshot_close(self.snapshot)
                self.snapshot = NULL
            if self.builder != NULL:
                trimaran_state_builder_close(self.builder)
                self.builder = NULL
            code = trimaran_directory_remove(name)
            if code == 0:
                code = trimaran_place_clean(directory)
        check(code, os.fsdecode(self.directory))
