/* A member's writes to its log: in its own thread, in the log's, or after its messages. */
#include "member_internal.h"

static void remember(trimaran_member *member, uint64_t sequence, uint64_t number)
{
    if (member->flying_count == member->flying_capacity) {
        size_t capacity = member->flying_capacity ? member->flying_capacity * 2 : 16;
        trimaran_in_flight *flying = trimaran_allocate(capacity * sizeof *flying);
        for (size_t i = 0; i < member->flying_count; i++)
            flying[i] =
                member->flying[(member->flying_first + i) % member->flying_capacity];
        free(member->flying);
        member->flying = flying;
        member->flying_first = 0;
        member->flying_capacity = capacity;
    }
    size_t place = (member->flying_first + member->flying_count++) % member->flying_capacity;
    member->flying[place] = (trimaran_in_flight){sequence, number};
}

static void submit(trimaran_member *member, const trimaran_hard_state *hard_state,
                   const trimaran_entry *entries, size_t count, uint64_t number)
{
    uint64_t sequence;
    if (member->log.submit(member->log.context, hard_state, entries, count, &sequence) != 0)
        abort(); /* out of memory: what raft believes written would never be */
    remember(member, sequence, number);
}

static bool may_flush_here(const trimaran_member *member)
{
    return member->flying_count == 0 && member->log.is_quick(member->log.context);
}

static void stage(trimaran_member *member, const trimaran_raft_ready *ready)
{
    trimaran_staged *staged = &member->staged;
    staged->number = ready->number;
    staged->has_hard_state = ready->hard_state != NULL;
    if (ready->hard_state != NULL)
        staged->hard_state = *ready->hard_state;
    if (ready->entry_count > staged->capacity) {
        staged->capacity = ready->entry_count * 2;
        staged->entries =
            trimaran_reallocate(staged->entries, staged->capacity * sizeof *staged->entries);
    }
    staged->count = ready->entry_count;
    for (size_t i = 0; i < staged->count; i++) {
        staged->entries[i] = ready->entries[i];
        if (staged->entries[i].payload != NULL)
            trimaran_payload_retain(staged->entries[i].payload);
    }
}

void trimaran_member_unstage(trimaran_member *member)
{
    for (size_t i = 0; i < member->staged.count; i++)
        trimaran_payload_release(member->staged.entries[i].payload);
    member->staged.count = 0;
    member->staged.number = 0;
}

static void submit_staged(trimaran_member *member)
{
    const trimaran_staged *staged = &member->staged;
    if (staged->number == 0)
        return;
    submit(member, staged->has_hard_state ? &staged->hard_state : NULL, staged->entries,
           staged->count, staged->number);
    trimaran_member_unstage(member);
}

void trimaran_member_write_staged(trimaran_member *member)
{
    const trimaran_staged *staged = &member->staged;
    const trimaran_member_log *log = &member->log;
    uint64_t sequence, number = staged->number;
    if (number == 0)
        return;
    if (may_flush_here(member) &&
        log->append(log->context, staged->has_hard_state ? &staged->hard_state : NULL,
                    staged->entries, staged->count, &sequence) == 0) {
        trimaran_member_unstage(member);
        trimaran_raft_append_done(member->raft, number);
        return;
    }
    submit_staged(member);
}

/* With nothing in flight a quick flush is waited for here: that is cheaper than two changes of
 * threads, and what arrives meanwhile makes the next batch larger. A leader's messages go first,
 * though: its followers flush while it does (§10.2.1 of the Raft thesis). */
bool trimaran_member_write(trimaran_member *member, const trimaran_raft_ready *ready)
{
    uint64_t sequence;
    const trimaran_member_log *log = &member->log;
    submit_staged(member);
    if (may_flush_here(member)) {
        if (ready->message_count > 0) {
            stage(member, ready);
            return false;
        }
        if (log->append(log->context, ready->hard_state, ready->entries, ready->entry_count,
                        &sequence) == 0)
            return true;
    }
    submit(member, ready->hard_state, ready->entries, ready->entry_count, ready->number);
    return false;
}

void trimaran_member_collect(trimaran_member *member)
{
    trimaran_logthread_completion completion;
    if (member->flying_count == 0)
        return;
    member->log.completed(member->log.context, &completion);
    member->log_error = completion.error;
    uint64_t done = 0;
    while (member->flying_count > 0) {
        const trimaran_in_flight *oldest = &member->flying[member->flying_first];
        if (oldest->sequence > completion.sequence)
            break;
        done = oldest->number;
        member->flying_first = (member->flying_first + 1) % member->flying_capacity;
        member->flying_count--;
    }
    if (done != 0)
        trimaran_raft_append_done(member->raft, done);
}
