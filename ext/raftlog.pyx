"""The raft log and its native thread, for Python: tests, benchmarks and tools.

The store's own path from raft to the log stays in C; see `trimaran/raftlog.h` and `logthread.h`.
"""

import errno
import os
from typing import NamedTuple

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport ENOMEM
from libc.stdint cimport UINT64_MAX
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from trimaran.errors import CorruptionError


class Entry(NamedTuple):
    index: int
    term: int
    data: bytes
    type: int = 0


class HardState(NamedTuple):
    term: int
    vote: int
    commit: int


class Status(NamedTuple):
    appends: int
    settles: int
    journal_bytes: int
    journal_used_bytes: int
    replayed_entries: int
    discarded_records: int
    direct: bool


class Completion(NamedTuple):
    sequence: int
    index: int
    term: int
    error: int


cdef int check(int code, str what) except -1:
    if code == 0:
        return 0
    if code == -errno.EUCLEAN:
        raise CorruptionError(what)
    raise OSError(-code, f"{os.strerror(-code)}: {what}")


cdef class Batch:
    """Entries and a hard state as C wants them; keeps the bytes alive."""

    cdef trimaran_entry *entries
    cdef size_t count
    cdef trimaran_hard_state state
    cdef trimaran_hard_state *state_or_null
    cdef list kept

    def __init__(self, entries, hard_state) -> None:
        cdef size_t i
        cdef bytes data
        self.kept = list(entries)
        self.entries = <trimaran_entry *>malloc((len(self.kept) + 1) * sizeof(trimaran_entry))
        if self.entries == NULL:
            raise MemoryError
        for i, entry in enumerate(self.kept):
            memset(&self.entries[i], 0, sizeof(trimaran_entry))
            data = entry.data
            self.entries[i].index = entry.index
            self.entries[i].term = entry.term
            self.entries[i].type = entry.type
            self.entries[i].size = <uint32_t>len(data)
            self.entries[i].data = <const uint8_t *>data
        self.count = len(self.kept)
        self.state_or_null = NULL
        if hard_state is not None:
            self.state.term, self.state.vote, self.state.commit = hard_state
            self.state_or_null = &self.state

    def __dealloc__(self) -> None:
        free(self.entries)


cdef struct Copied:
    char *data
    size_t size
    size_t capacity


# A file that grows waits for those who read it, so the visitor must not wait for the GIL.
cdef int copy_entry(void *context, const trimaran_entry *entry) noexcept nogil:
    cdef Copied *copied = <Copied *>context
    cdef size_t wanted = copied.size + sizeof(trimaran_entry) + entry.size
    cdef char *grown
    if wanted > copied.capacity:
        grown = <char *>realloc(copied.data, 2 * wanted)
        if grown == NULL:
            return -ENOMEM
        copied.data = grown
        copied.capacity = 2 * wanted
    memcpy(copied.data + copied.size, entry, sizeof(trimaran_entry))
    memcpy(copied.data + copied.size + sizeof(trimaran_entry), entry.data, entry.size)
    copied.size = wanted
    return 0


cdef list entries_of(const Copied *copied):
    cdef trimaran_entry entry
    cdef size_t at = 0
    cdef list found = []
    while at < copied.size:
        memcpy(&entry, copied.data + at, sizeof(entry))
        at += sizeof(entry)
        data = PyBytes_FromStringAndSize(copied.data + at, entry.size)
        at += entry.size
        found.append(Entry(entry.index, entry.term, data, entry.type))
    return found


