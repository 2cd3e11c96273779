/* Peer frames under sanitizers: random messages written and read in random pieces must come back
 * as they were; then the same bytes damaged, with and without a mended checksum, must be refused
 * or read within their bounds.
 *
 * Usage: peer_frames SEED ROUNDS; prints how many damaged frames were read, and how many refused.
 */
#include <stdio.h>

#include "configuration.h"
#include "crc32c.h"
#include "peerframe.h"

enum { ENTRIES_MAX = 5, DATA_MAX = 300 };

static uint64_t random_state;

static uint32_t draw(uint32_t below)
{
    /* splitmix64 */
    uint64_t value = random_state += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((value ^ value >> 31) % below);
}

/* A slot that stands in for the gRPC engine, which nothing here calls. */
void trimaran_rpc_set_user(trimaran_rpc_call *call, void *user)
{
    (void)call, (void)user;
}

static uint8_t data[DATA_MAX];
static trimaran_entry entries[ENTRIES_MAX];

static trimaran_raft_message make_message(void)
{
    trimaran_raft_message message = {.type = 1 + draw(12), .from = 1 + draw(9), .to = 1 + draw(9)};
    if (message.type == TRIMARAN_RAFT_SNAPSHOT)
        message.type = TRIMARAN_RAFT_APPEND;
    message.reject = (uint8_t)draw(2);
    message.force = (uint8_t)draw(2);
    message.log_term = draw(5);
    message.term = message.log_term + draw(5);
    message.index = draw(1000);
    message.commit = draw(1000);
    message.context = draw(1000);
    message.hint_index = draw(1000);
    message.hint_term = draw(5);
    if (message.type != TRIMARAN_RAFT_APPEND)
        return message;
    message.entries = entries;
    message.entry_count = draw(ENTRIES_MAX + 1);
    for (size_t i = 0; i < message.entry_count; i++)
        entries[i] = (trimaran_entry){.index = message.index + 1 + i,
                                      .term = message.term,
                                      .type = draw(2),
                                      .size = draw(DATA_MAX),
                                      .data = data};
    return message;
}

static void check_same(const trimaran_raft_message *a, const trimaran_raft_message *b)
{
    assert(a->type == b->type && a->reject == b->reject && a->force == b->force);
    assert(a->from == b->from && a->to == b->to && a->term == b->term);
    assert(a->log_term == b->log_term && a->index == b->index && a->commit == b->commit);
    assert(a->context == b->context && a->hint_index == b->hint_index);
    assert(a->hint_term == b->hint_term && a->entry_count == b->entry_count);
    for (size_t i = 0; i < a->entry_count; i++) {
        const trimaran_entry *x = &a->entries[i], *y = &b->entries[i];
        assert(x->index == y->index && x->term == y->term && x->type == y->type);
        assert(x->size == y->size && memcmp(x->data, y->data, x->size) == 0);
        assert(y->payload != NULL);
    }
}

/* Feed bytes in random pieces, each in a buffer of its own so that a read past its end is seen.
 * Returns the last code; frames are decoded whatever they are, and counted. */
static int feed(trimaran_slice bytes, const trimaran_raft_message *expected, long *decoded)
{
    trimaran_frame_parser parser = {0};
    trimaran_frame_entries space = {0};
    trimaran_frame frame;
    int code = 0;
    while (bytes.size > 0 && code >= 0) {
        size_t size = 1 + draw((uint32_t)bytes.size);
        uint8_t *piece = trimaran_allocate(size);
        memcpy(piece, bytes.data, size);
        trimaran_slice input = trimaran_slice_of(piece, size);
        while ((code = trimaran_frame_parse(&parser, &input, &frame)) == 1) {
            trimaran_raft_message message;
            trimaran_slice forward;
            uint32_t type;
            if (trimaran_frame_message(&frame, &space, &message) == 0) {
                ++*decoded;
                if (expected != NULL)
                    check_same(expected, &message);
            } else if (trimaran_frame_forward(&frame, &type, &forward) == 0) {
                trimaran_configuration configuration;
                ++*decoded;
                trimaran_proposal_check(forward, 7);
                trimaran_configuration_decode(forward, &configuration);
            }
            trimaran_payload_release(frame.payload);
        }
        free(piece);
        bytes = trimaran_slice_of(bytes.data + size, bytes.size - size);
    }
    trimaran_frame_parser_free(&parser);
    free(space.entries);
    return code;
}

