/* Protocol Buffers wire format: reading fields from bytes and writing them to a buffer.
 *
 * Source: the encoding chapter of the Protocol Buffers documentation. Readers accept fields in any
 * order and skip unknown ones; writers leave out zero values, as proto3 does.
 */
#ifndef TRIMARAN_PROTO_H
#define TRIMARAN_PROTO_H

#include "bytes.h"

enum { TRIMARAN_PROTO_VARINT = 0, TRIMARAN_PROTO_FIXED64 = 1, TRIMARAN_PROTO_BYTES = 2,
       TRIMARAN_PROTO_FIXED32 = 5 };

typedef struct trimaran_proto_reader {
    const uint8_t *cursor;
    const uint8_t *end;
} trimaran_proto_reader;

/* One field as it stands on the wire: number holds a varint, bytes a length-delimited value. */
typedef struct trimaran_proto_field {
    uint32_t tag;
    uint32_t type;
    uint64_t number;
    trimaran_slice bytes;
} trimaran_proto_field;

static inline trimaran_proto_reader trimaran_proto_read(trimaran_slice message)
{
    return (trimaran_proto_reader){message.data, message.data + message.size};
}

static inline bool trimaran_proto_varint(trimaran_proto_reader *reader, uint64_t *value)
{
    uint64_t result = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (reader->cursor == reader->end)
            return false;
        uint8_t byte = *reader->cursor++;
        if (shift < 64)
            result |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *value = result;
            return true;
        }
    }
    return false;
}

/* Returns 1 with the next field, 0 at the end, -1 where the bytes are no message. */
static inline int trimaran_proto_next(trimaran_proto_reader *reader, trimaran_proto_field *field)
{
    uint64_t key, size;
    if (reader->cursor == reader->end)
        return 0;
    if (!trimaran_proto_varint(reader, &key) || key >> 3 == 0 || key >> 32 != 0)
        return -1;
    field->tag = (uint32_t)(key >> 3);
    field->type = key & 7;
    field->number = 0;
    field->bytes = (trimaran_slice){0};
    size_t left;
    switch (field->type) {
    case TRIMARAN_PROTO_VARINT:
        return trimaran_proto_varint(reader, &field->number) ? 1 : -1;
    case TRIMARAN_PROTO_BYTES:
        if (!trimaran_proto_varint(reader, &size))
            return -1;
        break;
    case TRIMARAN_PROTO_FIXED64:
        size = 8;
        break;
    case TRIMARAN_PROTO_FIXED32:
        size = 4;
        break;
    default:
        return -1;
    }
    left = (size_t)(reader->end - reader->cursor);
    if (size > left)
        return -1;
    field->bytes = trimaran_slice_of(reader->cursor, (size_t)size);
    reader->cursor += size;
    return 1;
}

static inline size_t trimaran_proto_varint_size(uint64_t value)
{
    return (size_t)(((63 - __builtin_clzll(value | 1)) / 7) + 1);
}

static inline uint8_t *trimaran_proto_put_varint(uint8_t *at, uint64_t value)
{
    while (value >= 0x80) {
        *at++ = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    *at++ = (uint8_t)value;
    return at;
}

/* Writers of a field; all field numbers of the hot messages are below 128. */
static inline uint8_t *trimaran_proto_put_key(uint8_t *at, unsigned tag, unsigned type)
{
    return trimaran_proto_put_varint(at, (uint64_t)tag << 3 | type);
}

static inline uint8_t *trimaran_proto_put_number(uint8_t *at, unsigned tag, uint64_t value)
{
    if (value == 0)
        return at;
    return trimaran_proto_put_varint(trimaran_proto_put_key(at, tag, TRIMARAN_PROTO_VARINT), value);
}

static inline uint8_t *trimaran_proto_put_bytes(uint8_t *at, unsigned tag, trimaran_slice value)
{
    if (value.size == 0)
        return at;
    at = trimaran_proto_put_key(at, tag, TRIMARAN_PROTO_BYTES);
    at = trimaran_proto_put_varint(at, value.size);
    memcpy(at, value.data, value.size);
    return at + value.size;
}

static inline void trimaran_proto_number(trimaran_buffer *buffer, unsigned tag, uint64_t value)
{
    uint8_t *at = trimaran_buffer_reserve(buffer, 16);
    buffer->size = (size_t)(trimaran_proto_put_number(at, tag, value) - buffer->data);
}

static inline void trimaran_proto_bytes(trimaran_buffer *buffer, unsigned tag, trimaran_slice value)
{
    uint8_t *at = trimaran_buffer_reserve(buffer, 16 + value.size);
    buffer->size = (size_t)(trimaran_proto_put_bytes(at, tag, value) - buffer->data);
}

/* An embedded message is written in place and its length put before it afterwards: begin returns
 * where it starts, end takes that position. An empty message is kept: presence means something. */
static inline size_t trimaran_proto_begin(trimaran_buffer *buffer, unsigned tag)
{
    uint8_t *at = trimaran_buffer_reserve(buffer, 16);
    at = trimaran_proto_put_key(at, tag, TRIMARAN_PROTO_BYTES);
    buffer->size = (size_t)(at - buffer->data);
    return buffer->size;
}

static inline void trimaran_proto_end(trimaran_buffer *buffer, size_t start)
{
    size_t size = buffer->size - start;
    size_t prefix = trimaran_proto_varint_size(size);
    trimaran_buffer_reserve(buffer, prefix);
    uint8_t *at = buffer->data + start;
    memmove(at + prefix, at, size);
    trimaran_proto_put_varint(at, size);
    buffer->size += prefix;
}

#endif
