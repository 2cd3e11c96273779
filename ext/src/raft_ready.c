/* What comes out: Readys, and what waits until the disk has what it promises (§3.8, §10.2.1).
 *
 * Votes and acknowledgements promise what memory holds when they are made. Each waits for the last
 * append that carries some of it, and appends are done in order. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "raft_internal.h"

void *trimaran_raft_grow(void *array, size_t *capacity, size_t count, size_t size)
{
    size_t wanted = *capacity > 0 ? *capacity : 16;
    void *grown;

    if (count <= *capacity)
        return array;
    while (wanted < count)
        wanted *= 2;
    grown = realloc(array, wanted * size);
    assert(grown != NULL);
    *capacity = wanted;
    return grown;
}

static trimaran_raft_message new_message(const trimaran_raft *raft, uint32_t type, uint64_t to)
{
    assert(to != 0 && to != raft->id);
    return (trimaran_raft_message){.type = type, .from = raft->id, .to = to, .term = raft->term};
}

static trimaran_raft_message *push(trimaran_raft *raft)
{
    raft->messages = trimaran_raft_grow(raft->messages, &raft->message_capacity,
                                        raft->message_count + 1, sizeof *raft->messages);
    return &raft->messages[raft->message_count++];
}

trimaran_raft_message *trimaran_raft_send(trimaran_raft *raft, uint32_t type, uint64_t to)
{
    trimaran_raft_message *message = push(raft);

    *message = new_message(raft, type, to);
    return message;
}

static bool vote_or_term_changed(const trimaran_raft *raft)
{
    return raft->term != raft->handed_state.term || raft->vote != raft->handed_state.vote;
}

static bool holds_unhanded(const trimaran_raft *raft)
{
    return vote_or_term_changed(raft) || trimaran_raft_last(raft) > raft->handed
           || raft->install == TRIMARAN_RAFT_INSTALL_WANTED;
}

/* In how many Readys what memory holds will go to the disk: entries that follow a snapshot go after
 * it. */
static uint64_t appends_to_come(const trimaran_raft *raft)
{
    if (raft->install == TRIMARAN_RAFT_INSTALL_WANTED)
        return trimaran_raft_last(raft) > raft->handed ? 2 : 1;
    return holds_unhanded(raft) ? 1 : 0;
}

trimaran_raft_message *trimaran_raft_send_durably(trimaran_raft *raft, uint32_t type, uint64_t to)
{
    uint64_t after = raft->appends_handed + appends_to_come(raft);
    trimaran_raft_held *held;

    if (after == raft->appends_done)
        return trimaran_raft_send(raft, type, to);
    raft->held = trimaran_raft_grow(raft->held, &raft->held_capacity, raft->held_count + 1,
                                    sizeof *raft->held);
    assert(raft->held_count == 0 || raft->held[raft->held_count - 1].after <= after);
    held = &raft->held[raft->held_count++];
    held->after = after;
    held->message = new_message(raft, type, to);
    return &held->message;
}

/* Of several acknowledgements of one term the last says all. */
static bool is_said_by(const trimaran_raft_message *first, const trimaran_raft_message *second)
{
    return first->type == TRIMARAN_RAFT_APPEND_RESPONSE && second->type == first->type
           && first->to == second->to && first->term == second->term
           && first->index <= second->index;
}

static void release_held(trimaran_raft *raft)
{
    size_t done = 0;

    while (done < raft->held_count && raft->held[done].after <= raft->appends_done) {
        const trimaran_raft_held *next = &raft->held[done + 1];
        const trimaran_raft_message *message = &raft->held[done++].message;
        if (done < raft->held_count && next->after <= raft->appends_done
            && is_said_by(message, &next->message))
            continue;
        *push(raft) = *message;
    }
    raft->held_count -= done;
    if (done > 0)
        memmove(raft->held, raft->held + done, raft->held_count * sizeof *raft->held);
}

