#define _GNU_SOURCE
#include "journal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crc32c.h"
#include "fatal.h"

#define BLOCK TRIMARAN_JOURNAL_BLOCK
#define NAME "journal"
#define NEW_NAME "journal.new"
#define RECORD_MAGIC 0x4a4d5254u /* "TRMJ" */
#define VERSION 1u
#define ZERO_CHUNK_BYTES (1u << 20)

static const char FILE_MAGIC[8] = "TRIMJRNL";

/* All numbers are of the machine's own byte order; version tells a foreign one. */
struct file_head {
    char magic[8];
    uint32_t version;
    uint32_t checksum; /* of the fields after it */
    uint64_t id;
    uint64_t capacity;
};

struct record_head {
    uint32_t magic;
    uint32_t checksum; /* of the fields after it */
    uint32_t payload_checksum;
    uint32_t payload_size;
    uint64_t id;
    uint64_t sequence;
};

static uint32_t checksum_of_file_head(const struct file_head *head)
{
    size_t after = offsetof(struct file_head, id);

    return trimaran_crc32c(VERSION, (const uint8_t *)head + after, sizeof *head - after);
}

static uint32_t checksum_of_record_head(const struct record_head *head)
{
    size_t after = offsetof(struct record_head, payload_checksum);

    return trimaran_crc32c(0, (const uint8_t *)head + after, sizeof *head - after);
}

static uint64_t record_bytes(uint64_t payload_size)
{
    uint64_t bytes = sizeof(struct record_head) + payload_size;

    return (bytes + BLOCK - 1) / BLOCK * BLOCK;
}

static int write_all(int fd, const uint8_t *data, size_t size, uint64_t offset, size_t *written)
{
    *written = 0;
    while (*written < size) {
        ssize_t count = pwrite(fd, data + *written, size - *written, (off_t)(offset + *written));
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return count < 0 ? -errno : -EIO;
        *written += (size_t)count;
    }
    return 0;
}

