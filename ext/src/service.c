/* The hot methods; see service.h. */
#include "service_internal.h"

enum { COMPACT_KEYS_A_STEP = 1000, ANSWER_KEPT_BYTES = 8 << 20 };

void trimaran_service_fail(trimaran_rpc_call *call, trimaran_error error)
{
    trimaran_rpc_finish(call, trimaran_error_status(error), trimaran_error_text(error));
}

void trimaran_service_reply(trimaran_rpc_call *call, const trimaran_buffer *out)
{
    uint8_t *at = trimaran_rpc_reserve(call, out->size);
    if (out->size > 0)
        memcpy(at, out->data, out->size);
    trimaran_rpc_commit(call, out->size);
    trimaran_rpc_finish(call, 0, NULL);
}

void trimaran_service_answer(trimaran_service *service, trimaran_rpc_call *call,
                             trimaran_error error)
{
    if (error == TRIMARAN_ERROR_NONE)
        trimaran_service_reply(call, &service->out);
    else
        trimaran_service_fail(call, error);
    /* One very large answer must not hold its memory for ever. */
    if (service->out.capacity > ANSWER_KEPT_BYTES)
        trimaran_buffer_free(&service->out);
}

void trimaran_service_submit(trimaran_service *service, trimaran_op_kind kind,
                             trimaran_slice request, uint64_t token)
{
    assert(token != 0);
    trimaran_proposals_add(&service->proposals, (int)kind, request,
                           (trimaran_waiter){.token = token});
}

void trimaran_service_read(trimaran_service *service, uint64_t token)
{
    assert(token != 0);
    trimaran_readqueue_add(&service->reads, service->proposals.tick,
                           (trimaran_waiter){.token = token}, -1, (trimaran_slice){0});
}

static int64_t put_cost(const trimaran_put_request *put)
{
    return 256 + (int64_t)put->key.size + (int64_t)put->value.size;
}

static int64_t txn_cost(const trimaran_txn_request *txn);

static int64_t ops_cost(const trimaran_request_op *ops, size_t count)
{
    int64_t cost = 0;
    for (size_t i = 0; i < count; i++) {
        if (ops[i].kind == TRIMARAN_OP_PUT)
            cost += put_cost(&ops[i].put);
        else if (ops[i].kind == TRIMARAN_OP_TXN)
            cost += txn_cost(ops[i].txn);
    }
    return cost;
}

static int64_t txn_cost(const trimaran_txn_request *txn)
{
    int64_t success = ops_cost(txn->success, txn->success_count);
    int64_t failure = ops_cost(txn->failure, txn->failure_count);
    return success > failure ? success : failure;
}

/* Whether so many bytes that wait for the group are as many as may. */
static bool is_crowded(const trimaran_service *service, size_t waiting_bytes)
{
    return service->options.max_waiting_bytes > 0 &&
           waiting_bytes > service->options.max_waiting_bytes;
}

/* What stands against a write of that cost now. The quota counts what the data occupies, not the
 * file, so that deleting and compacting make room again. */
static trimaran_error check_room(trimaran_service *service, int64_t cost, size_t request_bytes)
{
    trimaran_state *state = trimaran_mvcc_state(service->mvcc);
    size_t pending = trimaran_state_pending_bytes(state);
    size_t waiting = service->proposals.waiting_bytes + service->proposals.bytes.size;
    if (request_bytes > service->options.max_request_bytes)
        return TRIMARAN_ERROR_REQUEST_TOO_LARGE;
    if (cost > 0 && service->options.quota_bytes > 0) {
        /* Looked at before the alarm: each member that is asked for more than it has tells so. */
        int64_t total, in_use;
        trimaran_state_sizes(state, &total, &in_use);
        if (in_use + (int64_t)pending + cost >= service->options.quota_bytes) {
            service->no_space = true;
            return TRIMARAN_ERROR_NO_SPACE;
        }
    }
    if (cost > 0 && trimaran_mvcc_has_alarm(service->mvcc, TRIMARAN_ALARM_NO_SPACE))
        return TRIMARAN_ERROR_NO_SPACE;
    if (pending > service->options.max_pending_bytes || is_crowded(service, waiting))
        return TRIMARAN_ERROR_TOO_MANY_REQUESTS;
    return TRIMARAN_ERROR_NONE;
}

static void propose(trimaran_service *service, trimaran_op_kind kind, trimaran_rpc_call *call,
                    trimaran_slice message, trimaran_error error)
{
    if (error == TRIMARAN_ERROR_NONE)
        trimaran_proposals_add(&service->proposals, (int)kind, message,
                               (trimaran_waiter){.call = call});
    else
        trimaran_service_fail(call, error);
}

/* Keep a checked read until the group has confirmed what it may see. */
static void queue_read(trimaran_service *service, trimaran_rpc_call *call, int method,
                       trimaran_slice message)
{
    if (is_crowded(service, service->reads.waiting_bytes)) {
        trimaran_service_fail(call, TRIMARAN_ERROR_TOO_MANY_REQUESTS);
        return;
    }
    trimaran_readqueue_add(&service->reads, service->proposals.tick,
                           (trimaran_waiter){.call = call}, method, message);
}

