/* Checks of requests before they are proposed: texts, order and quirks are etcd's.
 *
 * A txn must not change one key twice. Which pairs count follows etcd: keys put in the two branches
 * of one nested txn may meet, deletes may meet deletes, and the deletes of an earlier nested txn
 * reach the puts of later ones but not the other way round.
 */
#include "codec.h"

typedef trimaran_error error_t;

error_t trimaran_check_put(const trimaran_put_request *request)
{
    if (request->key.size == 0)
        return TRIMARAN_ERROR_EMPTY_KEY;
    if (request->ignore_value && request->value.size != 0)
        return TRIMARAN_ERROR_VALUE_PROVIDED;
    if (request->ignore_lease && request->lease != 0)
        return TRIMARAN_ERROR_LEASE_PROVIDED;
    return TRIMARAN_ERROR_NONE;
}

error_t trimaran_check_range(const trimaran_range_request *request)
{
    if (request->key.size == 0)
        return TRIMARAN_ERROR_EMPTY_KEY;
    if (request->sort_order < TRIMARAN_SORT_NONE || request->sort_order > TRIMARAN_SORT_DESCEND ||
        request->sort_target < TRIMARAN_SORT_KEY || request->sort_target > TRIMARAN_SORT_VALUE)
        return TRIMARAN_ERROR_INVALID_SORT_OPTION;
    return TRIMARAN_ERROR_NONE;
}

error_t trimaran_check_delete(const trimaran_delete_request *request)
{
    return request->key.size == 0 ? TRIMARAN_ERROR_EMPTY_KEY : TRIMARAN_ERROR_NONE;
}

static error_t check_shape(const trimaran_txn_request *txn, int64_t budget);

static error_t check_ops_shape(const trimaran_request_op *ops, size_t count, int64_t budget)
{
    for (size_t i = 0; i < count; i++) {
        error_t error;
        switch (ops[i].kind) {
        case TRIMARAN_OP_RANGE: error = trimaran_check_range(&ops[i].range); break;
        case TRIMARAN_OP_PUT: error = trimaran_check_put(&ops[i].put); break;
        case TRIMARAN_OP_DELETE: error = trimaran_check_delete(&ops[i].remove); break;
        case TRIMARAN_OP_TXN: error = check_shape(ops[i].txn, budget); break;
        default: error = TRIMARAN_ERROR_KEY_NOT_FOUND; break;
        }
        if (error != TRIMARAN_ERROR_NONE)
            return error;
    }
    return TRIMARAN_ERROR_NONE;
}

static error_t check_shape(const trimaran_txn_request *txn, int64_t budget)
{
    size_t most = txn->compare_count;
    most = most < txn->success_count ? txn->success_count : most;
    most = most < txn->failure_count ? txn->failure_count : most;
    if ((int64_t)most > budget)
        return TRIMARAN_ERROR_TOO_MANY_OPS;
    for (size_t i = 0; i < txn->compare_count; i++)
        if (txn->compares[i].key.size == 0)
            return TRIMARAN_ERROR_EMPTY_KEY;
    budget -= (int64_t)most;
    error_t error = check_ops_shape(txn->success, txn->success_count, budget);
    if (error == TRIMARAN_ERROR_NONE)
        error = check_ops_shape(txn->failure, txn->failure_count, budget);
    return error;
}

/* A sorted set of keys, and a sorted set of disjoint ranges (an empty end is "to the last key"). */
typedef struct key_set {
    trimaran_slice *keys;
    size_t count;
} key_set;

typedef struct key_range {
    trimaran_slice begin, end;
    bool point;
} key_range;

typedef struct range_set {
    key_range *ranges;
    size_t count;
} range_set;

static int compare_keys(const void *a, const void *b)
{
    return trimaran_slice_compare(*(const trimaran_slice *)a, *(const trimaran_slice *)b);
}

static int compare_ranges(const void *a, const void *b)
{
    return trimaran_slice_compare(((const key_range *)a)->begin, ((const key_range *)b)->begin);
}

