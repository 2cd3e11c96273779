/* The inside of raft: its state, and what its files ask of each other.
 *
 *   raft.c              configuration, status, time
 *   raft_ready.c        what comes out: Readys, and what waits for the disk
 *   raft_step.c         what comes in: the rules of terms for every message
 *   raft_election.c     roles, votes, leadership transfer
 *   raft_entries.c      the log: appending, truncating, committing, proposing
 *   raft_replication.c  the leader's messages and the followers' answers
 *   raft_follower.c     what a follower does with its leader's messages
 *   raft_progress.c     what a leader knows of each member
 *   raft_members.c      configurations and their quorums
 *   raft_read.c         linearizable reads and the lease
 *
 * One place for each transition between roles (become_*), one function for each role's tick. Out of
 * memory ends the process where a step has begun to take effect.
 */
#ifndef TRIMARAN_RAFT_INTERNAL_H
#define TRIMARAN_RAFT_INTERNAL_H

#include <assert.h>
#include <stdbool.h>

#include "raftwindow.h"
#include "trimaran/raft.h"

#define TRIMARAN_RAFT_MEMBERS_MAX 255u /* of one kind */
#define TRIMARAN_RAFT_NUMBER_MAX (UINT64_MAX / 2) /* no term or index comes near it */

/* An append on its way to a follower. */
typedef struct trimaran_raft_inflight {
    uint64_t last_index, bytes;
} trimaran_raft_inflight;

/* What is known of one member, oneself included. */
typedef struct trimaran_raft_peer {
    uint64_t id;
    bool voter, outgoing, learner, learner_next; /* its part in the configuration */
    bool granted, rejected;                      /* its vote in this election */
    bool active;       /* heard from since the last check of the quorum */
    bool probe_sent;   /* PROBE: nothing more until an answer, or a tick's heartbeat is answered */
    bool poke;         /* an append is due even if empty: it shows what was lost */
    bool may_poke;     /* the next heartbeat's answer causes that */
    trimaran_raft_progress_state state;
    uint64_t match, next;
    uint64_t sent_commit;    /* the commit index it was told last */
    uint64_t acked_round;    /* the last round of heartbeats it answered */
    uint64_t snapshot_index; /* SNAPSHOTTING: what was sent, 0: not yet */
    trimaran_raft_inflight *inflight; /* a ring */
    uint32_t inflight_first, inflight_count, inflight_capacity;
    uint64_t inflight_bytes;
} trimaran_raft_peer;

/* An append handed out in a Ready and not yet durable. */
typedef struct trimaran_raft_append {
    uint64_t number;
    uint64_t last_index, last_term; /* 0: no entries, or none that count any more */
    uint64_t term, vote;            /* of the hard state then */
} trimaran_raft_append;

typedef struct trimaran_raft_held {
    uint64_t after; /* how many appends have to be done before */
    trimaran_raft_message message;
} trimaran_raft_held;

typedef struct trimaran_raft_request {
    uint64_t context;
    uint64_t from;
    uint64_t index; /* the commit index when it was asked */
    uint64_t round; /* the heartbeats that confirm it; 0: nothing of this term is committed yet */
} trimaran_raft_request;

/* Entries read from the log for a message of the Ready handed out. */
typedef struct trimaran_raft_fetched {
    trimaran_entry *entries;
    size_t count, capacity;
} trimaran_raft_fetched;

typedef enum trimaran_raft_install {
    TRIMARAN_RAFT_INSTALL_NONE,
    TRIMARAN_RAFT_INSTALL_WANTED,
    TRIMARAN_RAFT_INSTALL_HANDED,
} trimaran_raft_install;

#define TRIMARAN_RAFT_ROUNDS 64u /* whose times of sending are remembered, for the lease */

struct trimaran_raft {
    uint64_t id;
    uint32_t flags, election_ticks, heartbeat_ticks;
    uint64_t max_uncommitted_bytes, max_message_bytes, max_inflight_bytes, lease_us;
    uint32_t max_inflight_messages;
    int (*term_of)(void *context, uint64_t index, uint64_t *term);
    int (*read)(void *context, uint64_t first, uint64_t last, uint64_t max_bytes,
                trimaran_raftlog_visitor visitor, void *visitor_context);
    void *log_context;
    uint64_t random;

    trimaran_raft_peer *peers; /* ids ascend */
    trimaran_raft_peer *self;  /* in peers; NULL: no member */
    uint32_t peer_count, voter_count, outgoing_count;
    bool auto_leave;
    trimaran_raft_members members; /* as members_get tells it */
    uint64_t *member_ids;

    trimaran_raft_role role;
    uint64_t term, vote, leader;
    uint32_t elapsed_ticks, timeout_ticks; /* since hearing from a leader; leader: since a check */
    uint32_t heartbeat_elapsed_ticks, transfer_elapsed_ticks;
    uint32_t silent_ticks; /* after a start under leases: votes for nobody so long */
    void (*tick)(trimaran_raft *raft);
    uint64_t transferee;
    bool handed_over; /* TIMEOUT_NOW was sent in this term: it may be obeyed at any time */
    bool called;      /* TIMEOUT_NOW came, and waits for a change to be applied */
    bool hurried;     /* the leader is said to be gone: this time-out is a short one */

