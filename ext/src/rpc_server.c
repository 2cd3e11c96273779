/* The server: one epoll set for the listening sockets and all connections. */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "rpc_internal.h"

void trimaran_rpc_defaults(trimaran_rpc_options *options) {
    *options = (trimaran_rpc_options){
        .connections_max = 10000,
        .streams_max = 16384,
        .calls_max = 262144,
        .header_bytes_max = 16384,
        .message_bytes_max = 2097152,
        .assembly_bytes_max = 256 << 20,
        .queued_bytes_max = 64 << 20,
        .queue_high_bytes = 1 << 20,
        .queue_low_bytes = 256 << 10,
        .sniff_timeout_ms = 10000,
        .ping_min_ms = 5000,
        .ping_interval_ms = 2 * 3600 * 1000,
        .ping_timeout_ms = 20000,
    };
}

static void update_clock(trimaran_rpc_server *server) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    server->now_ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int trimaran_rpc_create(const trimaran_rpc_options *options, const trimaran_rpc_handler *handler,
                        trimaran_rpc_server **result) {
    if (options->header_bytes_max > 65535 || options->queue_low_bytes > options->queue_high_bytes ||
        options->message_bytes_max == UINT32_MAX) {
        return -EINVAL;
    }
    trimaran_rpc_server *server = trimaran_rpc_allocate(sizeof *server);
    server->options = *options;
    if (handler != NULL) {
        server->handler = *handler;
        server->handled = true;
    }
    server->accepting = true;
    update_clock(server);
    int rc = trimaran_rpc_session_setup(server);
    server->epoll_fd = rc == 0 ? epoll_create1(EPOLL_CLOEXEC) : -1;
    if (server->epoll_fd < 0) {
        rc = rc != 0 ? rc : -errno;
        trimaran_rpc_server_free(server);
        return rc;
    }
    *result = server;
    return 0;
}

int trimaran_rpc_fileno(const trimaran_rpc_server *server) {
    return server->epoll_fd;
}

static int watch_listener(trimaran_rpc_server *server, rpc_listener *listener) {
    struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = listener}};
    return epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, listener->fd, &event) == 0 ? 0 : -errno;
}

int trimaran_rpc_listen(trimaran_rpc_server *server, int fd, int id) {
    rpc_listener *listener = trimaran_rpc_allocate(sizeof *listener);
    *listener = (rpc_listener){.kind = KIND_LISTENER, .fd = fd, .id = id};
    int rc = server->accepting ? watch_listener(server, listener) : 0;
    if (rc != 0) {
        free(listener);
        return rc;
    }
    listener->next = server->listeners;
    server->listeners = listener;
    return 0;
}

/* At the limit of connections, clients wait in the backlog until one ends; where descriptors run
 * out, until a tick. */
static void pause_accepting(trimaran_rpc_server *server) {
    for (rpc_listener *at = server->listeners; at != NULL; at = at->next) {
        epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, at->fd, NULL);
    }
    server->accepting = false;
}

static void resume_accepting(trimaran_rpc_server *server) {
    if (server->accepting || server->shutting_down ||
        server->counters.connections >= server->options.connections_max) {
        return;
    }
    server->accepting = true;
    server->starved = false;
    for (rpc_listener *at = server->listeners; at != NULL; at = at->next) {
        watch_listener(server, at);
    }
}

static void accept_some(trimaran_rpc_server *server, rpc_listener *listener) {
    for (int i = 0; i < ACCEPTS_MAX && server->accepting; i++) {
        if (server->counters.connections >= server->options.connections_max) {
            pause_accepting(server);
            return;
        }
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
                server->counters.accept_error = -errno;
                server->starved = true;
                pause_accepting(server);
            }
            return;
        }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on Unix sockets */
        trimaran_rpc_connection *connection =
            trimaran_rpc_connection_new(server, fd, listener->id);
        server->counters.accepted++;
        /* Edge-triggered for both directions: never changed again. */
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                    .data = {.ptr = connection}};
        if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
            server->counters.accept_error = -errno;
            trimaran_rpc_kill(connection);
        }
    }
}

static void dispatch(trimaran_rpc_server *server, const struct epoll_event *event) {
    int kind = *(int *)event->data.ptr;
    if (kind == KIND_LISTENER) {
        accept_some(server, event->data.ptr);
        return;
    }
    assert(kind == KIND_CONNECTION);
    bool hung_up = event->events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
    trimaran_rpc_connection_ready(event->data.ptr, hung_up);
}

/* Connections whose last read stopped at a bound, not at the end of the data. */
static void read_unread(trimaran_rpc_server *server) {
    trimaran_rpc_connection *unread = server->unread;
    server->unread = NULL;
    while (unread != NULL) {
        trimaran_rpc_connection *connection = unread;
        unread = unread->next_unread;
        connection->unread = false;
        trimaran_rpc_connection_ready(connection, true);
    }
}