static bool status_changed(const trimaran_raft *raft)
{
    return raft->role != raft->shown_role || raft->leader != raft->shown_leader
           || raft->term != raft->shown_term;
}

/* Entries are applied once they are committed and on this member's own disk: the state is never
 * ahead of the log. */
static uint64_t may_apply(const trimaran_raft *raft)
{
    return raft->commit < raft->stable ? raft->commit : raft->stable;
}

int trimaran_raft_has_ready(const trimaran_raft *raft)
{
    if (raft->install != TRIMARAN_RAFT_INSTALL_HANDED && holds_unhanded(raft))
        return 1;
    if (raft->install == TRIMARAN_RAFT_INSTALL_NONE && may_apply(raft) > raft->handed_commit)
        return 1;
    return raft->read_count > 0 || raft->message_count > 0 || raft->round_wanted
           || status_changed(raft) || trimaran_raft_any_append_due(raft);
}

static void note_append(trimaran_raft *raft, const trimaran_raft_ready *ready)
{
    trimaran_raft_append append = {.number = ready->number, .term = raft->term, .vote = raft->vote};

    if (ready->entry_count > 0) {
        append.last_index = ready->entries[ready->entry_count - 1].index;
        append.last_term = ready->entries[ready->entry_count - 1].term;
    }
    raft->appends = trimaran_raft_grow(raft->appends, &raft->append_capacity,
                                       raft->append_count + 1, sizeof *raft->appends);
    raft->appends[raft->append_count++] = append;
    raft->appends_handed++;
}

static void hand_out_state(trimaran_raft *raft, uint64_t commit, trimaran_raft_ready *out)
{
    assert(raft->term >= raft->handed_state.term);
    assert(commit >= raft->handed_state.commit);
    assert(commit <= raft->handed);
    raft->ready_state = (trimaran_hard_state){raft->term, raft->vote, commit};
    if (memcmp(&raft->ready_state, &raft->handed_state, sizeof raft->ready_state) != 0)
        out->hard_state = &raft->ready_state;
    raft->handed_state = raft->ready_state;
}

/* A new commit index alone is not worth a flush: it goes with the next append, and is found again
 * from the log after a restart (§3.8). */
static void hand_out_append(trimaran_raft *raft, trimaran_raft_ready *out)
{
    out->must_append = holds_unhanded(raft);
    if (!out->must_append)
        return;
    if (trimaran_raft_last(raft) > raft->handed) {
        out->entries = trimaran_raftwindow_at(&raft->window, raft->handed + 1);
        out->entry_count = (size_t)(trimaran_raft_last(raft) - raft->handed);
        raft->handed = trimaran_raft_last(raft);
    }
    hand_out_state(raft, raft->commit, out);
    note_append(raft, out);
}

/* The snapshot goes before what may follow it, and waits for nothing: the owner's log is replaced
 * as a whole. */
static void hand_out_install(trimaran_raft *raft, trimaran_raft_ready *out)
{
    out->install = 1;
    out->install_index = raft->install_index;
    out->install_term = raft->install_term;
    raft->install = TRIMARAN_RAFT_INSTALL_HANDED;
    /* What has come after it, and may be committed, is not in the log yet. */
    hand_out_state(raft, raft->install_index, out);
    out->hard_state = &raft->ready_state;
    note_append(raft, out);
}

static void hand_out_committed(trimaran_raft *raft, trimaran_raft_ready *out)
{
    uint64_t last = may_apply(raft);

    if (raft->install != TRIMARAN_RAFT_INSTALL_NONE || last <= raft->handed_commit)
        return;
    out->committed_first = raft->handed_commit + 1;
    out->committed_last = last;
    if (out->committed_first >= raft->window.first)
        out->committed = trimaran_raftwindow_at(&raft->window, out->committed_first);
    else if (out->committed_last >= raft->window.first)
        out->committed_last = raft->window.first - 1;
    raft->handed_commit = out->committed_last;
}

