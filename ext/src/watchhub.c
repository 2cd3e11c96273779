/* Streams and watchers: creation, cancellation, and what is sent as revisions are applied. */
#include "watchhub_internal.h"

trimaran_watchhub *trimaran_watchhub_create(trimaran_mvcc *mvcc, uint64_t seed,
                                            size_t fragment_bytes)
{
    trimaran_watchhub *hub = trimaran_allocate(sizeof *hub);
    *hub = (trimaran_watchhub){.mvcc = mvcc, .fragment_bytes = fragment_bytes};
    if (trimaran_watchindex_create(seed, &hub->index) != 0)
        abort();
    return hub;
}

static void free_stream(trimaran_watchhub *hub, trimaran_watch_stream *stream)
{
    while (stream->count > 0)
        trimaran_watcher_remove(hub, stream->watchers[stream->count - 1]);
    if (stream->previous != NULL)
        stream->previous->next = stream->next;
    else
        hub->streams = stream->next;
    if (stream->next != NULL)
        stream->next->previous = stream->previous;
    hub->counts.streams--;
    free(stream->watchers);
    free(stream);
}

void trimaran_watchhub_destroy(trimaran_watchhub *hub)
{
    while (hub->streams != NULL)
        free_stream(hub, hub->streams);
    trimaran_watchindex_destroy(hub->index);
    trimaran_buffer_free(&hub->message);
    trimaran_buffer_free(&hub->events);
    free(hub);
}

static trimaran_watch_stream *stream_of(trimaran_watchhub *hub, trimaran_rpc_call *call)
{
    trimaran_watch_stream *stream = trimaran_rpc_user(call);
    if (stream != NULL)
        return stream;
    stream = trimaran_allocate(sizeof *stream);
    *stream = (trimaran_watch_stream){.call = call, .next = hub->streams};
    if (hub->streams != NULL)
        hub->streams->previous = stream;
    hub->streams = stream;
    hub->counts.streams++;
    trimaran_rpc_set_user(call, stream);
    return stream;
}

