/* Building the file of a state; see state_builder.h. */
#define _GNU_SOURCE
#include "state_builder.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crc32c.h"
#include "failpoint.h"
#include "snapshot_internal.h"
#include "state_builder_internal.h"
#include "state_place.h"

enum { RECORD_BYTES_MAX = 1 << 30 };

int trimaran_state_builder_open(const char *directory, size_t map_size_bytes,
                                trimaran_state_builder **out)
{
    trimaran_state_builder *builder;
    int error = trimaran_directory_remove(directory);
    if (error == 0 && mkdir(directory, 0700) != 0)
        error = -errno;
    if (error != 0)
        return error;
    trimaran_failpoint(TRIMARAN_FAIL_SNAPSHOT_RECEIVE_BEGIN);
    builder = trimaran_allocate(sizeof *builder);
    *builder = (trimaran_state_builder){.copied = {.main = -1}};
    int code = trimaran_state_file_open(directory, map_size_bytes, MDB_NOSYNC, &builder->file);
    if (code == 0)
        builder->directory = strdup(directory);
    if (code != 0 || builder->directory == NULL) {
        trimaran_state_builder_close(builder);
        return code != 0 ? trimaran_lmdb_error(code) : -ENOMEM;
    }
    *out = builder;
    return 0;
}

void trimaran_state_builder_close(trimaran_state_builder *builder)
{
    trimaran_state_file_release(builder->file);
    trimaran_buffer_free(&builder->partial);
    free(builder->directory);
    free(builder);
}

uint32_t trimaran_state_builder_next_chunk(const trimaran_state_builder *builder)
{
    return builder->next_chunk;
}

const char *trimaran_state_builder_reason(const trimaran_state_builder *builder)
{
    return builder->reason ? builder->reason : "";
}

const trimaran_snapshot_facts *
trimaran_state_builder_facts(const trimaran_state_builder *builder)
{
    return &builder->facts;
}

int trimaran_builder_begin(trimaran_state_builder *builder, size_t bytes, MDB_txn **txn)
{
    int code = trimaran_state_file_reserve(builder->file, bytes, 0);
    if (code == 0)
        code = mdb_txn_begin(builder->file->env, NULL, 0, txn);
    return trimaran_lmdb_error(code);
}

int trimaran_builder_end(trimaran_state_builder *builder, MDB_txn *txn, int error)
{
    if (error != 0) {
        mdb_txn_abort(txn);
        return error;
    }
    trimaran_state_file_measure(builder->file, txn);
    error = trimaran_lmdb_error(mdb_txn_commit(txn));
    if (error == 0)
        trimaran_state_file_measure_used(builder->file);
    return error;
}

static int refuse(trimaran_state_builder *builder, const char *reason)
{
    builder->reason = reason;
    return -EBADMSG;
}

static int take_header(trimaran_state_builder *builder, trimaran_slice a)
{
    if (builder->begun || a.size < TRIMARAN_HEADER_BYTES)
        return refuse(builder, "its header is not where it belongs");
    trimaran_facts_decode(a.data, &builder->facts);
    if (builder->facts.version != TRIMARAN_SNAPSHOT_VERSION)
        return refuse(builder, "it is of a version that is not known here");
    builder->begun = true;
    return 0;
}

static int take_change(trimaran_state_builder *builder, MDB_txn *txn, trimaran_slice a,
                       trimaran_slice b)
{
    uint8_t revision[TRIMARAN_REVISION_SIZE_MAX];
    if (a.size != 16 || b.size == 0)
        return refuse(builder, "a change in it is malformed");
    int64_t main = (int64_t)trimaran_read_u64(a.data);
    int32_t sub = (int32_t)trimaran_read_u32(a.data + 8);
    MDB_val key = {trimaran_revision_write(revision, main, sub, a.data[12] != 0), revision};
    MDB_val value = {b.size, (void *)b.data};
    int code = mdb_put(txn, builder->file->changes, &key, &value, MDB_APPEND);
    builder->changes++;
    return code == MDB_KEYEXIST ? refuse(builder, "its changes are out of order")
                                : trimaran_lmdb_error(code);
}

