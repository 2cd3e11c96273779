/* Committed operations, one by one, and the state they leave on disk besides the keys. */
#include "mvcc_internal.h"

static void write_number(uint8_t *at, uint64_t number)
{
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)(number >> (56 - 8 * i));
}

/* Rows of the small table: "lease/" + id, "alarm/" + member + kind. */
static trimaran_slice row_key(uint8_t *at, const char *prefix, uint64_t id, int32_t kind)
{
    size_t size = strlen(prefix);
    memcpy(at, prefix, size);
    write_number(at + size, id);
    at[size + 8] = (uint8_t)kind;
    return trimaran_slice_of(at, size + 8 + (kind != 0));
}

/* Numbers of a small message by field, those above 7 skipped. */
static bool decode_numbers(trimaran_slice message, uint64_t numbers[8])
{
    trimaran_proto_reader reader = trimaran_proto_read(message);
    trimaran_proto_field field;
    int more;
    memset(numbers, 0, 8 * sizeof *numbers);
    while ((more = trimaran_proto_next(&reader, &field)) > 0)
        if (field.tag < 8)
            numbers[field.tag] = field.number;
    return more == 0;
}

static trimaran_error apply_put(trimaran_mvcc *mvcc, trimaran_slice request, trimaran_buffer *out)
{
    trimaran_put_request put;
    if (!trimaran_decode_put(request, &put))
        return TRIMARAN_ERROR_MALFORMED;
    if (trimaran_mvcc_has_alarm(mvcc, TRIMARAN_ALARM_NO_SPACE))
        return TRIMARAN_ERROR_NO_SPACE;
    /* etcd looks for the lease before it looks for the key. */
    if (put.lease != 0 && trimaran_leasetable_find(&mvcc->leases, put.lease) == NULL)
        return TRIMARAN_ERROR_LEASE_NOT_FOUND;
    trimaran_error error = trimaran_apply_check_put(mvcc, &put);
    if (error != TRIMARAN_ERROR_NONE)
        return error;
    trimaran_write write = trimaran_write_begin(mvcc);
    trimaran_scope scope = {mvcc, &write, false};
    trimaran_scope_put(&scope, &put, out);
    trimaran_write_end(&write);
    return TRIMARAN_ERROR_NONE;
}

static trimaran_error apply_delete(trimaran_mvcc *mvcc, trimaran_slice request,
                                   trimaran_buffer *out)
{
    trimaran_delete_request remove;
    if (!trimaran_decode_delete(request, &remove))
        return TRIMARAN_ERROR_MALFORMED;
    trimaran_write write = trimaran_write_begin(mvcc);
    trimaran_scope scope = {mvcc, &write, false};
    trimaran_scope_delete(&scope, &remove, out);
    trimaran_write_end(&write);
    return TRIMARAN_ERROR_NONE;
}

static trimaran_error apply_txn(trimaran_mvcc *mvcc, trimaran_slice request, trimaran_buffer *out)
{
    trimaran_txn_request txn;
    if (!trimaran_decode_txn(request, &mvcc->arena, &txn))
        return TRIMARAN_ERROR_MALFORMED;
    if (trimaran_mvcc_has_alarm(mvcc, TRIMARAN_ALARM_NO_SPACE) && trimaran_txn_has_put(&txn))
        return TRIMARAN_ERROR_NO_SPACE;
    trimaran_write write = trimaran_write_begin(mvcc);
    trimaran_scope scope = {mvcc, &write, false};
    trimaran_error error = trimaran_scope_txn(&scope, &txn, out);
    trimaran_write_end(&write);
    return error;
}

static trimaran_error apply_compact(trimaran_mvcc *mvcc, trimaran_slice request,
                                    trimaran_buffer *out)
{
    trimaran_compaction_request compaction;
    if (!trimaran_decode_compaction(request, &compaction))
        return TRIMARAN_ERROR_MALFORMED;
    trimaran_error error = trimaran_compact_begin(mvcc, compaction.revision);
    if (error == TRIMARAN_ERROR_NONE && out != NULL) {
        trimaran_header header = trimaran_mvcc_header(mvcc);
        trimaran_encode_header(out, &header);
    }
    return error;
}

static trimaran_error apply_lease_grant(trimaran_mvcc *mvcc, trimaran_slice request)
{
    uint64_t numbers[8];
    uint8_t key[32], ttl[8];
    if (!decode_numbers(request, numbers) || numbers[2] == 0)
        return TRIMARAN_ERROR_MALFORMED;
    if (trimaran_mvcc_has_alarm(mvcc, TRIMARAN_ALARM_NO_SPACE))
        return TRIMARAN_ERROR_NO_SPACE;
    if (trimaran_leasetable_find(&mvcc->leases, (int64_t)numbers[2]) != NULL)
        return TRIMARAN_ERROR_LEASE_EXISTS;
    trimaran_leasetable_add(&mvcc->leases, (int64_t)numbers[2], (int64_t)numbers[1]);
    write_number(ttl, numbers[1]);
    trimaran_state_set(mvcc->state, row_key(key, "lease/", numbers[2], 0),
                       trimaran_slice_of(ttl, sizeof ttl));
    return TRIMARAN_ERROR_NONE;
}

