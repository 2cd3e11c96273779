/* Hashes of a snapshot. */
#include <errno.h>

#include "crc32c.h"
#include "mvcc.h"
#include "snapshot_internal.h"

/* A table of keys, which lie in the snapshot, each with one change. */
struct known {
    const uint8_t *key; /* NULL: a free slot */
    uint32_t key_size;
    int32_t sub;
    int64_t main;
    bool tombstone;
    bool superseded; /* by a change after the compact revision */
};

struct known_table {
    struct known *slots;
    size_t mask, count;
};

static size_t slot_of(const struct known_table *table, trimaran_slice key)
{
    size_t slot = trimaran_crc32c(0x5bd1e995, key.data, key.size) * 0x9e3779b97f4a7c15u >> 20;
    for (slot &= table->mask;; slot = (slot + 1) & table->mask) {
        const struct known *found = &table->slots[slot];
        if (found->key == NULL || (found->key_size == key.size &&
                                   memcmp(found->key, key.data, key.size) == 0))
            return slot;
    }
}

static int grow(struct known_table *table)
{
    struct known_table larger = {.mask = table->mask * 2 + 1, .count = table->count};
    if (table->slots == NULL)
        larger.mask = 1023;
    larger.slots = calloc(larger.mask + 1, sizeof *larger.slots);
    if (larger.slots == NULL)
        return -ENOMEM;
    for (size_t i = 0; table->slots != NULL && i <= table->mask; i++) {
        const struct known *old = &table->slots[i];
        if (old->key != NULL)
            larger.slots[slot_of(&larger, trimaran_slice_of(old->key, old->key_size))] = *old;
    }
    free(table->slots);
    *table = larger;
    return 0;
}

/* The slot of a key, with the key in it. */
static int find(struct known_table *table, trimaran_slice key, bool add, struct known **out)
{
    if (add && (table->slots == NULL || table->count * 3 > table->mask * 2)) {
        int error = grow(table);
        if (error != 0)
            return error;
    }
    *out = table->slots == NULL ? NULL : &table->slots[slot_of(table, key)];
    if (*out != NULL && (*out)->key == NULL) {
        if (!add) {
            *out = NULL;
            return 0;
        }
        **out = (struct known){.key = key.data, .key_size = (uint32_t)key.size};
        table->count++;
    }
    return 0;
}

typedef int (*change_visitor)(void *context, const trimaran_change *change);

