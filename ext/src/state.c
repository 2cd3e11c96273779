/* The state store over LMDB; see state.h. */
#define _GNU_SOURCE
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "failpoint.h"
#include "state_batch.h"

enum { REVISION_SIZE = 16, RETRY_MS = 500, SPARE_BYTES = 1 << 20, LOCK_FILE_BYTES = 16384 };

/* Disk space held ready beyond what the next commit may take. */
enum { RESERVE_AHEAD_BYTES = 16 << 20 };

struct trimaran_state {
    MDB_env *env;
    MDB_dbi changes, rows;
    MDB_txn *reader;          /* the loop's view of what is committed */
    trimaran_batch batches[2];
    trimaran_batch *open;     /* being filled by the loop */
    trimaran_batch *sealed;   /* being committed, NULL where the thread is idle */
    uint64_t applied_index, applied_term, persisted_index;
    uint64_t batch_number, committed_batch;
    pthread_t thread;
    pthread_mutex_t mutex;    /* guards the four fields below */
    pthread_cond_t changed;
    trimaran_batch *work;
    bool done, stop;
    int event_fd;
    off_t reserved; /* bytes of the file whose blocks the disk has promised */
    _Atomic int error;
    _Atomic int64_t size_total, size_in_use;
};

static const trimaran_slice applied_key = {(const uint8_t *)"applied", 7};

/* Keys of the table of changes: main and sub revision in big-endian order, then 't' where the
 * change is a tombstone, as etcd's own backend marks it. */
static size_t write_revision(uint8_t *at, int64_t main, int32_t sub, bool tombstone)
{
    for (int i = 0; i < 8; i++) {
        at[i] = (uint8_t)((uint64_t)main >> (56 - 8 * i));
        at[8 + i] = (uint8_t)((uint64_t)sub >> (56 - 8 * i));
    }
    at[REVISION_SIZE] = 't';
    return REVISION_SIZE + (size_t)tombstone;
}

static uint64_t read_number(const uint8_t *at)
{
    uint64_t number = 0;
    for (int i = 0; i < 8; i++)
        number = number << 8 | at[i];
    return number;
}

static void write_number(uint8_t *at, uint64_t number)
{
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)(number >> (56 - 8 * i));
}

static _Noreturn void die(const char *what, int code)
{
    fprintf(stderr, "trimaran: state store: %s: %s\n", what, mdb_strerror(code));
    abort();
}

static int commit_changes(trimaran_state *state, MDB_txn *txn, const trimaran_batch *batch)
{
    uint8_t revision[REVISION_SIZE + 1];
    for (size_t i = 0; i < batch->count; i++) {
        const trimaran_change *change = &batch->changes[i];
        MDB_val key = {write_revision(revision, change->main, change->sub, change->tombstone),
                       revision};
        MDB_val value = {change->size, (void *)change->data};
        int code = mdb_put(txn, state->changes, &key, &value, MDB_APPEND);
        if (code != 0)
            return code;
    }
    for (size_t i = 0; i < batch->forgotten_count; i++) {
        const trimaran_change *change = &batch->forgotten[i];
        MDB_val key = {write_revision(revision, change->main, change->sub, change->tombstone),
                       revision};
        int code = mdb_del(txn, state->changes, &key, NULL);
        if (code != 0 && code != MDB_NOTFOUND)
            return code;
    }
    return 0;
}

static int commit_rows(trimaran_state *state, MDB_txn *txn, const trimaran_batch *batch)
{
    for (size_t i = 0; i < batch->row_count; i++) {
        const trimaran_row *row = &batch->rows[i];
        MDB_val key = {row->key.size, (void *)row->key.data};
        MDB_val value = {row->value.size, (void *)row->value.data};
        int code = row->value.data ? mdb_put(txn, state->rows, &key, &value, 0)
                                   : mdb_del(txn, state->rows, &key, NULL);
        if (code != 0 && code != MDB_NOTFOUND)
            return code;
    }
    uint8_t applied[16];
    write_number(applied, batch->applied_index);
    write_number(applied + 8, batch->applied_term);
    MDB_val key = {applied_key.size, (void *)applied_key.data}, value = {sizeof applied, applied};
    return mdb_put(txn, state->rows, &key, &value, 0);
}

