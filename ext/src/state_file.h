/* The LMDB environment of a state: two tables, their keys, and the room on the disk.
 *
 * It is counted by reference, because those who read a snapshot of it may go on after the state has
 * moved to another file. LMDB codes are returned as they are: 0, errno (positive), or LMDB's own.
 */
#ifndef TRIMARAN_STATE_FILE_H
#define TRIMARAN_STATE_FILE_H

#include <lmdb.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "state.h"

enum { TRIMARAN_REVISION_SIZE = 16, TRIMARAN_REVISION_SIZE_MAX = 17 };

struct trimaran_state_file {
    MDB_env *env;
    MDB_dbi changes; /* main and sub revision, big-endian, 't' for a tombstone -> KeyValue */
    MDB_dbi rows;    /* small table: name -> bytes */
    off_t reserved;  /* bytes of the file whose blocks the disk has promised; of who writes */
    _Atomic int references;
    _Atomic int64_t size_total, size_in_use;
};

/* Open or create the file in directory, which exists. flags: of mdb_env_open, besides our own. */
int trimaran_state_file_open(const char *directory, size_t map_size_bytes, unsigned flags,
                             trimaran_state_file **out);
trimaran_state_file *trimaran_state_file_retain(trimaran_state_file *file);
void trimaran_state_file_release(trimaran_state_file *file);

/* Have the disk promise the blocks that a commit of so many bytes and deletions may write. LMDB
 * reports a disk that fills up in the middle of a commit as an input or output error, which cannot
 * be told from a broken disk. */
int trimaran_state_file_reserve(trimaran_state_file *file, size_t bytes, size_t deletions);
/* Measure the tables in a transaction, and the file after its commit. */
void trimaran_state_file_measure(trimaran_state_file *file, MDB_txn *txn);
void trimaran_state_file_measure_used(trimaran_state_file *file);

/* Write a key of the table of changes; returns its size. */
size_t trimaran_revision_write(uint8_t *at, int64_t main, int32_t sub, bool tombstone);
/* Read a change from its key and value; false where the key is none. */
bool trimaran_revision_read(const MDB_val *key, const MDB_val *value, trimaran_change *out);

uint64_t trimaran_number_read(const uint8_t *at);
void trimaran_number_write(uint8_t *at, uint64_t number);

/* The row of the applied index: index and term. */
extern const trimaran_slice trimaran_applied_row;
int trimaran_applied_load(trimaran_state_file *file, MDB_txn *txn, uint64_t *index,
                          uint64_t *term);
int trimaran_applied_store(trimaran_state_file *file, MDB_txn *txn, uint64_t index, uint64_t term);

_Noreturn void trimaran_state_die(const char *what, int code);

#endif
