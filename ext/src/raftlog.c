#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "failpoint.h"
#include "raftlog.h"

#define COMPACT_CHUNK 4096u /* entries dropped in one transaction */
#define PIECE_BYTES (1u << 20) /* of pending entries, copied at once for a read */

/* What a settle takes to LMDB, as it was when the settle began. */
struct settlement {
    trimaran_entry *entries;
    size_t count;
    uint64_t first;
    trimaran_hard_state hard_state;
    trimaran_log_position position;
    uint64_t journal_tail;
};

static int settle_begin(trimaran_raftlog *log, struct settlement *out)
{
    size_t count;

    pthread_mutex_lock(&log->state);
    count = trimaran_pending_count(log);
    *out = (struct settlement){.count = count, .first = log->pending_first};
    out->entries = malloc((count + 1) * sizeof *out->entries);
    if (out->entries != NULL) {
        for (size_t i = 0; i < count; i++)
            out->entries[i] = *trimaran_pending_at(log, log->pending_first + i);
        out->hard_state = log->hard_state;
        out->journal_tail = log->journal.tail;
        out->position = (trimaran_log_position){
            .journal_id = log->journal.id,
            .sequence = log->journal.sequence,
            .place = log->journal.tail % log->journal.capacity,
        };
        log->settling_last = log->last_index;
    }
    pthread_mutex_unlock(&log->state);
    return out->entries == NULL ? -ENOMEM : 0;
}

static void settle_end(trimaran_raftlog *log, struct settlement *done)
{
    pthread_mutex_lock(&log->state);
    if (log->settling_last >= log->pending_first)
        trimaran_pending_drop_front(log, (size_t)(log->settling_last + 1 - log->pending_first));
    pthread_mutex_unlock(&log->state);
    /* Nobody looks there now, and nobody writes there before it is released. */
    trimaran_journal_forget(&log->journal, done->journal_tail);
    pthread_mutex_lock(&log->state);
    log->settled_sequence = done->position.sequence;
    trimaran_journal_release(&log->journal, done->journal_tail);
    log->counters.settles++;
    pthread_mutex_unlock(&log->state);
}

/* With the settle lock held. */
static int settle_locked(trimaran_raftlog *log)
{
    struct settlement settlement;
    int error = settle_begin(log, &settlement);

    if (error == 0 && settlement.position.sequence != log->settled_sequence) {
        trimaran_failpoint(TRIMARAN_FAIL_JOURNAL_RECYCLE_BEFORE);
        error = trimaran_logtable_store(&log->table, settlement.first, settlement.entries,
                                        settlement.count, &settlement.hard_state,
                                        &settlement.position);
        trimaran_failpoint(TRIMARAN_FAIL_JOURNAL_RECYCLE_AFTER);
        if (error == 0)
            settle_end(log, &settlement);
    }
    free(settlement.entries);
    return error;
}

int trimaran_raftlog_settle(trimaran_raftlog *log)
{
    int error;

    pthread_mutex_lock(&log->settle);
    error = settle_locked(log);
    pthread_mutex_unlock(&log->settle);
    return error;
}

/* Append without the journal: for what is too large for it. With the append lock held. */
static int append_to_table(trimaran_raftlog *log, const trimaran_hard_state *hard_state,
                           const trimaran_entry *entries, size_t count)
{
    trimaran_log_position position;
    trimaran_hard_state now;
    int error;

    pthread_mutex_lock(&log->settle);
    /* What is pending first; nobody else appends meanwhile, so after it nothing is pending. */
    error = settle_locked(log);
    if (error == 0) {
        position = (trimaran_log_position){
            .journal_id = log->journal.id,
            .sequence = log->journal.sequence,
            .place = log->journal.tail % log->journal.capacity,
        };
        now = hard_state != NULL ? *hard_state : log->hard_state;
        error = trimaran_logtable_store(&log->table, entries[0].index, entries, count, &now,
                                        &position);
    }
    if (error == 0) {
        pthread_mutex_lock(&log->state);
        trimaran_pending_truncate(log, entries[0].index);
        log->last_index += count;
        log->pending_first = log->last_index + 1;
        log->hard_state = now;
        log->counters.appends++;
        pthread_mutex_unlock(&log->state);
    }
    pthread_mutex_unlock(&log->settle);
    return error;
}

