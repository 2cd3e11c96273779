/* Rebuilding the index, the leases and the alarms from what the state store holds. */
#include "mvcc_internal.h"

#include <stdio.h>

static _Noreturn void corrupt(const char *what, int64_t revision)
{
    fprintf(stderr, "trimaran: the state store is corrupt: %s at revision %lld; restore it from a "
                    "snapshot or remove the member's data directory\n",
            what, (long long)revision);
    abort();
}

static bool restore_change(void *context, const trimaran_change *change)
{
    trimaran_mvcc *mvcc = context;
    trimaran_key_value kv;
    if (!trimaran_decode_key_value(trimaran_slice_of(change->data, change->size), &kv) ||
        kv.key.size == 0)
        corrupt("a change cannot be parsed", change->main);
    if (!change->tombstone && kv.mod_revision != change->main)
        corrupt("a key stands under another revision than its own", change->main);
    trimaran_key_record *record = trimaran_keyindex_add(mvcc->index, kv.key);
    trimaran_version version = {.main = change->main, .sub = change->sub,
                                .tombstone = change->tombstone,
                                .create = kv.create_revision, .version = kv.version};
    trimaran_record_append(record, &version);
    trimaran_leasetable_attach(&mvcc->leases, record, change->tombstone ? 0 : kv.lease);
    if (change->main > mvcc->revision)
        mvcc->revision = change->main;
    return true;
}

static uint64_t read_number(const uint8_t *at)
{
    uint64_t number = 0;
    for (int i = 0; i < 8; i++)
        number = number << 8 | at[i];
    return number;
}

static void restore_lease(void *context, trimaran_slice key, trimaran_slice value)
{
    trimaran_mvcc *mvcc = context;
    if (key.size != 14 || (value.size != 8 && value.size != 16))
        corrupt("a lease row has a wrong size", mvcc->revision);
    trimaran_lease *lease = trimaran_leasetable_add(
        &mvcc->leases, (int64_t)read_number(key.data + 6), (int64_t)read_number(value.data));
    if (value.size == 16)
        lease->remaining_s = (int64_t)read_number(value.data + 8);
}

static void restore_alarm(void *context, trimaran_slice key, trimaran_slice value)
{
    trimaran_mvcc *mvcc = context;
    (void)value;
    if (key.size != 15)
        corrupt("an alarm row has a wrong size", mvcc->revision);
    mvcc->alarms = trimaran_reallocate(mvcc->alarms,
                                       (mvcc->alarm_count + 1) * sizeof *mvcc->alarms);
    mvcc->alarms[mvcc->alarm_count++] =
        (trimaran_alarm){read_number(key.data + 6), (int32_t)key.data[14]};
}

/* A cluster restored from a snapshot may go on at a higher revision, so that what clients remember
 * of the lost one is not mistaken for this one's. */
static void restore_base(void *context, trimaran_slice key, trimaran_slice value)
{
    trimaran_mvcc *mvcc = context;
    (void)key;
    if (value.size != 8)
        corrupt("the row of the base revision has a wrong size", mvcc->revision);
    int64_t base = (int64_t)read_number(value.data);
    if (base > mvcc->revision)
        mvcc->revision = base;
}

void trimaran_restore(trimaran_mvcc *mvcc)
{
    trimaran_state_rows(mvcc->state, trimaran_slice_of("revision/base", 13), restore_base, mvcc);
    trimaran_state_rows(mvcc->state, trimaran_slice_of("lease/", 6), restore_lease, mvcc);
    trimaran_state_rows(mvcc->state, trimaran_slice_of("alarm/", 6), restore_alarm, mvcc);
    trimaran_restore_rows(mvcc);
    trimaran_compact_restore(mvcc);
    if (mvcc->compact_revision > mvcc->revision)
        mvcc->revision = mvcc->compact_revision;
    trimaran_state_scan(mvcc->state, 0, restore_change, mvcc);
}
