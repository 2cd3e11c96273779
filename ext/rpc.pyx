"""The gRPC server engine: what Python sees of ext/src/rpc.h."""

import os

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint16_t
from libc.stdlib cimport free
from libc.string cimport memcpy

OPEN = TRIMARAN_RPC_OPEN
MESSAGE = TRIMARAN_RPC_MESSAGE
HALF_CLOSED = TRIMARAN_RPC_HALF_CLOSED
CLOSED = TRIMARAN_RPC_CLOSED
DRAINED = TRIMARAN_RPC_DRAINED
FOREIGN = TRIMARAN_RPC_FOREIGN
OUTPUT = TRIMARAN_RPC_OUTPUT


cdef inline int checked(int rc) except -1:
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return rc


cdef trimaran_rpc_options read_options(dict limits) except *:
    cdef trimaran_rpc_options options
    trimaran_rpc_defaults(&options)
    known = <dict>options
    unknown = set(limits) - set(known)
    if unknown:
        raise TypeError(f"unknown limits: {', '.join(sorted(unknown))}")
    known.update(limits)
    options = known
    return options


@cython.no_gc_clear
cdef class RpcServer:
    def __cinit__(self, handler=None, **limits):
        cdef trimaran_rpc_options options = read_options(limits)
        cdef trimaran_rpc_handler *functions = NULL
        if handler is not None:
            functions = <trimaran_rpc_handler *>PyCapsule_GetPointer(
                handler, "trimaran.rpc_handler")
        self.handler_capsule = handler
        self.calls = {}
        self.channels = {}
        checked(trimaran_rpc_create(&options, functions, &self.server))

    def __dealloc__(self):
        if self.server != NULL:
            trimaran_rpc_destroy(self.server)
            self.server = NULL

    cdef trimaran_rpc_server *alive(self) except NULL:
        if self.server == NULL:
            raise ValueError("the RPC server is closed")
        return self.server

    def fileno(self):
        return trimaran_rpc_fileno(self.alive())

    def listen(self, int fd, int listener):
        checked(trimaran_rpc_listen(self.alive(), fd, listener))

    def poll(self):
        cdef int more
        cdef trimaran_rpc_server *server = self.alive()
        with nogil:
            more = trimaran_rpc_poll(server)
        return more != 0

    def flush(self):
        cdef int more
        cdef trimaran_rpc_server *server = self.alive()
        with nogil:
            more = trimaran_rpc_flush(server)
        return more != 0

    @property
    def pending(self):
        return trimaran_rpc_pending(self.alive()) != 0

    def tick(self):
        trimaran_rpc_tick(self.alive())

    def shutdown(self):
        trimaran_rpc_shutdown(self.alive())

    def close(self):
        cdef RpcCall call
        cdef RpcChannel channel
        if self.server == NULL:
            return
        for call in list(self.calls.values()):
            call.detach()
        for channel in list(self.channels.values()):
            channel.close()
        trimaran_rpc_destroy(self.server)
        self.server = NULL

    def counters(self):
        cdef trimaran_rpc_counters counters
        trimaran_rpc_count(self.alive(), &counters)
        return <dict>counters

    def attach(self):
        cdef RpcChannel channel = RpcChannel.__new__(RpcChannel)
        checked(trimaran_rpc_attach(self.alive(), &channel.connection))
        channel.server = self
        self.channels[<size_t>channel.connection] = channel
        return channel

    def events(self):
        cdef trimaran_rpc_event event
        taken = []
        while trimaran_rpc_next_event(self.alive(), &event):
            converted = self.convert(&event)
            if converted is not None:
                taken.append(converted)
        return taken

    cdef object convert(self, trimaran_rpc_event *event):
        cdef RpcCall call
        cdef bytes data
        if event.kind == TRIMARAN_RPC_FOREIGN:
            return FOREIGN, event.fd, event.listener
        if event.kind == TRIMARAN_RPC_OUTPUT:
            channel = self.channels.get(<size_t>event.connection)
            return None if channel is None else (OUTPUT, channel, None)
        if event.kind == TRIMARAN_RPC_OPEN:
            call = new_call(self, event.call)
            self.calls[<size_t>event.call] = call
            return OPEN, call, None
        if event.kind == TRIMARAN_RPC_MESSAGE:
            try:
                data = PyBytes_FromStringAndSize(<char *>event.data, event.size)
            finally:
                free(event.data)
            call = self.calls.get(<size_t>event.call)
            return None if call is None else (MESSAGE, call, data)
        call = self.calls.get(<size_t>event.call)
        if call is None:
            return None
        if event.kind == TRIMARAN_RPC_CLOSED:
            call.detach()
            return CLOSED, call, None
        return event.kind, call, None


