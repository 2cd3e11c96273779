/* What the files rpc_*.c share. */
#ifndef TRIMARAN_RPC_INTERNAL_H
#define TRIMARAN_RPC_INTERNAL_H

#include <nghttp2/nghttp2.h>
#include <stdbool.h>

#include "rpc.h"

enum {
    FRAME_BYTES_MAX = 16384 + 9 + 256, /* largest frame sent: default payload, header, padding */
    OUT_BYTES = 256 * 1024,            /* written with one send */
    IN_BYTES = 128 * 1024,             /* read with one recv */
    FLUSH_BYTES_MAX = 1 << 20,         /* of one connection in one flush, so that others get on */
    POLL_EVENTS = 256,
    POLL_ROUNDS = 8,
    ACCEPTS_MAX = 64,
    STREAM_WINDOW_BYTES = 1 << 20,
    CONNECTION_WINDOW_BYTES = 16 << 20,
    BACKLOG_BYTES = 64 * 1024, /* messages of one cold call not yet taken before its window shuts */
    KEPT_BYTES = 4096,         /* buffers up to this size stay with a recycled call */
    PREFIX_BYTES = 5,          /* gRPC: compressed flag, message size */
    PATHS = 64,
    CONTROL_BURST = 10000,      /* frames that carry nothing, at once */
    CONTROL_RATE_PER_S = 1000,  /* and in the long run */
    RESET_BURST = 10000,        /* calls a client cancels */
    RESET_RATE_PER_S = 1000,
};

enum { MEMORY_CLASSES = 7, MEMORY_SMALL_MAX = 2048 }; /* 32 bytes to 2048, by powers of two */

/* Where nghttp2's sessions get their memory: free lists by size. */
typedef struct rpc_memory {
    void *free[MEMORY_CLASSES];
    void *slabs;
} rpc_memory;

enum { STATUS_UNAVAILABLE = 14 };

enum { KIND_LISTENER, KIND_CONNECTION };

/* Bytes from head to tail of data are in use. */
typedef struct rpc_buffer {
    uint8_t *data;
    size_t head, tail, capacity;
} rpc_buffer;

enum call_flags {
    CALL_COLD = 1,           /* Python's, by events */
    CALL_REMOTE_ENDED = 2,   /* the client has half-closed */
    CALL_RESPONDED = 4,      /* response headers are submitted */
    CALL_DEFERRED = 8,       /* nghttp2 waits for nghttp2_session_resume_data */
    CALL_FINISHED = 16,      /* no more from the handler, and nothing more to it */
    CALL_RELEASED = 32,      /* cold: Python is done with it */
    CALL_GONE = 64,          /* its HTTP/2 stream is no more */
    CALL_HIGH = 128,         /* its queue has passed the high mark */
    CALL_WRITABLE = 256,     /* it stands in server->writable */
    CALL_OPENED = 512,       /* request headers were good */
    CALL_DISCARD = 1024,     /* header list too large: the stream is being reset */
    CALL_GZIP = 2048,        /* grpc-encoding: gzip */
    CALL_PLAIN = 4096,       /* HTTP without gRPC: answered by trimaran_rpc_answer */
};

/* Request header fields that decide about the call, noted as they come. */
enum seen_flags {
    SEEN_POST = 1,
    SEEN_CONTENT_TYPE = 2,   /* application/grpc */
    SEEN_BAD_TIMEOUT = 4,
    SEEN_BAD_ENCODING = 8,
    SEEN_METHOD = 16,
    SEEN_SCHEME = 32,
    SEEN_PATH = 64,
    SEEN_AUTHORITY = 128,
    SEEN_REGULAR = 256,      /* a field that is not a pseudo-header */
    SEEN_UNSOUND = 512,      /* not a well-formed HTTP/2 request */
    SEEN_GET = 1024,         /* GET or HEAD */
};

struct trimaran_rpc_call {
    trimaran_rpc_server *server;
    trimaran_rpc_connection *connection; /* NULL once CALL_GONE */
    trimaran_rpc_call *next, *previous;  /* of the connection; next also chains free calls */
    void *user;
    int32_t stream_id;
    int32_t method;
    uint32_t flags;
    uint16_t seen;
    uint8_t prefix_size;
    uint8_t prefix[PREFIX_BYTES];
    uint8_t status;
    uint32_t header_bytes;
    uint32_t backlog_bytes; /* cold: messages not yet taken */
    uint32_t owed_bytes;    /* cold: window withheld meanwhile */
    uint64_t timeout_us;
    char *status_message;   /* percent-encoded, malloc */
    rpc_buffer in;          /* the message being received */
    rpc_buffer out;         /* framed messages not yet in HTTP/2 frames */
    rpc_buffer headers;     /* metadata */
};

enum connection_state { STATE_SNIFFING, STATE_GREETING, STATE_OPEN, STATE_ENDING, STATE_DEAD };

struct trimaran_rpc_connection {
    int kind;
    int fd; /* -1: attached */
    int listener;
    enum connection_state state;
    trimaran_rpc_server *server;
    nghttp2_session *session;
    trimaran_rpc_connection *next, *previous;
    trimaran_rpc_connection *next_dirty, *next_unread, *next_dead;
    bool dirty, unread, reported, detached;
    trimaran_rpc_call *calls;
    trimaran_rpc_call *current; /* the call of the last frame */
    uint32_t call_count;
    uint32_t open_remotely; /* calls the client has not half-closed */
    rpc_buffer unsent;      /* what the full socket did not take */
    uint64_t queued_bytes;
    uint64_t opened_ms, received_ms, pinged_ms, client_ping_ms, control_ms;
    uint32_t control_frames;
    uint8_t ping_strikes;
    bool ping_outstanding, sent_since_ping, told_to_go;
};

