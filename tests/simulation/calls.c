/* Calls of simulated clients, in place of gRPC over HTTP/2: the same functions of rpc.h that the
 * service uses, with what it answers gathered for the simulator. Linked with the engines instead of
 * the rpc_*.c files. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "rpc.h"

struct trimaran_rpc_call {
    uint64_t id;
    void *user;
    trimaran_buffer reserved;
};

typedef struct row {
    uint64_t id;
    int32_t status; /* -1: a message, else the end of the call */
    uint32_t size;
} row_t;

static trimaran_buffer output;

void *trimaran_rpc_user(const trimaran_rpc_call *call) { return call->user; }
void trimaran_rpc_set_user(trimaran_rpc_call *call, void *user) { call->user = user; }

size_t trimaran_rpc_queued(const trimaran_rpc_call *call)
{
    (void)call;
    return 0;
}

const char *trimaran_rpc_metadata(const trimaran_rpc_call *call, const char *name, size_t *size)
{
    (void)call, (void)name;
    *size = 0;
    return NULL;
}

uint8_t *trimaran_rpc_reserve(trimaran_rpc_call *call, size_t capacity)
{
    call->reserved.size = 0;
    return trimaran_buffer_reserve(&call->reserved, capacity);
}

static void put_row(uint64_t id, int32_t status, const void *data, size_t size)
{
    row_t row = {id, status, (uint32_t)size};
    trimaran_buffer_append(&output, &row, sizeof row);
    if (size > 0)
        trimaran_buffer_append(&output, data, size);
}

void trimaran_rpc_commit(trimaran_rpc_call *call, size_t size)
{
    put_row(call->id, -1, call->reserved.data, size);
}

static void free_call(trimaran_rpc_call *call)
{
    trimaran_buffer_free(&call->reserved);
    free(call);
}

void trimaran_rpc_finish(trimaran_rpc_call *call, int status, const char *message)
{
    put_row(call->id, status, message, message ? strlen(message) : 0);
    free_call(call);
}

/* What the simulator calls. A call lives until its status is in the output or it is closed. */

trimaran_rpc_call *trimaran_simulated_open(uint64_t id)
{
    trimaran_rpc_call *call = trimaran_allocate(sizeof *call);
    *call = (trimaran_rpc_call){.id = id};
    return call;
}

int trimaran_simulated_method(const trimaran_rpc_handler *handler, const char *path)
{
    return handler->method(handler->context, path, strlen(path));
}

void trimaran_simulated_message(const trimaran_rpc_handler *handler, trimaran_rpc_call *call,
                                int method, const uint8_t *data, size_t size)
{
    handler->message(handler->context, call, method, data, size);
}

void trimaran_simulated_close(const trimaran_rpc_handler *handler, trimaran_rpc_call *call,
                              int method)
{
    handler->closed(handler->context, call, method);
    free_call(call);
}

/* Everything answered since the last call, as rows each followed by its bytes; valid until the next
 * call of any function. */
size_t trimaran_simulated_take(const uint8_t **data)
{
    size_t size = output.size;
    *data = output.data;
    output.size = 0;
    return size;
}