/* Reserve ring and memory for a record, settling first where the ring is full. */
static int reserve(trimaran_raftlog *log, size_t bytes, size_t count, uint64_t *start,
                   uint8_t **payload)
{
    int error;

    pthread_mutex_lock(&log->state);
    error = trimaran_pending_reserve(log, count);
    *payload = error == 0 ? trimaran_journal_reserve(&log->journal, bytes, start) : NULL;
    pthread_mutex_unlock(&log->state);
    if (error != 0 || *payload != NULL)
        return error;
    error = trimaran_raftlog_settle(log);
    if (error != 0)
        return error;
    pthread_mutex_lock(&log->state);
    *payload = trimaran_journal_reserve(&log->journal, bytes, start);
    pthread_mutex_unlock(&log->state);
    assert(*payload != NULL);
    return 0;
}

static int append_to_journal(trimaran_raftlog *log, size_t bytes,
                             const trimaran_hard_state *hard_state, const trimaran_entry *entries,
                             size_t count)
{
    uint64_t start;
    uint8_t *payload;
    int error = reserve(log, bytes, count, &start, &payload);

    if (error != 0)
        return error;
    trimaran_batch_encode(payload, hard_state, entries, count);
    trimaran_failpoint(TRIMARAN_FAIL_LOG_APPEND_BEFORE);
    error = trimaran_journal_write(&log->journal, start, bytes);
    if (error != 0)
        return error;
    trimaran_failpoint(TRIMARAN_FAIL_LOG_APPEND_AFTER);
    pthread_mutex_lock(&log->state);
    trimaran_journal_commit(&log->journal, start, bytes);
    trimaran_pending_publish(log, payload);
    log->counters.appends++;
    pthread_mutex_unlock(&log->state);
    return 0;
}

/* Check an append against the log and count the bytes of its record. */
static int check_append(trimaran_raftlog *log, const trimaran_hard_state *hard_state,
                        const trimaran_entry *entries, size_t count, uint64_t *bytes)
{
    uint64_t first, last;
    int valid;

    if (count > UINT32_MAX)
        return -EINVAL;
    *bytes = sizeof(struct trimaran_batch_head);
    *bytes += (uint64_t)count * sizeof(struct trimaran_batch_entry);
    for (size_t i = 0; i < count; i++) {
        if (entries[i].index != entries[0].index + i)
            return -EINVAL;
        *bytes += entries[i].size;
    }
    pthread_mutex_lock(&log->state);
    first = count > 0 ? entries[0].index : log->last_index + 1;
    last = first + count - 1;
    valid = first > log->marker.index && first <= log->last_index + 1
            && first > log->hard_state.commit && (hard_state == NULL || hard_state->commit <= last);
    pthread_mutex_unlock(&log->state);
    return valid ? 0 : -EINVAL;
}

int trimaran_raftlog_append(trimaran_raftlog *log, const trimaran_hard_state *hard_state,
                            const trimaran_entry *entries, size_t count)
{
    uint64_t bytes;
    int error;

    if (hard_state == NULL && count == 0)
        return 0;
    pthread_mutex_lock(&log->append);
    error = check_append(log, hard_state, entries, count, &bytes);
    if (error == 0)
        error = bytes <= trimaran_journal_payload_max(&log->journal)
                    ? append_to_journal(log, bytes, hard_state, entries, count)
                    : append_to_table(log, hard_state, entries, count);
    pthread_mutex_unlock(&log->append);
    return error;
}

/* Pending entries, copied: a settle would release the memory they are in. */
struct piece {
    trimaran_entry *entries;
    uint8_t *data;
    size_t count;
};

/* Copy the entries from next on that the budget allows, some of them where they are many. With the
 * state lock held. */
static int copy_pending(trimaran_raftlog *log, uint64_t next, uint64_t last, int is_first,
                        uint64_t budget_bytes, struct piece *out)
{
    uint64_t bytes = 0;
    size_t count = 0;

    for (uint64_t index = next; index <= last && (count == 0 || bytes < PIECE_BYTES); index++) {
        uint32_t size = trimaran_pending_at(log, index)->size;
        if (size > budget_bytes && !(is_first && count == 0))
            break;
        budget_bytes -= size < budget_bytes ? size : budget_bytes;
        bytes += size;
        count++;
    }
    *out = (struct piece){malloc((count + 1) * sizeof *out->entries), malloc(bytes + 1), count};
    if (out->entries == NULL || out->data == NULL)
        return -ENOMEM;
    uint8_t *at = out->data;
    for (size_t i = 0; i < count; i++) {
        out->entries[i] = *trimaran_pending_at(log, next + i);
        if (out->entries[i].size > 0)
            memcpy(at, out->entries[i].data, out->entries[i].size);
        out->entries[i].data = at;
        at += out->entries[i].size;
    }
    return 0;
}

/* What a read still has to visit. */
struct reading {
    uint64_t first, next, last, budget_bytes;
    trimaran_raftlog_visitor visitor;
    void *context;
    int finished; /* the budget is used up */
};

