"""The turns of a member beside its peers' sockets, most of which have nothing for Python."""

from libc.stdint cimport UINT64_MAX, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from trimaran.ext.member cimport (
    trimaran_member_status_version,
    trimaran_member_turn,
    trimaran_mvcc_rows,
    trimaran_mvcc_state,
    trimaran_state_pending_bytes,
)
from trimaran.ext.peer cimport send_posts
from trimaran.ext.raft cimport trimaran_raft_set_clock

MORE = NEWS_MORE
RESULTS = NEWS_RESULTS
STATUS = NEWS_STATUS
SNAPSHOTS = NEWS_SNAPSHOTS
UNSENT = NEWS_UNSENT
UNSAVED = NEWS_UNSAVED


cdef class Turns:
    def __cinit__(self, Member member, dict wires):
        self.member = member
        self.wires = wires
        self.unsent = []
        self.status_version = self.rows_version = UINT64_MAX  # the first turn tells all

    def turn(self):
        cdef Member member = self.member
        cdef uint64_t now_us, status_version, rows_version
        cdef timespec now
        cdef int news = 0
        member.check()
        clock_gettime(CLOCK_MONOTONIC, &now)
        now_us = <uint64_t>now.tv_sec * 1000000 + now.tv_nsec // 1000
        with nogil:
            # A leader that was stopped must not answer reads by a lease that ended meanwhile.
            trimaran_raft_set_clock(member.raft, now_us)
            if trimaran_member_turn(member.member):
                news |= NEWS_MORE
        if trimaran_service_has_results(member.service):
            news |= NEWS_RESULTS
        status_version = trimaran_member_status_version(member.member)
        rows_version = trimaran_mvcc_rows(member.mvcc).version
        if status_version != self.status_version or rows_version != self.rows_version:
            self.status_version = status_version
            self.rows_version = rows_version
            news |= NEWS_STATUS
        if trimaran_member_has_snapshot_requests(member.member):
            news |= NEWS_SNAPSHOTS
        if trimaran_state_pending_bytes(trimaran_mvcc_state(member.mvcc)) > 0:
            news |= NEWS_UNSAVED
        self.unsent += send_posts(member, self.wires)
        if self.unsent:
            news |= NEWS_UNSENT
        return news

    def take_unsent(self):
        unsent = self.unsent
        self.unsent = []
        return unsent