    trimaran_raftwindow window;
    uint64_t before_index, before_term; /* a term worth remembering: that before the window */
    uint64_t first_index;               /* of the log */
    uint64_t stable;                    /* last durable index */
    uint64_t handed;                    /* last index handed out to be appended */
    uint64_t commit, applied;
    uint64_t handed_commit;             /* last index handed out to be applied */
    uint64_t first_of_term;             /* leader: index of the entry it began its term with */
    uint64_t pending_configuration;     /* leader: no other change before this one is applied */
    uint64_t uncommitted_bytes, counted_from; /* leader: sizes of entries from the latter on */

    uint64_t number; /* of the last Ready */
    trimaran_hard_state handed_state, ready_state;
    trimaran_raft_append *appends; /* oldest first */
    size_t append_count, append_capacity;
    uint64_t appends_handed, appends_done;
    trimaran_raft_role shown_role;
    uint64_t shown_leader, shown_term;
    trimaran_raft_install install;
    uint64_t install_index, install_term;

    trimaran_raft_message *messages, *handed_messages;
    size_t message_count, message_capacity, handed_message_capacity;
    trimaran_raft_held *held; /* oldest first */
    size_t held_count, held_capacity;
    trimaran_raft_fetched *fetched;
    size_t fetched_count, fetched_capacity;

    trimaran_raft_request *requests; /* oldest first */
    size_t request_count, request_capacity;
    uint64_t round;     /* of the heartbeats sent last */
    bool round_wanted;
    uint64_t round_times[TRIMARAN_RAFT_ROUNDS]; /* when round % ROUNDS was sent */
    uint64_t now_us, lease_until_us, lease_round; /* later rounds than this extend the lease */
    trimaran_raft_read_state *reads, *handed_reads;
    size_t read_count, read_capacity, handed_read_capacity;
};

/* raft_ready.c. */

/* Give an array room for count elements; aborts without memory. */
void *trimaran_raft_grow(void *array, size_t *capacity, size_t count, size_t size);
/* Start a message of this term that may leave at once; its other fields are zero. */
trimaran_raft_message *trimaran_raft_send(trimaran_raft *raft, uint32_t type, uint64_t to);
/* The same for one that promises what memory holds now: it leaves once all of it is durable. */
trimaran_raft_message *trimaran_raft_send_durably(trimaran_raft *raft, uint32_t type, uint64_t to);

/* raft_election.c. */

void trimaran_raft_restart_timer(trimaran_raft *raft);
void trimaran_raft_become_follower(trimaran_raft *raft, uint64_t term, uint64_t leader);
/* Own vote of this term is durable. */
void trimaran_raft_own_vote_done(trimaran_raft *raft);
int trimaran_raft_handle_vote(trimaran_raft *raft, const trimaran_raft_message *message);
void trimaran_raft_handle_vote_response(trimaran_raft *raft, trimaran_raft_peer *peer,
                                        const trimaran_raft_message *message);
void trimaran_raft_handle_timeout_now(trimaran_raft *raft, const trimaran_raft_message *message);
/* A change that a called member waited for may be applied now. */
void trimaran_raft_answer_call(trimaran_raft *raft);
/* Tell the transferee to stand for election, once it has the whole log. */
void trimaran_raft_continue_transfer(trimaran_raft *raft);
/* No voter any more: stand for election no longer. */
void trimaran_raft_cancel_candidacy(trimaran_raft *raft);
/* Leave the office, to whom has the whole log if there is one. */
void trimaran_raft_step_down(trimaran_raft *raft);
/* Whether it hears from a leader, so that others' candidacies need not be listened to. */
bool trimaran_raft_has_recent_leader(const trimaran_raft *raft);

/* raft_entries.c. */

static inline uint64_t trimaran_raft_last(const trimaran_raft *raft)
{
    return trimaran_raftwindow_last(&raft->window);
}

/* -ENOENT: the entry is compacted or past the end. */
int trimaran_raft_term_at(const trimaran_raft *raft, uint64_t index, uint64_t *term);
/* The term of an entry that is there. */
uint64_t trimaran_raft_term_of(const trimaran_raft *raft, uint64_t index);
/* The last index in low..high whose term is at most this, low - 1 if none is. */
uint64_t trimaran_raft_last_of_term(const trimaran_raft *raft, uint64_t low, uint64_t high,
                                    uint64_t term);
