/* The thread that commits batches of the state to LMDB. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "failpoint.h"
#include "state_internal.h"

enum { RETRY_MS = 500, SPARE_BYTES = 1 << 20 };

static int commit_changes(trimaran_state_file *file, MDB_txn *txn, const trimaran_batch *batch)
{
    uint8_t revision[TRIMARAN_REVISION_SIZE_MAX];
    for (size_t i = 0; i < batch->count; i++) {
        const trimaran_change *change = &batch->changes[i];
        MDB_val key = {trimaran_revision_write(revision, change->main, change->sub,
                                               change->tombstone),
                       revision};
        MDB_val value = {change->size, (void *)change->data};
        int code = mdb_put(txn, file->changes, &key, &value, MDB_APPEND);
        if (code != 0)
            return code;
    }
    for (size_t i = 0; i < batch->forgotten_count; i++) {
        const trimaran_change *change = &batch->forgotten[i];
        MDB_val key = {trimaran_revision_write(revision, change->main, change->sub,
                                               change->tombstone),
                       revision};
        int code = mdb_del(txn, file->changes, &key, NULL);
        if (code != 0 && code != MDB_NOTFOUND)
            return code;
    }
    return 0;
}

static int commit_rows(trimaran_state_file *file, MDB_txn *txn, const trimaran_batch *batch)
{
    for (size_t i = 0; i < batch->row_count; i++) {
        const trimaran_row *row = &batch->rows[i];
        MDB_val key = {row->key.size, (void *)row->key.data};
        MDB_val value = {row->value.size, (void *)row->value.data};
        int code = row->value.data ? mdb_put(txn, file->rows, &key, &value, 0)
                                   : mdb_del(txn, file->rows, &key, NULL);
        if (code != 0 && code != MDB_NOTFOUND)
            return code;
    }
    return trimaran_applied_store(file, txn, batch->applied_index, batch->applied_term);
}

static int commit(trimaran_state_file *file, const trimaran_batch *batch)
{
    MDB_txn *txn;
    trimaran_failpoint(TRIMARAN_FAIL_STATE_PERSIST_BEFORE);
    int code = trimaran_state_file_reserve(file, batch->bytes, batch->forgotten_count);
    if (code == 0)
        code = mdb_txn_begin(file->env, NULL, 0, &txn);
    if (code != 0)
        return code;
    code = commit_changes(file, txn, batch);
    if (code == 0)
        code = commit_rows(file, txn, batch);
    if (code != 0) {
        mdb_txn_abort(txn);
        return code;
    }
    trimaran_state_file_measure(file, txn);
    code = mdb_txn_commit(txn);
    trimaran_failpoint(TRIMARAN_FAIL_STATE_PERSIST_AFTER);
    if (code == 0)
        trimaran_state_file_measure_used(file);
    return code;
}

/* Where the disk cannot promise blocks, LMDB still calls a write that ends short EIO. */
static bool is_full(trimaran_state *state, const trimaran_batch *batch, int code)
{
    struct statvfs facts;
    int fd;
    if (code != EIO)
        return code == ENOSPC || code == EDQUOT || code == MDB_MAP_FULL;
    if (mdb_env_get_fd(state->file->env, &fd) != 0 || fstatvfs(fd, &facts) != 0)
        return false;
    return (uint64_t)facts.f_bavail * facts.f_frsize < batch->bytes + SPARE_BYTES;
}

/* A full disk is waited out: the log keeps what is acknowledged, and the batch stays in memory. Any
 * other failure leaves the environment in doubt, so the process ends and recovers by replay. */
static void commit_until_done(trimaran_state *state, const trimaran_batch *batch)
{
    int code;
    while ((code = commit(state->file, batch)) != 0) {
        if (!is_full(state, batch, code))
            trimaran_state_die("commit", code);
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

void *trimaran_state_run(void *context)
{
    trimaran_state *state = context;
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

void trimaran_state_wait(trimaran_state *state)
{
    pthread_mutex_lock(&state->mutex);
    while (state->work != NULL && trimaran_state_error(state) == 0)
        pthread_cond_wait(&state->changed, &state->mutex);
    pthread_mutex_unlock(&state->mutex);
    trimaran_state_collect(state);
}
