/* A gRPC load client for the store with keys that differ, as h2load cannot send them.
 *
 *   load PORT[,PORT...] put|fill|range CONNECTIONS STREAMS REQUESTS KEYS VALUE_BYTES
 *
 * With several ports the connections go to them in turn.
 * Keys are 8 hexadecimal digits, drawn at random from KEYS of them; the draw is the same each time.
 * "fill" puts them in their order instead.
 * Every answer must have grpc-status 0. Prints one JSON line. One thread, blocking on epoll.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { KEY_BYTES = 8, VALUE_BYTES_MAX = 65536, FRAME_BYTES = 5, EVENTS = 64, READ_BYTES = 65536 };

/* One request under way. */
typedef struct call {
    uint64_t start_ns;
    size_t sent;
    char key[KEY_BYTES];
    bool good;
} call_t;

typedef struct connection {
    int socket;
    nghttp2_session *session;
    const uint8_t *pending;
    size_t pending_size;
} connection_t;

static struct {
    const char *path;
    uint8_t *body;
    size_t body_size, key_offset;
    uint64_t requests, started, done, good, keys, random;
    uint32_t *latencies_us;
    bool in_order;
} load;

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t draw(void)
{
    load.random ^= load.random << 13;
    load.random ^= load.random >> 7;
    load.random ^= load.random << 17;
    return load.random;
}

/* Lay out gRPC's frame around a PutRequest or RangeRequest, the key to be filled in. */
static void make_body(bool put, size_t value_bytes)
{
    uint8_t *at = load.body = calloc(1, FRAME_BYTES + 2 + KEY_BYTES + 4 + value_bytes);
    if (at == NULL)
        die("memory");
    at += FRAME_BYTES;
    *at++ = 0x0a;
    *at++ = KEY_BYTES;
    load.key_offset = (size_t)(at - load.body);
    at += KEY_BYTES;
    if (put) {
        size_t left = value_bytes;
        for (*at++ = 0x12; left > 127; left >>= 7)
            *at++ = (uint8_t)(left | 128);
        *at++ = (uint8_t)left;
        memset(at, 'v', value_bytes);
        at += value_bytes;
    }
    load.body_size = (size_t)(at - load.body);
    uint32_t size = htonl((uint32_t)(load.body_size - FRAME_BYTES));
    memcpy(load.body + 1, &size, sizeof size);
}

static ssize_t read_body(nghttp2_session *session, int32_t stream, uint8_t *out, size_t room,
                         uint32_t *flags, nghttp2_data_source *source, void *context)
{
    (void)session, (void)stream, (void)context;
    call_t *call = source->ptr;
    size_t left = load.body_size - call->sent, size = left < room ? left : room;
    /* Buffers are large enough for the key to be in the first piece. */
    memcpy(out, load.body + call->sent, size);
    if (call->sent == 0)
        memcpy(out + load.key_offset, call->key, KEY_BYTES);
    call->sent += size;
    if (call->sent == load.body_size)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)size;
}

#define FIELD(name, value)                                                                         \
    {                                                                                              \
        (uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, strlen(value),                    \
            NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE                           \
    }

static void start_call(connection_t *connection)
{
    if (load.started == load.requests)
        return;
    call_t *call = calloc(1, sizeof *call);
    uint64_t number = (load.in_order ? load.started : draw()) % load.keys;
    for (int i = KEY_BYTES; i-- > 0; number >>= 4)
        call->key[i] = "0123456789abcdef"[number & 15];
    const nghttp2_nv fields[] = {
        FIELD(":method", "POST"),          FIELD(":scheme", "http"),
        FIELD(":path", load.path),         FIELD(":authority", "localhost"),
        FIELD("content-type", "application/grpc"), FIELD("te", "trailers"),
    };
    nghttp2_data_provider provider = {.source = {.ptr = call}, .read_callback = read_body};
    call->start_ns = now_ns();
    load.started++;
    if (nghttp2_submit_request(connection->session, NULL, fields,
                               sizeof fields / sizeof *fields, &provider, call) < 0)
        die("nghttp2_submit_request");
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_size, const uint8_t *value, size_t size, uint8_t flags, void *self)
{
    (void)flags, (void)self;
    call_t *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (call != NULL && name_size == 11 && memcmp(name, "grpc-status", 11) == 0)
        call->good = size == 1 && *value == '0';
    return 0;
}

static int on_close(nghttp2_session *session, int32_t stream, uint32_t error, void *context)
{
    call_t *call = nghttp2_session_get_stream_user_data(session, stream);
    load.latencies_us[load.done++] = (uint32_t)((now_ns() - call->start_ns) / 1000);
    load.good += call->good && error == 0;
    free(call);
    start_call(context);
    return 0;
}

/* A session that keeps nothing of a stream that is over, and leaves the order of fields to the
 * servers' own tests: the client shares the machine's time with what it measures. */
static nghttp2_session *new_session(connection_t *connection)
{
    nghttp2_session *session;
    nghttp2_session_callbacks *callbacks;
    nghttp2_option *option;
    if (nghttp2_session_callbacks_new(&callbacks) != 0 || nghttp2_option_new(&option) != 0)
        die("memory");
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    nghttp2_option_set_no_closed_streams(option, 1);
    nghttp2_option_set_no_http_messaging(option, 1);
    if (nghttp2_session_client_new2(&session, callbacks, connection, option) != 0)
        die("memory");
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    return session;
}

static void open_connection(connection_t *connection, uint16_t port, int queue)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    connection->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(connection->socket, (struct sockaddr *)&address, sizeof address) != 0)
        die("connect");
    setsockopt(connection->socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    connection->session = new_session(connection);
    const nghttp2_settings_entry window = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, (1u << 30) - 1};
    nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, &window, 1);
    nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, 1 << 30);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(queue, EPOLL_CTL_ADD, connection->socket, &event) != 0)
        die("epoll_ctl");
}

