/* The native thread that owns the raft log while a store runs.
 *
 * The loop's thread hands batches over and goes on; the log thread makes everything queued durable
 * with one flush and says so through an eventfd. A second thread moves entries from the journal to
 * LMDB, so that no append waits for that. Neither takes the GIL.
 */
#ifndef TRIMARAN_LOGTHREAD_H
#define TRIMARAN_LOGTHREAD_H

#include "trimaran/raftlog.h"

typedef struct trimaran_logthread trimaran_logthread;

typedef struct trimaran_logthread_completion {
    uint64_t sequence; /* every submission up to this one is durable */
    uint64_t index;    /* last entry made durable, 0: none yet */
    uint64_t term;     /* its term */
    int error;         /* 0; -ENOSPC while the log is full: the queue is kept and tried again */
} trimaran_logthread_completion;

/* Start on a log, which the caller still owns and closes after stop. */
int trimaran_logthread_start(trimaran_raftlog *log, trimaran_logthread **out);

/* Readable when the completion has changed; non-blocking, for the loop's poll. */
int trimaran_logthread_fd(const trimaran_logthread *thread);

/* Queue a hard state (or NULL) and entries, and return the submission's sequence number (1, 2, ..)
 * in *sequence. Takes a reference of each payload until it is durable; an entry without a payload
 * is copied. -ENOMEM: nothing was queued. */
int trimaran_logthread_submit(trimaran_logthread *thread, const trimaran_hard_state *hard_state,
                              const trimaran_entry *entries, size_t count, uint64_t *sequence);

/* The same, but flushed by the calling thread, which saves a lone writer two context switches;
 * durable on return 0, and counted as a submission (completion shows it; the eventfd stays quiet).
 * -EAGAIN: the log is busy, -ENOSPC: it is full; in both cases nothing was done: submit instead. */
int trimaran_logthread_append(trimaran_logthread *thread, const trimaran_hard_state *hard_state,
                              const trimaran_entry *entries, size_t count, uint64_t *sequence);

/* Whether an append by the calling thread is likely to take no longer than handing it over: recent
 * flushes were quick and the journal has room. On a slow disk the loop must not wait. */
int trimaran_logthread_is_quick(trimaran_logthread *thread);

/* Read the completion and quiet the eventfd. */
void trimaran_logthread_completed(trimaran_logthread *thread, trimaran_logthread_completion *out);

/* Have the second thread drop the entries up to index, some time soon. Without room for it on the
 * disk it tries again. index must be durable. */
void trimaran_logthread_compact(trimaran_logthread *thread, uint64_t index);

/* Wait until all that is queued is durable, then drop everything as trimaran_raftlog_reset does. To
 * be called by the one who submits. -ENOSPC: nothing was reset, ask again; -EINVAL. */
int trimaran_logthread_reset(trimaran_logthread *thread, const trimaran_hard_state *hard_state,
                             uint64_t index, uint64_t term);

/* Make everything queued durable, stop both threads and free. Returns -ENOSPC if the queue could
 * not be written; nothing of it had been acknowledged. NULL is allowed. */
int trimaran_logthread_stop(trimaran_logthread *thread);

#endif