static void measure_tables(trimaran_state *state, MDB_txn *txn)
{
    MDB_stat changes, rows;
    mdb_stat(txn, state->changes, &changes);
    mdb_stat(txn, state->rows, &rows);
    size_t pages = changes.ms_branch_pages + changes.ms_leaf_pages + changes.ms_overflow_pages +
                   rows.ms_branch_pages + rows.ms_leaf_pages + rows.ms_overflow_pages;
    atomic_store(&state->size_in_use, (int64_t)(pages * changes.ms_psize));
}

static int64_t used_bytes(const trimaran_state *state)
{
    MDB_envinfo info;
    MDB_stat stat;
    mdb_env_info(state->env, &info);
    mdb_env_stat(state->env, &stat);
    return (int64_t)((info.me_last_pgno + 1) * stat.ms_psize);
}

/* Have the disk promise the blocks a commit may write. LMDB reports a disk that fills up in the
 * middle of a commit as an input or output error, which cannot be told from a broken disk. */
static int reserve_space(trimaran_state *state, const trimaran_batch *batch)
{
    int64_t used = used_bytes(state), in_use = atomic_load(&state->size_in_use);
    /* A deletion may copy a leaf and a branch, all of them no more than the whole tree. */
    int64_t deletions = (int64_t)batch->forgotten_count * 8192;
    int64_t need = used + (int64_t)batch->bytes * 2 + (1 << 20) +
                   (deletions < in_use ? deletions : in_use);
    int fd;
    if (need <= state->reserved || mdb_env_get_fd(state->env, &fd) != 0)
        return 0;
    int64_t target = need + RESERVE_AHEAD_BYTES;
    if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, target) != 0 && errno == ENOSPC) {
        target = need;
        if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, target) != 0)
            return errno;
    }
    /* A file system that cannot promise space is used as it is. */
    state->reserved = target;
    return 0;
}

static int commit(trimaran_state *state, const trimaran_batch *batch)
{
    MDB_txn *txn;
    trimaran_failpoint(TRIMARAN_FAIL_STATE_PERSIST_BEFORE);
    int code = reserve_space(state, batch);
    if (code == 0)
        code = mdb_txn_begin(state->env, NULL, 0, &txn);
    if (code != 0)
        return code;
    code = commit_changes(state, txn, batch);
    if (code == 0)
        code = commit_rows(state, txn, batch);
    if (code != 0) {
        mdb_txn_abort(txn);
        return code;
    }
    measure_tables(state, txn);
    code = mdb_txn_commit(txn);
    trimaran_failpoint(TRIMARAN_FAIL_STATE_PERSIST_AFTER);
    if (code == 0)
        atomic_store(&state->size_total, used_bytes(state));
    return code;
}

/* Where the disk cannot promise blocks, LMDB still calls a write that ends short EIO. */
static bool is_full(trimaran_state *state, const trimaran_batch *batch, int code)
{
    struct statvfs facts;
    int fd;
    if (code != EIO)
        return code == ENOSPC || code == EDQUOT || code == MDB_MAP_FULL;
    if (mdb_env_get_fd(state->env, &fd) != 0 || fstatvfs(fd, &facts) != 0)
        return false;
    return (uint64_t)facts.f_bavail * facts.f_frsize < batch->bytes + SPARE_BYTES;
}

/* A full disk is waited out: the log keeps what is acknowledged, and the batch stays in memory. Any
 * other failure leaves the environment in doubt, so the process ends and recovers by replay. */
