/* What members say to each other: raft's messages, and batches on their way to the leader. */
#include "member_internal.h"

#include <errno.h>

#include "failpoint.h"

static trimaran_buffer *post_to(trimaran_member *member, uint64_t to)
{
    for (size_t i = 0; i < member->post_count; i++)
        if (member->posts[i].to == to)
            return &member->posts[i].frames;
    if (member->post_count == member->post_capacity) {
        member->post_capacity = member->post_capacity ? member->post_capacity * 2 : 8;
        member->posts =
            trimaran_reallocate(member->posts, member->post_capacity * sizeof *member->posts);
    }
    member->posts[member->post_count] = (trimaran_member_post){.to = to};
    return &member->posts[member->post_count++].frames;
}

static void request_snapshot(trimaran_member *member, uint64_t to)
{
    if (member->snapshot_count == member->snapshot_capacity) {
        member->snapshot_capacity = member->snapshot_capacity ? member->snapshot_capacity * 2 : 4;
        member->snapshots = trimaran_reallocate(
            member->snapshots, member->snapshot_capacity * sizeof *member->snapshots);
    }
    member->snapshots[member->snapshot_count++] = to;
}

void trimaran_member_post_messages(trimaran_member *member, const trimaran_raft_ready *ready)
{
    for (size_t i = 0; i < ready->message_count; i++) {
        const trimaran_raft_message *message = &ready->messages[i];
        if (message->type == TRIMARAN_RAFT_SNAPSHOT)
            request_snapshot(member, message->to);
        else
            trimaran_frame_put_message(post_to(member, message->to), message);
    }
}

size_t trimaran_member_outbox(trimaran_member *member, const trimaran_member_post **out)
{
    *out = member->posts;
    return member->post_count;
}

/* Buffers are kept for the next turn; those of members that are gone, or that were large once, are
 * not kept for ever. */
void trimaran_member_outbox_clear(trimaran_member *member)
{
    enum { KEPT_BYTES = 4 << 20 };
    for (size_t i = 0; i < member->post_count; i++) {
        trimaran_buffer *frames = &member->posts[i].frames;
        frames->size = 0;
        if (frames->capacity > KEPT_BYTES)
            trimaran_buffer_free(frames);
    }
}

bool trimaran_member_has_snapshot_requests(const trimaran_member *member)
{
    return member->snapshot_count > 0 && !member->snapshots_taken;
}

size_t trimaran_member_snapshot_requests(trimaran_member *member, const uint64_t **out)
{
    *out = member->snapshots;
    size_t count = member->snapshots_taken ? 0 : member->snapshot_count;
    member->snapshots_taken = true;
    return count;
}

/* A batch that was sent and not applied may be lost, or only late: it is sent again in this term
 * after a time that doubles, and at once in another term. */
static bool is_due(const trimaran_member *member, const trimaran_proposal *proposal)
{
    uint64_t tick = trimaran_service_proposals(member->service)->tick;
    unsigned doublings = proposal->attempts < 6 ? proposal->attempts : 6;
    if (proposal->sent_term != member->status.term)
        return true;
    return member->status.role != TRIMARAN_RAFT_LEADER && proposal->attempts > 0 &&
           tick - proposal->sent_tick >= (uint64_t)member->election_ticks << (doublings - 1);
}

/* 0 where the proposal is in the leader's log or on its way there. */
static int send_proposal(trimaran_member *member, trimaran_proposal *proposal)
{
    uint64_t index;
    if (member->status.role == TRIMARAN_RAFT_LEADER) {
        trimaran_payload *payload = trimaran_payload_retain(proposal->payload);
        int code = trimaran_raft_propose(member->raft, proposal->type, payload, &index);
        if (code != 0)
            trimaran_payload_release(payload);
        return code;
    }
    trimaran_slice bytes = trimaran_slice_of(trimaran_payload_data(proposal->payload),
                                             trimaran_payload_size(proposal->payload));
    trimaran_frame_put_forward(post_to(member, member->status.leader), proposal->type, bytes);
    member->counts.forwarded++;
    return 0;
}

bool trimaran_member_has_unsent(const trimaran_member *member)
{
    trimaran_raft_status status;
    trimaran_raft_status_get(member->raft, &status);
    return status.leader != 0 && (status.leader != member->status.leader ||
                                  status.term != member->status.term);
}

void trimaran_member_send_proposals(trimaran_member *member)
{
    trimaran_proposals *proposals = trimaran_service_proposals(member->service);
    if (member->status.leader == 0)
        return;
    for (trimaran_proposal *next = proposals->first; next != NULL; next = next->next) {
        if (!is_due(member, next))
            continue;
        int code = send_proposal(member, next);
        if (code == -EAGAIN || code == -EBUSY)
            break;
        /* A change of configuration waits for the one before it, and lets others pass. */
        if (code != 0)
            continue;
        next->sent_term = member->status.term;
        next->sent_tick = proposals->tick;
        next->attempts++;
    }
}

