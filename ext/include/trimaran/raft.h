/* Raft as a pure state machine: no clock, no disk, no network, no randomness of its own.
 *
 * Inputs are step, tick, propose, read_index, append_done and applied; the only output is Ready.
 * The caller's duties for each Ready, in this order:
 *   1. hand hard_state and entries to the log (one submission), if must_append;
 *   2. send messages, which need not wait for 1;
 *   3. apply the committed entries in order and call applied;
 *   4. answer the read states, once applied has reached their index.
 * When the submission of 1 is durable, call append_done with that Ready's number. What must not be
 * sent before the flush (votes, acknowledgements) is held back inside and comes out of a later
 * Ready. The same configuration, log and inputs give the same outputs, always.
 *
 * Sections cited in raft.c are those of Ongaro's thesis, "Consensus: Bridging Theory and Practice".
 * Not thread-safe. Functions return 0 or -errno.
 */
#ifndef TRIMARAN_RAFT_H
#define TRIMARAN_RAFT_H

#include "trimaran/raftlog.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct trimaran_raft trimaran_raft;

/* Entry types, stored with each entry. A new leader's first entry is NORMAL of size 0. */
#define TRIMARAN_ENTRY_NORMAL 0u

typedef enum trimaran_raft_role {
    TRIMARAN_RAFT_FOLLOWER = 0,
    TRIMARAN_RAFT_CANDIDATE = 1,
    TRIMARAN_RAFT_LEADER = 2,
} trimaran_raft_role;

typedef struct trimaran_raft_config {
    uint32_t struct_size;     /* sizeof(trimaran_raft_config) */
    uint32_t election_ticks;  /* a follower campaigns after this to twice this many ticks */
    uint32_t heartbeat_ticks; /* less than election_ticks */
    uint32_t voter_count;
    const uint64_t *voters; /* member ids, not 0, without repeats; copied */
    uint64_t id;            /* of this member, not 0 */
    uint64_t seed;          /* of the election time-outs */
    uint64_t max_uncommitted_bytes; /* propose is refused above; 0: no limit */
    /* What the log and the state hold at start. */
    trimaran_hard_state hard_state;
    uint64_t first_index;   /* of the log; 1 in a new one */
    uint64_t last_index;    /* first_index - 1 where the log is empty */
    uint64_t applied_index; /* entries up to it are in the state already */
    /* Term of an entry that is in the log (first_index - 1 included): 0 or -errno. */
    int (*term)(void *context, uint64_t index, uint64_t *term);
    void *term_context;
} trimaran_raft_config;

/* Messages between members. Replication brings the types; a group of one sends none. */
typedef struct trimaran_raft_message {
    uint32_t type;
    uint32_t reject;
    uint64_t from, to;
    uint64_t term;
    uint64_t log_term, index; /* the entry before entries */
    uint64_t commit;
    uint64_t context;
    const trimaran_entry *entries;
    size_t entry_count;
} trimaran_raft_message;

typedef struct trimaran_raft_read_state {
    uint64_t context; /* as given to read_index */
    uint64_t index;   /* reads at or after this applied index are linearizable */
} trimaran_raft_read_state;

typedef struct trimaran_raft_ready {
    uint64_t number;                       /* 1, 2, ..: for append_done */
    int must_append;                       /* hard_state or entries have to be made durable */
    int status_changed;                    /* role, leader or term differ from the Ready before */
    const trimaran_hard_state *hard_state; /* NULL: unchanged */
    const trimaran_entry *entries;         /* to append, replacing a conflicting suffix */
    size_t entry_count;
    const trimaran_raft_message *messages;
    size_t message_count;
    uint64_t committed_first, committed_last; /* to apply now; both 0: none */
    const trimaran_entry *committed; /* those entries, or NULL: they are only in the log, read it */
    const trimaran_raft_read_state *read_states;
    size_t read_state_count;
} trimaran_raft_ready;

typedef struct trimaran_raft_status {
    trimaran_raft_role role;
    uint64_t id, leader; /* leader 0: none known */
    uint64_t term, vote;
    uint64_t commit, applied;
    uint64_t stable, last_index; /* last durable, last held */
    uint64_t uncommitted_bytes;
} trimaran_raft_status;

/* -EINVAL: the configuration contradicts itself; -ENOTSUP: more than one voter, which this version
 * does not replicate to; -EUCLEAN: the log and the state contradict each other. */
int trimaran_raft_new(const trimaran_raft_config *config, trimaran_raft **out);
void trimaran_raft_free(trimaran_raft *raft);
/* Why the last trimaran_raft_new on this thread failed, as one sentence. */
const char *trimaran_raft_new_error(void);

/* Time passes by one tick. */
void trimaran_raft_tick(trimaran_raft *raft);
/* Stand for election now, without waiting for the time-out. Nothing on a leader or candidate. */
void trimaran_raft_campaign(trimaran_raft *raft);
/* A message of another member. -ENOENT: its sender is no member of the group. */
int trimaran_raft_step(trimaran_raft *raft, const trimaran_raft_message *message);

/* Append an entry of one's own; its index goes to *index. Takes the caller's reference on success;
 * payload NULL is an empty entry. -EAGAIN: this member is not the leader; -EBUSY: more than
 * max_uncommitted_bytes wait to be committed; -EMSGSIZE: 4 GiB or more. */
int trimaran_raft_propose(trimaran_raft *raft, trimaran_payload *payload, uint64_t *index);

/* Ask for an index at which reads are linearizable; the answer is a read state of some later
 * Ready, or never comes if this member stops being leader. -EAGAIN: it is not the leader. */
int trimaran_raft_read_index(trimaran_raft *raft, uint64_t context);

/* Whether a Ready would have any content. */
int trimaran_raft_has_ready(const trimaran_raft *raft);
/* Take what is to be done; each thing is handed out once. Pointers are valid until the next call of
 * any other function but retain/release and the getters; a log thread retains what it needs. */
void trimaran_raft_ready_get(trimaran_raft *raft, trimaran_raft_ready *out);
/* Everything of the Readys up to number is durable. */
void trimaran_raft_append_done(trimaran_raft *raft, uint64_t number);
/* Committed entries up to index are applied; lets raft drop them from memory. */
void trimaran_raft_applied(trimaran_raft *raft, uint64_t index);

void trimaran_raft_status_get(const trimaran_raft *raft, trimaran_raft_status *out);

#ifdef __cplusplus
}
#endif
#endif