static void commit_until_done(trimaran_state *state, const trimaran_batch *batch)
{
    int code;
    while ((code = commit(state, batch)) != 0) {
        if (!is_full(state, batch, code))
            die("commit", code);
        atomic_store(&state->error, code == EDQUOT ? EDQUOT : ENOSPC);
        pthread_mutex_lock(&state->mutex);
        pthread_cond_broadcast(&state->changed);
        pthread_mutex_unlock(&state->mutex);
        struct timespec pause = {0, RETRY_MS * 1000000L};
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&state->mutex);
        bool stop = state->stop;
        pthread_mutex_unlock(&state->mutex);
        if (stop)
            return;
    }
    atomic_store(&state->error, 0);
}

static void *run_thread(void *argument)
{
    trimaran_state *state = argument;
    pthread_mutex_lock(&state->mutex);
    for (;;) {
        while (state->work == NULL && !state->stop)
            pthread_cond_wait(&state->changed, &state->mutex);
        if (state->work == NULL)
            break;
        trimaran_batch *batch = state->work;
        pthread_mutex_unlock(&state->mutex);
        commit_until_done(state, batch);
        pthread_mutex_lock(&state->mutex);
        state->work = NULL;
        state->done = true;
        pthread_cond_broadcast(&state->changed);
        uint64_t one = 1;
        if (write(state->event_fd, &one, sizeof one) != sizeof one)
            assert(errno == EAGAIN);
    }
    pthread_mutex_unlock(&state->mutex);
    return NULL;
}

static int open_tables(trimaran_state *state)
{
    MDB_txn *txn;
    MDB_val key = {applied_key.size, (void *)applied_key.data}, value;
    int code = mdb_txn_begin(state->env, NULL, 0, &txn);
    if (code != 0)
        return code;
    code = mdb_dbi_open(txn, "changes", MDB_CREATE, &state->changes);
    if (code == 0)
        code = mdb_dbi_open(txn, "rows", MDB_CREATE, &state->rows);
    if (code == 0 && mdb_get(txn, state->rows, &key, &value) == 0) {
        if (value.mv_size != 16)
            die("the applied index has a wrong size", MDB_CORRUPTED);
        state->applied_index = read_number(value.mv_data);
        state->applied_term = read_number((const uint8_t *)value.mv_data + 8);
        state->persisted_index = state->applied_index;
    }
    if (code != 0) {
        mdb_txn_abort(txn);
        return code;
    }
    measure_tables(state, txn);
    code = mdb_txn_commit(txn);
    if (code == 0)
        atomic_store(&state->size_total, used_bytes(state));
    return code;
}

/* LMDB maps its lock file without reserving its blocks: on a full disk the first touch would be
 * SIGBUS. */
static int reserve_lock_file(const char *directory)
{
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/lock.mdb", directory) >= sizeof path)
        return ENAMETOOLONG;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    int code = posix_fallocate(fd, 0, LOCK_FILE_BYTES);
    close(fd);
    return code;
}

static int open_environment(trimaran_state *state, const char *directory, size_t map_size_bytes)
{
    int code = reserve_lock_file(directory);
    if (code == 0)
        code = mdb_env_create(&state->env);
    if (code == 0)
        code = mdb_env_set_mapsize(state->env, map_size_bytes);
    if (code == 0)
        code = mdb_env_set_maxdbs(state->env, 4);
    /* Readers jump about the file, so read-ahead would fetch what nobody asked for. */
    if (code == 0)
        code = mdb_env_open(state->env, directory, MDB_NOTLS | MDB_NORDAHEAD, 0600);
    if (code == 0)
        code = open_tables(state);
    if (code == 0)
        code = mdb_txn_begin(state->env, NULL, MDB_RDONLY, &state->reader);
    return code;
}

