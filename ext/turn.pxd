from libc.stdint cimport uint64_t

from trimaran.ext.member cimport Member, trimaran_member, trimaran_service


cdef extern from "member.h" nogil:
    bint trimaran_service_has_results(const trimaran_service *service)
    bint trimaran_member_has_snapshot_requests(const trimaran_member *member)


cdef enum:
    NEWS_MORE = 1
    NEWS_RESULTS = 2
    NEWS_STATUS = 4
    NEWS_SNAPSHOTS = 8
    NEWS_UNSENT = 16
    NEWS_UNSAVED = 32


cdef class Turns:
    cdef Member member
    cdef dict wires
    cdef list unsent
    cdef uint64_t status_version
    cdef uint64_t rows_version
