/* Cold calls: the queue of events, and what Python may ask of a call. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rpc_internal.h"

/* The event's fields other than kind are for the caller to fill. */
trimaran_rpc_event *trimaran_rpc_push_event(trimaran_rpc_server *server,
                                            enum trimaran_rpc_event_kind kind) {
    if (server->event_count == server->event_capacity) {
        size_t capacity = server->event_capacity == 0 ? 64 : server->event_capacity * 2;
        trimaran_rpc_event *events = trimaran_rpc_allocate(capacity * sizeof *events);
        for (size_t i = 0; i < server->event_count; i++) {
            events[i] = server->events[(server->event_head + i) & (server->event_capacity - 1)];
        }
        free(server->events);
        server->events = events;
        server->event_head = 0;
        server->event_capacity = capacity;
    }
    size_t position = server->event_head + server->event_count++;
    trimaran_rpc_event *event = &server->events[position & (server->event_capacity - 1)];
    *event = (trimaran_rpc_event){.kind = kind, .fd = -1, .listener = -1};
    return event;
}

int trimaran_rpc_pending(const trimaran_rpc_server *server) {
    return server->event_count > 0;
}

int trimaran_rpc_next_event(trimaran_rpc_server *server, trimaran_rpc_event *event) {
    if (server->event_count == 0) {
        return 0;
    }
    *event = server->events[server->event_head];
    server->event_head = (server->event_head + 1) & (server->event_capacity - 1);
    server->event_count--;
    return 1;
}

void trimaran_rpc_release(trimaran_rpc_call *call) {
    assert(call->flags & CALL_COLD);
    assert(!(call->flags & CALL_RELEASED));
    trimaran_rpc_server *server = call->server;
    if (!(call->flags & (CALL_FINISHED | CALL_GONE))) {
        trimaran_rpc_finish(call, 1, "call dropped by the server");
    }
    call->flags |= CALL_RELEASED;
    server->cold_count--;
    if (call->flags & CALL_GONE) {
        trimaran_rpc_call_free(call);
    }
    if (server->destroyed && server->cold_count == 0) {
        trimaran_rpc_server_free(server);
    }
}

void trimaran_rpc_consumed(trimaran_rpc_call *call, size_t size) {
    assert(call->backlog_bytes >= size);
    call->backlog_bytes -= (uint32_t)size;
    if (call->owed_bytes > 0 && call->backlog_bytes <= BACKLOG_BYTES &&
        !(call->flags & CALL_GONE)) {
        nghttp2_session_consume_stream(call->connection->session, call->stream_id,
                                       call->owed_bytes);
        call->owed_bytes = 0;
        trimaran_rpc_mark_dirty(call->connection);
    }
}

const uint8_t *trimaran_rpc_headers(const trimaran_rpc_call *call, size_t *size) {
    *size = rpc_buffer_size(&call->headers);
    return call->headers.data + call->headers.head;
}

const char *trimaran_rpc_metadata(const trimaran_rpc_call *call, const char *name, size_t *size) {
    const uint8_t *at = call->headers.data + call->headers.head;
    const uint8_t *end = call->headers.data + call->headers.tail;
    size_t wanted = strlen(name);
    while (at < end) {
        uint16_t sizes[2];
        memcpy(sizes, at, sizeof sizes);
        at += sizeof sizes;
        if (sizes[0] == wanted && memcmp(at, name, wanted) == 0) {
            *size = sizes[1];
            return (const char *)at + sizes[0];
        }
        at += sizes[0] + sizes[1];
    }
    return NULL;
}

uint64_t trimaran_rpc_timeout_us(const trimaran_rpc_call *call) {
    return call->timeout_us;
}

/* The memory goes only when no cold call is in Python's hands any more. */
void trimaran_rpc_server_free(trimaran_rpc_server *server) {
    trimaran_rpc_event event;
    while (trimaran_rpc_next_event(server, &event)) {
        free(event.data);
        if (event.kind == TRIMARAN_RPC_FOREIGN) {
            close(event.fd);
        }
    }
    free(server->events);
    free(server->writable);
    trimaran_rpc_calls_destroy(server);
    nghttp2_session_callbacks_del(server->callbacks);
    nghttp2_option_del(server->option);
    trimaran_rpc_memory_free(&server->memory);
    free(server);
}
