/* Frames between members; see peerframe.h. */
#include "peerframe.h"

#include <errno.h>

#include "crc32c.h"

/* The head: size and checksum, which the size does not count, then version, kind and zeros. */
enum { CHECKED_AT = 8, CHECKED_HEAD = 4 };
/* A message: two flags, two zeros, count of entries, then eight numbers. */
enum { MESSAGE_SIZE = 8 + 10 * 8, ENTRY_SIZE = 16 };

size_t trimaran_frame_begin(trimaran_buffer *out, uint8_t kind)
{
    size_t start = out->size;
    uint8_t *at = trimaran_buffer_reserve(out, TRIMARAN_FRAME_HEAD);
    memset(at, 0, TRIMARAN_FRAME_HEAD);
    at[CHECKED_AT] = TRIMARAN_FRAME_VERSION;
    at[CHECKED_AT + 1] = kind;
    out->size += TRIMARAN_FRAME_HEAD;
    return start;
}

void trimaran_frame_end(trimaran_buffer *out, size_t start)
{
    uint8_t *at = out->data + start;
    size_t size = out->size - start - CHECKED_AT;
    assert(size <= (size_t)CHECKED_HEAD + TRIMARAN_FRAME_BODY_MAX);
    trimaran_put_u32(at, (uint32_t)size);
    trimaran_put_u32(at + 4, trimaran_crc32c(0, at + CHECKED_AT, size));
}

void trimaran_frame_put_message(trimaran_buffer *out, const trimaran_raft_message *message)
{
    const uint64_t numbers[10] = {message->from,     message->to,         message->term,
                                  message->log_term, message->index,      message->commit,
                                  message->context,  message->hint_index, message->hint_term};
    size_t start = trimaran_frame_begin(out, (uint8_t)message->type), size = MESSAGE_SIZE;
    assert(message->type < TRIMARAN_FRAME_FORWARD);
    for (size_t i = 0; i < message->entry_count; i++)
        size += ENTRY_SIZE + message->entries[i].size;
    uint8_t *at = trimaran_buffer_reserve(out, size);
    *at++ = message->reject;
    *at++ = message->force;
    *at++ = 0;
    *at++ = 0;
    at = trimaran_put_u32(at, (uint32_t)message->entry_count);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        at = trimaran_put_u64(at, numbers[i]);
    for (size_t i = 0; i < message->entry_count; i++) {
        const trimaran_entry *entry = &message->entries[i];
        assert(entry->index == message->index + 1 + i);
        at = trimaran_put_u64(at, entry->term);
        at = trimaran_put_u32(at, entry->type);
        at = trimaran_put_u32(at, entry->size);
        if (entry->size > 0)
            memcpy(at, entry->data, entry->size);
        at += entry->size;
    }
    out->size += size;
    assert(at == out->data + out->size);
    trimaran_frame_end(out, start);
}

void trimaran_frame_put_forward(trimaran_buffer *out, uint32_t type, trimaran_slice payload)
{
    uint8_t head[4];
    size_t start = trimaran_frame_begin(out, TRIMARAN_FRAME_FORWARD);
    trimaran_put_u32(head, type);
    trimaran_buffer_append(out, head, sizeof head);
    trimaran_buffer_append(out, payload.data, payload.size);
    trimaran_frame_end(out, start);
}

void trimaran_frame_parser_free(trimaran_frame_parser *parser)
{
    trimaran_payload_release(parser->payload);
    *parser = (trimaran_frame_parser){0};
}

static void take(trimaran_slice *input, uint8_t *to, size_t size)
{
    memcpy(to, input->data, size);
    *input = trimaran_slice_of(input->data + size, input->size - size);
}

/* Complete the head as far as the input goes, then make room for what it announces. */
static int parse_head(trimaran_frame_parser *parser, trimaran_slice *input)
{
    size_t missing = TRIMARAN_FRAME_HEAD - parser->head_size;
    if (missing > input->size)
        missing = input->size;
    take(input, parser->head + parser->head_size, missing);
    parser->head_size += missing;
    if (parser->head_size < TRIMARAN_FRAME_HEAD)
        return 0;
    const uint8_t *checked = parser->head + CHECKED_AT;
    uint32_t size = trimaran_read_u32(parser->head);
    if (size < CHECKED_HEAD || size - CHECKED_HEAD > TRIMARAN_FRAME_BODY_MAX)
        return -EPROTO;
    if (checked[0] != TRIMARAN_FRAME_VERSION)
        return -EPROTONOSUPPORT;
    if (checked[1] == 0 || checked[2] != 0 || checked[3] != 0)
        return -EPROTO;
    parser->payload = trimaran_payload_new(size - CHECKED_HEAD);
    parser->received = 0;
    return parser->payload == NULL ? -ENOMEM : 1;
}