/* Write all frames there are, in as few system calls as possible. */
static void flush(connection_t *connection)
{
    static uint8_t buffer[1 << 20];
    size_t size = 0;
    for (;;) {
        if (connection->pending_size == 0) {
            ssize_t got = nghttp2_session_mem_send(connection->session, &connection->pending);
            if (got < 0)
                die("nghttp2_session_mem_send");
            connection->pending_size = (size_t)got;
        }
        if (connection->pending_size == 0 || size + connection->pending_size > sizeof buffer)
            break;
        memcpy(buffer + size, connection->pending, connection->pending_size);
        size += connection->pending_size;
        connection->pending_size = 0;
    }
    for (size_t sent = 0; sent < size;) {
        ssize_t got = send(connection->socket, buffer + sent, size - sent, MSG_NOSIGNAL);
        if (got < 0)
            die("send");
        sent += (size_t)got;
    }
    if (connection->pending_size > 0)
        flush(connection);
}

static void receive(connection_t *connection)
{
    static uint8_t buffer[READ_BYTES];
    ssize_t size = recv(connection->socket, buffer, sizeof buffer, 0);
    if (size <= 0)
        die(size == 0 ? "the server hung up" : "recv");
    if (nghttp2_session_mem_recv(connection->session, buffer, (size_t)size) != size)
        die("nghttp2_session_mem_recv");
}

static int compare(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return left < right ? -1 : left > right;
}

/* Read the next port of the list, from its start again after the last. */
static uint16_t next_port(const char *list, const char **at)
{
    if (**at == '\0')
        *at = list;
    char *end;
    unsigned long port = strtoul(*at, &end, 10);
    *at = *end == ',' ? end + 1 : end;
    return (uint16_t)port;
}

static void run(const char *ports, size_t connections, size_t streams)
{
    const char *at = ports;
    connection_t *all = calloc(connections, sizeof *all);
    int queue = epoll_create1(EPOLL_CLOEXEC);
    for (size_t i = 0; i < connections; i++)
        open_connection(&all[i], next_port(ports, &at), queue);
    uint64_t start_ns = now_ns();
    for (size_t i = 0; i < connections; i++) {
        for (size_t j = 0; j < streams; j++)
            start_call(&all[i]);
        flush(&all[i]);
    }
    while (load.done < load.requests) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(queue, events, EVENTS, 10000);
        if (count <= 0)
            die("no answer");
        for (int i = 0; i < count; i++) {
            receive(events[i].data.ptr);
            flush(events[i].data.ptr);
        }
    }
    double seconds = (double)(now_ns() - start_ns) / 1e9;
    qsort(load.latencies_us, load.done, sizeof *load.latencies_us, compare);
    printf("{\"requests\": %" PRIu64 ", \"good\": %" PRIu64 ", \"seconds\": %.6f, "
           "\"p50_us\": %u, \"p99_us\": %u}\n",
           load.done, load.good, seconds, load.latencies_us[load.done / 2],
           load.latencies_us[load.done * 99 / 100]);
}

int main(int count, char **words)
{
    if (count != 8) {
        fprintf(stderr, "usage: load PORTS put|range CONNECTIONS STREAMS REQUESTS KEYS VALUE\n");
        return 2;
    }
    load.in_order = strcmp(words[2], "fill") == 0;
    bool put = load.in_order || strcmp(words[2], "put") == 0;
    size_t value_bytes = strtoul(words[7], NULL, 10);
    load.path = put ? "/etcdserverpb.KV/Put" : "/etcdserverpb.KV/Range";
    load.requests = strtoull(words[5], NULL, 10);
    load.keys = strtoull(words[6], NULL, 10);
    load.random = 88172645463325252u;
    load.latencies_us = calloc(load.requests + 1, sizeof *load.latencies_us);
    if (load.keys == 0 || value_bytes > VALUE_BYTES_MAX || load.latencies_us == NULL)
        die("arguments");
    make_body(put, value_bytes);
    run(words[1], strtoul(words[3], NULL, 10), strtoul(words[4], NULL, 10));
    return load.good == load.requests ? 0 : 1;
}
