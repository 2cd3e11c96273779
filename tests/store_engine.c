/* The store's engines behind a pipe, for tests that hold the model: each frame on standard input is
 * one call, each frame on standard output its result and what was sent to clients meanwhile.
 * Compiled with sanitizers; gRPC is replaced by calls that live in this file.
 *
 * Usage: store_engine DIRECTORY QUOTA_BYTES */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "service.h"

enum { CALLS_MAX = 65536, CALLS_WITH_LEADER = 60000, MAP_BYTES = 64 << 20 };

struct trimaran_rpc_call {
    uint32_t id;
    void *user;
    size_t queued;
    trimaran_buffer reserved;
};

typedef struct entry {
    struct entry *next;
    trimaran_buffer bytes;
} entry_t;

static const char *directory;
static trimaran_mvcc *mvcc;
static trimaran_watchhub *hub;
static trimaran_service *service;
static trimaran_service_options service_options = {128, 1572864, 0, 512 << 20};
static trimaran_rpc_call *calls[CALLS_MAX];
static entry_t *first_entry, **last_entry = &first_entry;
static uint64_t proposed_sequence, incarnation;
static trimaran_buffer answer, sent;

/* What stands in for gRPC. */

void *trimaran_rpc_user(const trimaran_rpc_call *call) { return call->user; }
void trimaran_rpc_set_user(trimaran_rpc_call *call, void *user) { call->user = user; }
/* Calls from this number on ask not to be served without a leader. */
const char *trimaran_rpc_metadata(const trimaran_rpc_call *call, const char *name, size_t *size)
{
    *size = 4;
    return call->id >= CALLS_WITH_LEADER && strcmp(name, "hasleader") == 0 ? "true" : NULL;
}
size_t trimaran_rpc_queued(const trimaran_rpc_call *call) { return call->queued; }

uint8_t *trimaran_rpc_reserve(trimaran_rpc_call *call, size_t capacity)
{
    call->reserved.size = 0;
    return trimaran_buffer_reserve(&call->reserved, capacity);
}

static void put32(trimaran_buffer *out, uint32_t value)
{
    trimaran_buffer_append(out, &value, sizeof value);
}

static void put64(trimaran_buffer *out, int64_t value)
{
    trimaran_buffer_append(out, &value, sizeof value);
}

static void put_bytes(trimaran_buffer *out, const void *data, size_t size)
{
    put32(out, (uint32_t)size);
    trimaran_buffer_append(out, data, size);
}

/* One row of what was sent: the call, -1 for a message or else the status, the bytes. */
static void note_sent(uint32_t id, int32_t status, const void *data, size_t size)
{
    put32(&sent, id);
    put32(&sent, (uint32_t)status);
    put_bytes(&sent, data, size);
}

void trimaran_rpc_commit(trimaran_rpc_call *call, size_t size)
{
    note_sent(call->id, -1, call->reserved.data, size);
}

static void free_call(trimaran_rpc_call *call)
{
    calls[call->id] = NULL;
    trimaran_buffer_free(&call->reserved);
    free(call);
}

void trimaran_rpc_finish(trimaran_rpc_call *call, int status, const char *message)
{
    const char *text = message ? message : "";
    note_sent(call->id, status, text, strlen(text));
    free_call(call);
}

/* Reading of a frame's arguments. */

static uint64_t take(trimaran_slice *from, size_t size)
{
    uint64_t value = 0;
    assert(from->size >= size);
    memcpy(&value, from->data, size);
    *from = trimaran_slice_of(from->data + size, from->size - size);
    return value;
}

static void open_engines(void)
{
    trimaran_mvcc_options options = {directory, MAP_BYTES, 42, 7, 8};
    int code = trimaran_mvcc_open(&options, &mvcc);
    if (code != 0) {
        fprintf(stderr, "open: %d\n", code);
        exit(3);
    }
    service_options.member_id = options.member_id;
    service_options.incarnation = ++incarnation;
    service_options.timeout_ticks = service_options.election_ticks = 10;
    hub = trimaran_watchhub_create(mvcc, 42, service_options.max_request_bytes);
    service = trimaran_service_create(mvcc, hub, &service_options);
    proposed_sequence = 0;
}

