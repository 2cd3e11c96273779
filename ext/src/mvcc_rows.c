/* Rows of the state beside keys, leases and alarms: the cluster's, and what proposals have
 * reached. */
#include "mvcc_internal.h"

#include <stdio.h>

const trimaran_rowtable *trimaran_mvcc_rows(const trimaran_mvcc *mvcc)
{
    return &mvcc->rows;
}

trimaran_origintable *trimaran_mvcc_origins(trimaran_mvcc *mvcc)
{
    return &mvcc->origins;
}

void trimaran_mvcc_set_row(trimaran_mvcc *mvcc, trimaran_slice key, trimaran_slice value)
{
    trimaran_state_set(mvcc->state, key, value);
    trimaran_rowtable_set(&mvcc->rows, key, value);
}

void trimaran_mvcc_set_rows(trimaran_mvcc *mvcc, trimaran_slice rows)
{
    trimaran_row_reader reader;
    trimaran_slice key, value;
    bool begun = trimaran_rows_begin(&reader, rows);
    assert(begun);
    while (trimaran_rows_next(&reader, &key, &value) > 0)
        trimaran_mvcc_set_row(mvcc, key, value);
}

bool trimaran_mvcc_seal(trimaran_mvcc *mvcc)
{
    trimaran_origintable_save(&mvcc->origins, mvcc->state);
    return trimaran_state_seal(mvcc->state);
}

trimaran_error trimaran_apply_rows(trimaran_mvcc *mvcc, trimaran_slice request)
{
    if (!trimaran_rows_check(request))
        return TRIMARAN_ERROR_MALFORMED;
    trimaran_mvcc_set_rows(mvcc, request);
    return TRIMARAN_ERROR_NONE;
}

static void write_number(uint8_t *at, uint64_t number)
{
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)(number >> (56 - 8 * i));
}

/* A lease that has gone meanwhile has nothing to be noted. */
static bool apply_one_checkpoint(trimaran_mvcc *mvcc, trimaran_slice message)
{
    trimaran_proto_reader reader = trimaran_proto_read(message);
    trimaran_proto_field field;
    uint64_t id = 0, remaining_s = 0;
    uint8_t key[14] = "lease/", value[16];
    int more;
    while ((more = trimaran_proto_next(&reader, &field)) > 0) {
        if (field.tag == 1)
            id = field.number;
        else if (field.tag == 2)
            remaining_s = field.number;
    }
    trimaran_lease *lease = trimaran_leasetable_find(&mvcc->leases, (int64_t)id);
    if (more == 0 && lease != NULL) {
        lease->remaining_s = (int64_t)remaining_s;
        write_number(key + 6, id);
        write_number(value, (uint64_t)lease->ttl_s);
        write_number(value + 8, remaining_s);
        trimaran_state_set(mvcc->state, trimaran_slice_of(key, sizeof key),
                           trimaran_slice_of(value, sizeof value));
    }
    return more == 0;
}

trimaran_error trimaran_apply_checkpoint(trimaran_mvcc *mvcc, trimaran_slice request)
{
    trimaran_proto_reader reader = trimaran_proto_read(request);
    trimaran_proto_field field;
    int more;
    while ((more = trimaran_proto_next(&reader, &field)) > 0)
        if (field.tag == 1 &&
            (field.type != TRIMARAN_PROTO_BYTES || !apply_one_checkpoint(mvcc, field.bytes)))
            return TRIMARAN_ERROR_MALFORMED;
    return more == 0 ? TRIMARAN_ERROR_NONE : TRIMARAN_ERROR_MALFORMED;
}

static void restore_row(void *context, trimaran_slice key, trimaran_slice value)
{
    trimaran_mvcc *mvcc = context;
    trimaran_rowtable_set(&mvcc->rows, key, value);
}

static void restore_origin(void *context, trimaran_slice key, trimaran_slice value)
{
    trimaran_mvcc *mvcc = context;
    if (trimaran_origintable_load(&mvcc->origins, key, value))
        return;
    fprintf(stderr, "trimaran: the state store is corrupt: a row of proposals is malformed; "
                    "restore it from a snapshot or remove the member's data directory\n");
    abort();
}

void trimaran_restore_rows(trimaran_mvcc *mvcc)
{
    static const char *const prefixes[] = {"member/", "removed/", "cluster/", "raft/"};
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++)
        trimaran_state_rows(mvcc->state, trimaran_slice_of(prefixes[i], strlen(prefixes[i])),
                            restore_row, mvcc);
    trimaran_state_rows(mvcc->state, trimaran_slice_of("origin/", 7), restore_origin, mvcc);
}
