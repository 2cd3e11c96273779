from libc.stdint cimport uint8_t, uint32_t, uint64_t

from trimaran.ext.raftlog cimport (
    trimaran_entry,
    trimaran_hard_state,
    trimaran_payload,
    trimaran_raftlog_visitor,
)


cdef extern from "trimaran/raft.h" nogil:
    ctypedef struct trimaran_raft:
        pass
    enum:
        TRIMARAN_ENTRY_NORMAL
        TRIMARAN_ENTRY_CONFIGURATION
        TRIMARAN_RAFT_USE_PRE_VOTE
        TRIMARAN_RAFT_USE_CHECK_QUORUM

    ctypedef struct trimaran_raft_members:
        const uint64_t *voters
        const uint64_t *outgoing
        const uint64_t *learners
        const uint64_t *learners_next
        uint32_t voter_count
        uint32_t outgoing_count
        uint32_t learner_count
        uint32_t learner_next_count
        uint32_t auto_leave

    ctypedef struct trimaran_raft_config:
        uint32_t struct_size
        uint32_t election_ticks
        uint32_t heartbeat_ticks
        uint32_t flags
        uint64_t id
        uint64_t seed
        trimaran_raft_members members
        uint64_t max_uncommitted_bytes
        uint64_t max_message_bytes
        uint32_t max_inflight_messages
        uint64_t max_inflight_bytes
        uint64_t lease_us
        trimaran_hard_state hard_state
        uint64_t first_index
        uint64_t last_index
        uint64_t applied_index
        int (*term)(void *context, uint64_t index, uint64_t *term)
        int (*read)(void *context, uint64_t first, uint64_t last, uint64_t max_bytes,
                    trimaran_raftlog_visitor visitor, void *visitor_context)
        void *log_context

    ctypedef struct trimaran_raft_message:
        uint32_t type
        uint8_t reject
        uint8_t force
        uint64_t to
        uint64_t term
        uint64_t log_term
        uint64_t index
        uint64_t commit
        uint64_t context
        uint64_t hint_index
        uint64_t hint_term
        const trimaran_entry *entries
        size_t entry_count
        const trimaran_raft_members *members
        uint64_t sender "from"

    ctypedef struct trimaran_raft_read_state:
        uint64_t context
        uint64_t index

    ctypedef struct trimaran_raft_ready:
        uint64_t number
        int must_append
        int status_changed
        const trimaran_hard_state *hard_state
        const trimaran_entry *entries
        size_t entry_count
        const trimaran_raft_message *messages
        size_t message_count
        uint64_t committed_first
        uint64_t committed_last
        const trimaran_entry *committed
        const trimaran_raft_read_state *read_states
        size_t read_state_count
        int install
        uint64_t install_index
        uint64_t install_term

    ctypedef struct trimaran_raft_status:
        int role
        uint64_t id
        uint64_t leader
        uint64_t term
        uint64_t vote
        uint64_t commit
        uint64_t applied
        uint64_t stable
        uint64_t last_index
        uint64_t uncommitted_bytes
        uint64_t transferee
        uint64_t pending_configuration
        uint32_t is_voter
        uint32_t is_learner
        uint32_t is_joint
        uint32_t lease_valid

    ctypedef struct trimaran_raft_change_item:
        uint32_t op
        uint64_t id

    ctypedef struct trimaran_raft_progress:
        uint64_t match
        uint64_t next
        int state
        uint32_t active
        uint32_t is_learner
        uint32_t inflight_messages
        uint64_t inflight_bytes
        uint64_t snapshot_index

    int trimaran_raft_new(const trimaran_raft_config *config, trimaran_raft **out)
    void trimaran_raft_free(trimaran_raft *raft)
    const char *trimaran_raft_new_error()
    void trimaran_raft_tick(trimaran_raft *raft)
    void trimaran_raft_set_clock(trimaran_raft *raft, uint64_t now_us)
    void trimaran_raft_campaign(trimaran_raft *raft)
    int trimaran_raft_step(trimaran_raft *raft, const trimaran_raft_message *message)
    int trimaran_raft_propose(trimaran_raft *raft, uint32_t type, trimaran_payload *payload,
                              uint64_t *index)
    int trimaran_raft_change(trimaran_raft *raft, const trimaran_raft_change_item *changes,
                             size_t count)
    void trimaran_raft_members_get(const trimaran_raft *raft, trimaran_raft_members *out)
    int trimaran_raft_transfer(trimaran_raft *raft, uint64_t to)
    int trimaran_raft_read_index(trimaran_raft *raft, uint64_t context)
    int trimaran_raft_has_ready(const trimaran_raft *raft)
    void trimaran_raft_ready_get(trimaran_raft *raft, trimaran_raft_ready *out)
    void trimaran_raft_append_done(trimaran_raft *raft, uint64_t number)
    void trimaran_raft_applied(trimaran_raft *raft, uint64_t index)
    void trimaran_raft_snapshot_installed(trimaran_raft *raft)
    void trimaran_raft_compacted(trimaran_raft *raft, uint64_t first_index)
    void trimaran_raft_unreachable(trimaran_raft *raft, uint64_t id)
    void trimaran_raft_gone(trimaran_raft *raft, uint64_t id)
    void trimaran_raft_snapshot_sent(trimaran_raft *raft, uint64_t to, uint64_t index)
    void trimaran_raft_snapshot_failed(trimaran_raft *raft, uint64_t to)
    void trimaran_raft_status_get(const trimaran_raft *raft, trimaran_raft_status *out)
    int trimaran_raft_progress_get(const trimaran_raft *raft, uint64_t id,
                                   trimaran_raft_progress *out)


cdef class Ids:
    cdef trimaran_raft_members members
    cdef uint64_t *ids


cdef class Raft:
    cdef trimaran_raft *handle
    cdef object log
    cdef uint64_t last_term
    cdef uint64_t last_number
    cdef uint64_t handed_commit
    cdef uint64_t applied_index
    cdef uint64_t install_index
