/* Taking a snapshot, and walking over its records; see snapshot.h. */
#include "snapshot_internal.h"

#include <errno.h>

#include "state_internal.h"

static const trimaran_slice compact_row = {(const uint8_t *)"compact/scheduled", 17};
static const trimaran_slice base_row = {(const uint8_t *)"revision/base", 13};

int trimaran_lmdb_error(int code)
{
    if (code == 0)
        return 0;
    if (code == MDB_MAP_FULL || code == EDQUOT)
        return -ENOSPC;
    if (code == MDB_READERS_FULL)
        return -EMFILE;
    return code > 0 ? -code : -EUCLEAN;
}

trimaran_slice trimaran_snapshot_row(const trimaran_snapshot *snapshot, trimaran_slice key)
{
    MDB_val name = {key.size, (void *)key.data}, value;
    if (mdb_get(snapshot->txn, snapshot->file->rows, &name, &value) != 0)
        return (trimaran_slice){0};
    return trimaran_slice_of(value.mv_data, value.mv_size);
}

static int64_t row_number(const trimaran_snapshot *snapshot, trimaran_slice key, int64_t missing)
{
    trimaran_slice row = trimaran_snapshot_row(snapshot, key);
    return row.size == 8 ? (int64_t)trimaran_number_read(row.data) : missing;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The revision is that of the last change, unless a compaction or a restoration went past it. */
static int load_revision(trimaran_snapshot *snapshot)
{
    trimaran_snapshot_facts *facts = &snapshot->facts;
    trimaran_change last = {.main = 1};
    MDB_cursor *cursor;
    MDB_val key, value;
    int code = mdb_cursor_open(snapshot->txn, snapshot->file->changes, &cursor);
    if (code != 0)
        return code;
    code = mdb_cursor_get(cursor, &key, &value, MDB_LAST);
    if (code == 0 && !trimaran_revision_read(&key, &value, &last))
        code = MDB_CORRUPTED;
    mdb_cursor_close(cursor);
    facts->compact_revision = row_number(snapshot, compact_row, -1);
    facts->revision = larger(larger(last.main, facts->compact_revision),
                             row_number(snapshot, base_row, 1));
    return code == MDB_NOTFOUND ? 0 : code;
}

static int load_facts(trimaran_snapshot *snapshot)
{
    trimaran_snapshot_facts *facts = &snapshot->facts;
    trimaran_state_file *file = snapshot->file;
    MDB_stat stat;
    int code = trimaran_applied_load(file, snapshot->txn, &facts->index, &facts->term);
    if (code == 0)
        code = mdb_stat(snapshot->txn, file->rows, &stat);
    if (code == 0) {
        facts->rows = stat.ms_entries;
        code = mdb_stat(snapshot->txn, file->changes, &stat);
    }
    if (code == 0) {
        facts->changes = stat.ms_entries;
        code = load_revision(snapshot);
    }
    facts->version = TRIMARAN_SNAPSHOT_VERSION;
    return code;
}

/* Takes over the reference to file. */
static int begin(trimaran_state_file *file, trimaran_snapshot **out)
{
    trimaran_snapshot *snapshot = trimaran_allocate(sizeof *snapshot);
    *snapshot = (trimaran_snapshot){.file = file};
    int code = mdb_txn_begin(file->env, NULL, MDB_RDONLY, &snapshot->txn);
    if (code == 0)
        code = load_facts(snapshot);
    if (code != 0) {
        trimaran_snapshot_close(snapshot);
        return trimaran_lmdb_error(code);
    }
    *out = snapshot;
    return 0;
}

int trimaran_snapshot_take(trimaran_state *state, uint64_t cluster_id, uint64_t member_id,
                           trimaran_snapshot **out)
{
    int error = begin(trimaran_state_file_retain(state->file), out);
    if (error == 0) {
        (*out)->facts.cluster_id = cluster_id;
        (*out)->facts.member_id = member_id;
    }
    return error;
}

int trimaran_snapshot_open(const char *directory, trimaran_snapshot **out)
{
    trimaran_state_file *file;
    int code = trimaran_state_file_open(directory, 256ull << 30, 0, &file);
    return code != 0 ? trimaran_lmdb_error(code) : begin(file, out);
}

void trimaran_snapshot_close(trimaran_snapshot *snapshot)
{
    trimaran_walk_end(&snapshot->walk);
    if (snapshot->txn != NULL)
        mdb_txn_abort(snapshot->txn);
    trimaran_state_file_release(snapshot->file);
    free(snapshot);
}

const trimaran_snapshot_facts *trimaran_snapshot_facts_of(const trimaran_snapshot *snapshot)
{
    return &snapshot->facts;
}

void trimaran_facts_encode(uint8_t *at, const trimaran_snapshot_facts *facts)
{
    const uint64_t numbers[] = {
        facts->version,          facts->index,
        facts->term,             facts->cluster_id,
        facts->member_id,        (uint64_t)facts->revision,
        (uint64_t)facts->compact_revision, facts->rows,
        facts->changes,
    };
    _Static_assert(sizeof numbers == TRIMARAN_HEADER_BYTES, "the header has these numbers");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        trimaran_put_u64(at + 8 * i, numbers[i]);
}

void trimaran_facts_decode(const uint8_t *at, trimaran_snapshot_facts *facts)
{
    *facts = (trimaran_snapshot_facts){
        .version = trimaran_read_u64(at),
        .index = trimaran_read_u64(at + 8),
        .term = trimaran_read_u64(at + 16),
        .cluster_id = trimaran_read_u64(at + 24),
        .member_id = trimaran_read_u64(at + 32),
        .revision = (int64_t)trimaran_read_u64(at + 40),
        .compact_revision = (int64_t)trimaran_read_u64(at + 48),
        .rows = trimaran_read_u64(at + 56),
        .changes = trimaran_read_u64(at + 64),
    };
}

static void set_record(trimaran_record *record, uint32_t kind, size_t made_up, trimaran_slice a,
                       trimaran_slice b)
{
    record->head_size = TRIMARAN_RECORD_HEAD_BYTES + made_up;
    record->a = a;
    record->b = b;
    record->size = record->head_size + a.size + b.size;
    trimaran_put_u32(record->head, kind);
    trimaran_put_u32(record->head + 4, (uint32_t)(made_up + a.size));
    trimaran_put_u32(record->head + 8, (uint32_t)b.size);
}

static int next_row(trimaran_snapshot *snapshot, trimaran_walk *walk)
{
    MDB_val key, value;
    int code = 0;
    if (walk->rows == NULL)
        code = mdb_cursor_open(snapshot->txn, snapshot->file->rows, &walk->rows);
    if (code == 0)
        code = mdb_cursor_get(walk->rows, &key, &value, MDB_NEXT);
    if (code == 0)
        set_record(&walk->record, TRIMARAN_RECORD_ROW, 0,
                   trimaran_slice_of(key.mv_data, key.mv_size),
                   trimaran_slice_of(value.mv_data, value.mv_size));
    return code;
}

static int next_change(trimaran_snapshot *snapshot, trimaran_walk *walk)
{
    MDB_val key, value;
    trimaran_change change;
    int code = 0;
    if (walk->changes == NULL)
        code = mdb_cursor_open(snapshot->txn, snapshot->file->changes, &walk->changes);
    if (code == 0)
        code = mdb_cursor_get(walk->changes, &key, &value, MDB_NEXT);
    if (code != 0)
        return code;
    if (!trimaran_revision_read(&key, &value, &change))
        return MDB_CORRUPTED;
    uint8_t *at = walk->record.head + TRIMARAN_RECORD_HEAD_BYTES;
    trimaran_put_u64(at, (uint64_t)change.main);
    trimaran_put_u32(at + 8, (uint32_t)change.sub);
    trimaran_put_u32(at + 12, change.tombstone);
    set_record(&walk->record, TRIMARAN_RECORD_CHANGE, 16, (trimaran_slice){0},
               trimaran_slice_of(value.mv_data, value.mv_size));
    return 0;
}

int trimaran_walk_next(trimaran_snapshot *snapshot, trimaran_walk *walk)
{
    uint8_t *made_up = walk->record.head + TRIMARAN_RECORD_HEAD_BYTES;
    const trimaran_slice none = {0};
    int code = MDB_NOTFOUND;
    walk->done = 0;
    if (walk->kind == 0) {
        walk->kind = TRIMARAN_RECORD_HEADER;
        trimaran_facts_encode(made_up, &snapshot->facts);
        set_record(&walk->record, TRIMARAN_RECORD_HEADER, TRIMARAN_HEADER_BYTES, none, none);
        return 0;
    }
    if (walk->kind == TRIMARAN_RECORD_END) {
        walk->kind = 0;
        return 0;
    }
    if (walk->kind == TRIMARAN_RECORD_HEADER)
        walk->kind = TRIMARAN_RECORD_ROW;
    if (walk->kind == TRIMARAN_RECORD_ROW && (code = next_row(snapshot, walk)) == MDB_NOTFOUND)
        walk->kind = TRIMARAN_RECORD_CHANGE;
    if (walk->kind == TRIMARAN_RECORD_CHANGE)
        code = next_change(snapshot, walk);
    if (code != MDB_NOTFOUND)
        return trimaran_lmdb_error(code);
    walk->kind = TRIMARAN_RECORD_END;
    trimaran_put_u64(made_up, snapshot->facts.rows);
    trimaran_put_u64(made_up + 8, snapshot->facts.changes);
    set_record(&walk->record, TRIMARAN_RECORD_END, 16, none, none);
    return 0;
}

void trimaran_walk_end(trimaran_walk *walk)
{
    if (walk->rows != NULL)
        mdb_cursor_close(walk->rows);
    if (walk->changes != NULL)
        mdb_cursor_close(walk->changes);
    *walk = (trimaran_walk){0};
}