/* Tell whether key lies below the end of range, given that it is not below its begin. */
static bool before_end(const key_range *range, trimaran_slice key)
{
    if (range->point)
        return trimaran_slice_equal(range->begin, key);
    return range->end.size == 0 || trimaran_slice_compare(key, range->end) < 0;
}

static bool contains_key(const key_set *set, trimaran_slice key)
{
    return set->count &&
           bsearch(&key, set->keys, set->count, sizeof key, compare_keys) != NULL;
}

/* Join ranges that meet, so that a lookup needs only the last one that begins at or before it. */
static void normalise(range_set *set)
{
    size_t kept = 0;
    if (set->count > 1)
        qsort(set->ranges, set->count, sizeof *set->ranges, compare_ranges);
    for (size_t i = 0; i < set->count; i++) {
        key_range *range = &set->ranges[i], *last = kept ? &set->ranges[kept - 1] : NULL;
        if (last == NULL || !before_end(last, range->begin)) {
            set->ranges[kept++] = *range;
            continue;
        }
        bool longer = !range->point && last->end.size != 0 &&
                      (range->end.size == 0 ||
                       trimaran_slice_compare(last->end, range->end) < 0);
        if (last->point && !range->point)
            *last = *range;
        else if (!last->point && longer)
            last->end = range->end;
    }
    set->count = kept;
}

