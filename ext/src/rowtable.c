/* Rows that describe the cluster; see rowtable.h. */
#include "rowtable.h"

static const uint32_t removed_row = 0xffffffff;

void trimaran_rowtable_clear(trimaran_rowtable *table)
{
    for (size_t i = 0; i < table->count; i++)
        free((void *)table->rows[i].key.data);
    table->count = 0;
    table->version++;
}

void trimaran_rowtable_free(trimaran_rowtable *table)
{
    trimaran_rowtable_clear(table);
    free(table->rows);
    *table = (trimaran_rowtable){0};
}

size_t trimaran_rowtable_place(const trimaran_rowtable *table, trimaran_slice key)
{
    size_t low = 0, high = table->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (trimaran_slice_compare(table->rows[middle].key, key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool is_at(const trimaran_rowtable *table, size_t place, trimaran_slice key)
{
    return place < table->count && trimaran_slice_equal(table->rows[place].key, key);
}

trimaran_slice trimaran_rowtable_get(const trimaran_rowtable *table, trimaran_slice key)
{
    size_t place = trimaran_rowtable_place(table, key);
    return is_at(table, place, key) ? table->rows[place].value : (trimaran_slice){0};
}

static trimaran_table_row make_row(trimaran_slice key, trimaran_slice value)
{
    uint8_t *memory = trimaran_allocate(key.size + value.size);
    memcpy(memory, key.data, key.size);
    if (value.size > 0)
        memcpy(memory + key.size, value.data, value.size);
    return (trimaran_table_row){trimaran_slice_of(memory, key.size),
                                trimaran_slice_of(memory + key.size, value.size)};
}

void trimaran_rowtable_set(trimaran_rowtable *table, trimaran_slice key, trimaran_slice value)
{
    size_t place = trimaran_rowtable_place(table, key);
    bool found = is_at(table, place, key);
    table->version++;
    if (found)
        free((void *)table->rows[place].key.data);
    if (value.data == NULL) {
        if (found) {
            table->count--;
            memmove(table->rows + place, table->rows + place + 1,
                    (table->count - place) * sizeof *table->rows);
        }
        return;
    }
    if (!found) {
        if (table->count == table->capacity) {
            table->capacity = table->capacity ? table->capacity * 2 : 16;
            table->rows =
                trimaran_reallocate(table->rows, table->capacity * sizeof *table->rows);
        }
        memmove(table->rows + place + 1, table->rows + place,
                (table->count - place) * sizeof *table->rows);
        table->count++;
    }
    table->rows[place] = make_row(key, value);
}

static bool take_number(trimaran_slice *from, uint32_t *out)
{
    if (from->size < 4)
        return false;
    *out = trimaran_read_u32(from->data);
    *from = trimaran_slice_of(from->data + 4, from->size - 4);
    return true;
}

static bool take_bytes(trimaran_slice *from, size_t size, trimaran_slice *out)
{
    if (from->size < size)
        return false;
    *out = trimaran_slice_of(from->data, size);
    *from = trimaran_slice_of(from->data + size, from->size - size);
    return true;
}

bool trimaran_rows_begin(trimaran_row_reader *reader, trimaran_slice rows)
{
    reader->rest = rows;
    return take_number(&reader->rest, &reader->left);
}

int trimaran_rows_next(trimaran_row_reader *reader, trimaran_slice *key, trimaran_slice *value)
{
    uint32_t size;
    if (reader->left == 0)
        return reader->rest.size == 0 ? 0 : -1;
    reader->left--;
    if (!take_number(&reader->rest, &size) || !take_bytes(&reader->rest, size, key) ||
        !take_number(&reader->rest, &size))
        return -1;
    *value = (trimaran_slice){0};
    if (size == removed_row)
        return 1;
    return take_bytes(&reader->rest, size, value) ? 1 : -1;
}

static bool is_allowed(trimaran_slice key)
{
    static const char *const prefixes[] = {"member/", "removed/", "cluster/"};
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        size_t size = strlen(prefixes[i]);
        if (key.size > size && key.size <= 256 && memcmp(key.data, prefixes[i], size) == 0)
            return true;
    }
    return false;
}

bool trimaran_rows_check(trimaran_slice rows)
{
    trimaran_row_reader reader;
    trimaran_slice key, value;
    int more;
    if (!trimaran_rows_begin(&reader, rows))
        return false;
    while ((more = trimaran_rows_next(&reader, &key, &value)) > 0)
        if (!is_allowed(key))
            return false;
    return more == 0;
}
