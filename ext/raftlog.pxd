from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "trimaran/raftlog.h" nogil:
    ctypedef struct trimaran_payload:
        pass
    trimaran_payload *trimaran_payload_new(size_t size)
    uint8_t *trimaran_payload_data(trimaran_payload *payload)
    size_t trimaran_payload_size(const trimaran_payload *payload)
    trimaran_payload *trimaran_payload_retain(trimaran_payload *payload)
    void trimaran_payload_release(trimaran_payload *payload)

    ctypedef struct trimaran_entry:
        uint64_t index
        uint64_t term
        uint32_t type
        uint32_t size
        const uint8_t *data
        trimaran_payload *payload

    ctypedef struct trimaran_hard_state:
        uint64_t term
        uint64_t vote
        uint64_t commit

    ctypedef struct trimaran_raftlog_options:
        uint32_t struct_size
        uint32_t flags
        uint64_t map_size_bytes
        uint64_t journal_size_bytes

    enum:
        TRIMARAN_RAFTLOG_BUFFERED

    ctypedef struct trimaran_raftlog:
        pass
    ctypedef int (*trimaran_raftlog_visitor)(void *context, const trimaran_entry *entry)
    int trimaran_raftlog_open(const char *directory, const trimaran_raftlog_options *options,
                              trimaran_raftlog **out)
    int trimaran_raftlog_close(trimaran_raftlog *log)
    int trimaran_raftlog_append(trimaran_raftlog *log, const trimaran_hard_state *hard_state,
                                const trimaran_entry *entries, size_t count)
    int trimaran_raftlog_read(trimaran_raftlog *log, uint64_t first, uint64_t last,
                              uint64_t max_bytes, trimaran_raftlog_visitor visitor, void *context)
    uint64_t trimaran_raftlog_first_index(trimaran_raftlog *log)
    uint64_t trimaran_raftlog_last_index(trimaran_raftlog *log)
    int trimaran_raftlog_term(trimaran_raftlog *log, uint64_t index, uint64_t *term)
    void trimaran_raftlog_hard_state(trimaran_raftlog *log, trimaran_hard_state *out)
    int trimaran_raftlog_compact(trimaran_raftlog *log, uint64_t index)
    int trimaran_raftlog_settle(trimaran_raftlog *log)
    int trimaran_raftlog_reset(trimaran_raftlog *log, const trimaran_hard_state *hard_state,
                               uint64_t index, uint64_t term)

    ctypedef struct trimaran_raftlog_status:
        uint64_t appends
        uint64_t settles
        uint64_t journal_bytes
        uint64_t journal_used_bytes
        uint64_t replayed_entries
        uint64_t discarded_records
        uint32_t direct
    void trimaran_raftlog_status_get(trimaran_raftlog *log, trimaran_raftlog_status *out)
    const char *trimaran_raftlog_open_error()


cdef extern from "logthread.h" nogil:
    ctypedef struct trimaran_logthread:
        pass

    ctypedef struct trimaran_logthread_completion:
        uint64_t sequence
        uint64_t index
        uint64_t term
        int error

    int trimaran_logthread_start(trimaran_raftlog *log, trimaran_logthread **out)
    int trimaran_logthread_fd(const trimaran_logthread *thread)
    int trimaran_logthread_submit(trimaran_logthread *thread, const trimaran_hard_state *hard_state,
                                  const trimaran_entry *entries, size_t count, uint64_t *sequence)
    int trimaran_logthread_append(trimaran_logthread *thread, const trimaran_hard_state *hard_state,
                                  const trimaran_entry *entries, size_t count, uint64_t *sequence)
    int trimaran_logthread_is_quick(trimaran_logthread *thread)
    void trimaran_logthread_completed(trimaran_logthread *thread,
                                      trimaran_logthread_completion *out)
    void trimaran_logthread_compact(trimaran_logthread *thread, uint64_t index)
    int trimaran_logthread_reset(trimaran_logthread *thread,
                                 const trimaran_hard_state *hard_state, uint64_t index,
                                 uint64_t term)
    int trimaran_logthread_stop(trimaran_logthread *thread)


cdef extern from "crc32c.h" nogil:
    uint32_t trimaran_crc32c(uint32_t crc, const void *data, size_t size)
    uint32_t trimaran_crc32c_portable(uint32_t crc, const void *data, size_t size)


cdef class LogThread


cdef class RaftLog:
    cdef trimaran_raftlog *handle
    cdef readonly str directory
    cdef LogThread thread
    cdef trimaran_raftlog *opened(self) except NULL


cdef class LogThread:
    cdef RaftLog log
    cdef trimaran_logthread *handle
    cdef trimaran_logthread *started(self) except NULL