int trimaran_state_open(const char *directory, size_t map_size_bytes, trimaran_state **out)
{
    trimaran_state *state = trimaran_allocate(sizeof *state);
    *state = (trimaran_state){.event_fd = -1, .batch_number = 1};
    state->open = &state->batches[0];
    int code = open_environment(state, directory, map_size_bytes);
    if (code == 0) {
        state->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        code = state->event_fd < 0 ? errno : 0;
    }
    if (code == 0) {
        pthread_mutex_init(&state->mutex, NULL);
        pthread_cond_init(&state->changed, NULL);
        code = pthread_create(&state->thread, NULL, run_thread, state);
    }
    if (code != 0) {
        if (state->reader != NULL)
            mdb_txn_abort(state->reader);
        if (state->env != NULL)
            mdb_env_close(state->env);
        if (state->event_fd >= 0)
            close(state->event_fd);
        free(state);
        return code > 0 ? -code : code;
    }
    *out = state;
    return 0;
}

void trimaran_state_wait(trimaran_state *state)
{
    pthread_mutex_lock(&state->mutex);
    while (state->work != NULL && trimaran_state_error(state) == 0)
        pthread_cond_wait(&state->changed, &state->mutex);
    pthread_mutex_unlock(&state->mutex);
    trimaran_state_collect(state);
}

void trimaran_state_close(trimaran_state *state)
{
    /* On a disk that stays full the last batches are left to the log's replay. */
    trimaran_state_wait(state);
    if (trimaran_state_error(state) == 0 && trimaran_state_seal(state))
        trimaran_state_wait(state);
    trimaran_state_abandon(state);
}

void trimaran_state_abandon(trimaran_state *state)
{
    pthread_mutex_lock(&state->mutex);
    state->stop = true;
    pthread_cond_broadcast(&state->changed);
    pthread_mutex_unlock(&state->mutex);
    pthread_join(state->thread, NULL);
    mdb_txn_abort(state->reader);
    mdb_env_close(state->env);
    close(state->event_fd);
    trimaran_batch_free(&state->batches[0]);
    trimaran_batch_free(&state->batches[1]);
    pthread_mutex_destroy(&state->mutex);
    pthread_cond_destroy(&state->changed);
    free(state);
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
    uint8_t revision[REVISION_SIZE + 1];
    MDB_val key = {write_revision(revision, main, sub, false), revision}, value;
    int code = mdb_get(state->reader, state->changes, &key, &value);
    if (code != 0)
        die("a revision that the index names cannot be read", code);
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
    uint8_t revision[REVISION_SIZE + 1];
    MDB_val key = {write_revision(revision, from, 0, false), revision}, value;
    int code = mdb_cursor_open(state->reader, state->changes, &cursor);
    if (code != 0)
        die("scan", code);
    bool more = true;
    code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    for (; code == 0 && more; code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
        const uint8_t *at = key.mv_data;
        if (key.mv_size != REVISION_SIZE && key.mv_size != REVISION_SIZE + 1)
            die("a key of the table of changes has a wrong size", MDB_CORRUPTED);
        trimaran_change change = {(int64_t)read_number(at), (int32_t)read_number(at + 8),
                                  key.mv_size > REVISION_SIZE, (uint32_t)value.mv_size,
                                  value.mv_data};
        more = visit(context, &change);
    }
    mdb_cursor_close(cursor);
    if (code != 0 && code != MDB_NOTFOUND)
        die("scan", code);
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
    int code = mdb_cursor_open(state->reader, state->rows, &cursor);
    if (code != 0)
        die("rows", code);
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
    trimaran_batch_clear(state->sealed);
    state->sealed = NULL;
    mdb_txn_reset(state->reader);
    int code = mdb_txn_renew(state->reader);
    if (code != 0)
        die("reader", code);
    return true;
}

bool trimaran_state_seal(trimaran_state *state)
{
    if (state->sealed != NULL || !state->open->touched)
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
    *total = atomic_load(&((trimaran_state *)state)->size_total);
    *in_use = atomic_load(&((trimaran_state *)state)->size_in_use);
}
