#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "raftlog.h"

trimaran_entry *trimaran_pending_at(const trimaran_raftlog *log, uint64_t index)
{
    size_t offset = log->pending_start + (size_t)(index - log->pending_first);

    assert(index >= log->pending_first);
    return &log->pending[offset & (log->pending_capacity - 1)];
}

size_t trimaran_pending_count(const trimaran_raftlog *log)
{
    return (size_t)(log->last_index + 1 - log->pending_first);
}

int trimaran_pending_reserve(trimaran_raftlog *log, size_t count)
{
    size_t held = trimaran_pending_count(log), capacity = log->pending_capacity;
    trimaran_entry *grown;

    if (held + count <= capacity)
        return 0;
    while (capacity < held + count)
        capacity *= 2;
    grown = malloc(capacity * sizeof *grown);
    if (grown == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < held; i++)
        grown[i] = *trimaran_pending_at(log, log->pending_first + i);
    free(log->pending);
    log->pending = grown;
    log->pending_capacity = capacity;
    log->pending_start = 0;
    return 0;
}

void trimaran_pending_truncate(trimaran_raftlog *log, uint64_t index)
{
    assert(index > log->marker.index && index <= log->last_index + 1);
    log->last_index = index - 1;
    if (log->pending_first > index)
        log->pending_first = index;
    if (log->settling_last >= index)
        log->settling_last = index - 1;
}

void trimaran_pending_drop_front(trimaran_raftlog *log, size_t count)
{
    assert(count <= trimaran_pending_count(log));
    log->pending_start = (log->pending_start + count) & (log->pending_capacity - 1);
    log->pending_first += count;
}

void trimaran_pending_publish(trimaran_raftlog *log, const uint8_t *payload)
{
    struct trimaran_batch_head head;
    struct trimaran_batch_entry entry;
    const uint8_t *data;

    memcpy(&head, payload, sizeof head);
    if (head.has_hard_state)
        log->hard_state = head.hard_state;
    if (head.count == 0)
        return;
    trimaran_pending_truncate(log, head.first_index);
    data = payload + sizeof head + head.count * sizeof entry;
    for (uint32_t i = 0; i < head.count; i++) {
        memcpy(&entry, payload + sizeof head + i * sizeof entry, sizeof entry);
        log->last_index++;
        *trimaran_pending_at(log, log->last_index) = (trimaran_entry){
            .index = log->last_index,
            .term = entry.term,
            .type = entry.type,
            .size = entry.size,
            .data = data,
        };
        data += entry.size;
    }
}

void trimaran_batch_encode(uint8_t *payload, const trimaran_hard_state *hard_state,
                           const trimaran_entry *entries, size_t count)
{
    struct trimaran_batch_head head = {.count = (uint32_t)count};
    uint8_t *data = payload + sizeof head + count * sizeof(struct trimaran_batch_entry);

    if (hard_state != NULL) {
        head.has_hard_state = 1;
        head.hard_state = *hard_state;
    }
    if (count > 0)
        head.first_index = entries[0].index;
    memcpy(payload, &head, sizeof head);
    for (size_t i = 0; i < count; i++) {
        struct trimaran_batch_entry entry = {entries[i].term, entries[i].type, entries[i].size};
        memcpy(payload + sizeof head + i * sizeof entry, &entry, sizeof entry);
        if (entry.size > 0)
            memcpy(data, entries[i].data, entry.size);
        data += entry.size;
    }
}

int trimaran_batch_check(const uint8_t *payload, size_t size)
{
    struct trimaran_batch_head head;
    struct trimaran_batch_entry entry;
    uint64_t bytes = sizeof head;

    if (size < sizeof head)
        return -EUCLEAN;
    memcpy(&head, payload, sizeof head);
    bytes += (uint64_t)head.count * sizeof entry;
    if (bytes > size)
        return -EUCLEAN;
    for (uint32_t i = 0; i < head.count; i++) {
        memcpy(&entry, payload + sizeof head + i * sizeof entry, sizeof entry);
        bytes += entry.size;
    }
    return bytes == size ? 0 : -EUCLEAN;
}
