/* The log as raft sees it (§3.5): its newest part in the window, the rest by the owner's
 * callback. */
#include <errno.h>
#include <string.h>

#include "raft_internal.h"

#define RETAINED_BYTES_MAX (64u << 20) /* kept in memory for followers only */

int trimaran_raft_term_at(const trimaran_raft *raft, uint64_t index, uint64_t *term)
{
    if (index > trimaran_raft_last(raft))
        return -ENOENT;
    if (index >= raft->window.first) {
        *term = trimaran_raftwindow_at(&raft->window, index)->term;
        return 0;
    }
    if (index == raft->before_index) {
        *term = raft->before_term;
        return 0;
    }
    if (index + 1 < raft->first_index)
        return -ENOENT;
    if (index == 0) {
        *term = 0;
        return 0;
    }
    return raft->term_of(raft->log_context, index, term);
}

uint64_t trimaran_raft_term_of(const trimaran_raft *raft, uint64_t index)
{
    uint64_t term = 0;
    int error = trimaran_raft_term_at(raft, index, &term);

    assert(error == 0);
    return term;
}

/* Terms never fall along a log. */
uint64_t trimaran_raft_last_of_term(const trimaran_raft *raft, uint64_t low, uint64_t high,
                                    uint64_t term)
{
    while (low <= high) {
        uint64_t middle = low + (high - low) / 2;
        if (trimaran_raft_term_of(raft, middle) <= term)
            low = middle + 1;
        else if (middle == 0)
            return 0;
        else
            high = middle - 1;
    }
    return low - 1;
}

static void reserve(trimaran_raft *raft, size_t count)
{
    int error = trimaran_raftwindow_reserve(&raft->window, count);

    assert(error == 0);
}

uint64_t trimaran_raft_append_own(trimaran_raft *raft, uint32_t type, trimaran_payload *payload)
{
    trimaran_entry entry = {
        .index = trimaran_raft_last(raft) + 1,
        .term = raft->term,
        .type = type,
        .payload = payload,
    };

    assert(raft->role == TRIMARAN_RAFT_LEADER);
    if (payload != NULL) {
        entry.size = (uint32_t)trimaran_payload_size(payload);
        entry.data = trimaran_payload_data(payload);
    }
    reserve(raft, 1);
    trimaran_raftwindow_push(&raft->window, &entry);
    raft->uncommitted_bytes += entry.size;
    if (type == TRIMARAN_ENTRY_CONFIGURATION)
        raft->pending_configuration = entry.index;
    return entry.index;
}

static int check_change(const trimaran_raft *raft, size_t size)
{
    if (raft->pending_configuration > raft->applied)
        return -EINPROGRESS;
    if (raft->outgoing_count > 0)
        return size > 0 ? -EINPROGRESS : 0;
    return size > 0 ? 0 : -EINVAL;
}

int trimaran_raft_propose(trimaran_raft *raft, uint32_t type, trimaran_payload *payload,
                          uint64_t *index)
{
    size_t size = payload != NULL ? trimaran_payload_size(payload) : 0;
    int error = 0;

    if (raft->role != TRIMARAN_RAFT_LEADER || raft->transferee != 0)
        return -EAGAIN;
    if (size > UINT32_MAX)
        return -EMSGSIZE;
    if (type == TRIMARAN_ENTRY_CONFIGURATION)
        error = check_change(raft, size);
    else if (type != TRIMARAN_ENTRY_NORMAL)
        error = -EINVAL;
    if (error != 0)
        return error;
    /* One proposal larger than the limit must still have its turn. */
    if (raft->max_uncommitted_bytes > 0 && raft->uncommitted_bytes > 0
        && raft->uncommitted_bytes + size > raft->max_uncommitted_bytes)
        return -EBUSY;
    error = trimaran_raftwindow_reserve(&raft->window, 1);
    if (error != 0)
        return error;
    *index = trimaran_raft_append_own(raft, type, payload);
    return 0;
}

/* Appends in flight no longer make durable what is replaced: when their flush is over, that of the
 * replacing entries is still to come. */
static void clip_appends(trimaran_raft *raft, uint64_t index)
{
    for (size_t i = 0; i < raft->append_count; i++) {
        trimaran_raft_append *append = &raft->appends[i];
        if (append->last_index < index)
            continue;
        append->last_index = index - 1;
        append->last_term = trimaran_raft_term_of(raft, index - 1);
    }
}

/* Drop the entries from index on: the leader has others (§3.5). */
static void truncate(trimaran_raft *raft, uint64_t index)
{
    assert(raft->role == TRIMARAN_RAFT_FOLLOWER);
    /* Two entries committed at one place would be two truths: nothing may go on. */
    assert(index > raft->commit);
    assert(index > raft->applied);
    clip_appends(raft, index);
    trimaran_raftwindow_truncate(&raft->window, index);
    if (raft->before_index >= index) {
        raft->before_term = trimaran_raft_term_of(raft, index - 1);
        raft->before_index = index - 1;
    }
    if (raft->handed >= index)
        raft->handed = index - 1;
    if (raft->stable >= index)
        raft->stable = index - 1;
}

