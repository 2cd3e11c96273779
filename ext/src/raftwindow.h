/* The entries of the raft log that are in memory: those not yet durable or not yet applied. They
 * lie in one piece, so that a part of them can be handed out as an array. */
#ifndef TRIMARAN_RAFTWINDOW_H
#define TRIMARAN_RAFTWINDOW_H

#include "trimaran/raftlog.h"

typedef struct trimaran_raftwindow {
    trimaran_entry *entries;
    size_t start, count, capacity;
    uint64_t first; /* index of the first entry held; last index + 1 where none is */
    uint64_t bytes; /* of data in the entries */
} trimaran_raftwindow;

/* Begin empty, before the entry of index first. */
int trimaran_raftwindow_init(trimaran_raftwindow *window, uint64_t first);
void trimaran_raftwindow_free(trimaran_raftwindow *window);

static inline uint64_t trimaran_raftwindow_last(const trimaran_raftwindow *window)
{
    return window->first + window->count - 1;
}

/* The entry of that index, which is held, and those after it. */
const trimaran_entry *trimaran_raftwindow_at(const trimaran_raftwindow *window, uint64_t index);
/* Make room for count more; -ENOMEM. Moves the entries. */
int trimaran_raftwindow_reserve(trimaran_raftwindow *window, size_t count);
/* Add an entry with the next index, for which there is room; takes over its payload. */
void trimaran_raftwindow_push(trimaran_raftwindow *window, const trimaran_entry *entry);
/* Let go of the entries from index on; the window ends before it, also where it began after it. */
void trimaran_raftwindow_truncate(trimaran_raftwindow *window, uint64_t index);
/* Let go of the entries up to index. */
void trimaran_raftwindow_drop(trimaran_raftwindow *window, uint64_t index);

#endif
