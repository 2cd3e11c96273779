/* Ranges over the state at a revision: select, filter, sort, cut, encode. */
#include "mvcc_internal.h"

typedef struct item {
    const trimaran_key_record *record;
    const trimaran_version *version;
    trimaran_slice value; /* decoded only where the order is by value */
} item_t;

typedef struct selection {
    item_t *items;
    size_t count, capacity;
    int64_t total; /* live keys in the range, whatever the limit and the filters */
    trimaran_arena *arena;
} selection_t;

static void select_item(selection_t *selection, const trimaran_key_record *record,
                        const trimaran_version *version)
{
    if (selection->count == selection->capacity) {
        size_t capacity = selection->capacity ? selection->capacity * 2 : 16;
        item_t *items = trimaran_arena_allocate(selection->arena, capacity * sizeof *items);
        if (selection->count > 0)
            memcpy(items, selection->items, selection->count * sizeof *items);
        selection->items = items;
        selection->capacity = capacity;
    }
    selection->items[selection->count++] = (item_t){record, version, {0}};
}

static bool has_filter(const trimaran_range_request *request)
{
    return request->min_mod_revision != 0 || request->max_mod_revision != 0 ||
           request->min_create_revision != 0 || request->max_create_revision != 0;
}

static bool passes(const trimaran_range_request *request, const trimaran_version *version)
{
    return (request->max_mod_revision == 0 || version->main <= request->max_mod_revision) &&
           (request->min_mod_revision == 0 || version->main >= request->min_mod_revision) &&
           (request->max_create_revision == 0 || version->create <= request->max_create_revision) &&
           (request->min_create_revision == 0 || version->create >= request->min_create_revision);
}

/* Collect the live keys of the range. A limit is pushed down only where nothing has to see all of
 * them first; one key more than the limit tells that there are more. */
static void select_range(const trimaran_mvcc *mvcc, const trimaran_range_request *request,
                         int64_t revision, selection_t *selection)
{
    bool whole = request->sort_order != TRIMARAN_SORT_NONE || has_filter(request);
    size_t most = whole || request->limit <= 0 ? SIZE_MAX : (size_t)request->limit + 1;
    if (request->count_only)
        most = 0;
    if (request->range_end.size == 0) {
        trimaran_key_record *record;
        const trimaran_version *version =
            trimaran_find_live(mvcc, request->key, revision, &record);
        selection->total = version != NULL;
        if (version != NULL && most > 0 && passes(request, version))
            select_item(selection, record, version);
        return;
    }
    bool open = trimaran_slice_is_open_end(request->range_end);
    trimaran_keyindex_cursor cursor = trimaran_keyindex_seek(mvcc->index, request->key);
    const trimaran_key_record *record;
    while ((record = trimaran_keyindex_next(&cursor)) != NULL) {
        if (!open &&
            trimaran_slice_compare(trimaran_record_key(record), request->range_end) >= 0)
            break;
        const trimaran_version *version = trimaran_record_live(record, revision);
        if (version == NULL)
            continue;
        selection->total++;
        if (selection->count < most && passes(request, version))
            select_item(selection, record, version);
    }
}

static int compare_numbers(int64_t a, int64_t b)
{
    return a < b ? -1 : a > b;
}

static int compare_items(const item_t *a, const item_t *b, int32_t target)
{
    switch (target) {
    case TRIMARAN_SORT_VERSION: return compare_numbers(a->version->version, b->version->version);
    case TRIMARAN_SORT_CREATE: return compare_numbers(a->version->create, b->version->create);
    case TRIMARAN_SORT_MOD: return compare_numbers(a->version->main, b->version->main);
    case TRIMARAN_SORT_VALUE: return trimaran_slice_compare(a->value, b->value);
    default:
        return trimaran_slice_compare(trimaran_record_key(a->record),
                                      trimaran_record_key(b->record));
    }
}

/* A merge sort, so that equal items keep the order of their keys. */
static void sort_items(item_t *items, item_t *spare, size_t count, int32_t target, int sign)
{
    if (count < 2)
        return;
    size_t half = count / 2, i = 0, j = half, k = 0;
    sort_items(items, spare, half, target, sign);
    sort_items(items + half, spare, count - half, target, sign);
    memcpy(spare, items, count * sizeof *items);
    while (k < count) {
        bool left = j == count ||
                    (i < half && sign * compare_items(&spare[i], &spare[j], target) <= 0);
        items[k++] = left ? spare[i++] : spare[j++];
    }
}

