/* Slices of borrowed bytes, a growable buffer and a bump arena: the memory of the engines. */
#ifndef TRIMARAN_BYTES_H
#define TRIMARAN_BYTES_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct trimaran_slice {
    const uint8_t *data;
    size_t size;
} trimaran_slice;

static inline trimaran_slice trimaran_slice_of(const void *data, size_t size)
{
    return (trimaran_slice){(const uint8_t *)data, size};
}

/* Order of keys everywhere in the store: bytes as unsigned numbers, the shorter first. */
static inline int trimaran_slice_compare(trimaran_slice a, trimaran_slice b)
{
    size_t common = a.size < b.size ? a.size : b.size;
    int order = common ? memcmp(a.data, b.data, common) : 0;
    if (order != 0)
        return order;
    return a.size < b.size ? -1 : a.size > b.size;
}

static inline bool trimaran_slice_equal(trimaran_slice a, trimaran_slice b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

/* etcd's ranges: an end of one zero byte means "to the last key". */
static inline bool trimaran_slice_is_open_end(trimaran_slice end)
{
    return end.size == 1 && end.data[0] == 0;
}

/* Memory that cannot be had ends the process: a store that goes on without it would have to undo
 * half-applied entries. */
static inline void *trimaran_allocate(size_t size)
{
    void *memory = malloc(size ? size : 1);
    if (memory == NULL)
        abort();
    return memory;
}

static inline void *trimaran_reallocate(void *old, size_t size)
{
    void *memory = realloc(old, size ? size : 1);
    if (memory == NULL)
        abort();
    return memory;
}

typedef struct trimaran_buffer {
    uint8_t *data;
    size_t size;
    size_t capacity;
} trimaran_buffer;

static inline uint8_t *trimaran_buffer_reserve(trimaran_buffer *buffer, size_t more)
{
    if (buffer->capacity - buffer->size < more) {
        size_t capacity = buffer->capacity ? buffer->capacity : 256;
        while (capacity - buffer->size < more)
            capacity *= 2;
        buffer->data = trimaran_reallocate(buffer->data, capacity);
        buffer->capacity = capacity;
    }
    return buffer->data + buffer->size;
}

static inline void trimaran_buffer_append(trimaran_buffer *buffer, const void *data, size_t size)
{
    uint8_t *target = trimaran_buffer_reserve(buffer, size);
    if (size > 0)
        memcpy(target, data, size);
    buffer->size += size;
}

static inline void trimaran_buffer_free(trimaran_buffer *buffer)
{
    free(buffer->data);
    *buffer = (trimaran_buffer){0};
}

/* Memory of one request: taken piece by piece, given back all at once. */
typedef struct trimaran_arena_block {
    struct trimaran_arena_block *next;
    size_t used;
    size_t capacity;
    uint8_t data[];
} trimaran_arena_block;

typedef struct trimaran_arena {
    trimaran_arena_block *blocks;
} trimaran_arena;

static inline void *trimaran_arena_allocate(trimaran_arena *arena, size_t size)
{
    size = (size + 15) & ~(size_t)15;
    trimaran_arena_block *block = arena->blocks;
    if (block == NULL || block->capacity - block->used < size) {
        /* Blocks double, so that a large batch takes few of them. */
        size_t capacity = block == NULL ? 16384 : block->capacity * 2;
        capacity = capacity > 1048576 ? 1048576 : capacity;
        capacity = capacity < size ? size : capacity;
        block = trimaran_allocate(sizeof *block + capacity);
        block->next = arena->blocks;
        block->used = 0;
        block->capacity = capacity;
        arena->blocks = block;
    }
    void *memory = block->data + block->used;
    block->used += size;
    return memory;
}

/* Keeps the oldest block, so that small requests never allocate again. */
static inline void trimaran_arena_reset(trimaran_arena *arena)
{
    while (arena->blocks != NULL && arena->blocks->next != NULL) {
        trimaran_arena_block *next = arena->blocks->next;
        free(arena->blocks);
        arena->blocks = next;
    }
    if (arena->blocks != NULL)
        arena->blocks->used = 0;
}

static inline void trimaran_arena_free(trimaran_arena *arena)
{
    trimaran_arena_reset(arena);
    free(arena->blocks);
    arena->blocks = NULL;
}

/* Numbers as entries and frames hold them: little-endian, at any place. */
static inline uint32_t trimaran_read_u32(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static inline uint64_t trimaran_read_u64(const uint8_t *at)
{
    return (uint64_t)trimaran_read_u32(at) | (uint64_t)trimaran_read_u32(at + 4) << 32;
}

static inline uint8_t *trimaran_put_u32(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        *at++ = (uint8_t)(value >> (8 * i));
    return at;
}

static inline uint8_t *trimaran_put_u64(uint8_t *at, uint64_t value)
{
    return trimaran_put_u32(trimaran_put_u32(at, (uint32_t)value), (uint32_t)(value >> 32));
}

#endif
