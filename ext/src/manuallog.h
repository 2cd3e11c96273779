/* A log without threads: what is submitted becomes durable when its owner says so.
 *
 * For simulations, which decide what of a member's writes a crash loses. The functions are those of
 * logthread.h, and a member cannot tell the difference.
 */
#ifndef TRIMARAN_MANUALLOG_H
#define TRIMARAN_MANUALLOG_H

#include "logthread.h"

typedef struct trimaran_manuallog trimaran_manuallog;

/* The caller owns log and closes it later. NULL without memory. */
trimaran_manuallog *trimaran_manuallog_create(trimaran_raftlog *log);
/* What was not flushed is lost. NULL is allowed. */
void trimaran_manuallog_destroy(trimaran_manuallog *manual);

int trimaran_manuallog_submit(trimaran_manuallog *manual, const trimaran_hard_state *hard_state,
                              const trimaran_entry *entries, size_t count, uint64_t *sequence);
void trimaran_manuallog_completed(const trimaran_manuallog *manual,
                                  trimaran_logthread_completion *out);

/* How many submissions wait. */
uint64_t trimaran_manuallog_pending(const trimaran_manuallog *manual);
/* Make the oldest count of them durable, or all there are. Returns 0, or the log's error, which is
 * also in the completion; those after the one that failed still wait. */
int trimaran_manuallog_flush(trimaran_manuallog *manual, uint64_t count);

/* Drop what waits and all that the log holds, as trimaran_raftlog_reset does; durable on return. */
int trimaran_manuallog_reset(trimaran_manuallog *manual, const trimaran_hard_state *hard_state,
                             uint64_t index, uint64_t term);

#endif
