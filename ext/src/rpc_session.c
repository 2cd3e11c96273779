/* The nghttp2 session of a connection: its options and what its callbacks do with frames. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "rpc_internal.h"

enum { PING_STRIKES_MAX = 2, PING_IDLE_MIN_MS = 2 * 3600 * 1000 };

/* Frames of one stream mostly come together, so the last call is looked at first. */
static trimaran_rpc_call *find_call(trimaran_rpc_connection *connection, int32_t stream_id) {
    trimaran_rpc_call *call = connection->current;
    if (call != NULL && call->stream_id == stream_id) {
        return call;
    }
    call = nghttp2_session_get_stream_user_data(connection->session, stream_id);
    if (call != NULL) {
        connection->current = call;
    }
    return call;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    trimaran_rpc_connection *connection = user;
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST) {
        return 0;
    }
    trimaran_rpc_call *call = trimaran_rpc_call_new(connection, frame->hd.stream_id);
    connection->current = call;
    return nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, call) == 0
               ? 0
               : NGHTTP2_ERR_CALLBACK_FAILURE;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, nghttp2_rcbuf *name,
                     nghttp2_rcbuf *value, uint8_t flags, void *user) {
    (void)session;
    (void)flags;
    trimaran_rpc_call *call = find_call(user, frame->hd.stream_id);
    if (call == NULL || frame->headers.cat != NGHTTP2_HCAT_REQUEST ||
        call->flags & CALL_DISCARD) {
        return 0;
    }
    nghttp2_vec name_bytes = nghttp2_rcbuf_get_buf(name);
    nghttp2_vec value_bytes = nghttp2_rcbuf_get_buf(value);
    trimaran_rpc_call_header(call, name_bytes.base, name_bytes.len, value_bytes.base,
                             value_bytes.len);
    return 0;
}

/* grpc-go's rule: no more often than ping_min_ms, two strikes allowed, and sending headers or data
 * clears them; with no call open, once in two hours. */
static void on_client_ping(trimaran_rpc_connection *connection) {
    trimaran_rpc_server *server = connection->server;
    uint64_t since = server->now_ms - connection->client_ping_ms;
    uint64_t least = connection->call_count == 0 ? PING_IDLE_MIN_MS : server->options.ping_min_ms;
    bool first = connection->client_ping_ms == 0;
    connection->client_ping_ms = server->now_ms;
    if (connection->sent_since_ping) {
        connection->sent_since_ping = false;
        connection->ping_strikes = 0;
        return;
    }
    if (first || since >= least) {
        return;
    }
    if (++connection->ping_strikes > PING_STRIKES_MAX) {
        trimaran_rpc_refuse(connection, "too_many_pings");
    }
}

/* Frames that cost work and carry nothing are let through at a bounded rate. */
static void on_control_frame(trimaran_rpc_connection *connection) {
    uint64_t now_ms = connection->server->now_ms;
    uint64_t regained = (now_ms - connection->control_ms) * CONTROL_RATE_PER_S / 1000;
    if (regained > 0) {
        connection->control_frames -=
            regained < connection->control_frames ? (uint32_t)regained : connection->control_frames;
        connection->control_ms = now_ms;
    }
    if (++connection->control_frames > CONTROL_BURST) {
        trimaran_rpc_refuse(connection, "too_many_control_frames");
    }
}

