#include "trimaran/raftlog.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>

struct trimaran_payload {
    atomic_uint references;
    size_t size;
    uint8_t data[];
};

trimaran_payload *trimaran_payload_new(size_t size)
{
    trimaran_payload *payload = malloc(sizeof *payload + size);

    if (payload == NULL)
        return NULL;
    atomic_init(&payload->references, 1);
    payload->size = size;
    return payload;
}

uint8_t *trimaran_payload_data(trimaran_payload *payload)
{
    return payload->data;
}

size_t trimaran_payload_size(const trimaran_payload *payload)
{
    return payload->size;
}

void trimaran_payload_shrink(trimaran_payload *payload, size_t size)
{
    assert(size <= payload->size);
    assert(atomic_load_explicit(&payload->references, memory_order_relaxed) == 1);
    payload->size = size;
}

trimaran_payload *trimaran_payload_retain(trimaran_payload *payload)
{
    unsigned before = atomic_fetch_add_explicit(&payload->references, 1, memory_order_relaxed);

    assert(before > 0);
    return payload;
}

void trimaran_payload_release(trimaran_payload *payload)
{
    if (payload == NULL)
        return;
    unsigned before = atomic_fetch_sub_explicit(&payload->references, 1, memory_order_acq_rel);
    assert(before > 0);
    if (before == 1)
        free(payload);
}
