/* The decoders of the hot messages on frames from standard input: a size, a letter for the decoder,
 * the message. Compiled with sanitizers, which end the program at a read out of bounds.
 *
 * Usage: store_codec text           print the fields of each
 *        store_codec fuzz SEED N    damage each N times; print how many could be read, how many not
 */
#include <inttypes.h>
#include <stdio.h>

#include "codec.h"

static uint64_t random_state;

static uint32_t draw(uint32_t below)
{
    /* splitmix64 */
    uint64_t value = random_state += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((value ^ value >> 31) % below);
}

static FILE *out;

static void print_bytes(trimaran_slice bytes)
{
    if (bytes.size == 0)
        fputs("-", out);
    for (size_t i = 0; i < bytes.size; i++)
        fprintf(out, "%02x", bytes.data[i]);
}

/* Two byte fields, then numbers; the shape of most messages. */
static void print_row(trimaran_slice a, trimaran_slice b, const int64_t *numbers, size_t count)
{
    print_bytes(a);
    fputs(" ", out);
    print_bytes(b);
    for (size_t i = 0; i < count; i++)
        fprintf(out, " %" PRId64, numbers[i]);
}

#define PRINT_ROW(a, b, ...)                                                                       \
    print_row(a, b, (int64_t[]){__VA_ARGS__}, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

static void print_put(const trimaran_put_request *put)
{
    PRINT_ROW(put->key, put->value, put->lease, put->prev_kv, put->ignore_value,
              put->ignore_lease);
}

static void print_range(const trimaran_range_request *range)
{
    PRINT_ROW(range->key, range->range_end, range->limit, range->revision, range->sort_order,
              range->sort_target, range->serializable, range->keys_only, range->count_only,
              range->min_mod_revision, range->max_mod_revision, range->min_create_revision,
              range->max_create_revision);
}

static void print_delete(const trimaran_delete_request *remove)
{
    PRINT_ROW(remove->key, remove->range_end, remove->prev_kv);
}

static void print_compare(const trimaran_compare *compare)
{
    bool value = compare->union_field == 7;
    fprintf(out, "\n%d %d %d %" PRId64 " ", compare->result, compare->target, compare->union_field,
            value ? 0 : compare->number);
    print_bytes(compare->key);
    fputs(" ", out);
    print_bytes(value ? compare->value : (trimaran_slice){0});
    fputs(" ", out);
    print_bytes(compare->range_end);
}

static void print_txn(const trimaran_txn_request *txn);

static void print_ops(const trimaran_request_op *ops, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        fputs("\n", out);
        if (ops[i].kind == TRIMARAN_OP_TXN) {
            print_txn(ops[i].txn);
            continue;
        }
        if (ops[i].kind == TRIMARAN_OP_NONE)
            fputs("none", out);
        else
            fprintf(out, "%d ", ops[i].kind);
        if (ops[i].kind == TRIMARAN_OP_RANGE)
            print_range(&ops[i].range);
        else if (ops[i].kind == TRIMARAN_OP_PUT)
            print_put(&ops[i].put);
        else if (ops[i].kind == TRIMARAN_OP_DELETE)
            print_delete(&ops[i].remove);
    }
}

static void print_txn(const trimaran_txn_request *txn)
{
    if (txn->compares == NULL)
        return; /* cut: nested too deeply */
    fprintf(out, "txn %zu %zu %zu", txn->compare_count, txn->success_count, txn->failure_count);
    for (size_t i = 0; i < txn->compare_count; i++)
        print_compare(&txn->compares[i]);
    print_ops(txn->success, txn->success_count);
    print_ops(txn->failure, txn->failure_count);
}

static void print_watch(const trimaran_watch_request *watch)
{
    const trimaran_watch_create *create = &watch->create;
    fprintf(out, "%d", watch->kind);
    if (watch->kind == TRIMARAN_WATCH_CANCEL)
        fprintf(out, " %" PRId64, watch->cancel_id);
    if (watch->kind != TRIMARAN_WATCH_CREATE)
        return;
    fputs(" ", out);
    PRINT_ROW(create->key, create->range_end, create->start_revision, create->progress_notify,
              create->prev_kv, create->watch_id, create->fragment, create->no_put,
              create->no_delete);
}

