/* Puts, deletes and txns on the state. */
#include "mvcc_internal.h"

void trimaran_scope_header(const trimaran_scope *scope, int64_t revision, trimaran_buffer *out)
{
    trimaran_header header = {.revision = revision};
    if (!scope->nested) {
        header = trimaran_mvcc_header(scope->mvcc);
        header.revision = revision;
    }
    trimaran_encode_header(out, &header);
}

trimaran_error trimaran_apply_check_put(const trimaran_mvcc *mvcc,
                                        const trimaran_put_request *request)
{
    trimaran_key_record *record;
    if ((request->ignore_value || request->ignore_lease) &&
        trimaran_find_live(mvcc, request->key, mvcc->revision, &record) == NULL)
        return TRIMARAN_ERROR_KEY_NOT_FOUND;
    if (request->lease != 0 && trimaran_leasetable_find(&mvcc->leases, request->lease) == NULL)
        return TRIMARAN_ERROR_LEASE_NOT_FOUND;
    return TRIMARAN_ERROR_NONE;
}

void trimaran_scope_put(const trimaran_scope *scope, const trimaran_put_request *request,
                        trimaran_buffer *out)
{
    trimaran_mvcc *mvcc = scope->mvcc;
    trimaran_slice value = request->value, stored;
    int64_t lease = request->lease;
    trimaran_key_value previous = {0};
    bool exists = false;
    if (request->prev_kv || request->ignore_value || request->ignore_lease) {
        int64_t revision = trimaran_write_revision(scope->write);
        exists = trimaran_mvcc_get(mvcc, request->key, revision, &stored);
        if (exists && !trimaran_decode_key_value(stored, &previous))
            abort();
    }
    if (request->ignore_value && exists)
        value = previous.value;
    if (request->ignore_lease && exists)
        lease = previous.lease;
    trimaran_write_put(scope->write, request->key, value, lease);
    if (out == NULL)
        return;
    trimaran_scope_header(scope, scope->write->main, out);
    if (request->prev_kv && exists)
        trimaran_encode_key_value(out, 2, &previous);
}

typedef struct deletion {
    const trimaran_scope *scope;
    trimaran_buffer *previous; /* serialized prev_kvs, NULL where nobody asked */
    int64_t revision, deleted;
} deletion_t;

static void delete_record(deletion_t *deletion, trimaran_key_record *record)
{
    const trimaran_version *version = trimaran_record_live(record, deletion->revision);
    if (version == NULL)
        return;
    if (deletion->previous != NULL)
        trimaran_proto_bytes(deletion->previous, 3,
                             trimaran_state_read(deletion->scope->mvcc->state, version->main,
                                                 version->sub));
    deletion->deleted++;
    trimaran_write_delete(deletion->scope->write, record);
}

void trimaran_scope_delete(const trimaran_scope *scope, const trimaran_delete_request *request,
                           trimaran_buffer *out)
{
    trimaran_mvcc *mvcc = scope->mvcc;
    trimaran_buffer previous = {0};
    /* Within one request a key deleted a moment ago is gone: later versions hide earlier ones. */
    deletion_t deletion = {scope, request->prev_kv && out ? &previous : NULL, scope->write->main,
                           0};
    if (request->range_end.size == 0) {
        trimaran_key_record *record = trimaran_keyindex_find(mvcc->index, request->key);
        if (record != NULL)
            delete_record(&deletion, record);
    } else {
        bool open = trimaran_slice_is_open_end(request->range_end);
        trimaran_keyindex_cursor cursor = trimaran_keyindex_seek(mvcc->index, request->key);
        trimaran_key_record *record;
        while ((record = trimaran_keyindex_next(&cursor)) != NULL) {
            if (!open &&
                trimaran_slice_compare(trimaran_record_key(record), request->range_end) >= 0)
                break;
            delete_record(&deletion, record);
        }
    }
    if (out != NULL) {
        trimaran_scope_header(scope, trimaran_write_revision(scope->write), out);
        trimaran_proto_number(out, 2, (uint64_t)deletion.deleted);
        trimaran_buffer_append(out, previous.data, previous.size);
    }
    trimaran_buffer_free(&previous);
}

