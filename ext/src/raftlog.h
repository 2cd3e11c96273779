/* The inside of the raft log: a journal in front of an LMDB environment, and in memory the entries
 * that are only in the journal ("pending").
 *
 * Locks, in the order they are taken: append (one append at a time), settle (one LMDB write at a
 * time), the table's for its readers, state (everything in memory; never held over a flush, nor
 * while entries are visited). Pending entries point into the
 * journal's mirror, which only a settle releases.
 */
#ifndef TRIMARAN_SRC_RAFTLOG_H
#define TRIMARAN_SRC_RAFTLOG_H

#include <pthread.h>

#include "journal.h"
#include "logtable.h"
#include "trimaran/raftlog.h"

/* The start of a journal record; after it come count heads, then the data of all entries. */
struct trimaran_batch_head {
    uint32_t count;
    uint32_t has_hard_state;
    uint64_t first_index;
    trimaran_hard_state hard_state;
};

struct trimaran_batch_entry {
    uint64_t term;
    uint32_t type;
    uint32_t size;
};

struct trimaran_raftlog {
    int directory_fd; /* holds the lock on the directory */
    trimaran_logtable table;
    pthread_mutex_t append, settle, state;
    trimaran_journal journal; /* head, tail, sequence: under state */

    /* All below: under state. */
    trimaran_entry *pending; /* ring of entries pending_first..last_index */
    size_t pending_capacity; /* a power of two */
    size_t pending_start;
    uint64_t pending_first; /* last_index + 1 where nothing is pending */
    uint64_t last_index;
    uint64_t settling_last; /* entries up to here are being settled and were not replaced since */
    trimaran_hard_state hard_state;
    trimaran_log_marker marker;
    uint64_t settled_sequence; /* last journal record that is in LMDB */
    trimaran_raftlog_status counters;
};

/* The functions on pending entries want the state lock held. */
trimaran_entry *trimaran_pending_at(const trimaran_raftlog *log, uint64_t index);
size_t trimaran_pending_count(const trimaran_raftlog *log);
/* Make room for count more pending entries. */
int trimaran_pending_reserve(trimaran_raftlog *log, size_t count);
/* Drop the entries from index on, wherever they are; LMDB's copies go with the next settle. */
void trimaran_pending_truncate(trimaran_raftlog *log, uint64_t index);
void trimaran_pending_drop_front(trimaran_raftlog *log, size_t count);
/* Put the content of a whole record into memory; room is reserved. */
void trimaran_pending_publish(trimaran_raftlog *log, const uint8_t *payload);

void trimaran_batch_encode(uint8_t *payload, const trimaran_hard_state *hard_state,
                           const trimaran_entry *entries, size_t count);
/* Check a record's sizes against each other. */
int trimaran_batch_check(const uint8_t *payload, size_t size);

/* Bytes of the journal, of *capacity, that have not moved to LMDB. */
uint64_t trimaran_raftlog_unsettled(trimaran_raftlog *log, uint64_t *capacity);

#endif
