"""The C interface for other extensions: each attribute is a capsule; see `trimaran/api.h`."""

from cpython.pycapsule cimport PyCapsule_New

raftlog = PyCapsule_New(<void *>&trimaran_raftlog_table, "trimaran.ext.capi.raftlog", NULL)
watchindex = PyCapsule_New(
    <void *>&trimaran_watchindex_table, "trimaran.ext.capi.watchindex", NULL)
encap = PyCapsule_New(<void *>&trimaran_encap_table, "trimaran.ext.capi.encap", NULL)
