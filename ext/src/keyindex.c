/* Hash table and records of the key index; the ordered half is keytree.c. */
#include "keyindex.h"

#include "keytree.h"

struct trimaran_keyindex {
    uint64_t seed;
    trimaran_key_record **slots; /* open addressing, linear probing */
    size_t mask, count;
    trimaran_keytree tree;
};

/* Mixes eight bytes at a time by a 64x64 multiplication folded to 64 bits; seeded so that hostile
 * clients cannot choose keys that collide. */
static uint64_t hash_key(uint64_t seed, trimaran_slice key)
{
    uint64_t hash = seed ^ (key.size * 0x9e3779b97f4a7c15u);
    const uint8_t *at = key.data;
    size_t left = key.size;
    while (left > 0) {
        uint64_t word = 0;
        size_t take = left < 8 ? left : 8;
        memcpy(&word, at, take);
        unsigned __int128 product =
            (unsigned __int128)(hash ^ word) * 0xd6e8feb86659fd93u + 0x2545f4914f6cdd1du;
        hash = (uint64_t)product ^ (uint64_t)(product >> 64);
        at += take;
        left -= take;
    }
    return hash ^ (hash >> 29);
}

trimaran_keyindex *trimaran_keyindex_create(uint64_t hash_seed)
{
    trimaran_keyindex *index = trimaran_allocate(sizeof *index);
    *index = (trimaran_keyindex){.seed = hash_seed, .mask = 1023};
    index->slots = calloc(index->mask + 1, sizeof *index->slots);
    if (index->slots == NULL)
        abort();
    trimaran_keytree_create(&index->tree);
    return index;
}

static void free_record(trimaran_key_record *record)
{
    if (record->versions != &record->first)
        free(record->versions);
    free(record);
}

void trimaran_keyindex_destroy(trimaran_keyindex *index)
{
    for (size_t i = 0; i <= index->mask; i++)
        if (index->slots[i] != NULL)
            free_record(index->slots[i]);
    trimaran_keytree_destroy(&index->tree);
    free(index->slots);
    free(index);
}

size_t trimaran_keyindex_count(const trimaran_keyindex *index)
{
    return index->count;
}

static size_t find_slot(const trimaran_keyindex *index, trimaran_slice key, uint64_t hash)
{
    size_t slot = hash & index->mask;
    for (;; slot = (slot + 1) & index->mask) {
        const trimaran_key_record *record = index->slots[slot];
        if (record == NULL || (record->hash == hash &&
                               trimaran_slice_equal(trimaran_record_key(record), key)))
            return slot;
    }
}

trimaran_key_record *trimaran_keyindex_find(const trimaran_keyindex *index, trimaran_slice key)
{
    return index->slots[find_slot(index, key, hash_key(index->seed, key))];
}

static void grow(trimaran_keyindex *index)
{
    trimaran_key_record **old = index->slots;
    size_t old_mask = index->mask;
    index->mask = old_mask * 2 + 1;
    index->slots = calloc(index->mask + 1, sizeof *index->slots);
    if (index->slots == NULL)
        abort();
    for (size_t i = 0; i <= old_mask; i++) {
        if (old[i] == NULL)
            continue;
        size_t slot = old[i]->hash & index->mask;
        while (index->slots[slot] != NULL)
            slot = (slot + 1) & index->mask;
        index->slots[slot] = old[i];
    }
    free(old);
}

trimaran_key_record *trimaran_keyindex_add(trimaran_keyindex *index, trimaran_slice key)
{
    uint64_t hash = hash_key(index->seed, key);
    size_t slot = find_slot(index, key, hash);
    trimaran_key_record *record = index->slots[slot];
    if (record != NULL)
        return record;
    record = trimaran_allocate(sizeof *record + key.size);
    *record = (trimaran_key_record){.hash = hash, .key_size = (uint32_t)key.size, .capacity = 1};
    record->versions = &record->first;
    memcpy(record->key, key.data, key.size);
    index->slots[slot] = record;
    trimaran_keytree_insert(&index->tree, record);
    if (++index->count * 3 > index->mask * 2)
        grow(index);
    return record;
}

void trimaran_keyindex_remove(trimaran_keyindex *index, trimaran_key_record *record)
{
    size_t hole = find_slot(index, trimaran_record_key(record), record->hash);
    assert(index->slots[hole] == record);
    index->slots[hole] = NULL;
    /* Close the gap: whatever probed past the hole moves back into it. */
    for (size_t slot = (hole + 1) & index->mask; index->slots[slot] != NULL;
         slot = (slot + 1) & index->mask) {
        size_t home = index->slots[slot]->hash & index->mask;
        if (((slot - home) & index->mask) >= ((slot - hole) & index->mask)) {
            index->slots[hole] = index->slots[slot];
            index->slots[slot] = NULL;
            hole = slot;
        }
    }
    index->count--;
    trimaran_keytree_remove(&index->tree, record);
    free_record(record);
}

trimaran_keyindex_cursor trimaran_keyindex_seek(const trimaran_keyindex *index, trimaran_slice key)
{
    return trimaran_keytree_seek(&index->tree, key);
}

void trimaran_record_append(trimaran_key_record *record, const trimaran_version *version)
{
    if (record->count > 0) {
        const trimaran_version *last = &record->versions[record->count - 1];
        assert(last->main < version->main ||
               (last->main == version->main && last->sub < version->sub));
    }
    if (record->count == record->capacity) {
        uint32_t capacity = record->capacity * 2;
        bool inside = record->versions == &record->first;
        trimaran_version *versions =
            trimaran_reallocate(inside ? NULL : record->versions, capacity * sizeof *versions);
        if (inside)
            versions[0] = record->first;
        record->versions = versions;
        record->capacity = capacity;
    }
    record->versions[record->count++] = *version;
}

const trimaran_version *trimaran_record_at(const trimaran_key_record *record, int64_t main)
{
    uint32_t low = 0, high = record->count;
    if (high > 0 && record->versions[high - 1].main <= main)
        return &record->versions[high - 1];
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (record->versions[middle].main <= main)
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 ? &record->versions[low - 1] : NULL;
}
