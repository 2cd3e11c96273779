/* The environment of a state; see state_file.h. */
#define _GNU_SOURCE
#include "state_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

/* Disk space held ready beyond what the next commit may take. */
enum { RESERVE_AHEAD_BYTES = 16 << 20, LOCK_FILE_BYTES = 16384 };

const trimaran_slice trimaran_applied_row = {(const uint8_t *)"applied", 7};

_Noreturn void trimaran_state_die(const char *what, int code)
{
    fprintf(stderr, "trimaran: state store: %s: %s\n", what, mdb_strerror(code));
    abort();
}

uint64_t trimaran_number_read(const uint8_t *at)
{
    uint64_t number = 0;
    for (int i = 0; i < 8; i++)
        number = number << 8 | at[i];
    return number;
}

void trimaran_number_write(uint8_t *at, uint64_t number)
{
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)(number >> (56 - 8 * i));
}

/* 't' marks a tombstone, as in etcd's own backend. */
size_t trimaran_revision_write(uint8_t *at, int64_t main, int32_t sub, bool tombstone)
{
    trimaran_number_write(at, (uint64_t)main);
    trimaran_number_write(at + 8, (uint64_t)sub);
    at[TRIMARAN_REVISION_SIZE] = 't';
    return TRIMARAN_REVISION_SIZE + (size_t)tombstone;
}

bool trimaran_revision_read(const MDB_val *key, const MDB_val *value, trimaran_change *out)
{
    const uint8_t *at = key->mv_data;
    if (key->mv_size != TRIMARAN_REVISION_SIZE && key->mv_size != TRIMARAN_REVISION_SIZE_MAX)
        return false;
    *out = (trimaran_change){(int64_t)trimaran_number_read(at),
                             (int32_t)trimaran_number_read(at + 8),
                             key->mv_size > TRIMARAN_REVISION_SIZE, (uint32_t)value->mv_size,
                             value->mv_data};
    return true;
}

int trimaran_applied_load(trimaran_state_file *file, MDB_txn *txn, uint64_t *index, uint64_t *term)
{
    MDB_val key = {trimaran_applied_row.size, (void *)trimaran_applied_row.data}, value;
    int code = mdb_get(txn, file->rows, &key, &value);
    *index = *term = 0;
    if (code != 0)
        return code == MDB_NOTFOUND ? 0 : code;
    if (value.mv_size != 16)
        return MDB_CORRUPTED;
    *index = trimaran_number_read(value.mv_data);
    *term = trimaran_number_read((const uint8_t *)value.mv_data + 8);
    return 0;
}

int trimaran_applied_store(trimaran_state_file *file, MDB_txn *txn, uint64_t index, uint64_t term)
{
    uint8_t applied[16];
    MDB_val key = {trimaran_applied_row.size, (void *)trimaran_applied_row.data};
    MDB_val value = {sizeof applied, applied};
    trimaran_number_write(applied, index);
    trimaran_number_write(applied + 8, term);
    return mdb_put(txn, file->rows, &key, &value, 0);
}

void trimaran_state_file_measure(trimaran_state_file *file, MDB_txn *txn)
{
    MDB_stat changes, rows;
    mdb_stat(txn, file->changes, &changes);
    mdb_stat(txn, file->rows, &rows);
    size_t pages = changes.ms_branch_pages + changes.ms_leaf_pages + changes.ms_overflow_pages +
                   rows.ms_branch_pages + rows.ms_leaf_pages + rows.ms_overflow_pages;
    atomic_store(&file->size_in_use, (int64_t)(pages * changes.ms_psize));
}

static int64_t used_bytes(const trimaran_state_file *file)
{
    MDB_envinfo info;
    MDB_stat stat;
    mdb_env_info(file->env, &info);
    mdb_env_stat(file->env, &stat);
    return (int64_t)((info.me_last_pgno + 1) * stat.ms_psize);
}

void trimaran_state_file_measure_used(trimaran_state_file *file)
{
    atomic_store(&file->size_total, used_bytes(file));
}

int trimaran_state_file_reserve(trimaran_state_file *file, size_t bytes, size_t deletions)
{
    int64_t used = used_bytes(file), in_use = atomic_load(&file->size_in_use);
    /* A deletion may copy a leaf and a branch, all of them no more than the whole tree. */
    int64_t copied = (int64_t)deletions * 8192;
    int64_t need = used + (int64_t)bytes * 2 + (1 << 20) + (copied < in_use ? copied : in_use);
    int fd;
    if (need <= file->reserved || mdb_env_get_fd(file->env, &fd) != 0)
        return 0;
    int64_t target = need + RESERVE_AHEAD_BYTES;
    if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, target) != 0 && errno == ENOSPC) {
        target = need;
        if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, target) != 0)
            return errno;
    }
    /* A file system that cannot promise space is used as it is. */
    file->reserved = target;
    return 0;
}

static int open_tables(trimaran_state_file *file)
{
    MDB_txn *txn;
    int code = mdb_txn_begin(file->env, NULL, 0, &txn);
    if (code != 0)
        return code;
    code = mdb_dbi_open(txn, "changes", MDB_CREATE, &file->changes);
    if (code == 0)
        code = mdb_dbi_open(txn, "rows", MDB_CREATE, &file->rows);
    if (code != 0) {
        mdb_txn_abort(txn);
        return code;
    }
    trimaran_state_file_measure(file, txn);
    code = mdb_txn_commit(txn);
    if (code == 0)
        trimaran_state_file_measure_used(file);
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

int trimaran_state_file_open(const char *directory, size_t map_size_bytes, unsigned flags,
                             trimaran_state_file **out)
{
    trimaran_state_file *file = trimaran_allocate(sizeof *file);
    *file = (trimaran_state_file){.references = 1};
    int code = reserve_lock_file(directory);
    if (code == 0)
        code = mdb_env_create(&file->env);
    if (code == 0)
        code = mdb_env_set_mapsize(file->env, map_size_bytes);
    if (code == 0)
        code = mdb_env_set_maxdbs(file->env, 4);
    /* Readers jump about the file, so read-ahead would fetch what nobody asked for. A reader
     * belongs to its owner, not to its thread. */
    if (code == 0)
        code = mdb_env_open(file->env, directory, MDB_NOTLS | MDB_NORDAHEAD | flags, 0600);
    if (code == 0)
        code = open_tables(file);
    if (code != 0) {
        trimaran_state_file_release(file);
        return code;
    }
    *out = file;
    return 0;
}

trimaran_state_file *trimaran_state_file_retain(trimaran_state_file *file)
{
    atomic_fetch_add(&file->references, 1);
    return file;
}

void trimaran_state_file_release(trimaran_state_file *file)
{
    if (file == NULL || atomic_fetch_sub(&file->references, 1) != 1)
        return;
    if (file->env != NULL)
        mdb_env_close(file->env);
    free(file);
}
