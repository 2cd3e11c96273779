from libc.stdint cimport uint8_t, uint64_t

from trimaran.ext.member cimport (
    Member,
    trimaran_buffer,
    trimaran_buffer_append,
    trimaran_buffer_free,
    trimaran_frame,
    trimaran_member_outbox,
    trimaran_member_outbox_clear,
    trimaran_member_post,
    trimaran_member_receive,
    trimaran_slice,
)
from trimaran.ext.raftlog cimport trimaran_payload_release


cdef extern from "<fcntl.h>" nogil:
    enum:
        F_DUPFD_CLOEXEC
    int fcntl(int fd, int command, int argument)


cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL
    ssize_t recv(int fd, void *room, size_t size, int flags)
    ssize_t send(int fd, const void *bytes, size_t size, int flags)


cdef extern from "peerframe.h" nogil:
    enum:
        TRIMARAN_FRAME_PYTHON
        TRIMARAN_FRAME_BODY_MAX
    ctypedef struct trimaran_frame_parser:
        pass
    size_t trimaran_frame_begin(trimaran_buffer *out, uint8_t kind)
    void trimaran_frame_end(trimaran_buffer *out, size_t start)
    void trimaran_frame_parser_free(trimaran_frame_parser *parser)
    int trimaran_frame_parse(trimaran_frame_parser *parser, trimaran_slice *input,
                             trimaran_frame *out)


cdef class PeerParser:
    cdef trimaran_frame_parser parser
    cdef Member member
    cdef readonly uint64_t peer_id
    cdef bint broken
    cdef uint8_t *room
    cdef int parse(self, trimaran_slice input, list frames) except -1
    cdef int take(self, const trimaran_frame *frame, list frames) except -1


cdef class PeerWire:
    cdef int fd
    cdef public bint blocked
    cdef readonly uint64_t sent_bytes
    cdef size_t put(self, const void *data, size_t length) noexcept


cpdef list send_posts(Member member, dict wires)