/* The place of the first watcher whose id is not below id. */
static size_t place_of(const trimaran_watch_stream *stream, int64_t id)
{
    size_t low = 0, high = stream->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (stream->watchers[middle]->id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static trimaran_watcher *find_watcher(const trimaran_watch_stream *stream, int64_t id)
{
    size_t place = place_of(stream, id);
    bool found = place < stream->count && stream->watchers[place]->id == id;
    return found ? stream->watchers[place] : NULL;
}

void trimaran_watcher_set_behind(trimaran_watchhub *hub, trimaran_watcher *watcher,
                                 int64_t next_revision)
{
    if (watcher->registration != NULL)
        trimaran_watchindex_remove(hub->index, watcher->registration);
    watcher->registration = NULL;
    watcher->next_revision = next_revision;
    watcher->previous = NULL;
    watcher->next = hub->behind;
    if (hub->behind != NULL)
        hub->behind->previous = watcher;
    hub->behind = watcher;
    hub->counts.behind++;
}

void trimaran_watcher_leave_behind(trimaran_watchhub *hub, trimaran_watcher *watcher)
{
    if (watcher->previous != NULL)
        watcher->previous->next = watcher->next;
    else
        hub->behind = watcher->next;
    if (watcher->next != NULL)
        watcher->next->previous = watcher->previous;
    watcher->next = watcher->previous = NULL;
    hub->counts.behind--;
}

static void enter_index(trimaran_watchhub *hub, trimaran_watcher *watcher)
{
    trimaran_slice key = trimaran_watcher_key(watcher), end = trimaran_watcher_end(watcher);
    if (trimaran_watchindex_insert(hub->index, key.data, key.size, end.data, end.size, watcher,
                                   &watcher->registration) != 0)
        abort();
}

void trimaran_watcher_set_current(trimaran_watchhub *hub, trimaran_watcher *watcher)
{
    trimaran_watcher_leave_behind(hub, watcher);
    enter_index(hub, watcher);
}

void trimaran_watcher_remove(trimaran_watchhub *hub, trimaran_watcher *watcher)
{
    trimaran_watch_stream *stream = watcher->stream;
    size_t place = place_of(stream, watcher->id);
    assert(stream->watchers[place] == watcher && !watcher->touched);
    memmove(&stream->watchers[place], &stream->watchers[place + 1],
            (stream->count - place - 1) * sizeof(void *));
    stream->count--;
    if (watcher->registration != NULL)
        trimaran_watchindex_remove(hub->index, watcher->registration);
    else if (!watcher->compacted)
        trimaran_watcher_leave_behind(hub, watcher);
    hub->counts.watchers--;
    free(watcher);
}

static const char *refuse(const trimaran_watch_stream *stream, const trimaran_watch_create *create)
{
    bool open = trimaran_slice_is_open_end(create->range_end);
    if (create->range_end.size != 0 && !open &&
        trimaran_slice_compare(create->key, create->range_end) >= 0)
        return "mvcc: watcher range is empty";
    if (create->start_revision < 0)
        return "mvcc: required revision has been compacted";
    if (create->watch_id != 0 && find_watcher(stream, create->watch_id) != NULL)
        return "mvcc: duplicate watch ID provided on the WatchStream";
    return NULL;
}

static trimaran_watcher *add_watcher(trimaran_watchhub *hub, trimaran_watch_stream *stream,
                                     const trimaran_watch_create *create)
{
    trimaran_watcher *watcher =
        trimaran_allocate(sizeof *watcher + create->key.size + create->range_end.size);
    *watcher = (trimaran_watcher){
        .stream = stream, .id = create->watch_id, .start_revision = create->start_revision,
        .progress_notify = create->progress_notify, .prev_kv = create->prev_kv,
        .fragment = create->fragment, .no_put = create->no_put, .no_delete = create->no_delete,
        .key_size = (uint32_t)create->key.size, .end_size = (uint32_t)create->range_end.size};
    memcpy(watcher->bytes, create->key.data, create->key.size);
    if (create->range_end.size > 0)
        memcpy(watcher->bytes + create->key.size, create->range_end.data, create->range_end.size);
    if (watcher->id == 0) {
        while (find_watcher(stream, stream->next_id) != NULL)
            stream->next_id++;
        watcher->id = stream->next_id++;
    }
    if (stream->count == stream->capacity) {
        stream->capacity = stream->capacity ? stream->capacity * 2 : 4;
        stream->watchers =
            trimaran_reallocate(stream->watchers, stream->capacity * sizeof(void *));
    }
    size_t place = place_of(stream, watcher->id);
    memmove(&stream->watchers[place + 1], &stream->watchers[place],
            (stream->count - place) * sizeof(void *));
    stream->watchers[place] = watcher;
    stream->count++;
    hub->counts.watchers++;
    return watcher;
}

static void create_watcher(trimaran_watchhub *hub, trimaran_watch_stream *stream,
                           trimaran_watch_create *create)
{
    int64_t revision = trimaran_mvcc_revision(hub->mvcc);
    if (create->key.size == 0)
        create->key = trimaran_slice_of("", 1);
    trimaran_watch_answer answer = {.revision = revision, .watch_id = -1, .created = true};
    answer.cancel_reason = refuse(stream, create);
    answer.canceled = answer.cancel_reason != NULL;
    if (answer.canceled) {
        trimaran_watch_send(hub, stream, &answer);
        return;
    }
    trimaran_watcher *watcher = add_watcher(hub, stream, create);
    answer.watch_id = watcher->id;
    trimaran_watch_send(hub, stream, &answer);
    if (create->start_revision == 0 || create->start_revision > revision) {
        watcher->next_revision = revision + 1;
        if (create->start_revision > watcher->next_revision)
            watcher->next_revision = create->start_revision;
        enter_index(hub, watcher);
    } else {
        trimaran_watcher_set_behind(hub, watcher, create->start_revision);
    }
}

static void cancel_watcher(trimaran_watchhub *hub, trimaran_watch_stream *stream, int64_t id)
{
    trimaran_watcher *watcher = find_watcher(stream, id);
    if (watcher == NULL)
        return;
    trimaran_watcher_remove(hub, watcher);
    trimaran_watch_answer answer = {.revision = trimaran_mvcc_revision(hub->mvcc), .watch_id = id,
                                    .canceled = true};
    trimaran_watch_send(hub, stream, &answer);
}

/* Progress of a whole stream can be told only where each of its watchers has all events up to now;
 * otherwise the request stays without answer, as in etcd. */
static void answer_progress(trimaran_watchhub *hub, trimaran_watch_stream *stream)
{
    int64_t revision = trimaran_mvcc_revision(hub->mvcc);
    for (size_t i = 0; i < stream->count; i++)
        if (stream->watchers[i]->registration == NULL ||
            stream->watchers[i]->start_revision > revision)
            return;
    if (stream->count == 0)
        return;
    trimaran_watch_answer answer = {.revision = revision, .watch_id = -1};
    trimaran_watch_send(hub, stream, &answer);
}

void trimaran_watchhub_message(trimaran_watchhub *hub, trimaran_rpc_call *call,
                               trimaran_slice message)
{
    trimaran_watch_request request;
    if (!trimaran_decode_watch(message, &request)) {
        trimaran_watch_stream *stream = trimaran_rpc_user(call);
        if (stream != NULL)
            free_stream(hub, stream);
        trimaran_rpc_finish(call, trimaran_error_status(TRIMARAN_ERROR_MALFORMED),
                            trimaran_error_text(TRIMARAN_ERROR_MALFORMED));
        return;
    }
    trimaran_watch_stream *stream = stream_of(hub, call);
    if (request.kind == TRIMARAN_WATCH_CREATE)
        create_watcher(hub, stream, &request.create);
    else if (request.kind == TRIMARAN_WATCH_CANCEL)
        cancel_watcher(hub, stream, request.cancel_id);
    else if (request.kind == TRIMARAN_WATCH_PROGRESS)
        answer_progress(hub, stream);
}

void trimaran_watchhub_closed(trimaran_watchhub *hub, trimaran_rpc_call *call)
{
    trimaran_watch_stream *stream = trimaran_rpc_user(call);
    if (stream != NULL)
        free_stream(hub, stream);
}

void trimaran_watchhub_writable(trimaran_watchhub *hub, trimaran_rpc_call *call)
{
    (void)hub;
    trimaran_watch_stream *stream = trimaran_rpc_user(call);
    if (stream != NULL)
        stream->blocked = false;
}

typedef struct match {
    trimaran_watchhub *hub;
    const trimaran_change *change;
} match_t;

/* A watcher that one revision concerns is noted once; its events are picked out afterwards. */
static int touch(void *context, void *found)
{
    match_t *match = context;
    trimaran_watcher *watcher = found;
    bool filtered = match->change->tombstone ? watcher->no_delete : watcher->no_put;
    if (filtered || match->change->main < watcher->next_revision || watcher->touched)
        return 0;
    watcher->touched = true;
    watcher->next_touched = match->hub->touched;
    match->hub->touched = watcher;
    return 0;
}

static void notify(trimaran_watchhub *hub, trimaran_watcher *watcher, int64_t revision,
                   const trimaran_change *changes, size_t count)
{
    if (trimaran_watch_is_full(watcher->stream)) {
        trimaran_watcher_set_behind(hub, watcher, revision);
        return;
    }
    hub->events.size = 0;
    for (size_t i = 0; i < count; i++)
        if (trimaran_watcher_covers(watcher, trimaran_change_key(&changes[i])))
            hub->counts.events += trimaran_watcher_event(hub, watcher, &changes[i], &hub->events);
    watcher->next_revision = revision + 1;
    trimaran_watch_send_events(hub, watcher, revision,
                               trimaran_slice_of(hub->events.data, hub->events.size));
}

void trimaran_watchhub_observe(void *context, int64_t revision, const trimaran_change *changes,
                               size_t count)
{
    trimaran_watchhub *hub = context;
    if (trimaran_watchindex_count(hub->index) == 0)
        return;
    for (size_t i = 0; i < count; i++) {
        match_t match = {hub, &changes[i]};
        trimaran_slice key = trimaran_change_key(&changes[i]);
        trimaran_watchindex_match(hub->index, key.data, key.size, touch, &match);
    }
    while (hub->touched != NULL) {
        trimaran_watcher *watcher = hub->touched;
        hub->touched = watcher->next_touched;
        watcher->touched = false;
        notify(hub, watcher, revision, changes, count);
    }
}

void trimaran_watchhub_replaced(trimaran_watchhub *hub, int64_t revision_before)
{
    int64_t revision = trimaran_mvcc_revision(hub->mvcc);
    for (trimaran_watch_stream *stream = hub->streams; stream; stream = stream->next) {
        for (size_t i = 0; i < stream->count; i++) {
            trimaran_watcher *watcher = stream->watchers[i];
            int64_t next = watcher->next_revision > revision_before ? watcher->next_revision
                                                                    : revision_before + 1;
            if (watcher->registration != NULL && next <= revision)
                trimaran_watcher_set_behind(hub, watcher, next);
        }
    }
}

void trimaran_watchhub_progress(trimaran_watchhub *hub)
{
    trimaran_watch_answer answer = {.revision = trimaran_mvcc_revision(hub->mvcc)};
    for (trimaran_watch_stream *stream = hub->streams; stream; stream = stream->next) {
        for (size_t i = 0; i < stream->count; i++) {
            trimaran_watcher *watcher = stream->watchers[i];
            bool due = watcher->progress_notify && watcher->quiet &&
                       watcher->registration != NULL &&
                       watcher->start_revision <= answer.revision;
            watcher->quiet = true;
            answer.watch_id = watcher->id;
            if (due && !trimaran_watch_is_full(stream))
                trimaran_watch_send(hub, stream, &answer);
        }
    }
}

void trimaran_watchhub_lose_leader(trimaran_watchhub *hub)
{
    trimaran_watch_stream *next;
    for (trimaran_watch_stream *stream = hub->streams; stream != NULL; stream = next) {
        trimaran_rpc_call *call = stream->call;
        next = stream->next;
        if (!trimaran_rpc_requires_leader(call))
            continue;
        free_stream(hub, stream);
        trimaran_rpc_finish(call, trimaran_error_status(TRIMARAN_ERROR_NO_LEADER),
                            trimaran_error_text(TRIMARAN_ERROR_NO_LEADER));
    }
}

trimaran_watchhub_counts trimaran_watchhub_count(const trimaran_watchhub *hub)
{
    return hub->counts;
}
