from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from trimaran.ext.raft cimport (
    TRIMARAN_RAFT_USE_CHECK_QUORUM,
    TRIMARAN_RAFT_USE_PRE_VOTE,
    trimaran_raft,
    trimaran_raft_campaign,
    trimaran_raft_config,
    trimaran_raft_free,
    trimaran_raft_gone,
    trimaran_raft_members,
    trimaran_raft_members_get,
    trimaran_raft_new,
    trimaran_raft_new_error,
    trimaran_raft_progress,
    trimaran_raft_progress_get,
    trimaran_raft_set_clock,
    trimaran_raft_snapshot_failed,
    trimaran_raft_snapshot_sent,
    trimaran_raft_status,
    trimaran_raft_status_get,
    trimaran_raft_transfer,
)
from trimaran.ext.raftlog cimport (
    trimaran_logthread,
    trimaran_logthread_fd,
    trimaran_payload,
    trimaran_payload_data,
    trimaran_payload_new,
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
    ctypedef struct trimaran_buffer:
        uint8_t *data
        size_t size
        size_t capacity
    void trimaran_buffer_append(trimaran_buffer *buffer, const void *data, size_t size)
    void trimaran_buffer_free(trimaran_buffer *buffer)
    bint trimaran_slice_equal(trimaran_slice a, trimaran_slice b)


cdef extern from "codec.h" nogil:
    ctypedef int trimaran_error
    ctypedef struct trimaran_range_request:
        pass
    bint trimaran_decode_range(trimaran_slice message, trimaran_range_request *out)
    trimaran_error trimaran_check_range(const trimaran_range_request *request)


cdef extern from "rowtable.h" nogil:
    ctypedef struct trimaran_table_row:
        trimaran_slice key
        trimaran_slice value
    ctypedef struct trimaran_rowtable:
        trimaran_table_row *rows
        size_t count
        uint64_t version
    size_t trimaran_rowtable_place(const trimaran_rowtable *table, trimaran_slice key)


cdef extern from "peerframe.h" nogil:
    ctypedef struct trimaran_frame:
        uint8_t kind
        trimaran_slice body
        trimaran_payload *payload


cdef extern from "configuration.h" nogil:
    enum:
        TRIMARAN_BATCH_HEAD
        TRIMARAN_CONFIGURATION_VERSION
    ctypedef struct trimaran_configuration:
        pass
    bint trimaran_configuration_decode(trimaran_slice entry, trimaran_configuration *out)


cdef extern from "manuallog.h" nogil:
    ctypedef struct trimaran_manuallog
    uint64_t trimaran_manuallog_pending(const trimaran_manuallog *manual)
    int trimaran_manuallog_flush(trimaran_manuallog *manual, uint64_t count)


cdef extern from "leasetable.h" nogil:
    ctypedef struct trimaran_key_record:
        pass
    ctypedef struct trimaran_lease:
        int64_t id
        int64_t ttl_s
        int64_t remaining_s
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
    void trimaran_state_wait(trimaran_state *state)
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
    void trimaran_mvcc_abandon(trimaran_mvcc *mvcc)
    bint trimaran_mvcc_seal(trimaran_mvcc *mvcc)
    const trimaran_rowtable *trimaran_mvcc_rows(const trimaran_mvcc *mvcc)
    trimaran_error trimaran_mvcc_range(trimaran_mvcc *mvcc, const trimaran_range_request *request,
                                       trimaran_buffer *out)
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
        size_t max_waiting_bytes
        uint64_t member_id
        uint64_t incarnation
        uint64_t timeout_ticks
        uint64_t election_ticks
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
        uint64_t skipped
        uint64_t timeouts
        uint64_t waiting_reads
        uint64_t waiting_batches
    trimaran_service *trimaran_service_create(trimaran_mvcc *mvcc, trimaran_watchhub *hub,
                                              const trimaran_service_options *options)
    void trimaran_service_destroy(trimaran_service *service)
    const trimaran_rpc_handler *trimaran_service_handler(trimaran_service *service)
    void trimaran_service_submit(trimaran_service *service, trimaran_op_kind kind,
                                 trimaran_slice request, uint64_t token)
    void trimaran_service_read(trimaran_service *service, uint64_t token)
    size_t trimaran_service_results(trimaran_service *service, const trimaran_result **out)
    bint trimaran_service_take_no_space(trimaran_service *service)
    trimaran_service_counts trimaran_service_count(const trimaran_service *service)


cdef extern from "member.h" nogil:
    ctypedef struct trimaran_member
    ctypedef struct trimaran_member_log:
        pass
    ctypedef struct trimaran_member_disk:
        trimaran_raftlog *log
        trimaran_logthread *thread
        trimaran_manuallog *manual
    int trimaran_member_disk_open(trimaran_member_disk *disk, trimaran_raftlog *log, bint manual)
    void trimaran_member_disk_close(trimaran_member_disk *disk, bint abandon)
    int trimaran_member_disk_compact(trimaran_member_disk *disk, uint64_t index)
    trimaran_member_log trimaran_member_disk_log(trimaran_member_disk *disk)
    ctypedef struct trimaran_member_group:
        uint64_t *ids
        trimaran_raft_members members
    ctypedef struct trimaran_member_post:
        uint64_t to
        trimaran_buffer frames
    ctypedef struct trimaran_member_counts:
        uint64_t forwarded
        uint64_t forwards
        uint64_t dropped_forwards
        uint64_t strangers
        uint64_t leader_changes
    ctypedef struct trimaran_member_snapshot:
        uint64_t sender "from"
        uint64_t term
        trimaran_mvcc *fresh
        trimaran_watchhub *hub
        const char *directory
    bint trimaran_member_install(trimaran_member *member,
                                 const trimaran_member_snapshot *snapshot)
    bint trimaran_member_is_installing(const trimaran_member *member)
    int trimaran_member_found(trimaran_raftlog *log, trimaran_mvcc *mvcc, trimaran_slice entry)
    int trimaran_member_load_group(trimaran_raftlog *log, trimaran_mvcc *mvcc, uint64_t id,
                                   bint alone, trimaran_member_group *out)
    trimaran_member *trimaran_member_create(trimaran_raft *raft, const trimaran_member_log *log,
                                            trimaran_mvcc *mvcc, trimaran_service *service,
                                            uint32_t election_ticks)
    void trimaran_member_destroy(trimaran_member *member)
    bint trimaran_member_turn(trimaran_member *member)
    void trimaran_member_tick(trimaran_member *member)
    int trimaran_member_receive(trimaran_member *member, uint64_t peer_id,
                                const trimaran_frame *frame)
    void trimaran_member_unreachable(trimaran_member *member, uint64_t peer_id)
    void trimaran_member_propose_change(trimaran_member *member, trimaran_payload *payload,
                                        uint64_t token)
    size_t trimaran_member_outbox(trimaran_member *member, const trimaran_member_post **out)
    void trimaran_member_outbox_clear(trimaran_member *member)
    size_t trimaran_member_snapshot_requests(trimaran_member *member, const uint64_t **out)
    void trimaran_member_compacted(trimaran_member *member, uint64_t index)
    int trimaran_member_log_error(const trimaran_member *member)
    trimaran_member_counts trimaran_member_count(const trimaran_member *member)
    uint64_t trimaran_member_status_version(const trimaran_member *member)


cdef class Member:
    cdef trimaran_member_disk disk
    cdef trimaran_raftlog *log
    cdef trimaran_raft *raft
    cdef trimaran_mvcc *mvcc
    cdef trimaran_watchhub *hub
    cdef trimaran_service *service
    cdef trimaran_member *member
    cdef readonly uint64_t member_id
    cdef uint64_t cluster_id
    cdef str state_directory
    cdef bytes state_path
    cdef object prepared
    cdef size_t map_size_bytes
    cdef int open_log(self, str directory, uint64_t journal_size_bytes) except -1
    cdef int open_raft(self, object options) except -1
    cdef int open_service(self, object options, uint64_t incarnation) except -1
    cdef int open_member(self, object options) except -1
    cdef int found(self, bytes entry) except -1
    cdef int release(self, bint abandon) except -1
    cdef int check(self) except -1
