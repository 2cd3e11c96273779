/* Linearizable reads (§6.4): a leader names its commit index once it knows that it leads still, by
 * a round of heartbeats that begins after the question, by the question of a follower that makes a
 * majority with it, or by its lease (§6.4.1).
 *
 * All questions of one Ready share a round, and many rounds may be under way. */
#include <errno.h>
#include <string.h>

#include "raft_internal.h"

#define REQUESTS_MAX 65536u

bool trimaran_raft_committed_in_term(const trimaran_raft *raft)
{
    return raft->role == TRIMARAN_RAFT_LEADER && raft->commit >= raft->first_of_term;
}

/* The lease. A majority that answered a heartbeat elects nobody else for an election time-out after
 * it was sent, unless this leader itself has asked for it. */

bool trimaran_raft_lease_is_valid(const trimaran_raft *raft)
{
    return raft->lease_us > 0 && raft->role == TRIMARAN_RAFT_LEADER && !raft->handed_over
           && raft->now_us < raft->lease_until_us;
}

void trimaran_raft_reset_lease(trimaran_raft *raft)
{
    raft->lease_until_us = 0;
    raft->lease_round = raft->round;
}

static void extend_lease(trimaran_raft *raft, uint64_t confirmed)
{
    uint64_t until;

    if (raft->lease_us == 0 || confirmed <= raft->lease_round
        || confirmed + TRIMARAN_RAFT_ROUNDS <= raft->round)
        return;
    until = raft->round_times[confirmed % TRIMARAN_RAFT_ROUNDS] + raft->lease_us;
    if (until > raft->lease_until_us)
        raft->lease_until_us = until;
}

void trimaran_raft_set_clock(trimaran_raft *raft, uint64_t now_us)
{
    if (now_us > raft->now_us)
        raft->now_us = now_us;
}

/* Rounds. */

void trimaran_raft_begin_round(trimaran_raft *raft)
{
    assert(raft->role == TRIMARAN_RAFT_LEADER);
    raft->round++;
    raft->round_wanted = false;
    raft->round_times[raft->round % TRIMARAN_RAFT_ROUNDS] = raft->now_us;
    raft->self->acked_round = raft->round;
    trimaran_raft_send_heartbeats(raft);
}

static void answer(trimaran_raft *raft, const trimaran_raft_request *request)
{
    trimaran_raft_message *message;

    if (request->from == raft->id) {
        raft->reads = trimaran_raft_grow(raft->reads, &raft->read_capacity, raft->read_count + 1,
                                         sizeof *raft->reads);
        raft->reads[raft->read_count++] =
            (trimaran_raft_read_state){request->context, request->index};
        return;
    }
    message = trimaran_raft_send(raft, TRIMARAN_RAFT_READ_INDEX_RESPONSE, request->from);
    message->context = request->context;
    message->index = request->index;
}

static void queue(trimaran_raft *raft, trimaran_raft_request request)
{
    raft->requests = trimaran_raft_grow(raft->requests, &raft->request_capacity,
                                        raft->request_count + 1, sizeof *raft->requests);
    raft->requests[raft->request_count++] = request;
}

/* Who asks in this term has voted in no later one before it asked, so its question says of it what
 * the answer to a heartbeat would. Of three voters that one and this one are a majority. A question
 * that arrives late or twice is answered for reads that began before it was sent. */
static bool asker_is_enough(const trimaran_raft *raft, uint64_t from)
{
    return from != raft->id && trimaran_raft_quorum_with(raft, from);
}

static void handle_request(trimaran_raft *raft, trimaran_raft_request request)
{
    if (!trimaran_raft_committed_in_term(raft)) {
        /* What earlier leaders acknowledged may not be known as committed yet (§6.4 step 1). */
        queue(raft, request);
        return;
    }
    request.index = raft->commit;
    if (trimaran_raft_is_alone(raft) || trimaran_raft_lease_is_valid(raft)
        || asker_is_enough(raft, request.from)) {
        answer(raft, &request);
        return;
    }
    request.round = raft->round + 1;
    raft->round_wanted = true;
    queue(raft, request);
}

void trimaran_raft_confirm_reads(trimaran_raft *raft)
{
    uint64_t confirmed;
    size_t done = 0;

    if (raft->request_count == 0 && raft->lease_us == 0)
        return;
    confirmed = trimaran_raft_quorum_round(raft);
    extend_lease(raft, confirmed);
    while (done < raft->request_count && raft->requests[done].round != 0
           && (raft->requests[done].round <= confirmed || trimaran_raft_is_alone(raft)))
        answer(raft, &raft->requests[done++]);
    raft->request_count -= done;
    if (done > 0)
        memmove(raft->requests, raft->requests + done,
                raft->request_count * sizeof *raft->requests);
}

void trimaran_raft_start_reads(trimaran_raft *raft)
{
    size_t count = raft->request_count;

    assert(trimaran_raft_committed_in_term(raft));
    /* All of them waited for this; those queued anew come after, and never more than there were. */
    raft->request_count = 0;
    for (size_t i = 0; i < count; i++) {
        trimaran_raft_request request = raft->requests[i];
        assert(request.round == 0);
        handle_request(raft, request);
    }
}

void trimaran_raft_drop_reads(trimaran_raft *raft)
{
    raft->request_count = 0;
    raft->round_wanted = false;
    trimaran_raft_reset_lease(raft);
}

int trimaran_raft_read_index(trimaran_raft *raft, uint64_t context)
{
    trimaran_raft_message *message;

    if (raft->role == TRIMARAN_RAFT_LEADER) {
        if (raft->request_count >= REQUESTS_MAX)
            return -EBUSY;
        handle_request(raft, (trimaran_raft_request){.context = context, .from = raft->id});
        return 0;
    }
    if (raft->leader == 0)
        return -EAGAIN;
    message = trimaran_raft_send(raft, TRIMARAN_RAFT_READ_INDEX, raft->leader);
    message->context = context;
    return 0;
}

void trimaran_raft_handle_read_index(trimaran_raft *raft, const trimaran_raft_message *message)
{
    trimaran_raft_request request = {.context = message->context, .from = message->from};

    if (raft->role == TRIMARAN_RAFT_LEADER && raft->request_count < REQUESTS_MAX)
        handle_request(raft, request);
}

void trimaran_raft_handle_read_index_response(trimaran_raft *raft,
                                              const trimaran_raft_message *message)
{
    if (raft->leader != message->from)
        return;
    raft->reads = trimaran_raft_grow(raft->reads, &raft->read_capacity, raft->read_count + 1,
                                     sizeof *raft->reads);
    raft->reads[raft->read_count++] =
        (trimaran_raft_read_state){message->context, message->index};
}