/* A batch or a change of configuration, as a follower forwards it. */
static void put_forward(trimaran_buffer *out)
{
    trimaran_buffer bytes = {0};
    uint8_t head[TRIMARAN_BATCH_HEAD];
    trimaran_proposal_head fields = {7, 1, 1 + draw(9)};
    bool change = draw(2);
    trimaran_proposal_write_head(head, change ? 1 : TRIMARAN_BATCH_VERSION, &fields);
    trimaran_buffer_append(&bytes, head, sizeof head);
    if (change) {
        static const uint8_t rest[] = {1, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0,
                                       'm', 'e', 'm', 'b', 'e', 'r', '/', 'x', 1, 0, 0, 0, 'v'};
        trimaran_buffer_append(&bytes, rest, sizeof rest);
    } else {
        static const uint8_t operation[] = {1, 4, 0, 0, 0, 0x0a, 2, 'a', 'b'};
        for (uint32_t count = 1 + draw(4); count > 0; count--)
            trimaran_buffer_append(&bytes, operation, sizeof operation);
    }
    trimaran_frame_put_forward(out, change, trimaran_slice_of(bytes.data, bytes.size));
    trimaran_configuration configuration;
    trimaran_slice whole = trimaran_slice_of(bytes.data, bytes.size);
    assert(change ? trimaran_configuration_decode(whole, &configuration)
                  : trimaran_proposal_check(whole, 7));
    assert(!trimaran_proposal_check(whole, 8));
    trimaran_buffer_free(&bytes);
}

/* Change, cut or lengthen; then, half the time, let the head fit again. */
static void damage(trimaran_buffer *frame)
{
    uint32_t kind = draw(4);
    if (kind == 0)
        frame->size = TRIMARAN_FRAME_HEAD + draw((uint32_t)(frame->size - TRIMARAN_FRAME_HEAD + 1));
    else if (kind == 1)
        trimaran_buffer_append(frame, data, 1 + draw(40));
    for (uint32_t count = kind > 1 ? 1 + draw(4) : 0; count > 0; count--)
        frame->data[draw((uint32_t)frame->size)] ^= (uint8_t)(1 << draw(8));
    if (draw(2)) {
        trimaran_put_u32(frame->data, (uint32_t)frame->size - 8);
        trimaran_put_u32(frame->data + 4, trimaran_crc32c(0, frame->data + 8, frame->size - 8));
    }
}

int main(int count, char **words)
{
    long decoded = 0, refused = 0;
    assert(count == 3);
    random_state = strtoull(words[1], NULL, 10);
    for (size_t i = 0; i < DATA_MAX; i++)
        data[i] = (uint8_t)draw(256);
    for (long round = strtol(words[2], NULL, 10); round > 0; round--) {
        trimaran_buffer frame = {0};
        trimaran_raft_message message = make_message();
        long whole = 0, damaged = 0;
        bool forward = draw(4) == 0;
        if (forward)
            put_forward(&frame);
        else
            trimaran_frame_put_message(&frame, &message);
        assert(feed(trimaran_slice_of(frame.data, frame.size), forward ? NULL : &message,
                    &whole) == 0);
        assert(whole == 1);
        damage(&frame);
        feed(trimaran_slice_of(frame.data, frame.size), NULL, &damaged);
        decoded += damaged;
        refused += damaged == 0;
        trimaran_buffer_free(&frame);
    }
    printf("%ld %ld\n", decoded, refused);
    return 0;
}
