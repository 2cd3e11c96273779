from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from trimaran.ext.failpoint cimport (
    TRIMARAN_FAIL_DEFRAGMENT_COMPLETE,
    TRIMARAN_FAIL_SNAPSHOT_RECEIVE_END,
    trimaran_failpoint,
)


cdef extern from "codec.h" nogil:
    ctypedef struct trimaran_slice:
        const uint8_t *data
        size_t size


cdef extern from "mvcc.h" nogil:
    ctypedef struct trimaran_state:
        pass
    ctypedef struct trimaran_mvcc:
        pass
    ctypedef struct trimaran_mvcc_options:
        const char *directory
        size_t map_size_bytes
        uint64_t hash_seed
        uint64_t cluster_id
        uint64_t member_id
    ctypedef struct trimaran_change:
        pass
    int trimaran_mvcc_open(const trimaran_mvcc_options *options, trimaran_mvcc **out)
    void trimaran_mvcc_abandon(trimaran_mvcc *mvcc)
    int64_t trimaran_mvcc_revision(const trimaran_mvcc *mvcc)
    trimaran_state *trimaran_mvcc_state(trimaran_mvcc *mvcc)
    void trimaran_state_applied(const trimaran_state *state, uint64_t *index, uint64_t *term)
    void trimaran_state_hold(trimaran_state *state, bint held)
    bint trimaran_state_is_idle(const trimaran_state *state)
    void trimaran_state_track(trimaran_state *state, bint tracking)
    trimaran_change *trimaran_state_take_dropped(trimaran_state *state, size_t *count)


cdef extern from "snapshot.h" nogil:
    enum:
        TRIMARAN_SNAPSHOT_CHUNK_BYTES
    ctypedef struct trimaran_snapshot_facts:
        uint64_t version
        uint64_t index
        uint64_t term
        uint64_t cluster_id
        uint64_t member_id
        int64_t revision
        int64_t compact_revision
        uint64_t rows
        uint64_t changes
    ctypedef struct trimaran_snapshot:
        pass
    int trimaran_snapshot_take(trimaran_state *state, uint64_t cluster_id, uint64_t member_id,
                               trimaran_snapshot **out)
    int trimaran_snapshot_open(const char *directory, trimaran_snapshot **out)
    void trimaran_snapshot_close(trimaran_snapshot *snapshot)
    const trimaran_snapshot_facts *trimaran_snapshot_facts_of(const trimaran_snapshot *snapshot)
    trimaran_slice trimaran_snapshot_row(const trimaran_snapshot *snapshot, trimaran_slice key)
    int trimaran_snapshot_measure(trimaran_snapshot *snapshot, uint64_t *bytes, uint32_t *chunks)
    int trimaran_snapshot_chunk(trimaran_snapshot *snapshot, uint32_t number, uint8_t *out,
                                size_t *size)
    int trimaran_snapshot_hash_keys(trimaran_snapshot *snapshot, int64_t revision, uint32_t *hash)
    int trimaran_snapshot_hash(trimaran_snapshot *snapshot, uint32_t *hash)


cdef extern from "state_builder.h" nogil:
    ctypedef struct trimaran_state_builder:
        pass
    int trimaran_state_builder_open(const char *directory, size_t map_size_bytes,
                                    trimaran_state_builder **out)
    void trimaran_state_builder_close(trimaran_state_builder *builder)
    int trimaran_state_builder_chunk(trimaran_state_builder *builder, const uint8_t *chunk,
                                     size_t size)
    uint32_t trimaran_state_builder_next_chunk(const trimaran_state_builder *builder)
    const char *trimaran_state_builder_reason(const trimaran_state_builder *builder)
    const trimaran_snapshot_facts *trimaran_state_builder_facts(
        const trimaran_state_builder *builder)
    int trimaran_state_builder_set(trimaran_state_builder *builder, trimaran_slice key,
                                   trimaran_slice value)
    int trimaran_state_builder_remove(trimaran_state_builder *builder, trimaran_slice prefix)
    int trimaran_state_builder_set_applied(trimaran_state_builder *builder, uint64_t index,
                                           uint64_t term)
    int trimaran_state_builder_copy(trimaran_state_builder *builder, trimaran_snapshot *snapshot,
                                    const trimaran_change *dropped, size_t dropped_count)
    int trimaran_state_builder_finish(trimaran_state_builder *builder)
    int trimaran_state_builder_move(trimaran_state_builder *builder, trimaran_state *state)


cdef extern from "state_place.h" nogil:
    int trimaran_directory_remove(const char *directory)
    int trimaran_place_complete(const char *directory, uint64_t index)
    int trimaran_place_completed(const char *directory, uint64_t *index)
    int trimaran_place_copy(const char *directory)
    int trimaran_place_clean(const char *directory)
    int trimaran_place_recover(const char *directory, uint64_t log_marker)


cdef class SnapshotReader:
    cdef trimaran_snapshot *snapshot
    cdef trimaran_snapshot *opened(self) except NULL
    @staticmethod
    cdef SnapshotReader take(void *state, uint64_t cluster_id, uint64_t member_id)


cdef class StateBuilder:
    cdef trimaran_state_builder *builder
    cdef readonly str directory
    cdef trimaran_state_builder *opened(self) except NULL
    cdef int check(self, int code) except -1


cdef class PreparedState:
    cdef trimaran_mvcc *mvcc
    cdef readonly str directory
    cdef readonly uint64_t index
    cdef readonly uint64_t term
    cdef readonly int64_t revision
    cdef readonly bytes members


cdef class Defragment:
    cdef trimaran_mvcc *mvcc
    cdef trimaran_state *state
    cdef object owner
    cdef trimaran_state_builder *builder
    cdef trimaran_snapshot *snapshot
    cdef trimaran_change *dropped
    cdef size_t dropped_count
    cdef bytes directory
    cdef int check_state(self) except -1
    cdef int add_dropped(self) except -1
    cdef int take(self) except -1
    @staticmethod
    cdef Defragment begin(object owner, void *mvcc, str directory, size_t map_size_bytes)
