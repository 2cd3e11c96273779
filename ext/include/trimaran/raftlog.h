/* A durable, replicated-log store: raft entries by index, the hard state, and a first-index marker.
 *
 * An append is durable when its record is in a small pre-allocated journal; entries move from there
 * into LMDB in batches. Every function may be called from any thread; appends take turns. Functions
 * return 0 or -errno. Errors beyond the argument checks:
 *   -EWOULDBLOCK  another process (or another handle in this one) has the directory open
 *   -ENOSPC       the disk or the LMDB map is full; nothing was changed
 *   -EUCLEAN      what is stored contradicts its checksums or itself; it is refused, not repaired
 * A flush that fails leaves it unknown what is on disk, so the process aborts: only a restart,
 * which reads the disk again, can tell.
 */
#ifndef TRIMARAN_RAFTLOG_H
#define TRIMARAN_RAFTLOG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes shared by those who must not copy them: the proposer, raft, the log thread, the applier.
 * Counted by reference; the count may be changed from any thread. */
typedef struct trimaran_payload trimaran_payload;

/* Return a payload of size bytes, not yet written, with one reference; NULL without memory. */
trimaran_payload *trimaran_payload_new(size_t size);
uint8_t *trimaran_payload_data(trimaran_payload *payload);
size_t trimaran_payload_size(const trimaran_payload *payload);
/* Cut the payload to its first size bytes; only before anyone else holds it. */
void trimaran_payload_shrink(trimaran_payload *payload, size_t size);
trimaran_payload *trimaran_payload_retain(trimaran_payload *payload);
/* Give one reference back; NULL is allowed. */
void trimaran_payload_release(trimaran_payload *payload);

typedef struct trimaran_entry {
    uint64_t index;
    uint64_t term;
    uint32_t type; /* the log stores it and gives it back; see raft.h */
    uint32_t size; /* bytes at data */
    const uint8_t *data;
    trimaran_payload *payload; /* who keeps data alive, or NULL; the log itself ignores it */
} trimaran_entry;

typedef struct trimaran_hard_state {
    uint64_t term;
    uint64_t vote; /* member id, 0: none */
    uint64_t commit;
} trimaran_hard_state;

typedef struct trimaran_raftlog_options {
    uint32_t struct_size;        /* sizeof(trimaran_raftlog_options), so that fields can be added */
    uint32_t flags;              /* TRIMARAN_RAFTLOG_* */
    uint64_t map_size_bytes;     /* the most that data.mdb may grow to; 0: 16 GiB */
    uint64_t journal_size_bytes; /* 0: 64 MiB; at least 64 KiB; an existing one keeps its size */
} trimaran_raftlog_options;

/* Write the journal through the page cache with fdatasync, not with O_DIRECT and O_DSYNC. */
#define TRIMARAN_RAFTLOG_BUFFERED 1u

typedef struct trimaran_raftlog trimaran_raftlog;

/* Called for each entry read; data is valid during the call, which must not call the log. Return 0
 * to go on; anything else stops the read, which then returns that. */
typedef int (*trimaran_raftlog_visitor)(void *context, const trimaran_entry *entry);

/* Open or create the log in directory, which is created if only its last part is missing. options
 * may be NULL. Replays the journal. */
int trimaran_raftlog_open(const char *directory, const trimaran_raftlog_options *options,
                          trimaran_raftlog **out);

/* Move everything to LMDB, release the directory and free the log. NULL is allowed. -ENOSPC means
 * that the entries stay in the journal, which is as durable. */
int trimaran_raftlog_close(trimaran_raftlog *log);

/* Store the hard state (where not NULL) and count entries of consecutive indexes; durable on
 * return. Entries at or after the first new index are replaced. -EINVAL: the first new index is not
 * in first_index..last_index + 1, a committed entry would be replaced, or the hard state's commit
 * is past the last index. */
int trimaran_raftlog_append(trimaran_raftlog *log, const trimaran_hard_state *hard_state,
                            const trimaran_entry *entries, size_t count);

/* Visit entries first..last in order, until their data passes max_bytes (the first is always
 * visited). -ENOENT if first is compacted or last is past the end. */
int trimaran_raftlog_read(trimaran_raftlog *log, uint64_t first, uint64_t last, uint64_t max_bytes,
                          trimaran_raftlog_visitor visitor, void *context);

/* Index of the first entry held: one past the compaction marker, 1 in a new log. */
uint64_t trimaran_raftlog_first_index(trimaran_raftlog *log);
/* Index of the last entry; first_index - 1 where there is none. */
uint64_t trimaran_raftlog_last_index(trimaran_raftlog *log);
/* Term of an entry, or of the marker at first_index - 1. -ENOENT outside of these. */
int trimaran_raftlog_term(trimaran_raftlog *log, uint64_t index, uint64_t *term);
/* The hard state last appended, all zero in a new log. */
void trimaran_raftlog_hard_state(trimaran_raftlog *log, trimaran_hard_state *out);

/* Drop the entries up to and with index, keep its term. 0 at once if they are gone already,
 * -EINVAL past the last index. */
int trimaran_raftlog_compact(trimaran_raftlog *log, uint64_t index);

/* Drop everything, to go on after a snapshot of that index and term: first_index becomes index + 1.
 * The hard state (the one given, or where it is NULL the one held) gets index as its commit.
 * Durable on return; whole or not at all. -EINVAL where more than index is committed here. */
int trimaran_raftlog_reset(trimaran_raftlog *log, const trimaran_hard_state *hard_state,
                           uint64_t index, uint64_t term);

/* Move what is in the journal to LMDB now; appends go on meanwhile. */
int trimaran_raftlog_settle(trimaran_raftlog *log);

typedef struct trimaran_raftlog_status {
    uint64_t appends;             /* records made durable since open */
    uint64_t settles;             /* moves to LMDB since open */
    uint64_t journal_bytes;       /* capacity of the journal */
    uint64_t journal_used_bytes;  /* of it, not yet moved to LMDB */
    uint64_t replayed_entries;    /* found in the journal by open */
    uint64_t discarded_records;   /* torn at its end, dropped by open: 0 or 1 */
    uint32_t direct;              /* 1: O_DIRECT and O_DSYNC, 0: fdatasync */
    uint32_t reserved;
} trimaran_raftlog_status;

void trimaran_raftlog_status_get(trimaran_raftlog *log, trimaran_raftlog_status *out);

/* What the last failed open on this thread found, as one sentence for the operator. */
const char *trimaran_raftlog_open_error(void);

#ifdef __cplusplus
}
#endif
#endif
