#include "logtable.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fatal.h"

#define GROWTH_BYTES (1u << 20)
/* Deleting takes new pages too, for a while: kept for the compaction of a log that is full. */
#define COMPACTION_BYTES (512u << 10)
#define LOCK_FILE_BYTES 16384 /* LMDB's header and its 126 readers take 8 KiB */

/* Stored before each entry's data. */
struct stored_head {
    uint64_t term;
    uint32_t type;
    uint32_t reserved;
};

static const char HARD_STATE[] = "hard_state", MARKER[] = "marker", POSITION[] = "position";

/* The error of a read or of opening. */
static int read_error(int code)
{
    switch (code) {
    case MDB_SUCCESS:
        return 0;
    case MDB_NOTFOUND:
        return -ENOENT;
    case MDB_MAP_FULL:
    case EDQUOT:
        return -ENOSPC;
    case MDB_CORRUPTED:
    case MDB_INVALID:
    case MDB_VERSION_MISMATCH:
    case MDB_PAGE_NOTFOUND:
    case MDB_PANIC:
    case MDB_INCOMPATIBLE:
        return -EUCLEAN;
    case MDB_READERS_FULL:
        return -EMFILE;
    default:
        return code > 0 ? -code : -EUCLEAN;
    }
}

/* The error of a write. The map is never larger than what the disk has reserved for the file, so a
 * full disk shows as a full map, before anything is written; what else fails is fatal. */
static int write_error(int code)
{
    int error = read_error(code);

    if (error != 0 && error != -ENOSPC && error != -ENOMEM)
        trimaran_fatal("writing the raft log's LMDB environment", mdb_strerror(code));
    return error;
}

static int open_databases(trimaran_logtable *table)
{
    MDB_txn *txn;
    int code = mdb_txn_begin(table->environment, NULL, 0, &txn);

    if (code != 0)
        return read_error(code);
    code = mdb_dbi_open(txn, "entries", MDB_CREATE, &table->entries);
    if (code == 0)
        code = mdb_dbi_open(txn, "facts", MDB_CREATE, &table->facts);
    if (code != 0) {
        mdb_txn_abort(txn);
        return read_error(code);
    }
    return read_error(mdb_txn_commit(txn));
}

/* A file shorter than its own pages would end in SIGBUS at the first read past it. */
static int check_size(MDB_env *environment)
{
    MDB_envinfo info;
    MDB_stat facts;
    struct stat stat;
    int fd;

    if (mdb_env_info(environment, &info) != 0 || mdb_env_stat(environment, &facts) != 0
        || mdb_env_get_fd(environment, &fd) != 0 || fstat(fd, &stat) != 0)
        return -EIO;
    if ((uint64_t)stat.st_size < ((uint64_t)info.me_last_pgno + 1) * facts.ms_psize)
        return -EUCLEAN;
    return 0;
}

/* LMDB maps its lock file without reserving its blocks: on a full disk the first touch would be
 * SIGBUS. */
