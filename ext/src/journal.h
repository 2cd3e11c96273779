/* A ring of checksummed, numbered records in one pre-allocated file.
 *
 * The file is a head block, then the ring. A record starts on a block, never wraps (one that does
 * not fit before the end starts at the ring's beginning) and carries the file's random identity and
 * a sequence number that only grows. One record is written at a time, and the next only once it is
 * durable; so after a crash at most the last record is torn, and a valid record beyond a missing
 * one means that something else damaged the file.
 *
 * The ring has a mirror in memory: records are built there and written from there, and what they
 * contain stays readable there until it is released.
 */
#ifndef TRIMARAN_JOURNAL_H
#define TRIMARAN_JOURNAL_H

#include <stddef.h>
#include <stdint.h>

#define TRIMARAN_JOURNAL_BLOCK 4096u /* what O_DIRECT asks for, on every disk we know of */

typedef struct trimaran_journal {
    int fd;
    int direct;         /* O_DIRECT and O_DSYNC; else fdatasync follows each write */
    uint64_t id;        /* random, of this file */
    uint64_t capacity;  /* bytes of the ring */
    uint64_t head;      /* oldest byte in use; offsets only grow, modulo capacity is the place */
    uint64_t tail;      /* where the next record may start */
    uint64_t sequence;  /* of the last record, 0: none yet */
    uint64_t discarded; /* torn records dropped by recover */
    uint8_t *ring;      /* the mirror */
} trimaran_journal;

/* Called by recover for each record in order. Not 0 ends the recovery with that. */
typedef int (*trimaran_journal_visitor)(void *context, const uint8_t *payload, size_t size);

/* Make the file directory/journal anew, with size bytes in all and a new identity, and open it. */
int trimaran_journal_create(int directory_fd, uint64_t size, int buffered, trimaran_journal *out);
/* Open the file that has this identity. -EUCLEAN if it is missing, another one or cut. */
int trimaran_journal_open(int directory_fd, uint64_t id, int buffered, trimaran_journal *out);
void trimaran_journal_close(trimaran_journal *journal);

/* Visit the records after sequence, the first of which starts at place (an offset in the ring) or
 * at the ring's beginning. -EUCLEAN where records are missing before valid ones. */
int trimaran_journal_recover(trimaran_journal *journal, uint64_t sequence, uint64_t place,
                             trimaran_journal_visitor visitor, void *context);

/* Largest payload a record may have. */
size_t trimaran_journal_payload_max(const trimaran_journal *journal);
/* Where to build the next record's payload of size bytes; NULL while the ring is too full. The
 * start the record will have goes to *start. */
uint8_t *trimaran_journal_reserve(trimaran_journal *journal, size_t size, uint64_t *start);
/* Make the record at start durable. Changes neither tail nor sequence: commit does. -ENOSPC:
 * nothing was written. Any other failure aborts. */
int trimaran_journal_write(trimaran_journal *journal, uint64_t start, size_t size);
void trimaran_journal_commit(trimaran_journal *journal, uint64_t start, size_t size);
/* Records before offset to (a former tail) are needed no more in memory. May take its time, and may
 * run beside reserve, write and commit. */
void trimaran_journal_forget(trimaran_journal *journal, uint64_t to);
/* Nor on disk: their room is free again. */
void trimaran_journal_release(trimaran_journal *journal, uint64_t to);

#endif
