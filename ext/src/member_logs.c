/* The two logs a member runs on: one with threads, and one that its owner flushes. */
#include <errno.h>

#include "manuallog.h"
#include "member.h"

static int thread_submit(void *context, const trimaran_hard_state *hard_state,
                         const trimaran_entry *entries, size_t count, uint64_t *sequence)
{
    trimaran_member_disk *disk = context;
    return trimaran_logthread_submit(disk->thread, hard_state, entries, count, sequence);
}

static int thread_append(void *context, const trimaran_hard_state *hard_state,
                         const trimaran_entry *entries, size_t count, uint64_t *sequence)
{
    trimaran_member_disk *disk = context;
    return trimaran_logthread_append(disk->thread, hard_state, entries, count, sequence);
}

static int thread_is_quick(void *context)
{
    trimaran_member_disk *disk = context;
    return trimaran_logthread_is_quick(disk->thread);
}

static void thread_completed(void *context, trimaran_logthread_completion *out)
{
    trimaran_member_disk *disk = context;
    trimaran_logthread_completed(disk->thread, out);
}

static int manual_submit(void *context, const trimaran_hard_state *hard_state,
                         const trimaran_entry *entries, size_t count, uint64_t *sequence)
{
    trimaran_member_disk *disk = context;
    return trimaran_manuallog_submit(disk->manual, hard_state, entries, count, sequence);
}

static int manual_append(void *context, const trimaran_hard_state *hard_state,
                         const trimaran_entry *entries, size_t count, uint64_t *sequence)
{
    (void)context, (void)hard_state, (void)entries, (void)count, (void)sequence;
    return -EAGAIN;
}

static int manual_is_quick(void *context)
{
    (void)context;
    return 0;
}

static void manual_completed(void *context, trimaran_logthread_completion *out)
{
    trimaran_member_disk *disk = context;
    trimaran_manuallog_completed(disk->manual, out);
}

static int read_entries(void *context, uint64_t first, uint64_t last, uint64_t max_bytes,
                        trimaran_raftlog_visitor visitor, void *visitor_context)
{
    trimaran_member_disk *disk = context;
    return trimaran_raftlog_read(disk->log, first, last, max_bytes, visitor, visitor_context);
}

static int thread_reset(void *context, const trimaran_hard_state *hard_state, uint64_t index,
                        uint64_t term)
{
    trimaran_member_disk *disk = context;
    return trimaran_logthread_reset(disk->thread, hard_state, index, term);
}

static int manual_reset(void *context, const trimaran_hard_state *hard_state, uint64_t index,
                        uint64_t term)
{
    trimaran_member_disk *disk = context;
    return trimaran_manuallog_reset(disk->manual, hard_state, index, term);
}

int trimaran_member_disk_open(trimaran_member_disk *disk, trimaran_raftlog *log, bool manual)
{
    *disk = (trimaran_member_disk){.log = log};
    if (!manual)
        return trimaran_logthread_start(log, &disk->thread);
    disk->manual = trimaran_manuallog_create(log);
    return disk->manual == NULL ? -ENOMEM : 0;
}

void trimaran_member_disk_close(trimaran_member_disk *disk, bool abandon)
{
    trimaran_logthread_stop(disk->thread);
    if (disk->manual != NULL && !abandon)
        trimaran_manuallog_flush(disk->manual, UINT64_MAX);
    trimaran_manuallog_destroy(disk->manual);
    *disk = (trimaran_member_disk){0};
}

int trimaran_member_disk_compact(trimaran_member_disk *disk, uint64_t index)
{
    if (disk->thread == NULL)
        return trimaran_raftlog_compact(disk->log, index);
    trimaran_logthread_compact(disk->thread, index);
    return 0;
}

trimaran_member_log trimaran_member_disk_log(trimaran_member_disk *disk)
{
    if (disk->thread != NULL)
        return (trimaran_member_log){disk,           thread_submit,    thread_append,
                                     thread_is_quick, thread_completed, read_entries,
                                     thread_reset};
    return (trimaran_member_log){disk,            manual_submit,    manual_append, manual_is_quick,
                                 manual_completed, read_entries,     manual_reset};
}
