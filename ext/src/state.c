/* The state store over LMDB; see state.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "state_internal.h"

static int load_facts(trimaran_state *state)
{
    int code = trimaran_applied_load(state->file, state->reader, &state->applied_index,
                                     &state->applied_term);
    state->persisted_index = state->applied_index;
    if (code != 0)
        trimaran_state_die("the applied index cannot be read", code);
    return 0;
}

int trimaran_state_open(const char *directory, size_t map_size_bytes, trimaran_state **out)
{
    trimaran_state *state = trimaran_allocate(sizeof *state);
    *state = (trimaran_state){.event_fd = -1, .batch_number = 1};
    state->open = &state->batches[0];
    int code = trimaran_state_file_open(directory, map_size_bytes, 0, &state->file);
    if (code == 0)
        code = mdb_txn_begin(state->file->env, NULL, MDB_RDONLY, &state->reader);
    if (code == 0)
        code = load_facts(state);
    if (code == 0) {
        state->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        code = state->event_fd < 0 ? errno : 0;
    }
    if (code == 0) {
        pthread_mutex_init(&state->mutex, NULL);
        pthread_cond_init(&state->changed, NULL);
        code = pthread_create(&state->thread, NULL, trimaran_state_run, state);
    }
    if (code != 0) {
        if (state->reader != NULL)
            mdb_txn_abort(state->reader);
        trimaran_state_file_release(state->file);
        if (state->event_fd >= 0)
            close(state->event_fd);
        free(state);
        return code > 0 ? -code : code;
    }
    *out = state;
    return 0;
}

void trimaran_state_abandon(trimaran_state *state)
{
    pthread_mutex_lock(&state->mutex);
    state->stop = true;
    pthread_cond_broadcast(&state->changed);
    pthread_mutex_unlock(&state->mutex);
    pthread_join(state->thread, NULL);
    mdb_txn_abort(state->reader);
    trimaran_state_file_release(state->file);
    close(state->event_fd);
    trimaran_batch_free(&state->batches[0]);
    trimaran_batch_free(&state->batches[1]);
    pthread_mutex_destroy(&state->mutex);
    pthread_cond_destroy(&state->changed);
    free(state->dropped);
    free(state);
}

void trimaran_state_close(trimaran_state *state)
{
    /* On a disk that stays full the last batches are left to the log's replay. */
    state->held = false;
    trimaran_state_wait(state);
    if (trimaran_state_error(state) == 0 && trimaran_state_seal(state))
        trimaran_state_wait(state);
    trimaran_state_abandon(state);
}

trimaran_change trimaran_state_append(trimaran_state *state, int64_t main, int32_t sub,
                                      bool tombstone, const trimaran_key_value *kv)
{
    size_t size = trimaran_key_value_size(kv);
    uint8_t *data = trimaran_arena_allocate(&state->open->memory, size);
    uint8_t *end = trimaran_put_key_value(data, kv);
    assert(end == data + size);
    trimaran_change change = {main, sub, tombstone, (uint32_t)size, data};
    return *trimaran_batch_add(state->open, &change);
}

const trimaran_change *trimaran_state_tail(const trimaran_state *state, size_t count)
{
    assert(count <= state->open->count);
    return state->open->changes + (state->open->count - count);
}

void trimaran_state_forget(trimaran_state *state, int64_t main, int32_t sub, bool tombstone)
{
    trimaran_change change = {.main = main, .sub = sub, .tombstone = tombstone};
    trimaran_batch_forget(state->open, &change);
}

void trimaran_state_set(trimaran_state *state, trimaran_slice key, trimaran_slice value)
{
    trimaran_batch_set(state->open, key, value);
}

void trimaran_state_set_applied(trimaran_state *state, uint64_t index, uint64_t term)
{
    assert(index > state->applied_index);
    state->applied_index = index;
    state->applied_term = term;
    /* An entry without effect counts too, so that it is committed: the log keeps it till then. */
    state->open->bytes += sizeof index + sizeof term;
    state->open->touched = true;
}

