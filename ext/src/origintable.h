/* What each member's proposals have reached, as part of the replicated state.
 *
 * A member numbers its batches from 1 in each incarnation, that is, each time it starts. A batch
 * whose number is not greater than the last one applied is skipped on every member alike, so that
 * it may be sent, lost and sent again, and still counts once.
 */
#ifndef TRIMARAN_ORIGINTABLE_H
#define TRIMARAN_ORIGINTABLE_H

#include "state.h"

typedef struct trimaran_origin {
    uint64_t id, incarnation, sequence;
    bool dirty; /* its row is older than this */
} trimaran_origin;

/* Never shrinks: the batch of a member that was removed may still be on its way. */
typedef struct trimaran_origintable {
    trimaran_origin *origins;
    size_t count, capacity;
} trimaran_origintable;

void trimaran_origintable_free(trimaran_origintable *table);
/* Where (incarnation, sequence) is the greatest of that member so far, take note of it and return
 * true; otherwise the batch must be skipped. */
bool trimaran_origintable_advance(trimaran_origintable *table, uint64_t id, uint64_t incarnation,
                                  uint64_t sequence);
/* The entry of that member, NULL where it never proposed. */
const trimaran_origin *trimaran_origintable_find(const trimaran_origintable *table, uint64_t id);

/* Rows are "origin/" with 16 hexadecimal digits; load wants one of them as stored and returns false
 * where it is none. */
bool trimaran_origintable_load(trimaran_origintable *table, trimaran_slice key,
                               trimaran_slice value);
/* Set the rows of those that have moved on; to be called before a batch of the state is sealed. */
void trimaran_origintable_save(trimaran_origintable *table, trimaran_state *state);

#endif