bool trimaran_member_ask_reads(trimaran_member *member)
{
    trimaran_readqueue *reads = trimaran_service_reads(member->service);
    if (!trimaran_readqueue_wants(reads))
        return false;
    uint64_t context = trimaran_readqueue_next_context(reads);
    if (trimaran_raft_read_index(member->raft, context) != 0)
        return false;
    trimaran_readqueue_asked(reads, trimaran_service_proposals(member->service)->tick);
    return true;
}

void trimaran_member_propose_change(trimaran_member *member, trimaran_payload *payload,
                                    uint64_t token)
{
    trimaran_failpoint(TRIMARAN_FAIL_MEMBERSHIP_PROPOSE);
    trimaran_proposals_add_configuration(trimaran_service_proposals(member->service), payload,
                                         token);
}

void trimaran_member_unreachable(trimaran_member *member, uint64_t peer_id)
{
    trimaran_proposals *proposals = trimaran_service_proposals(member->service);
    trimaran_raft_unreachable(member->raft, peer_id);
    if (peer_id != member->status.leader)
        return;
    /* With the next tick, not at once: the connection may be gone for longer. */
    for (trimaran_proposal *next = proposals->first; next != NULL; next = next->next)
        if (next->attempts > 0) {
            next->attempts = 1;
            next->sent_tick = proposals->tick + 1 - member->election_ticks;
        }
}

static bool is_member(const trimaran_member *member, uint64_t id)
{
    trimaran_raft_members members;
    trimaran_raft_members_get(member->raft, &members);
    const uint64_t *groups[] = {members.voters, members.outgoing, members.learners};
    uint32_t counts[] = {members.voter_count, members.outgoing_count, members.learner_count};
    for (size_t group = 0; group < 3; group++)
        for (uint32_t i = 0; i < counts[group]; i++)
            if (groups[group][i] == id)
                return true;
    return false;
}

static bool check_forward(uint64_t peer_id, uint32_t type, trimaran_slice bytes)
{
    trimaran_configuration configuration;
    if (type == TRIMARAN_ENTRY_NORMAL)
        return trimaran_proposal_check(bytes, peer_id);
    return trimaran_configuration_decode(bytes, &configuration) &&
           configuration.head.origin == peer_id;
}

/* Whether the batch was applied already, so that it would only be skipped. */
static bool is_old(const trimaran_member *member, trimaran_slice bytes)
{
    trimaran_proposal_head head = trimaran_proposal_read_head(bytes.data);
    const trimaran_origin *origin =
        trimaran_origintable_find(trimaran_mvcc_origins(member->mvcc), head.origin);
    return origin != NULL && (head.incarnation < origin->incarnation ||
                              (head.incarnation == origin->incarnation &&
                               head.sequence <= origin->sequence));
}

static int receive_forward(trimaran_member *member, uint64_t peer_id, const trimaran_frame *frame)
{
    uint32_t type;
    uint64_t index;
    trimaran_slice bytes;
    if (trimaran_frame_forward(frame, &type, &bytes) != 0 ||
        !check_forward(peer_id, type, bytes))
        return -EPROTO;
    if (!is_member(member, peer_id) || is_old(member, bytes)) {
        member->counts.dropped_forwards++;
        return 0;
    }
    trimaran_payload *payload = trimaran_payload_new(bytes.size);
    if (payload == NULL)
        abort();
    memcpy(trimaran_payload_data(payload), bytes.data, bytes.size);
    if (trimaran_raft_propose(member->raft, type, payload, &index) != 0) {
        /* Its sender will notice, and send it again where it belongs. */
        trimaran_payload_release(payload);
        member->counts.dropped_forwards++;
        return 0;
    }
    member->counts.forwards++;
    return 0;
}

int trimaran_member_receive(trimaran_member *member, uint64_t peer_id,
                            const trimaran_frame *frame)
{
    trimaran_raft_message message;
    if (frame->kind == TRIMARAN_FRAME_FORWARD)
        return receive_forward(member, peer_id, frame);
    int code = trimaran_frame_message(frame, &member->entries, &message);
    if (code != 0)
        return code;
    if (message.from != peer_id || message.to != member->status.id)
        return -EPROTO;
    code = trimaran_raft_step(member->raft, &message);
    if (code == -ENOENT)
        member->counts.strangers++;
    return code == -EPROTO ? -EPROTO : 0;
}