static bool contains_point(const range_set *set, trimaran_slice key)
{
    size_t low = 0, high = set->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (trimaran_slice_compare(set->ranges[middle].begin, key) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 && before_end(&set->ranges[low - 1], key);
}

static void add_ranges(trimaran_arena *arena, range_set *set, const range_set *more)
{
    if (more->count == 0)
        return;
    size_t total = set->count + more->count;
    key_range *ranges = trimaran_arena_allocate(arena, total * sizeof *ranges);
    if (set->count)
        memcpy(ranges, set->ranges, set->count * sizeof *ranges);
    memcpy(ranges + set->count, more->ranges, more->count * sizeof *ranges);
    *set = (range_set){ranges, total};
    normalise(set);
}

/* Merge the sorted keys of more into set, each key once. */
static void add_keys(trimaran_arena *arena, key_set *set, const key_set *more)
{
    if (more->count == 0)
        return;
    trimaran_slice *keys =
        trimaran_arena_allocate(arena, (set->count + more->count) * sizeof *keys);
    size_t i = 0, j = 0, count = 0;
    while (i < set->count || j < more->count) {
        int order = i == set->count    ? 1
                    : j == more->count ? -1
                                       : compare_keys(&set->keys[i], &more->keys[j]);
        keys[count++] = order <= 0 ? set->keys[i] : more->keys[j];
        i += order <= 0;
        j += order >= 0;
    }
    *set = (key_set){keys, count};
}

static range_set own_deletes(const trimaran_request_op *ops, size_t count, trimaran_arena *arena)
{
    range_set set = {trimaran_arena_allocate(arena, count * sizeof(key_range)), 0};
    for (size_t i = 0; i < count; i++) {
        if (ops[i].kind != TRIMARAN_OP_DELETE)
            continue;
        const trimaran_delete_request *remove = &ops[i].remove;
        key_range range = {remove->key, remove->range_end, remove->range_end.size == 0};
        /* An end at or below the begin (also the literal "\0") holds no key. */
        if (range.point || trimaran_slice_compare(range.begin, range.end) < 0)
            set.ranges[set.count++] = range;
    }
    normalise(&set);
    return set;
}

static error_t check_overlap(const trimaran_request_op *ops, size_t count, trimaran_arena *arena,
                             key_set *puts, range_set *deletes);

static error_t check_nested(const trimaran_txn_request *txn, trimaran_arena *arena, key_set *puts,
                            range_set *deletes)
{
    key_set then_puts, else_puts;
    range_set then_deletes, else_deletes;
    error_t error =
        check_overlap(txn->success, txn->success_count, arena, &then_puts, &then_deletes);
    if (error == TRIMARAN_ERROR_NONE)
        error = check_overlap(txn->failure, txn->failure_count, arena, &else_puts, &else_deletes);
    if (error != TRIMARAN_ERROR_NONE)
        return error;
    add_keys(arena, &then_puts, &else_puts);
    for (size_t i = 0; i < then_puts.count; i++)
        if (contains_key(puts, then_puts.keys[i]) || contains_point(deletes, then_puts.keys[i]))
            return TRIMARAN_ERROR_DUPLICATE_KEY;
    add_keys(arena, puts, &then_puts);
    add_ranges(arena, deletes, &then_deletes);
    add_ranges(arena, deletes, &else_deletes);
    return TRIMARAN_ERROR_NONE;
}

static error_t check_overlap(const trimaran_request_op *ops, size_t count, trimaran_arena *arena,
                             key_set *puts, range_set *deletes)
{
    *puts = (key_set){0};
    *deletes = own_deletes(ops, count, arena);
    for (size_t i = 0; i < count; i++) {
        if (ops[i].kind != TRIMARAN_OP_TXN)
            continue;
        error_t error = check_nested(ops[i].txn, arena, puts, deletes);
        if (error != TRIMARAN_ERROR_NONE)
            return error;
    }
    key_set own = {trimaran_arena_allocate(arena, count * sizeof(trimaran_slice)), 0};
    for (size_t i = 0; i < count; i++)
        if (ops[i].kind == TRIMARAN_OP_PUT)
            own.keys[own.count++] = ops[i].put.key;
    if (own.count > 1)
        qsort(own.keys, own.count, sizeof *own.keys, compare_keys);
    for (size_t i = 0; i < own.count; i++) {
        bool twice = i > 0 && trimaran_slice_equal(own.keys[i - 1], own.keys[i]);
        if (twice || contains_key(puts, own.keys[i]) || contains_point(deletes, own.keys[i]))
            return TRIMARAN_ERROR_DUPLICATE_KEY;
    }
    add_keys(arena, puts, &own);
    return TRIMARAN_ERROR_NONE;
}

error_t trimaran_check_txn(const trimaran_txn_request *request, int64_t max_txn_ops,
                           trimaran_arena *arena)
{
    key_set puts;
    range_set deletes;
    error_t error = check_shape(request, max_txn_ops);
    if (error == TRIMARAN_ERROR_NONE)
        error = check_overlap(request->success, request->success_count, arena, &puts, &deletes);
    if (error == TRIMARAN_ERROR_NONE)
        error = check_overlap(request->failure, request->failure_count, arena, &puts, &deletes);
    return error;
}

static bool all_ranges(const trimaran_request_op *ops, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (ops[i].kind != TRIMARAN_OP_RANGE)
            return false;
    return true;
}

bool trimaran_txn_is_read_only(const trimaran_txn_request *txn)
{
    return all_ranges(txn->success, txn->success_count) &&
           all_ranges(txn->failure, txn->failure_count);
}

static bool all_serializable(const trimaran_request_op *ops, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (ops[i].kind != TRIMARAN_OP_RANGE || !ops[i].range.serializable)
            return false;
    return true;
}

bool trimaran_txn_is_serializable(const trimaran_txn_request *txn)
{
    return all_serializable(txn->success, txn->success_count) &&
           all_serializable(txn->failure, txn->failure_count);
}

static bool any_put(const trimaran_request_op *ops, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (ops[i].kind == TRIMARAN_OP_PUT ||
            (ops[i].kind == TRIMARAN_OP_TXN && trimaran_txn_has_put(ops[i].txn)))
            return true;
    return false;
}

bool trimaran_txn_has_put(const trimaran_txn_request *txn)
{
    return any_put(txn->success, txn->success_count) || any_put(txn->failure, txn->failure_count);
}
