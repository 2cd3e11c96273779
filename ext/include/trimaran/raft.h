/* Raft as a pure state machine: no clock, no disk, no network, no randomness of its own.
 *
 * Inputs are step, tick, propose, change, read_index, append_done, applied and a few reports of the
 * transport; the only output is Ready. The caller's duties for each Ready, in this order:
 *   1. install the snapshot that has arrived, if install; nothing is appended before
 *      snapshot_installed is called;
 *   2. hand hard_state and entries to the log (one submission), if must_append;
 *   3. send messages, which need not wait for 2;
 *   4. apply the committed entries in order and call applied (and change, for each entry of type
 *      CONFIGURATION, before applied);
 *   5. answer the read states, once applied has reached their index.
 * When the submission of 2 is durable, call append_done with that Ready's number. What must not be
 * sent before the flush (votes, acknowledgements) is held back inside and comes out of a later
 * Ready. The same configuration, log and inputs give the same outputs, always.
 *
 * Sections cited are those of Ongaro's thesis, "Consensus: Bridging Theory and Practice".
 * Not thread-safe. Functions return 0 or -errno.
 */
#ifndef TRIMARAN_RAFT_H
#define TRIMARAN_RAFT_H

#include "trimaran/raftlog.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct trimaran_raft trimaran_raft;

/* Entry types, stored with each entry. A new leader's first entry is NORMAL of size 0; a
 * CONFIGURATION of size 0 leaves a joint configuration. What else an entry holds is the owner's. */
#define TRIMARAN_ENTRY_NORMAL 0u
#define TRIMARAN_ENTRY_CONFIGURATION 1u

typedef enum trimaran_raft_role {
    TRIMARAN_RAFT_FOLLOWER = 0,
    TRIMARAN_RAFT_CANDIDATE = 1,
    TRIMARAN_RAFT_LEADER = 2,
    TRIMARAN_RAFT_PRE_CANDIDATE = 3,
} trimaran_raft_role;

/* Who belongs to the group. Outgoing voters are there while a joint configuration is (§4.3), and
 * so are learners_next, the outgoing voters that become learners when it is left. */
typedef struct trimaran_raft_members {
    const uint64_t *voters, *outgoing, *learners, *learners_next;
    uint32_t voter_count, outgoing_count, learner_count, learner_next_count;
    uint32_t auto_leave; /* the leader leaves the joint configuration by itself */
    uint32_t reserved;
} trimaran_raft_members;

/* Flags. Ask before disturbing the group with a new term (§9.6). */
#define TRIMARAN_RAFT_USE_PRE_VOTE 1u
/* A leader without a majority steps down (§6.2), and members that hear from their leader ignore
 * candidates (§4.2.3). */
#define TRIMARAN_RAFT_USE_CHECK_QUORUM 2u

typedef struct trimaran_raft_config {
    uint32_t struct_size;     /* sizeof(trimaran_raft_config) */
    uint32_t election_ticks;  /* a follower campaigns after this to twice this many ticks */
    uint32_t heartbeat_ticks; /* less than election_ticks */
    uint32_t flags;           /* TRIMARAN_RAFT_USE_* */
    uint64_t id;              /* of this member, not 0 */
    uint64_t seed;            /* of the election time-outs */
    /* As applied in the state; copied. A member that is no voter of it never campaigns. All empty:
     * it joins a group that it does not know yet. */
    trimaran_raft_members members;
    uint64_t max_uncommitted_bytes;  /* propose is refused above; 0: no limit */
    uint64_t max_message_bytes;      /* of entries in one message; 0: 1 MiB */
    uint32_t max_inflight_messages;  /* unanswered appends to one follower; 0: 256 */
    uint32_t reserved;
    uint64_t max_inflight_bytes;     /* of entries in them; 0: 64 MiB */
    /* A leader answers reads on its own this long after a majority's answer (§6.4.1); needs
     * CHECK_QUORUM and set_clock, and must be shorter than election_ticks - 1 ticks take on the
     * fastest clock of the group. 0: each read is confirmed by a round of heartbeats. */
    uint64_t lease_us;
    /* What the log and the state hold at start. */
    trimaran_hard_state hard_state;
    uint64_t first_index;   /* of the log; 1 in a new one */
    uint64_t last_index;    /* first_index - 1 where the log is empty */
    uint64_t applied_index; /* entries up to it are in the state already */
    /* Term of an entry that is in the log (first_index - 1 included): 0 or -errno. */
    int (*term)(void *context, uint64_t index, uint64_t *term);
    /* As trimaran_raftlog_read. Called within ready_get for followers that lag; may be NULL in a
     * group of one. */
    int (*read)(void *context, uint64_t first, uint64_t last, uint64_t max_bytes,
                trimaran_raftlog_visitor visitor, void *visitor_context);
    void *log_context; /* of both */
} trimaran_raft_config;

