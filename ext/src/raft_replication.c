/* The leader's side of replication: what it sends to each member, and what their answers tell
 * (§3.5, §10.2.1).
 *
 * Messages are made when a Ready is taken, so that all that was proposed by then goes into them
 * together. Each follower is sent what it lacks, without waiting for answers as long as they come
 * (REPLICATE), one message at a time until it is known what it has (PROBE), or a snapshot. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "raft_internal.h"

/* What the follower may be told is committed of what it was sent. */
static uint64_t commit_for(const trimaran_raft *raft, const trimaran_raft_peer *peer)
{
    return raft->commit < peer->next - 1 ? raft->commit : peer->next - 1;
}

bool trimaran_raft_is_append_due(const trimaran_raft *raft, const trimaran_raft_peer *peer)
{
    if (peer->id == raft->id)
        return false;
    if (peer->state == TRIMARAN_RAFT_PROBE)
        return !peer->probe_sent;
    if (peer->state == TRIMARAN_RAFT_SNAPSHOTTING || trimaran_raft_peer_is_full(raft, peer))
        return false;
    return peer->next <= trimaran_raft_last(raft) || peer->poke
           || commit_for(raft, peer) > peer->sent_commit;
}

bool trimaran_raft_any_append_due(const trimaran_raft *raft)
{
    if (raft->role != TRIMARAN_RAFT_LEADER)
        return false;
    for (uint32_t i = 0; i < raft->peer_count; i++)
        if (trimaran_raft_is_append_due(raft, &raft->peers[i]))
            return true;
    return false;
}

void trimaran_raft_forget_fetched(trimaran_raft *raft)
{
    for (size_t i = 0; i < raft->fetched_count; i++) {
        for (size_t j = 0; j < raft->fetched[i].count; j++)
            trimaran_payload_release(raft->fetched[i].entries[j].payload);
        free(raft->fetched[i].entries);
    }
    raft->fetched_count = 0;
}

static int keep_entry(void *context, const trimaran_entry *entry)
{
    trimaran_raft_fetched *fetched = context;
    trimaran_entry copy = *entry;

    fetched->entries = trimaran_raft_grow(fetched->entries, &fetched->capacity, fetched->count + 1,
                                          sizeof *fetched->entries);
    copy.payload = NULL;
    if (entry->size > 0) {
        copy.payload = trimaran_payload_new(entry->size);
        assert(copy.payload != NULL);
        memcpy(trimaran_payload_data(copy.payload), entry->data, entry->size);
        copy.data = trimaran_payload_data(copy.payload);
    }
    fetched->entries[fetched->count++] = copy;
    return 0;
}

/* Entries that left the window, for a follower that lags. */
static int fetch_entries(trimaran_raft *raft, uint64_t first, trimaran_raft_message *message)
{
    trimaran_raft_fetched fetched = {0};
    int error = -ENOENT;

    if (raft->read != NULL)
        error = raft->read(raft->log_context, first, raft->window.first - 1,
                           raft->max_message_bytes, keep_entry, &fetched);
    raft->fetched = trimaran_raft_grow(raft->fetched, &raft->fetched_capacity,
                                       raft->fetched_count + 1, sizeof *raft->fetched);
    raft->fetched[raft->fetched_count++] = fetched;
    if (error == 0) {
        assert(fetched.count > 0 && fetched.entries[0].index == first);
        message->entries = fetched.entries;
        message->entry_count = fetched.count;
    }
    return error;
}

static void find_entries(const trimaran_raft *raft, uint64_t first, trimaran_raft_message *message)
{
    size_t count = (size_t)(trimaran_raft_last(raft) + 1 - first), taken = 1;
    const trimaran_entry *entries = trimaran_raftwindow_at(&raft->window, first);
    uint64_t bytes = entries[0].size;

    while (taken < count && bytes + entries[taken].size <= raft->max_message_bytes)
        bytes += entries[taken++].size;
    message->entries = entries;
    message->entry_count = taken;
}

