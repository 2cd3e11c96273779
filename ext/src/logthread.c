#define _GNU_SOURCE
#include "logthread.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "fatal.h"
#include "raftlog.h"

#define MERGE_BYTES_MAX (4u << 20) /* more would only delay the first of those that wait */
#define RETRY_MS 100               /* between attempts while the log is full */
#define QUICK_FLUSH_NS 500000      /* a loop may wait this long for a flush of its own */
#define IDLE_MS 250                /* without an append, before the journal is emptied */

/* One submission. */
struct batch {
    struct batch *next;
    uint64_t sequence;
    int has_hard_state;
    trimaran_hard_state hard_state;
    size_t bytes;
    size_t count;
    trimaran_entry entries[];
};

struct trimaran_logthread {
    trimaran_raftlog *log;
    int event_fd;
    pthread_t writer, settler;
    trimaran_entry *merged; /* the writer's own */
    size_t merged_capacity;

    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t submitted, settle_wanted;
    pthread_cond_t emptied; /* the queue is empty, or has to wait for room */
    struct batch *first, *last;
    uint64_t next_sequence;
    trimaran_logthread_completion completion;
    uint64_t appends;
    int busy; /* someone is in trimaran_raftlog_append */
    int64_t flush_ns; /* moving average of what an append took */
    int crowded; /* the journal may soon have to be waited for */
    uint64_t compact_index; /* drop up to here; 0: nothing is asked */
    int dirty, full; /* the journal holds something; it holds a lot */
    int stopping, settler_stopping;
};

