/* gRPC over HTTP/2 for many connections on one thread.
 *
 * The server knows framing, flow control and the gRPC envelope; it knows no service. A handler
 * names the methods it serves here, without the interpreter ("hot"); every other path is queued as
 * an event for Python ("cold"). Nothing in this file blocks or takes the GIL.
 *
 * One turn of the owner's loop is: trimaran_rpc_poll (read, dispatch), whatever the owner does with
 * the requests as one batch, trimaran_rpc_flush (write). Replies may be queued at any time between
 * two calls, from the same thread, and leave with the next flush.
 */
#ifndef TRIMARAN_RPC_H
#define TRIMARAN_RPC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct trimaran_rpc_server trimaran_rpc_server;
typedef struct trimaran_rpc_call trimaran_rpc_call;
typedef struct trimaran_rpc_connection trimaran_rpc_connection;

/* What serves the hot methods. All functions run on the thread that polls the server. */
typedef struct trimaran_rpc_handler {
    void *context;
    /* Return a number >= 0 for a path served here ("/etcdserverpb.KV/Put"), -1 for a cold one. The
     * answer is remembered: it must not change while the server lives. */
    int (*method)(void *context, const char *path, size_t size);
    /* One whole request message; data is valid only during the call. */
    void (*message)(void *context, trimaran_rpc_call *call, int method, const uint8_t *data,
                    size_t size);
    /* The client will send no more; a stream may still be answered. A unary call that has had no
     * message must be finished here with an error. */
    void (*half_closed)(void *context, trimaran_rpc_call *call, int method);
    /* The stream is gone (reset, its connection lost, or ended by the server for a breach of
     * limits); call dies on return. Comes for every hot call that the handler has not finished,
     * also for one that never had a message. */
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

/* Value of a request header that gRPC itself does not use ("token", "hasleader"), not terminated;
 * NULL where the client sent none. Valid as long as the call. */
const char *trimaran_rpc_metadata(const trimaran_rpc_call *call, const char *name, size_t *size);

/* Whether the client asked not to be served while no leader is known ("hasleader": "true"). */
static inline int trimaran_rpc_requires_leader(const trimaran_rpc_call *call)
{
    size_t size;
    const char *value = trimaran_rpc_metadata(call, "hasleader", &size);
    return value != NULL && size == 4 && memcmp(value, "true", 4) == 0;
}

/* Every limit of a server. Zero in no field means "without limit". */
typedef struct trimaran_rpc_options {
    uint32_t connections_max;      /* further ones wait in the listening socket's backlog */
    uint32_t streams_max;          /* open calls of one connection */
    uint32_t calls_max;            /* open calls of the server */
    uint32_t header_bytes_max;     /* of one request, names, values and 32 for each; < 65536 */
    uint32_t message_bytes_max;    /* one request message, after decompression */
    uint64_t assembly_bytes_max;   /* all partly received messages of the server together */
    uint64_t queued_bytes_max;     /* replies a connection may leave unread before it is refused */
    uint32_t queue_high_bytes;     /* of one call: passing it arms `writable` */
    uint32_t queue_low_bytes;      /* of one call: falling below it calls `writable` */
    uint32_t sniff_timeout_ms;     /* from accept to the first bytes that tell the protocol */
    uint32_t ping_min_ms;          /* a client may ping no more often */
    uint32_t ping_interval_ms;     /* silence after which the server pings */
    uint32_t ping_timeout_ms;      /* silence after that ping until the connection is closed */
} trimaran_rpc_options;

/* etcd's own limits where it has them. */
void trimaran_rpc_defaults(trimaran_rpc_options *options);

/* Make a server; handler may be NULL (all methods cold); what its context points to must outlive
 * the server. Returns 0 or -errno. */
int trimaran_rpc_create(const trimaran_rpc_options *options, const trimaran_rpc_handler *handler,
                        trimaran_rpc_server **server);
/* Close every connection and listening socket; `closed` is called for every hot call. Cold calls
 * not yet released stay valid until they are. */
void trimaran_rpc_destroy(trimaran_rpc_server *server);

/* The one descriptor to watch for reading. */
int trimaran_rpc_fileno(const trimaran_rpc_server *server);
/* Serve a listening non-blocking socket, which the server then owns; id is reported with foreign
 * connections. Returns 0 or -errno. */
int trimaran_rpc_listen(trimaran_rpc_server *server, int fd, int id);
/* Accept, read and dispatch. Returns 1 where more is waiting than one turn may take, else 0. */
int trimaran_rpc_poll(trimaran_rpc_server *server);
/* Write what is queued. Returns 1 where more could be written at once than one turn may, else 0. */
int trimaran_rpc_flush(trimaran_rpc_server *server);
/* Time-outs and keepalive; to be called about every second. */
void trimaran_rpc_tick(trimaran_rpc_server *server);
/* Stop accepting, and tell every client to go away once its open calls are answered. The next tick
 * says so finally and ends the streams; calls still without an answer stay open. */
void trimaran_rpc_shutdown(trimaran_rpc_server *server);

typedef struct trimaran_rpc_counters {
    uint64_t accepted;      /* connections */
    uint64_t connections;   /* open now */
    uint64_t calls;         /* open now */
    uint64_t requests;      /* calls ever begun */
    uint64_t received_bytes;
    uint64_t sent_bytes;
    uint64_t refused;       /* connections ended for a breach of protocol or limits */
    int64_t accept_error;   /* last -errno of accept since the counter was read, else 0 */
} trimaran_rpc_counters;
void trimaran_rpc_count(trimaran_rpc_server *server, trimaran_rpc_counters *counters);

/* Cold calls: what happened, in order, for Python to take after a poll or flush. */
enum trimaran_rpc_event_kind {
    TRIMARAN_RPC_OPEN,        /* call: a new call; its headers are complete */
    TRIMARAN_RPC_MESSAGE,     /* call, data, size: one request message */
    TRIMARAN_RPC_HALF_CLOSED, /* call: the client will send no more */
    TRIMARAN_RPC_CLOSED,      /* call: gone; nothing may be queued on it any more */
    TRIMARAN_RPC_DRAINED,     /* call: its queue fell below the low mark */
    TRIMARAN_RPC_FOREIGN,     /* fd, listener: a connection that does not speak HTTP/2 */
    TRIMARAN_RPC_OUTPUT,      /* connection: an attached one has bytes to take */
};
typedef struct trimaran_rpc_event {
    enum trimaran_rpc_event_kind kind;
    int fd;
    int listener;
    trimaran_rpc_call *call;
    trimaran_rpc_connection *connection;
    uint8_t *data; /* the taker's own, to be freed */
    size_t size;
} trimaran_rpc_event;
/* Tell whether there is an event to take. */
int trimaran_rpc_pending(const trimaran_rpc_server *server);
/* Take the oldest event; returns 1, or 0 where there is none. */
int trimaran_rpc_next_event(trimaran_rpc_server *server, trimaran_rpc_event *event);

/* Each cold call is Python's until it releases it, whatever became of the stream. Releasing an
 * unfinished call cancels it. */
void trimaran_rpc_release(trimaran_rpc_call *call);
/* Whether a cold call is HTTP without gRPC: a GET or HEAD, ended by an answer instead of messages
 * and a status. Its body, if any, is dropped. */
int trimaran_rpc_is_plain(const trimaran_rpc_call *call);
/* End such a call; content_type may be "", body is empty for HEAD whatever content_length says. */
void trimaran_rpc_answer(trimaran_rpc_call *call, int http_status, const char *content_type,
                         uint64_t content_length, const uint8_t *body, size_t size);
/* Request bytes Python has taken off its queue; re-opens the client's window. */
void trimaran_rpc_consumed(trimaran_rpc_call *call, size_t size);
/* The request headers as a run of (name size, value size: 16 bits each, native order), name, value;
 * ":path" is among them, and ":method" where it is GET or HEAD. */
const uint8_t *trimaran_rpc_headers(const trimaran_rpc_call *call, size_t *size);
/* The client's time limit in microseconds, 0 where it gave none. */
uint64_t trimaran_rpc_timeout_us(const trimaran_rpc_call *call);

/* A connection whose bytes the owner carries itself (TLS): feed takes what arrived, take returns
 * what must leave, valid until the next call on the server. Both return -errno when the connection
 * is over; take first returns everything still to be sent. detach ends it. */
int trimaran_rpc_attach(trimaran_rpc_server *server, trimaran_rpc_connection **connection);
int trimaran_rpc_feed(trimaran_rpc_connection *connection, const uint8_t *data, size_t size);
int64_t trimaran_rpc_take(trimaran_rpc_connection *connection, const uint8_t **data);
void trimaran_rpc_detach(trimaran_rpc_connection *connection);

#endif
