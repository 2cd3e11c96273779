/* Leases and their keys; see leasetable.h. */
#include "leasetable.h"

void trimaran_leasetable_create(trimaran_leasetable *table)
{
    *table = (trimaran_leasetable){.mask = 63};
    table->slots = calloc(table->mask + 1, sizeof *table->slots);
    if (table->slots == NULL)
        abort();
}

void trimaran_leasetable_destroy(trimaran_leasetable *table)
{
    for (size_t i = 0; i <= table->mask; i++) {
        if (table->slots[i] == NULL)
            continue;
        free(table->slots[i]->keys);
        free(table->slots[i]);
    }
    free(table->slots);
}

static size_t home_of(const trimaran_leasetable *table, int64_t id)
{
    return ((uint64_t)id * 0x9e3779b97f4a7c15u >> 20) & table->mask;
}

static size_t slot_of(const trimaran_leasetable *table, int64_t id)
{
    size_t slot = home_of(table, id);
    while (table->slots[slot] != NULL && table->slots[slot]->id != id)
        slot = (slot + 1) & table->mask;
    return slot;
}

trimaran_lease *trimaran_leasetable_find(const trimaran_leasetable *table, int64_t id)
{
    return table->slots[slot_of(table, id)];
}

static void grow(trimaran_leasetable *table)
{
    trimaran_lease **old = table->slots;
    size_t old_mask = table->mask;
    table->mask = old_mask * 2 + 1;
    table->slots = calloc(table->mask + 1, sizeof *table->slots);
    if (table->slots == NULL)
        abort();
    for (size_t i = 0; i <= old_mask; i++)
        if (old[i] != NULL)
            table->slots[slot_of(table, old[i]->id)] = old[i];
    free(old);
}

trimaran_lease *trimaran_leasetable_add(trimaran_leasetable *table, int64_t id, int64_t ttl_s)
{
    if ((table->count + 1) * 2 > table->mask)
        grow(table);
    size_t slot = slot_of(table, id);
    assert(table->slots[slot] == NULL);
    trimaran_lease *lease = trimaran_allocate(sizeof *lease);
    *lease = (trimaran_lease){.id = id, .ttl_s = ttl_s};
    table->slots[slot] = lease;
    table->count++;
    return lease;
}

void trimaran_leasetable_remove(trimaran_leasetable *table, trimaran_lease *lease)
{
    assert(lease->count == 0);
    size_t hole = slot_of(table, lease->id);
    assert(table->slots[hole] == lease);
    table->slots[hole] = NULL;
    for (size_t slot = (hole + 1) & table->mask; table->slots[slot] != NULL;
         slot = (slot + 1) & table->mask) {
        size_t home = home_of(table, table->slots[slot]->id);
        if (((slot - home) & table->mask) >= ((slot - hole) & table->mask)) {
            table->slots[hole] = table->slots[slot];
            table->slots[slot] = NULL;
            hole = slot;
        }
    }
    table->count--;
    free(lease->keys);
    free(lease);
}

static void detach(trimaran_leasetable *table, trimaran_key_record *record)
{
    trimaran_lease *lease = trimaran_leasetable_find(table, record->lease);
    assert(lease != NULL && record->lease_slot < lease->count);
    assert(lease->keys[record->lease_slot] == record);
    trimaran_key_record *last = lease->keys[--lease->count];
    lease->keys[record->lease_slot] = last;
    last->lease_slot = record->lease_slot;
    record->lease = 0;
}

void trimaran_leasetable_attach(trimaran_leasetable *table, trimaran_key_record *record,
                                int64_t id)
{
    if (record->lease == id)
        return;
    if (record->lease != 0)
        detach(table, record);
    trimaran_lease *lease = id == 0 ? NULL : trimaran_leasetable_find(table, id);
    if (lease == NULL)
        return;
    if (lease->count == lease->capacity) {
        lease->capacity = lease->capacity ? lease->capacity * 2 : 4;
        lease->keys = trimaran_reallocate(lease->keys, lease->capacity * sizeof *lease->keys);
    }
    record->lease = id;
    record->lease_slot = lease->count;
    lease->keys[lease->count++] = record;
}