static void drop_entries(void)
{
    while (first_entry != NULL) {
        entry_t *next = first_entry->next;
        trimaran_buffer_free(&first_entry->bytes);
        free(first_entry);
        first_entry = next;
    }
    last_entry = &first_entry;
}

static void close_engines(void)
{
    trimaran_service_destroy(service);
    trimaran_watchhub_destroy(hub);
    trimaran_mvcc_close(mvcc);
    for (uint32_t id = 0; id < CALLS_MAX; id++)
        if (calls[id] != NULL)
            free_call(calls[id]);
    drop_entries();
}

/* Make entries of the batches that were cut since the last call. */
static void propose(void)
{
    trimaran_proposals *proposals = trimaran_service_proposals(service);
    trimaran_proposals_cut(proposals);
    for (trimaran_proposal *next = proposals->first; next != NULL; next = next->next) {
        if (next->sequence <= proposed_sequence)
            continue;
        entry_t *entry = trimaran_allocate(sizeof *entry);
        *entry = (entry_t){0};
        trimaran_buffer_append(&entry->bytes, trimaran_payload_data(next->payload),
                               trimaran_payload_size(next->payload));
        *last_entry = entry;
        last_entry = &entry->next;
        proposed_sequence = next->sequence;
    }
}

static uint64_t apply_next(void)
{
    uint64_t index, term;
    entry_t *entry = first_entry;
    if (entry == NULL)
        return 0;
    trimaran_state_applied(trimaran_mvcc_state(mvcc), &index, &term);
    trimaran_service_apply(service, index + 1, 1,
                           trimaran_slice_of(entry->bytes.data, entry->bytes.size));
    first_entry = entry->next;
    if (first_entry == NULL)
        last_entry = &first_entry;
    trimaran_buffer_free(&entry->bytes);
    free(entry);
    return index + 1;
}

/* A message of a client on a call, which is made where it is new. */
static void receive(trimaran_slice arguments)
{
    uint32_t id = (uint32_t)take(&arguments, 4);
    int method = (int)take(&arguments, 1);
    const trimaran_rpc_handler *handler = trimaran_service_handler(service);
    assert(id < CALLS_MAX);
    if (calls[id] == NULL) {
        calls[id] = trimaran_allocate(sizeof *calls[id]);
        *calls[id] = (trimaran_rpc_call){.id = id};
    }
    /* A buffer of its own, so that a read past its end is seen. */
    uint8_t *copy = trimaran_allocate(arguments.size);
    if (arguments.size > 0)
        memcpy(copy, arguments.data, arguments.size);
    handler->message(handler->context, calls[id], method, copy, arguments.size);
    free(copy);
}

static void disconnect(uint32_t id, int method)
{
    const trimaran_rpc_handler *handler = trimaran_service_handler(service);
    if (calls[id] == NULL)
        return;
    handler->closed(handler->context, calls[id], method);
    free_call(calls[id]);
}

static void half_close(uint32_t id, int method)
{
    const trimaran_rpc_handler *handler = trimaran_service_handler(service);
    if (calls[id] != NULL)
        handler->half_closed(handler->context, calls[id], method);
}

static void set_queued(uint32_t id, size_t bytes)
{
    const trimaran_rpc_handler *handler = trimaran_service_handler(service);
    if (calls[id] == NULL)
        return;
    calls[id]->queued = bytes;
    if (bytes == 0)
        handler->writable(handler->context, calls[id], 5);
}

/* The MVCC state without the service before it. */

static uint8_t apply(trimaran_slice arguments)
{
    uint64_t index = take(&arguments, 8);
    trimaran_op_kind kind = (trimaran_op_kind)take(&arguments, 1);
    trimaran_error error = trimaran_mvcc_apply(mvcc, kind, arguments, &answer);
    trimaran_state_set_applied(trimaran_mvcc_state(mvcc), index, 1);
    return (uint8_t)error;
}