typedef enum trimaran_raft_message_type {
    TRIMARAN_RAFT_VOTE = 1,
    TRIMARAN_RAFT_VOTE_RESPONSE = 2,
    TRIMARAN_RAFT_PRE_VOTE = 3,
    TRIMARAN_RAFT_PRE_VOTE_RESPONSE = 4,
    TRIMARAN_RAFT_APPEND = 5,
    TRIMARAN_RAFT_APPEND_RESPONSE = 6,
    TRIMARAN_RAFT_HEARTBEAT = 7,
    TRIMARAN_RAFT_HEARTBEAT_RESPONSE = 8,
    TRIMARAN_RAFT_SNAPSHOT = 9,
    TRIMARAN_RAFT_TIMEOUT_NOW = 10,
    TRIMARAN_RAFT_READ_INDEX = 11,
    TRIMARAN_RAFT_READ_INDEX_RESPONSE = 12,
} trimaran_raft_message_type;

/* A message between members. Every field travels but members and payloads; those that a type does
 * not use are 0. An outgoing SNAPSHOT asks the owner to stream a snapshot to `to`; once its data
 * has arrived whole, the receiving owner steps SNAPSHOT with index, log_term and members of it. */
typedef struct trimaran_raft_message {
    uint32_t type;
    uint8_t reject;
    uint8_t force; /* VOTE: the leader asked for this election; no one need wait for it (§4.2.3) */
    uint16_t reserved;
    uint64_t from, to;
    uint64_t term;
    /* The entry before entries; VOTE: the last entry; APPEND_RESPONSE: the entry matched or, with
     * reject, refused; SNAPSHOT: its last; READ_INDEX_RESPONSE: the read index. */
    uint64_t log_term, index;
    uint64_t commit;
    uint64_t context;               /* HEARTBEAT: its round; READ_INDEX: the asker's */
    /* APPEND_RESPONSE with reject: where the logs may agree; votes: the term of entry commit. */
    uint64_t hint_index, hint_term;
    const trimaran_entry *entries;
    size_t entry_count;
    const trimaran_raft_members *members; /* a received SNAPSHOT's, else NULL */
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
    /* Replace state and log by the snapshot stepped before, whose last entry is this one, and store
     * hard_state with it; then call snapshot_installed. must_append is 0 then. */
    int install;
    uint64_t install_index, install_term;
} trimaran_raft_ready;

typedef struct trimaran_raft_status {
    trimaran_raft_role role;
    uint64_t id, leader; /* leader 0: none known */
    uint64_t term, vote;
    uint64_t commit, applied;
    uint64_t stable, last_index; /* last durable, last held */
    uint64_t uncommitted_bytes;
    uint64_t transferee;            /* who is to become leader; 0: nobody */
    uint64_t pending_configuration; /* leader: index of the last change, 0 once it is applied */
    uint32_t is_voter, is_learner, is_joint; /* this member, as its configuration says */
    uint32_t lease_valid;                    /* reads are answered without a round */
} trimaran_raft_status;

typedef enum trimaran_raft_change_op {
    TRIMARAN_RAFT_ADD_VOTER = 1, /* promotes a learner */
    TRIMARAN_RAFT_ADD_LEARNER = 2, /* demotes a voter */
    TRIMARAN_RAFT_REMOVE = 3,
} trimaran_raft_change_op;

typedef struct trimaran_raft_change_item {
    uint32_t op; /* trimaran_raft_change_op */
    uint32_t reserved;
    uint64_t id;
} trimaran_raft_change_item;

typedef enum trimaran_raft_progress_state {
    TRIMARAN_RAFT_PROBE = 0,     /* one message at a time, until it is known what it has */
    TRIMARAN_RAFT_REPLICATE = 1, /* in step: messages follow each other without waiting */
    TRIMARAN_RAFT_SNAPSHOTTING = 2,
} trimaran_raft_progress_state;

typedef struct trimaran_raft_progress {
    uint64_t match; /* it has the log durably up to here */
    uint64_t next;  /* the first entry not yet sent */
    trimaran_raft_progress_state state;
    uint32_t active; /* heard from within an election time-out */
    uint32_t is_learner;
    uint32_t inflight_messages;
    uint64_t inflight_bytes;
    uint64_t snapshot_index; /* of the snapshot sent to it, 0: none, or not sent yet */
} trimaran_raft_progress;

/* -EINVAL: the configuration contradicts itself; -EUCLEAN: the log and the state contradict each
 * other. */
int trimaran_raft_new(const trimaran_raft_config *config, trimaran_raft **out);
void trimaran_raft_free(trimaran_raft *raft);
/* Why the last trimaran_raft_new on this thread failed, as one sentence. */
const char *trimaran_raft_new_error(void);

