/* Batches of applied changes; see state_batch.h. */
#include "state_batch.h"

void trimaran_batch_clear(trimaran_batch *batch)
{
    batch->count = batch->forgotten_count = batch->row_count = 0;
    batch->bytes = 0;
    batch->touched = false;
    trimaran_arena_reset(&batch->memory);
}

void trimaran_batch_free(trimaran_batch *batch)
{
    free(batch->changes);
    free(batch->forgotten);
    free(batch->rows);
    trimaran_arena_free(&batch->memory);
    *batch = (trimaran_batch){0};
}

static void *make_room(void *array, size_t count, size_t *capacity, size_t item)
{
    if (count < *capacity)
        return array;
    *capacity = *capacity ? *capacity * 2 : 64;
    return trimaran_reallocate(array, *capacity * item);
}

trimaran_change *trimaran_batch_add(trimaran_batch *batch, const trimaran_change *change)
{
    if (batch->count > 0) {
        const trimaran_change *last = &batch->changes[batch->count - 1];
        assert(last->main < change->main ||
               (last->main == change->main && last->sub < change->sub));
    }
    batch->changes = make_room(batch->changes, batch->count, &batch->capacity, sizeof *change);
    batch->changes[batch->count] = *change;
    batch->bytes += change->size + sizeof *change;
    batch->touched = true;
    return &batch->changes[batch->count++];
}

void trimaran_batch_forget(trimaran_batch *batch, const trimaran_change *change)
{
    batch->forgotten = make_room(batch->forgotten, batch->forgotten_count,
                                 &batch->forgotten_capacity, sizeof *change);
    batch->forgotten[batch->forgotten_count++] = *change;
    batch->bytes += sizeof *change;
    batch->touched = true;
}

static trimaran_slice copy(trimaran_batch *batch, trimaran_slice bytes)
{
    if (bytes.data == NULL)
        return bytes;
    uint8_t *memory = trimaran_arena_allocate(&batch->memory, bytes.size);
    memcpy(memory, bytes.data, bytes.size);
    return trimaran_slice_of(memory, bytes.size);
}

void trimaran_batch_set(trimaran_batch *batch, trimaran_slice key, trimaran_slice value)
{
    batch->rows = make_room(batch->rows, batch->row_count, &batch->row_capacity,
                            sizeof *batch->rows);
    batch->rows[batch->row_count++] = (trimaran_row){copy(batch, key), copy(batch, value)};
    batch->bytes += key.size + value.size + sizeof *batch->rows;
    batch->touched = true;
}

size_t trimaran_batch_place(const trimaran_batch *batch, int64_t from)
{
    size_t low = 0, high = batch->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (batch->changes[middle].main < from)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const trimaran_change *trimaran_batch_find(const trimaran_batch *batch, int64_t main, int32_t sub)
{
    if (batch->count == 0 || main < batch->changes[0].main)
        return NULL;
    /* Where every revision made one change, its place is known without a search. */
    size_t place = (size_t)(main - batch->changes[0].main);
    if (place >= batch->count || batch->changes[place].main != main)
        place = trimaran_batch_place(batch, main);
    while (place > 0 && batch->changes[place - 1].main == main)
        place--;
    for (; place < batch->count && batch->changes[place].main == main; place++)
        if (batch->changes[place].sub == sub)
            return &batch->changes[place];
    return NULL;
}
