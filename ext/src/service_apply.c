/* What happens to requests in the end: applied, answered, overtaken or timed out. */
#include "service_internal.h"

#include <stdio.h>

void trimaran_service_add_result(trimaran_service *service, const trimaran_result *result)
{
    if (service->results_taken)
        service->result_count = 0;
    service->results_taken = false;
    if (service->result_count == service->result_capacity) {
        service->result_capacity = service->result_capacity ? service->result_capacity * 2 : 16;
        service->results = trimaran_reallocate(
            service->results, service->result_capacity * sizeof *service->results);
    }
    service->results[service->result_count++] = *result;
}

static void refuse_waiter(trimaran_service *service, const trimaran_waiter *waiter, int kind,
                          trimaran_error error)
{
    if (waiter->call != NULL)
        trimaran_service_fail(waiter->call, error);
    if (waiter->token != 0)
        trimaran_service_add_result(service, &(trimaran_result){.token = waiter->token,
                                                               .kind = kind,
                                                               .error = error});
    service->counts.refused++;
}

static void refuse_proposal(trimaran_service *service, trimaran_proposal *proposal,
                            trimaran_error error)
{
    int kind = proposal->type == TRIMARAN_ENTRY_CONFIGURATION ? TRIMARAN_RESULT_CHANGE : 0;
    for (size_t i = 0; i < proposal->count; i++)
        refuse_waiter(service, &proposal->waiters[i], kind, error);
    trimaran_proposals_release(&service->proposals, proposal);
}

void trimaran_service_serve_range(trimaran_service *service, trimaran_rpc_call *call,
                                  const trimaran_range_request *request)
{
    service->out.size = 0;
    trimaran_service_answer(service, call,
                            trimaran_mvcc_range(service->mvcc, request, &service->out));
}

static void serve_read(trimaran_service *service, const trimaran_read *read,
                       trimaran_slice message)
{
    trimaran_range_request range;
    trimaran_txn_request txn;
    if (read->method == METHOD_RANGE) {
        /* It was decoded and checked before it was queued. */
        if (!trimaran_decode_range(message, &range))
            abort();
        trimaran_service_serve_range(service, read->waiter.call, &range);
        return;
    }
    if (!trimaran_decode_txn(message, &service->arena, &txn))
        abort();
    service->out.size = 0;
    trimaran_error error = trimaran_mvcc_read_txn(service->mvcc, &txn, &service->out);
    trimaran_service_answer(service, read->waiter.call, error);
    trimaran_arena_reset(&service->arena);
}

void trimaran_service_serve_group(trimaran_service *service, trimaran_read_group *group,
                                  trimaran_error error)
{
    for (size_t i = 0; i < group->count; i++) {
        const trimaran_read *read = &group->reads[i];
        if (error != TRIMARAN_ERROR_NONE)
            refuse_waiter(service, &read->waiter, TRIMARAN_RESULT_READ, error);
        else if (read->waiter.call != NULL)
            serve_read(service, read,
                       trimaran_slice_of(group->bytes.data + read->offset, read->size));
        else if (read->waiter.token != 0)
            trimaran_service_add_result(
                service, &(trimaran_result){.token = read->waiter.token,
                                            .kind = TRIMARAN_RESULT_READ,
                                            .revision = trimaran_mvcc_revision(service->mvcc)});
    }
    trimaran_readqueue_take(&service->reads);
}

void trimaran_service_answer_reads(trimaran_service *service)
{
    trimaran_read_group *group;
    uint64_t applied, term;
    trimaran_state_applied(trimaran_mvcc_state(service->mvcc), &applied, &term);
    while ((group = trimaran_readqueue_ready(&service->reads, applied)) != NULL)
        trimaran_service_serve_group(service, group, TRIMARAN_ERROR_NONE);
}

/* A watch that wants a leader outlives an election, but not three times the time of one. */
static void watch_leader(trimaran_service *service)
{
    service->leaderless_ticks = service->mode.has_leader ? 0 : service->leaderless_ticks + 1;
    if (service->leaderless_ticks == 3 * service->options.election_ticks)
        trimaran_watchhub_lose_leader(service->hub);
}