/* Time passes by one tick. */
void trimaran_raft_tick(trimaran_raft *raft);
/* For the lease alone: what a clock says that never goes back. Tell it before tick, step and
 * read_index. */
void trimaran_raft_set_clock(trimaran_raft *raft, uint64_t now_us);
/* Stand for election now, without waiting for the time-out. Nothing on a leader, on who is no voter
 * or has a change of configuration committed and not applied. */
void trimaran_raft_campaign(trimaran_raft *raft);
/* A message of another member; its entries' payloads are retained, entries without one are copied.
 * A message that is not 0 changed nothing and is dropped. -ENOENT: an answer of who is no member;
 * -EINVAL: its fields contradict each other; -EPROTO: no correct member of this group sends it. */
int trimaran_raft_step(trimaran_raft *raft, const trimaran_raft_message *message);

/* Append an entry of one's own; its index goes to *index. Takes the caller's reference on success;
 * payload NULL is an empty entry. -EAGAIN: this member is not the leader, or hands its office over;
 * -EBUSY: more than max_uncommitted_bytes wait to be committed; -EMSGSIZE: 4 GiB or more;
 * -EINPROGRESS: a change of configuration is not applied or a joint one not left; -EINVAL: of an
 * unknown type, or leaves a joint configuration where none is. */
int trimaran_raft_propose(trimaran_raft *raft, uint32_t type, trimaran_payload *payload,
                          uint64_t *index);

/* Change the configuration, when a CONFIGURATION entry is applied, the same way on each member.
 * One change takes effect as it is (§4.1); several lead through a joint configuration (§4.3), which
 * the leader leaves with an entry of size 0, applied as count 0. In a group without voters
 * everything takes effect at once. -EINVAL: the changes contradict each other or the configuration;
 * nothing was changed. */
int trimaran_raft_change(trimaran_raft *raft, const trimaran_raft_change_item *changes,
                         size_t count);
/* The configuration now; ids ascend. Pointers are valid until it changes. */
void trimaran_raft_members_get(const trimaran_raft *raft, trimaran_raft_members *out);

/* Hand the office over to a voter (§3.10). Proposals are refused until it has, or an election
 * time-out has passed. -EAGAIN: not the leader; -ENOENT: it is no voter. */
int trimaran_raft_transfer(trimaran_raft *raft, uint64_t to);

/* Ask for an index at which reads are linearizable; the answer is a read state of some later
 * Ready, or never comes if the leader changes: ask again then. A follower asks its leader. Contexts
 * are the caller's; reads of one turn share one. -EAGAIN: no leader is known. */
int trimaran_raft_read_index(trimaran_raft *raft, uint64_t context);

/* Whether a Ready would have any content. */
int trimaran_raft_has_ready(const trimaran_raft *raft);
/* Take what is to be done; each thing is handed out once. Pointers are valid until the next call of
 * any other function but retain/release, change and the getters; a log thread retains what it
 * needs. */
void trimaran_raft_ready_get(trimaran_raft *raft, trimaran_raft_ready *out);
/* Everything of the Readys up to number is durable. */
void trimaran_raft_append_done(trimaran_raft *raft, uint64_t number);
/* Committed entries up to index are applied; lets raft drop them from memory. */
void trimaran_raft_applied(trimaran_raft *raft, uint64_t index);
/* The snapshot that a Ready asked to install is installed, durably, and the log ends with it. */
void trimaran_raft_snapshot_installed(trimaran_raft *raft);

/* The log was compacted: its first index is this now. */
void trimaran_raft_compacted(trimaran_raft *raft, uint64_t first_index);
/* Messages to a member may have been lost. */
void trimaran_raft_unreachable(trimaran_raft *raft, uint64_t id);
/* The process of a member has ended, as far as its machine tells. Whoever follows it stands for
 * election within a few ticks. A hint: where it is wrong, pre-votes are refused and all goes on;
 * without PRE_VOTE it may cost an election. Without effect under leases, where a member's silence
 * is a promise to its leader. */
void trimaran_raft_gone(trimaran_raft *raft, uint64_t id);
/* The snapshot asked for by a SNAPSHOT message reached its receiver whole; its last index. */
void trimaran_raft_snapshot_sent(trimaran_raft *raft, uint64_t to, uint64_t index);
/* It did not, and may be asked for again. */
void trimaran_raft_snapshot_failed(trimaran_raft *raft, uint64_t to);

void trimaran_raft_status_get(const trimaran_raft *raft, trimaran_raft_status *out);
/* What a leader knows of a member. -ENOENT: not the leader, or no member. */
int trimaran_raft_progress_get(const trimaran_raft *raft, uint64_t id, trimaran_raft_progress *out);

#ifdef __cplusplus
}
#endif
#endif
