/* One member of the store: raft, its log, and the state, driven one turn at a time.
 *
 * A turn sends what the service has gathered to the leader, which this member may be itself, hands
 * entries to the log, applies what is committed and so answers those that wait. Messages to other
 * members gather in an outbox, which the owner empties after each turn. The log is reached through
 * a table of functions: the log thread in a daemon, anything that keeps its promises elsewhere.
 */
#ifndef TRIMARAN_MEMBER_H
#define TRIMARAN_MEMBER_H

#include "logthread.h"
#include "peerframe.h"
#include "service.h"
#include "trimaran/raft.h"

/* As the functions of logthread.h and raftlog.h of the same names. */
typedef struct trimaran_member_log {
    void *context;
    int (*submit)(void *context, const trimaran_hard_state *hard_state,
                  const trimaran_entry *entries, size_t count, uint64_t *sequence);
    int (*append)(void *context, const trimaran_hard_state *hard_state,
                  const trimaran_entry *entries, size_t count, uint64_t *sequence);
    int (*is_quick)(void *context);
    void (*completed)(void *context, trimaran_logthread_completion *out);
    int (*read)(void *context, uint64_t first, uint64_t last, uint64_t max_bytes,
                trimaran_raftlog_visitor visitor, void *visitor_context);
    int (*reset)(void *context, const trimaran_hard_state *hard_state, uint64_t index,
                 uint64_t term);
} trimaran_member_log;

/* A log on disk with the threads that write it, or, where it is manual, without: then what is
 * submitted becomes durable by trimaran_manuallog_flush alone. */
typedef struct trimaran_member_disk {
    trimaran_raftlog *log; /* the caller's, to be closed after this */
    trimaran_logthread *thread;
    struct trimaran_manuallog *manual;
} trimaran_member_disk;
int trimaran_member_disk_open(trimaran_member_disk *disk, trimaran_raftlog *log, bool manual);
/* With abandon, what a manual log has queued is lost. */
void trimaran_member_disk_close(trimaran_member_disk *disk, bool abandon);
/* Drop entries up to index: soon, or at once from a manual log. */
int trimaran_member_disk_compact(trimaran_member_disk *disk, uint64_t index);
trimaran_member_log trimaran_member_disk_log(trimaran_member_disk *disk);

/* Write the entry that founds a cluster, the same on each of its first members, where log and state
 * are new; otherwise nothing. -EINVAL: it is no configuration. */
int trimaran_member_found(trimaran_raftlog *log, trimaran_mvcc *mvcc, trimaran_slice entry);

/* Who belongs to the group as the state has it; empty where this member joins one. Data written
 * before there were groups belongs to this member alone, and so does new data where alone says so.
 * -EUCLEAN: the state's row is malformed. The caller frees ids, which the members point into. */
typedef struct trimaran_member_group {
    uint64_t *ids;
    trimaran_raft_members members;
} trimaran_member_group;
int trimaran_member_load_group(trimaran_raftlog *log, trimaran_mvcc *mvcc, uint64_t id,
                               bool alone, trimaran_member_group *out);

typedef struct trimaran_member trimaran_member;

/* The member borrows all of them. election_ticks tells when to repeat what may have been lost. */
trimaran_member *trimaran_member_create(trimaran_raft *raft, const trimaran_member_log *log,
                                        trimaran_mvcc *mvcc, trimaran_service *service,
                                        uint32_t election_ticks);
void trimaran_member_destroy(trimaran_member *member);

/* Do all that can be done without waiting. Returns true where another turn would find work: the
 * owner sends what is in the outbox first, because a leader's own flush may wait for that turn. */
bool trimaran_member_turn(trimaran_member *member);
/* Time passes by one tick. */
void trimaran_member_tick(trimaran_member *member);

/* A whole frame of a kind below TRIMARAN_FRAME_PYTHON from that member. -EPROTO: no correct peer
 * sends it; the connection is to be closed. */
int trimaran_member_receive(trimaran_member *member, uint64_t peer_id,
                            const trimaran_frame *frame);
/* What was sent to that member may be lost. */
void trimaran_member_unreachable(trimaran_member *member, uint64_t peer_id);

/* Propose a change of configuration, whose bytes are as configuration.h says with the head left to
 * be filled. Takes the payload over. The outcome is a result of kind CHANGE. */
void trimaran_member_propose_change(trimaran_member *member, trimaran_payload *payload,
                                    uint64_t token);

/* Frames to be sent to one member, in order. */
typedef struct trimaran_member_post {
    uint64_t to;
    trimaran_buffer frames;
} trimaran_member_post;
/* The posts with something in them; clear when it is sent or copied. */
size_t trimaran_member_outbox(trimaran_member *member, const trimaran_member_post **out);
void trimaran_member_outbox_clear(trimaran_member *member);
/* Take the members that a snapshot is to be streamed to; valid until the next turn. */
bool trimaran_member_has_snapshot_requests(const trimaran_member *member);
size_t trimaran_member_snapshot_requests(trimaran_member *member, const uint64_t **out);

/* Entries up to index are about to be dropped from the log. */
void trimaran_member_compacted(trimaran_member *member, uint64_t index);

/* A state that a leader has sent, complete beside one's own, and opened. */
typedef struct trimaran_member_snapshot {
    uint64_t from, term;   /* of the leader's request to take it */
    trimaran_mvcc *fresh;  /* the caller's; holds the old state once it is installed */
    trimaran_watchhub *hub;
    const char *directory; /* of one's own; has to stay until the state is installed */
} trimaran_member_snapshot;
/* Install it. Returns false where it is no news; on a full disk it returns true and goes on in
 * later turns, during which is_installing. */
bool trimaran_member_install(trimaran_member *member, const trimaran_member_snapshot *snapshot);
bool trimaran_member_is_installing(const trimaran_member *member);

/* The error of the log that writes wait for (-ENOSPC), 0 where all is well. */
int trimaran_member_log_error(const trimaran_member *member);

typedef struct trimaran_member_counts {
    uint64_t forwarded;        /* batches sent to a leader, repetitions included */
    uint64_t forwards;         /* batches of others taken into the log */
    uint64_t dropped_forwards; /* batches of others that came to the wrong place or time */
    uint64_t strangers;        /* messages of those who are no members */
    uint64_t leader_changes;
} trimaran_member_counts;
trimaran_member_counts trimaran_member_count(const trimaran_member *member);
/* Grows whenever role, leader or term change. */
uint64_t trimaran_member_status_version(const trimaran_member *member);

#endif
