/* The chunks of a snapshot's stream. */
#include <errno.h>

#include "crc32c.h"
#include "failpoint.h"
#include "snapshot_internal.h"

/* How many bytes of the stream go into so many chunks, and how many chunks hold so many bytes. */
static uint64_t chunks_of(uint64_t bytes)
{
    return (bytes + TRIMARAN_CHUNK_BODY_BYTES - 1) / TRIMARAN_CHUNK_BODY_BYTES;
}

/* With zeroes at its end, so that the chunks together are a multiple of the alignment. */
static uint64_t padded(uint64_t bytes)
{
    uint64_t whole = bytes + chunks_of(bytes) * TRIMARAN_CHUNK_HEAD_BYTES;
    uint64_t missing = (TRIMARAN_SNAPSHOT_ALIGNMENT - whole % TRIMARAN_SNAPSHOT_ALIGNMENT) %
                       TRIMARAN_SNAPSHOT_ALIGNMENT;
    /* A chunk is itself a multiple, so that filling one up never needs another. */
    assert(chunks_of(bytes + missing) == chunks_of(bytes));
    return bytes + missing;
}

int trimaran_snapshot_measure(trimaran_snapshot *snapshot, uint64_t *bytes, uint32_t *chunks)
{
    if (snapshot->stream_bytes == 0) {
        trimaran_walk walk = {0};
        uint64_t total = 0;
        int error;
        while ((error = trimaran_walk_next(snapshot, &walk)) == 0 && walk.kind != 0)
            total += walk.record.size;
        trimaran_walk_end(&walk);
        if (error != 0)
            return error;
        snapshot->stream_bytes = padded(total);
    }
    *chunks = (uint32_t)chunks_of(snapshot->stream_bytes);
    *bytes = snapshot->stream_bytes + (uint64_t)*chunks * TRIMARAN_CHUNK_HEAD_BYTES;
    return 0;
}

/* Copy from one piece of the record what is not copied yet; *skip counts the bytes of earlier
 * pieces down. out may be NULL. */
static size_t copy_piece(trimaran_slice piece, uint64_t *skip, uint8_t *out, size_t room)
{
    if (*skip >= piece.size) {
        *skip -= piece.size;
        return 0;
    }
    size_t size = piece.size - (size_t)*skip < room ? piece.size - (size_t)*skip : room;
    if (out != NULL)
        memcpy(out, piece.data + *skip, size);
    *skip = 0;
    return size;
}

static size_t copy_record(trimaran_walk *walk, uint8_t *out, size_t room)
{
    const trimaran_record *record = &walk->record;
    const trimaran_slice pieces[] = {trimaran_slice_of(record->head, record->head_size),
                                     record->a, record->b};
    uint64_t skip = walk->done;
    size_t copied = 0;
    for (int i = 0; i < 3 && copied < room; i++)
        copied += copy_piece(pieces[i], &skip, out == NULL ? NULL : out + copied, room - copied);
    walk->done += copied;
    return copied;
}

/* Go on with the stream by size bytes, which are copied to out where it is not NULL. */
static int advance(trimaran_snapshot *snapshot, uint8_t *out, uint64_t size)
{
    trimaran_walk *walk = &snapshot->walk;
    uint64_t done = 0;
    while (done < size) {
        if (walk->done == walk->record.size) {
            int error = trimaran_walk_next(snapshot, walk);
            if (error != 0)
                return error;
            if (walk->kind == 0)
                break;
        }
        uint64_t left = size - done;
        size_t room = left < SIZE_MAX ? (size_t)left : SIZE_MAX;
        done += copy_record(walk, out == NULL ? NULL : out + done, room);
    }
    if (out != NULL)
        memset(out + done, 0, (size_t)(size - done));
    return 0;
}

static int go_to(trimaran_snapshot *snapshot, uint32_t number)
{
    if (number < snapshot->next_chunk) {
        trimaran_walk_end(&snapshot->walk);
        snapshot->next_chunk = 0;
    }
    uint64_t ahead = (uint64_t)(number - snapshot->next_chunk) * TRIMARAN_CHUNK_BODY_BYTES;
    snapshot->next_chunk = number;
    return advance(snapshot, NULL, ahead);
}

int trimaran_snapshot_chunk(trimaran_snapshot *snapshot, uint32_t number, uint8_t *out,
                            size_t *size)
{
    uint64_t bytes;
    uint32_t chunks;
    int error = trimaran_snapshot_measure(snapshot, &bytes, &chunks);
    if (error == 0 && number >= chunks)
        error = -ENOENT;
    if (error == 0)
        error = go_to(snapshot, number);
    if (error != 0)
        return error;
    uint64_t left = snapshot->stream_bytes - (uint64_t)number * TRIMARAN_CHUNK_BODY_BYTES;
    size_t body = left < TRIMARAN_CHUNK_BODY_BYTES ? (size_t)left : TRIMARAN_CHUNK_BODY_BYTES;
    error = advance(snapshot, out + TRIMARAN_CHUNK_HEAD_BYTES, body);
    if (error != 0)
        return error;
    snapshot->next_chunk = number + 1;
    trimaran_put_u32(out, TRIMARAN_CHUNK_MAGIC);
    trimaran_put_u32(out + 8, number);
    trimaran_put_u32(out + 12, (uint32_t)body);
    trimaran_put_u32(out + 4, trimaran_crc32c(0, out + 8, body + 8));
    *size = body + TRIMARAN_CHUNK_HEAD_BYTES;
    trimaran_failpoint(number == 0 ? TRIMARAN_FAIL_SNAPSHOT_SEND_BEGIN
                                   : TRIMARAN_FAIL_SNAPSHOT_SEND_CHUNK);
    return 0;
}
