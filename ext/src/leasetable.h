/* Leases that are granted, and the keys attached to each. Time is not known here: who may expire
 * when is decided outside and arrives as a revocation. */
#ifndef TRIMARAN_LEASETABLE_H
#define TRIMARAN_LEASETABLE_H

#include "keyindex.h"

typedef struct trimaran_lease {
    int64_t id, ttl_s;
    int64_t remaining_s; /* as the leader last had it written down; 0: all of ttl_s */
    trimaran_key_record **keys;
    uint32_t count, capacity;
} trimaran_lease;

typedef struct trimaran_leasetable {
    trimaran_lease **slots; /* open addressing by id */
    size_t mask, count;
} trimaran_leasetable;

void trimaran_leasetable_create(trimaran_leasetable *table);
void trimaran_leasetable_destroy(trimaran_leasetable *table);
trimaran_lease *trimaran_leasetable_find(const trimaran_leasetable *table, int64_t id);
/* id must be new. */
trimaran_lease *trimaran_leasetable_add(trimaran_leasetable *table, int64_t id, int64_t ttl_s);
/* The lease must have no keys left. */
void trimaran_leasetable_remove(trimaran_leasetable *table, trimaran_lease *lease);
/* Move the key to the lease of that id; 0, or a lease that is gone, detaches it. */
void trimaran_leasetable_attach(trimaran_leasetable *table, trimaran_key_record *record,
                                int64_t id);

#endif
