/* One connection: from its first bytes to its end, reading, writing and time-outs. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "rpc_internal.h"

trimaran_rpc_connection *trimaran_rpc_connection_new(trimaran_rpc_server *server, int fd,
                                                     int listener) {
    trimaran_rpc_connection *connection = trimaran_rpc_allocate(sizeof *connection);
    connection->kind = KIND_CONNECTION;
    connection->fd = fd;
    connection->listener = listener;
    connection->server = server;
    connection->opened_ms = connection->received_ms = server->now_ms;
    connection->control_ms = server->now_ms;
    connection->next = server->connections;
    if (connection->next != NULL) {
        connection->next->previous = connection;
    }
    server->connections = connection;
    server->counters.connections++;
    return connection;
}

void trimaran_rpc_mark_dirty(trimaran_rpc_connection *connection) {
    if (connection->dirty || connection->state == STATE_DEAD) {
        return;
    }
    trimaran_rpc_server *server = connection->server;
    if (connection->fd < 0) {
        if (!connection->reported) {
            connection->reported = true;
            trimaran_rpc_push_event(server, TRIMARAN_RPC_OUTPUT)->connection = connection;
        }
        return;
    }
    connection->dirty = true;
    connection->next_dirty = NULL;
    if (server->dirty == NULL) {
        server->dirty = connection;
    } else {
        server->dirty_last->next_dirty = connection;
    }
    server->dirty_last = connection;
}

/* End the connection; its memory goes with trimaran_rpc_reap, never under a caller's hands. */
void trimaran_rpc_kill(trimaran_rpc_connection *connection) {
    if (connection->state == STATE_DEAD) {
        return;
    }
    connection->state = STATE_DEAD;
    connection->next_dead = connection->server->dead;
    connection->server->dead = connection;
    if (connection->fd < 0 && !connection->reported) {
        connection->reported = true;
        trimaran_rpc_push_event(connection->server, TRIMARAN_RPC_OUTPUT)->connection = connection;
    }
}

static void unlink_connection(trimaran_rpc_connection *connection) {
    trimaran_rpc_server *server = connection->server;
    if (connection->next != NULL) {
        connection->next->previous = connection->previous;
    }
    if (connection->previous != NULL) {
        connection->previous->next = connection->next;
    } else {
        server->connections = connection->next;
    }
    for (trimaran_rpc_connection **at = &server->unread; *at != NULL; at = &(*at)->next_unread) {
        if (*at == connection) {
            *at = connection->next_unread;
            break;
        }
    }
    server->counters.connections--;
}

/* Take a dead connection off the list of those to be written. */
static void unlink_dirty(trimaran_rpc_connection *connection) {
    trimaran_rpc_server *server = connection->server;
    trimaran_rpc_connection *before = NULL;
    for (trimaran_rpc_connection *at = server->dirty; at != NULL; at = at->next_dirty) {
        if (at == connection) {
            *(before == NULL ? &server->dirty : &before->next_dirty) = at->next_dirty;
            if (server->dirty_last == at) {
                server->dirty_last = before;
            }
            return;
        }
        before = at;
    }
}

static void bury(trimaran_rpc_connection *connection) {
    while (connection->calls != NULL) {
        trimaran_rpc_call_gone(connection->calls);
    }
    nghttp2_session_del(connection->session);
    connection->session = NULL;
    if (connection->dirty) {
        unlink_dirty(connection);
    }
    unlink_connection(connection);
    if (connection->fd >= 0) {
        close(connection->fd);
    }
    trimaran_rpc_buffer_reset(&connection->unsent, 0);
    if (connection->fd >= 0 || connection->detached) {
        free(connection);
    }
}

void trimaran_rpc_reap(trimaran_rpc_server *server) {
    while (server->dead != NULL) {
        trimaran_rpc_connection *connection = server->dead;
        server->dead = connection->next_dead;
        bury(connection);
    }
}

void trimaran_rpc_refuse(trimaran_rpc_connection *connection, const char *reason) {
    if (connection->state >= STATE_ENDING) {
        return;
    }
    connection->server->counters.refused++;
    connection->state = STATE_ENDING;
    int32_t last = nghttp2_session_get_last_proc_stream_id(connection->session);
    nghttp2_submit_goaway(connection->session, NGHTTP2_FLAG_NONE, last, NGHTTP2_ENHANCE_YOUR_CALM,
                          (const uint8_t *)reason, strlen(reason));
    trimaran_rpc_mark_dirty(connection);
}

