cdef extern from "failpoint.h" nogil:
    ctypedef int trimaran_failpoint_id
    void trimaran_failpoint(trimaran_failpoint_id place)
    const char *trimaran_failpoint_name(int number)
    const char *trimaran_failpoint_where(int number)
