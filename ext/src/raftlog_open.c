/* Opening the raft log: the directory's lock, LMDB, the journal's replay; and closing it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "raftlog.h"

#define MAP_SIZE_DEFAULT (16ull << 30)
#define JOURNAL_SIZE_DEFAULT (64ull << 20)
#define JOURNAL_SIZE_MIN (64ull << 10)
#define JOURNAL_SIZE_MAX (8ull << 30) /* a quarter of it is a record, whose size is 32 bits */

static _Thread_local char open_error[256];

const char *trimaran_raftlog_open_error(void)
{
    return open_error;
}

__attribute__((format(printf, 2, 3))) static int refuse(int error, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(open_error, sizeof open_error, format, arguments);
    va_end(arguments);
    return error;
}

/* Take one replayed record, if it fits the log. */
static int replay(void *context, const uint8_t *payload, size_t size)
{
    trimaran_raftlog *log = context;
    struct trimaran_batch_head head;

    if (trimaran_batch_check(payload, size) != 0)
        return -EUCLEAN;
    memcpy(&head, payload, sizeof head);
    if (head.count > 0
        && (head.first_index <= log->marker.index || head.first_index > log->last_index + 1))
        return -EUCLEAN;
    if (trimaran_pending_reserve(log, head.count) != 0)
        return -ENOMEM;
    trimaran_pending_publish(log, payload);
    log->counters.replayed_entries += head.count;
    return 0;
}

/* A directory just made must not vanish with a power cut. */
static int flush_parent(int directory_fd)
{
    int parent = openat(directory_fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error;

    if (parent < 0)
        return -errno;
    error = fsync(parent) != 0 ? -errno : 0;
    close(parent);
    return error;
}

static int open_directory(const char *directory, trimaran_raftlog *log)
{
    int made = mkdir(directory, 0700) == 0;

    if (!made && errno != EEXIST)
        return refuse(-errno, "cannot create %s: %s", directory, strerror(errno));
    log->directory_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (log->directory_fd < 0)
        return refuse(-errno, "cannot open directory %s: %s", directory, strerror(errno));
    if (made && flush_parent(log->directory_fd) != 0)
        return refuse(-EIO, "cannot flush the directory above %s", directory);
    if (flock(log->directory_fd, LOCK_EX | LOCK_NB) != 0) {
        int error = errno;
        if (error == EWOULDBLOCK)
            return refuse(-error,
                          "%s is in use by another process; stop that one, or choose another "
                          "directory",
                          directory);
        return refuse(-error, "cannot lock %s: %s", directory, strerror(error));
    }
    return 0;
}

/* Make the journal and write its identity to LMDB, or open the one whose identity is there. */
static int open_journal(trimaran_raftlog *log, const trimaran_raftlog_options *options,
                        trimaran_logtable_facts *facts)
{
    int buffered = (options->flags & TRIMARAN_RAFTLOG_BUFFERED) != 0;
    int error;

    if (facts->position.journal_id != 0)
        return trimaran_journal_open(log->directory_fd, facts->position.journal_id, buffered,
                                     &log->journal);
    error = trimaran_journal_create(log->directory_fd, options->journal_size_bytes, buffered,
                                    &log->journal);
    if (error != 0)
        return error;
    facts->position.journal_id = log->journal.id;
    return trimaran_logtable_store(&log->table, 1, NULL, 0, &facts->hard_state, &facts->position);
}

static int load(trimaran_raftlog *log, const trimaran_raftlog_options *options)
{
    trimaran_logtable_facts facts;
    int error = trimaran_logtable_load(&log->table, &facts);

    if (error != 0)
        return refuse(error, "the entries in data.mdb do not fit together");
    log->hard_state = facts.hard_state;
    log->marker = facts.marker;
    log->last_index = facts.last_index;
    log->pending_first = log->last_index + 1;
    log->settled_sequence = facts.position.sequence;
    error = open_journal(log, options, &facts);
    if (error == -EUCLEAN)
        return refuse(error, "the journal is missing, cut, or of another log");
    if (error != 0)
        return refuse(error, "cannot open or create the journal: %s", strerror(-error));
    error = trimaran_journal_recover(&log->journal, facts.position.sequence, facts.position.place,
                                     replay, log);
    if (error == -EUCLEAN)
        return refuse(error, "the journal is damaged: record %llu is unreadable or does not fit, "
                             "and later ones exist",
                      (unsigned long long)log->journal.sequence + 1);
    if (error != 0)
        return refuse(error, "cannot read the journal: %s", strerror(-error));
    if (log->hard_state.commit > log->last_index)
        return refuse(-EUCLEAN, "entries up to %llu were committed, but the log ends at %llu",
                      (unsigned long long)log->hard_state.commit,
                      (unsigned long long)log->last_index);
    log->counters.discarded_records = log->journal.discarded > 0;
    return 0;
}

static void destroy(trimaran_raftlog *log)
{
    trimaran_journal_close(&log->journal);
    trimaran_logtable_close(&log->table);
    if (log->directory_fd >= 0)
        close(log->directory_fd);
    pthread_mutex_destroy(&log->append);
    pthread_mutex_destroy(&log->settle);
    pthread_mutex_destroy(&log->state);
    free(log->pending);
    free(log);
}

static int read_options(const trimaran_raftlog_options *given, trimaran_raftlog_options *out)
{
    *out = (trimaran_raftlog_options){.struct_size = sizeof *out};
    if (given != NULL) {
        if (given->struct_size > sizeof *out || given->struct_size < sizeof given->struct_size)
            return refuse(-EINVAL, "options are of another version of the library");
        memcpy(out, given, given->struct_size);
    }
    if (out->map_size_bytes == 0)
        out->map_size_bytes = MAP_SIZE_DEFAULT;
    if (out->journal_size_bytes == 0)
        out->journal_size_bytes = JOURNAL_SIZE_DEFAULT;
    if (out->journal_size_bytes < JOURNAL_SIZE_MIN || out->journal_size_bytes > JOURNAL_SIZE_MAX)
        return refuse(-EINVAL, "journal_size_bytes is not between 64 KiB and 8 GiB");
    return 0;
}

int trimaran_raftlog_open(const char *directory, const trimaran_raftlog_options *given,
                          trimaran_raftlog **out)
{
    trimaran_raftlog_options options;
    trimaran_raftlog *log;
    int error = read_options(given, &options);

    if (error != 0)
        return error;
    log = calloc(1, sizeof *log);
    if (log == NULL)
        return refuse(-ENOMEM, "no memory");
    log->directory_fd = log->journal.fd = -1;
    log->pending_capacity = 1024;
    log->pending = malloc(log->pending_capacity * sizeof *log->pending);
    pthread_mutex_init(&log->append, NULL);
    pthread_mutex_init(&log->settle, NULL);
    pthread_mutex_init(&log->state, NULL);
    error = log->pending == NULL ? refuse(-ENOMEM, "no memory") : open_directory(directory, log);
    if (error == 0) {
        error = trimaran_logtable_open(directory, log->directory_fd, options.map_size_bytes,
                                       &log->table);
        if (error != 0)
            refuse(error, "cannot open data.mdb: %s", strerror(-error));
    }
    if (error == 0)
        error = load(log, &options);
    if (error != 0) {
        destroy(log);
        return error;
    }
    *out = log;
    return 0;
}

int trimaran_raftlog_close(trimaran_raftlog *log)
{
    int error;

    if (log == NULL)
        return 0;
    error = trimaran_raftlog_settle(log);
    destroy(log);
    return error;
}