static void receive_range(trimaran_service *service, trimaran_rpc_call *call,
                          trimaran_slice message)
{
    trimaran_range_request request;
    service->counts.ranges++;
    trimaran_error error = trimaran_decode_range(message, &request)
                               ? trimaran_check_range(&request)
                               : TRIMARAN_ERROR_MALFORMED;
    if (service->mode.is_learner && !request.serializable)
        error = TRIMARAN_ERROR_LEARNER;
    if (error != TRIMARAN_ERROR_NONE)
        trimaran_service_fail(call, error);
    else if (service->mode.reads_at_once || request.serializable)
        trimaran_service_serve_range(service, call, &request);
    else
        queue_read(service, call, METHOD_RANGE, message);
}

static void receive_put(trimaran_service *service, trimaran_rpc_call *call,
                        trimaran_slice message)
{
    trimaran_put_request request;
    service->counts.puts++;
    trimaran_error error = trimaran_decode_put(message, &request) ? trimaran_check_put(&request)
                                                                  : TRIMARAN_ERROR_MALFORMED;
    if (error == TRIMARAN_ERROR_NONE)
        error = check_room(service, put_cost(&request), message.size);
    propose(service, TRIMARAN_APPLY_PUT, call, message, error);
}

static void receive_delete(trimaran_service *service, trimaran_rpc_call *call,
                           trimaran_slice message)
{
    trimaran_delete_request request;
    service->counts.deletes++;
    trimaran_error error = trimaran_decode_delete(message, &request)
                               ? trimaran_check_delete(&request)
                               : TRIMARAN_ERROR_MALFORMED;
    if (error == TRIMARAN_ERROR_NONE)
        error = check_room(service, 0, message.size);
    propose(service, TRIMARAN_APPLY_DELETE, call, message, error);
}

static void receive_txn(trimaran_service *service, trimaran_rpc_call *call,
                        trimaran_slice message)
{
    trimaran_txn_request request;
    service->counts.txns++;
    service->out.size = 0;
    trimaran_error error = TRIMARAN_ERROR_MALFORMED;
    if (trimaran_decode_txn(message, &service->arena, &request))
        error = trimaran_check_txn(&request, service->options.max_txn_ops, &service->arena);
    if (error == TRIMARAN_ERROR_NONE && trimaran_txn_is_read_only(&request)) {
        if (service->mode.reads_at_once || trimaran_txn_is_serializable(&request)) {
            error = trimaran_mvcc_read_txn(service->mvcc, &request, &service->out);
            trimaran_service_answer(service, call, error);
        } else {
            queue_read(service, call, METHOD_TXN, message);
        }
    } else {
        if (error == TRIMARAN_ERROR_NONE)
            error = check_room(service, txn_cost(&request), message.size);
        propose(service, TRIMARAN_APPLY_TXN, call, message, error);
    }
    trimaran_arena_reset(&service->arena);
}

static void receive_compact(trimaran_service *service, trimaran_rpc_call *call,
                            trimaran_slice message)
{
    trimaran_compaction_request request;
    trimaran_error error = trimaran_decode_compaction(message, &request)
                               ? check_room(service, 0, message.size)
                               : TRIMARAN_ERROR_MALFORMED;
    if (error == TRIMARAN_ERROR_NONE)
        trimaran_proposals_add(&service->proposals, TRIMARAN_APPLY_COMPACT, message,
                               (trimaran_waiter){.call = call, .physical = request.physical});
    else
        trimaran_service_fail(call, error);
}

static int handle_method(void *context, const char *path, size_t size)
{
    static const char *const paths[] = {"/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put",
                                        "/etcdserverpb.KV/DeleteRange", "/etcdserverpb.KV/Txn",
                                        "/etcdserverpb.KV/Compact", "/etcdserverpb.Watch/Watch"};
    (void)context;
    for (int i = 0; i < (int)(sizeof paths / sizeof paths[0]); i++)
        if (strlen(paths[i]) == size && memcmp(paths[i], path, size) == 0)
            return i;
    return -1;
}

/* What stands against a call of any kind: a learner serves serializable ranges alone, and a client
 * may ask not to wait for a leader. */
static trimaran_error check_admission(const trimaran_service *service,
                                      const trimaran_rpc_call *call, int method)
{
    if (service->mode.is_learner && method != METHOD_RANGE)
        return TRIMARAN_ERROR_LEARNER;
    if (service->mode.has_leader)
        return TRIMARAN_ERROR_NONE;
    return trimaran_rpc_requires_leader(call) ? TRIMARAN_ERROR_NO_LEADER : TRIMARAN_ERROR_NONE;
}

