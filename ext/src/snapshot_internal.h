/* What the files of a snapshot share among themselves. */
#ifndef TRIMARAN_SNAPSHOT_INTERNAL_H
#define TRIMARAN_SNAPSHOT_INTERNAL_H

#include "snapshot.h"
#include "state_file.h"

enum {
    TRIMARAN_CHUNK_HEAD_BYTES = 16,
    TRIMARAN_CHUNK_BODY_BYTES = TRIMARAN_SNAPSHOT_CHUNK_BYTES - TRIMARAN_CHUNK_HEAD_BYTES,
    TRIMARAN_CHUNK_MAGIC = 0x43535254, /* "TRSC" */
    TRIMARAN_SNAPSHOT_ALIGNMENT = 512,
    TRIMARAN_RECORD_HEAD_BYTES = 12,
    TRIMARAN_HEADER_BYTES = 72,
};

enum { TRIMARAN_RECORD_HEADER = 1, TRIMARAN_RECORD_ROW, TRIMARAN_RECORD_CHANGE,
       TRIMARAN_RECORD_END };

/* One record, as pieces that are copied one after the other. */
typedef struct trimaran_record {
    uint8_t head[TRIMARAN_RECORD_HEAD_BYTES + TRIMARAN_HEADER_BYTES]; /* with what is made up */
    size_t head_size;
    trimaran_slice a, b; /* what lies in the file */
    uint64_t size;       /* of all three */
} trimaran_record;

/* A walk over the records. */
typedef struct trimaran_walk {
    int kind; /* of the record at hand, 0 before the first */
    MDB_cursor *rows, *changes;
    trimaran_record record;
    uint64_t done; /* bytes of the record that were copied */
} trimaran_walk;

struct trimaran_snapshot {
    trimaran_state_file *file;
    MDB_txn *txn;
    trimaran_snapshot_facts facts;
    trimaran_walk walk;
    uint32_t next_chunk;   /* which the walk stands before */
    uint64_t stream_bytes; /* records and padding; 0 until it is measured */
};

/* The errno of an LMDB code; what cannot be read is -EUCLEAN. */
int trimaran_lmdb_error(int code);

/* The walk's next record; *kind 0 at the end. */
int trimaran_walk_next(trimaran_snapshot *snapshot, trimaran_walk *walk);
void trimaran_walk_end(trimaran_walk *walk);

void trimaran_facts_encode(uint8_t *at, const trimaran_snapshot_facts *facts);
void trimaran_facts_decode(const uint8_t *at, trimaran_snapshot_facts *facts);

#endif
