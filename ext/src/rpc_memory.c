/* Memory for nghttp2: small blocks from free lists of the server.
 *
 * Every call makes and frees some ten small objects on one thread; a list for each size does that
 * in a few instructions, without malloc's locks and searching. Freed small blocks stay with the
 * server; its limits bound how many there can be.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "rpc_internal.h"

enum { HEADER_BYTES = 16, SLAB_BYTES = 64 * 1024, SMALLEST_BITS = 5, LARGE = 255 };

/* Stands before each block; 16 bytes keep the block aligned as malloc's are. */
typedef struct block_header {
    size_t capacity;
    uint8_t size_class;
} block_header;
_Static_assert(sizeof(block_header) <= HEADER_BYTES, "the header must fit");

typedef struct free_block {
    struct free_block *next;
} free_block;

typedef struct memory_slab {
    struct memory_slab *next;
    uint8_t padding[HEADER_BYTES - sizeof(void *)];
    uint8_t data[];
} memory_slab;

static block_header *header_of(void *block) {
    return (block_header *)((uint8_t *)block - HEADER_BYTES);
}

static void *new_large(size_t size) {
    uint8_t *memory = malloc(HEADER_BYTES + size);
    if (memory == NULL) {
        return NULL;
    }
    *(block_header *)memory = (block_header){size, LARGE};
    return memory + HEADER_BYTES;
}

/* Cut a slab into blocks of one class. */
static bool refill(rpc_memory *memory, int size_class) {
    size_t capacity = (size_t)1 << (SMALLEST_BITS + size_class);
    memory_slab *slab = malloc(sizeof *slab + SLAB_BYTES);
    if (slab == NULL) {
        return false;
    }
    slab->next = memory->slabs;
    memory->slabs = slab;
    for (size_t at = 0; at + HEADER_BYTES + capacity <= SLAB_BYTES; at += HEADER_BYTES + capacity) {
        *(block_header *)(slab->data + at) = (block_header){capacity, (uint8_t)size_class};
        free_block *block = (free_block *)(slab->data + at + HEADER_BYTES);
        block->next = memory->free[size_class];
        memory->free[size_class] = block;
    }
    return true;
}

static void *allocate(size_t size, void *user) {
    rpc_memory *memory = user;
    if (size > MEMORY_SMALL_MAX) {
        return new_large(size);
    }
    int size_class = size <= 1u << SMALLEST_BITS
                         ? 0
                         : 32 - __builtin_clz((unsigned)size - 1) - SMALLEST_BITS;
    assert(size_class < MEMORY_CLASSES);
    if (memory->free[size_class] == NULL && !refill(memory, size_class)) {
        return NULL;
    }
    free_block *block = memory->free[size_class];
    memory->free[size_class] = block->next;
    return block;
}

static void release(void *block, void *user) {
    rpc_memory *memory = user;
    if (block == NULL) {
        return;
    }
    block_header *header = header_of(block);
    if (header->size_class == LARGE) {
        free(header);
        return;
    }
    free_block *freed = block;
    freed->next = memory->free[header->size_class];
    memory->free[header->size_class] = freed;
}

static void *allocate_zeroed(size_t count, size_t size, void *user) {
    size_t total;
    if (__builtin_mul_overflow(count, size, &total)) {
        return NULL;
    }
    void *block = allocate(total, user);
    return block == NULL ? NULL : memset(block, 0, total);
}

static void *reallocate(void *block, size_t size, void *user) {
    if (block == NULL) {
        return allocate(size, user);
    }
    size_t capacity = header_of(block)->capacity;
    if (size <= capacity) {
        return block;
    }
    void *bigger = allocate(size, user);
    if (bigger != NULL) {
        memcpy(bigger, block, capacity);
        release(block, user);
    }
    return bigger;
}

nghttp2_mem trimaran_rpc_memory_functions(rpc_memory *memory) {
    return (nghttp2_mem){memory, allocate, release, allocate_zeroed, reallocate};
}

void trimaran_rpc_memory_free(rpc_memory *memory) {
    while (memory->slabs != NULL) {
        memory_slab *slab = memory->slabs;
        memory->slabs = slab->next;
        free(slab);
    }
}