static uint8_t read_txn(trimaran_slice message)
{
    trimaran_arena arena = {0};
    trimaran_txn_request request;
    trimaran_error error = TRIMARAN_ERROR_MALFORMED;
    if (trimaran_decode_txn(message, &arena, &request))
        error = trimaran_check_txn(&request, service_options.max_txn_ops, &arena);
    if (error == TRIMARAN_ERROR_NONE && trimaran_txn_is_read_only(&request))
        error = trimaran_mvcc_read_txn(mvcc, &request, &answer);
    trimaran_arena_free(&arena);
    return (uint8_t)error;
}

static uint8_t read_range(trimaran_slice message)
{
    trimaran_range_request request;
    if (!trimaran_decode_range(message, &request))
        return TRIMARAN_ERROR_MALFORMED;
    trimaran_error error = trimaran_check_range(&request);
    return (uint8_t)(error ? error : trimaran_mvcc_range(mvcc, &request, &answer));
}

static bool put_change(void *context, const trimaran_change *change)
{
    (void)context;
    put64(&answer, change->main);
    put32(&answer, (uint32_t)change->sub);
    put32(&answer, change->tombstone);
    put_bytes(&answer, change->data, change->size);
    return true;
}

static uint8_t check_txn(trimaran_slice arguments)
{
    int64_t most = (int64_t)take(&arguments, 8);
    trimaran_arena arena = {0};
    trimaran_txn_request request;
    trimaran_error error = TRIMARAN_ERROR_MALFORMED;
    if (trimaran_decode_txn(arguments, &arena, &request))
        error = trimaran_check_txn(&request, most, &arena);
    trimaran_arena_free(&arena);
    return (uint8_t)error;
}

static void describe(void)
{
    const trimaran_leasetable *leases = trimaran_mvcc_leases(mvcc);
    const trimaran_alarm *alarms;
    size_t alarm_count = trimaran_mvcc_alarms(mvcc, &alarms);
    trimaran_watchhub_counts counts = trimaran_watchhub_count(hub);
    uint64_t applied, term;
    trimaran_state_applied(trimaran_mvcc_state(mvcc), &applied, &term);
    put64(&answer, trimaran_mvcc_revision(mvcc));
    put64(&answer, trimaran_mvcc_compact_revision(mvcc));
    put64(&answer, trimaran_mvcc_compacting(mvcc));
    put64(&answer, (int64_t)applied);
    put64(&answer, (int64_t)trimaran_state_persisted(trimaran_mvcc_state(mvcc)));
    put64(&answer, (int64_t)trimaran_state_pending_bytes(trimaran_mvcc_state(mvcc)));
    put64(&answer, (int64_t)counts.streams);
    put64(&answer, (int64_t)counts.watchers);
    put64(&answer, (int64_t)counts.behind);
    put32(&answer, (uint32_t)alarm_count);
    for (size_t i = 0; i < alarm_count; i++) {
        put64(&answer, (int64_t)alarms[i].member_id);
        put32(&answer, (uint32_t)alarms[i].kind);
    }
    for (size_t i = 0; i <= leases->mask; i++) {
        const trimaran_lease *lease = leases->slots[i];
        if (lease == NULL)
            continue;
        put64(&answer, lease->id);
        put64(&answer, lease->ttl_s);
        put32(&answer, lease->count);
        for (uint32_t k = 0; k < lease->count; k++)
            put_bytes(&answer, lease->keys[k]->key, lease->keys[k]->key_size);
    }
}

static void put_results(void)
{
    const trimaran_result *results;
    size_t count = trimaran_service_results(service, &results);
    for (size_t i = 0; i < count; i++) {
        put64(&answer, (int64_t)results[i].token);
        put32(&answer, results[i].kind);
        put32(&answer, results[i].error);
        put64(&answer, results[i].revision);
        put64(&answer, results[i].lease);
    }
}

static uint8_t collect(void)
{
    trimaran_state *state = trimaran_mvcc_state(mvcc);
    struct pollfd ready = {trimaran_state_event_fd(state), POLLIN, 0};
    if (poll(&ready, 1, 20000) != 1)
        return 0;
    return trimaran_state_collect(state);
}

static uint8_t wait_for_error(void)
{
    struct timespec pause = {0, 10000000};
    int error = 0;
    for (int i = 0; i < 2000 && error == 0; i++) {
        nanosleep(&pause, NULL);
        error = trimaran_state_error(trimaran_mvcc_state(mvcc));
    }
    return (uint8_t)error;
}

