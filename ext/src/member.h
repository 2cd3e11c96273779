/* One member of the store: raft, its log, and the state, driven one turn at a time.
 *
 * A turn proposes what the service has gathered, hands entries to the log, applies what is
 * committed and so answers those that wait. The log is reached through a table of functions: the
 * log thread in a daemon, anything that keeps its promises elsewhere.
 */
#ifndef TRIMARAN_MEMBER_H
#define TRIMARAN_MEMBER_H

#include "logthread.h"
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
} trimaran_member_log;

typedef struct trimaran_member trimaran_member;

/* The member borrows all of them. */
trimaran_member *trimaran_member_create(trimaran_raft *raft, const trimaran_member_log *log,
                                        trimaran_mvcc *mvcc, trimaran_service *service);
void trimaran_member_destroy(trimaran_member *member);

/* Do all that can be done without waiting. Returns true where another turn would find work. */
bool trimaran_member_turn(trimaran_member *member);

/* The error of the log that writes wait for (-ENOSPC), 0 where all is well. */
int trimaran_member_log_error(const trimaran_member *member);

#endif
