#include "raftwindow.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CAPACITY_MIN 64u

int trimaran_raftwindow_init(trimaran_raftwindow *window, uint64_t first)
{
    *window = (trimaran_raftwindow){.first = first, .capacity = CAPACITY_MIN};
    window->entries = malloc(window->capacity * sizeof *window->entries);
    return window->entries == NULL ? -ENOMEM : 0;
}

void trimaran_raftwindow_free(trimaran_raftwindow *window)
{
    for (size_t i = 0; i < window->count; i++)
        trimaran_payload_release(window->entries[window->start + i].payload);
    free(window->entries);
    window->entries = NULL;
    window->count = 0;
}

const trimaran_entry *trimaran_raftwindow_at(const trimaran_raftwindow *window, uint64_t index)
{
    assert(index >= window->first);
    assert(index - window->first < window->count);
    return &window->entries[window->start + (size_t)(index - window->first)];
}

int trimaran_raftwindow_reserve(trimaran_raftwindow *window, size_t count)
{
    size_t capacity = window->capacity;
    trimaran_entry *grown;

    if (window->start + window->count + count <= capacity)
        return 0;
    /* Moved at most once for each half of the capacity that was dropped. */
    if (window->start >= capacity / 2 && window->count + count <= capacity) {
        memmove(window->entries, window->entries + window->start,
                window->count * sizeof *window->entries);
        window->start = 0;
        return 0;
    }
    while (window->count + count > capacity / 2)
        capacity *= 2;
    grown = malloc(capacity * sizeof *grown);
    if (grown == NULL)
        return -ENOMEM;
    memcpy(grown, window->entries + window->start, window->count * sizeof *grown);
    free(window->entries);
    window->entries = grown;
    window->start = 0;
    window->capacity = capacity;
    return 0;
}

void trimaran_raftwindow_push(trimaran_raftwindow *window, const trimaran_entry *entry)
{
    assert(entry->index == window->first + window->count);
    assert(window->start + window->count < window->capacity);
    window->entries[window->start + window->count] = *entry;
    window->count++;
    window->bytes += entry->size;
}

void trimaran_raftwindow_truncate(trimaran_raftwindow *window, uint64_t index)
{
    while (window->count > 0 && window->first + window->count > index) {
        const trimaran_entry *last = &window->entries[window->start + --window->count];
        window->bytes -= last->size;
        trimaran_payload_release(last->payload);
    }
    if (window->count == 0)
        window->start = 0;
    if (window->first > index)
        window->first = index;
}

void trimaran_raftwindow_drop(trimaran_raftwindow *window, uint64_t index)
{
    while (window->count > 0 && window->first <= index) {
        window->bytes -= window->entries[window->start].size;
        trimaran_payload_release(window->entries[window->start].payload);
        window->start++;
        window->count--;
        window->first++;
    }
    if (window->count == 0)
        window->start = 0;
}
