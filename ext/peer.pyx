"""Frames between members: what arrives from a peer goes to the member, or to Python."""

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EINTR, errno
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.unistd cimport close

from trimaran.errors import ProtocolError

FIRST_KIND = TRIMARAN_FRAME_PYTHON
FRAME_BODY_MAX = TRIMARAN_FRAME_BODY_MAX
cdef enum:
    READ_BYTES = 256 * 1024

_FRAME_ERRORS = {
    -71: "of a kind or size that there is not",  # EPROTO
    -93: "of a version that this build does not know",  # EPROTONOSUPPORT
    -74: "damaged: its checksum is wrong",  # EBADMSG
}


cdef class PeerParser:
    def __cinit__(self, Member member, uint64_t peer_id):
        self.member = member
        self.peer_id = peer_id

    def __dealloc__(self):
        trimaran_frame_parser_free(&self.parser)
        free(self.room)

    def feed(self, data):
        cdef const uint8_t[::1] view = data
        cdef trimaran_slice input
        frames = []
        input.data = &view[0] if view.shape[0] > 0 else NULL
        input.size = view.shape[0]
        self.parse(input, frames)
        return frames

    def receive(self, PeerWire wire, list frames):
        cdef trimaran_slice input
        cdef ssize_t size
        if self.room == NULL:
            self.room = <uint8_t *>malloc(READ_BYTES)
            if self.room == NULL:
                raise MemoryError
        with nogil:
            size = recv(wire.fd, self.room, READ_BYTES, MSG_DONTWAIT)
        if size < 0:
            raise OSError(errno, os.strerror(errno))
        input.data = self.room
        input.size = size
        self.parse(input, frames)
        return size

    cdef int parse(self, trimaran_slice input, list frames) except -1:
        cdef trimaran_frame frame
        cdef int code
        if self.broken:
            raise ProtocolError("the connection has carried a frame that is none")
        while input.size > 0:
            with nogil:
                code = trimaran_frame_parse(&self.parser, &input, &frame)
            if code < 0:
                self.broken = True
                reason = _FRAME_ERRORS.get(code) or os.strerror(-code)
                raise ProtocolError(f"a frame of {self.peer_id:x} is {reason}")
            if code == 0:
                break
            self.take(&frame, frames)
        return 0

    cdef int take(self, const trimaran_frame *frame, list frames) except -1:
        cdef int code = 0
        try:
            if frame.kind >= TRIMARAN_FRAME_PYTHON:
                frames.append((frame.kind, PyBytes_FromStringAndSize(
                    <const char *>frame.body.data, frame.body.size)))
            elif self.member is None or self.member.member == NULL:
                code = -71
            else:
                with nogil:
                    code = trimaran_member_receive(self.member.member, self.peer_id, frame)
        finally:
            trimaran_payload_release(frame.payload)
        if code != 0:
            self.broken = True
            raise ProtocolError(
                f"{self.peer_id:x} has sent a message of kind {frame.kind} that no member sends")
        return 0


cdef class PeerWire:
    def __cinit__(self, int fd):
        self.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)
        if self.fd < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        self.close()

    def close(self):
        if self.fd >= 0:
            close(self.fd)
        self.fd = -1

    def fileno(self):
        if self.fd < 0:
            raise ValueError("the wire is closed")
        return self.fd

    def send(self, bytes data):
        return self.put(<const char *>data, len(data))

    cdef size_t put(self, const void *data, size_t length) noexcept:
        cdef ssize_t size = -1
        if self.fd < 0 or self.blocked or length == 0:
            return 0
        with nogil:
            while size < 0:
                size = send(self.fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL)
                if size < 0 and errno != EINTR:
                    # Whatever it is, the owner of the connection meets it too, and acts on it.
                    size = 0
        self.sent_bytes += size
        return size


cpdef list send_posts(Member member, dict wires):
    cdef const trimaran_member_post *posts
    cdef const trimaran_buffer *frames
    cdef PeerWire wire
    cdef size_t count, i, sent
    member.check()
    rest = []
    count = trimaran_member_outbox(member.member, &posts)
    for i in range(count):
        frames = &posts[i].frames
        if frames.size == 0:
            continue
        wire = wires.get(posts[i].to)
        sent = 0 if wire is None else wire.put(frames.data, frames.size)
        if sent < frames.size:
            rest.append((posts[i].to, PyBytes_FromStringAndSize(
                <const char *>frames.data + sent, frames.size - sent)))
    if count > 0:
        trimaran_member_outbox_clear(member.member)
    return rest


def encode_frame(int kind, bytes body):
    cdef trimaran_buffer out
    if not TRIMARAN_FRAME_PYTHON <= kind < 256 or len(body) > TRIMARAN_FRAME_BODY_MAX:
        raise ValueError(f"no frame is of kind {kind} and {len(body)} bytes")
    memset(&out, 0, sizeof(out))
    start = trimaran_frame_begin(&out, kind)
    trimaran_buffer_append(&out, <const char *>body, len(body))
    trimaran_frame_end(&out, start)
    try:
        return PyBytes_FromStringAndSize(<const char *>out.data, out.size)
    finally:
        trimaran_buffer_free(&out)
