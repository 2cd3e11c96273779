/* The state store: every retained change by revision, plus small tables, in one LMDB environment.
 *
 * Changes are applied in memory first. They collect in an open batch, which a native thread commits
 * with a full flush, append-only by revision, together with the index of the last log entry it
 * holds; after a crash the log replays what came later. Readers find a revision in the open batch,
 * in the batch being committed, or in LMDB. All functions but the thread's own run on one thread.
 */
#ifndef TRIMARAN_STATE_H
#define TRIMARAN_STATE_H

#include "codec.h"

typedef struct trimaran_state trimaran_state;

/* One change as stored: data is a serialized KeyValue; a tombstone's holds only the key. */
typedef struct trimaran_change {
    int64_t main;
    int32_t sub;
    bool tombstone;
    uint32_t size;
    const uint8_t *data;
} trimaran_change;

/* Open or create the environment in directory (which exists). Returns 0, -errno, or an LMDB code
 * (negative, below -30000). */
int trimaran_state_open(const char *directory, size_t map_size_bytes, trimaran_state **out);
/* Commit everything applied and close. */
void trimaran_state_close(trimaran_state *state);
/* Close without committing what was not sealed yet, as a crash would. */
void trimaran_state_abandon(trimaran_state *state);

/* Add a change; revisions only grow. The returned data lives until the batch is committed. */
trimaran_change trimaran_state_append(trimaran_state *state, int64_t main, int32_t sub,
                                      bool tombstone, const trimaran_key_value *kv);
/* The newest count changes of the open batch, oldest first. */
const trimaran_change *trimaran_state_tail(const trimaran_state *state, size_t count);
/* Forget a change that compaction dropped. */
void trimaran_state_forget(trimaran_state *state, int64_t main, int32_t sub, bool tombstone);
/* Set a row of the small table; a value without data (NULL) removes the row. */
void trimaran_state_set(trimaran_state *state, trimaran_slice key, trimaran_slice value);
void trimaran_state_set_applied(trimaran_state *state, uint64_t index, uint64_t term);
void trimaran_state_applied(const trimaran_state *state, uint64_t *index, uint64_t *term);
/* The applied index that the last commit holds: log entries up to it are no longer needed here. */
uint64_t trimaran_state_persisted(const trimaran_state *state);

/* Find the stored bytes of a live change. Valid until trimaran_state_collect. A revision that the
 * index names must be there: a missing one is corruption and ends the process. */
trimaran_slice trimaran_state_read(trimaran_state *state, int64_t main, int32_t sub);

/* Visit changes with main revision >= from in order, until visit returns false. */
typedef bool (*trimaran_change_visitor)(void *context, const trimaran_change *change);
void trimaran_state_scan(trimaran_state *state, int64_t from, trimaran_change_visitor visit,
                         void *context);
/* Visit the rows of the small table whose key starts with prefix, as committed at open. */
typedef void (*trimaran_row_visitor)(void *context, trimaran_slice key, trimaran_slice value);
void trimaran_state_rows(trimaran_state *state, trimaran_slice prefix, trimaran_row_visitor visit,
                         void *context);

/* Readable when a commit has ended: call collect then. */
int trimaran_state_event_fd(const trimaran_state *state);
/* Take note of an ended commit. Returns true where one had ended. */
bool trimaran_state_collect(trimaran_state *state);
/* Hand the open batch to the thread. Returns false where it is empty or the thread is busy. */
bool trimaran_state_seal(trimaran_state *state);
/* Wait for the commit under way to end, or to meet a full disk, and take note of it. */
void trimaran_state_wait(trimaran_state *state);
/* Batches are numbered from 1: the one being filled, and the last one committed. */
uint64_t trimaran_state_batch_number(const trimaran_state *state);
uint64_t trimaran_state_committed_batch(const trimaran_state *state);
/* Bytes applied and not yet committed. */
size_t trimaran_state_pending_bytes(const trimaran_state *state);
/* The errno of the commit that is being retried (ENOSPC), 0 where all is well. */
int trimaran_state_error(const trimaran_state *state);

/* While held, no batch goes to the thread. */
void trimaran_state_hold(trimaran_state *state, bool held);
/* Whether the thread has nothing to do, and its last commit was collected. */
bool trimaran_state_is_idle(const trimaran_state *state);
/* Note from now on, or no more, which changes compaction drops in what is committed. */
void trimaran_state_track(trimaran_state *state, bool tracking);
/* Take what was noted since track or the last call; the caller frees it. */
trimaran_change *trimaran_state_take_dropped(trimaran_state *state, size_t *count);
/* Let fresh, where nothing happened yet, stand in for state: take over what others know of it, its
 * event's descriptor and the numbers of its batches. */
void trimaran_state_succeed(trimaran_state *fresh, trimaran_state *state);
/* Go on with another file of the same content. The state is held and idle. */
typedef struct trimaran_state_file trimaran_state_file;
int trimaran_state_move(trimaran_state *state, trimaran_state_file *file);

/* Size of the file's used part, and of what the data itself occupies, in bytes. */
void trimaran_state_sizes(const trimaran_state *state, int64_t *total, int64_t *in_use);

#endif
