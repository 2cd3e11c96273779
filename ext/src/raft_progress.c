/* What a leader knows of each member, and how much it has under way to it (§10.2.1). */
#include <stdlib.h>

#include "raft_internal.h"

static void forget_inflight(trimaran_raft_peer *peer)
{
    free(peer->inflight);
    peer->inflight = NULL;
    peer->inflight_first = peer->inflight_count = peer->inflight_capacity = 0;
    peer->inflight_bytes = 0;
}

static void change_state(trimaran_raft_peer *peer, trimaran_raft_progress_state state)
{
    forget_inflight(peer);
    peer->state = state;
    peer->probe_sent = peer->poke = false;
    peer->snapshot_index = 0;
}

/* A new leader knows nothing of what the others have. */
void trimaran_raft_peer_reset(trimaran_raft_peer *peer, uint64_t next)
{
    change_state(peer, TRIMARAN_RAFT_PROBE);
    peer->match = 0;
    peer->next = next;
    peer->sent_commit = peer->acked_round = 0;
    peer->active = peer->may_poke = false;
}

void trimaran_raft_peer_probe(trimaran_raft_peer *peer, uint64_t next)
{
    assert(next > peer->match);
    change_state(peer, TRIMARAN_RAFT_PROBE);
    peer->next = next;
    /* What was told of the commit index may be among what was lost. */
    peer->sent_commit = 0;
}

void trimaran_raft_peer_replicate(trimaran_raft_peer *peer)
{
    change_state(peer, TRIMARAN_RAFT_REPLICATE);
    peer->next = peer->match + 1;
}

void trimaran_raft_peer_snapshot(trimaran_raft_peer *peer)
{
    change_state(peer, TRIMARAN_RAFT_SNAPSHOTTING);
}

bool trimaran_raft_peer_is_full(const trimaran_raft *raft, const trimaran_raft_peer *peer)
{
    return peer->inflight_count >= raft->max_inflight_messages
           || peer->inflight_bytes >= raft->max_inflight_bytes;
}

static void widen(trimaran_raft_peer *peer)
{
    uint32_t capacity = peer->inflight_capacity > 0 ? 2 * peer->inflight_capacity : 8;
    trimaran_raft_inflight *ring = malloc(capacity * sizeof *ring);

    assert(ring != NULL);
    for (uint32_t i = 0; i < peer->inflight_count; i++)
        ring[i] = peer->inflight[(peer->inflight_first + i) % peer->inflight_capacity];
    free(peer->inflight);
    peer->inflight = ring;
    peer->inflight_first = 0;
    peer->inflight_capacity = capacity;
}

void trimaran_raft_peer_fly(trimaran_raft_peer *peer, uint64_t last_index, uint64_t bytes)
{
    assert(peer->state == TRIMARAN_RAFT_REPLICATE);
    if (peer->inflight_count == peer->inflight_capacity)
        widen(peer);
    peer->inflight[(peer->inflight_first + peer->inflight_count) % peer->inflight_capacity] =
        (trimaran_raft_inflight){last_index, bytes};
    peer->inflight_count++;
    peer->inflight_bytes += bytes;
}

void trimaran_raft_peer_lose_one(trimaran_raft_peer *peer)
{
    assert(peer->inflight_count > 0);
    assert(peer->inflight_bytes >= peer->inflight[peer->inflight_first].bytes);
    peer->inflight_bytes -= peer->inflight[peer->inflight_first].bytes;
    peer->inflight_first = (peer->inflight_first + 1) % peer->inflight_capacity;
    peer->inflight_count--;
}

void trimaran_raft_peer_land(trimaran_raft_peer *peer, uint64_t index)
{
    while (peer->inflight_count > 0 && peer->inflight[peer->inflight_first].last_index <= index)
        trimaran_raft_peer_lose_one(peer);
}

void trimaran_raft_peer_free(trimaran_raft_peer *peer)
{
    forget_inflight(peer);
}
