from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from trimaran.ext.raft cimport (
    TRIMARAN_RAFT_USE_CHECK_QUORUM,
    TRIMARAN_RAFT_USE_PRE_VOTE,
    trimaran_raft,
    trimaran_raft_campaign,
    trimaran_raft_config,
    trimaran_raft_free,
    trimaran_raft_new,
    trimaran_raft_new_error,
    trimaran_raft_status,
    trimaran_raft_status_get,
    trimaran_raft_tick,
)
from trimaran.ext.raftlog cimport (
    trimaran_entry,
    trimaran_hard_state,
    trimaran_logthread,
    trimaran_logthread_append,
    trimaran_logthread_compact,
    trimaran_logthread_completed,
    trimaran_logthread_completion,
    trimaran_logthread_fd,
    trimaran_logthread_is_quick,
    trimaran_logthread_start,
    trimaran_logthread_stop,
    trimaran_logthread_submit,
    trimaran_raftlog,
    trimaran_raftlog_close,
    trimaran_raftlog_first_index,
    trimaran_raftlog_hard_state,
    trimaran_raftlog_last_index,
    trimaran_raftlog_open,
    trimaran_raftlog_open_error,
    trimaran_raftlog_options,
    trimaran_raftlog_read,
    trimaran_raftlog_term,
    trimaran_raftlog_visitor,
)


cdef extern from "bytes.h" nogil:
    ctypedef struct trimaran_slice:
        const uint8_t *data
        size_t size


cdef extern from "leasetable.h" nogil:
    ctypedef struct trimaran_key_record:
        pass
    ctypedef struct trimaran_lease:
        int64_t id
        int64_t ttl_s
        trimaran_key_record **keys
        uint32_t count
    ctypedef struct trimaran_leasetable:
        trimaran_lease **slots
        size_t mask
        size_t count
    trimaran_lease *trimaran_leasetable_find(const trimaran_leasetable *table, int64_t id)
    trimaran_slice trimaran_record_key(const trimaran_key_record *record)


cdef extern from "state.h" nogil:
    ctypedef struct trimaran_state
    void trimaran_state_applied(const trimaran_state *state, uint64_t *index, uint64_t *term)
    uint64_t trimaran_state_persisted(const trimaran_state *state)
    int trimaran_state_event_fd(const trimaran_state *state)
    bint trimaran_state_collect(trimaran_state *state)
    bint trimaran_state_seal(trimaran_state *state)
    size_t trimaran_state_pending_bytes(const trimaran_state *state)
    int trimaran_state_error(const trimaran_state *state)
    void trimaran_state_sizes(const trimaran_state *state, int64_t *total, int64_t *in_use)


cdef extern from "mvcc.h" nogil:
    ctypedef struct trimaran_mvcc
    ctypedef int trimaran_op_kind
    ctypedef struct trimaran_alarm:
        uint64_t member_id
        int32_t kind
    ctypedef struct trimaran_mvcc_options:
        const char *directory
        size_t map_size_bytes
        uint64_t hash_seed
        uint64_t cluster_id
        uint64_t member_id
    int trimaran_mvcc_open(const trimaran_mvcc_options *options, trimaran_mvcc **out)
    void trimaran_mvcc_close(trimaran_mvcc *mvcc)
    trimaran_state *trimaran_mvcc_state(trimaran_mvcc *mvcc)
    int64_t trimaran_mvcc_revision(const trimaran_mvcc *mvcc)
    int64_t trimaran_mvcc_compact_revision(const trimaran_mvcc *mvcc)
    const trimaran_leasetable *trimaran_mvcc_leases(const trimaran_mvcc *mvcc)
    size_t trimaran_mvcc_alarms(const trimaran_mvcc *mvcc, const trimaran_alarm **out)


cdef extern from "watchhub.h" nogil:
    ctypedef struct trimaran_watchhub
    ctypedef struct trimaran_watchhub_counts:
        size_t streams
        size_t watchers
        size_t behind
        uint64_t events
    trimaran_watchhub *trimaran_watchhub_create(trimaran_mvcc *mvcc, uint64_t seed,
                                                size_t fragment_bytes)
    void trimaran_watchhub_destroy(trimaran_watchhub *hub)
    void trimaran_watchhub_progress(trimaran_watchhub *hub)
    trimaran_watchhub_counts trimaran_watchhub_count(const trimaran_watchhub *hub)


cdef extern from "service.h" nogil:
    ctypedef struct trimaran_rpc_handler
    ctypedef struct trimaran_service
    ctypedef struct trimaran_service_options:
        int64_t max_txn_ops
        size_t max_request_bytes
        int64_t quota_bytes
        size_t max_pending_bytes
    ctypedef struct trimaran_result:
        uint64_t token
        int kind
        int error
        int64_t revision
        int64_t lease
        int64_t ttl_s
    ctypedef struct trimaran_service_counts:
        uint64_t ranges
        uint64_t puts
        uint64_t deletes
        uint64_t txns
        uint64_t entries
        uint64_t operations
        uint64_t refused
    trimaran_service *trimaran_service_create(trimaran_mvcc *mvcc, trimaran_watchhub *hub,
                                              const trimaran_service_options *options)
    void trimaran_service_destroy(trimaran_service *service)
    const trimaran_rpc_handler *trimaran_service_handler(trimaran_service *service)
    void trimaran_service_submit(trimaran_service *service, trimaran_op_kind kind,
                                 trimaran_slice request, uint64_t token)
    size_t trimaran_service_results(trimaran_service *service, const trimaran_result **out)
    bint trimaran_service_take_no_space(trimaran_service *service)
    trimaran_service_counts trimaran_service_count(const trimaran_service *service)


cdef extern from "member.h" nogil:
    ctypedef struct trimaran_member
    ctypedef struct trimaran_member_log:
        void *context
        int (*submit)(void *, const trimaran_hard_state *, const trimaran_entry *, size_t,
                      uint64_t *) noexcept
        int (*append)(void *, const trimaran_hard_state *, const trimaran_entry *, size_t,
                      uint64_t *) noexcept
        int (*is_quick)(void *) noexcept
        void (*completed)(void *, trimaran_logthread_completion *) noexcept
        int (*read)(void *, uint64_t, uint64_t, uint64_t, trimaran_raftlog_visitor,
                    void *) noexcept
    trimaran_member *trimaran_member_create(trimaran_raft *raft, const trimaran_member_log *log,
                                            trimaran_mvcc *mvcc, trimaran_service *service)
    void trimaran_member_destroy(trimaran_member *member)
    bint trimaran_member_turn(trimaran_member *member)
    int trimaran_member_log_error(const trimaran_member *member)


cdef struct LogContext:
    trimaran_logthread *thread
    trimaran_raftlog *log


cdef class Member:
    cdef LogContext log_context
    cdef trimaran_raftlog *log
    cdef trimaran_logthread *thread
    cdef trimaran_raft *raft
    cdef trimaran_mvcc *mvcc
    cdef trimaran_watchhub *hub
    cdef trimaran_service *service
    cdef trimaran_member *member
    cdef int open_log(self, str directory, uint64_t journal_size_bytes) except -1
    cdef int open_raft(self, object options) except -1
    cdef int check(self) except -1