/* Those that wait for longer than the time-out are told so, and whether a leader was lost since. */
void trimaran_service_tick(trimaran_service *service)
{
    watch_leader(service);
    uint64_t tick = ++service->proposals.tick, timeout = service->options.timeout_ticks;
    trimaran_proposal *proposal;
    trimaran_read_group *group;
    if (timeout == 0 || tick <= timeout)
        return;
    uint64_t born_before = tick - timeout, lost = 2 * service->options.election_ticks;
    trimaran_error error = TRIMARAN_ERROR_TIMEOUT;
    if (service->mode.has_leader && born_before <= service->leader_tick &&
        born_before + lost > service->leader_tick)
        error = TRIMARAN_ERROR_TIMEOUT_LEADER_FAILED;
    trimaran_proposals_cut(&service->proposals);
    while ((proposal = trimaran_proposals_expired(&service->proposals, born_before)) != NULL) {
        service->counts.timeouts += proposal->count;
        refuse_proposal(service, proposal, error);
    }
    while ((group = trimaran_readqueue_expired(&service->reads, born_before)) != NULL) {
        service->counts.timeouts += group->count;
        trimaran_service_serve_group(service, group, error);
    }
}

bool trimaran_service_accepts(trimaran_service *service, const trimaran_proposal_head *head,
                              trimaran_proposal **proposal)
{
    trimaran_proposals *proposals = &service->proposals;
    *proposal = NULL;
    if (!trimaran_origintable_advance(trimaran_mvcc_origins(service->mvcc), head->origin,
                                      head->incarnation, head->sequence)) {
        service->counts.skipped++;
        return false;
    }
    if (head->origin == proposals->origin && head->incarnation == proposals->incarnation)
        *proposal = trimaran_proposals_take(proposals, head->sequence);
    return true;
}

void trimaran_service_configured(trimaran_service *service, trimaran_proposal *proposal,
                                 trimaran_error error)
{
    if (proposal == NULL)
        return;
    if (proposal->waiters[0].token != 0)
        trimaran_service_add_result(
            service, &(trimaran_result){.token = proposal->waiters[0].token,
                                        .kind = TRIMARAN_RESULT_CHANGE,
                                        .error = error,
                                        .revision = trimaran_mvcc_revision(service->mvcc)});
    trimaran_proposals_release(&service->proposals, proposal);
}

void trimaran_service_installed(trimaran_service *service)
{
    trimaran_proposals *proposals = &service->proposals;
    const trimaran_origin *origin = trimaran_origintable_find(
        trimaran_mvcc_origins(service->mvcc), proposals->origin);
    trimaran_proposal *proposal;
    /* Another state counts its batches anew. */
    for (trimaran_physical *next = service->physical; next != NULL; next = next->next)
        next->batch = 0;
    if (origin == NULL || origin->incarnation != proposals->incarnation)
        return;
    while ((proposal = trimaran_proposals_up_to(proposals, origin->sequence)) != NULL)
        refuse_proposal(service, proposal, TRIMARAN_ERROR_TIMEOUT);
}

static void wait_for_compaction(trimaran_service *service, trimaran_waiter *waiter)
{
    trimaran_physical *physical = trimaran_allocate(sizeof *physical);
    *physical = (trimaran_physical){.next = service->physical, .waiter = *waiter};
    trimaran_buffer_append(&physical->answer, service->out.data, service->out.size);
    trimaran_rpc_set_user(waiter->call, &physical->waiter);
    service->physical = physical;
}

/* Leases are told of whoever asked for the operation: their clock runs outside. */
static void note_result(trimaran_service *service, trimaran_op_kind kind, trimaran_slice request,
                        trimaran_error error, uint64_t token)
{
    trimaran_result result = {token, (int)kind, error, trimaran_mvcc_revision(service->mvcc), 0, 0};
    bool lease = kind == TRIMARAN_APPLY_LEASE_GRANT || kind == TRIMARAN_APPLY_LEASE_REVOKE;
    if (lease) {
        trimaran_proto_reader reader = trimaran_proto_read(request);
        trimaran_proto_field field;
        unsigned id_tag = kind == TRIMARAN_APPLY_LEASE_GRANT ? 2 : 1;
        while (trimaran_proto_next(&reader, &field) > 0) {
            if (field.tag == id_tag)
                result.lease = (int64_t)field.number;
            else if (field.tag == 1)
                result.ttl_s = (int64_t)field.number;
        }
    }
    if (token != 0 || lease)
        trimaran_service_add_result(service, &result);
}

/* What a leader decides by its clock counts in its own term alone: the request begins with that
 * term, and an entry of another term carries it in vain. */
