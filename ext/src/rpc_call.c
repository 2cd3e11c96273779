/* One call: its memory, its beginning, and the messages it receives. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rpc_internal.h"

enum { SLAB_CALLS = 64 };

typedef struct rpc_slab {
    struct rpc_slab *next;
    trimaran_rpc_call calls[SLAB_CALLS];
} rpc_slab;

static void slab_add(trimaran_rpc_server *server) {
    rpc_slab *slab = trimaran_rpc_allocate(sizeof *slab);
    slab->next = server->slabs;
    server->slabs = slab;
    for (int i = 0; i < SLAB_CALLS; i++) {
        slab->calls[i].next = server->free_calls;
        server->free_calls = &slab->calls[i];
    }
}

trimaran_rpc_call *trimaran_rpc_call_new(trimaran_rpc_connection *connection, int32_t stream_id) {
    trimaran_rpc_server *server = connection->server;
    if (server->free_calls == NULL) {
        slab_add(server);
    }
    trimaran_rpc_call *call = server->free_calls;
    server->free_calls = call->next;
    call->server = server;
    call->connection = connection;
    call->stream_id = stream_id;
    call->method = -1;
    call->previous = NULL;
    call->next = connection->calls;
    if (call->next != NULL) {
        call->next->previous = call;
    }
    connection->calls = call;
    connection->call_count++;
    connection->open_remotely++;
    server->counters.calls++;
    server->counters.requests++;
    return call;
}

/* Put a call that is nobody's any more back on the free list, keeping its small buffers. */
void trimaran_rpc_call_free(trimaran_rpc_call *call) {
    trimaran_rpc_server *server = call->server;
    assert(call->connection == NULL);
    free(call->status_message);
    trimaran_rpc_buffer_reset(&call->in, KEPT_BYTES);
    trimaran_rpc_buffer_reset(&call->out, KEPT_BYTES);
    trimaran_rpc_buffer_reset(&call->headers, KEPT_BYTES);
    rpc_buffer in = call->in, out = call->out, headers = call->headers;
    *call = (trimaran_rpc_call){.in = in, .out = out, .headers = headers};
    call->next = server->free_calls;
    server->free_calls = call;
}

void trimaran_rpc_calls_destroy(trimaran_rpc_server *server) {
    while (server->slabs != NULL) {
        rpc_slab *slab = server->slabs;
        server->slabs = slab->next;
        for (int i = 0; i < SLAB_CALLS; i++) {
            free(slab->calls[i].status_message);
            free(slab->calls[i].in.data);
            free(slab->calls[i].out.data);
            free(slab->calls[i].headers.data);
        }
        free(slab);
    }
}

/* Give up the memory of a message only partly received. */
static void drop_assembly(trimaran_rpc_call *call) {
    size_t size = rpc_buffer_size(&call->in);
    assert(call->server->assembly_bytes >= size);
    call->server->assembly_bytes -= size;
    trimaran_rpc_buffer_reset(&call->in, KEPT_BYTES);
}

/* Tell the handler or Python that the call is over, once, unless they ended it themselves. */
static void notify_closed(trimaran_rpc_call *call) {
    if (call->flags & CALL_FINISHED || !(call->flags & CALL_OPENED)) {
        return;
    }
    call->flags |= CALL_FINISHED;
    if (call->flags & CALL_COLD) {
        trimaran_rpc_push_event(call->server, TRIMARAN_RPC_CLOSED)->call = call;
    } else {
        call->server->handler.closed(call->server->handler.context, call, call->method);
    }
}

void trimaran_rpc_call_gone(trimaran_rpc_call *call) {
    trimaran_rpc_connection *connection = call->connection;
    trimaran_rpc_server *server = call->server;
    call->flags |= CALL_GONE;
    if (!(call->flags & CALL_REMOTE_ENDED)) {
        connection->open_remotely--;
    }
    notify_closed(call);
    drop_assembly(call);
    connection->queued_bytes -= rpc_buffer_size(&call->out);
    if (call->next != NULL) {
        call->next->previous = call->previous;
    }
    if (call->previous != NULL) {
        call->previous->next = call->next;
    } else {
        connection->calls = call->next;
    }
    if (connection->current == call) {
        connection->current = NULL;
    }
    if (call->flags & CALL_WRITABLE) {
        for (size_t i = 0; i < server->writable_count; i++) {
            if (server->writable[i] == call) {
                server->writable[i] = NULL;
            }
        }
    }
    connection->call_count--;
    server->counters.calls--;
    call->connection = NULL;
    if (!(call->flags & CALL_COLD) || call->flags & CALL_RELEASED) {
        trimaran_rpc_call_free(call);
    }
}

