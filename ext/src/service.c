/* The hot methods; see service.h. */
#include "service.h"

#include <stdio.h>

enum { METHOD_RANGE, METHOD_PUT, METHOD_DELETE, METHOD_TXN, METHOD_COMPACT, METHOD_WATCH };
enum { BATCH_VERSION = 1, BATCH_OPERATIONS_MAX = 4096, BATCH_BYTES_MAX = 1 << 20 };
enum { COMPACT_KEYS_A_STEP = 1000, ANSWER_KEPT_BYTES = 8 << 20 };

/* One who waits for an operation: a call, a token, or nobody any more. */
typedef struct waiter {
    trimaran_rpc_call *call;
    uint64_t token;
    bool physical; /* a compaction whose end is waited for */
} waiter_t;

typedef struct batch {
    struct batch *next;
    uint64_t index, term;
    size_t count;
    waiter_t waiters[BATCH_OPERATIONS_MAX];
} batch_t;

/* A physical compaction to be answered once it is done and on disk. */
typedef struct physical {
    struct physical *next;
    waiter_t waiter;
    trimaran_buffer answer;
    uint64_t batch; /* of the state that holds its end; 0 while it goes on */
} physical_t;

struct trimaran_service {
    trimaran_mvcc *mvcc;
    trimaran_watchhub *hub;
    trimaran_service_options options;
    trimaran_rpc_handler handler;
    trimaran_error refusal;
    trimaran_service_full full;
    void *full_context;
    trimaran_buffer bytes;   /* of the batch being gathered */
    batch_t *gathering;
    batch_t *first, *last;   /* proposed, by index */
    batch_t *spare;
    physical_t *physical;
    trimaran_buffer out;
    trimaran_arena arena;
    trimaran_result *results;
    size_t result_count, result_capacity;
    bool results_taken, no_space;
    trimaran_service_counts counts;
};

static void fail(trimaran_rpc_call *call, trimaran_error error)
{
    trimaran_rpc_finish(call, trimaran_error_status(error), trimaran_error_text(error));
}

static void reply(trimaran_rpc_call *call, const trimaran_buffer *out)
{
    uint8_t *at = trimaran_rpc_reserve(call, out->size);
    if (out->size > 0)
        memcpy(at, out->data, out->size);
    trimaran_rpc_commit(call, out->size);
    trimaran_rpc_finish(call, 0, NULL);
}

static batch_t *new_batch(trimaran_service *service)
{
    batch_t *batch = service->spare;
    if (batch != NULL)
        service->spare = batch->next;
    else
        batch = trimaran_allocate(sizeof *batch);
    batch->next = NULL;
    batch->count = 0;
    return batch;
}

static void append_operation(trimaran_service *service, trimaran_op_kind kind,
                             trimaran_slice request, waiter_t waiter)
{
    if (service->gathering->count == BATCH_OPERATIONS_MAX ||
        service->bytes.size > BATCH_BYTES_MAX)
        service->full(service->full_context);
    batch_t *batch = service->gathering;
    uint8_t head[5] = {(uint8_t)kind, (uint8_t)request.size, (uint8_t)(request.size >> 8),
                       (uint8_t)(request.size >> 16), (uint8_t)(request.size >> 24)};
    uint8_t version = BATCH_VERSION;
    assert(batch->count < BATCH_OPERATIONS_MAX);
    if (batch->count == 0)
        trimaran_buffer_append(&service->bytes, &version, 1);
    trimaran_buffer_append(&service->bytes, head, sizeof head);
    trimaran_buffer_append(&service->bytes, request.data, request.size);
    batch->waiters[batch->count] = waiter;
    /* The call finds its waiter when it closes early. */
    if (waiter.call != NULL)
        trimaran_rpc_set_user(waiter.call, &batch->waiters[batch->count]);
    batch->count++;
}