static trimaran_error unfence(uint64_t term, trimaran_op_kind *kind, trimaran_slice *request)
{
    uint64_t fence;
    if (*kind != TRIMARAN_APPLY_LEASE_EXPIRE && *kind != TRIMARAN_APPLY_LEASE_CHECKPOINT)
        return TRIMARAN_ERROR_NONE;
    if (request->size < sizeof fence)
        return TRIMARAN_ERROR_MALFORMED;
    fence = trimaran_read_u64(request->data);
    *request = trimaran_slice_of(request->data + sizeof fence, request->size - sizeof fence);
    if (*kind == TRIMARAN_APPLY_LEASE_EXPIRE)
        *kind = TRIMARAN_APPLY_LEASE_REVOKE;
    return fence == term ? TRIMARAN_ERROR_NONE : TRIMARAN_ERROR_LEADER_CHANGED;
}

static void apply_operation(trimaran_service *service, uint64_t term, trimaran_op_kind kind,
                            trimaran_slice request, trimaran_waiter *waiter)
{
    bool wanted = waiter != NULL && waiter->call != NULL;
    service->out.size = 0;
    service->counts.operations++;
    trimaran_error error = unfence(term, &kind, &request);
    if (error == TRIMARAN_ERROR_NONE)
        error = trimaran_mvcc_apply(service->mvcc, kind, request, wanted ? &service->out : NULL);
    note_result(service, kind, request, error, waiter ? waiter->token : 0);
    if (!wanted)
        return;
    if (error == TRIMARAN_ERROR_NONE && waiter->physical)
        wait_for_compaction(service, waiter);
    else
        trimaran_service_answer(service, waiter->call, error);
}

static _Noreturn void refuse_entry(uint64_t index, const char *what)
{
    /* Going on without it would make this member's state another than the others'. */
    fprintf(stderr, "trimaran: log entry %llu %s: run the version that wrote it\n",
            (unsigned long long)index, what);
    abort();
}

static void apply_operations(trimaran_service *service, uint64_t index, uint64_t term,
                             trimaran_slice rest, trimaran_proposal *proposal)
{
    uint8_t kind;
    trimaran_slice request;
    int more;
    for (size_t i = 0; (more = trimaran_operation_next(&rest, &kind, &request)) > 0; i++) {
        trimaran_waiter *waiter =
            proposal != NULL && i < proposal->count ? &proposal->waiters[i] : NULL;
        apply_operation(service, term, (trimaran_op_kind)kind, request, waiter);
    }
    if (more < 0)
        refuse_entry(index, "holds an operation that ends after it");
}

void trimaran_service_apply(trimaran_service *service, uint64_t index, uint64_t term,
                            trimaran_slice entry)
{
    trimaran_proposal *proposal = NULL;
    uint8_t version = entry.size > 0 ? entry.data[0] : 0;
    if (version == 1) {
        /* As a single member wrote it, before there were others to repeat it. */
        apply_operations(service, index, term,
                         trimaran_slice_of(entry.data + 1, entry.size - 1), NULL);
    } else if (version == TRIMARAN_BATCH_VERSION && entry.size >= TRIMARAN_BATCH_HEAD) {
        trimaran_proposal_head head = trimaran_proposal_read_head(entry.data);
        if (trimaran_service_accepts(service, &head, &proposal))
            apply_operations(service, index, term,
                             trimaran_slice_of(entry.data + TRIMARAN_BATCH_HEAD,
                                               entry.size - TRIMARAN_BATCH_HEAD),
                             proposal);
    } else if (entry.size > 0) {
        refuse_entry(index, "is of a batch version that this build does not know");
    }
    trimaran_state_set_applied(trimaran_mvcc_state(service->mvcc), index, term);
    if (proposal != NULL)
        trimaran_proposals_release(&service->proposals, proposal);
}

void trimaran_service_answer_physical(trimaran_service *service)
{
    trimaran_state *state = trimaran_mvcc_state(service->mvcc);
    bool compacting = trimaran_mvcc_compacting(service->mvcc);
    for (trimaran_physical **link = &service->physical; *link != NULL;) {
        trimaran_physical *physical = *link;
        if (physical->batch == 0 && !compacting)
            physical->batch = trimaran_state_batch_number(state);
        bool done =
            physical->batch != 0 && trimaran_state_committed_batch(state) >= physical->batch;
        if (!done && physical->waiter.call != NULL) {
            link = &physical->next;
            continue;
        }
        if (physical->waiter.call != NULL)
            trimaran_service_reply(physical->waiter.call, &physical->answer);
        *link = physical->next;
        trimaran_buffer_free(&physical->answer);
        free(physical);
    }
}
