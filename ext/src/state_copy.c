/* A compact copy of a state: everything in order, so that every page is filled. */
#include <errno.h>

#include "failpoint.h"
#include "snapshot_internal.h"
#include "state_builder_internal.h"

enum { COPY_BYTES = 4 << 20 }; /* in one transaction */

static int copy_rows(trimaran_state_builder *builder, trimaran_snapshot *snapshot, MDB_txn *txn)
{
    MDB_cursor *cursor;
    MDB_val key, value;
    int code = mdb_drop(txn, builder->file->rows, 0);
    if (code == 0)
        code = mdb_cursor_open(snapshot->txn, snapshot->file->rows, &cursor);
    if (code != 0)
        return code;
    while ((code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0) {
        code = mdb_put(txn, builder->file->rows, &key, &value, MDB_APPEND);
        if (code != 0)
            break;
    }
    mdb_cursor_close(cursor);
    return code == MDB_NOTFOUND ? 0 : code;
}

static int drop_changes(trimaran_state_builder *builder, MDB_txn *txn,
                        const trimaran_change *dropped, size_t count)
{
    uint8_t revision[TRIMARAN_REVISION_SIZE_MAX];
    for (size_t i = 0; i < count; i++) {
        MDB_val key = {trimaran_revision_write(revision, dropped[i].main, dropped[i].sub,
                                               dropped[i].tombstone),
                       revision};
        int code = mdb_del(txn, builder->file->changes, &key, NULL);
        if (code != 0 && code != MDB_NOTFOUND)
            return code;
    }
    return 0;
}

/* Put changes from the cursor on, some of them; *more is false where there are no others. */
static int put_changes(trimaran_state_builder *builder, MDB_cursor *cursor, MDB_val *key,
                       MDB_val *value, MDB_txn *txn, bool *more)
{
    size_t bytes = 0;
    int code = 0;
    while (code == 0 && bytes < COPY_BYTES) {
        trimaran_change change;
        if (!trimaran_revision_read(key, value, &change))
            return MDB_CORRUPTED;
        code = mdb_put(txn, builder->file->changes, key, value, MDB_APPEND);
        bytes += key->mv_size + value->mv_size;
        builder->copied = (trimaran_change){.main = change.main, .sub = change.sub};
        if (code == 0)
            code = mdb_cursor_get(cursor, key, value, MDB_NEXT);
    }
    *more = code == 0;
    return code == MDB_NOTFOUND ? 0 : code;
}

static int copy_changes(trimaran_state_builder *builder, trimaran_snapshot *snapshot)
{
    MDB_cursor *cursor;
    MDB_txn *txn;
    uint8_t revision[TRIMARAN_REVISION_SIZE_MAX];
    const trimaran_change *last = &builder->copied;
    MDB_val key = {trimaran_revision_write(revision, last->main < 0 ? 0 : last->main,
                                           last->sub + (last->main >= 0), false),
                   revision};
    MDB_val value;
    int error = trimaran_lmdb_error(
        mdb_cursor_open(snapshot->txn, snapshot->file->changes, &cursor));
    if (error != 0)
        return error;
    int code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    bool more = code == 0;
    error = code == MDB_NOTFOUND ? 0 : trimaran_lmdb_error(code);
    while (more && error == 0) {
        size_t room = COPY_BYTES + value.mv_size;
        error = trimaran_builder_begin(builder, room, &txn);
        if (error != 0)
            break;
        code = put_changes(builder, cursor, &key, &value, txn, &more);
        error = trimaran_builder_end(builder, txn, trimaran_lmdb_error(code));
        trimaran_failpoint(TRIMARAN_FAIL_DEFRAGMENT_COPY);
    }
    mdb_cursor_close(cursor);
    return error;
}

int trimaran_state_builder_copy(trimaran_state_builder *builder, trimaran_snapshot *snapshot,
                                const trimaran_change *dropped, size_t dropped_count)
{
    MDB_txn *txn;
    MDB_stat stat;
    int code = mdb_stat(snapshot->txn, snapshot->file->rows, &stat);
    size_t pages = stat.ms_leaf_pages + stat.ms_branch_pages + stat.ms_overflow_pages;
    int error = trimaran_lmdb_error(code);
    if (error == 0)
        error = copy_changes(builder, snapshot);
    if (error == 0)
        error = trimaran_builder_begin(builder, pages * stat.ms_psize + dropped_count * 4096,
                                       &txn);
    if (error != 0)
        return error;
    code = drop_changes(builder, txn, dropped, dropped_count);
    if (code == 0)
        code = copy_rows(builder, snapshot, txn);
    return trimaran_builder_end(builder, txn, trimaran_lmdb_error(code));
}