void trimaran_service_submit(trimaran_service *service, trimaran_op_kind kind,
                             trimaran_slice request, uint64_t token)
{
    assert(token != 0);
    append_operation(service, kind, request, (waiter_t){.token = token});
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

/* What stands against a write of that cost now. The quota counts what the data occupies, not the
 * file, so that deleting and compacting make room again. */
static trimaran_error check_room(trimaran_service *service, int64_t cost, size_t request_bytes)
{
    trimaran_state *state = trimaran_mvcc_state(service->mvcc);
    size_t pending = trimaran_state_pending_bytes(state);
    if (request_bytes > service->options.max_request_bytes)
        return TRIMARAN_ERROR_REQUEST_TOO_LARGE;
    if (cost > 0 && trimaran_mvcc_has_alarm(service->mvcc, TRIMARAN_ALARM_NO_SPACE))
        return TRIMARAN_ERROR_NO_SPACE;
    if (cost > 0 && service->options.quota_bytes > 0) {
        int64_t total, in_use;
        trimaran_state_sizes(state, &total, &in_use);
        if (in_use + (int64_t)pending + cost >= service->options.quota_bytes) {
            service->no_space = true;
            return TRIMARAN_ERROR_NO_SPACE;
        }
    }
    if (pending > service->options.max_pending_bytes)
        return TRIMARAN_ERROR_TOO_MANY_REQUESTS;
    return TRIMARAN_ERROR_NONE;
}

/* One very large answer must not hold its memory for ever. */
static void trim_answer(trimaran_service *service)
{
    if (service->out.capacity > ANSWER_KEPT_BYTES)
        trimaran_buffer_free(&service->out);
}

static void answer_or_fail(trimaran_service *service, trimaran_rpc_call *call,
                           trimaran_error error)
{
    if (error == TRIMARAN_ERROR_NONE)
        reply(call, &service->out);
    else
        fail(call, error);
    trim_answer(service);
}

static void serve_range(trimaran_service *service, trimaran_rpc_call *call, trimaran_slice message)
{
    trimaran_range_request request;
    service->counts.ranges++;
    service->out.size = 0;
    trimaran_error error = trimaran_decode_range(message, &request)
                               ? trimaran_check_range(&request)
                               : TRIMARAN_ERROR_MALFORMED;
    if (error == TRIMARAN_ERROR_NONE)
        error = trimaran_mvcc_range(service->mvcc, &request, &service->out);
    answer_or_fail(service, call, error);
}

static void serve_put(trimaran_service *service, trimaran_rpc_call *call, trimaran_slice message)
{
    trimaran_put_request request;
    service->counts.puts++;
    trimaran_error error = trimaran_decode_put(message, &request) ? trimaran_check_put(&request)
                                                                  : TRIMARAN_ERROR_MALFORMED;
    if (error == TRIMARAN_ERROR_NONE)
        error = check_room(service, put_cost(&request), message.size);
    if (error == TRIMARAN_ERROR_NONE)
        append_operation(service, TRIMARAN_APPLY_PUT, message, (waiter_t){.call = call});
    else
        fail(call, error);
}

static void serve_delete(trimaran_service *service, trimaran_rpc_call *call,
                         trimaran_slice message)
{
    trimaran_delete_request request;
    service->counts.deletes++;
    trimaran_error error = trimaran_decode_delete(message, &request)
                               ? trimaran_check_delete(&request)
                               : TRIMARAN_ERROR_MALFORMED;
    if (error == TRIMARAN_ERROR_NONE)
        error = check_room(service, 0, message.size);
    if (error == TRIMARAN_ERROR_NONE)
        append_operation(service, TRIMARAN_APPLY_DELETE, message, (waiter_t){.call = call});
    else
        fail(call, error);
}

static void serve_txn(trimaran_service *service, trimaran_rpc_call *call, trimaran_slice message)
{
    trimaran_txn_request request;
    service->counts.txns++;
    service->out.size = 0;
    trimaran_error error = TRIMARAN_ERROR_MALFORMED;
    if (trimaran_decode_txn(message, &service->arena, &request))
        error = trimaran_check_txn(&request, service->options.max_txn_ops, &service->arena);
    if (error == TRIMARAN_ERROR_NONE && trimaran_txn_is_read_only(&request)) {
        error = trimaran_mvcc_read_txn(service->mvcc, &request, &service->out);
        answer_or_fail(service, call, error);
    } else {
        if (error == TRIMARAN_ERROR_NONE)
            error = check_room(service, txn_cost(&request), message.size);
        if (error == TRIMARAN_ERROR_NONE)
            append_operation(service, TRIMARAN_APPLY_TXN, message, (waiter_t){.call = call});
        else
            fail(call, error);
    }
    trimaran_arena_reset(&service->arena);
}

static void serve_compact(trimaran_service *service, trimaran_rpc_call *call,
                          trimaran_slice message)
{
    trimaran_compaction_request request;
    trimaran_error error = trimaran_decode_compaction(message, &request)
                               ? check_room(service, 0, message.size)
                               : TRIMARAN_ERROR_MALFORMED;
    if (error == TRIMARAN_ERROR_NONE)
        append_operation(service, TRIMARAN_APPLY_COMPACT, message,
                         (waiter_t){.call = call, .physical = request.physical});
    else
        fail(call, error);
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

static void handle_message(void *context, trimaran_rpc_call *call, int method,
                           const uint8_t *data, size_t size)
{
    trimaran_service *service = context;
    trimaran_slice message = trimaran_slice_of(data, size);
    if (method == METHOD_WATCH) {
        trimaran_watchhub_message(service->hub, call, message);
        return;
    }
    if (service->refusal != TRIMARAN_ERROR_NONE) {
        service->counts.refused++;
        fail(call, service->refusal);
        return;
    }
    waiter_t *waiting = trimaran_rpc_user(call);
    if (waiting != NULL) {
        /* A second message on a call that takes one. */
        waiting->call = NULL;
        fail(call, TRIMARAN_ERROR_MALFORMED);
        return;
    }
    switch (method) {
    case METHOD_RANGE: serve_range(service, call, message); break;
    case METHOD_PUT: serve_put(service, call, message); break;
    case METHOD_DELETE: serve_delete(service, call, message); break;
    case METHOD_TXN: serve_txn(service, call, message); break;
    case METHOD_COMPACT: serve_compact(service, call, message); break;
    default: abort();
    }
}

static void handle_half_closed(void *context, trimaran_rpc_call *call, int method)
{
    (void)context;
    /* A watch outlives the request stream: gateways close theirs right after creation. */
    if (method != METHOD_WATCH && trimaran_rpc_user(call) == NULL)
        fail(call, TRIMARAN_ERROR_MALFORMED);
}

static void handle_closed(void *context, trimaran_rpc_call *call, int method)
{
    trimaran_service *service = context;
    if (method == METHOD_WATCH) {
        trimaran_watchhub_closed(service->hub, call);
        return;
    }
    waiter_t *waiter = trimaran_rpc_user(call);
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
    service->handler = (trimaran_rpc_handler){service, handle_method, handle_message,
                                              handle_half_closed, handle_closed, handle_writable};
    service->gathering = new_batch(service);
    trimaran_mvcc_observe(mvcc, trimaran_watchhub_observe, hub);
    return service;
}

static void free_batches(batch_t *batch)
{
    while (batch != NULL) {
        batch_t *next = batch->next;
        free(batch);
        batch = next;
    }
}

void trimaran_service_destroy(trimaran_service *service)
{
    free_batches(service->first);
    free_batches(service->spare);
    free(service->gathering);
    while (service->physical != NULL) {
        physical_t *next = service->physical->next;
        trimaran_buffer_free(&service->physical->answer);
        free(service->physical);
        service->physical = next;
    }
    trimaran_buffer_free(&service->bytes);
    trimaran_buffer_free(&service->out);
    trimaran_arena_free(&service->arena);
    free(service->results);
    free(service);
}

const trimaran_rpc_handler *trimaran_service_handler(trimaran_service *service)
{
    return &service->handler;
}

void trimaran_service_on_full(trimaran_service *service, trimaran_service_full full,
                              void *context)
{
    service->full = full;
    service->full_context = context;
}

void trimaran_service_set_refusal(trimaran_service *service, trimaran_error refusal)
{
    service->refusal = refusal;
}

trimaran_slice trimaran_service_batch(const trimaran_service *service, size_t *operations)
{
    *operations = service->gathering->count;
    return trimaran_slice_of(service->bytes.data, service->bytes.size);
}

static void add_result(trimaran_service *service, const trimaran_result *result)
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

void trimaran_service_proposed(trimaran_service *service, uint64_t index, uint64_t term)
{
    batch_t *batch = service->gathering;
    batch->index = index;
    batch->term = term;
    if (service->last != NULL)
        service->last->next = batch;
    else
        service->first = batch;
    service->last = batch;
    service->gathering = new_batch(service);
    service->bytes.size = 0;
    service->counts.entries++;
}

static void refuse_waiters(trimaran_service *service, batch_t *batch, trimaran_error error)
{
    for (size_t i = 0; i < batch->count; i++) {
        waiter_t *waiter = &batch->waiters[i];
        trimaran_result result = {.token = waiter->token, .error = error};
        if (waiter->call != NULL)
            fail(waiter->call, error);
        if (waiter->token != 0)
            add_result(service, &result);
        service->counts.refused++;
    }
    batch->count = 0;
}

void trimaran_service_refuse_batch(trimaran_service *service, trimaran_error error)
{
    refuse_waiters(service, service->gathering, error);
    service->bytes.size = 0;
}

static void wait_for_compaction(trimaran_service *service, waiter_t *waiter)
{
    physical_t *physical = trimaran_allocate(sizeof *physical);
    *physical = (physical_t){.next = service->physical, .waiter = *waiter};
    trimaran_buffer_append(&physical->answer, service->out.data, service->out.size);
    trimaran_rpc_set_user(waiter->call, &physical->waiter);
    service->physical = physical;
}

/* Leases are told of whoever asked for the operation: their clock runs outside. */
static void note_result(trimaran_service *service, trimaran_op_kind kind, trimaran_slice request,
                        trimaran_error error, uint64_t token)
{
    trimaran_result result = {token, kind, error, trimaran_mvcc_revision(service->mvcc), 0, 0};
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
        add_result(service, &result);
}

static void apply_operation(trimaran_service *service, trimaran_op_kind kind,
                            trimaran_slice request, waiter_t *waiter)
{
    bool wanted = waiter != NULL && waiter->call != NULL;
    service->out.size = 0;
    service->counts.operations++;
    trimaran_error error =
        trimaran_mvcc_apply(service->mvcc, kind, request, wanted ? &service->out : NULL);
    note_result(service, kind, request, error, waiter ? waiter->token : 0);
    if (!wanted)
        return;
    if (error == TRIMARAN_ERROR_NONE && waiter->physical)
        wait_for_compaction(service, waiter);
    else
        answer_or_fail(service, waiter->call, error);
}

static batch_t *take_batch(trimaran_service *service, uint64_t index)
{
    batch_t *batch = service->first;
    if (batch == NULL || batch->index != index)
        return NULL;
    service->first = batch->next;
    if (service->first == NULL)
        service->last = NULL;
    return batch;
}

void trimaran_service_apply(trimaran_service *service, uint64_t index, uint64_t term,
                            trimaran_slice entry)
{
    batch_t *batch = take_batch(service, index);
    if (batch != NULL && batch->term != term)
        refuse_waiters(service, batch, TRIMARAN_ERROR_STOPPED);
    const uint8_t *at = entry.data, *end = entry.data + entry.size;
    if (entry.size > 0 && *at++ != BATCH_VERSION) {
        /* Going on without it would make this member's state another than the others'. */
        fprintf(stderr, "trimaran: log entry %llu is of batch version %d, this build knows %d: run "
                        "the version that wrote it\n",
                (unsigned long long)index, entry.data[0], BATCH_VERSION);
        abort();
    }
    for (size_t i = 0; at != end; i++) {
        assert(end - at >= 5);
        size_t size = 0;
        for (int byte = 4; byte > 0; byte--)
            size = size << 8 | at[byte];
        assert((size_t)(end - at) - 5 >= size);
        waiter_t *waiter = batch != NULL && i < batch->count ? &batch->waiters[i] : NULL;
        apply_operation(service, (trimaran_op_kind)at[0], trimaran_slice_of(at + 5, size), waiter);
        at += 5 + size;
    }
    trimaran_state_set_applied(trimaran_mvcc_state(service->mvcc), index, term);
    if (batch != NULL) {
        batch->next = service->spare;
        service->spare = batch;
    }
}

static void answer_physical(trimaran_service *service)
{
    trimaran_state *state = trimaran_mvcc_state(service->mvcc);
    bool compacting = trimaran_mvcc_compacting(service->mvcc);
    for (physical_t **link = &service->physical; *link != NULL;) {
        physical_t *physical = *link;
        if (physical->batch == 0 && !compacting)
            physical->batch = trimaran_state_batch_number(state);
        bool done =
            physical->batch != 0 && trimaran_state_committed_batch(state) >= physical->batch;
        if (!done && physical->waiter.call != NULL) {
            link = &physical->next;
            continue;
        }
        if (physical->waiter.call != NULL)
            reply(physical->waiter.call, &physical->answer);
        *link = physical->next;
        trimaran_buffer_free(&physical->answer);
        free(physical);
    }
}

bool trimaran_service_step(trimaran_service *service)
{
    bool compacting = trimaran_mvcc_compact_step(service->mvcc, COMPACT_KEYS_A_STEP);
    bool behind = trimaran_watchhub_step(service->hub);
    if (service->physical != NULL)
        answer_physical(service);
    return compacting || behind;
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
    return service->counts;
}
