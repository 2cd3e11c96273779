/* The key index and the lease table against arrays that are searched from end to end. Compiled with
 * sanitizers.
 *
 * Usage: store_index SEED ROUNDS */
#include <stdio.h>

#include "keyindex.h"
#include "leasetable.h"

enum { KEYS = 9000, LEASES = 40 };

static uint64_t random_state;

static uint32_t draw(uint32_t below)
{
    /* splitmix64 */
    uint64_t value = random_state += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((value ^ value >> 31) % below);
}

/* The model: all keys that may be, in order, and what each one has. */
typedef struct row {
    trimaran_slice key;
    trimaran_key_record *record; /* NULL where the index does not hold it */
    int64_t lease;
} row_t;

static row_t rows[KEYS];
static size_t row_count;
static trimaran_keyindex *index_under_test;
static trimaran_leasetable leases;
static bool granted[LEASES];

static int compare_rows(const void *a, const void *b)
{
    return trimaran_slice_compare(((const row_t *)a)->key, ((const row_t *)b)->key);
}

/* Long shared prefixes, keys that are prefixes of others, single bytes, and the empty key. */
static void make_keys(void)
{
    for (size_t i = 0; i < KEYS; i++) {
        uint8_t bytes[64];
        size_t size = draw(4) == 0 ? draw(3) : 24 + draw(6);
        memset(bytes, 'p', sizeof bytes);
        for (size_t at = size < 4 ? 0 : size - 4; at < size; at++)
            bytes[at] = (uint8_t)(draw(2) ? draw(256) : draw(2) * 255);
        uint8_t *copy = trimaran_allocate(size);
        memcpy(copy, bytes, size);
        rows[i].key = trimaran_slice_of(copy, size);
    }
    qsort(rows, KEYS, sizeof *rows, compare_rows);
    for (size_t i = 0; i < KEYS; i++) {
        if (row_count > 0 && trimaran_slice_equal(rows[row_count - 1].key, rows[i].key))
            free((void *)rows[i].key.data);
        else
            rows[row_count++].key = rows[i].key;
    }
}

static void add(row_t *row)
{
    trimaran_key_record *record = trimaran_keyindex_add(index_under_test, row->key);
    assert(trimaran_slice_equal(trimaran_record_key(record), row->key));
    if (row->record != NULL)
        assert(record == row->record);
    else
        assert(record->count == 0 && record->lease == 0);
    row->record = record;
}

static void drop(row_t *row)
{
    if (row->record == NULL)
        return;
    trimaran_leasetable_attach(&leases, row->record, 0);
    row->lease = 0;
    trimaran_keyindex_remove(index_under_test, row->record);
    row->record = NULL;
}

static void append_version(row_t *row)
{
    if (row->record == NULL)
        return;
    trimaran_key_record *record = row->record;
    int64_t last = record->count ? record->versions[record->count - 1].main : 0;
    trimaran_version version = {.main = last + 1 + draw(3), .tombstone = draw(3) == 0};
    trimaran_record_append(record, &version);
    int64_t wanted = draw((uint32_t)version.main + 2);
    const trimaran_version *naive = NULL;
    for (uint32_t i = 0; i < record->count; i++)
        if (record->versions[i].main <= wanted)
            naive = &record->versions[i];
    assert(trimaran_record_at(record, wanted) == naive);
}

static void change_lease(row_t *row)
{
    int64_t id = draw(LEASES);
    if (draw(10) == 0 && id != 0) {
        trimaran_lease *lease = trimaran_leasetable_find(&leases, id);
        assert((lease != NULL) == granted[id]);
        if (lease == NULL) {
            trimaran_leasetable_add(&leases, id, id * 2);
        } else {
            for (size_t i = 0; i < row_count; i++) {
                if (rows[i].lease != id)
                    continue;
                trimaran_leasetable_attach(&leases, rows[i].record, 0);
                rows[i].lease = 0;
            }
            trimaran_leasetable_remove(&leases, lease);
        }
        granted[id] = !granted[id];
    } else if (row->record != NULL) {
        trimaran_leasetable_attach(&leases, row->record, id);
        row->lease = granted[id] ? id : 0;
    }
}