static bool holds(int32_t result, int order)
{
    switch (result) {
    case TRIMARAN_COMPARE_EQUAL: return order == 0;
    case TRIMARAN_COMPARE_GREATER: return order > 0;
    case TRIMARAN_COMPARE_LESS: return order < 0;
    case TRIMARAN_COMPARE_NOT_EQUAL: return order != 0;
    default: return true;
    }
}

static int order_of(int64_t a, int64_t b)
{
    return a < b ? -1 : a > b;
}

/* Compare one key, or a missing one where version is NULL. A union field of another target counts
 * as zero or empty. */
static bool compare_one(trimaran_mvcc *mvcc, const trimaran_compare *compare,
                        const trimaran_version *version)
{
    static const int32_t field_of[] = {4, 5, 6, 7, 8};
    bool known = compare->target >= 0 && compare->target <= TRIMARAN_TARGET_LEASE;
    bool matches = known && compare->union_field == field_of[compare->target];
    int64_t wanted = matches ? compare->number : 0;
    switch (compare->target) {
    case TRIMARAN_TARGET_VERSION:
        return holds(compare->result, order_of(version ? version->version : 0, wanted));
    case TRIMARAN_TARGET_CREATE:
        return holds(compare->result, order_of(version ? version->create : 0, wanted));
    case TRIMARAN_TARGET_MOD:
        return holds(compare->result, order_of(version ? version->main : 0, wanted));
    case TRIMARAN_TARGET_VALUE:
    case TRIMARAN_TARGET_LEASE:
        break;
    default:
        return holds(compare->result, 0);
    }
    trimaran_key_value kv = {0};
    if (version != NULL &&
        !trimaran_decode_key_value(trimaran_state_read(mvcc->state, version->main, version->sub),
                                   &kv))
        abort();
    if (compare->target == TRIMARAN_TARGET_LEASE)
        return holds(compare->result, order_of(kv.lease, wanted));
    trimaran_slice value = matches ? compare->value : (trimaran_slice){0};
    return version != NULL && holds(compare->result, trimaran_slice_compare(kv.value, value));
}

/* With a range every live key in it must satisfy; an empty range counts as one missing key. */
static bool compare_holds(trimaran_mvcc *mvcc, const trimaran_compare *compare)
{
    trimaran_key_record *record;
    if (compare->range_end.size == 0)
        return compare_one(mvcc, compare,
                           trimaran_find_live(mvcc, compare->key, mvcc->revision, &record));
    bool open = trimaran_slice_is_open_end(compare->range_end), any = false;
    trimaran_keyindex_cursor cursor = trimaran_keyindex_seek(mvcc->index, compare->key);
    while ((record = trimaran_keyindex_next(&cursor)) != NULL) {
        if (!open && trimaran_slice_compare(trimaran_record_key(record), compare->range_end) >= 0)
            break;
        const trimaran_version *version = trimaran_record_live(record, mvcc->revision);
        if (version == NULL)
            continue;
        any = true;
        if (!compare_one(mvcc, compare, version))
            return false;
    }
    return any || compare_one(mvcc, compare, NULL);
}

/* All branches are chosen before anything is written, so that a nested txn compares with the state
 * before the whole txn. */
typedef struct plan {
    bool succeeded;
    const trimaran_request_op *ops;
    size_t count;
    struct plan **nested; /* for each op that is a txn */
} plan_t;

