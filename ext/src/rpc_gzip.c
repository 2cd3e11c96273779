/* Inflating of gzip-compressed request messages. */
#include <errno.h>
#include <string.h>
#include <zlib.h>

#include "rpc_internal.h"

int trimaran_rpc_gunzip(const uint8_t *data, size_t size, size_t limit, rpc_buffer *result) {
    z_stream stream = {0};
    if (inflateInit2(&stream, 15 + 16) != Z_OK) {
        return -EBADMSG;
    }
    stream.next_in = (uint8_t *)data;
    stream.avail_in = (uInt)size;
    int status = Z_OK;
    while (status == Z_OK && rpc_buffer_size(result) <= limit) {
        trimaran_rpc_buffer_room(result, 4096);
        size_t room = result->capacity - result->tail;
        stream.next_out = result->data + result->tail;
        stream.avail_out = (uInt)room;
        status = inflate(&stream, Z_NO_FLUSH);
        result->tail += room - stream.avail_out;
    }
    inflateEnd(&stream);
    if (rpc_buffer_size(result) > limit) {
        return -EMSGSIZE;
    }
    return status == Z_STREAM_END ? 0 : -EBADMSG;
}
