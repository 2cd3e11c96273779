from libc.stdint cimport uint32_t, uint64_t

from trimaran.ext.raftlog cimport trimaran_entry, trimaran_hard_state, trimaran_payload


cdef extern from "trimaran/raft.h" nogil:
    ctypedef struct trimaran_raft:
        pass
    enum:
        TRIMARAN_ENTRY_NORMAL

    ctypedef struct trimaran_raft_config:
        uint32_t struct_size
        uint32_t election_ticks
        uint32_t heartbeat_ticks
        uint32_t voter_count
        const uint64_t *voters
        uint64_t id
        uint64_t seed
        uint64_t max_uncommitted_bytes
        trimaran_hard_state hard_state
        uint64_t first_index
        uint64_t last_index
        uint64_t applied_index
        int (*term)(void *context, uint64_t index, uint64_t *term)
        void *term_context

    ctypedef struct trimaran_raft_message:
        uint32_t type
        uint32_t reject
        uint64_t to
        uint64_t term
        uint64_t log_term
        uint64_t index
        uint64_t commit
        uint64_t context
        const trimaran_entry *entries
        size_t entry_count
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

    int trimaran_raft_new(const trimaran_raft_config *config, trimaran_raft **out)
    void trimaran_raft_free(trimaran_raft *raft)
    const char *trimaran_raft_new_error()
    void trimaran_raft_tick(trimaran_raft *raft)
    void trimaran_raft_campaign(trimaran_raft *raft)
    int trimaran_raft_step(trimaran_raft *raft, const trimaran_raft_message *message)
    int trimaran_raft_propose(trimaran_raft *raft, trimaran_payload *payload, uint64_t *index)
    int trimaran_raft_read_index(trimaran_raft *raft, uint64_t context)
    int trimaran_raft_has_ready(const trimaran_raft *raft)
    void trimaran_raft_ready_get(trimaran_raft *raft, trimaran_raft_ready *out)
    void trimaran_raft_append_done(trimaran_raft *raft, uint64_t number)
    void trimaran_raft_applied(trimaran_raft *raft, uint64_t index)
    void trimaran_raft_status_get(const trimaran_raft *raft, trimaran_raft_status *out)


cdef class Raft:
    cdef trimaran_raft *handle
    cdef uint64_t last_number
    cdef uint64_t handed_commit
    cdef uint64_t applied_index
