/* gRPC over HTTP/2 for many connections on one thread.
 *
 * The server knows framing, flow control and the gRPC envelope; it knows no service. A handler
 * names the methods it serves here, without the interpreter ("hot"); every other path is queued as
 * an event for Python ("cold"). Nothing in this file blocks or takes the GIL.
 */
#ifndef TRIMARAN_RPC_H
#define TRIMARAN_RPC_H

#include <stddef.h>
#include <stdint.h>

typedef struct trimaran_rpc_server trimaran_rpc_server;
typedef struct trimaran_rpc_call trimaran_rpc_call;

/* What serves the hot methods. All functions run on the thread that polls the server. */
typedef struct trimaran_rpc_handler {
    void *context;
    /* Return a number >= 0 for a path served here ("/etcdserverpb.KV/Put"), -1 for a cold one. */
    int (*method)(void *context, const char *path, size_t size);
    /* One whole request message; data is valid only during the call. */
    void (*message)(void *context, trimaran_rpc_call *call, int method, const uint8_t *data,
                    size_t size);
    /* The client will send no more; a stream may still be answered. */
    void (*half_closed)(void *context, trimaran_rpc_call *call, int method);
    /* The stream is gone (finished, reset or its connection lost); call dies on return. */
    void (*closed)(void *context, trimaran_rpc_call *call, int method);
    /* A stream whose queue had passed the high mark has drained below the low mark. */
    void (*writable)(void *context, trimaran_rpc_call *call, int method);
} trimaran_rpc_handler;

/* One pointer of the handler's own on each call, NULL at first. */
void *trimaran_rpc_user(const trimaran_rpc_call *call);
void trimaran_rpc_set_user(trimaran_rpc_call *call, void *user);

/* Reserve room for one reply message of at most capacity bytes and return where to write it;
 * commit queues the first size bytes of it. Nothing else may be called on the server between the
 * two. The response headers go out with the first message. */
uint8_t *trimaran_rpc_reserve(trimaran_rpc_call *call, size_t capacity);
void trimaran_rpc_commit(trimaran_rpc_call *call, size_t size);

/* End the call with a gRPC status; message may be NULL and is percent-encoded as gRPC asks. After
 * it the handler must not touch call again, and `closed` is not called for it. */
void trimaran_rpc_finish(trimaran_rpc_call *call, int status, const char *message);

/* Bytes of messages queued on the call and not yet handed to the socket. */
size_t trimaran_rpc_queued(const trimaran_rpc_call *call);

#endif