static void on_request_part(trimaran_rpc_connection *connection, const nghttp2_frame *frame) {
    trimaran_rpc_call *call = find_call(connection, frame->hd.stream_id);
    if (call == NULL) {
        return;
    }
    if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
        trimaran_rpc_call_open(call);
    }
    if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) {
        trimaran_rpc_call_half_close(call);
    } else if (frame->hd.length == 0) {
        on_control_frame(connection);
    }
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    (void)session;
    trimaran_rpc_connection *connection = user;
    switch (frame->hd.type) {
    case NGHTTP2_DATA:
    case NGHTTP2_HEADERS:
        on_request_part(connection, frame);
        break;
    case NGHTTP2_SETTINGS:
        if (connection->state == STATE_GREETING) {
            connection->state = STATE_OPEN;
        }
        on_control_frame(connection);
        break;
    case NGHTTP2_PING:
        if (frame->hd.flags & NGHTTP2_FLAG_ACK) {
            connection->ping_outstanding = false;
        } else {
            on_client_ping(connection);
        }
        break;
    case NGHTTP2_PRIORITY:
        on_control_frame(connection);
        break;
    default:
        break;
    }
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data,
                   size_t size, void *user) {
    (void)flags;
    trimaran_rpc_connection *connection = user;
    trimaran_rpc_call *call = find_call(connection, stream_id);
    if (call == NULL) {
        return nghttp2_session_consume(session, stream_id, size) == 0
                   ? 0
                   : NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    trimaran_rpc_call_receive(call, data, size);
    /* A cold stream whose messages are not being taken keeps its window shut. */
    if (call->backlog_bytes > BACKLOG_BYTES && !(call->flags & CALL_FINISHED)) {
        call->owed_bytes += (uint32_t)size;
        nghttp2_session_consume_connection(session, size);
    } else {
        nghttp2_session_consume(session, stream_id, size);
    }
    return 0;
}

static int on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    trimaran_rpc_connection *connection = user;
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) {
        return 0;
    }
    connection->sent_since_ping = true;
    /* The status is out while the client still sends: RFC 9113 §8.1 asks for RST_STREAM. */
    if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM && connection->open_remotely > 0) {
        trimaran_rpc_call *call =
            nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
        if (call != NULL && !(call->flags & CALL_REMOTE_ENDED)) {
            nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id,
                                      NGHTTP2_NO_ERROR);
        }
    }
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code,
                           void *user) {
    (void)error_code;
    (void)user;
    trimaran_rpc_call *call = nghttp2_session_get_stream_user_data(session, stream_id);
    if (call != NULL) {
        trimaran_rpc_call_gone(call);
    }
    return 0;
}

static int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error,
                            void *user) {
    (void)session;
    (void)frame;
    (void)error;
    trimaran_rpc_connection *connection = user;
    on_control_frame(connection);
    return 0;
}

int trimaran_rpc_session_setup(trimaran_rpc_server *server) {
    if (nghttp2_session_callbacks_new(&server->callbacks) != 0 ||
        nghttp2_option_new(&server->option) != 0) {
        return -ENOMEM;
    }
    nghttp2_session_callbacks *callbacks = server->callbacks;
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback2(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_sent);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, on_invalid_frame);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, trimaran_rpc_send_data);
    nghttp2_option_set_no_auto_window_update(server->option, 1);
    nghttp2_option_set_no_closed_streams(server->option, 1);
    nghttp2_option_set_no_http_messaging(server->option, 1); /* rpc_headers.c does it */
    nghttp2_option_set_stream_reset_rate_limit(server->option, RESET_BURST, RESET_RATE_PER_S);
    nghttp2_option_set_max_send_header_block_length(server->option, 256 * 1024);
    return 0;
}

int trimaran_rpc_session_new(trimaran_rpc_connection *connection) {
    trimaran_rpc_server *server = connection->server;
    nghttp2_mem memory = trimaran_rpc_memory_functions(&server->memory);
    if (nghttp2_session_server_new3(&connection->session, server->callbacks, connection,
                                    server->option, &memory) != 0) {
        return -ENOMEM;
    }
    nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, server->options.streams_max},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, server->options.header_bytes_max},
        {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1},
    };
    nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, settings,
                            sizeof settings / sizeof *settings);
    nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0,
                                          CONNECTION_WINDOW_BYTES);
    connection->state = STATE_GREETING;
    trimaran_rpc_mark_dirty(connection);
    return 0;
}