static plan_t *make_plan(trimaran_mvcc *mvcc, const trimaran_txn_request *txn)
{
    plan_t *plan = trimaran_arena_allocate(&mvcc->arena, sizeof *plan);
    plan->succeeded = true;
    for (size_t i = 0; plan->succeeded && i < txn->compare_count; i++)
        plan->succeeded = compare_holds(mvcc, &txn->compares[i]);
    plan->ops = plan->succeeded ? txn->success : txn->failure;
    plan->count = plan->succeeded ? txn->success_count : txn->failure_count;
    plan->nested = trimaran_arena_allocate(&mvcc->arena, plan->count * sizeof *plan->nested);
    for (size_t i = 0; i < plan->count; i++)
        plan->nested[i] =
            plan->ops[i].kind == TRIMARAN_OP_TXN ? make_plan(mvcc, plan->ops[i].txn) : NULL;
    return plan;
}

static trimaran_error check_plan(const trimaran_mvcc *mvcc, const plan_t *plan, int32_t kind)
{
    trimaran_error error = TRIMARAN_ERROR_NONE;
    for (size_t i = 0; error == TRIMARAN_ERROR_NONE && i < plan->count; i++) {
        if (plan->nested[i] != NULL)
            error = check_plan(mvcc, plan->nested[i], kind);
        else if (plan->ops[i].kind == kind && kind == TRIMARAN_OP_PUT)
            error = trimaran_apply_check_put(mvcc, &plan->ops[i].put);
        else if (plan->ops[i].kind == kind && kind == TRIMARAN_OP_RANGE)
            error = trimaran_apply_check_range(mvcc, &plan->ops[i].range);
    }
    return error;
}

static void run_plan(const trimaran_scope *scope, const plan_t *plan, trimaran_buffer *out)
{
    trimaran_scope inner = {scope->mvcc, scope->write, true};
    if (out != NULL)
        trimaran_proto_number(out, 2, plan->succeeded);
    for (size_t i = 0; i < plan->count; i++) {
        const trimaran_request_op *op = &plan->ops[i];
        size_t wrapper = out ? trimaran_proto_begin(out, 3) : 0;
        size_t body = out ? trimaran_proto_begin(out, (unsigned)op->kind) : 0;
        switch (op->kind) {
        case TRIMARAN_OP_RANGE: trimaran_scope_range(&inner, &op->range, out); break;
        case TRIMARAN_OP_PUT: trimaran_scope_put(&inner, &op->put, out); break;
        case TRIMARAN_OP_DELETE: trimaran_scope_delete(&inner, &op->remove, out); break;
        case TRIMARAN_OP_TXN:
            if (out != NULL)
                trimaran_scope_header(&inner, 0, out);
            run_plan(&inner, plan->nested[i], out);
            break;
        default: abort();
        }
        if (out != NULL) {
            trimaran_proto_end(out, body);
            trimaran_proto_end(out, wrapper);
        }
    }
}

trimaran_error trimaran_scope_txn(const trimaran_scope *scope,
                                  const trimaran_txn_request *request, trimaran_buffer *out)
{
    trimaran_mvcc *mvcc = scope->mvcc;
    plan_t *plan = make_plan(mvcc, request);
    trimaran_error error = check_plan(mvcc, plan, TRIMARAN_OP_PUT);
    if (error == TRIMARAN_ERROR_NONE)
        error = check_plan(mvcc, plan, TRIMARAN_OP_RANGE);
    if (error != TRIMARAN_ERROR_NONE)
        return error;
    /* The header tells the revision after the txn, so it is written last and put first. */
    trimaran_buffer body = {0};
    run_plan(scope, plan, out ? &body : NULL);
    if (out != NULL) {
        trimaran_scope_header(scope, scope->write ? trimaran_write_revision(scope->write)
                                                  : mvcc->revision,
                              out);
        trimaran_buffer_append(out, body.data, body.size);
    }
    trimaran_buffer_free(&body);
    return TRIMARAN_ERROR_NONE;
}

trimaran_error trimaran_mvcc_read_txn(trimaran_mvcc *mvcc, const trimaran_txn_request *request,
                                      trimaran_buffer *out)
{
    trimaran_scope scope = {.mvcc = mvcc};
    trimaran_error error = trimaran_scope_txn(&scope, request, out);
    trimaran_arena_reset(&mvcc->arena);
    return error;
}