static void sort_selection(trimaran_mvcc *mvcc, const trimaran_range_request *request,
                           selection_t *selection)
{
    int32_t order = request->sort_order, target = request->sort_target;
    if (order == TRIMARAN_SORT_NONE && target != TRIMARAN_SORT_KEY)
        order = TRIMARAN_SORT_ASCEND;
    bool sorted = target == TRIMARAN_SORT_KEY && order == TRIMARAN_SORT_ASCEND;
    if (order == TRIMARAN_SORT_NONE || sorted || selection->count < 2)
        return;
    for (size_t i = 0; target == TRIMARAN_SORT_VALUE && i < selection->count; i++) {
        const trimaran_version *version = selection->items[i].version;
        trimaran_key_value kv;
        trimaran_slice stored = trimaran_state_read(mvcc->state, version->main, version->sub);
        if (!trimaran_decode_key_value(stored, &kv))
            abort();
        selection->items[i].value = kv.value;
    }
    item_t *spare = trimaran_arena_allocate(&mvcc->arena, selection->count * sizeof *spare);
    sort_items(selection->items, spare, selection->count, target,
               order == TRIMARAN_SORT_ASCEND ? 1 : -1);
}

/* The stored bytes are the message itself, so they go out as they are. */
static void encode_item(trimaran_mvcc *mvcc, const item_t *item, bool keys_only,
                        trimaran_buffer *out)
{
    trimaran_slice stored =
        trimaran_state_read(mvcc->state, item->version->main, item->version->sub);
    if (!keys_only) {
        trimaran_proto_bytes(out, 2, stored);
        return;
    }
    trimaran_key_value kv;
    if (!trimaran_decode_key_value(stored, &kv))
        abort();
    kv.value = (trimaran_slice){0};
    trimaran_encode_key_value(out, 2, &kv);
}

void trimaran_scope_range(const trimaran_scope *scope, const trimaran_range_request *request,
                          trimaran_buffer *out)
{
    trimaran_mvcc *mvcc = scope->mvcc;
    int64_t current = scope->write ? trimaran_write_revision(scope->write) : mvcc->revision;
    int64_t revision = request->revision <= 0 ? current : request->revision;
    if (out == NULL)
        return;
    selection_t selection = {.arena = &mvcc->arena};
    select_range(mvcc, request, revision, &selection);
    sort_selection(mvcc, request, &selection);
    size_t count = selection.count;
    bool more = request->limit > 0 && (uint64_t)count > (uint64_t)request->limit;
    if (more)
        count = (size_t)request->limit;
    trimaran_scope_header(scope, current, out);
    for (size_t i = 0; i < count; i++)
        encode_item(mvcc, &selection.items[i], request->keys_only, out);
    trimaran_proto_number(out, 3, more);
    trimaran_proto_number(out, 4, (uint64_t)selection.total);
}

trimaran_error trimaran_apply_check_range(const trimaran_mvcc *mvcc,
                                          const trimaran_range_request *request)
{
    if (request->revision == 0)
        return TRIMARAN_ERROR_NONE;
    if (request->revision > mvcc->revision)
        return TRIMARAN_ERROR_FUTURE_REVISION;
    if (request->revision < mvcc->compact_revision)
        return TRIMARAN_ERROR_COMPACTED;
    return TRIMARAN_ERROR_NONE;
}

trimaran_error trimaran_mvcc_range(trimaran_mvcc *mvcc, const trimaran_range_request *request,
                                   trimaran_buffer *out)
{
    /* Outside a txn a negative revision means the current one, even after a compaction. */
    trimaran_error error =
        request->revision < 0 ? TRIMARAN_ERROR_NONE : trimaran_apply_check_range(mvcc, request);
    if (error != TRIMARAN_ERROR_NONE)
        return error;
    trimaran_scope scope = {.mvcc = mvcc};
    trimaran_scope_range(&scope, request, out);
    trimaran_arena_reset(&mvcc->arena);
    return TRIMARAN_ERROR_NONE;
}
