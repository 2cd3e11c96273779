/* Messages to watchers, and the reading of history by those that are behind. */
#include "watchhub_internal.h"

enum { FIELD_WATCH_ID = 2, FIELD_CREATED, FIELD_CANCELED, FIELD_COMPACT_REVISION,
       FIELD_CANCEL_REASON, FIELD_FRAGMENT, FIELD_EVENTS = 11 };
enum { EVENT_TYPE = 1, EVENT_KV, EVENT_PREV_KV };

static void begin(trimaran_watchhub *hub, int64_t revision, int64_t watch_id)
{
    trimaran_header header = trimaran_mvcc_header(hub->mvcc);
    header.revision = revision;
    hub->message.size = 0;
    trimaran_encode_header(&hub->message, &header);
    trimaran_proto_number(&hub->message, FIELD_WATCH_ID, (uint64_t)watch_id);
}

static void finish(trimaran_watchhub *hub, trimaran_watch_stream *stream)
{
    uint8_t *at = trimaran_rpc_reserve(stream->call, hub->message.size);
    memcpy(at, hub->message.data, hub->message.size);
    trimaran_rpc_commit(stream->call, hub->message.size);
}

void trimaran_watch_send(trimaran_watchhub *hub, trimaran_watch_stream *stream,
                         const trimaran_watch_answer *answer)
{
    begin(hub, answer->revision, answer->watch_id);
    trimaran_proto_number(&hub->message, FIELD_CREATED, answer->created);
    trimaran_proto_number(&hub->message, FIELD_CANCELED, answer->canceled);
    trimaran_proto_number(&hub->message, FIELD_COMPACT_REVISION,
                          (uint64_t)answer->compact_revision);
    if (answer->cancel_reason != NULL)
        trimaran_proto_bytes(&hub->message, FIELD_CANCEL_REASON,
                             trimaran_slice_of(answer->cancel_reason,
                                               strlen(answer->cancel_reason)));
    finish(hub, stream);
}

bool trimaran_watcher_event(trimaran_watchhub *hub, const trimaran_watcher *watcher,
                            const trimaran_change *change, trimaran_buffer *out)
{
    trimaran_key_value kv;
    trimaran_slice stored = trimaran_slice_of(change->data, change->size), previous;
    if (change->tombstone ? watcher->no_delete : watcher->no_put)
        return false;
    if (!trimaran_decode_key_value(stored, &kv))
        abort();
    bool created = !change->tombstone && kv.create_revision == kv.mod_revision;
    size_t event = trimaran_proto_begin(out, FIELD_EVENTS);
    trimaran_proto_number(out, EVENT_TYPE, change->tombstone);
    if (change->tombstone) {
        kv.mod_revision = change->main;
        trimaran_encode_key_value(out, EVENT_KV, &kv);
    } else {
        trimaran_proto_bytes(out, EVENT_KV, stored);
    }
    int64_t before = change->main - 1;
    if (watcher->prev_kv && !created && before >= trimaran_mvcc_compact_revision(hub->mvcc) &&
        trimaran_mvcc_get(hub->mvcc, kv.key, before, &previous))
        trimaran_proto_bytes(out, EVENT_PREV_KV, previous);
    trimaran_proto_end(out, event);
    return true;
}

/* The bytes of the first event in events, its tag and length included. */
static size_t event_size(trimaran_slice events)
{
    trimaran_proto_reader reader = trimaran_proto_read(events);
    trimaran_proto_field field;
    if (trimaran_proto_next(&reader, &field) <= 0)
        abort();
    return (size_t)(reader.cursor - events.data);
}

/* The size of the next fragment: whole events up to the limit, one at least. */
static size_t fragment_size(const trimaran_watchhub *hub, trimaran_slice events)
{
    size_t size = event_size(events);
    while (size < events.size) {
        size_t next = event_size(trimaran_slice_of(events.data + size, events.size - size));
        if (size + next >= hub->fragment_bytes)
            break;
        size += next;
    }
    return size;
}