static void handle_message(void *context, trimaran_rpc_call *call, int method,
                           const uint8_t *data, size_t size)
{
    trimaran_service *service = context;
    trimaran_slice message = trimaran_slice_of(data, size);
    trimaran_error error = check_admission(service, call, method);
    if (method == METHOD_WATCH && error == TRIMARAN_ERROR_NONE) {
        trimaran_watchhub_message(service->hub, call, message);
        return;
    }
    trimaran_waiter *waiting = method == METHOD_WATCH ? NULL : trimaran_rpc_user(call);
    if (waiting != NULL) {
        /* A second message on a call that takes one. */
        waiting->call = NULL;
        error = TRIMARAN_ERROR_MALFORMED;
    }
    if (error != TRIMARAN_ERROR_NONE) {
        service->counts.refused++;
        if (method == METHOD_WATCH)
            trimaran_watchhub_closed(service->hub, call);
        trimaran_service_fail(call, error);
        return;
    }
    switch (method) {
    case METHOD_RANGE: receive_range(service, call, message); break;
    case METHOD_PUT: receive_put(service, call, message); break;
    case METHOD_DELETE: receive_delete(service, call, message); break;
    case METHOD_TXN: receive_txn(service, call, message); break;
    case METHOD_COMPACT: receive_compact(service, call, message); break;
    default: abort();
    }
}

static void handle_half_closed(void *context, trimaran_rpc_call *call, int method)
{
    (void)context;
    /* A watch outlives the request stream: gateways close theirs right after creation. */
    if (method != METHOD_WATCH && trimaran_rpc_user(call) == NULL)
        trimaran_service_fail(call, TRIMARAN_ERROR_MALFORMED);
}

static void handle_closed(void *context, trimaran_rpc_call *call, int method)
{
    trimaran_service *service = context;
    if (method == METHOD_WATCH) {
        trimaran_watchhub_closed(service->hub, call);
        return;
    }
    trimaran_waiter *waiter = trimaran_rpc_user(call);
    if (waiter != NULL)
        waiter->call = NULL;
}

static void handle_writable(void *context, trimaran_rpc_call *call, int method)
{
    trimaran_service *service = context;
    if (method == METHOD_WATCH)
        trimaran_watchhub_writable(service->hub, call);
}

trimaran_service *trimaran_service_create(trimaran_mvcc *mvcc, trimaran_watchhub *hub,
                                          const trimaran_service_options *options)
{
    trimaran_service *service = trimaran_allocate(sizeof *service);
    *service = (trimaran_service){.mvcc = mvcc, .hub = hub, .options = *options};
    service->mode = (trimaran_service_mode){.reads_at_once = true, .has_leader = true};
    service->handler = (trimaran_rpc_handler){service, handle_method, handle_message,
                                              handle_half_closed, handle_closed, handle_writable};
    trimaran_proposals_init(&service->proposals, options->member_id, options->incarnation);
    /* An answer to a question asked before the last start must not answer one asked after it. */
    service->reads.context = service->reads.answered = options->incarnation << 32 >> 1;
    trimaran_mvcc_observe(mvcc, trimaran_watchhub_observe, hub);
    return service;
}

void trimaran_service_destroy(trimaran_service *service)
{
    trimaran_proposals_free(&service->proposals);
    trimaran_readqueue_free(&service->reads);
    while (service->physical != NULL) {
        trimaran_physical *next = service->physical->next;
        trimaran_buffer_free(&service->physical->answer);
        free(service->physical);
        service->physical = next;
    }
    trimaran_buffer_free(&service->out);
    trimaran_arena_free(&service->arena);
    free(service->results);
    free(service);
}

const trimaran_rpc_handler *trimaran_service_handler(trimaran_service *service)
{
    return &service->handler;
}

trimaran_proposals *trimaran_service_proposals(trimaran_service *service)
{
    return &service->proposals;
}

trimaran_readqueue *trimaran_service_reads(trimaran_service *service)
{
    return &service->reads;
}

void trimaran_service_set_mode(trimaran_service *service, const trimaran_service_mode *mode)
{
    if (mode->has_leader && !service->mode.has_leader)
        service->leader_tick = service->proposals.tick;
    service->mode = *mode;
}

bool trimaran_service_step(trimaran_service *service)
{
    bool compacting = trimaran_mvcc_compact_step(service->mvcc, COMPACT_KEYS_A_STEP);
    bool behind = trimaran_watchhub_step(service->hub);
    if (service->physical != NULL)
        trimaran_service_answer_physical(service);
    return compacting || behind;
}

bool trimaran_service_has_results(const trimaran_service *service)
{
    return service->result_count > 0 && !service->results_taken;
}

size_t trimaran_service_results(trimaran_service *service, const trimaran_result **out)
{
    size_t count = service->results_taken ? 0 : service->result_count;
    *out = service->results;
    service->results_taken = true;
    return count;
}

bool trimaran_service_take_no_space(trimaran_service *service)
{
    bool no_space = service->no_space;
    service->no_space = false;
    return no_space;
}

trimaran_service_counts trimaran_service_count(const trimaran_service *service)
{
    trimaran_service_counts counts = service->counts;
    counts.entries = service->proposals.sequence;
    counts.waiting_reads = service->reads.count;
    counts.waiting_batches = service->proposals.count;
    return counts;
}