/* Visit every change up to a revision. */
static int visit_changes(trimaran_snapshot *snapshot, int64_t revision, change_visitor visit,
                         void *context)
{
    MDB_cursor *cursor;
    MDB_val key, value;
    trimaran_change change;
    int error = trimaran_lmdb_error(
        mdb_cursor_open(snapshot->txn, snapshot->file->changes, &cursor));
    int code = 0;
    if (error != 0)
        return error;
    while (error == 0 && (code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0) {
        if (!trimaran_revision_read(&key, &value, &change))
            error = -EUCLEAN;
        else if (change.main > revision)
            break;
        else
            error = visit(context, &change);
    }
    mdb_cursor_close(cursor);
    return error != 0 || code == MDB_NOTFOUND ? error : trimaran_lmdb_error(code);
}

/* What etcd's hash needs to know of the changes at or before the compact revision. */
struct hashing {
    struct known_table table; /* newest change of each of their keys at the compact revision */
    int64_t compact_revision;
    bool any_lives; /* at the revision asked for */
    uint32_t hash;
};

static int note_change(void *context, const trimaran_change *change)
{
    struct hashing *hashing = context;
    bool compacted = change->main <= hashing->compact_revision;
    struct known *known;
    int error = find(&hashing->table, trimaran_change_key(change), compacted, &known);
    if (error != 0 || known == NULL)
        return error;
    if (compacted) {
        known->main = change->main;
        known->sub = change->sub;
        known->tombstone = change->tombstone;
    } else {
        known->superseded = true;
    }
    return 0;
}

/* At or before the compact revision counts what compaction keeps and what still lives at the
 * revision asked for; etcd forgets the second condition where nothing at all lives then. */
static bool counts(struct hashing *hashing, const trimaran_change *change)
{
    struct known *known;
    if (change->main > hashing->compact_revision)
        return true;
    find(&hashing->table, trimaran_change_key(change), false, &known);
    assert(known != NULL);
    return known->main == change->main && known->sub == change->sub && !known->tombstone &&
           !(known->superseded && hashing->any_lives);
}

static int hash_change(void *context, const trimaran_change *change)
{
    struct hashing *hashing = context;
    uint8_t key[18];
    if (!counts(hashing, change))
        return 0;
    trimaran_number_write(key, (uint64_t)change->main);
    key[8] = '_';
    trimaran_number_write(key + 9, (uint64_t)change->sub);
    key[17] = 't';
    hashing->hash = trimaran_crc32c(hashing->hash, key, change->tombstone ? 18 : 17);
    hashing->hash = trimaran_crc32c(hashing->hash, change->data, change->size);
    return 0;
}

/* Go back from a revision until a change is found that nothing undid. */
static int look_for_life(MDB_cursor *cursor, int64_t revision, struct known_table *dead,
                         bool *found)
{
    uint8_t revision_key[TRIMARAN_REVISION_SIZE_MAX];
    MDB_val key = {trimaran_revision_write(revision_key, revision + 1, 0, false), revision_key};
    MDB_val value;
    trimaran_change change;
    struct known *known;
    int error = 0, code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    code = mdb_cursor_get(cursor, &key, &value, code == MDB_NOTFOUND ? MDB_LAST : MDB_PREV);
    for (; code == 0 && error == 0; code = mdb_cursor_get(cursor, &key, &value, MDB_PREV)) {
        if (!trimaran_revision_read(&key, &value, &change))
            return -EUCLEAN;
        error = find(dead, trimaran_change_key(&change), change.tombstone, &known);
        if (error == 0 && known == NULL) {
            *found = true;
            return 0;
        }
    }
    return code == MDB_NOTFOUND ? error : trimaran_lmdb_error(code);
}

static int anything_lives(trimaran_snapshot *snapshot, int64_t revision, bool *found)
{
    struct known_table dead = {0};
    MDB_cursor *cursor;
    int error = trimaran_lmdb_error(
        mdb_cursor_open(snapshot->txn, snapshot->file->changes, &cursor));
    *found = false;
    if (error != 0)
        return error;
    error = look_for_life(cursor, revision, &dead, found);
    mdb_cursor_close(cursor);
    free(dead.slots);
    return error;
}

int trimaran_snapshot_hash_keys(trimaran_snapshot *snapshot, int64_t revision, uint32_t *hash)
{
    struct hashing hashing = {.compact_revision = snapshot->facts.compact_revision};
    int error = 0;
    assert(revision >= snapshot->facts.compact_revision);
    if (hashing.compact_revision >= 0) {
        error = anything_lives(snapshot, revision, &hashing.any_lives);
        if (error == 0)
            error = visit_changes(snapshot, revision, note_change, &hashing);
    }
    hashing.hash = trimaran_crc32c(0, "key", 3);
    if (error == 0)
        error = visit_changes(snapshot, revision, hash_change, &hashing);
    free(hashing.table.slots);
    *hash = hashing.hash;
    return error;
}

int trimaran_snapshot_hash(trimaran_snapshot *snapshot, uint32_t *hash)
{
    trimaran_walk walk = {0};
    uint32_t sum = 0;
    int error;
    while ((error = trimaran_walk_next(snapshot, &walk)) == 0 && walk.kind != 0) {
        const trimaran_record *record = &walk.record;
        if (walk.kind != TRIMARAN_RECORD_ROW && walk.kind != TRIMARAN_RECORD_CHANGE)
            continue;
        sum = trimaran_crc32c(sum, record->head, record->head_size);
        sum = trimaran_crc32c(sum, record->a.data, record->a.size);
        sum = trimaran_crc32c(sum, record->b.data, record->b.size);
    }
    trimaran_walk_end(&walk);
    *hash = sum;
    return error;
}