void trimaran_rpc_call_fail(trimaran_rpc_call *call, int http_status, int status,
                            const char *message) {
    if (call->flags & CALL_FINISHED) {
        return;
    }
    notify_closed(call);
    call->flags |= CALL_FINISHED;
    drop_assembly(call);
    trimaran_rpc_respond(call, http_status, status, message);
}

static void reset(trimaran_rpc_call *call, uint32_t code) {
    nghttp2_submit_rst_stream(call->connection->session, NGHTTP2_FLAG_NONE, call->stream_id, code);
    call->flags |= CALL_FINISHED | CALL_RELEASED;
}

/* Whether this is for the HTTP server: what probes and browsers ask, of no method served here. */
static bool is_plain(const trimaran_rpc_call *call) {
    return call->flags & CALL_COLD && call->seen & SEEN_GET && !(call->seen & SEEN_CONTENT_TYPE);
}

/* The request headers are complete: refuse what is not gRPC, announce what is. */
void trimaran_rpc_call_open(trimaran_rpc_call *call) {
    if (call->flags & CALL_DISCARD) {
        reset(call, NGHTTP2_ENHANCE_YOUR_CALM);
        return;
    }
    if (!trimaran_rpc_headers_are_sound(call)) {
        reset(call, NGHTTP2_PROTOCOL_ERROR);
        return;
    }
    if (call->server->counters.calls > call->server->options.calls_max) {
        reset(call, NGHTTP2_REFUSED_STREAM); /* nothing has happened: clients may try again */
        return;
    }
    const char *message = NULL;
    int http_status = 200, status = 13;
    if (is_plain(call)) {
        call->flags |= CALL_PLAIN;
    } else if (!(call->seen & SEEN_POST)) {
        http_status = 405;
        message = "Received a HEADERS frame whose :method is not POST";
    } else if (!(call->seen & SEEN_CONTENT_TYPE)) {
        http_status = 415;
        status = 3;
        message = "invalid gRPC request content-type";
    } else if (call->seen & SEEN_BAD_TIMEOUT) {
        http_status = 400;
        message = "malformed grpc-timeout";
    } else if (call->seen & SEEN_BAD_ENCODING) {
        status = 12;
        message = "grpc: Decompressor is not installed for this grpc-encoding";
    }
    if (message != NULL) {
        call->flags |= CALL_RELEASED;
        trimaran_rpc_call_fail(call, http_status, status, message);
        return;
    }
    call->flags |= CALL_OPENED;
    if (call->flags & CALL_COLD) {
        call->server->cold_count++;
        trimaran_rpc_push_event(call->server, TRIMARAN_RPC_OPEN)->call = call;
    }
}

void trimaran_rpc_call_half_close(trimaran_rpc_call *call) {
    if (call->flags & CALL_REMOTE_ENDED) {
        return;
    }
    call->flags |= CALL_REMOTE_ENDED;
    call->connection->open_remotely--;
    if (call->flags & CALL_FINISHED) {
        return;
    }
    if (call->prefix_size > 0) {
        trimaran_rpc_call_fail(call, 200, 13, "unexpected EOF");
    } else if (call->flags & CALL_COLD) {
        trimaran_rpc_push_event(call->server, TRIMARAN_RPC_HALF_CLOSED)->call = call;
    } else {
        call->server->handler.half_closed(call->server->handler.context, call, call->method);
    }
}

static void deliver(trimaran_rpc_call *call, const uint8_t *data, size_t size) {
    trimaran_rpc_server *server = call->server;
    if (call->connection->queued_bytes > server->options.queued_bytes_max) {
        trimaran_rpc_call_fail(call, 200, 8, "too many replies of this connection are unread");
        return;
    }
    if (!(call->flags & CALL_COLD)) {
        server->handler.message(server->handler.context, call, call->method, data, size);
        return;
    }
    trimaran_rpc_event *event = trimaran_rpc_push_event(server, TRIMARAN_RPC_MESSAGE);
    event->call = call;
    event->data = trimaran_rpc_allocate(size + 1);
    event->size = size;
    memcpy(event->data, data, size);
    call->backlog_bytes += (uint32_t)size;
}

