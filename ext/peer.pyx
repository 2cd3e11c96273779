"""Frames between members: what arrives from a peer goes to the member, or to Python."""

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memset

from trimaran.errors import ProtocolError

FIRST_KIND = TRIMARAN_FRAME_PYTHON
FRAME_BODY_MAX = TRIMARAN_FRAME_BODY_MAX

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

    def feed(self, data):
        cdef const uint8_t[::1] view = data
        cdef trimaran_slice input
        cdef trimaran_frame frame
        cdef int code
        if self.broken:
            raise ProtocolError("the connection has carried a frame that is none")
        frames = []
        if view.shape[0] == 0:
            return frames
        input.data = &view[0]
        input.size = view.shape[0]
        while True:
            with nogil:
                code = trimaran_frame_parse(&self.parser, &input, &frame)
            if code < 0:
                self.broken = True
                reason = _FRAME_ERRORS.get(code) or os.strerror(-code)
                raise ProtocolError(f"a frame of {self.peer_id:x} is {reason}")
            if code == 0:
                return frames
            self.take(&frame, frames)

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