static int compare_records(const void *a, const void *b)
{
    return trimaran_slice_compare(
        trimaran_record_key(*(const trimaran_key_record *const *)a),
        trimaran_record_key(*(const trimaran_key_record *const *)b));
}

/* All keys of the lease go in one revision, in key order. */
static trimaran_error apply_lease_revoke(trimaran_mvcc *mvcc, trimaran_slice request)
{
    uint64_t numbers[8];
    uint8_t row[32];
    if (!decode_numbers(request, numbers))
        return TRIMARAN_ERROR_MALFORMED;
    trimaran_lease *lease = trimaran_leasetable_find(&mvcc->leases, (int64_t)numbers[1]);
    if (lease == NULL)
        return TRIMARAN_ERROR_LEASE_NOT_FOUND;
    size_t count = lease->count;
    trimaran_key_record **records =
        trimaran_arena_allocate(&mvcc->arena, count * sizeof *records);
    if (count > 0) {
        memcpy(records, lease->keys, count * sizeof *records);
        qsort(records, count, sizeof *records, compare_records);
    }
    trimaran_write write = trimaran_write_begin(mvcc);
    for (size_t i = 0; i < count; i++)
        trimaran_write_delete(&write, records[i]);
    trimaran_leasetable_remove(&mvcc->leases, lease);
    trimaran_state_set(mvcc->state, row_key(row, "lease/", numbers[1], 0), (trimaran_slice){0});
    trimaran_write_end(&write);
    return TRIMARAN_ERROR_NONE;
}

enum { ALARM_GET, ALARM_ACTIVATE, ALARM_DEACTIVATE };

/* An alarm of a kind that is not known stands for nothing, and nobody could name it. */
trimaran_error trimaran_apply_alarm(trimaran_mvcc *mvcc, trimaran_slice request)
{
    uint64_t numbers[8];
    uint8_t row[32];
    if (!decode_numbers(request, numbers))
        return TRIMARAN_ERROR_MALFORMED;
    trimaran_alarm alarm = {numbers[2], (int32_t)numbers[3]};
    size_t place = 0;
    while (place < mvcc->alarm_count && (mvcc->alarms[place].member_id != alarm.member_id ||
                                         mvcc->alarms[place].kind != alarm.kind))
        place++;
    trimaran_slice key = row_key(row, "alarm/", alarm.member_id, alarm.kind);
    if (numbers[1] == ALARM_ACTIVATE && place == mvcc->alarm_count &&
        (alarm.kind == TRIMARAN_ALARM_NO_SPACE || alarm.kind == TRIMARAN_ALARM_CORRUPT)) {
        mvcc->alarms =
            trimaran_reallocate(mvcc->alarms, (place + 1) * sizeof *mvcc->alarms);
        mvcc->alarms[mvcc->alarm_count++] = alarm;
        trimaran_state_set(mvcc->state, key, trimaran_slice_of("", 0));
    }
    if (numbers[1] == ALARM_DEACTIVATE && place < mvcc->alarm_count) {
        mvcc->alarms[place] = mvcc->alarms[--mvcc->alarm_count];
        trimaran_state_set(mvcc->state, key, (trimaran_slice){0});
    }
    return TRIMARAN_ERROR_NONE;
}

trimaran_error trimaran_mvcc_apply(trimaran_mvcc *mvcc, trimaran_op_kind kind,
                                   trimaran_slice request, trimaran_buffer *out)
{
    trimaran_error error = TRIMARAN_ERROR_MALFORMED;
    /* A corrupt cluster changes nothing more but its alarms, its members and what frees leases. */
    bool corrupt = trimaran_mvcc_has_alarm(mvcc, TRIMARAN_ALARM_CORRUPT);
    if (corrupt && kind != TRIMARAN_APPLY_ALARM && kind != TRIMARAN_APPLY_LEASE_REVOKE &&
        kind != TRIMARAN_APPLY_ROWS)
        return TRIMARAN_ERROR_CORRUPT;
    switch (kind) {
    case TRIMARAN_APPLY_PUT: error = apply_put(mvcc, request, out); break;
    case TRIMARAN_APPLY_DELETE: error = apply_delete(mvcc, request, out); break;
    case TRIMARAN_APPLY_TXN: error = apply_txn(mvcc, request, out); break;
    case TRIMARAN_APPLY_COMPACT: error = apply_compact(mvcc, request, out); break;
    case TRIMARAN_APPLY_LEASE_GRANT: error = apply_lease_grant(mvcc, request); break;
    case TRIMARAN_APPLY_LEASE_REVOKE: error = apply_lease_revoke(mvcc, request); break;
    case TRIMARAN_APPLY_ALARM: error = trimaran_apply_alarm(mvcc, request); break;
    case TRIMARAN_APPLY_ROWS: error = trimaran_apply_rows(mvcc, request); break;
    case TRIMARAN_APPLY_LEASE_CHECKPOINT:
        error = trimaran_apply_checkpoint(mvcc, request);
        break;
    case TRIMARAN_APPLY_LEASE_EXPIRE: abort(); /* the service makes it a revocation */
    }
    trimaran_arena_reset(&mvcc->arena);
    return error;
}