static int visit_piece(struct reading *reading, const struct piece *piece)
{
    for (size_t i = 0; i < piece->count; i++) {
        uint32_t size = piece->entries[i].size;
        reading->budget_bytes -= size < reading->budget_bytes ? size : reading->budget_bytes;
        reading->next++;
        int stop = reading->visitor(reading->context, &piece->entries[i]);
        if (stop != 0)
            return stop;
    }
    reading->finished = piece->count == 0;
    return 0;
}

static int visit_table(trimaran_raftlog *log, struct reading *reading, uint64_t last,
                       MDB_txn *snapshot)
{
    uint64_t from = reading->next, budget_bytes = reading->budget_bytes;
    int error = trimaran_logtable_visit(&log->table, snapshot, from, last, &budget_bytes,
                                        &reading->next, reading->visitor, reading->context);

    reading->budget_bytes = budget_bytes;
    reading->finished = reading->next <= last;
    return error;
}

/* Visit a part of what is left. What it needs is taken under the state lock; the visit is not. */
static int read_on(trimaran_raftlog *log, struct reading *reading)
{
    MDB_txn *snapshot = NULL;
    struct piece piece = {0};
    uint64_t table_last;
    int error = 0;

    trimaran_logtable_lock(&log->table);
    pthread_mutex_lock(&log->state);
    table_last = log->pending_first - 1 < reading->last ? log->pending_first - 1 : reading->last;
    if (reading->next <= log->marker.index || reading->last > log->last_index)
        error = -ENOENT;
    else if (reading->next <= table_last)
        error = trimaran_logtable_begin(&log->table, &snapshot);
    else
        error = copy_pending(log, reading->next, reading->last, reading->next == reading->first,
                             reading->budget_bytes, &piece);
    pthread_mutex_unlock(&log->state);
    if (error == 0 && snapshot != NULL)
        error = visit_table(log, reading, table_last, snapshot);
    else if (error == 0)
        error = visit_piece(reading, &piece);
    if (snapshot != NULL)
        mdb_txn_abort(snapshot);
    trimaran_logtable_unlock(&log->table);
    free(piece.entries);
    free(piece.data);
    return error;
}

int trimaran_raftlog_read(trimaran_raftlog *log, uint64_t first, uint64_t last, uint64_t max_bytes,
                          trimaran_raftlog_visitor visitor, void *context)
{
    struct reading reading = {.first = first, .next = first, .last = last,
                              .budget_bytes = max_bytes, .visitor = visitor, .context = context};
    int error = 0;

    while (error == 0 && !reading.finished && reading.next <= last)
        error = read_on(log, &reading);
    return error;
}

uint64_t trimaran_raftlog_first_index(trimaran_raftlog *log)
{
    pthread_mutex_lock(&log->state);
    uint64_t index = log->marker.index + 1;
    pthread_mutex_unlock(&log->state);
    return index;
}

uint64_t trimaran_raftlog_last_index(trimaran_raftlog *log)
{
    pthread_mutex_lock(&log->state);
    uint64_t index = log->last_index;
    pthread_mutex_unlock(&log->state);
    return index;
}

/* With the table's lock for readers and the state lock held. */
static int term_locked(trimaran_raftlog *log, uint64_t index, uint64_t *term)
{
    if (index < log->marker.index || index > log->last_index)
        return -ENOENT;
    if (index == log->marker.index) {
        *term = log->marker.term;
        return 0;
    }
    if (index >= log->pending_first) {
        *term = trimaran_pending_at(log, index)->term;
        return 0;
    }
    return trimaran_logtable_term(&log->table, index, term);
}

int trimaran_raftlog_term(trimaran_raftlog *log, uint64_t index, uint64_t *term)
{
    trimaran_logtable_lock(&log->table);
    pthread_mutex_lock(&log->state);
    int error = term_locked(log, index, term);
    pthread_mutex_unlock(&log->state);
    trimaran_logtable_unlock(&log->table);
    return error;
}

void trimaran_raftlog_hard_state(trimaran_raftlog *log, trimaran_hard_state *out)
{
    pthread_mutex_lock(&log->state);
    *out = log->hard_state;
    pthread_mutex_unlock(&log->state);
}

/* Drop entries up to index, with the settle lock held. The marker moves first, so that no reader
 * looks for what is being deleted. */