static int reserve_lock_file(int directory_fd)
{
    int fd = openat(directory_fd, "lock.mdb", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int error;

    if (fd < 0)
        return -errno;
    error = -posix_fallocate(fd, 0, LOCK_FILE_BYTES);
    close(fd);
    return error;
}

/* Reserve blocks for a map of so many bytes, and for a compaction beyond it. */
static int reserve_data(trimaran_logtable *table, uint64_t bytes)
{
    int fd;

    if (mdb_env_get_fd(table->environment, &fd) != 0)
        return -EIO;
    return -posix_fallocate(fd, 0, (off_t)(bytes + COMPACTION_BYTES));
}

/* Readers are kept out while LMDB maps the file anew. */
static int set_map_size(trimaran_logtable *table, uint64_t bytes)
{
    int error;

    pthread_rwlock_wrlock(&table->readers);
    error = write_error(mdb_env_set_mapsize(table->environment, bytes));
    pthread_rwlock_unlock(&table->readers);
    return error;
}

/* Make the file, then the map, larger, where the map is full; -ENOSPC at the limit or on a full
 * disk. */
static int grow(trimaran_logtable *table)
{
    uint64_t bytes = table->map_bytes + table->map_bytes / 4 + GROWTH_BYTES;
    int error;

    bytes = bytes / GROWTH_BYTES * GROWTH_BYTES;
    if (bytes > table->map_bytes_max)
        bytes = table->map_bytes_max;
    if (bytes <= table->map_bytes)
        return -ENOSPC;
    error = reserve_data(table, bytes);
    if (error != 0)
        return error == -EDQUOT ? -ENOSPC : error;
    error = set_map_size(table, bytes);
    if (error == 0)
        table->map_bytes = bytes;
    return error;
}

static int choose_map_size(trimaran_logtable *table, int directory_fd)
{
    struct stat stat;

    table->map_bytes = GROWTH_BYTES < table->map_bytes_max ? GROWTH_BYTES : table->map_bytes_max;
    if (fstatat(directory_fd, "data.mdb", &stat, 0) == 0) {
        if ((uint64_t)stat.st_size > table->map_bytes + COMPACTION_BYTES)
            table->map_bytes = (uint64_t)stat.st_size - COMPACTION_BYTES;
    } else if (errno != ENOENT) {
        return -errno;
    }
    return read_error(mdb_env_set_mapsize(table->environment, table->map_bytes));
}

int trimaran_logtable_open(const char *directory, int directory_fd, uint64_t map_bytes_max,
                           trimaran_logtable *out)
{
    int error = reserve_lock_file(directory_fd);

    if (error == 0)
        error = read_error(mdb_env_create(&out->environment));
    if (error != 0)
        return error;
    pthread_rwlock_init(&out->readers, NULL);
    out->map_bytes_max = map_bytes_max;
    error = read_error(mdb_env_set_maxdbs(out->environment, 2));
    if (error == 0)
        error = choose_map_size(out, directory_fd);
    /* NOTLS: a reader belongs to its call, not to its thread. */
    if (error == 0)
        error = read_error(
            mdb_env_open(out->environment, directory, MDB_NOTLS | MDB_NORDAHEAD, 0600));
    if (error == 0)
        error = read_error(mdb_reader_check(out->environment, NULL));
    if (error == 0)
        error = check_size(out->environment);
    if (error == 0)
        error = reserve_data(out, out->map_bytes);
    if (error == 0)
        error = open_databases(out);
    if (error != 0)
        trimaran_logtable_close(out);
    return error;
}

void trimaran_logtable_close(trimaran_logtable *table)
{
    if (table->environment == NULL)
        return;
    mdb_env_close(table->environment);
    pthread_rwlock_destroy(&table->readers);
    table->environment = NULL;
}

/* Copy a fact; one that is not there leaves out as it is. */
static int load_fact(MDB_txn *txn, MDB_dbi facts, const char *name, void *out, size_t size)
{
    MDB_val key = {strlen(name), (void *)name}, value;
    int code = mdb_get(txn, facts, &key, &value);

    if (code == MDB_NOTFOUND)
        return 0;
    if (code == 0 && value.mv_size != size)
        return -EUCLEAN;
    if (code == 0)
        memcpy(out, value.mv_data, size);
    return read_error(code);
}

static int store_fact(MDB_txn *txn, MDB_dbi facts, const char *name, const void *data, size_t size)
{
    MDB_val key = {strlen(name), (void *)name}, value = {size, (void *)data};

    return mdb_put(txn, facts, &key, &value, 0);
}

static int index_of(const MDB_val *key, uint64_t *index)
{
    uint64_t big;

    if (key->mv_size != sizeof big)
        return -EUCLEAN;
    memcpy(&big, key->mv_data, sizeof big);
    *index = be64toh(big);
    return 0;
}

/* The entries must be all those between the marker and the last, as counted by LMDB. */
static int load_range(trimaran_logtable *table, MDB_txn *txn, trimaran_logtable_facts *out)
{
    MDB_cursor *cursor;
    MDB_val key, value;
    MDB_stat stat;
    uint64_t first;
    int code = mdb_stat(txn, table->entries, &stat);
    int error;

    out->last_index = out->marker.index;
    if (code != 0 || stat.ms_entries == 0)
        return read_error(code);
    code = mdb_cursor_open(txn, table->entries, &cursor);
    if (code != 0)
        return read_error(code);
    error = read_error(mdb_cursor_get(cursor, &key, &value, MDB_FIRST));
    if (error == 0)
        error = index_of(&key, &first);
    if (error == 0)
        error = read_error(mdb_cursor_get(cursor, &key, &value, MDB_LAST));
    if (error == 0)
        error = index_of(&key, &out->last_index);
    mdb_cursor_close(cursor);
    if (error == 0
        && (first != out->marker.index + 1 || out->last_index - first + 1 != stat.ms_entries))
        error = -EUCLEAN;
    return error;
}

int trimaran_logtable_load(trimaran_logtable *table, trimaran_logtable_facts *out)
{
    MDB_txn *txn;
    int error = trimaran_logtable_begin(table, &txn);

    *out = (trimaran_logtable_facts){.last_index = 0};
    if (error != 0)
        return error;
    error = load_fact(txn, table->facts, HARD_STATE, &out->hard_state, sizeof out->hard_state);
    if (error == 0)
        error = load_fact(txn, table->facts, MARKER, &out->marker, sizeof out->marker);
    if (error == 0)
        error = load_fact(txn, table->facts, POSITION, &out->position, sizeof out->position);
    if (error == 0)
        error = load_range(table, txn, out);
    mdb_txn_abort(txn);
    return error;
}

/* Delete the entries from first on, up to last. */
static int delete_range(MDB_txn *txn, MDB_dbi entries, uint64_t first, uint64_t last)
{
    MDB_cursor *cursor;
    uint64_t big = htobe64(first), index;
    MDB_val key = {sizeof big, &big}, value;
    int code = mdb_cursor_open(txn, entries, &cursor);

    if (code != 0)
        return code;
    code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    while (code == 0) {
        if (index_of(&key, &index) != 0) {
            code = MDB_CORRUPTED;
            break;
        }
        if (index > last)
            break;
        code = mdb_cursor_del(cursor, 0);
        big = htobe64(index + 1);
        key = (MDB_val){sizeof big, &big};
        if (code == 0)
            code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    }
    mdb_cursor_close(cursor);
    return code == MDB_NOTFOUND ? 0 : code;
}

static int put_entry(MDB_txn *txn, MDB_dbi entries, const trimaran_entry *entry)
{
    struct stored_head head = {.term = entry->term, .type = entry->type};
    uint64_t big = htobe64(entry->index);
    MDB_val key = {sizeof big, &big}, value = {sizeof head + entry->size, NULL};
    int code = mdb_put(txn, entries, &key, &value, MDB_RESERVE | MDB_APPEND);

    if (code == 0) {
        memcpy(value.mv_data, &head, sizeof head);
        if (entry->size > 0)
            memcpy((uint8_t *)value.mv_data + sizeof head, entry->data, entry->size);
    }
    return code;
}

static int store(trimaran_logtable *table, uint64_t first, const trimaran_entry *entries,
                 size_t count, const trimaran_hard_state *hard_state,
                 const trimaran_log_position *position)
{
    MDB_txn *txn;
    int code = mdb_txn_begin(table->environment, NULL, 0, &txn);

    if (code != 0)
        return write_error(code);
    if (count > 0)
        code = delete_range(txn, table->entries, first, UINT64_MAX);
    for (size_t i = 0; i < count && code == 0; i++) {
        assert(entries[i].index == first + i);
        code = put_entry(txn, table->entries, &entries[i]);
    }
    if (code == 0)
        code = store_fact(txn, table->facts, HARD_STATE, hard_state, sizeof *hard_state);
    if (code == 0)
        code = store_fact(txn, table->facts, POSITION, position, sizeof *position);
    if (code != 0) {
        mdb_txn_abort(txn);
        return write_error(code);
    }
    return write_error(mdb_txn_commit(txn));
}

int trimaran_logtable_store(trimaran_logtable *table, uint64_t first, const trimaran_entry *entries,
                            size_t count, const trimaran_hard_state *hard_state,
                            const trimaran_log_position *position)
{
    int error;

    do
        error = store(table, first, entries, count, hard_state, position);
    while (error == -ENOSPC && (error = grow(table)) == 0);
    return error;
}

static int compact(trimaran_logtable *table, uint64_t first, const trimaran_log_marker *marker)
{
    MDB_txn *txn;
    int code = mdb_txn_begin(table->environment, NULL, 0, &txn);

    if (code != 0)
        return write_error(code);
    code = delete_range(txn, table->entries, first, marker->index);
    if (code == 0)
        code = store_fact(txn, table->facts, MARKER, marker, sizeof *marker);
    if (code != 0) {
        mdb_txn_abort(txn);
        return write_error(code);
    }
    return write_error(mdb_txn_commit(txn));
}

/* Compact; where the map is full and cannot grow, with the room kept for this. */
static int compact_full(trimaran_logtable *table, uint64_t first,
                        const trimaran_log_marker *marker)
{
    int error, restored;

    do
        error = compact(table, first, marker);
    while (error == -ENOSPC && (error = grow(table)) == 0);
    if (error != -ENOSPC)
        return error;
    error = set_map_size(table, table->map_bytes + COMPACTION_BYTES);
    if (error == 0)
        error = compact(table, first, marker);
    restored = set_map_size(table, table->map_bytes);
    return error != 0 ? error : restored;
}

int trimaran_logtable_compact(trimaran_logtable *table, uint64_t first,
                              const trimaran_log_marker *marker)
{
    int error = compact_full(table, first, marker);

    /* LMDB reuses a page two transactions after the one that freed it: a full log needs it now. */
    for (int i = 0; i < 2 && error == 0; i++)
        error = compact_full(table, marker->index + 1, marker);
    return error;
}

static int reset(trimaran_logtable *table, const trimaran_log_marker *marker,
                 const trimaran_hard_state *hard_state, const trimaran_log_position *position)
{
    MDB_txn *txn;
    int code = mdb_txn_begin(table->environment, NULL, 0, &txn);

    if (code != 0)
        return write_error(code);
    code = mdb_drop(txn, table->entries, 0);
    if (code == 0)
        code = store_fact(txn, table->facts, MARKER, marker, sizeof *marker);
    if (code == 0)
        code = store_fact(txn, table->facts, HARD_STATE, hard_state, sizeof *hard_state);
    if (code == 0)
        code = store_fact(txn, table->facts, POSITION, position, sizeof *position);
    if (code != 0) {
        mdb_txn_abort(txn);
        return write_error(code);
    }
    return write_error(mdb_txn_commit(txn));
}

int trimaran_logtable_reset(trimaran_logtable *table, const trimaran_log_marker *marker,
                            const trimaran_hard_state *hard_state,
                            const trimaran_log_position *position)
{
    int error, restored;

    do
        error = reset(table, marker, hard_state, position);
    while (error == -ENOSPC && (error = grow(table)) == 0);
    if (error != -ENOSPC)
        return error;
    error = set_map_size(table, table->map_bytes + COMPACTION_BYTES);
    if (error == 0)
        error = reset(table, marker, hard_state, position);
    restored = set_map_size(table, table->map_bytes);
    return error != 0 ? error : restored;
}

void trimaran_logtable_lock(trimaran_logtable *table)
{
    pthread_rwlock_rdlock(&table->readers);
}

void trimaran_logtable_unlock(trimaran_logtable *table)
{
    pthread_rwlock_unlock(&table->readers);
}

static int decode(const MDB_val *value, uint64_t index, trimaran_entry *out)
{
    struct stored_head head;

    if (value->mv_size < sizeof head || value->mv_size - sizeof head > UINT32_MAX)
        return -EUCLEAN;
    memcpy(&head, value->mv_data, sizeof head);
    *out = (trimaran_entry){
        .index = index,
        .term = head.term,
        .type = head.type,
        .size = (uint32_t)(value->mv_size - sizeof head),
        .data = (const uint8_t *)value->mv_data + sizeof head,
    };
    return 0;
}

int trimaran_logtable_term(trimaran_logtable *table, uint64_t index, uint64_t *term)
{
    uint64_t big = htobe64(index);
    MDB_val key = {sizeof big, &big}, value;
    trimaran_entry entry;
    MDB_txn *txn;
    int error = trimaran_logtable_begin(table, &txn);

    if (error != 0)
        return error;
    error = read_error(mdb_get(txn, table->entries, &key, &value));
    if (error == 0)
        error = decode(&value, index, &entry);
    if (error == 0)
        *term = entry.term;
    mdb_txn_abort(txn);
    return error;
}

int trimaran_logtable_begin(trimaran_logtable *table, MDB_txn **out)
{
    return read_error(mdb_txn_begin(table->environment, NULL, MDB_RDONLY, out));
}

int trimaran_logtable_visit(trimaran_logtable *table, MDB_txn *snapshot, uint64_t first,
                            uint64_t last, uint64_t *budget_bytes, uint64_t *next,
                            trimaran_raftlog_visitor visitor, void *context)
{
    uint64_t big = htobe64(first), index;
    MDB_val key = {sizeof big, &big}, value;
    MDB_cursor *cursor;
    trimaran_entry entry;
    int error = read_error(mdb_cursor_open(snapshot, table->entries, &cursor));

    if (error != 0)
        return error;
    error = read_error(mdb_cursor_get(cursor, &key, &value, MDB_SET));
    for (*next = first; *next <= last && error == 0; ++*next) {
        if (*next > first)
            error = read_error(mdb_cursor_get(cursor, &key, &value, MDB_NEXT));
        if (error == 0)
            error = index_of(&key, &index);
        if (error == 0 && index != *next)
            error = -EUCLEAN;
        if (error == 0)
            error = decode(&value, index, &entry);
        if (error != 0)
            break;
        if (entry.size > *budget_bytes && *next > first) {
            *budget_bytes = 0;
            break;
        }
        *budget_bytes -= entry.size < *budget_bytes ? entry.size : *budget_bytes;
        error = visitor(context, &entry);
    }
    mdb_cursor_close(cursor);
    return error;
}
