/* Decoding of the hot messages; see codec.h. */
#include "codec.h"

typedef trimaran_proto_field field_t;

#define TRIMARAN_ERROR_STATUS(name, code, text) code,
#define TRIMARAN_ERROR_TEXT(name, code, text) text,

int trimaran_error_status(trimaran_error error)
{
    /* A message that cannot be parsed is INTERNAL in gRPC servers; a plain one here too. */
    static const int status[] = {0, TRIMARAN_ETCD_ERRORS(TRIMARAN_ERROR_STATUS) 13};
    assert(error >= 0 && error < TRIMARAN_ERROR_COUNT);
    return status[error];
}

const char *trimaran_error_text(trimaran_error error)
{
    static const char *const text[] = {"", TRIMARAN_ETCD_ERRORS(TRIMARAN_ERROR_TEXT)
                                       "grpc: error unmarshalling request"};
    assert(error >= 0 && error < TRIMARAN_ERROR_COUNT);
    return text[error];
}

/* A field of the wrong wire type makes the message malformed, as in generated parsers where the
 * field is known. */
static bool is_number(const field_t *field)
{
    return field->type == TRIMARAN_PROTO_VARINT;
}

static bool is_bytes(const field_t *field)
{
    return field->type == TRIMARAN_PROTO_BYTES;
}

/* No hot message has fields of a fixed width. */
static bool has_type(const field_t *field, bool bytes)
{
    return bytes ? is_bytes(field) : is_number(field);
}

bool trimaran_decode_put(trimaran_slice message, trimaran_put_request *out)
{
    trimaran_proto_reader reader = trimaran_proto_read(message);
    field_t field;
    int more;
    *out = (trimaran_put_request){0};
    while ((more = trimaran_proto_next(&reader, &field)) > 0) {
        if (field.tag <= 6 && !has_type(&field, field.tag <= 2))
            return false;
        switch (field.tag) {
        case 1: out->key = field.bytes; break;
        case 2: out->value = field.bytes; break;
        case 3: out->lease = (int64_t)field.number; break;
        case 4: out->prev_kv = field.number != 0; break;
        case 5: out->ignore_value = field.number != 0; break;
        case 6: out->ignore_lease = field.number != 0; break;
        }
    }
    return more == 0;
}

bool trimaran_decode_range(trimaran_slice message, trimaran_range_request *out)
{
    trimaran_proto_reader reader = trimaran_proto_read(message);
    field_t field;
    int more;
    *out = (trimaran_range_request){0};
    while ((more = trimaran_proto_next(&reader, &field)) > 0) {
        if (field.tag <= 13 && !has_type(&field, field.tag <= 2))
            return false;
        int64_t number = (int64_t)field.number;
        switch (field.tag) {
        case 1: out->key = field.bytes; break;
        case 2: out->range_end = field.bytes; break;
        case 3: out->limit = number; break;
        case 4: out->revision = number; break;
        case 5: out->sort_order = (int32_t)number; break;
        case 6: out->sort_target = (int32_t)number; break;
        case 7: out->serializable = number != 0; break;
        case 8: out->keys_only = number != 0; break;
        case 9: out->count_only = number != 0; break;
        case 10: out->min_mod_revision = number; break;
        case 11: out->max_mod_revision = number; break;
        case 12: out->min_create_revision = number; break;
        case 13: out->max_create_revision = number; break;
        }
    }
    return more == 0;
}

bool trimaran_decode_delete(trimaran_slice message, trimaran_delete_request *out)
{
    trimaran_proto_reader reader = trimaran_proto_read(message);
    field_t field;
    int more;
    *out = (trimaran_delete_request){0};
    while ((more = trimaran_proto_next(&reader, &field)) > 0) {
        if (field.tag <= 3 && !has_type(&field, field.tag <= 2))
            return false;
        switch (field.tag) {
        case 1: out->key = field.bytes; break;
        case 2: out->range_end = field.bytes; break;
        case 3: out->prev_kv = field.number != 0; break;
        }
    }
    return more == 0;
}

bool trimaran_decode_compaction(trimaran_slice message, trimaran_compaction_request *out)
{
    trimaran_proto_reader reader = trimaran_proto_read(message);
    field_t field;
    int more;
    *out = (trimaran_compaction_request){0};
    while ((more = trimaran_proto_next(&reader, &field)) > 0) {
        if (field.tag <= 2 && !is_number(&field))
            return false;
        if (field.tag == 1)
            out->revision = (int64_t)field.number;
        else if (field.tag == 2)
            out->physical = field.number != 0;
    }
    return more == 0;
}

