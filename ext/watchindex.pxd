from libc.stdint cimport uint8_t, uint64_t


cdef extern from "trimaran/watchindex.h" nogil:
    ctypedef struct trimaran_watchindex:
        pass
    ctypedef struct trimaran_watch:
        pass
    ctypedef int (*trimaran_watchindex_visitor)(void *context, void *watcher)
    int trimaran_watchindex_create(uint64_t seed, trimaran_watchindex **out)
    void trimaran_watchindex_destroy(trimaran_watchindex *index)
    int trimaran_watchindex_insert(trimaran_watchindex *index, const uint8_t *key, size_t key_size,
                                   const uint8_t *end, size_t end_size, void *watcher,
                                   trimaran_watch **out)
    void trimaran_watchindex_remove(trimaran_watchindex *index, trimaran_watch *watch)
    int trimaran_watchindex_match(trimaran_watchindex *index, const uint8_t *key, size_t key_size,
                                  trimaran_watchindex_visitor visitor, void *context)
    size_t trimaran_watchindex_count(const trimaran_watchindex *index)
    size_t trimaran_watchindex_bytes(const trimaran_watchindex *index)


cdef class WatchIndex:
    cdef trimaran_watchindex *handle
    cdef dict watches
    cdef uint64_t next_number