/* What the follower lacks is compacted: it needs the state as a whole (§5). */
static void ask_for_snapshot(trimaran_raft *raft, trimaran_raft_peer *peer)
{
    trimaran_raft_message *message;

    if (!peer->active) {
        /* Nobody is there to receive it; an answered heartbeat shows when someone is. */
        trimaran_raft_peer_probe(peer, peer->next);
        peer->probe_sent = true;
        return;
    }
    trimaran_raft_peer_snapshot(peer);
    message = trimaran_raft_send(raft, TRIMARAN_RAFT_SNAPSHOT, peer->id);
    message->index = raft->applied;
}

static void note_sent(trimaran_raft_peer *peer, const trimaran_raft_message *message)
{
    uint64_t bytes = 0;

    peer->poke = false;
    peer->sent_commit = message->commit;
    if (peer->state == TRIMARAN_RAFT_PROBE) {
        peer->probe_sent = true;
        return;
    }
    if (message->entry_count == 0)
        return;
    for (size_t i = 0; i < message->entry_count; i++)
        bytes += message->entries[i].size;
    peer->next = message->entries[message->entry_count - 1].index + 1;
    trimaran_raft_peer_fly(peer, peer->next - 1, bytes);
}

/* Send the next append. What cannot be read any more turns it into a snapshot. */
static void send_append(trimaran_raft *raft, trimaran_raft_peer *peer)
{
    uint64_t previous = peer->next - 1, term = 0;
    trimaran_raft_message message = {0}, *sent;
    int error = trimaran_raft_term_at(raft, previous, &term);

    assert(peer->match < peer->next && peer->next <= trimaran_raft_last(raft) + 1);
    if (error == 0 && peer->next <= trimaran_raft_last(raft)) {
        if (peer->next >= raft->window.first)
            find_entries(raft, peer->next, &message);
        else
            error = fetch_entries(raft, peer->next, &message);
    }
    if (error != 0) {
        ask_for_snapshot(raft, peer);
        return;
    }
    sent = trimaran_raft_send(raft, TRIMARAN_RAFT_APPEND, peer->id);
    sent->index = previous;
    sent->log_term = term;
    sent->entries = message.entries;
    sent->entry_count = message.entry_count;
    sent->commit = raft->commit;
    if (sent->commit > previous + sent->entry_count)
        sent->commit = previous + sent->entry_count;
    note_sent(peer, sent);
}

void trimaran_raft_send_appends(trimaran_raft *raft)
{
    if (raft->role != TRIMARAN_RAFT_LEADER)
        return;
    for (uint32_t i = 0; i < raft->peer_count; i++)
        while (trimaran_raft_is_append_due(raft, &raft->peers[i]))
            send_append(raft, &raft->peers[i]);
}

void trimaran_raft_send_heartbeats(trimaran_raft *raft)
{
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        const trimaran_raft_peer *peer = &raft->peers[i];
        trimaran_raft_message *message;
        if (peer->id == raft->id)
            continue;
        message = trimaran_raft_send(raft, TRIMARAN_RAFT_HEARTBEAT, peer->id);
        /* No more than it has: a follower must not commit what another leader gave it. */
        message->commit = raft->commit < peer->match ? raft->commit : peer->match;
        message->context = raft->round;
    }
}

/* Answers. */

/* Where to try next: the follower's log ends, or has an earlier term, at the hint; skip what cannot
 * match (§3.5, the optimization at its end). */
static uint64_t next_to_try(const trimaran_raft *raft, const trimaran_raft_peer *peer,
                            const trimaran_raft_message *message)
{
    uint64_t low = peer->match, high = message->hint_index, next;

    if (low + 1 < raft->first_index)
        low = raft->first_index - 1;
    if (high > trimaran_raft_last(raft))
        high = trimaran_raft_last(raft);
    next = high + 1;
    if (high >= low)
        next = trimaran_raft_last_of_term(raft, low, high, message->hint_term) + 1;
    if (next > message->index)
        next = message->index;
    return next > peer->match ? next : peer->match + 1;
}

static void handle_refusal(trimaran_raft *raft, trimaran_raft_peer *peer,
                           const trimaran_raft_message *message)
{
    bool stale = message->index <= peer->match;

    if (peer->state == TRIMARAN_RAFT_PROBE)
        stale |= message->index != peer->next - 1;
    if (stale || peer->state == TRIMARAN_RAFT_SNAPSHOTTING)
        return;
    trimaran_raft_peer_probe(peer, next_to_try(raft, peer, message));
}

