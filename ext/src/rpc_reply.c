/* What a call answers: framed messages, then the status, as nghttp2 frames. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rpc_internal.h"

#define FIXED(name, value)                                                                         \
    {                                                                                              \
        (uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, sizeof(value) - 1,                \
            NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE                           \
    }

static const char *const STATUS_TEXTS[] = {"0", "1", "2",  "3",  "4",  "5",  "6",  "7", "8",
                                           "9", "10", "11", "12", "13", "14", "15", "16"};
enum { STATUSES = sizeof STATUS_TEXTS / sizeof *STATUS_TEXTS, STATUS_UNKNOWN = 2 };

static const nghttp2_nv RESPONSE[] = {
    FIXED(":status", "200"),
    FIXED("content-type", "application/grpc"),
};

void *trimaran_rpc_user(const trimaran_rpc_call *call) {
    return call->user;
}

void trimaran_rpc_set_user(trimaran_rpc_call *call, void *user) {
    call->user = user;
}

size_t trimaran_rpc_queued(const trimaran_rpc_call *call) {
    return rpc_buffer_size(&call->out);
}

/* gRPC over HTTP/2, "Status-Message": all but printable ASCII, and '%', as %XX. */
static char *percent_encode(const char *message) {
    static const char digits[] = "0123456789ABCDEF";
    char *text = trimaran_rpc_allocate(strlen(message) * 3 + 1);
    char *out = text;
    for (const unsigned char *in = (const unsigned char *)message; *in != 0; in++) {
        if (*in >= ' ' && *in <= '~' && *in != '%') {
            *out++ = (char)*in;
        } else {
            *out++ = '%';
            *out++ = digits[*in >> 4];
            *out++ = digits[*in & 15];
        }
    }
    return text;
}

/* Fill the header fields of the call's status; returns how many. */
static size_t status_fields(trimaran_rpc_call *call, nghttp2_nv *fields) {
    const char *text = STATUS_TEXTS[call->status];
    fields[0] = (nghttp2_nv)FIXED("grpc-status", "");
    fields[0].value = (uint8_t *)text;
    fields[0].valuelen = strlen(text);
    if (call->status_message == NULL) {
        return 1;
    }
    fields[1] = (nghttp2_nv)FIXED("grpc-message", "");
    fields[1].value = (uint8_t *)call->status_message;
    fields[1].valuelen = strlen(call->status_message);
    fields[1].flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_INDEX;
    return 2;
}

static ssize_t read_data(nghttp2_session *session, int32_t stream_id, uint8_t *buffer,
                         size_t length, uint32_t *flags, nghttp2_data_source *source, void *user) {
    (void)buffer;
    (void)user;
    trimaran_rpc_call *call = source->ptr;
    size_t size = rpc_buffer_size(&call->out);
    if (size == 0 && !(call->flags & CALL_FINISHED)) {
        call->flags |= CALL_DEFERRED;
        return NGHTTP2_ERR_DEFERRED;
    }
    if (size <= length && call->flags & CALL_PLAIN) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    } else if (size <= length && call->flags & CALL_FINISHED) {
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        nghttp2_nv fields[2];
        size_t count = status_fields(call, fields);
        if (nghttp2_submit_trailer(session, stream_id, fields, count) != 0) {
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
        }
    }
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    return (ssize_t)(size < length ? size : length);
}

/* Note that the queue of a call has shrunk; whoever fills it hears of it after the flush. */
static void drained(trimaran_rpc_call *call) {
    trimaran_rpc_server *server = call->server;
    call->flags &= ~(uint32_t)CALL_HIGH;
    if (call->flags & CALL_FINISHED) {
        return;
    }
    if (call->flags & CALL_COLD) {
        trimaran_rpc_push_event(server, TRIMARAN_RPC_DRAINED)->call = call;
        return;
    }
    if (call->flags & CALL_WRITABLE) {
        return;
    }
    call->flags |= CALL_WRITABLE;
    if (server->writable_count == server->writable_capacity) {
        server->writable_capacity = server->writable_capacity * 2 + 64;
        void *bigger = trimaran_rpc_allocate(server->writable_capacity * sizeof(void *));
        if (server->writable_count > 0) {
            memcpy(bigger, server->writable, server->writable_count * sizeof(void *));
        }
        free(server->writable);
        server->writable = bigger;
    }
    server->writable[server->writable_count++] = call;
}

/* nghttp2 has made a DATA frame: put its header and payload into the server's output. */
int trimaran_rpc_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *header,
                           size_t size, nghttp2_data_source *source, void *user) {
    (void)session;
    trimaran_rpc_connection *connection = user;
    trimaran_rpc_server *server = connection->server;
    trimaran_rpc_call *call = source->ptr;
    assert(frame->data.padlen == 0);
    /* Room is kept for the one frame that nghttp2 may return in the same go. */
    if (OUT_BYTES - server->out_size < 2 * FRAME_BYTES_MAX) {
        server->out_full = true;
        return NGHTTP2_ERR_WOULDBLOCK;
    }
    uint8_t *out = server->out + server->out_size;
    memcpy(out, header, 9);
    memcpy(out + 9, call->out.data + call->out.head, size);
    server->out_size += 9 + size;
    call->out.head += size;
    assert(call->out.head <= call->out.tail);
    connection->queued_bytes -= size;
    if (call->out.head == call->out.tail) {
        trimaran_rpc_buffer_reset(&call->out, 64 * 1024);
    }
    if (call->flags & CALL_HIGH &&
        rpc_buffer_size(&call->out) <= server->options.queue_low_bytes) {
        drained(call);
    }
    return 0;
}

