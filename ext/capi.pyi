"""The C interface for other extensions: each attribute is a capsule; see `trimaran/api.h`."""

raftlog: object
watchindex: object
encap: object
