#include "trimaran/watchindex.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "watchrange.h"

#define SLOTS_MIN 64u
#define SIZE_MAX_BYTES 0x7fffffffu
#define SLAB_WATCHES 511u /* with the slab's head, just under 16 KiB */

struct trimaran_watch {
    trimaran_watch *next; /* of the group; of the free list */
    trimaran_watch **link; /* what points to this one */
    trimaran_watch_group *group;
    void *watcher;
};

/* A watched key. */
struct key_group {
    trimaran_watch_group group;
    uint8_t bytes[];
};

/* Registrations are small and many, so they are cut from slabs, which live as long as the index. */
struct slab {
    struct slab *next;
    trimaran_watch watches[SLAB_WATCHES];
};

struct trimaran_watchindex {
    uint64_t seed, random;
    size_t count, bytes;
    /* Open addressing with linear probing; a hash of 0 is an empty slot. */
    uint32_t *hashes;
    struct key_group **groups;
    size_t slots, used;
    trimaran_watch_range *ranges;
    struct slab *slabs;
    trimaran_watch *free_watches;
    int matching;
};

static uint64_t mix(uint64_t a, uint64_t b)
{
    __uint128_t product = (__uint128_t)a * b;

    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* A seeded hash by folded multiplication; never 0. */
static uint32_t hash_key(uint64_t seed, const uint8_t *key, size_t size)
{
    uint64_t hash = mix(seed ^ 0x9e3779b97f4a7c15u, size ^ 0xd1b54a32d192ed03u), word;

    for (; size >= 8; size -= 8, key += 8) {
        memcpy(&word, key, 8);
        hash = mix(hash ^ word, 0x8bb84b93962eacc9u ^ seed);
    }
    word = 0;
    if (size > 0)
        memcpy(&word, key, size);
    hash = mix(hash ^ word, 0x2d358dccaa6c78a5u ^ seed);
    hash ^= hash >> 32;
    return (uint32_t)hash != 0 ? (uint32_t)hash : 1;
}

static uint32_t next_random(trimaran_watchindex *index)
{
    index->random += 0x9e3779b97f4a7c15u;
    return (uint32_t)mix(index->random, 0xd1b54a32d192ed03u ^ index->seed);
}

static int allocate_slots(trimaran_watchindex *index, size_t slots)
{
    uint32_t *hashes = calloc(slots, sizeof *hashes);
    struct key_group **groups = malloc(slots * sizeof *groups);

    if (hashes == NULL || groups == NULL) {
        free(hashes);
        free(groups);
        return -ENOMEM;
    }
    for (size_t i = 0; i < index->slots; i++) {
        if (index->hashes[i] == 0)
            continue;
        size_t slot = index->hashes[i] & (slots - 1);
        while (hashes[slot] != 0)
            slot = (slot + 1) & (slots - 1);
        hashes[slot] = index->hashes[i];
        groups[slot] = index->groups[i];
    }
    free(index->hashes);
    free(index->groups);
    index->bytes += slots * (sizeof *hashes + sizeof *groups);
    index->bytes -= index->slots * (sizeof *hashes + sizeof *groups);
    index->hashes = hashes;
    index->groups = groups;
    index->slots = slots;
    return 0;
}

int trimaran_watchindex_create(uint64_t seed, trimaran_watchindex **out)
{
    trimaran_watchindex *index = calloc(1, sizeof *index);

    if (index == NULL)
        return -ENOMEM;
    index->seed = seed;
    index->bytes = sizeof *index;
    if (allocate_slots(index, SLOTS_MIN) != 0) {
        free(index);
        return -ENOMEM;
    }
    *out = index;
    return 0;
}

void trimaran_watchindex_destroy(trimaran_watchindex *index)
{
    if (index == NULL)
        return;
    assert(!index->matching);
    for (size_t i = 0; i < index->slots; i++)
        if (index->hashes[i] != 0)
            free(index->groups[i]);
    for (struct slab *next, *slab = index->slabs; slab != NULL; slab = next) {
        next = slab->next;
        free(slab);
    }
    trimaran_watch_range_free_all(index->ranges);
    free(index->hashes);
    free(index->groups);
    free(index);
}

/* Return the slot of the key, or the empty one where it would be. */
static size_t find_slot(const trimaran_watchindex *index, uint32_t hash, const uint8_t *key,
                        size_t size)
{
    size_t slot = hash & (index->slots - 1);

    for (; index->hashes[slot] != 0; slot = (slot + 1) & (index->slots - 1)) {
        const struct key_group *group = index->groups[slot];
        if (index->hashes[slot] == hash && group->group.key_size == size
            && (size == 0 || memcmp(group->bytes, key, size) == 0))
            break;
    }
    return slot;
}

static trimaran_watch_group *put_key(trimaran_watchindex *index, const uint8_t *key, size_t size)
{
    uint32_t hash = hash_key(index->seed, key, size);
    size_t slot = find_slot(index, hash, key, size);
    struct key_group *group;

    if (index->hashes[slot] != 0)
        return &index->groups[slot]->group;
    if (4 * (index->used + 1) > 3 * index->slots) {
        if (allocate_slots(index, 2 * index->slots) != 0)
            return NULL;
        slot = find_slot(index, hash, key, size);
    }
    group = malloc(sizeof *group + size);
    if (group == NULL)
        return NULL;
    group->group = (trimaran_watch_group){.key_size = (uint32_t)size, .hash = hash};
    if (size > 0)
        memcpy(group->bytes, key, size);
    index->hashes[slot] = hash;
    index->groups[slot] = group;
    index->used++;
    index->bytes += sizeof *group + size;
    return &group->group;
}

/* Empty the slot of a key, moving back what its neighbours had to skip it for. */
static void remove_key(trimaran_watchindex *index, struct key_group *group)
{
    size_t mask = index->slots - 1;
    size_t hole = find_slot(index, group->group.hash, group->bytes, group->group.key_size);

    assert(index->groups[hole] == group);
    for (size_t next = (hole + 1) & mask; index->hashes[next] != 0; next = (next + 1) & mask) {
        size_t home = index->hashes[next] & mask;
        if (((next - home) & mask) < ((next - hole) & mask))
            continue;
        index->hashes[hole] = index->hashes[next];
        index->groups[hole] = index->groups[next];
        hole = next;
    }
    index->hashes[hole] = 0;
    index->used--;
    index->bytes -= sizeof *group + group->group.key_size;
    free(group);
    /* Without memory to shrink into, the table stays large. */
    if (index->slots > SLOTS_MIN && 8 * index->used < index->slots)
        (void)allocate_slots(index, index->slots / 2);
}

static trimaran_watch_group *put_range(trimaran_watchindex *index, const uint8_t *key,
                                       size_t key_size, const uint8_t *end, size_t end_size)
{
    int made;
    trimaran_watch_range *range = trimaran_watch_range_put(
        &index->ranges, key, key_size, end, end_size, next_random(index), &made);

    if (range == NULL)
        return NULL;
    if (made)
        index->bytes += trimaran_watch_range_bytes(range);
    return &range->group;
}

static trimaran_watch *new_watch(trimaran_watchindex *index)
{
    trimaran_watch *watch;

    if (index->free_watches == NULL) {
        struct slab *slab = malloc(sizeof *slab);
        if (slab == NULL)
            return NULL;
        slab->next = index->slabs;
        index->slabs = slab;
        index->bytes += sizeof *slab;
        for (size_t i = 0; i < SLAB_WATCHES; i++) {
            slab->watches[i].next = index->free_watches;
            index->free_watches = &slab->watches[i];
        }
    }
    watch = index->free_watches;
    index->free_watches = watch->next;
    return watch;
}

static void free_watch(trimaran_watchindex *index, trimaran_watch *watch)
{
    *watch = (trimaran_watch){.next = index->free_watches};
    index->free_watches = watch;
}

int trimaran_watchindex_insert(trimaran_watchindex *index, const uint8_t *key, size_t key_size,
                               const uint8_t *end, size_t end_size, void *watcher,
                               trimaran_watch **out)
{
    trimaran_watch_group *group;
    trimaran_watch *watch;

    assert(!index->matching);
    if (key_size > SIZE_MAX_BYTES || end_size > SIZE_MAX_BYTES)
        return -EINVAL;
    if (end_size > 0 && !(end_size == 1 && end[0] == 0)
        && trimaran_compare_bytes(key, key_size, end, end_size) >= 0)
        return -EINVAL;
    watch = new_watch(index);
    if (watch == NULL)
        return -ENOMEM;
    group = end_size == 0 ? put_key(index, key, key_size)
                          : put_range(index, key, key_size, end, end_size);
    if (group == NULL) {
        free_watch(index, watch);
        return -ENOMEM;
    }
    *watch = (trimaran_watch){
        .next = group->first, .link = &group->first, .group = group, .watcher = watcher};
    if (watch->next != NULL)
        watch->next->link = &watch->next;
    group->first = watch;
    index->count++;
    *out = watch;
    return 0;
}

void trimaran_watchindex_remove(trimaran_watchindex *index, trimaran_watch *watch)
{
    trimaran_watch_group *group = watch->group;

    assert(!index->matching);
    assert(group != NULL && *watch->link == watch);
    *watch->link = watch->next;
    if (watch->next != NULL)
        watch->next->link = watch->link;
    free_watch(index, watch);
    index->count--;
    if (group->first != NULL)
        return;
    if (group->is_range) {
        index->bytes -= trimaran_watch_range_bytes((trimaran_watch_range *)group);
        trimaran_watch_range_remove(&index->ranges, (trimaran_watch_range *)group);
    } else {
        remove_key(index, (struct key_group *)group);
    }
}

struct match {
    trimaran_watchindex_visitor visitor;
    void *context;
};

static int visit_group(void *context, const trimaran_watch_group *group)
{
    const struct match *match = context;

    for (const trimaran_watch *watch = group->first; watch != NULL; watch = watch->next) {
        int stop = match->visitor(match->context, watch->watcher);
        if (stop != 0)
            return stop;
    }
    return 0;
}

int trimaran_watchindex_match(trimaran_watchindex *index, const uint8_t *key, size_t key_size,
                              trimaran_watchindex_visitor visitor, void *context)
{
    struct match match = {visitor, context};
    int stop = 0;

    if (index->count == 0)
        return 0;
    index->matching++;
    if (index->used > 0) {
        size_t slot = find_slot(index, hash_key(index->seed, key, key_size), key, key_size);
        if (index->hashes[slot] != 0)
            stop = visit_group(&match, &index->groups[slot]->group);
    }
    if (stop == 0)
        stop = trimaran_watch_range_match(index->ranges, key, key_size, visit_group, &match);
    index->matching--;
    return stop;
}

size_t trimaran_watchindex_count(const trimaran_watchindex *index)
{
    return index->count;
}

size_t trimaran_watchindex_bytes(const trimaran_watchindex *index)
{
    return index->bytes;
}