static trimaran_entry own_copy(const trimaran_entry *entry)
{
    trimaran_entry copy = *entry;

    if (entry->payload != NULL) {
        trimaran_payload_retain(entry->payload);
    } else if (entry->size > 0) {
        copy.payload = trimaran_payload_new(entry->size);
        assert(copy.payload != NULL);
        memcpy(trimaran_payload_data(copy.payload), entry->data, entry->size);
        copy.data = trimaran_payload_data(copy.payload);
    }
    return copy;
}

void trimaran_raft_take_entries(trimaran_raft *raft, const trimaran_entry *entries, size_t count)
{
    size_t have = 0;

    while (have < count && entries[have].index <= trimaran_raft_last(raft)
           && trimaran_raft_term_of(raft, entries[have].index) == entries[have].term)
        have++;
    if (have == count)
        return;
    if (entries[have].index <= trimaran_raft_last(raft))
        truncate(raft, entries[have].index);
    reserve(raft, count - have);
    for (size_t i = have; i < count; i++) {
        trimaran_entry entry = own_copy(&entries[i]);
        trimaran_raftwindow_push(&raft->window, &entry);
    }
}

void trimaran_raft_commit_to(trimaran_raft *raft, uint64_t index)
{
    if (index <= raft->commit)
        return;
    assert(index <= trimaran_raft_last(raft));
    raft->commit = index;
}

/* A leader commits by counting only from an entry of its own term on; what is before it is
 * committed with it (§3.6.2). */
void trimaran_raft_maybe_commit(trimaran_raft *raft)
{
    uint64_t index = trimaran_raft_quorum_match(raft);
    bool first;

    if (index <= raft->commit || index < raft->first_of_term)
        return;
    assert(index <= trimaran_raft_last(raft));
    assert(trimaran_raft_term_of(raft, index) == raft->term);
    for (uint64_t i = raft->commit + 1; i <= index; i++)
        if (i >= raft->counted_from)
            raft->uncommitted_bytes -= trimaran_raftwindow_at(&raft->window, i)->size;
    first = raft->commit < raft->first_of_term;
    trimaran_raft_commit_to(raft, index);
    if (first)
        trimaran_raft_start_reads(raft);
}

void trimaran_raft_count_uncommitted(trimaran_raft *raft)
{
    raft->counted_from = raft->commit + 1;
    if (raft->counted_from < raft->window.first)
        raft->counted_from = raft->window.first;
    raft->uncommitted_bytes = 0;
    for (uint64_t i = raft->counted_from; i <= trimaran_raft_last(raft); i++)
        raft->uncommitted_bytes += trimaran_raftwindow_at(&raft->window, i)->size;
}

/* Up to where the window may be dropped: all before is durable and applied, and followers in step
 * have been sent it. */
static uint64_t settled_index(const trimaran_raft *raft)
{
    uint64_t index = raft->applied < raft->stable ? raft->applied : raft->stable;

    if (raft->role != TRIMARAN_RAFT_LEADER || raft->window.bytes > RETAINED_BYTES_MAX)
        return index;
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        const trimaran_raft_peer *peer = &raft->peers[i];
        if (peer->id != raft->id && peer->active && peer->state != TRIMARAN_RAFT_SNAPSHOTTING
            && peer->next <= index)
            index = peer->next - 1;
    }
    return index;
}

void trimaran_raft_drop_settled(trimaran_raft *raft)
{
    uint64_t index = settled_index(raft);

    if (index < raft->window.first)
        return;
    assert(index <= raft->commit);
    raft->before_term = trimaran_raftwindow_at(&raft->window, index)->term;
    raft->before_index = index;
    trimaran_raftwindow_drop(&raft->window, index);
}

void trimaran_raft_maybe_leave_joint(trimaran_raft *raft)
{
    if (raft->role == TRIMARAN_RAFT_LEADER && raft->outgoing_count > 0 && raft->auto_leave
        && raft->pending_configuration <= raft->applied)
        trimaran_raft_append_own(raft, TRIMARAN_ENTRY_CONFIGURATION, NULL);
}

void trimaran_raft_restart_log(trimaran_raft *raft, uint64_t index, uint64_t term)
{
    assert(index > raft->commit);
    for (size_t i = 0; i < raft->append_count; i++)
        raft->appends[i].last_index = raft->appends[i].last_term = 0;
    trimaran_raftwindow_truncate(&raft->window, raft->window.first);
    raft->window.first = index + 1;
    raft->before_index = index;
    raft->before_term = term;
    raft->first_index = index + 1;
    raft->handed = index;
    raft->stable = index;
    raft->commit = index;
}