static int take_row(trimaran_state_builder *builder, MDB_txn *txn, trimaran_slice a,
                    trimaran_slice b)
{
    MDB_val key = {a.size, (void *)a.data}, value = {b.size, (void *)b.data};
    if (a.size == 0)
        return refuse(builder, "a row in it has no name");
    int code = mdb_put(txn, builder->file->rows, &key, &value, MDB_APPEND);
    builder->rows++;
    return code == MDB_KEYEXIST ? refuse(builder, "its rows are out of order")
                                : trimaran_lmdb_error(code);
}

static int take_end(trimaran_state_builder *builder, trimaran_slice a)
{
    if (a.size != 16 || trimaran_read_u64(a.data) != builder->rows ||
        trimaran_read_u64(a.data + 8) != builder->changes ||
        builder->rows != builder->facts.rows || builder->changes != builder->facts.changes)
        return refuse(builder, "it does not hold as much as it says");
    builder->ended = true;
    return 0;
}

static int take_record(trimaran_state_builder *builder, MDB_txn *txn, uint32_t kind,
                       trimaran_slice a, trimaran_slice b)
{
    if (!builder->begun && kind != TRIMARAN_RECORD_HEADER)
        return refuse(builder, "it does not begin with a header");
    switch (kind) {
    case TRIMARAN_RECORD_HEADER: return take_header(builder, a);
    case TRIMARAN_RECORD_ROW: return take_row(builder, txn, a, b);
    case TRIMARAN_RECORD_CHANGE: return take_change(builder, txn, a, b);
    case TRIMARAN_RECORD_END: return take_end(builder, a);
    default: return refuse(builder, "a record in it is of no known kind");
    }
}

/* Take whole records from data; *used is how far they went. */
static int take_records(trimaran_state_builder *builder, MDB_txn *txn, const uint8_t *data,
                        size_t size, size_t *used)
{
    int error = 0;
    *used = 0;
    while (error == 0 && !builder->ended && size - *used >= TRIMARAN_RECORD_HEAD_BYTES) {
        const uint8_t *at = data + *used;
        uint64_t a = trimaran_read_u32(at + 4), b = trimaran_read_u32(at + 8);
        if (a + b > RECORD_BYTES_MAX)
            return refuse(builder, "a record in it is larger than any can be");
        if (size - *used - TRIMARAN_RECORD_HEAD_BYTES < a + b)
            break;
        const uint8_t *body = at + TRIMARAN_RECORD_HEAD_BYTES;
        error = take_record(builder, txn, trimaran_read_u32(at), trimaran_slice_of(body, a),
                            trimaran_slice_of(body + a, b));
        *used += TRIMARAN_RECORD_HEAD_BYTES + a + b;
    }
    for (; error == 0 && builder->ended && *used < size; ++*used)
        if (data[*used] != 0)
            return refuse(builder, "something follows its end");
    return error;
}

static int check_chunk(trimaran_state_builder *builder, const uint8_t *chunk, size_t size)
{
    if (builder->reason != NULL)
        return -EBADMSG; /* nothing can follow what was refused or not written */
    if (size < TRIMARAN_CHUNK_HEAD_BYTES || size > TRIMARAN_SNAPSHOT_CHUNK_BYTES ||
        trimaran_read_u32(chunk) != TRIMARAN_CHUNK_MAGIC)
        return refuse(builder, "a chunk of it is none");
    if (trimaran_read_u32(chunk + 12) != size - TRIMARAN_CHUNK_HEAD_BYTES ||
        trimaran_read_u32(chunk + 4) != trimaran_crc32c(0, chunk + 8, size - 8))
        return refuse(builder, "a chunk of it is cut or does not match its checksum");
    if (trimaran_read_u32(chunk + 8) != builder->next_chunk)
        return refuse(builder, "a chunk of it is missing");
    if (builder->ended)
        return refuse(builder, "something follows its end");
    return 0;
}