cdef class RaftLog:
    """A raft log in a directory of its own. Not to be shared between processes."""

    def __cinit__(self, directory, *, uint64_t journal_size_bytes=0, uint64_t map_size_bytes=0,
                  bint buffered=False) -> None:
        cdef trimaran_raftlog_options options
        cdef bytes path = os.fsencode(directory)
        cdef const char *path_bytes = path
        cdef int code
        memset(&options, 0, sizeof(options))
        options.struct_size = sizeof(options)
        options.flags = TRIMARAN_RAFTLOG_BUFFERED if buffered else 0
        options.map_size_bytes = map_size_bytes
        options.journal_size_bytes = journal_size_bytes
        with nogil:
            code = trimaran_raftlog_open(path_bytes, &options, &self.handle)
        self.directory = os.fsdecode(path)
        if code != 0:
            check(code, f"{self.directory}: {os.fsdecode(trimaran_raftlog_open_error())}")

    def __dealloc__(self) -> None:
        if self.handle != NULL:
            trimaran_raftlog_close(self.handle)

    cdef trimaran_raftlog *opened(self) except NULL:
        if self.handle == NULL:
            raise ValueError("the log is closed")
        return self.handle

    def close(self) -> None:
        cdef trimaran_raftlog *log = self.handle
        cdef int code
        if self.thread is not None:
            raise ValueError("stop the log's thread first")
        if log != NULL:
            self.handle = NULL
            with nogil:
                code = trimaran_raftlog_close(log)
            check(code, self.directory)

    def append(self, entries=(), hard_state=None) -> None:
        cdef Batch batch = Batch(entries, hard_state)
        cdef trimaran_raftlog *log = self.opened()
        cdef int code
        with nogil:
            code = trimaran_raftlog_append(log, batch.state_or_null, batch.entries, batch.count)
        check(code, self.directory)

    def read(self, uint64_t first, uint64_t last, uint64_t max_bytes=UINT64_MAX):
        cdef trimaran_raftlog *log = self.opened()
        cdef Copied copied
        cdef int code
        memset(&copied, 0, sizeof(copied))
        try:
            with nogil:
                code = trimaran_raftlog_read(log, first, last, max_bytes, copy_entry, &copied)
            if code == -errno.ENOENT:
                raise IndexError(f"entries {first} to {last} are not in the log")
            check(code, self.directory)
            return entries_of(&copied)
        finally:
            free(copied.data)

    @property
    def first_index(self) -> int:
        return trimaran_raftlog_first_index(self.opened())

    @property
    def last_index(self) -> int:
        return trimaran_raftlog_last_index(self.opened())

    @property
    def hard_state(self):
        cdef trimaran_hard_state state
        trimaran_raftlog_hard_state(self.opened(), &state)
        return HardState(state.term, state.vote, state.commit)

    @property
    def status(self):
        cdef trimaran_raftlog_status status
        trimaran_raftlog_status_get(self.opened(), &status)
        return Status(status.appends, status.settles, status.journal_bytes,
                      status.journal_used_bytes, status.replayed_entries,
                      status.discarded_records, status.direct != 0)

    def term(self, uint64_t index) -> int:
        cdef uint64_t term = 0
        cdef int code = trimaran_raftlog_term(self.opened(), index, &term)
        if code == -errno.ENOENT:
            raise IndexError(f"entry {index} is not in the log")
        check(code, self.directory)
        return term

    def compact(self, uint64_t index) -> None:
        cdef trimaran_raftlog *log = self.opened()
        cdef int code
        with nogil:
            code = trimaran_raftlog_compact(log, index)
        check(code, self.directory)

    def reset(self, uint64_t index, uint64_t term, hard_state=None) -> None:
        cdef Batch batch = Batch((), hard_state)
        cdef trimaran_raftlog *log = self.opened()
        cdef int code
        with nogil:
            code = trimaran_raftlog_reset(log, batch.state_or_null, index, term)
        check(code, self.directory)

    def settle(self) -> None:
        cdef trimaran_raftlog *log = self.opened()
        cdef int code
        with nogil:
            code = trimaran_raftlog_settle(log)
        check(code, self.directory)


cdef class LogThread:
    """The native thread on a log; the log must not be appended to beside it."""

    def __cinit__(self, RaftLog log not None) -> None:
        if log.thread is not None:
            raise ValueError("the log has a thread already")
        check(trimaran_logthread_start(log.opened(), &self.handle), log.directory)
        self.log = log
        log.thread = self

    cdef trimaran_logthread *started(self) except NULL:
        if self.handle == NULL:
            raise ValueError("the thread is stopped")
        return self.handle

    def fileno(self) -> int:
        return trimaran_logthread_fd(self.started())

    def submit(self, entries=(), hard_state=None) -> int:
        cdef Batch batch = Batch(entries, hard_state)
        cdef uint64_t sequence = 0
        check(trimaran_logthread_submit(self.started(), batch.state_or_null, batch.entries,
                                        batch.count, &sequence), self.log.directory)
        return sequence

    def append(self, entries=(), hard_state=None) -> int:
        cdef Batch batch = Batch(entries, hard_state)
        cdef trimaran_logthread *thread = self.started()
        cdef uint64_t sequence = 0
        cdef int code
        with nogil:
            code = trimaran_logthread_append(thread, batch.state_or_null, batch.entries,
                                             batch.count, &sequence)
        check(code, self.log.directory)
        return sequence

    def completed(self):
        cdef trimaran_logthread_completion completion
        trimaran_logthread_completed(self.started(), &completion)
        return Completion(completion.sequence, completion.index, completion.term, completion.error)

    def compact(self, uint64_t index) -> None:
        if index > self.log.last_index:
            raise ValueError(f"entry {index} is not in the log yet")
        trimaran_logthread_compact(self.started(), index)

    def reset(self, uint64_t index, uint64_t term) -> None:
        cdef trimaran_logthread *thread = self.started()
        cdef int code
        with nogil:
            code = trimaran_logthread_reset(thread, NULL, index, term)
        check(code, self.log.directory)

    def stop(self) -> None:
        cdef trimaran_logthread *thread = self.handle
        cdef int code
        if thread != NULL:
            self.handle = NULL
            with nogil:
                code = trimaran_logthread_stop(thread)
            self.log.thread = None
            check(code, self.log.directory)


def crc32c(const uint8_t[::1] data not None, uint32_t crc=0, *, bint portable=False) -> int:
    """CRC-32C of data, continued from crc."""
    cdef const void *start = &data[0] if data.shape[0] > 0 else NULL
    if portable:
        return trimaran_crc32c_portable(crc, start, data.shape[0])
    return trimaran_crc32c(crc, start, data.shape[0])
