/* Exactly-once bookkeeping; see origintable.h. */
#include "origintable.h"

#include <stdio.h>

enum { PREFIX_SIZE = 7, KEY_SIZE = PREFIX_SIZE + 16, VALUE_SIZE = 16 };

static const char prefix[] = "origin/";

void trimaran_origintable_free(trimaran_origintable *table)
{
    free(table->origins);
    *table = (trimaran_origintable){0};
}

/* A cluster has few members: a search from the start is as quick as any other. */
const trimaran_origin *trimaran_origintable_find(const trimaran_origintable *table, uint64_t id)
{
    for (size_t i = 0; i < table->count; i++)
        if (table->origins[i].id == id)
            return &table->origins[i];
    return NULL;
}

static trimaran_origin *find_or_add(trimaran_origintable *table, uint64_t id)
{
    trimaran_origin *found = (trimaran_origin *)trimaran_origintable_find(table, id);
    if (found != NULL)
        return found;
    if (table->count == table->capacity) {
        table->capacity = table->capacity ? table->capacity * 2 : 8;
        table->origins =
            trimaran_reallocate(table->origins, table->capacity * sizeof *table->origins);
    }
    table->origins[table->count] = (trimaran_origin){.id = id};
    return &table->origins[table->count++];
}

bool trimaran_origintable_advance(trimaran_origintable *table, uint64_t id, uint64_t incarnation,
                                  uint64_t sequence)
{
    trimaran_origin *origin = find_or_add(table, id);
    if (incarnation < origin->incarnation ||
        (incarnation == origin->incarnation && sequence <= origin->sequence))
        return false;
    origin->incarnation = incarnation;
    origin->sequence = sequence;
    origin->dirty = true;
    return true;
}

static uint64_t read_number(const uint8_t *at)
{
    uint64_t number = 0;
    for (int i = 0; i < 8; i++)
        number = number << 8 | at[i];
    return number;
}

static void write_number(uint8_t *at, uint64_t number)
{
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)(number >> (56 - 8 * i));
}

bool trimaran_origintable_load(trimaran_origintable *table, trimaran_slice key,
                               trimaran_slice value)
{
    uint64_t id = 0;
    if (key.size != KEY_SIZE || value.size != VALUE_SIZE)
        return false;
    for (size_t i = PREFIX_SIZE; i < KEY_SIZE; i++) {
        uint8_t digit = key.data[i];
        if (digit >= '0' && digit <= '9')
            id = id << 4 | (uint64_t)(digit - '0');
        else if (digit >= 'a' && digit <= 'f')
            id = id << 4 | (uint64_t)(digit - 'a' + 10);
        else
            return false;
    }
    trimaran_origin *origin = find_or_add(table, id);
    origin->incarnation = read_number(value.data);
    origin->sequence = read_number(value.data + 8);
    return true;
}

void trimaran_origintable_save(trimaran_origintable *table, trimaran_state *state)
{
    for (size_t i = 0; i < table->count; i++) {
        trimaran_origin *origin = &table->origins[i];
        char key[KEY_SIZE + 1];
        uint8_t value[VALUE_SIZE];
        if (!origin->dirty)
            continue;
        snprintf(key, sizeof key, "%s%016llx", prefix, (unsigned long long)origin->id);
        write_number(value, origin->incarnation);
        write_number(value + 8, origin->sequence);
        trimaran_state_set(state, trimaran_slice_of(key, KEY_SIZE),
                           trimaran_slice_of(value, sizeof value));
        origin->dirty = false;
    }
}
