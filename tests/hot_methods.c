/* Hot methods for the tests and benchmarks of the RPC engine: a handler as the store has one. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "rpc.h"

enum { NULL_REPLY, ECHO, LATER, PUMP, METHODS };
static const char *const PATHS[METHODS] = {"/hot.Test/Null", "/hot.Test/Echo", "/hot.Test/Later",
                                           "/hot.Test/Pump"};
enum { LATER_MAX = 1024, CHUNK_BYTES = 8192, QUEUE_BYTES = 65536 };

typedef struct counts {
    long messages, half_closed, closed, writable, pumped_bytes;
} counts;
static counts seen;
static trimaran_rpc_call *later[LATER_MAX];

static int find_method(void *context, const char *path, size_t size) {
    (void)context;
    for (int i = 0; i < METHODS; i++) {
        if (strlen(PATHS[i]) == size && memcmp(PATHS[i], path, size) == 0) {
            return i;
        }
    }
    return -1;
}

static void reply(trimaran_rpc_call *call, const uint8_t *data, size_t size) {
    memcpy(trimaran_rpc_reserve(call, size), data, size);
    trimaran_rpc_commit(call, size);
}

/* Queue the rest of a pumped stream as far as its queue may grow. */
static void pump(trimaran_rpc_call *call) {
    size_t left = (size_t)trimaran_rpc_user(call);
    while (left > 1 && trimaran_rpc_queued(call) < QUEUE_BYTES) {
        size_t size = left - 1 < CHUNK_BYTES ? left - 1 : CHUNK_BYTES;
        memset(trimaran_rpc_reserve(call, CHUNK_BYTES), 'p', size);
        trimaran_rpc_commit(call, size);
        left -= size;
        seen.pumped_bytes += (long)size;
    }
    trimaran_rpc_set_user(call, (void *)left);
    if (left == 1) {
        trimaran_rpc_finish(call, 0, NULL);
    }
}

static void on_message(void *context, trimaran_rpc_call *call, int method, const uint8_t *data,
                       size_t size) {
    (void)context;
    seen.messages++;
    if (method == NULL_REPLY) {
        reply(call, data, 0);
        trimaran_rpc_finish(call, 0, NULL);
    } else if (method == ECHO) {
        reply(call, data, size);
    } else if (method == LATER) {
        for (int i = 0; i < LATER_MAX; i++) {
            if (later[i] == NULL) {
                later[i] = call;
                trimaran_rpc_set_user(call, &later[i]);
                return;
            }
        }
        trimaran_rpc_finish(call, 8, "too many");
    } else {
        uint32_t total;
        assert(size == sizeof total);
        memcpy(&total, data, sizeof total);
        trimaran_rpc_set_user(call, (void *)((size_t)total + 1));
        pump(call);
    }
}

static void on_half_closed(void *context, trimaran_rpc_call *call, int method) {
    (void)context;
    seen.half_closed++;
    if (method == ECHO) {
        trimaran_rpc_finish(call, 0, NULL);
    } else if (trimaran_rpc_user(call) == NULL) {
        trimaran_rpc_finish(call, 13, "no request message");
    }
}

static void on_closed(void *context, trimaran_rpc_call *call, int method) {
    (void)context;
    seen.closed++;
    if (method == LATER && trimaran_rpc_user(call) != NULL) {
        *(trimaran_rpc_call **)trimaran_rpc_user(call) = NULL;
    }
}

static void on_writable(void *context, trimaran_rpc_call *call, int method) {
    (void)context;
    assert(method == PUMP);
    seen.writable++;
    pump(call);
}

static const trimaran_rpc_handler HANDLER = {
    NULL, find_method, on_message, on_half_closed, on_closed, on_writable,
};

const trimaran_rpc_handler *hot_handler(void) {
    return &HANDLER;
}

/* Answer what `Later` has put off; returns how many. */
int hot_reply_later(void) {
    int count = 0;
    for (int i = 0; i < LATER_MAX; i++) {
        if (later[i] != NULL) {
            trimaran_rpc_call *call = later[i];
            later[i] = NULL;
            reply(call, (const uint8_t *)"late", 4);
            trimaran_rpc_finish(call, 0, NULL);
            count++;
        }
    }
    return count;
}

void hot_counts(counts *result) {
    *result = seen;
}
