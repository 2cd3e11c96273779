/* The in-memory index of every key and its retained revisions.
 *
 * A hash table finds one key; a B+ tree keeps all keys in order for ranges. Each key has one
 * record that owns the list of its versions, oldest first; values live in the state store under
 * their revision.
 */
#ifndef TRIMARAN_KEYINDEX_H
#define TRIMARAN_KEYINDEX_H

#include "bytes.h"

/* One change of a key. A tombstone has version 0 and create revision 0. */
typedef struct trimaran_version {
    int64_t main;    /* revision of the request or txn that made it */
    int32_t sub;     /* its place among the changes of that revision, from 0 */
    int32_t tombstone;
    int64_t create;  /* revision that created the key last */
    int64_t version; /* number of changes since then, from 1 */
} trimaran_version;

typedef struct trimaran_key_record {
    uint64_t hash;
    uint32_t key_size;
    uint32_t count, capacity;
    uint32_t lease_slot; /* place in the lease's list of keys, where lease is not 0 */
    int64_t lease;       /* lease of the newest version, 0 for none */
    trimaran_version *versions;
    trimaran_version first; /* most keys change once or not at all: no second allocation then */
    uint8_t key[];
} trimaran_key_record;

typedef struct trimaran_keyindex trimaran_keyindex;

trimaran_keyindex *trimaran_keyindex_create(uint64_t hash_seed);
void trimaran_keyindex_destroy(trimaran_keyindex *index);

trimaran_key_record *trimaran_keyindex_find(const trimaran_keyindex *index, trimaran_slice key);
/* Find key or add it without versions. */
trimaran_key_record *trimaran_keyindex_add(trimaran_keyindex *index, trimaran_slice key);
void trimaran_keyindex_remove(trimaran_keyindex *index, trimaran_key_record *record);
size_t trimaran_keyindex_count(const trimaran_keyindex *index);

/* A place in key order. It is good until the index changes. */
typedef struct trimaran_keyindex_cursor {
    struct trimaran_keyindex_leaf *leaf;
    unsigned position;
} trimaran_keyindex_cursor;

/* Point at the first key >= key. */
trimaran_keyindex_cursor trimaran_keyindex_seek(const trimaran_keyindex *index, trimaran_slice key);
/* Return the record at the cursor and step past it, NULL at the end. */
trimaran_key_record *trimaran_keyindex_next(trimaran_keyindex_cursor *cursor);

static inline trimaran_slice trimaran_record_key(const trimaran_key_record *record)
{
    return trimaran_slice_of(record->key, record->key_size);
}

void trimaran_record_append(trimaran_key_record *record, const trimaran_version *version);

/* The newest version at or before main, NULL where there is none; a tombstone is returned too. */
const trimaran_version *trimaran_record_at(const trimaran_key_record *record, int64_t main);

/* The live version at or before main, NULL where the key does not exist then. */
static inline const trimaran_version *trimaran_record_live(const trimaran_key_record *record,
                                                           int64_t main)
{
    const trimaran_version *version = trimaran_record_at(record, main);
    return version != NULL && !version->tombstone ? version : NULL;
}

#endif