/* Hand bytes to the session. A breach of protocol leaves its GOAWAY to the next flush. */
static void feed(trimaran_rpc_connection *connection, const uint8_t *data, size_t size) {
    connection->received_ms = connection->server->now_ms;
    connection->server->counters.received_bytes += size;
    if (connection->state >= STATE_ENDING) {
        return;
    }
    ssize_t used = nghttp2_session_mem_recv(connection->session, data, size);
    if (used < 0 && connection->state < STATE_ENDING) {
        connection->server->counters.refused++;
        connection->state = STATE_ENDING;
    } else if (nghttp2_session_get_outbound_queue_size(connection->session) >
               connection->server->options.streams_max + CONTROL_BURST) {
        trimaran_rpc_refuse(connection, "too_many_unread_frames");
    }
    trimaran_rpc_mark_dirty(connection);
}

/* Let go of a connection that speaks something else; Python gets its descriptor, unread. */
static void give_away(trimaran_rpc_connection *connection) {
    trimaran_rpc_server *server = connection->server;
    epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, connection->fd, NULL);
    trimaran_rpc_event *event = trimaran_rpc_push_event(server, TRIMARAN_RPC_FOREIGN);
    event->fd = connection->fd;
    event->listener = connection->listener;
    connection->fd = -1;
    connection->detached = true;
    connection->reported = true;
    trimaran_rpc_kill(connection);
}

/* "PRI" decides for HTTP/2, as no other method begins so (RFC 9113 §3.4). Nothing is consumed. */
static bool sniff(trimaran_rpc_connection *connection, bool hung_up) {
    static const char preface[] = "PRI";
    char first[sizeof preface - 1];
    ssize_t count = recv(connection->fd, first, sizeof first, MSG_PEEK | MSG_DONTWAIT);
    if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) {
        trimaran_rpc_kill(connection);
        return false;
    }
    if (count < 0) {
        return false;
    }
    if (memcmp(first, preface, (size_t)count) != 0) {
        give_away(connection);
        return false;
    }
    if ((size_t)count < sizeof first) {
        if (hung_up) {
            trimaran_rpc_kill(connection); /* there will be no more of it */
        }
        return false;
    }
    if (trimaran_rpc_session_new(connection) != 0) {
        trimaran_rpc_kill(connection);
        return false;
    }
    return true;
}

/* Remember a connection that has more to read than one turn may take. */
static void mark_unread(trimaran_rpc_connection *connection) {
    if (!connection->unread) {
        connection->unread = true;
        connection->next_unread = connection->server->unread;
        connection->server->unread = connection;
    }
}

/* Readiness is edge-triggered: a short read means empty, unless the peer has also hung up. */
void trimaran_rpc_connection_ready(trimaran_rpc_connection *connection, bool hung_up) {
    trimaran_rpc_server *server = connection->server;
    if (connection->state == STATE_DEAD ||
        (connection->state == STATE_SNIFFING && !sniff(connection, hung_up))) {
        return;
    }
    if (rpc_buffer_size(&connection->unsent) > 0) {
        trimaran_rpc_mark_dirty(connection);
    }
    for (int round = 0; round < 2; round++) {
        ssize_t count = recv(connection->fd, server->in, IN_BYTES, MSG_DONTWAIT);
        if (count > 0) {
            feed(connection, server->in, (size_t)count);
        } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
            trimaran_rpc_kill(connection);
        }
        if (connection->state == STATE_DEAD || count < 0 || (count < IN_BYTES && !hung_up)) {
            return;
        }
    }
    mark_unread(connection);
}

/* Fill the server's output with frames of this connection; false where the session broke. */
static bool fill_output(trimaran_rpc_connection *connection) {
    trimaran_rpc_server *server = connection->server;
    server->out_size = 0;
    server->out_full = false;
    while (!server->out_full) {
        const uint8_t *data;
        ssize_t size = nghttp2_session_mem_send(connection->session, &data);
        if (size < 0) {
            return false;
        }
        if (size == 0) {
            break;
        }
        assert(server->out_size + (size_t)size <= OUT_BYTES);
        memcpy(server->out + server->out_size, data, (size_t)size);
        server->out_size += (size_t)size;
        server->out_full = OUT_BYTES - server->out_size < 2 * FRAME_BYTES_MAX;
    }
    return true;
}

/* Send as much as the socket takes; returns the count, or -1 where the connection is lost. */
static ssize_t send_some(trimaran_rpc_connection *connection, const uint8_t *data, size_t size) {
    size_t sent = 0;
    while (sent < size) {
        ssize_t count = send(connection->fd, data + sent, size - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count < 0 && errno == EAGAIN) {
            break;
        }
        if (count < 0) {
            return -1;
        }
        sent += (size_t)count;
    }
    connection->server->counters.sent_bytes += sent;
    return (ssize_t)sent;
}

