/* The raft log's LMDB environment: what has left the journal.
 *
 * Calls that write take turns (the caller sees to it); a transaction begins and ends within one
 * call, so on one thread. Reads may go on beside them, from any thread.
 */
#ifndef TRIMARAN_LOGTABLE_H
#define TRIMARAN_LOGTABLE_H

#include <lmdb.h>
#include <pthread.h>

#include "trimaran/raftlog.h"

/* Index and term of the last entry compacted away, 0 and 0 in a new log. */
typedef struct trimaran_log_marker {
    uint64_t index;
    uint64_t term;
} trimaran_log_marker;

/* Which journal goes with the environment, and how far it has been moved here. */
typedef struct trimaran_log_position {
    uint64_t journal_id; /* 0: there is none yet */
    uint64_t sequence;   /* of the last record moved */
    uint64_t place;      /* in the ring, where the next record may start */
} trimaran_log_position;

typedef struct trimaran_logtable {
    MDB_env *environment;
    MDB_dbi entries; /* index, 8 bytes, big-endian -> term, type, data */
    MDB_dbi facts;   /* name -> struct */
    pthread_rwlock_t readers; /* shared by readers, exclusive while the file is mapped anew */
    uint64_t map_bytes, map_bytes_max; /* the file has blocks for map_bytes */
} trimaran_logtable;

typedef struct trimaran_logtable_facts {
    trimaran_hard_state hard_state;
    trimaran_log_marker marker;
    trimaran_log_position position;
    uint64_t last_index; /* marker.index where there are no entries */
} trimaran_logtable_facts;

/* The file grows to at most map_bytes_max. */
int trimaran_logtable_open(const char *directory, int directory_fd, uint64_t map_bytes_max,
                           trimaran_logtable *out);
void trimaran_logtable_close(trimaran_logtable *table);
/* Read the facts and check them against the entries. -EUCLEAN. */
int trimaran_logtable_load(trimaran_logtable *table, trimaran_logtable_facts *out);

/* In one transaction: drop the entries from index first on, put count entries (consecutive, from
 * first), set the hard state and the position. -ENOSPC: nothing changed. */
int trimaran_logtable_store(trimaran_logtable *table, uint64_t first, const trimaran_entry *entries,
                            size_t count, const trimaran_hard_state *hard_state,
                            const trimaran_log_position *position);
/* In one transaction: drop the entries from first to marker->index and set the marker. */
int trimaran_logtable_compact(trimaran_logtable *table, uint64_t first,
                              const trimaran_log_marker *marker);
/* In one transaction: drop every entry and set all the facts. -ENOSPC: nothing changed. */
int trimaran_logtable_reset(trimaran_logtable *table, const trimaran_log_marker *marker,
                            const trimaran_hard_state *hard_state,
                            const trimaran_log_position *position);

/* Everyone who reads, here or below, does it between these two, and takes no lock of the log that
 * a writer of the table may hold while it waits for readers to end. */
void trimaran_logtable_lock(trimaran_logtable *table);
void trimaran_logtable_unlock(trimaran_logtable *table);
int trimaran_logtable_term(trimaran_logtable *table, uint64_t index, uint64_t *term);
/* A snapshot to read entries from; end it with mdb_txn_abort. */
int trimaran_logtable_begin(trimaran_logtable *table, MDB_txn **out);
/* Visit first..last while *budget_bytes lasts; *next is the index after the last one visited. */
int trimaran_logtable_visit(trimaran_logtable *table, MDB_txn *snapshot, uint64_t first,
                            uint64_t last, uint64_t *budget_bytes, uint64_t *next,
                            trimaran_raftlog_visitor visitor, void *context);

#endif