/* Two switches, as one would be too long to read. */
static uint8_t run_client_command(uint8_t command, trimaran_slice arguments)
{
    uint32_t id;
    switch (command) {
    case 'm': receive(arguments); return 0;
    case 'x':
        id = (uint32_t)take(&arguments, 4);
        disconnect(id, (int)take(&arguments, 1));
        return 0;
    case 'l':
        id = (uint32_t)take(&arguments, 4);
        half_close(id, (int)take(&arguments, 1));
        return 0;
    case 'b':
        id = (uint32_t)take(&arguments, 4);
        set_queued(id, take(&arguments, 8));
        return 0;
    case 'u': {
        uint64_t token = take(&arguments, 8);
        trimaran_op_kind kind = (trimaran_op_kind)take(&arguments, 1);
        trimaran_service_submit(service, kind, arguments, token);
        return 0;
    }
    case 'p': propose(); return 0;
    case 'y': put64(&answer, (int64_t)apply_next()); return 0;
    case 'v': trimaran_service_tick(service); return 0;
    case 'w': {
        uint8_t flags = (uint8_t)take(&arguments, 1);
        trimaran_service_mode mode = {flags & 1, flags & 2, flags & 4};
        trimaran_service_set_mode(service, &mode);
        return 0;
    }
    case 'd': {
        trimaran_readqueue *reads = trimaran_service_reads(service);
        trimaran_readqueue_asked(reads, 0);
        trimaran_readqueue_answer(reads, reads->context, take(&arguments, 8));
        trimaran_service_answer_reads(service);
        return 0;
    }
    case 'z': return trimaran_service_step(service);
    case 'g': trimaran_watchhub_progress(hub); return 0;
    case 'j': put_results(); return 0;
    default: fprintf(stderr, "no command '%c'\n", command); exit(2);
    }
}

static uint8_t run_command(uint8_t command, trimaran_slice arguments)
{
    trimaran_state *state = trimaran_mvcc_state(mvcc);
    int64_t from;
    switch (command) {
    case 'a': return apply(arguments);
    case 'r': return read_range(arguments);
    case 't': return read_txn(arguments);
    case 'h':
        from = (int64_t)take(&arguments, 8);
        trimaran_mvcc_history(mvcc, arguments, from, put_change, NULL);
        return 0;
    case 's': trimaran_state_scan(state, (int64_t)take(&arguments, 8), put_change, NULL); return 0;
    case 'e': return trimaran_mvcc_seal(mvcc);
    case 'c': return collect();
    case 'f': return wait_for_error();
    case 'q': return trimaran_mvcc_compact_step(mvcc, take(&arguments, 4));
    case 'i': describe(); return 0;
    case 'k': return check_txn(arguments);
    case 'o':
        close_engines();
        open_engines();
        return 0;
    default: return run_client_command(command, arguments);
    }
}

static bool read_frame(trimaran_buffer *frame)
{
    uint32_t size;
    if (fread(&size, sizeof size, 1, stdin) != 1)
        return false;
    frame->size = 0;
    trimaran_buffer_reserve(frame, size);
    frame->size = size;
    return fread(frame->data, 1, size, stdin) == size;
}

int main(int count, char **words)
{
    trimaran_buffer frame = {0};
    assert(count == 3);
    directory = words[1];
    service_options.quota_bytes = strtoll(words[2], NULL, 10);
    open_engines();
    while (read_frame(&frame)) {
        answer.size = sent.size = 0;
        uint8_t status =
            run_command(frame.data[0], trimaran_slice_of(frame.data + 1, frame.size - 1));
        uint32_t sizes[2] = {(uint32_t)answer.size, (uint32_t)sent.size};
        fwrite(&status, 1, 1, stdout);
        fwrite(sizes, sizeof sizes, 1, stdout);
        if (answer.size > 0)
            fwrite(answer.data, 1, answer.size, stdout);
        if (sent.size > 0)
            fwrite(sent.data, 1, sent.size, stdout);
        fflush(stdout);
    }
    close_engines();
    trimaran_buffer_free(&frame);
    trimaran_buffer_free(&answer);
    trimaran_buffer_free(&sent);
    return 0;
}
