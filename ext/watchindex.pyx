"""The watch index, for Python: watchers are any objects."""

from libc.errno cimport ENOMEM
from libc.stdint cimport uintptr_t


cdef int collect(void *context, void *watcher) noexcept with gil:
    try:
        (<list>context).append(<object>watcher)
        return 0
    except MemoryError:
        return -ENOMEM


cdef int count_only(void *context, void *watcher) noexcept nogil:
    (<size_t *>context)[0] += 1
    return 0


cdef class WatchIndex:
    """Which watchers watch a key, by itself or in a range."""

    def __cinit__(self, uint64_t seed=0) -> None:
        self.watches = {}
        if trimaran_watchindex_create(seed, &self.handle) != 0:
            raise MemoryError

    def __dealloc__(self) -> None:
        trimaran_watchindex_destroy(self.handle)

    def insert(self, bytes key not None, bytes end not None, watcher) -> int:
        cdef trimaran_watch *watch = NULL
        cdef int code = trimaran_watchindex_insert(
            self.handle, <const uint8_t *><const char *>key, len(key),
            <const uint8_t *><const char *>end, len(end), <void *>watcher, &watch)
        if code == -ENOMEM:
            raise MemoryError
        if code != 0:
            raise ValueError(f"the range's end {end!r} is not after its key {key!r}")
        self.next_number += 1
        self.watches[self.next_number] = (<uintptr_t>watch, watcher)
        return self.next_number

    def remove(self, uint64_t number) -> None:
        cdef uintptr_t watch = self.watches.pop(number)[0]
        trimaran_watchindex_remove(self.handle, <trimaran_watch *>watch)

    def match(self, bytes key not None):
        cdef list found = []
        if trimaran_watchindex_match(self.handle, <const uint8_t *><const char *>key, len(key),
                                     collect, <void *>found) != 0:
            raise MemoryError
        return found

    def count_matches(self, bytes key not None, size_t times=1) -> int:
        cdef size_t found = 0, i
        cdef const char *data = key
        cdef size_t size = len(key)
        with nogil:
            for i in range(times):
                trimaran_watchindex_match(self.handle, <const uint8_t *>data, size, count_only,
                                          &found)
        return found

    def __len__(self) -> int:
        return trimaran_watchindex_count(self.handle)

    @property
    def memory_bytes(self) -> int:
        return trimaran_watchindex_bytes(self.handle)