/* Append an entry of this term. */
uint64_t trimaran_raft_append_own(trimaran_raft *raft, uint32_t type, trimaran_payload *payload);
/* Take the leader's entries, which follow on one that matches. */
void trimaran_raft_take_entries(trimaran_raft *raft, const trimaran_entry *entries, size_t count);
void trimaran_raft_commit_to(trimaran_raft *raft, uint64_t index);
/* Leader: commit what a quorum has. */
void trimaran_raft_maybe_commit(trimaran_raft *raft);
/* Leader: count what earlier leaders left uncommitted. */
void trimaran_raft_count_uncommitted(trimaran_raft *raft);
/* Let go of entries that nobody needs in memory. */
void trimaran_raft_drop_settled(trimaran_raft *raft);
/* Leader: leave a joint configuration once its entry is applied. */
void trimaran_raft_maybe_leave_joint(trimaran_raft *raft);
/* Empty the log in memory: it ends with a snapshot of this. */
void trimaran_raft_restart_log(trimaran_raft *raft, uint64_t index, uint64_t term);

/* raft_replication.c. */

bool trimaran_raft_is_append_due(const trimaran_raft *raft, const trimaran_raft_peer *peer);
bool trimaran_raft_any_append_due(const trimaran_raft *raft);
void trimaran_raft_send_appends(trimaran_raft *raft);
void trimaran_raft_send_heartbeats(trimaran_raft *raft);
void trimaran_raft_forget_fetched(trimaran_raft *raft);
int trimaran_raft_handle_append_response(trimaran_raft *raft, trimaran_raft_peer *peer,
                                         const trimaran_raft_message *message);
int trimaran_raft_handle_heartbeat_response(trimaran_raft *raft, trimaran_raft_peer *peer,
                                            const trimaran_raft_message *message);

/* raft_follower.c. */

int trimaran_raft_handle_append(trimaran_raft *raft, const trimaran_raft_message *message);
int trimaran_raft_handle_heartbeat(trimaran_raft *raft, const trimaran_raft_message *message);
int trimaran_raft_handle_snapshot(trimaran_raft *raft, const trimaran_raft_message *message);

/* raft_progress.c. */

void trimaran_raft_peer_reset(trimaran_raft_peer *peer, uint64_t next);
void trimaran_raft_peer_probe(trimaran_raft_peer *peer, uint64_t next);
void trimaran_raft_peer_replicate(trimaran_raft_peer *peer);
void trimaran_raft_peer_snapshot(trimaran_raft_peer *peer);
bool trimaran_raft_peer_is_full(const trimaran_raft *raft, const trimaran_raft_peer *peer);
void trimaran_raft_peer_fly(trimaran_raft_peer *peer, uint64_t last_index, uint64_t bytes);
/* The appends up to index are answered. */
void trimaran_raft_peer_land(trimaran_raft_peer *peer, uint64_t index);
/* Forget the oldest append in flight. */
void trimaran_raft_peer_lose_one(trimaran_raft_peer *peer);
void trimaran_raft_peer_free(trimaran_raft_peer *peer);

/* raft_members.c. */

trimaran_raft_peer *trimaran_raft_find(const trimaran_raft *raft, uint64_t id);
static inline bool trimaran_raft_votes(const trimaran_raft_peer *peer)
{
    return peer->voter || peer->outgoing;
}
/* Why these members are no configuration; NULL: they are one. */
const char *trimaran_raft_members_error(const trimaran_raft_members *members);
/* Make them the configuration; they were checked. */
void trimaran_raft_members_set(trimaran_raft *raft, const trimaran_raft_members *members);
/* The highest number that a quorum has reached: a majority of each half of the configuration. */
uint64_t trimaran_raft_quorum_match(const trimaran_raft *raft);
uint64_t trimaran_raft_quorum_round(const trimaran_raft *raft);
bool trimaran_raft_quorum_active(const trimaran_raft *raft);
/* Whether this member and that one are a quorum. */
bool trimaran_raft_quorum_with(const trimaran_raft *raft, uint64_t id);
/* 1: the election is won, -1: it is lost, 0: neither yet. */
int trimaran_raft_quorum_votes(const trimaran_raft *raft);
/* Whether one's own word is a quorum. */
static inline bool trimaran_raft_is_alone(const trimaran_raft *raft)
{
    return raft->voter_count == 1 && raft->outgoing_count == 0;
}

/* raft_read.c. */

bool trimaran_raft_committed_in_term(const trimaran_raft *raft);
bool trimaran_raft_lease_is_valid(const trimaran_raft *raft);
/* Begin a round of heartbeats. */
void trimaran_raft_begin_round(trimaran_raft *raft);
/* Answer what the rounds answered so far confirm. */
void trimaran_raft_confirm_reads(trimaran_raft *raft);
/* The first entry of the term is committed: reads may be. */
void trimaran_raft_start_reads(trimaran_raft *raft);
void trimaran_raft_drop_reads(trimaran_raft *raft);
/* The configuration changed: what its quorum promised no longer counts. */
void trimaran_raft_reset_lease(trimaran_raft *raft);
void trimaran_raft_handle_read_index(trimaran_raft *raft, const trimaran_raft_message *message);
void trimaran_raft_handle_read_index_response(trimaran_raft *raft,
                                              const trimaran_raft_message *message);

#endif