static void fail_too_large(trimaran_rpc_call *call, const char *what, size_t size) {
    char message[128];
    snprintf(message, sizeof message, "grpc: received message %slarger than max (%zu vs. %" PRIu32
             ")", what, size, call->server->options.message_bytes_max);
    trimaran_rpc_call_fail(call, 200, 8, message);
}

static void deliver_compressed(trimaran_rpc_call *call, const uint8_t *data, size_t size) {
    if (!(call->flags & CALL_GZIP)) {
        trimaran_rpc_call_fail(call, 200, 13,
                               "grpc: compressed flag set with identity or empty encoding");
        return;
    }
    rpc_buffer plain = {0};
    size_t limit = call->server->options.message_bytes_max;
    int rc = trimaran_rpc_gunzip(data, size, limit, &plain);
    if (rc == 0) {
        deliver(call, plain.data, rpc_buffer_size(&plain));
    } else if (rc == -EMSGSIZE) {
        fail_too_large(call, "after decompression ", rpc_buffer_size(&plain));
    } else {
        trimaran_rpc_call_fail(call, 200, 13, "grpc: failed to decompress the received message");
    }
    free(plain.data);
}

/* Check the five bytes before a message; returns its size, or -1 where the call has failed. */
static int64_t check_prefix(trimaran_rpc_call *call, const uint8_t *prefix) {
    uint32_t size = (uint32_t)prefix[1] << 24 | (uint32_t)prefix[2] << 16 |
                    (uint32_t)prefix[3] << 8 | prefix[4];
    if (prefix[0] > 1) {
        char message[64];
        snprintf(message, sizeof message, "grpc: received unexpected payload format %d",
                 prefix[0]);
        trimaran_rpc_call_fail(call, 200, 13, message);
        return -1;
    }
    if (size > call->server->options.message_bytes_max) {
        fail_too_large(call, "", size);
        return -1;
    }
    return size;
}

/* Take the next piece of a message that came in several; returns how much of data it was. */
static size_t assemble(trimaran_rpc_call *call, const uint8_t *data, size_t size) {
    size_t used = 0;
    while (call->prefix_size < PREFIX_BYTES && used < size) {
        call->prefix[call->prefix_size++] = data[used++];
        if (call->prefix_size == PREFIX_BYTES && check_prefix(call, call->prefix) < 0) {
            return size;
        }
    }
    if (call->prefix_size < PREFIX_BYTES) {
        return used;
    }
    size_t wanted = (size_t)check_prefix(call, call->prefix) - rpc_buffer_size(&call->in);
    size_t taken = size - used < wanted ? size - used : wanted;
    trimaran_rpc_buffer_append(&call->in, data + used, taken);
    call->server->assembly_bytes += taken;
    if (call->server->assembly_bytes > call->server->options.assembly_bytes_max) {
        trimaran_rpc_call_fail(call, 200, 8, "the server holds too many incomplete requests");
        return size;
    }
    if (taken == wanted) {
        /* The handler may end the call, which must not free the message under its hands. */
        rpc_buffer message = call->in;
        call->in = (rpc_buffer){0};
        call->server->assembly_bytes -= rpc_buffer_size(&message);
        bool compressed = call->prefix[0] == 1;
        call->prefix_size = 0;
        (compressed ? deliver_compressed : deliver)(call, message.data, rpc_buffer_size(&message));
        free(message.data);
    }
    return used + taken;
}

/* Request bytes as they come; a message that lies whole in them is delivered from where it is. */
void trimaran_rpc_call_receive(trimaran_rpc_call *call, const uint8_t *data, size_t size) {
    while (size > 0 && !(call->flags & (CALL_FINISHED | CALL_PLAIN))) {
        size_t used;
        if (call->prefix_size == 0 && size >= PREFIX_BYTES && data[0] == 0) {
            int64_t wanted = check_prefix(call, data);
            if (wanted < 0) {
                return;
            }
            if ((size_t)wanted <= size - PREFIX_BYTES) {
                deliver(call, data + PREFIX_BYTES, (size_t)wanted);
                used = PREFIX_BYTES + (size_t)wanted;
                data += used;
                size -= used;
                continue;
            }
        }
        used = assemble(call, data, size);
        data += used;
        size -= used;
    }
}
