cdef extern from "capi.h" nogil:
    ctypedef struct trimaran_raftlog_api:
        pass
    ctypedef struct trimaran_watchindex_api:
        pass
    ctypedef struct trimaran_encap_api:
        pass
    const trimaran_raftlog_api trimaran_raftlog_table
    const trimaran_watchindex_api trimaran_watchindex_table
    const trimaran_encap_api trimaran_encap_table
