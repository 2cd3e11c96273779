#include "manuallog.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct submission {
    struct submission *next;
    int has_hard_state;
    trimaran_hard_state hard_state;
    size_t count;
    trimaran_entry entries[];
};

struct trimaran_manuallog {
    trimaran_raftlog *log;
    struct submission *first, *last;
    uint64_t submitted;
    trimaran_logthread_completion completion;
};

trimaran_manuallog *trimaran_manuallog_create(trimaran_raftlog *log)
{
    trimaran_manuallog *manual = calloc(1, sizeof *manual);

    if (manual != NULL)
        manual->log = log;
    return manual;
}

static void free_submission(struct submission *submission)
{
    for (size_t i = 0; i < submission->count; i++)
        trimaran_payload_release(submission->entries[i].payload);
    free(submission);
}

static void drop_submissions(trimaran_manuallog *manual)
{
    for (struct submission *next; manual->first != NULL; manual->first = next) {
        next = manual->first->next;
        free_submission(manual->first);
    }
    manual->last = NULL;
}

void trimaran_manuallog_destroy(trimaran_manuallog *manual)
{
    if (manual == NULL)
        return;
    drop_submissions(manual);
    free(manual);
}

/* An entry of size 0 has no payload; every other one keeps its own. */
int trimaran_manuallog_submit(trimaran_manuallog *manual, const trimaran_hard_state *hard_state,
                              const trimaran_entry *entries, size_t count, uint64_t *sequence)
{
    struct submission *submission = malloc(sizeof *submission + count * sizeof *entries);

    if (submission == NULL)
        return -ENOMEM;
    *submission = (struct submission){.has_hard_state = hard_state != NULL, .count = count};
    if (hard_state != NULL)
        submission->hard_state = *hard_state;
    for (size_t i = 0; i < count; i++) {
        submission->entries[i] = entries[i];
        assert(entries[i].payload != NULL || entries[i].size == 0);
        if (entries[i].payload != NULL)
            trimaran_payload_retain(entries[i].payload);
    }
    if (manual->last != NULL)
        manual->last->next = submission;
    else
        manual->first = submission;
    manual->last = submission;
    *sequence = ++manual->submitted;
    return 0;
}

void trimaran_manuallog_completed(const trimaran_manuallog *manual,
                                  trimaran_logthread_completion *out)
{
    *out = manual->completion;
}

uint64_t trimaran_manuallog_pending(const trimaran_manuallog *manual)
{
    return manual->submitted - manual->completion.sequence;
}

int trimaran_manuallog_flush(trimaran_manuallog *manual, uint64_t count)
{
    for (; count > 0 && manual->first != NULL; count--) {
        struct submission *submission = manual->first;
        int error = trimaran_raftlog_append(
            manual->log, submission->has_hard_state ? &submission->hard_state : NULL,
            submission->entries, submission->count);
        manual->completion.error = error;
        if (error != 0)
            return error;
        manual->completion.sequence++;
        if (submission->count > 0) {
            manual->completion.index = submission->entries[submission->count - 1].index;
            manual->completion.term = submission->entries[submission->count - 1].term;
        }
        manual->first = submission->next;
        if (manual->first == NULL)
            manual->last = NULL;
        free_submission(submission);
    }
    return 0;
}

int trimaran_manuallog_reset(trimaran_manuallog *manual, const trimaran_hard_state *hard_state,
                             uint64_t index, uint64_t term)
{
    int error = trimaran_raftlog_reset(manual->log, hard_state, index, term);

    if (error != 0)
        return error;
    drop_submissions(manual);
    manual->completion.sequence = manual->submitted;
    manual->completion.index = index;
    manual->completion.term = term;
    return 0;
}
