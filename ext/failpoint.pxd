cdef extern from "failpoint.h" nogil:
    ctypedef enum trimaran_failpoint_id:
        TRIMARAN_FAIL_SNAPSHOT_RECEIVE_END
        TRIMARAN_FAIL_DEFRAGMENT_COMPLETE
    void trimaran_failpoint(trimaran_failpoint_id place)
    const char *trimaran_failpoint_name(int number)
    const char *trimaran_failpoint_where(int number)