void trimaran_state_applied(const trimaran_state *state, uint64_t *index, uint64_t *term)
{
    *index = state->applied_index;
    *term = state->applied_term;
}

uint64_t trimaran_state_persisted(const trimaran_state *state)
{
    return state->persisted_index;
}

trimaran_slice trimaran_state_read(trimaran_state *state, int64_t main, int32_t sub)
{
    const trimaran_change *change = trimaran_batch_find(state->open, main, sub);
    if (change == NULL && state->sealed != NULL)
        change = trimaran_batch_find(state->sealed, main, sub);
    if (change != NULL)
        return trimaran_slice_of(change->data, change->size);
    uint8_t revision[TRIMARAN_REVISION_SIZE_MAX];
    MDB_val key = {trimaran_revision_write(revision, main, sub, false), revision}, value;
    int code = mdb_get(state->reader, state->file->changes, &key, &value);
    if (code != 0)
        trimaran_state_die("a revision that the index names cannot be read", code);
    return trimaran_slice_of(value.mv_data, value.mv_size);
}

static bool scan_batch(const trimaran_batch *batch, int64_t from, trimaran_change_visitor visit,
                       void *context)
{
    if (batch == NULL)
        return true;
    for (size_t i = trimaran_batch_place(batch, from); i < batch->count; i++)
        if (!visit(context, &batch->changes[i]))
            return false;
    return true;
}

static bool scan_committed(trimaran_state *state, int64_t from, trimaran_change_visitor visit,
                           void *context)
{
    MDB_cursor *cursor;
    uint8_t revision[TRIMARAN_REVISION_SIZE_MAX];
    MDB_val key = {trimaran_revision_write(revision, from, 0, false), revision}, value;
    int code = mdb_cursor_open(state->reader, state->file->changes, &cursor);
    if (code != 0)
        trimaran_state_die("scan", code);
    bool more = true;
    code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    for (; code == 0 && more; code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
        trimaran_change change;
        if (!trimaran_revision_read(&key, &value, &change))
            trimaran_state_die("a key of the table of changes has a wrong size", MDB_CORRUPTED);
        more = visit(context, &change);
    }
    mdb_cursor_close(cursor);
    if (code != 0 && code != MDB_NOTFOUND)
        trimaran_state_die("scan", code);
    return more;
}

void trimaran_state_scan(trimaran_state *state, int64_t from, trimaran_change_visitor visit,
                         void *context)
{
    if (from < 0)
        from = 0;
    /* A batch that reaches back far enough answers alone. */
    const trimaran_batch *oldest = state->sealed ? state->sealed : state->open;
    bool committed = oldest->count == 0 || from < oldest->changes[0].main;
    if (committed && !scan_committed(state, from, visit, context))
        return;
    if (scan_batch(state->sealed, from, visit, context))
        scan_batch(state->open, from, visit, context);
}

void trimaran_state_rows(trimaran_state *state, trimaran_slice prefix, trimaran_row_visitor visit,
                         void *context)
{
    MDB_cursor *cursor;
    MDB_val key = {prefix.size, (void *)prefix.data}, value;
    int code = mdb_cursor_open(state->reader, state->file->rows, &cursor);
    if (code != 0)
        trimaran_state_die("rows", code);
    code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    for (; code == 0; code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
        if (key.mv_size < prefix.size || memcmp(key.mv_data, prefix.data, prefix.size) != 0)
            break;
        visit(context, trimaran_slice_of(key.mv_data, key.mv_size),
              trimaran_slice_of(value.mv_data, value.mv_size));
    }
    mdb_cursor_close(cursor);
}

int trimaran_state_event_fd(const trimaran_state *state)
{
    return state->event_fd;
}

static void track_dropped(trimaran_state *state, const trimaran_batch *batch)
{
    size_t wanted = state->dropped_count + batch->forgotten_count;
    if (wanted > state->dropped_capacity) {
        state->dropped_capacity = wanted * 2;
        state->dropped = trimaran_reallocate(state->dropped,
                                             state->dropped_capacity * sizeof *state->dropped);
    }
    for (size_t i = 0; i < batch->forgotten_count; i++)
        state->dropped[state->dropped_count++] = batch->forgotten[i];
}