void trimaran_watch_send_events(trimaran_watchhub *hub, trimaran_watcher *watcher,
                                int64_t revision, trimaran_slice events)
{
    watcher->quiet = false;
    while (events.size > 0) {
        size_t size = events.size;
        if (watcher->fragment && size >= hub->fragment_bytes)
            size = fragment_size(hub, events);
        begin(hub, revision, watcher->id);
        trimaran_proto_number(&hub->message, FIELD_FRAGMENT, size < events.size);
        trimaran_buffer_append(&hub->message, events.data, size);
        finish(hub, watcher->stream);
        events = trimaran_slice_of(events.data + size, events.size - size);
    }
}

/* The reading of history for one watcher, up to the bounds of a chunk. */
typedef struct chunk {
    trimaran_watchhub *hub;
    trimaran_watcher *watcher;
    int64_t last_revision; /* all of its changes and of those before have been seen */
    int64_t current;       /* being read */
    size_t revisions, visited;
    bool full;
} chunk_t;

/* The scan looks at changes of other keys too, so it is bounded by what it visits as well. */
enum { CHUNK_VISITS = 20000 };

static bool read_change(void *context, const trimaran_change *change)
{
    chunk_t *chunk = context;
    if (change->main != chunk->current) {
        /* Bounds are looked at between revisions: one revision is never sent in two responses. */
        chunk->last_revision = change->main - 1;
        chunk->full = chunk->revisions >= TRIMARAN_WATCH_CHUNK_REVISIONS ||
                      chunk->hub->events.size >= TRIMARAN_WATCH_CHUNK_BYTES ||
                      chunk->visited >= CHUNK_VISITS;
        if (chunk->full)
            return false;
        chunk->current = change->main;
        chunk->revisions++;
    }
    chunk->visited++;
    if (trimaran_watcher_covers(chunk->watcher, trimaran_change_key(change)))
        chunk->hub->counts.events += trimaran_watcher_event(chunk->hub, chunk->watcher, change,
                                                            &chunk->hub->events);
    return true;
}

static void cancel_compacted(trimaran_watchhub *hub, trimaran_watcher *watcher)
{
    trimaran_watch_answer answer = {
        .watch_id = watcher->id, .canceled = true,
        .compact_revision = trimaran_mvcc_compact_revision(hub->mvcc)};
    trimaran_watcher_leave_behind(hub, watcher);
    watcher->compacted = true;
    trimaran_watch_send(hub, watcher->stream, &answer);
}

/* Returns how many changes it looked at. */
static size_t catch_up(trimaran_watchhub *hub, trimaran_watcher *watcher)
{
    int64_t revision = trimaran_mvcc_revision(hub->mvcc);
    if (watcher->next_revision < trimaran_mvcc_compact_revision(hub->mvcc)) {
        cancel_compacted(hub, watcher);
        return 0;
    }
    chunk_t chunk = {.hub = hub, .watcher = watcher, .current = -1};
    hub->events.size = 0;
    /* One key's history is in the index; a range's is found by reading all of it. */
    if (watcher->end_size == 0)
        trimaran_mvcc_history(hub->mvcc, trimaran_watcher_key(watcher), watcher->next_revision,
                              read_change, &chunk);
    else
        trimaran_state_scan(trimaran_mvcc_state(hub->mvcc), watcher->next_revision, read_change,
                            &chunk);
    watcher->next_revision = chunk.full ? chunk.last_revision + 1 : revision + 1;
    if (!chunk.full)
        trimaran_watcher_set_current(hub, watcher);
    if (hub->events.size > 0)
        trimaran_watch_send_events(hub, watcher, revision,
                                   trimaran_slice_of(hub->events.data, hub->events.size));
    return chunk.visited;
}

bool trimaran_watchhub_step(trimaran_watchhub *hub)
{
    enum { WATCHERS_A_STEP = 64 };
    trimaran_watcher *watcher = hub->behind;
    bool again = false;
    size_t visited = 0;
    for (int i = 0; watcher != NULL;) {
        trimaran_watcher *next = watcher->next;
        if (!trimaran_watch_is_full(watcher->stream)) {
            /* The loop has others to serve: what one chunk may visit bounds the whole step. */
            if (i++ == WATCHERS_A_STEP || visited >= CHUNK_VISITS)
                return true;
            visited += catch_up(hub, watcher);
            again = true;
        }
        watcher = next;
    }
    return again && hub->behind != NULL;
}