/* Send what an earlier flush could not; returns true when there is nothing left of it. */
static bool send_unsent(trimaran_rpc_connection *connection) {
    rpc_buffer *unsent = &connection->unsent;
    if (rpc_buffer_size(unsent) == 0) {
        return true;
    }
    ssize_t sent = send_some(connection, unsent->data + unsent->head, rpc_buffer_size(unsent));
    if (sent < 0) {
        trimaran_rpc_kill(connection);
        return false;
    }
    unsent->head += (size_t)sent;
    if (rpc_buffer_size(unsent) > 0) {
        return false;
    }
    trimaran_rpc_buffer_reset(unsent, 0);
    return true;
}

static bool is_over(const trimaran_rpc_connection *connection) {
    return connection->state == STATE_ENDING ||
           (!nghttp2_session_want_read(connection->session) &&
            !nghttp2_session_want_write(connection->session));
}

bool trimaran_rpc_connection_flush(trimaran_rpc_connection *connection) {
    trimaran_rpc_server *server = connection->server;
    if (connection->session == NULL || connection->state == STATE_DEAD ||
        !send_unsent(connection)) {
        return false;
    }
    size_t total = 0;
    do {
        bool intact = fill_output(connection);
        ssize_t sent = send_some(connection, server->out, server->out_size);
        if (sent < 0 || !intact) {
            trimaran_rpc_kill(connection);
            return false;
        }
        if ((size_t)sent < server->out_size) {
            trimaran_rpc_buffer_append(&connection->unsent, server->out + sent,
                                       server->out_size - (size_t)sent);
            return false;
        }
        total += server->out_size;
    } while (server->out_full && total < FLUSH_BYTES_MAX);
    if (!server->out_full && is_over(connection)) {
        trimaran_rpc_kill(connection);
    }
    return server->out_full;
}

void trimaran_rpc_connection_tick(trimaran_rpc_connection *connection) {
    trimaran_rpc_server *server = connection->server;
    const trimaran_rpc_options *options = &server->options;
    uint64_t now_ms = server->now_ms;
    if (connection->state <= STATE_GREETING) {
        if (now_ms - connection->opened_ms >= options->sniff_timeout_ms) {
            trimaran_rpc_kill(connection);
        }
        return;
    }
    if (connection->state == STATE_ENDING) {
        /* Its last words had a whole tick to leave. */
        trimaran_rpc_kill(connection);
        return;
    }
    if (connection->ping_outstanding) {
        if (now_ms - connection->pinged_ms >= options->ping_timeout_ms) {
            trimaran_rpc_kill(connection);
        }
    } else if (now_ms - connection->received_ms >= options->ping_interval_ms) {
        connection->ping_outstanding = true;
        connection->pinged_ms = now_ms;
        nghttp2_submit_ping(connection->session, NGHTTP2_FLAG_NONE, NULL);
        trimaran_rpc_mark_dirty(connection);
    }
}

int trimaran_rpc_attach(trimaran_rpc_server *server, trimaran_rpc_connection **result) {
    if (server->shutting_down) {
        return -ESHUTDOWN;
    }
    if (server->counters.connections >= server->options.connections_max) {
        return -EMFILE;
    }
    trimaran_rpc_connection *connection = trimaran_rpc_connection_new(server, -1, -1);
    int rc = trimaran_rpc_session_new(connection);
    if (rc != 0) {
        connection->detached = true;
        trimaran_rpc_kill(connection);
        trimaran_rpc_reap(server);
        return rc;
    }
    server->counters.accepted++;
    *result = connection;
    return 0;
}

int trimaran_rpc_feed(trimaran_rpc_connection *connection, const uint8_t *data, size_t size) {
    if (connection->state == STATE_DEAD) {
        return -ENOTCONN;
    }
    feed(connection, data, size);
    return connection->state >= STATE_ENDING ? -EPROTO : 0;
}

int64_t trimaran_rpc_take(trimaran_rpc_connection *connection, const uint8_t **data) {
    trimaran_rpc_server *server = connection->server;
    connection->reported = false;
    if (connection->state == STATE_DEAD) {
        return -ENOTCONN;
    }
    if (!fill_output(connection)) {
        trimaran_rpc_kill(connection);
        return -EPROTO;
    }
    if (server->out_size == 0 && is_over(connection)) {
        trimaran_rpc_kill(connection);
        return -ENOTCONN;
    }
    server->counters.sent_bytes += server->out_size;
    *data = server->out;
    return (int64_t)server->out_size;
}

void trimaran_rpc_detach(trimaran_rpc_connection *connection) {
    connection->detached = true;
    if (connection->session == NULL) {
        free(connection); /* buried already */
    } else {
        trimaran_rpc_kill(connection);
    }
}