static void hand_out_reads(trimaran_raft *raft, trimaran_raft_ready *out)
{
    trimaran_raft_read_state *reads = raft->reads;
    size_t capacity = raft->read_capacity;

    out->read_states = reads;
    out->read_state_count = raft->read_count;
    raft->reads = raft->handed_reads;
    raft->read_capacity = raft->handed_read_capacity;
    raft->handed_reads = reads;
    raft->handed_read_capacity = capacity;
    raft->read_count = 0;
}

static void hand_out_messages(trimaran_raft *raft, trimaran_raft_ready *out)
{
    trimaran_raft_message *messages = raft->messages;
    size_t capacity = raft->message_capacity;

    out->messages = messages;
    out->message_count = raft->message_count;
    raft->messages = raft->handed_messages;
    raft->message_capacity = raft->handed_message_capacity;
    raft->handed_messages = messages;
    raft->handed_message_capacity = capacity;
    raft->message_count = 0;
}

void trimaran_raft_ready_get(trimaran_raft *raft, trimaran_raft_ready *out)
{
    *out = (trimaran_raft_ready){.number = ++raft->number};
    trimaran_raft_forget_fetched(raft);
    out->status_changed = status_changed(raft);
    raft->shown_role = raft->role;
    raft->shown_leader = raft->leader;
    raft->shown_term = raft->term;
    if (raft->install == TRIMARAN_RAFT_INSTALL_WANTED)
        hand_out_install(raft, out);
    else if (raft->install == TRIMARAN_RAFT_INSTALL_NONE)
        hand_out_append(raft, out);
    hand_out_committed(raft, out);
    if (raft->round_wanted)
        trimaran_raft_begin_round(raft);
    trimaran_raft_send_appends(raft);
    hand_out_messages(raft, out);
    hand_out_reads(raft, out);
}

/* The local disk has answered. */
static void finish_append(trimaran_raft *raft, const trimaran_raft_append *append)
{
    raft->appends_done++;
    if (append->last_index > raft->stable) {
        /* Entries replaced meanwhile were clipped from it. */
        assert(trimaran_raft_term_of(raft, append->last_index) == append->last_term);
        raft->stable = append->last_index;
        assert(raft->stable <= raft->handed);
    }
    if (raft->role == TRIMARAN_RAFT_CANDIDATE && append->term == raft->term
        && append->vote == raft->id)
        trimaran_raft_own_vote_done(raft);
    if (raft->role == TRIMARAN_RAFT_LEADER && raft->stable > raft->self->match) {
        raft->self->match = raft->stable;
        trimaran_raft_maybe_commit(raft);
    }
}

void trimaran_raft_append_done(trimaran_raft *raft, uint64_t number)
{
    size_t done = 0;

    assert(number <= raft->number);
    while (done < raft->append_count && raft->appends[done].number <= number)
        finish_append(raft, &raft->appends[done++]);
    raft->append_count -= done;
    if (done > 0)
        memmove(raft->appends, raft->appends + done, raft->append_count * sizeof *raft->appends);
    assert(raft->appends_handed - raft->appends_done == raft->append_count);
    release_held(raft);
    trimaran_raft_drop_settled(raft);
}

void trimaran_raft_applied(trimaran_raft *raft, uint64_t index)
{
    assert(index >= raft->applied);
    assert(index <= raft->handed_commit);
    raft->applied = index;
    trimaran_raft_maybe_leave_joint(raft);
    trimaran_raft_answer_call(raft);
    trimaran_raft_drop_settled(raft);
}

void trimaran_raft_snapshot_installed(trimaran_raft *raft)
{
    uint64_t number = 0;

    assert(raft->install == TRIMARAN_RAFT_INSTALL_HANDED);
    raft->install = TRIMARAN_RAFT_INSTALL_NONE;
    assert(raft->install_index > raft->applied);
    raft->applied = raft->handed_commit = raft->install_index;
    if (raft->append_count > 0)
        number = raft->appends[raft->append_count - 1].number;
    trimaran_raft_append_done(raft, number);
}
