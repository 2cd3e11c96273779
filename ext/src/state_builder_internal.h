/* What the files of the builder share. */
#ifndef TRIMARAN_STATE_BUILDER_INTERNAL_H
#define TRIMARAN_STATE_BUILDER_INTERNAL_H

#include "state_builder.h"
#include "state_file.h"

struct trimaran_state_builder {
    trimaran_state_file *file;
    char *directory;
    const char *reason; /* why a stream was refused */
    trimaran_snapshot_facts facts;
    trimaran_buffer partial; /* a record that is not whole yet */
    uint64_t rows, changes;
    uint32_t next_chunk;
    bool begun, ended;
    trimaran_change copied; /* the last one copied, main -1 before the first */
};

/* Begin a transaction that writes about so many bytes; end it, or abort where error is not 0. */
int trimaran_builder_begin(trimaran_state_builder *builder, size_t bytes, MDB_txn **txn);
int trimaran_builder_end(trimaran_state_builder *builder, MDB_txn *txn, int error);

#endif