int trimaran_state_builder_chunk(trimaran_state_builder *builder, const uint8_t *chunk,
                                 size_t size)
{
    trimaran_buffer *partial = &builder->partial;
    MDB_txn *txn;
    size_t used;
    int error = check_chunk(builder, chunk, size);
    if (error == 0)
        error = trimaran_builder_begin(builder, partial->size + size, &txn);
    if (error != 0)
        return error;
    trimaran_buffer_append(partial, chunk + TRIMARAN_CHUNK_HEAD_BYTES,
                           size - TRIMARAN_CHUNK_HEAD_BYTES);
    error = take_records(builder, txn, partial->data, partial->size, &used);
    error = trimaran_builder_end(builder, txn, error);
    if (error != 0 && builder->reason == NULL)
        builder->reason = "a part of it could not be written";
    if (error != 0)
        return error;
    memmove(partial->data, partial->data + used, partial->size - used);
    partial->size -= used;
    builder->next_chunk++;
    trimaran_failpoint(TRIMARAN_FAIL_SNAPSHOT_RECEIVE_CHUNK);
    return 0;
}

int trimaran_state_builder_set(trimaran_state_builder *builder, trimaran_slice key,
                               trimaran_slice value)
{
    MDB_val name = {key.size, (void *)key.data}, data = {value.size, (void *)value.data};
    MDB_txn *txn;
    int error = trimaran_builder_begin(builder, key.size + value.size, &txn);
    if (error != 0)
        return error;
    int code = value.data == NULL ? mdb_del(txn, builder->file->rows, &name, NULL)
                                  : mdb_put(txn, builder->file->rows, &name, &data, 0);
    return trimaran_builder_end(builder, txn,
                                code == MDB_NOTFOUND ? 0 : trimaran_lmdb_error(code));
}

static int remove_rows(MDB_txn *txn, MDB_dbi rows, trimaran_slice prefix)
{
    MDB_cursor *cursor;
    int code = mdb_cursor_open(txn, rows, &cursor);
    while (code == 0) {
        MDB_val key = {prefix.size, (void *)prefix.data}, value;
        code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
        if (code == 0 && (key.mv_size < prefix.size ||
                          memcmp(key.mv_data, prefix.data, prefix.size) != 0))
            code = MDB_NOTFOUND;
        if (code == 0)
            code = mdb_cursor_del(cursor, 0);
    }
    mdb_cursor_close(cursor);
    return code == MDB_NOTFOUND ? 0 : code;
}

int trimaran_state_builder_remove(trimaran_state_builder *builder, trimaran_slice prefix)
{
    MDB_txn *txn;
    int error = trimaran_builder_begin(builder, 1 << 20, &txn);
    if (error != 0)
        return error;
    error = trimaran_lmdb_error(remove_rows(txn, builder->file->rows, prefix));
    return trimaran_builder_end(builder, txn, error);
}

int trimaran_state_builder_set_applied(trimaran_state_builder *builder, uint64_t index,
                                       uint64_t term)
{
    MDB_txn *txn;
    int error = trimaran_builder_begin(builder, 64, &txn);
    if (error != 0)
        return error;
    error = trimaran_lmdb_error(trimaran_applied_store(builder->file, txn, index, term));
    return trimaran_builder_end(builder, txn, error);
}

int trimaran_state_builder_finish(trimaran_state_builder *builder)
{
    if (builder->begun && !builder->ended)
        return refuse(builder, "it is cut off before its end");
    int error = trimaran_lmdb_error(mdb_env_sync(builder->file->env, 1));
    /* Whoever goes on with this file writes with every flush again. */
    if (error == 0)
        error = trimaran_lmdb_error(mdb_env_set_flags(builder->file->env, MDB_NOSYNC, 0));
    if (error == 0)
        error = trimaran_directory_flush(builder->directory);
    return error;
}

int trimaran_state_builder_move(trimaran_state_builder *builder, trimaran_state *state)
{
    return trimaran_state_move(state, builder->file);
}