typedef struct rpc_listener {
    int kind;
    int fd;
    int id;
    struct rpc_listener *next;
} rpc_listener;

typedef struct rpc_path {
    uint16_t size;
    int32_t method;
    char text[60];
} rpc_path;

struct trimaran_rpc_server {
    int epoll_fd;
    trimaran_rpc_options options;
    trimaran_rpc_handler handler; /* all NULL where there is none */
    bool handled, accepting, starved, shutting_down, destroyed, out_full;
    uint64_t now_ms;
    rpc_listener *listeners;
    trimaran_rpc_connection *connections;
    trimaran_rpc_connection *dirty, *dirty_last, *unread, *dead;
    trimaran_rpc_call *free_calls;
    void *slabs;
    trimaran_rpc_call **writable;
    size_t writable_count, writable_capacity;
    trimaran_rpc_event *events; /* ring; capacity is a power of two */
    size_t event_head, event_count, event_capacity;
    uint64_t cold_count; /* cold calls not yet released */
    uint64_t assembly_bytes;
    trimaran_rpc_counters counters;
    nghttp2_session_callbacks *callbacks;
    nghttp2_option *option;
    rpc_memory memory;
    rpc_path paths[PATHS];
    size_t out_size;
    uint8_t out[OUT_BYTES];
    uint8_t in[IN_BYTES];
};

/* rpc_buffer.c: memory that grows; running out of it aborts, as there is no state to go back to */
void *trimaran_rpc_allocate(size_t size);
void trimaran_rpc_buffer_room(rpc_buffer *buffer, size_t room);
void trimaran_rpc_buffer_append(rpc_buffer *buffer, const void *data, size_t size);
void trimaran_rpc_buffer_reset(rpc_buffer *buffer, size_t kept);
static inline size_t rpc_buffer_size(const rpc_buffer *buffer) {
    return buffer->tail - buffer->head;
}

/* rpc_memory.c */
nghttp2_mem trimaran_rpc_memory_functions(rpc_memory *memory);
void trimaran_rpc_memory_free(rpc_memory *memory);

/* rpc_headers.c */
void trimaran_rpc_call_header(trimaran_rpc_call *call, const uint8_t *name, size_t name_size,
                              const uint8_t *value, size_t value_size);
bool trimaran_rpc_headers_are_sound(const trimaran_rpc_call *call);

/* rpc_call.c */
trimaran_rpc_call *trimaran_rpc_call_new(trimaran_rpc_connection *connection, int32_t stream_id);
void trimaran_rpc_call_open(trimaran_rpc_call *call);
void trimaran_rpc_call_receive(trimaran_rpc_call *call, const uint8_t *data, size_t size);
void trimaran_rpc_call_half_close(trimaran_rpc_call *call);
/* End the call from the engine's side, telling the handler or Python. */
void trimaran_rpc_call_fail(trimaran_rpc_call *call, int http_status, int status,
                            const char *message);
/* The stream is gone: tell whom it concerns and recycle. */
void trimaran_rpc_call_gone(trimaran_rpc_call *call);
void trimaran_rpc_call_free(trimaran_rpc_call *call);
void trimaran_rpc_calls_destroy(trimaran_rpc_server *server);

/* rpc_reply.c */
void trimaran_rpc_respond(trimaran_rpc_call *call, int http_status, int status,
                          const char *message);
int trimaran_rpc_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *header,
                           size_t size, nghttp2_data_source *source, void *user);

/* rpc_session.c */
int trimaran_rpc_session_setup(trimaran_rpc_server *server);
int trimaran_rpc_session_new(trimaran_rpc_connection *connection);

/* rpc_connection.c */
trimaran_rpc_connection *trimaran_rpc_connection_new(trimaran_rpc_server *server, int fd,
                                                     int listener);
void trimaran_rpc_mark_dirty(trimaran_rpc_connection *connection);
void trimaran_rpc_kill(trimaran_rpc_connection *connection);
void trimaran_rpc_reap(trimaran_rpc_server *server);
void trimaran_rpc_connection_ready(trimaran_rpc_connection *connection, bool hung_up);
/* Write until done, full or FLUSH_BYTES_MAX; returns true where it stopped for the last. */
bool trimaran_rpc_connection_flush(trimaran_rpc_connection *connection);
void trimaran_rpc_connection_tick(trimaran_rpc_connection *connection);
/* The client broke a limit: GOAWAY with ENHANCE_YOUR_CALM, then close. */
void trimaran_rpc_refuse(trimaran_rpc_connection *connection, const char *reason);

/* rpc_event.c */
trimaran_rpc_event *trimaran_rpc_push_event(trimaran_rpc_server *server,
                                            enum trimaran_rpc_event_kind kind);
void trimaran_rpc_server_free(trimaran_rpc_server *server);

/* rpc_gzip.c: 0, -EMSGSIZE past the limit, -EBADMSG */
int trimaran_rpc_gunzip(const uint8_t *data, size_t size, size_t limit, rpc_buffer *result);

#endif
