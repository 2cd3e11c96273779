/* Compaction: forgetting what no read at or after a revision can see.
 *
 * The revision counts at once; the work goes through the keys in order, a bounded number a step,
 * and begins anew after a restart that interrupted it, which does no harm.
 */
#include "failpoint.h"
#include "mvcc_internal.h"

static const trimaran_slice scheduled_row = {(const uint8_t *)"compact/scheduled", 17};
static const trimaran_slice finished_row = {(const uint8_t *)"compact/finished", 16};

static void save(trimaran_mvcc *mvcc, trimaran_slice row)
{
    uint8_t number[8];
    for (int i = 0; i < 8; i++)
        number[i] = (uint8_t)((uint64_t)mvcc->compact_revision >> (56 - 8 * i));
    trimaran_state_set(mvcc->state, row, trimaran_slice_of(number, sizeof number));
}

static void start(trimaran_mvcc *mvcc)
{
    mvcc->compact_from.size = 0;
    mvcc->compacting = true;
}

trimaran_error trimaran_compact_begin(trimaran_mvcc *mvcc, int64_t revision)
{
    if (revision <= mvcc->compact_revision)
        return TRIMARAN_ERROR_COMPACTED;
    if (revision > mvcc->revision)
        return TRIMARAN_ERROR_FUTURE_REVISION;
    mvcc->compact_revision = revision;
    save(mvcc, scheduled_row);
    start(mvcc);
    trimaran_failpoint(TRIMARAN_FAIL_COMPACTION_BEGIN);
    return TRIMARAN_ERROR_NONE;
}

/* Drop the versions before the one that is newest at the compact revision; that one too where it
 * is an older tombstone. A tombstone exactly there stays, so that watchers from it see it. */
static void compact_record(trimaran_mvcc *mvcc, trimaran_key_record *record)
{
    int64_t revision = mvcc->compact_revision;
    uint32_t drop = 0;
    while (drop < record->count && record->versions[drop].main <= revision)
        drop++;
    if (drop == 0)
        return;
    const trimaran_version *newest = &record->versions[drop - 1];
    if (!newest->tombstone || newest->main == revision)
        drop--;
    for (uint32_t i = 0; i < drop; i++)
        trimaran_state_forget(mvcc->state, record->versions[i].main, record->versions[i].sub,
                              record->versions[i].tombstone);
    record->count -= drop;
    memmove(record->versions, record->versions + drop, record->count * sizeof *record->versions);
}

bool trimaran_mvcc_compact_step(trimaran_mvcc *mvcc, size_t keys)
{
    if (!mvcc->compacting)
        return false;
    trimaran_slice from = trimaran_slice_of(mvcc->compact_from.data, mvcc->compact_from.size);
    trimaran_keyindex_cursor cursor = trimaran_keyindex_seek(mvcc->index, from);
    trimaran_key_record *record = NULL, *empty[64];
    size_t emptied = 0;
    for (size_t i = 0; i < keys && emptied < 64; i++) {
        record = trimaran_keyindex_next(&cursor);
        if (record == NULL)
            break;
        compact_record(mvcc, record);
        if (record->count == 0)
            empty[emptied++] = record;
    }
    if (record != NULL) {
        /* Go on behind this key: itself plus a zero byte is the next possible one. */
        mvcc->compact_from.size = 0;
        trimaran_buffer_append(&mvcc->compact_from, record->key, record->key_size);
        trimaran_buffer_append(&mvcc->compact_from, "", 1);
        trimaran_failpoint(TRIMARAN_FAIL_COMPACTION_STEP);
    } else {
        mvcc->compacting = false;
        save(mvcc, finished_row);
        trimaran_failpoint(TRIMARAN_FAIL_COMPACTION_END);
    }
    for (size_t i = 0; i < emptied; i++)
        trimaran_keyindex_remove(mvcc->index, empty[i]);
    return true;
}

bool trimaran_mvcc_compacting(const trimaran_mvcc *mvcc)
{
    return mvcc->compacting;
}

static void read_row(void *context, trimaran_slice key, trimaran_slice value)
{
    (void)key;
    int64_t *revision = context;
    uint64_t number = 0;
    for (size_t i = 0; i < value.size && i < 8; i++)
        number = number << 8 | value.data[i];
    *revision = (int64_t)number;
}

void trimaran_compact_restore(trimaran_mvcc *mvcc)
{
    int64_t scheduled = -1, finished = -1;
    trimaran_state_rows(mvcc->state, scheduled_row, read_row, &scheduled);
    trimaran_state_rows(mvcc->state, finished_row, read_row, &finished);
    mvcc->compact_revision = scheduled;
    if (scheduled > finished)
        start(mvcc);
}