bool trimaran_state_collect(trimaran_state *state)
{
    uint64_t events;
    if (state->sealed == NULL)
        return false;
    if (read(state->event_fd, &events, sizeof events) < 0)
        assert(errno == EAGAIN);
    pthread_mutex_lock(&state->mutex);
    bool done = state->done;
    state->done = false;
    pthread_mutex_unlock(&state->mutex);
    if (!done)
        return false;
    state->persisted_index = state->sealed->applied_index;
    state->committed_batch = state->batch_number - 1;
    if (state->tracking)
        track_dropped(state, state->sealed);
    trimaran_batch_clear(state->sealed);
    state->sealed = NULL;
    mdb_txn_reset(state->reader);
    int code = mdb_txn_renew(state->reader);
    if (code != 0)
        trimaran_state_die("reader", code);
    return true;
}

bool trimaran_state_seal(trimaran_state *state)
{
    if (state->sealed != NULL || !state->open->touched || state->held)
        return false;
    state->open->applied_index = state->applied_index;
    state->open->applied_term = state->applied_term;
    state->sealed = state->open;
    state->batch_number++;
    state->open = state->open == &state->batches[0] ? &state->batches[1] : &state->batches[0];
    pthread_mutex_lock(&state->mutex);
    state->work = state->sealed;
    pthread_cond_broadcast(&state->changed);
    pthread_mutex_unlock(&state->mutex);
    return true;
}

uint64_t trimaran_state_batch_number(const trimaran_state *state)
{
    return state->batch_number;
}

uint64_t trimaran_state_committed_batch(const trimaran_state *state)
{
    return state->committed_batch;
}

size_t trimaran_state_pending_bytes(const trimaran_state *state)
{
    return state->open->bytes + (state->sealed ? state->sealed->bytes : 0);
}

int trimaran_state_error(const trimaran_state *state)
{
    return atomic_load(&((trimaran_state *)state)->error);
}

void trimaran_state_sizes(const trimaran_state *state, int64_t *total, int64_t *in_use)
{
    *total = atomic_load(&state->file->size_total);
    *in_use = atomic_load(&state->file->size_in_use);
}

void trimaran_state_hold(trimaran_state *state, bool held)
{
    state->held = held;
}

bool trimaran_state_is_idle(const trimaran_state *state)
{
    return state->sealed == NULL;
}

void trimaran_state_track(trimaran_state *state, bool tracking)
{
    state->tracking = tracking;
    free(state->dropped);
    state->dropped = NULL;
    state->dropped_count = state->dropped_capacity = 0;
}

trimaran_change *trimaran_state_take_dropped(trimaran_state *state, size_t *count)
{
    trimaran_change *dropped = state->dropped;
    *count = state->dropped_count;
    state->dropped = NULL;
    state->dropped_count = state->dropped_capacity = 0;
    return dropped;
}

void trimaran_state_succeed(trimaran_state *fresh, trimaran_state *state)
{
    assert(fresh->sealed == NULL && !fresh->open->touched);
    pthread_mutex_lock(&state->mutex);
    int event_fd = state->event_fd;
    state->event_fd = fresh->event_fd;
    pthread_mutex_unlock(&state->mutex);
    pthread_mutex_lock(&fresh->mutex);
    fresh->event_fd = event_fd;
    pthread_mutex_unlock(&fresh->mutex);
    /* Whoever waits for a batch of the old state has what it waits for in the new one. */
    fresh->batch_number = state->batch_number + 1;
    fresh->committed_batch = state->batch_number;
}

int trimaran_state_move(trimaran_state *state, trimaran_state_file *file)
{
    MDB_txn *reader;
    assert(state->held && state->sealed == NULL);
    int code = mdb_txn_begin(file->env, NULL, MDB_RDONLY, &reader);
    if (code != 0)
        return code > 0 ? -code : -EUCLEAN;
    mdb_txn_abort(state->reader);
    trimaran_state_file_release(state->file);
    state->reader = reader;
    state->file = trimaran_state_file_retain(file);
    return 0;
}