int trimaran_rpc_poll(trimaran_rpc_server *server) {
    struct epoll_event events[POLL_EVENTS];
    update_clock(server);
    read_unread(server);
    int count = POLL_EVENTS;
    for (int round = 0; round < POLL_ROUNDS && count > 1; round++) {
        count = epoll_wait(server->epoll_fd, events, POLL_EVENTS, 0);
        for (int i = 0; i < count; i++) {
            dispatch(server, &events[i]);
        }
    }
    trimaran_rpc_reap(server);
    if (!server->starved) {
        resume_accepting(server);
    }
    return server->unread != NULL || count == POLL_EVENTS;
}

/* Tell a client to go away: finally where it has no call open, else with notice, so that what it
 * sent in the meantime is still served. */
static void dismiss(trimaran_rpc_connection *connection, bool finally) {
    if (finally || connection->call_count == 0) {
        int32_t last = nghttp2_session_get_last_proc_stream_id(connection->session);
        nghttp2_submit_goaway(connection->session, NGHTTP2_FLAG_NONE, last, NGHTTP2_NO_ERROR, NULL,
                              0);
        connection->told_to_go = true;
    } else {
        nghttp2_submit_shutdown_notice(connection->session);
    }
    trimaran_rpc_mark_dirty(connection);
}

static void call_writable(trimaran_rpc_server *server) {
    for (size_t i = 0; i < server->writable_count; i++) {
        trimaran_rpc_call *call = server->writable[i];
        if (call == NULL) {
            continue;
        }
        call->flags &= ~(uint32_t)CALL_WRITABLE;
        server->writable[i] = NULL;
        if (!(call->flags & CALL_FINISHED)) {
            server->handler.writable(server->handler.context, call, call->method);
        }
    }
    server->writable_count = 0;
}

int trimaran_rpc_flush(trimaran_rpc_server *server) {
    trimaran_rpc_connection *dirty = server->dirty;
    server->dirty = server->dirty_last = NULL;
    while (dirty != NULL) {
        trimaran_rpc_connection *connection = dirty;
        dirty = dirty->next_dirty;
        connection->dirty = false;
        if (trimaran_rpc_connection_flush(connection)) {
            trimaran_rpc_mark_dirty(connection);
        }
    }
    call_writable(server);
    trimaran_rpc_reap(server);
    return server->dirty != NULL;
}

/* A call that has sent messages and no status is a stream, which need never end by itself. */
static void end_streams(trimaran_rpc_connection *connection) {
    for (trimaran_rpc_call *call = connection->calls; call != NULL; call = call->next) {
        if (call->flags & CALL_RESPONDED) {
            trimaran_rpc_call_fail(call, 200, STATUS_UNAVAILABLE, "the server is shutting down");
        }
    }
}

void trimaran_rpc_tick(trimaran_rpc_server *server) {
    update_clock(server);
    for (trimaran_rpc_connection *at = server->connections; at != NULL; at = at->next) {
        trimaran_rpc_connection_tick(at);
        if (server->shutting_down && at->state == STATE_OPEN && !at->told_to_go) {
            dismiss(at, true); /* the notice has had its round trip */
            end_streams(at);
        }
    }
    trimaran_rpc_reap(server);
    resume_accepting(server);
}

void trimaran_rpc_shutdown(trimaran_rpc_server *server) {
    if (server->shutting_down) {
        return;
    }
    server->shutting_down = true;
    if (server->accepting) {
        pause_accepting(server);
    }
    while (server->listeners != NULL) {
        rpc_listener *listener = server->listeners;
        server->listeners = listener->next;
        close(listener->fd);
        free(listener);
    }
    for (trimaran_rpc_connection *at = server->connections; at != NULL; at = at->next) {
        if (at->state == STATE_SNIFFING) {
            trimaran_rpc_kill(at);
        } else if (at->session != NULL && at->state < STATE_ENDING) {
            dismiss(at, false);
        }
    }
    trimaran_rpc_reap(server);
}

void trimaran_rpc_destroy(trimaran_rpc_server *server) {
    trimaran_rpc_shutdown(server);
    for (trimaran_rpc_connection *at = server->connections; at != NULL; at = at->next) {
        trimaran_rpc_kill(at);
    }
    server->shutting_down = true;
    trimaran_rpc_reap(server);
    close(server->epoll_fd);
    server->epoll_fd = -1;
    /* Calls that Python never heard of have nobody else to release them. */
    trimaran_rpc_event event;
    while (trimaran_rpc_next_event(server, &event)) {
        free(event.data);
        if (event.kind == TRIMARAN_RPC_OPEN) {
            trimaran_rpc_release(event.call);
        } else if (event.kind == TRIMARAN_RPC_FOREIGN) {
            close(event.fd);
        }
    }
    server->destroyed = true;
    if (server->cold_count == 0) {
        trimaran_rpc_server_free(server);
    }
}

void trimaran_rpc_count(trimaran_rpc_server *server, trimaran_rpc_counters *counters) {
    *counters = server->counters;
    server->counters.accept_error = 0;
}
