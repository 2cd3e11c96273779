/* The small rows of the state that describe the cluster, in memory, in order of their keys.
 *
 * "member/", "removed/" and "cluster/" rows are written by those who manage the membership, who
 * give them their meaning; "raft/members" is written by the member itself.
 */
#ifndef TRIMARAN_ROWTABLE_H
#define TRIMARAN_ROWTABLE_H

#include "bytes.h"

typedef struct trimaran_table_row {
    trimaran_slice key, value; /* one allocation, that of key */
} trimaran_table_row;

typedef struct trimaran_rowtable {
    trimaran_table_row *rows;
    size_t count, capacity;
    uint64_t version; /* grows with every change */
} trimaran_rowtable;

/* Keeps the version growing. */
void trimaran_rowtable_clear(trimaran_rowtable *table);
void trimaran_rowtable_free(trimaran_rowtable *table);
/* A value without data (NULL) removes the row. */
void trimaran_rowtable_set(trimaran_rowtable *table, trimaran_slice key, trimaran_slice value);
/* The value under key; data is NULL where there is none. */
trimaran_slice trimaran_rowtable_get(const trimaran_rowtable *table, trimaran_slice key);
/* The place of the first row whose key is not less. */
size_t trimaran_rowtable_place(const trimaran_rowtable *table, trimaran_slice key);

/* Rows as they travel in log entries: a count of 32 bits, then for each a size and the key, a size
 * and the value; the size 0xffffffff stands for a row to be removed. All little-endian. */
typedef struct trimaran_row_reader {
    trimaran_slice rest;
    uint32_t left;
} trimaran_row_reader;

/* Returns false where not even the count is there. */
bool trimaran_rows_begin(trimaran_row_reader *reader, trimaran_slice rows);
/* Returns 1 with the next row, 0 at the end, -1 where the bytes are no rows. */
int trimaran_rows_next(trimaran_row_reader *reader, trimaran_slice *key, trimaran_slice *value);
/* Whether the bytes are rows, all of kinds that an entry may set. */
bool trimaran_rows_check(trimaran_slice rows);

#endif
