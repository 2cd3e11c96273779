/* The queue of writes; see proposal.h. */
#include "proposal.h"

enum { SPARE_MAX = 16 };

static trimaran_proposal *new_proposal(trimaran_proposals *proposals)
{
    trimaran_proposal *proposal = proposals->spare;
    if (proposal != NULL) {
        proposals->spare = proposal->next;
        proposals->spare_count--;
    } else {
        proposal = trimaran_allocate(sizeof *proposal);
    }
    proposal->next = NULL;
    proposal->sequence = proposal->sent_term = proposal->sent_tick = 0;
    proposal->born_tick = proposals->tick;
    proposal->type = TRIMARAN_ENTRY_NORMAL;
    proposal->attempts = 0;
    proposal->payload = NULL;
    proposal->count = 0;
    return proposal;
}

void trimaran_proposals_init(trimaran_proposals *proposals, uint64_t origin,
                             uint64_t incarnation)
{
    *proposals = (trimaran_proposals){.origin = origin, .incarnation = incarnation};
    proposals->gathering = new_proposal(proposals);
}

static void free_list(trimaran_proposal *proposal)
{
    while (proposal != NULL) {
        trimaran_proposal *next = proposal->next;
        trimaran_payload_release(proposal->payload);
        free(proposal);
        proposal = next;
    }
}

void trimaran_proposals_free(trimaran_proposals *proposals)
{
    free_list(proposals->first);
    free_list(proposals->spare);
    free_list(proposals->gathering);
    trimaran_buffer_free(&proposals->bytes);
    *proposals = (trimaran_proposals){0};
}

void trimaran_proposals_release(trimaran_proposals *proposals, trimaran_proposal *proposal)
{
    trimaran_payload_release(proposal->payload);
    proposal->payload = NULL;
    if (proposals->spare_count == SPARE_MAX) {
        free(proposal);
        return;
    }
    proposal->next = proposals->spare;
    proposals->spare = proposal;
    proposals->spare_count++;
}

void trimaran_proposal_write_head(uint8_t *at, uint8_t version,
                               const trimaran_proposal_head *head)
{
    *at++ = version;
    at = trimaran_put_u64(at, head->origin);
    at = trimaran_put_u64(at, head->incarnation);
    trimaran_put_u64(at, head->sequence);
}

trimaran_proposal_head trimaran_proposal_read_head(const uint8_t *at)
{
    return (trimaran_proposal_head){trimaran_read_u64(at + 1), trimaran_read_u64(at + 9),
                                        trimaran_read_u64(at + 17)};
}

/* Queue a proposal under the next number. */
static void enqueue(trimaran_proposals *proposals, trimaran_proposal *proposal)
{
    uint8_t *data = trimaran_payload_data(proposal->payload);
    proposal->sequence = ++proposals->sequence;
    trimaran_proposal_head head = {proposals->origin, proposals->incarnation,
                                       proposal->sequence};
    trimaran_proposal_write_head(data, data[0], &head);
    proposal->next = NULL;
    proposal->sent_term = 0;
    proposal->attempts = 0;
    if (proposals->last != NULL)
        proposals->last->next = proposal;
    else
        proposals->first = proposal;
    proposals->last = proposal;
    proposals->count++;
    proposals->waiting_bytes += trimaran_payload_size(proposal->payload);
}

void trimaran_proposals_cut(trimaran_proposals *proposals)
{
    trimaran_proposal *proposal = proposals->gathering;
    if (proposal->count == 0)
        return;
    proposal->payload = trimaran_payload_new(proposals->bytes.size);
    if (proposal->payload == NULL)
        abort();
    memcpy(trimaran_payload_data(proposal->payload), proposals->bytes.data,
           proposals->bytes.size);
    proposals->bytes.size = 0;
    proposals->gathering = new_proposal(proposals);
    enqueue(proposals, proposal);
}

void trimaran_proposals_add(trimaran_proposals *proposals, int kind, trimaran_slice request,
                            trimaran_waiter waiter)
{
    static const uint8_t head[TRIMARAN_BATCH_HEAD] = {TRIMARAN_BATCH_VERSION};
    uint8_t operation[TRIMARAN_OPERATION_HEAD] = {(uint8_t)kind};
    if (proposals->gathering->count == TRIMARAN_BATCH_OPERATIONS_MAX ||
        proposals->bytes.size > TRIMARAN_BATCH_BYTES_MAX)
        trimaran_proposals_cut(proposals);
    trimaran_proposal *proposal = proposals->gathering;
    assert(proposal->count < TRIMARAN_BATCH_OPERATIONS_MAX);
    if (proposal->count == 0) {
        proposal->born_tick = proposals->tick;
        trimaran_buffer_append(&proposals->bytes, head, sizeof head);
    }
    trimaran_put_u32(operation + 1, (uint32_t)request.size);
    trimaran_buffer_append(&proposals->bytes, operation, sizeof operation);
    trimaran_buffer_append(&proposals->bytes, request.data, request.size);
    proposal->waiters[proposal->count] = waiter;
    /* The call finds its waiter when it closes early. */
    if (waiter.call != NULL)
        trimaran_rpc_set_user(waiter.call, &proposal->waiters[proposal->count]);
    proposal->count++;
}

