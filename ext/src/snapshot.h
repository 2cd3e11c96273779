/* A snapshot of the whole state: a read transaction, the stream made of it, and hashes of it.
 *
 * The stream is a sequence of records (a header, every row, every change, an end), cut into chunks
 * of one size, the last one shorter. All numbers are little-endian.
 *
 *   chunk:   [u32 "TRSC"][u32 crc32c of what follows][u32 number from 0][u32 body size][body]
 *   record:  [u32 kind][u32 a][u32 b][a bytes][b bytes]
 *   header:  a is the struct below; row: a is the key, b the value
 *   change:  a is [i64 main][i32 sub][u32 tombstone], b a serialized KeyValue
 *   end:     a is [u64 rows][u64 changes]; after it the last chunk is filled with zeroes up to a
 *            multiple of 512 bytes
 *
 * Whoever carries the chunks adds the SHA-256 of all of them. A snapshot is good for any thread,
 * one at a time, and outlives the state it was taken from. Functions return 0 or -errno.
 */
#ifndef TRIMARAN_SNAPSHOT_H
#define TRIMARAN_SNAPSHOT_H

#include "state.h"

enum {
    TRIMARAN_SNAPSHOT_VERSION = 1,
    TRIMARAN_SNAPSHOT_CHUNK_BYTES = 128 << 10, /* with its head */
};

/* What the stream begins with, and what is known of a snapshot at once. */
typedef struct trimaran_snapshot_facts {
    uint64_t version;
    uint64_t index, term; /* the last log entry it contains */
    uint64_t cluster_id, member_id; /* whose state it is */
    int64_t revision, compact_revision;
    uint64_t rows, changes;
} trimaran_snapshot_facts;

typedef struct trimaran_snapshot trimaran_snapshot;

/* Take a snapshot of what is committed now; on the loop. */
int trimaran_snapshot_take(trimaran_state *state, uint64_t cluster_id, uint64_t member_id,
                           trimaran_snapshot **out);
/* The same of a directory that nobody has open. */
int trimaran_snapshot_open(const char *directory, trimaran_snapshot **out);
void trimaran_snapshot_close(trimaran_snapshot *snapshot);

const trimaran_snapshot_facts *trimaran_snapshot_facts_of(const trimaran_snapshot *snapshot);
/* A row of the small table, without data where there is none; valid until close. */
trimaran_slice trimaran_snapshot_row(const trimaran_snapshot *snapshot, trimaran_slice key);

/* Size of the stream and number of its chunks. Goes through the whole state once. */
int trimaran_snapshot_measure(trimaran_snapshot *snapshot, uint64_t *bytes, uint32_t *chunks);
/* Write one chunk to out, which has room for TRIMARAN_SNAPSHOT_CHUNK_BYTES. In order that costs one
 * pass over the state; out of order one more. -ENOENT past the last. */
int trimaran_snapshot_chunk(trimaran_snapshot *snapshot, uint32_t number, uint8_t *out,
                            size_t *size);

/* etcd's hash of the keys up to a revision, bit by bit. The revision is not before the compact
 * revision nor past the snapshot's. */
int trimaran_snapshot_hash_keys(trimaran_snapshot *snapshot, int64_t revision, uint32_t *hash);
/* A checksum of everything, for comparing two members of the same history. */
int trimaran_snapshot_hash(trimaran_snapshot *snapshot, uint32_t *hash);

#endif