uint8_t *trimaran_rpc_reserve(trimaran_rpc_call *call, size_t capacity) {
    assert(!(call->flags & CALL_FINISHED) || call->flags & CALL_COLD);
    trimaran_rpc_buffer_room(&call->out, capacity + PREFIX_BYTES);
    return call->out.data + call->out.tail + PREFIX_BYTES;
}

/* Have nghttp2 look at the call's queue at the next flush. */
static void wake(trimaran_rpc_call *call) {
    trimaran_rpc_connection *connection = call->connection;
    if (!(call->flags & CALL_RESPONDED)) {
        call->flags |= CALL_RESPONDED;
        nghttp2_data_provider provider = {.source = {.ptr = call}, .read_callback = read_data};
        nghttp2_submit_response(connection->session, call->stream_id, RESPONSE, 2, &provider);
    } else if (call->flags & CALL_DEFERRED) {
        call->flags &= ~(uint32_t)CALL_DEFERRED;
        nghttp2_session_resume_data(connection->session, call->stream_id);
    }
    trimaran_rpc_mark_dirty(connection);
}

void trimaran_rpc_commit(trimaran_rpc_call *call, size_t size) {
    if (call->flags & (CALL_GONE | CALL_FINISHED)) {
        return;
    }
    rpc_buffer *out = &call->out;
    assert(out->capacity - out->tail >= size + PREFIX_BYTES);
    assert(size <= UINT32_MAX);
    uint8_t *prefix = out->data + out->tail;
    prefix[0] = 0;
    prefix[1] = (uint8_t)(size >> 24);
    prefix[2] = (uint8_t)(size >> 16);
    prefix[3] = (uint8_t)(size >> 8);
    prefix[4] = (uint8_t)size;
    out->tail += PREFIX_BYTES + size;
    call->connection->queued_bytes += PREFIX_BYTES + size;
    if (rpc_buffer_size(out) > call->server->options.queue_high_bytes) {
        call->flags |= CALL_HIGH;
    }
    wake(call);
}

/* Submit headers and status in one HEADERS frame, which ends the stream. */
static void respond_at_once(trimaran_rpc_call *call, int http_status) {
    char text[4] = {(char)('0' + http_status / 100), (char)('0' + http_status / 10 % 10),
                    (char)('0' + http_status % 10), 0};
    nghttp2_nv fields[4] = {RESPONSE[0], RESPONSE[1]};
    if (http_status != 200) {
        fields[0].value = (uint8_t *)text;
        fields[0].flags = NGHTTP2_NV_FLAG_NO_COPY_NAME;
    }
    size_t count = 2 + status_fields(call, fields + 2);
    call->flags |= CALL_RESPONDED;
    nghttp2_submit_response(call->connection->session, call->stream_id, fields, count, NULL);
    trimaran_rpc_mark_dirty(call->connection);
}

/* Queue the end of a call that is CALL_FINISHED already. */
void trimaran_rpc_respond(trimaran_rpc_call *call, int http_status, int status,
                          const char *message) {
    assert(call->flags & CALL_FINISHED);
    call->status = (uint8_t)(status >= 0 && status < STATUSES ? status : STATUS_UNKNOWN);
    if (message != NULL && *message != 0) {
        call->status_message = percent_encode(message);
    }
    if (call->flags & CALL_GONE) {
        return;
    }
    if (call->flags & CALL_RESPONDED) {
        wake(call);
    } else {
        respond_at_once(call, http_status);
    }
}

void trimaran_rpc_finish(trimaran_rpc_call *call, int status, const char *message) {
    if (call->flags & CALL_FINISHED) {
        assert(call->flags & CALL_COLD);
        return;
    }
    call->flags |= CALL_FINISHED;
    trimaran_rpc_respond(call, call->flags & CALL_PLAIN ? 503 : 200, status, message);
}

static nghttp2_nv copied(const char *name, const char *value) {
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value),
                        NGHTTP2_NV_FLAG_NONE};
}

int trimaran_rpc_is_plain(const trimaran_rpc_call *call) {
    return (call->flags & CALL_PLAIN) != 0;
}

void trimaran_rpc_answer(trimaran_rpc_call *call, int http_status, const char *content_type,
                         uint64_t content_length, const uint8_t *body, size_t size) {
    assert(call->flags & CALL_PLAIN);
    assert(size == 0 || size == content_length);
    if (call->flags & (CALL_GONE | CALL_FINISHED)) {
        return;
    }
    if (call->connection->queued_bytes > call->server->options.queued_bytes_max) {
        trimaran_rpc_finish(call, STATUS_UNAVAILABLE, "too many replies are unread");
        return;
    }
    char status[16], length[24];
    snprintf(status, sizeof status, "%d", http_status);
    snprintf(length, sizeof length, "%" PRIu64, content_length);
    nghttp2_nv fields[] = {copied(":status", status), copied("content-length", length),
                           copied("content-type", content_type)};
    size_t count = *content_type != 0 ? 3 : 2;
    call->flags |= CALL_FINISHED | CALL_RESPONDED;
    nghttp2_data_provider provider = {.source = {.ptr = call}, .read_callback = read_data};
    if (size > 0) {
        trimaran_rpc_buffer_append(&call->out, body, size);
        call->connection->queued_bytes += size;
    }
    nghttp2_submit_response(call->connection->session, call->stream_id, fields, count,
                            size > 0 ? &provider : NULL);
    trimaran_rpc_mark_dirty(call->connection);
}