void trimaran_proposals_add_configuration(trimaran_proposals *proposals,
                                          trimaran_payload *payload, uint64_t token)
{
    trimaran_proposals_cut(proposals);
    trimaran_proposal *proposal = new_proposal(proposals);
    proposal->type = TRIMARAN_ENTRY_CONFIGURATION;
    proposal->payload = payload;
    proposal->waiters[0] = (trimaran_waiter){.token = token};
    proposal->count = 1;
    enqueue(proposals, proposal);
}

static trimaran_proposal *take_first(trimaran_proposals *proposals)
{
    trimaran_proposal *proposal = proposals->first;
    proposals->first = proposal->next;
    if (proposals->first == NULL)
        proposals->last = NULL;
    proposal->next = NULL;
    proposals->count--;
    proposals->waiting_bytes -= trimaran_payload_size(proposal->payload);
    return proposal;
}

/* Its old bytes may still be held by raft, the log or a peer: the new number goes on a copy. */
static void queue_again(trimaran_proposals *proposals, trimaran_proposal *proposal)
{
    size_t size = trimaran_payload_size(proposal->payload);
    trimaran_payload *copy = trimaran_payload_new(size);
    if (copy == NULL)
        abort();
    memcpy(trimaran_payload_data(copy), trimaran_payload_data(proposal->payload), size);
    trimaran_payload_release(proposal->payload);
    proposal->payload = copy;
    enqueue(proposals, proposal);
}

trimaran_proposal *trimaran_proposals_take(trimaran_proposals *proposals, uint64_t sequence)
{
    while (proposals->first != NULL && proposals->first->sequence <= sequence) {
        trimaran_proposal *proposal = take_first(proposals);
        if (proposal->sequence == sequence)
            return proposal;
        queue_again(proposals, proposal);
    }
    return NULL;
}

trimaran_proposal *trimaran_proposals_expired(trimaran_proposals *proposals, uint64_t born_before)
{
    trimaran_proposal *before = NULL, *proposal = proposals->first;
    /* Those queued again are older than their neighbours. */
    while (proposal != NULL && proposal->born_tick >= born_before) {
        before = proposal;
        proposal = proposal->next;
    }
    if (proposal == NULL || before == NULL)
        return proposal == NULL ? NULL : take_first(proposals);
    before->next = proposal->next;
    if (proposals->last == proposal)
        proposals->last = before;
    proposal->next = NULL;
    proposals->count--;
    proposals->waiting_bytes -= trimaran_payload_size(proposal->payload);
    return proposal;
}

trimaran_proposal *trimaran_proposals_up_to(trimaran_proposals *proposals, uint64_t sequence)
{
    if (proposals->first == NULL || proposals->first->sequence > sequence)
        return NULL;
    return take_first(proposals);
}

int trimaran_operation_next(trimaran_slice *rest, uint8_t *kind, trimaran_slice *request)
{
    if (rest->size == 0)
        return 0;
    if (rest->size < TRIMARAN_OPERATION_HEAD)
        return -1;
    size_t size = trimaran_read_u32(rest->data + 1);
    if (rest->size - TRIMARAN_OPERATION_HEAD < size)
        return -1;
    *kind = rest->data[0];
    *request = trimaran_slice_of(rest->data + TRIMARAN_OPERATION_HEAD, size);
    size += TRIMARAN_OPERATION_HEAD;
    *rest = trimaran_slice_of(rest->data + size, rest->size - size);
    return 1;
}

bool trimaran_proposal_check(trimaran_slice batch, uint64_t origin)
{
    uint8_t kind;
    trimaran_slice request, rest;
    int more;
    if (batch.size <= TRIMARAN_BATCH_HEAD || batch.data[0] != TRIMARAN_BATCH_VERSION)
        return false;
    trimaran_proposal_head head = trimaran_proposal_read_head(batch.data);
    if (head.origin != origin || head.sequence == 0)
        return false;
    rest = trimaran_slice_of(batch.data + TRIMARAN_BATCH_HEAD, batch.size - TRIMARAN_BATCH_HEAD);
    while ((more = trimaran_operation_next(&rest, &kind, &request)) > 0)
        if (kind == 0)
            return false;
    return more == 0;
}
