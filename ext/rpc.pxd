"""The gRPC server engine: declarations of ext/src/rpc.h and of the classes of rpc.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "rpc.h" nogil:
    ctypedef struct trimaran_rpc_server:
        pass
    ctypedef struct trimaran_rpc_call:
        pass
    ctypedef struct trimaran_rpc_connection:
        pass
    ctypedef struct trimaran_rpc_handler:
        void *context

    void *trimaran_rpc_user(const trimaran_rpc_call *call)
    void trimaran_rpc_set_user(trimaran_rpc_call *call, void *user)
    uint8_t *trimaran_rpc_reserve(trimaran_rpc_call *call, size_t capacity)
    void trimaran_rpc_commit(trimaran_rpc_call *call, size_t size)
    void trimaran_rpc_finish(trimaran_rpc_call *call, int status, const char *message)
    size_t trimaran_rpc_queued(const trimaran_rpc_call *call)

    ctypedef struct trimaran_rpc_options:
        uint32_t connections_max
        uint32_t streams_max
        uint32_t calls_max
        uint32_t header_bytes_max
        uint32_t message_bytes_max
        uint64_t assembly_bytes_max
        uint64_t queued_bytes_max
        uint32_t queue_high_bytes
        uint32_t queue_low_bytes
        uint32_t sniff_timeout_ms
        uint32_t ping_min_ms
        uint32_t ping_interval_ms
        uint32_t ping_timeout_ms
    void trimaran_rpc_defaults(trimaran_rpc_options *options)

    int trimaran_rpc_create(const trimaran_rpc_options *options,
                            const trimaran_rpc_handler *handler, trimaran_rpc_server **server)
    void trimaran_rpc_destroy(trimaran_rpc_server *server)
    int trimaran_rpc_fileno(const trimaran_rpc_server *server)
    int trimaran_rpc_listen(trimaran_rpc_server *server, int fd, int id)
    int trimaran_rpc_poll(trimaran_rpc_server *server)
    int trimaran_rpc_flush(trimaran_rpc_server *server)
    void trimaran_rpc_tick(trimaran_rpc_server *server)
    void trimaran_rpc_shutdown(trimaran_rpc_server *server)

    ctypedef struct trimaran_rpc_counters:
        uint64_t accepted
        uint64_t connections
        uint64_t calls
        uint64_t requests
        uint64_t received_bytes
        uint64_t sent_bytes
        uint64_t refused
        int64_t accept_error
    void trimaran_rpc_count(trimaran_rpc_server *server, trimaran_rpc_counters *counters)

    enum trimaran_rpc_event_kind:
        TRIMARAN_RPC_OPEN
        TRIMARAN_RPC_MESSAGE
        TRIMARAN_RPC_HALF_CLOSED
        TRIMARAN_RPC_CLOSED
        TRIMARAN_RPC_DRAINED
        TRIMARAN_RPC_FOREIGN
        TRIMARAN_RPC_OUTPUT
    ctypedef struct trimaran_rpc_event:
        trimaran_rpc_event_kind kind
        int fd
        int listener
        trimaran_rpc_call *call
        trimaran_rpc_connection *connection
        uint8_t *data
        size_t size
    int trimaran_rpc_pending(const trimaran_rpc_server *server)
    int trimaran_rpc_next_event(trimaran_rpc_server *server, trimaran_rpc_event *event)
    void trimaran_rpc_release(trimaran_rpc_call *call)
    void trimaran_rpc_consumed(trimaran_rpc_call *call, size_t size)
    int trimaran_rpc_is_plain(const trimaran_rpc_call *call)
    void trimaran_rpc_answer(trimaran_rpc_call *call, int http_status, const char *content_type,
                             uint64_t content_length, const uint8_t *body, size_t size)
    const uint8_t *trimaran_rpc_headers(const trimaran_rpc_call *call, size_t *size)
    uint64_t trimaran_rpc_timeout_us(const trimaran_rpc_call *call)

    int trimaran_rpc_attach(trimaran_rpc_server *server, trimaran_rpc_connection **connection)
    int trimaran_rpc_feed(trimaran_rpc_connection *connection, const uint8_t *data, size_t size)
    int64_t trimaran_rpc_take(trimaran_rpc_connection *connection, const uint8_t **data)
    void trimaran_rpc_detach(trimaran_rpc_connection *connection)


cdef class RpcServer:
    cdef trimaran_rpc_server *server
    cdef object handler_capsule
    cdef dict calls
    cdef dict channels
    cdef object __weakref__

    cdef trimaran_rpc_server *alive(self) except NULL
    cdef object convert(self, trimaran_rpc_event *event)


cdef class RpcCall:
    cdef trimaran_rpc_call *call
    cdef RpcServer server
    cdef readonly str path
    cdef readonly str http_method
    cdef readonly bint is_plain
    cdef readonly dict metadata
    cdef readonly double timeout_s
    cdef public object owner

    cdef void detach(self)


cdef class RpcChannel:
    cdef trimaran_rpc_connection *connection
    cdef RpcServer server
    cdef public object owner