static int read_all(int fd, uint8_t *data, size_t size, uint64_t offset)
{
    while (size > 0) {
        size_t chunk = size < ZERO_CHUNK_BYTES ? size : ZERO_CHUNK_BYTES;
        ssize_t count = pread(fd, data, chunk, (off_t)offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return count < 0 ? -errno : -EUCLEAN;
        data += count;
        offset += (uint64_t)count;
        size -= (size_t)count;
    }
    return 0;
}

/* Zeroes are written, not only reserved: the first write to a reserved extent changes the file
 * system's own metadata, and the flush would wait for that too. */
static int fill_new_file(int fd, uint64_t id, uint64_t capacity)
{
    struct file_head head = {.version = VERSION, .id = id, .capacity = capacity};
    uint8_t *zeroes = calloc(1, ZERO_CHUNK_BYTES);
    size_t written;
    int error = 0;

    if (zeroes == NULL)
        return -ENOMEM;
    for (uint64_t at = 0; at < BLOCK + capacity && error == 0; at += ZERO_CHUNK_BYTES) {
        uint64_t left = BLOCK + capacity - at;
        error = write_all(fd, zeroes, left < ZERO_CHUNK_BYTES ? left : ZERO_CHUNK_BYTES, at,
                          &written);
    }
    free(zeroes);
    memcpy(head.magic, FILE_MAGIC, sizeof head.magic);
    head.checksum = checksum_of_file_head(&head);
    if (error == 0)
        error = write_all(fd, (const uint8_t *)&head, sizeof head, 0, &written);
    if (error == 0 && fsync(fd) != 0)
        error = -errno;
    return error;
}

int trimaran_journal_create(int directory_fd, uint64_t size, int buffered, trimaran_journal *out)
{
    uint64_t capacity = size / BLOCK * BLOCK - BLOCK, id = 0;
    int fd, error;

    assert(size >= 16 * BLOCK);
    while (id == 0)
        if (getrandom(&id, sizeof id, 0) != sizeof id)
            return -errno;
    fd = openat(directory_fd, NEW_NAME, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    error = fill_new_file(fd, id, capacity);
    close(fd);
    if (error == 0 && renameat(directory_fd, NEW_NAME, directory_fd, NAME) != 0)
        error = -errno;
    if (error == 0 && fsync(directory_fd) != 0)
        error = -errno;
    if (error != 0) {
        unlinkat(directory_fd, NEW_NAME, 0);
        return error;
    }
    return trimaran_journal_open(directory_fd, id, buffered, out);
}

/* Open the file with O_DIRECT if its file system takes it, which one read tells. */
static int open_file(int directory_fd, int buffered, int *direct, uint8_t *block)
{
    int fd = -1;

    *direct = !buffered;
    if (*direct) {
        fd = openat(directory_fd, NAME, O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
        if (fd < 0 && errno != EINVAL)
            return -errno;
        if (fd >= 0 && pread(fd, block, BLOCK, 0) < 0 && errno == EINVAL) {
            close(fd);
            fd = -1;
        }
    }
    if (fd < 0) {
        *direct = 0;
        fd = openat(directory_fd, NAME, O_RDWR | O_CLOEXEC);
    }
    return fd < 0 ? -errno : fd;
}

static int check_file(int fd, uint64_t id, const uint8_t *block, uint64_t *capacity)
{
    struct file_head head;
    struct stat stat;

    if (fstat(fd, &stat) != 0)
        return -errno;
    memcpy(&head, block, sizeof head);
    if (memcmp(head.magic, FILE_MAGIC, sizeof head.magic) != 0 || head.version != VERSION
        || head.checksum != checksum_of_file_head(&head) || head.id != id)
        return -EUCLEAN;
    if (head.capacity % BLOCK != 0 || (uint64_t)stat.st_size < BLOCK + head.capacity)
        return -EUCLEAN;
    *capacity = head.capacity;
    return 0;
}

int trimaran_journal_open(int directory_fd, uint64_t id, int buffered, trimaran_journal *out)
{
    uint8_t *block;
    int error;

    *out = (trimaran_journal){.fd = -1, .id = id};
    block = aligned_alloc(BLOCK, BLOCK);
    if (block == NULL)
        return -ENOMEM;
    out->fd = open_file(directory_fd, buffered, &out->direct, block);
    error = out->fd < 0 ? out->fd : 0;
    if (error == -ENOENT)
        error = -EUCLEAN;
    if (error == 0)
        error = read_all(out->fd, block, BLOCK, 0);
    if (error == 0)
        error = check_file(out->fd, id, block, &out->capacity);
    free(block);
    if (error == 0) {
        out->ring = mmap(NULL, out->capacity, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (out->ring == MAP_FAILED) {
            error = -errno;
            out->ring = NULL;
        }
    }
    if (error != 0)
        trimaran_journal_close(out);
    return error;
}

void trimaran_journal_close(trimaran_journal *journal)
{
    if (journal->ring != NULL)
        munmap(journal->ring, journal->capacity);
    if (journal->fd >= 0)
        close(journal->fd);
    *journal = (trimaran_journal){.fd = -1};
}

/* Tell whether a record head of this file is at place, whatever its payload. */
static int head_at(const trimaran_journal *journal, uint64_t place, struct record_head *head)
{
    memcpy(head, journal->ring + place, sizeof *head);
    return head->magic == RECORD_MAGIC && head->id == journal->id
           && head->checksum == checksum_of_record_head(head);
}

/* Tell whether the whole record of that number is at place. A head without its payload is counted
 * as torn. */
static int record_at(trimaran_journal *journal, uint64_t place, uint64_t sequence,
                     struct record_head *head)
{
    if (!head_at(journal, place, head) || head->sequence != sequence)
        return 0;
    if (place + record_bytes(head->payload_size) <= journal->capacity
        && trimaran_crc32c(0, journal->ring + place + sizeof *head, head->payload_size)
               == head->payload_checksum)
        return 1;
    journal->discarded++;
    return 0;
}

/* -EUCLEAN if a record later than the one that is missing was written. */
static int refuse_hole(const trimaran_journal *journal)
{
    struct record_head head;

    for (uint64_t place = 0; place < journal->capacity; place += BLOCK)
        if (head_at(journal, place, &head) && head.sequence > journal->sequence + 1)
            return -EUCLEAN;
    return 0;
}

/* Give back the mirror's whole pages between two places. */
static void forget(const trimaran_journal *journal, uint64_t from, uint64_t to)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

    from = (from + page - 1) / page * page;
    to = to / page * page;
    if (from < to)
        madvise(journal->ring + from, to - from, MADV_DONTNEED);
}

static void forget_unused(const trimaran_journal *journal)
{
    uint64_t head = journal->head % journal->capacity, tail = journal->tail % journal->capacity;

    if (journal->head == journal->tail) {
        forget(journal, 0, journal->capacity);
    } else if (head < tail) {
        forget(journal, 0, head);
        forget(journal, tail, journal->capacity);
    } else {
        forget(journal, tail, head);
    }
}

int trimaran_journal_recover(trimaran_journal *journal, uint64_t sequence, uint64_t place,
                             trimaran_journal_visitor visitor, void *context)
{
    struct record_head head;
    int error;

    if (place >= journal->capacity || place % BLOCK != 0)
        return -EUCLEAN;
    error = read_all(journal->fd, journal->ring, journal->capacity, BLOCK);
    if (error != 0)
        return error;
    journal->head = journal->tail = place;
    journal->sequence = sequence;
    for (;;) {
        uint64_t skip = 0, at = journal->tail % journal->capacity;
        if (!record_at(journal, at, journal->sequence + 1, &head)) {
            skip = journal->capacity - at;
            if (at == 0 || !record_at(journal, 0, journal->sequence + 1, &head))
                break;
            at = 0;
        }
        uint64_t end = journal->tail + skip + record_bytes(head.payload_size);
        if (end - journal->head > journal->capacity)
            return -EUCLEAN;
        error = visitor(context, journal->ring + at + sizeof head, head.payload_size);
        if (error != 0)
            return error;
        journal->tail = end;
        journal->sequence++;
        journal->discarded = 0;
    }
    error = refuse_hole(journal);
    if (error == 0)
        forget_unused(journal);
    return error;
}

size_t trimaran_journal_payload_max(const trimaran_journal *journal)
{
    /* A quarter, so that whatever the tail's place, an empty ring has room before its end or at its
     * beginning, and one large record does not empty the ring. */
    return journal->capacity / 4 - sizeof(struct record_head);
}

uint8_t *trimaran_journal_reserve(trimaran_journal *journal, size_t size, uint64_t *start)
{
    uint64_t bytes = record_bytes(size), place = journal->tail % journal->capacity;

    assert(size <= trimaran_journal_payload_max(journal));
    *start = journal->tail + (place + bytes > journal->capacity ? journal->capacity - place : 0);
    if (*start + bytes - journal->head > journal->capacity)
        return NULL;
    return journal->ring + *start % journal->capacity + sizeof(struct record_head);
}

int trimaran_journal_write(trimaran_journal *journal, uint64_t start, size_t size)
{
    uint64_t place = start % journal->capacity;
    uint8_t *record = journal->ring + place;
    struct record_head head = {
        .magic = RECORD_MAGIC,
        .payload_checksum = trimaran_crc32c(0, record + sizeof head, size),
        .payload_size = (uint32_t)size,
        .id = journal->id,
        .sequence = journal->sequence + 1,
    };
    size_t written;
    int error;

    assert(place + record_bytes(size) <= journal->capacity);
    head.checksum = checksum_of_record_head(&head);
    memcpy(record, &head, sizeof head);
    error = write_all(journal->fd, record, record_bytes(size), BLOCK + place, &written);
    if ((error == -ENOSPC || error == -EDQUOT) && written == 0)
        return -ENOSPC;
    if (error == 0 && !journal->direct && fdatasync(journal->fd) != 0)
        error = -errno;
    if (error != 0)
        trimaran_fatal("writing the journal of the raft log", strerror(-error));
    return 0;
}

void trimaran_journal_commit(trimaran_journal *journal, uint64_t start, size_t size)
{
    journal->tail = start + record_bytes(size);
    journal->sequence++;
    assert(journal->tail - journal->head <= journal->capacity);
}

void trimaran_journal_forget(trimaran_journal *journal, uint64_t to)
{
    uint64_t from = journal->head % journal->capacity, bytes = to - journal->head;

    if (from + bytes <= journal->capacity) {
        forget(journal, from, from + bytes);
    } else {
        forget(journal, from, journal->capacity);
        forget(journal, 0, from + bytes - journal->capacity);
    }
}

void trimaran_journal_release(trimaran_journal *journal, uint64_t to)
{
    assert(to >= journal->head && to <= journal->tail);
    journal->head = to;
}