/* As protobuf writes it, the fields in order: what the decoder read is what the encoder writes. */
static void check_encoding(const trimaran_key_value *kv)
{
    trimaran_key_value again;
    size_t size = trimaran_key_value_size(kv);
    uint8_t *bytes = trimaran_allocate(size);
    assert(trimaran_put_key_value(bytes, kv) == bytes + size);
    assert(trimaran_decode_key_value(trimaran_slice_of(bytes, size), &again));
    assert(trimaran_slice_equal(kv->key, again.key));
    assert(trimaran_slice_equal(kv->value, again.value));
    assert(kv->lease == again.lease && kv->version == again.version);
    assert(kv->create_revision == again.create_revision && kv->mod_revision == again.mod_revision);
    free(bytes);
}

static void print_key_value(const trimaran_key_value *kv)
{
    print_bytes(kv->key);
    fprintf(out, " %" PRId64 " %" PRId64 " %" PRId64 " ", kv->create_revision, kv->mod_revision,
            kv->version);
    print_bytes(kv->value);
    fprintf(out, " %" PRId64, kv->lease);
    check_encoding(kv);
}

static bool print_message(uint8_t letter, trimaran_slice message, trimaran_arena *arena)
{
    union {
        trimaran_put_request put;
        trimaran_range_request range;
        trimaran_delete_request remove;
        trimaran_compaction_request compaction;
        trimaran_txn_request txn;
        trimaran_watch_request watch;
        trimaran_key_value kv;
    } as;
    bool good = false;
    switch (letter) {
    case 'p': if ((good = trimaran_decode_put(message, &as.put))) print_put(&as.put); break;
    case 'r': if ((good = trimaran_decode_range(message, &as.range))) print_range(&as.range); break;
    case 'd':
        if ((good = trimaran_decode_delete(message, &as.remove)))
            print_delete(&as.remove);
        break;
    case 'c':
        if ((good = trimaran_decode_compaction(message, &as.compaction)))
            fprintf(out, "%" PRId64 " %d", as.compaction.revision, as.compaction.physical);
        break;
    case 't':
        if ((good = trimaran_decode_txn(message, arena, &as.txn))) {
            print_txn(&as.txn);
            trimaran_check_txn(&as.txn, 128, arena);
        }
        break;
    case 'w': if ((good = trimaran_decode_watch(message, &as.watch))) print_watch(&as.watch); break;
    case 'k':
        if ((good = trimaran_decode_key_value(message, &as.kv)))
            print_key_value(&as.kv);
        break;
    }
    trimaran_arena_reset(arena);
    return good;
}

/* A copy of exactly its length with some bytes changed, cut, or grown. */
static uint8_t *damage(const uint8_t *data, size_t *size)
{
    size_t longer = draw(4) == 0 ? draw(20) : 0;
    uint8_t *copy = trimaran_allocate(*size + longer);
    if (*size > 0)
        memcpy(copy, data, *size);
    for (size_t i = *size; i < *size + longer; i++)
        copy[i] = (uint8_t)draw(256);
    *size += longer;
    for (uint32_t i = draw(4); i > 0 && *size > 0; i--)
        copy[draw((uint32_t)*size)] = (uint8_t)(draw(2) ? draw(256) : draw(8) * 8 + draw(6));
    if (draw(4) == 0 && *size > 0) {
        *size = draw((uint32_t)*size);
        copy = trimaran_reallocate(copy, *size);
    }
    return copy;
}

static void fuzz(const trimaran_buffer *frame, long rounds, trimaran_arena *arena, long counts[2])
{
    for (long round = 0; round < rounds; round++) {
        size_t size = frame->size - 1;
        uint8_t *copy = damage(frame->data + 1, &size);
        counts[!print_message(frame->data[0], trimaran_slice_of(copy, size), arena)]++;
        free(copy);
    }
}

int main(int count, char **words)
{
    trimaran_buffer frame = {0};
    trimaran_arena arena = {0};
    uint32_t size;
    long counts[2] = {0};
    bool fuzzing = count == 4;
    if (fuzzing)
        random_state = strtoull(words[2], NULL, 10);
    out = fuzzing ? fopen("/dev/null", "w") : stdout;
    assert(out != NULL);
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        frame.size = 0;
        trimaran_buffer_reserve(&frame, size);
        frame.size = fread(frame.data, 1, size, stdin);
        assert(frame.size == size && size > 0);
        if (fuzzing) {
            fuzz(&frame, strtol(words[3], NULL, 10), &arena, counts);
            continue;
        }
        trimaran_slice message = trimaran_slice_of(frame.data + 1, frame.size - 1);
        if (!print_message(frame.data[0], message, &arena))
            fputs("refused", out);
        fputs("\f", out);
    }
    if (fuzzing)
        printf("%ld %ld\n", counts[0], counts[1]);
    fclose(out);
    trimaran_arena_free(&arena);
    trimaran_buffer_free(&frame);
    return 0;
}