static bool decode_compare(trimaran_slice message, trimaran_compare *out)
{
    trimaran_proto_reader reader = trimaran_proto_read(message);
    field_t field;
    int more;
    *out = (trimaran_compare){0};
    while ((more = trimaran_proto_next(&reader, &field)) > 0) {
        bool bytes = field.tag == 3 || field.tag == 7 || field.tag == 64;
        if ((field.tag <= 8 || field.tag == 64) && !has_type(&field, bytes))
            return false;
        switch (field.tag) {
        case 1: out->result = (int32_t)field.number; break;
        case 2: out->target = (int32_t)field.number; break;
        case 3: out->key = field.bytes; break;
        case 4: case 5: case 6: case 8:
            out->number = (int64_t)field.number;
            out->union_field = (int32_t)field.tag;
            break;
        case 7:
            out->value = field.bytes;
            out->union_field = 7;
            break;
        case 64: out->range_end = field.bytes; break;
        }
    }
    return more == 0;
}

static bool decode_request_op(trimaran_slice message, trimaran_arena *arena, int depth,
                              trimaran_request_op *out);

/* Hostile nesting is cut where no honest request goes: the limits on operations allow no deeper
 * tree than max-txn-ops levels anyway. What is cut counts as more operations than any limit. */
enum { TXN_DEPTH_MAX = 128 };

typedef struct txn_counts {
    size_t compares, success, failure;
} txn_counts;

static bool count_txn_fields(trimaran_slice message, txn_counts *counts)
{
    trimaran_proto_reader reader = trimaran_proto_read(message);
    field_t field;
    int more;
    *counts = (txn_counts){0};
    while ((more = trimaran_proto_next(&reader, &field)) > 0) {
        if (field.tag <= 3 && !is_bytes(&field))
            return false;
        counts->compares += field.tag == 1;
        counts->success += field.tag == 2;
        counts->failure += field.tag == 3;
    }
    return more == 0;
}

static bool decode_txn(trimaran_slice message, trimaran_arena *arena, int depth,
                       trimaran_txn_request *out)
{
    txn_counts counts;
    if (depth > TXN_DEPTH_MAX) {
        *out = (trimaran_txn_request){.compare_count = INT64_MAX};
        return true;
    }
    if (!count_txn_fields(message, &counts))
        return false;
    *out = (trimaran_txn_request){0};
    out->compares = trimaran_arena_allocate(arena, counts.compares * sizeof *out->compares);
    out->success = trimaran_arena_allocate(arena, counts.success * sizeof *out->success);
    out->failure = trimaran_arena_allocate(arena, counts.failure * sizeof *out->failure);
    trimaran_proto_reader reader = trimaran_proto_read(message);
    field_t field;
    while (trimaran_proto_next(&reader, &field) > 0) {
        bool good = true;
        if (field.tag == 1)
            good = decode_compare(field.bytes, &out->compares[out->compare_count++]);
        else if (field.tag == 2)
            good = decode_request_op(field.bytes, arena, depth,
                                     &out->success[out->success_count++]);
        else if (field.tag == 3)
            good = decode_request_op(field.bytes, arena, depth,
                                     &out->failure[out->failure_count++]);
        if (!good)
            return false;
    }
    return true;
}

static bool decode_request_op(trimaran_slice message, trimaran_arena *arena, int depth,
                              trimaran_request_op *out)
{
    trimaran_proto_reader reader = trimaran_proto_read(message);
    field_t field;
    int more;
    *out = (trimaran_request_op){0};
    while ((more = trimaran_proto_next(&reader, &field)) > 0) {
        bool good = true;
        if (field.tag > TRIMARAN_OP_TXN)
            continue;
        if (!is_bytes(&field))
            return false;
        out->kind = (int32_t)field.tag;
        switch (field.tag) {
        case TRIMARAN_OP_RANGE: good = trimaran_decode_range(field.bytes, &out->range); break;
        case TRIMARAN_OP_PUT: good = trimaran_decode_put(field.bytes, &out->put); break;
        case TRIMARAN_OP_DELETE: good = trimaran_decode_delete(field.bytes, &out->remove); break;
        case TRIMARAN_OP_TXN:
            out->txn = trimaran_arena_allocate(arena, sizeof *out->txn);
            good = decode_txn(field.bytes, arena, depth + 1, out->txn);
            break;
        }
        if (!good)
            return false;
    }
    return more == 0;
}

bool trimaran_decode_txn(trimaran_slice message, trimaran_arena *arena, trimaran_txn_request *out)
{
    return decode_txn(message, arena, 0, out);
}

static bool decode_filters(const field_t *field, trimaran_watch_create *out)
{
    /* Enumerations that repeat come packed or one by one. */
    trimaran_proto_reader packed = trimaran_proto_read(field->bytes);
    uint64_t filter = field->number;
    if (is_number(field)) {
        out->no_put |= filter == 0;
        out->no_delete |= filter == 1;
        return true;
    }
    while (packed.cursor != packed.end) {
        if (!trimaran_proto_varint(&packed, &filter))
            return false;
        out->no_put |= filter == 0;
        out->no_delete |= filter == 1;
    }
    return true;
}