static void handle_match(trimaran_raft *raft, trimaran_raft_peer *peer, uint64_t index)
{
    bool grew = index > peer->match;

    if (grew)
        peer->match = index;
    if (peer->next <= peer->match)
        peer->next = peer->match + 1;
    if (peer->state == TRIMARAN_RAFT_PROBE && peer->match == index)
        trimaran_raft_peer_replicate(peer);
    else if (peer->state == TRIMARAN_RAFT_SNAPSHOTTING && grew
             && peer->match + 1 >= raft->first_index)
        trimaran_raft_peer_replicate(peer);
    else if (peer->state == TRIMARAN_RAFT_REPLICATE)
        trimaran_raft_peer_land(peer, index);
    if (!grew)
        return;
    trimaran_raft_maybe_commit(raft);
    if (peer->id == raft->transferee)
        trimaran_raft_continue_transfer(raft);
}

int trimaran_raft_handle_append_response(trimaran_raft *raft, trimaran_raft_peer *peer,
                                         const trimaran_raft_message *message)
{
    if (raft->role != TRIMARAN_RAFT_LEADER)
        return 0;
    /* It cannot have what this leader never had: acknowledged, that would be committed by error. */
    if (!message->reject && message->index > trimaran_raft_last(raft))
        return -EPROTO;
    peer->active = true;
    if (message->reject)
        handle_refusal(raft, peer, message);
    else
        handle_match(raft, peer, message->index);
    return 0;
}

int trimaran_raft_handle_heartbeat_response(trimaran_raft *raft, trimaran_raft_peer *peer,
                                            const trimaran_raft_message *message)
{
    if (raft->role != TRIMARAN_RAFT_LEADER)
        return 0;
    if (message->context > raft->round)
        return -EPROTO;
    peer->active = true;
    if (message->context > peer->acked_round) {
        peer->acked_round = message->context;
        trimaran_raft_confirm_reads(raft);
    }
    if (!peer->may_poke)
        return 0;
    /* Once a tick: what it was sent before may be lost, so ask anew. */
    peer->may_poke = false;
    peer->probe_sent = false;
    if (peer->state == TRIMARAN_RAFT_REPLICATE && trimaran_raft_peer_is_full(raft, peer))
        trimaran_raft_peer_lose_one(peer);
    if (peer->match < trimaran_raft_last(raft))
        peer->poke = true;
    return 0;
}

/* Reports of the transport. */

void trimaran_raft_unreachable(trimaran_raft *raft, uint64_t id)
{
    trimaran_raft_peer *peer = trimaran_raft_find(raft, id);

    /* While it was in step, a lost message is likely. */
    if (raft->role == TRIMARAN_RAFT_LEADER && peer != NULL && peer->id != raft->id
        && peer->state == TRIMARAN_RAFT_REPLICATE) {
        trimaran_raft_peer_probe(peer, peer->match + 1);
        peer->probe_sent = true; /* until it answers a heartbeat */
    }
}

static trimaran_raft_peer *snapshot_receiver(trimaran_raft *raft, uint64_t id)
{
    trimaran_raft_peer *peer = trimaran_raft_find(raft, id);

    if (raft->role != TRIMARAN_RAFT_LEADER || peer == NULL
        || peer->state != TRIMARAN_RAFT_SNAPSHOTTING)
        return NULL;
    return peer;
}

/* Its answer, once it has installed it, ends this state; if that is lost, a heartbeat's answer has
 * it probed. */
void trimaran_raft_snapshot_sent(trimaran_raft *raft, uint64_t to, uint64_t index)
{
    trimaran_raft_peer *peer = snapshot_receiver(raft, to);
    uint64_t next;

    if (peer == NULL)
        return;
    assert(index <= raft->applied);
    next = index >= peer->next ? index + 1 : peer->next;
    trimaran_raft_peer_probe(peer, next);
    peer->snapshot_index = index;
    peer->probe_sent = true;
}

void trimaran_raft_snapshot_failed(trimaran_raft *raft, uint64_t to)
{
    trimaran_raft_peer *peer = snapshot_receiver(raft, to);

    if (peer == NULL)
        return;
    trimaran_raft_peer_probe(peer, peer->match + 1);
    peer->probe_sent = true;
}