static int finish_frame(trimaran_frame_parser *parser, trimaran_frame *out)
{
    trimaran_payload *payload = parser->payload;
    const uint8_t *body = trimaran_payload_data(payload);
    size_t size = trimaran_payload_size(payload);
    uint32_t checksum = trimaran_crc32c(0, parser->head + CHECKED_AT, CHECKED_HEAD);
    if (trimaran_crc32c(checksum, body, size) != trimaran_read_u32(parser->head + 4))
        return -EBADMSG;
    *out = (trimaran_frame){parser->head[CHECKED_AT + 1], trimaran_slice_of(body, size), payload};
    parser->payload = NULL;
    parser->head_size = 0;
    return 1;
}

int trimaran_frame_parse(trimaran_frame_parser *parser, trimaran_slice *input,
                         trimaran_frame *out)
{
    if (input->size == 0)
        return 0;
    if (parser->payload == NULL) {
        int code = parse_head(parser, input);
        if (code <= 0)
            return code;
    }
    size_t missing = trimaran_payload_size(parser->payload) - parser->received;
    size_t more = missing < input->size ? missing : input->size;
    if (more > 0)
        take(input, trimaran_payload_data(parser->payload) + parser->received, more);
    parser->received += more;
    return more < missing ? 0 : finish_frame(parser, out);
}

static int decode_entries(const trimaran_frame *frame, const uint8_t *at,
                          trimaran_frame_entries *space, trimaran_raft_message *out)
{
    const uint8_t *end = frame->body.data + frame->body.size;
    /* Each entry takes bytes of the frame, so the count cannot ask for more memory than arrived. */
    if (out->entry_count > (size_t)(end - at) / ENTRY_SIZE)
        return -EPROTO;
    if (out->entry_count > space->capacity) {
        space->capacity = out->entry_count * 2;
        space->entries =
            trimaran_reallocate(space->entries, space->capacity * sizeof *space->entries);
    }
    for (size_t i = 0; i < out->entry_count; i++) {
        trimaran_entry *entry = &space->entries[i];
        if ((size_t)(end - at) < ENTRY_SIZE)
            return -EPROTO;
        *entry = (trimaran_entry){.index = out->index + 1 + i,
                                  .term = trimaran_read_u64(at),
                                  .type = trimaran_read_u32(at + 8),
                                  .size = trimaran_read_u32(at + 12),
                                  .data = at + ENTRY_SIZE,
                                  .payload = frame->payload};
        uint64_t term_before = i > 0 ? entry[-1].term : out->log_term;
        at += ENTRY_SIZE;
        if ((size_t)(end - at) < entry->size || entry->type > TRIMARAN_ENTRY_CONFIGURATION ||
            entry->term < term_before || entry->term > out->term)
            return -EPROTO;
        at += entry->size;
    }
    out->entries = space->entries;
    return at == end ? 0 : -EPROTO;
}

int trimaran_frame_message(const trimaran_frame *frame, trimaran_frame_entries *entries,
                           trimaran_raft_message *out)
{
    const uint8_t *at = frame->body.data;
    uint64_t numbers[10];
    /* A snapshot travels as a stream of its own; nobody sends the message. */
    if (frame->kind < TRIMARAN_RAFT_VOTE || frame->kind > TRIMARAN_RAFT_READ_INDEX_RESPONSE ||
        frame->kind == TRIMARAN_RAFT_SNAPSHOT || frame->body.size < MESSAGE_SIZE)
        return -EPROTO;
    if (at[0] > 1 || at[1] > 1 || at[2] != 0 || at[3] != 0)
        return -EPROTO;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        numbers[i] = trimaran_read_u64(at + 8 + 8 * i);
    *out = (trimaran_raft_message){
        .type = frame->kind,
        .reject = at[0],
        .force = at[1],
        .from = numbers[0],
        .to = numbers[1],
        .term = numbers[2],
        .log_term = numbers[3],
        .index = numbers[4],
        .commit = numbers[5],
        .context = numbers[6],
        .hint_index = numbers[7],
        .hint_term = numbers[8],
        .entry_count = trimaran_read_u32(at + 4),
    };
    if (out->from == 0 || out->to == 0 || numbers[9] != 0 || out->index >> 62 != 0)
        return -EPROTO;
    if (out->entry_count > 0 && frame->kind != TRIMARAN_RAFT_APPEND)
        return -EPROTO;
    return decode_entries(frame, at + MESSAGE_SIZE, entries, out);
}

int trimaran_frame_forward(const trimaran_frame *frame, uint32_t *type, trimaran_slice *payload)
{
    if (frame->kind != TRIMARAN_FRAME_FORWARD || frame->body.size < 4)
        return -EPROTO;
    *type = trimaran_read_u32(frame->body.data);
    *payload = trimaran_slice_of(frame->body.data + 4, frame->body.size - 4);
    return *type <= TRIMARAN_ENTRY_CONFIGURATION ? 0 : -EPROTO;
}