static int compact_to(trimaran_raftlog *log, uint64_t index)
{
    trimaran_log_marker before, after = {.index = index};
    int error;

    trimaran_failpoint(TRIMARAN_FAIL_LOG_COMPACT_BEFORE);
    trimaran_logtable_lock(&log->table);
    pthread_mutex_lock(&log->state);
    before = log->marker;
    error = term_locked(log, index, &after.term);
    if (error == 0)
        log->marker = after;
    pthread_mutex_unlock(&log->state);
    trimaran_logtable_unlock(&log->table);
    if (error != 0)
        return error;
    error = trimaran_logtable_compact(&log->table, before.index + 1, &after);
    if (error != 0) {
        pthread_mutex_lock(&log->state);
        log->marker = before;
        pthread_mutex_unlock(&log->state);
    }
    trimaran_failpoint(TRIMARAN_FAIL_LOG_COMPACT_AFTER);
    return error;
}

/* Drop entries up to index that are in LMDB, a chunk at a time; where the room for a deletion is
 * scarce, smaller chunks. With the settle lock held. */
static int compact_settled(trimaran_raftlog *log, uint64_t index)
{
    uint64_t chunk = COMPACT_CHUNK;
    int error = 0;

    pthread_mutex_lock(&log->state);
    if (index >= log->pending_first)
        index = log->pending_first - 1;
    pthread_mutex_unlock(&log->state);
    while (log->marker.index < index) {
        uint64_t left = index - log->marker.index;
        error = compact_to(log, log->marker.index + (left < chunk ? left : chunk));
        if (error == -ENOSPC && chunk > 1)
            chunk /= 2;
        else if (error != 0)
            break;
    }
    return error;
}

int trimaran_raftlog_compact(trimaran_raftlog *log, uint64_t index)
{
    int error;

    if (index > trimaran_raftlog_last_index(log))
        return -EINVAL;
    pthread_mutex_lock(&log->settle);
    error = compact_settled(log, index);
    if (error == 0 && log->marker.index < index) {
        error = settle_locked(log);
        if (error == 0)
            error = compact_settled(log, index);
    }
    pthread_mutex_unlock(&log->settle);
    return error;
}

/* In memory what the table holds after its reset; with append and settle held. */
static void forget_all(trimaran_raftlog *log, const trimaran_log_marker *marker,
                       const trimaran_hard_state *hard_state, uint64_t sequence)
{
    uint64_t tail;

    pthread_mutex_lock(&log->state);
    tail = log->journal.tail;
    log->marker = *marker;
    log->hard_state = *hard_state;
    log->last_index = log->settling_last = marker->index;
    log->pending_first = marker->index + 1;
    log->pending_start = 0;
    pthread_mutex_unlock(&log->state);
    trimaran_journal_forget(&log->journal, tail);
    pthread_mutex_lock(&log->state);
    log->settled_sequence = sequence;
    trimaran_journal_release(&log->journal, tail);
    pthread_mutex_unlock(&log->state);
}

int trimaran_raftlog_reset(trimaran_raftlog *log, const trimaran_hard_state *hard_state,
                           uint64_t index, uint64_t term)
{
    trimaran_log_marker marker = {index, term};
    trimaran_log_position position;
    trimaran_hard_state now;
    int error = 0;

    pthread_mutex_lock(&log->append);
    pthread_mutex_lock(&log->settle);
    pthread_mutex_lock(&log->state);
    now = log->hard_state;
    position = (trimaran_log_position){
        .journal_id = log->journal.id,
        .sequence = log->journal.sequence,
        .place = log->journal.tail % log->journal.capacity,
    };
    pthread_mutex_unlock(&log->state);
    if (now.commit > index || index == 0 || term == 0)
        error = -EINVAL;
    if (hard_state != NULL)
        now = *hard_state;
    now.commit = index;
    if (error == 0)
        error = trimaran_logtable_reset(&log->table, &marker, &now, &position);
    if (error == 0)
        forget_all(log, &marker, &now, position.sequence);
    pthread_mutex_unlock(&log->settle);
    pthread_mutex_unlock(&log->append);
    return error;
}

void trimaran_raftlog_status_get(trimaran_raftlog *log, trimaran_raftlog_status *out)
{
    pthread_mutex_lock(&log->state);
    *out = log->counters;
    out->journal_bytes = log->journal.capacity;
    out->journal_used_bytes = log->journal.tail - log->journal.head;
    out->direct = (uint32_t)log->journal.direct;
    pthread_mutex_unlock(&log->state);
}

uint64_t trimaran_raftlog_unsettled(trimaran_raftlog *log, uint64_t *capacity)
{
    pthread_mutex_lock(&log->state);
    uint64_t used = log->journal.tail - log->journal.head;
    int dirty = log->journal.sequence != log->settled_sequence;
    *capacity = log->journal.capacity;
    pthread_mutex_unlock(&log->state);
    return dirty ? used : 0;
}