static void check_leases(void)
{
    size_t count = 0;
    for (int64_t id = 1; id < LEASES; id++) {
        const trimaran_lease *lease = trimaran_leasetable_find(&leases, id);
        uint32_t attached = 0;
        assert((lease != NULL) == granted[id]);
        count += granted[id];
        for (size_t i = 0; i < row_count; i++)
            attached += rows[i].lease == id;
        assert(lease == NULL || (lease->count == attached && lease->ttl_s == id * 2));
        for (uint32_t i = 0; lease != NULL && i < lease->count; i++)
            assert(lease->keys[i]->lease == id && lease->keys[i]->lease_slot == i);
    }
    assert(leases.count == count);
}

/* Walk from the first row not below wanted, and find every record that is left in order. */
static void check_walk(trimaran_slice wanted, size_t most)
{
    trimaran_keyindex_cursor cursor = trimaran_keyindex_seek(index_under_test, wanted);
    for (size_t i = 0; i < row_count && most > 0; i++) {
        if (rows[i].record == NULL || trimaran_slice_compare(rows[i].key, wanted) < 0)
            continue;
        assert(trimaran_keyindex_next(&cursor) == rows[i].record);
        most--;
    }
    if (most > 0)
        assert(trimaran_keyindex_next(&cursor) == NULL);
}

static void check_all(void)
{
    size_t count = 0;
    for (size_t i = 0; i < row_count; i++) {
        count += rows[i].record != NULL;
        assert(trimaran_keyindex_find(index_under_test, rows[i].key) == rows[i].record);
    }
    assert(trimaran_keyindex_count(index_under_test) == count);
    check_walk(trimaran_slice_of("", 0), SIZE_MAX);
    check_leases();
}

/* More adding than removing, or the other way round: the tree grows, and shrinks to nothing. */
static void drift(long rounds, uint32_t adds_of_ten)
{
    for (long round = 0; round < rounds; round++) {
        row_t *row = &rows[draw((uint32_t)row_count)];
        if (draw(10) < adds_of_ten)
            add(row);
        else
            drop(row);
        append_version(&rows[draw((uint32_t)row_count)]);
        change_lease(&rows[draw((uint32_t)row_count)]);
        if (round % 64 == 0)
            check_walk(rows[draw((uint32_t)row_count)].key, 20);
        if (round % 4096 == 0)
            check_all();
    }
    check_all();
}

/* In order of keys, or against it; then all gone, in one order or another. */
static void fill_and_empty(bool up, bool down_first)
{
    for (size_t i = 0; i < row_count; i++)
        add(&rows[up ? i : row_count - 1 - i]);
    check_all();
    for (size_t i = 0; i < row_count; i++) {
        drop(&rows[down_first ? row_count - 1 - i : i]);
        if (i % 1024 == 0)
            check_all();
    }
    check_all();
    assert(trimaran_keyindex_count(index_under_test) == 0);
}

int main(int count, char **words)
{
    assert(count == 3);
    random_state = strtoull(words[1], NULL, 10);
    long rounds = strtol(words[2], NULL, 10);
    index_under_test = trimaran_keyindex_create(random_state);
    trimaran_leasetable_create(&leases);
    make_keys();
    for (int i = 0; i < 4; i++)
        fill_and_empty(i & 1, i & 2);
    drift(rounds, 8);
    drift(rounds, 2);
    drift(rounds, 5);
    fill_and_empty(true, true);
    drift(rounds / 4, 9);
    trimaran_keyindex_destroy(index_under_test);
    trimaran_leasetable_destroy(&leases);
    for (size_t i = 0; i < row_count; i++)
        free((void *)rows[i].key.data);
    printf("%zu keys\n", row_count);
    return 0;
}