cdef RpcCall new_call(RpcServer server, trimaran_rpc_call *pointer):
    cdef RpcCall call = RpcCall.__new__(RpcCall)
    cdef size_t size = 0
    cdef const uint8_t *at = trimaran_rpc_headers(pointer, &size)
    cdef const uint8_t *end = at + size
    cdef uint16_t sizes[2]
    call.call = pointer
    call.server = server
    call.timeout_s = trimaran_rpc_timeout_us(pointer) / 1e6
    call.path = ""
    call.http_method = ""
    call.is_plain = trimaran_rpc_is_plain(pointer) != 0
    call.metadata = {}
    while at < end:
        memcpy(sizes, at, sizeof(sizes))
        at += sizeof(sizes)
        name = at[:sizes[0]].decode("latin-1")
        value = at[sizes[0]:sizes[0] + sizes[1]].decode("latin-1")
        at += sizes[0] + sizes[1]
        if name == ":path":
            call.path = value
        elif name == ":method":
            call.http_method = value
        elif name in call.metadata:
            call.metadata[name] += "," + value
        else:
            call.metadata[name] = value
    return call


@cython.no_gc_clear
cdef class RpcCall:
    def __init__(self):
        raise TypeError("calls are made by RpcServer.events")

    def __dealloc__(self):
        self.detach()

    cdef void detach(self):
        cdef trimaran_rpc_call *call = self.call
        if call != NULL:
            self.call = NULL
            trimaran_rpc_release(call)
            self.server.calls.pop(<size_t>call, None)

    @property
    def closed(self):
        return self.call == NULL

    @property
    def queued_bytes(self):
        return 0 if self.call == NULL else trimaran_rpc_queued(self.call)

    def send(self, const uint8_t[::1] message not None):
        cdef uint8_t *room
        cdef size_t size = message.shape[0]
        if self.call == NULL:
            return False
        if self.is_plain:
            raise ValueError("this call is no gRPC: it gets an answer")
        if size > 0x7fffffff:
            raise ValueError(f"a message of {size} bytes; gRPC allows 2147483647")
        room = trimaran_rpc_reserve(self.call, size)
        if size > 0:
            memcpy(room, &message[0], size)
        trimaran_rpc_commit(self.call, size)
        return True

    def finish(self, int status, str message=""):
        cdef bytes text
        if self.call == NULL:
            return
        text = message.replace("\0", " ").encode("utf-8", "replace")
        trimaran_rpc_finish(self.call, status, text)
        self.detach()

    def answer(self, int http_status, str content_type, uint64_t content_length,
               const uint8_t[::1] body not None):
        cdef bytes text = content_type.encode("latin-1")
        cdef size_t size = body.shape[0]
        if self.call == NULL:
            return
        if not self.is_plain or size not in (0, content_length) or not 200 <= http_status <= 599:
            raise ValueError("no answer for this call")
        trimaran_rpc_answer(
            self.call, http_status, text, content_length, &body[0] if size > 0 else NULL, size)
        self.detach()

    def consumed(self, size_t size):
        if self.call != NULL:
            trimaran_rpc_consumed(self.call, size)


@cython.no_gc_clear
cdef class RpcChannel:
    def __init__(self):
        raise TypeError("channels are made by RpcServer.attach")

    def __dealloc__(self):
        self.close()

    def feed(self, const uint8_t[::1] data not None):
        if self.connection == NULL:
            return False
        if data.shape[0] == 0:
            return True
        return trimaran_rpc_feed(self.connection, &data[0], data.shape[0]) == 0

    def take(self):
        cdef const uint8_t *data = NULL
        cdef int64_t size
        if self.connection == NULL:
            return None
        size = trimaran_rpc_take(self.connection, &data)
        return None if size < 0 else PyBytes_FromStringAndSize(<const char *>data, size)

    def close(self):
        cdef trimaran_rpc_connection *connection = self.connection
        if connection != NULL:
            self.connection = NULL
            trimaran_rpc_detach(connection)
            self.server.channels.pop(<size_t>connection, None)