static bool decode_watch_create(trimaran_slice message, trimaran_watch_create *out)
{
    trimaran_proto_reader reader = trimaran_proto_read(message);
    field_t field;
    int more;
    *out = (trimaran_watch_create){0};
    while ((more = trimaran_proto_next(&reader, &field)) > 0) {
        if (field.tag <= 8 && field.tag != 5 && !has_type(&field, field.tag <= 2))
            return false;
        switch (field.tag) {
        case 1: out->key = field.bytes; break;
        case 2: out->range_end = field.bytes; break;
        case 3: out->start_revision = (int64_t)field.number; break;
        case 4: out->progress_notify = field.number != 0; break;
        case 5:
            if (!decode_filters(&field, out))
                return false;
            break;
        case 6: out->prev_kv = field.number != 0; break;
        case 7: out->watch_id = (int64_t)field.number; break;
        case 8: out->fragment = field.number != 0; break;
        }
    }
    return more == 0;
}

bool trimaran_decode_watch(trimaran_slice message, trimaran_watch_request *out)
{
    trimaran_proto_reader reader = trimaran_proto_read(message);
    field_t field, inner;
    int more;
    *out = (trimaran_watch_request){0};
    while ((more = trimaran_proto_next(&reader, &field)) > 0) {
        if (field.tag > TRIMARAN_WATCH_PROGRESS)
            continue;
        if (!is_bytes(&field))
            return false;
        out->kind = (int32_t)field.tag;
        if (field.tag == TRIMARAN_WATCH_CREATE && !decode_watch_create(field.bytes, &out->create))
            return false;
        if (field.tag == TRIMARAN_WATCH_CANCEL) {
            trimaran_proto_reader cancel = trimaran_proto_read(field.bytes);
            out->cancel_id = 0;
            while ((more = trimaran_proto_next(&cancel, &inner)) > 0)
                if (inner.tag == 1)
                    out->cancel_id = (int64_t)inner.number;
            if (more < 0)
                return false;
        }
    }
    return more == 0;
}

bool trimaran_decode_key_value(trimaran_slice message, trimaran_key_value *out)
{
    trimaran_proto_reader reader = trimaran_proto_read(message);
    field_t field;
    int more;
    *out = (trimaran_key_value){0};
    while ((more = trimaran_proto_next(&reader, &field)) > 0) {
        switch (field.tag) {
        case 1: out->key = field.bytes; break;
        case 2: out->create_revision = (int64_t)field.number; break;
        case 3: out->mod_revision = (int64_t)field.number; break;
        case 4: out->version = (int64_t)field.number; break;
        case 5: out->value = field.bytes; break;
        case 6: out->lease = (int64_t)field.number; break;
        }
    }
    return more == 0;
}

static size_t number_size(int64_t value)
{
    return value == 0 ? 0 : 1 + trimaran_proto_varint_size((uint64_t)value);
}

static size_t bytes_size(trimaran_slice value)
{
    return value.size == 0 ? 0 : 1 + trimaran_proto_varint_size(value.size) + value.size;
}

size_t trimaran_key_value_size(const trimaran_key_value *kv)
{
    return bytes_size(kv->key) + number_size(kv->create_revision) + number_size(kv->mod_revision) +
           number_size(kv->version) + bytes_size(kv->value) + number_size(kv->lease);
}

uint8_t *trimaran_put_key_value(uint8_t *at, const trimaran_key_value *kv)
{
    at = trimaran_proto_put_bytes(at, 1, kv->key);
    at = trimaran_proto_put_number(at, 2, (uint64_t)kv->create_revision);
    at = trimaran_proto_put_number(at, 3, (uint64_t)kv->mod_revision);
    at = trimaran_proto_put_number(at, 4, (uint64_t)kv->version);
    at = trimaran_proto_put_bytes(at, 5, kv->value);
    return trimaran_proto_put_number(at, 6, (uint64_t)kv->lease);
}

void trimaran_encode_key_value(trimaran_buffer *out, unsigned tag, const trimaran_key_value *kv)
{
    size_t size = trimaran_key_value_size(kv);
    uint8_t *at = trimaran_buffer_reserve(out, size + 16);
    at = trimaran_proto_put_key(at, tag, TRIMARAN_PROTO_BYTES);
    at = trimaran_proto_put_varint(at, size);
    at = trimaran_put_key_value(at, kv);
    out->size = (size_t)(at - out->data);
}

void trimaran_encode_header(trimaran_buffer *out, const trimaran_header *header)
{
    size_t start = trimaran_proto_begin(out, 1);
    uint8_t *at = trimaran_buffer_reserve(out, 64);
    at = trimaran_proto_put_number(at, 1, header->cluster_id);
    at = trimaran_proto_put_number(at, 2, header->member_id);
    at = trimaran_proto_put_number(at, 3, (uint64_t)header->revision);
    at = trimaran_proto_put_number(at, 4, header->raft_term);
    out->size = (size_t)(at - out->data);
    trimaran_proto_end(out, start);
}
