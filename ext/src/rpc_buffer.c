/* Growing byte buffers of the RPC server. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rpc_internal.h"

void *trimaran_rpc_allocate(size_t size) {
    void *memory = calloc(1, size);
    if (memory == NULL) {
        fprintf(stderr, "trimaran: out of memory for %zu bytes of the RPC server\n", size);
        abort();
    }
    return memory;
}

/* Make room for that many bytes after tail, moving or growing what is there. */
void trimaran_rpc_buffer_room(rpc_buffer *buffer, size_t room) {
    if (buffer->capacity - buffer->tail >= room) {
        return;
    }
    size_t size = rpc_buffer_size(buffer);
    /* Moving costs size; it frees head bytes, so it is paid for once those are as many. */
    if (buffer->head >= size && buffer->capacity - size >= room) {
        memmove(buffer->data, buffer->data + buffer->head, size);
        buffer->head = 0;
        buffer->tail = size;
        return;
    }
    size_t capacity = buffer->capacity < 128 ? 256 : buffer->capacity * 2;
    while (capacity - size < room) {
        capacity *= 2;
    }
    uint8_t *data = malloc(capacity);
    if (data == NULL) {
        fprintf(stderr, "trimaran: out of memory for %zu bytes of RPC buffer\n", capacity);
        abort();
    }
    if (size > 0) {
        memcpy(data, buffer->data + buffer->head, size);
    }
    free(buffer->data);
    *buffer = (rpc_buffer){data, 0, size, capacity};
}

void trimaran_rpc_buffer_append(rpc_buffer *buffer, const void *data, size_t size) {
    if (size == 0) {
        return;
    }
    trimaran_rpc_buffer_room(buffer, size);
    memcpy(buffer->data + buffer->tail, data, size);
    buffer->tail += size;
}

/* Empty the buffer, giving its memory back where that is more than kept. */
void trimaran_rpc_buffer_reset(rpc_buffer *buffer, size_t kept) {
    buffer->head = buffer->tail = 0;
    if (buffer->capacity > kept) {
        free(buffer->data);
        *buffer = (rpc_buffer){0};
    }
}
