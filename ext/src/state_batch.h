/* A batch of changes between the loop, which fills it, and the state thread, which commits it. */
#ifndef TRIMARAN_STATE_BATCH_H
#define TRIMARAN_STATE_BATCH_H

#include "state.h"

typedef struct trimaran_row {
    trimaran_slice key, value; /* value.data NULL removes the row */
} trimaran_row;

typedef struct trimaran_batch {
    trimaran_change *changes; /* in order of revision */
    size_t count, capacity;
    trimaran_change *forgotten;
    size_t forgotten_count, forgotten_capacity;
    trimaran_row *rows;
    size_t row_count, row_capacity;
    trimaran_arena memory;
    size_t bytes;
    uint64_t applied_index, applied_term;
    bool touched; /* the applied index moved or something was added */
} trimaran_batch;

void trimaran_batch_clear(trimaran_batch *batch);
void trimaran_batch_free(trimaran_batch *batch);
trimaran_change *trimaran_batch_add(trimaran_batch *batch, const trimaran_change *change);
void trimaran_batch_forget(trimaran_batch *batch, const trimaran_change *change);
void trimaran_batch_set(trimaran_batch *batch, trimaran_slice key, trimaran_slice value);
/* The change of that revision, NULL where the batch has none. */
const trimaran_change *trimaran_batch_find(const trimaran_batch *batch, int64_t main, int32_t sub);
/* The place of the first change with main revision >= from. */
size_t trimaran_batch_place(const trimaran_batch *batch, int64_t from);

#endif