static void deadline_after(struct timespec *out, long milliseconds)
{
    clock_gettime(CLOCK_MONOTONIC, out);
    out->tv_nsec += milliseconds * 1000000;
    out->tv_sec += out->tv_nsec / 1000000000;
    out->tv_nsec %= 1000000000;
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* With the lock held. */
static void note_duration(trimaran_logthread *thread, int64_t started_ns)
{
    thread->flush_ns += (now_ns() - started_ns - thread->flush_ns) / 8;
}

static void signal_loop(const trimaran_logthread *thread)
{
    eventfd_write(thread->event_fd, 1);
}

static void free_batch(struct batch *batch)
{
    for (size_t i = 0; i < batch->count; i++)
        trimaran_payload_release(batch->entries[i].payload);
    free(batch);
}

/* Note what an append made durable, with the lock held, and wake the settler where it has work. */
static void note_append(trimaran_logthread *thread, uint64_t sequence, const trimaran_entry *last)
{
    uint64_t capacity, used = trimaran_raftlog_unsettled(thread->log, &capacity);

    thread->crowded = used >= capacity / 2;
    assert(sequence > thread->completion.sequence);
    thread->completion.sequence = sequence;
    thread->completion.error = 0;
    if (last != NULL) {
        thread->completion.index = last->index;
        thread->completion.term = last->term;
    }
    thread->appends++;
    if (!thread->dirty || (used >= capacity / 4 && !thread->full)) {
        thread->full = used >= capacity / 4;
        thread->dirty = 1;
        pthread_cond_signal(&thread->settle_wanted);
    }
}

/* Whether next may be flushed together with what goes before it. */
static int merges(const struct batch *before, const struct batch *next, size_t bytes)
{
    if (bytes + next->bytes > MERGE_BYTES_MAX)
        return 0;
    return before->count == 0 || next->count == 0
           || next->entries[0].index == before->entries[before->count - 1].index + 1;
}

/* Cut from the queue the submissions that one flush takes, with the lock held. */
static struct batch *take(trimaran_logthread *thread, struct batch **last, size_t *count)
{
    struct batch *first = thread->first, *batch = first, *with_entries = first;
    size_t bytes = first->bytes;

    *count = first->count;
    while (batch->next != NULL && merges(with_entries, batch->next, bytes)) {
        batch = batch->next;
        bytes += batch->bytes;
        *count += batch->count;
        if (batch->count > 0)
            with_entries = batch;
    }
    *last = batch;
    return first;
}

static int append_merged(trimaran_logthread *thread, struct batch *first, struct batch *last,
                         size_t count)
{
    const trimaran_hard_state *hard_state = NULL;
    size_t filled = 0;

    if (count > thread->merged_capacity) {
        trimaran_entry *grown = realloc(thread->merged, 2 * count * sizeof *grown);
        if (grown == NULL)
            return -ENOMEM;
        thread->merged = grown;
        thread->merged_capacity = 2 * count;
    }
    for (struct batch *batch = first;; batch = batch->next) {
        if (batch->has_hard_state)
            hard_state = &batch->hard_state;
        if (batch->count > 0)
            memcpy(thread->merged + filled, batch->entries, batch->count * sizeof *batch->entries);
        filled += batch->count;
        if (batch == last)
            break;
    }
    assert(filled == count);
    return trimaran_raftlog_append(thread->log, hard_state, thread->merged, count);
}

/* The append of the submissions first..last is over; with the lock held. */
static void finish(trimaran_logthread *thread, struct batch *first, struct batch *last,
                   size_t count, int error)
{
    if (error == 0) {
        thread->first = last->next;
        if (thread->first == NULL)
            thread->last = NULL;
        last->next = NULL;
        note_append(thread, last->sequence, count > 0 ? &thread->merged[count - 1] : NULL);
        signal_loop(thread);
        pthread_mutex_unlock(&thread->lock);
        for (struct batch *next; first != NULL; first = next) {
            next = first->next;
            free_batch(first);
        }
        pthread_mutex_lock(&thread->lock);
        return;
    }
    if (error != -ENOSPC && error != -ENOMEM)
        trimaran_fatal("appending to the raft log", strerror(-error));
    if (thread->completion.error != error) {
        thread->completion.error = error;
        signal_loop(thread);
        pthread_cond_broadcast(&thread->emptied);
    }
    struct timespec deadline;
    deadline_after(&deadline, RETRY_MS);
    while (!thread->stopping
           && pthread_cond_timedwait(&thread->submitted, &thread->lock, &deadline) != ETIMEDOUT)
        ;
}

static void *write_loop(void *argument)
{
    trimaran_logthread *thread = argument;

    pthread_setname_np(pthread_self(), "trimaran-log");
    pthread_mutex_lock(&thread->lock);
    for (;;) {
        while ((thread->first == NULL || thread->busy) && !(thread->stopping && !thread->busy))
            pthread_cond_wait(&thread->submitted, &thread->lock);
        if (thread->first == NULL || (thread->stopping && thread->completion.error != 0))
            break;
        size_t count;
        struct batch *last, *first = take(thread, &last, &count);
        thread->busy = 1;
        pthread_mutex_unlock(&thread->lock);
        int64_t started_ns = now_ns();
        int error = append_merged(thread, first, last, count);
        pthread_mutex_lock(&thread->lock);
        note_duration(thread, started_ns);
        thread->busy = 0;
        finish(thread, first, last, count, error);
        if (thread->first == NULL)
            pthread_cond_broadcast(&thread->emptied);
    }
    pthread_mutex_unlock(&thread->lock);
    return NULL;
}

/* Ask for a failed compaction again, after a pause and unless a later one was asked for. */
static void retry_compaction(trimaran_logthread *thread, uint64_t index)
{
    struct timespec deadline;

    deadline_after(&deadline, RETRY_MS);
    while (!thread->settler_stopping
           && pthread_cond_timedwait(&thread->settle_wanted, &thread->lock, &deadline)
                  != ETIMEDOUT)
        ;
    if (thread->compact_index < index)
        thread->compact_index = index;
}

/* Wait for something to do, with the lock held: until the journal has been left alone for a while,
 * or is rather full, or a compaction is asked for, or the end. Returns whether to settle. */
static int wait_for_settle(trimaran_logthread *thread)
{
    uint64_t seen = thread->appends;
    struct timespec deadline;

    if (!thread->dirty && thread->compact_index == 0) {
        pthread_cond_wait(&thread->settle_wanted, &thread->lock);
        return 0;
    }
    deadline_after(&deadline, IDLE_MS);
    while (!thread->full && !thread->settler_stopping && thread->compact_index == 0)
        if (pthread_cond_timedwait(&thread->settle_wanted, &thread->lock, &deadline) == ETIMEDOUT)
            break;
    return thread->dirty && (thread->full || thread->appends == seen);
}

static void *settle_loop(void *argument)
{
    trimaran_logthread *thread = argument;

    pthread_setname_np(pthread_self(), "trimaran-settle");
    pthread_mutex_lock(&thread->lock);
    while (!thread->settler_stopping) {
        int settle = wait_for_settle(thread), error = 0;
        uint64_t index = thread->compact_index;
        if (thread->settler_stopping || (!settle && index == 0))
            continue;
        if (settle)
            thread->dirty = thread->full = 0;
        thread->compact_index = 0;
        pthread_mutex_unlock(&thread->lock);
        if (index > 0)
            error = trimaran_raftlog_compact(thread->log, index);
        int settle_error = settle ? trimaran_raftlog_settle(thread->log) : 0;
        pthread_mutex_lock(&thread->lock);
        assert(error != -EINVAL && error != -EUCLEAN);
        /* Full disk: the entries are safe in the journal; a later round tries again. */
        if (settle_error != 0)
            thread->dirty = 1;
        if (error != 0)
            retry_compaction(thread, index);
    }
    pthread_mutex_unlock(&thread->lock);
    return NULL;
}

/* Start both threads with every signal blocked: signals are the loop's. */
static int start_threads(trimaran_logthread *thread)
{
    sigset_t all, before;
    int error;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread->writer, NULL, write_loop, thread);
    if (error == 0) {
        error = pthread_create(&thread->settler, NULL, settle_loop, thread);
        if (error != 0) {
            pthread_mutex_lock(&thread->lock);
            thread->stopping = 1;
            pthread_cond_signal(&thread->submitted);
            pthread_mutex_unlock(&thread->lock);
            pthread_join(thread->writer, NULL);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -error;
}

static void destroy(trimaran_logthread *thread)
{
    for (struct batch *next, *batch = thread->first; batch != NULL; batch = next) {
        next = batch->next;
        free_batch(batch);
    }
    pthread_cond_destroy(&thread->submitted);
    pthread_cond_destroy(&thread->settle_wanted);
    pthread_cond_destroy(&thread->emptied);
    pthread_mutex_destroy(&thread->lock);
    close(thread->event_fd);
    free(thread->merged);
    free(thread);
}

int trimaran_logthread_start(trimaran_raftlog *log, trimaran_logthread **out)
{
    pthread_condattr_t monotonic;
    trimaran_logthread *thread = calloc(1, sizeof *thread);
    int error;

    if (thread == NULL)
        return -ENOMEM;
    thread->log = log;
    thread->next_sequence = 1;
    thread->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (thread->event_fd < 0) {
        error = -errno;
        free(thread);
        return error;
    }
    pthread_mutex_init(&thread->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&thread->submitted, &monotonic);
    pthread_cond_init(&thread->settle_wanted, &monotonic);
    pthread_cond_init(&thread->emptied, &monotonic);
    pthread_condattr_destroy(&monotonic);
    error = start_threads(thread);
    if (error != 0) {
        destroy(thread);
        return error;
    }
    *out = thread;
    return 0;
}

int trimaran_logthread_fd(const trimaran_logthread *thread)
{
    return thread->event_fd;
}

static struct batch *new_batch(const trimaran_hard_state *hard_state,
                               const trimaran_entry *entries, size_t count)
{
    struct batch *batch = malloc(sizeof *batch + count * sizeof *entries);

    if (batch == NULL)
        return NULL;
    *batch = (struct batch){.has_hard_state = hard_state != NULL};
    if (hard_state != NULL)
        batch->hard_state = *hard_state;
    for (; batch->count < count; batch->count++) {
        trimaran_entry *entry = &batch->entries[batch->count];
        *entry = entries[batch->count];
        batch->bytes += entry->size;
        if (entry->payload != NULL) {
            trimaran_payload_retain(entry->payload);
            continue;
        }
        entry->payload = trimaran_payload_new(entry->size);
        if (entry->payload == NULL) {
            free_batch(batch);
            return NULL;
        }
        if (entry->size > 0)
            memcpy(trimaran_payload_data(entry->payload), entry->data, entry->size);
        entry->data = trimaran_payload_data(entry->payload);
    }
    return batch;
}

int trimaran_logthread_submit(trimaran_logthread *thread, const trimaran_hard_state *hard_state,
                              const trimaran_entry *entries, size_t count, uint64_t *sequence)
{
    struct batch *batch = new_batch(hard_state, entries, count);

    if (batch == NULL)
        return -ENOMEM;
    pthread_mutex_lock(&thread->lock);
    *sequence = batch->sequence = thread->next_sequence++;
    if (thread->last != NULL)
        thread->last->next = batch;
    else
        thread->first = batch;
    thread->last = batch;
    if (!thread->busy)
        pthread_cond_signal(&thread->submitted);
    pthread_mutex_unlock(&thread->lock);
    return 0;
}

int trimaran_logthread_append(trimaran_logthread *thread, const trimaran_hard_state *hard_state,
                              const trimaran_entry *entries, size_t count, uint64_t *sequence)
{
    int error;

    pthread_mutex_lock(&thread->lock);
    if (thread->busy || thread->first != NULL) {
        pthread_mutex_unlock(&thread->lock);
        return -EAGAIN;
    }
    thread->busy = 1;
    pthread_mutex_unlock(&thread->lock);
    int64_t started_ns = now_ns();
    error = trimaran_raftlog_append(thread->log, hard_state, entries, count);
    pthread_mutex_lock(&thread->lock);
    note_duration(thread, started_ns);
    thread->busy = 0;
    if (error == 0) {
        *sequence = thread->next_sequence++;
        note_append(thread, *sequence, count > 0 ? &entries[count - 1] : NULL);
    }
    if (thread->first != NULL || thread->stopping)
        pthread_cond_signal(&thread->submitted);
    pthread_mutex_unlock(&thread->lock);
    return error;
}

int trimaran_logthread_is_quick(trimaran_logthread *thread)
{
    pthread_mutex_lock(&thread->lock);
    int quick = thread->flush_ns < QUICK_FLUSH_NS && !thread->crowded;
    pthread_mutex_unlock(&thread->lock);
    return quick;
}

void trimaran_logthread_completed(trimaran_logthread *thread, trimaran_logthread_completion *out)
{
    eventfd_t count;

    eventfd_read(thread->event_fd, &count);
    pthread_mutex_lock(&thread->lock);
    *out = thread->completion;
    pthread_mutex_unlock(&thread->lock);
}

void trimaran_logthread_compact(trimaran_logthread *thread, uint64_t index)
{
    pthread_mutex_lock(&thread->lock);
    if (thread->compact_index < index) {
        thread->compact_index = index;
        pthread_cond_signal(&thread->settle_wanted);
    }
    pthread_mutex_unlock(&thread->lock);
}

int trimaran_logthread_reset(trimaran_logthread *thread, const trimaran_hard_state *hard_state,
                             uint64_t index, uint64_t term)
{
    int error = 0;

    pthread_mutex_lock(&thread->lock);
    while ((thread->busy || thread->first != NULL) && thread->completion.error == 0)
        pthread_cond_wait(&thread->emptied, &thread->lock);
    if (thread->busy || thread->first != NULL)
        error = thread->completion.error;
    else
        thread->busy = 1;
    pthread_mutex_unlock(&thread->lock);
    if (error != 0)
        return error;
    error = trimaran_raftlog_reset(thread->log, hard_state, index, term);
    pthread_mutex_lock(&thread->lock);
    thread->busy = 0;
    if (error == 0) {
        thread->completion.index = index;
        thread->completion.term = term;
        thread->crowded = 0;
    }
    pthread_cond_signal(&thread->submitted);
    pthread_mutex_unlock(&thread->lock);
    return error;
}

int trimaran_logthread_stop(trimaran_logthread *thread)
{
    int error;

    if (thread == NULL)
        return 0;
    pthread_mutex_lock(&thread->lock);
    thread->stopping = 1;
    pthread_cond_signal(&thread->submitted);
    pthread_mutex_unlock(&thread->lock);
    pthread_join(thread->writer, NULL);
    pthread_mutex_lock(&thread->lock);
    thread->settler_stopping = 1;
    pthread_cond_signal(&thread->settle_wanted);
    pthread_mutex_unlock(&thread->lock);
    pthread_join(thread->settler, NULL);
    error = thread->first != NULL ? thread->completion.error : 0;
    destroy(thread);
    return error;
}
