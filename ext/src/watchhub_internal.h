/* What the files of the watch hub share: streams, watchers and their messages. */
#ifndef TRIMARAN_WATCHHUB_INTERNAL_H
#define TRIMARAN_WATCHHUB_INTERNAL_H

#include "trimaran/watchindex.h"
#include "watchhub.h"

/* Above this a stream takes no more events until its client has read on. */
enum { TRIMARAN_WATCH_QUEUE_BYTES = 1 << 20 };
/* One response of a watcher that catches up: revisions and bytes at most. */
enum { TRIMARAN_WATCH_CHUNK_REVISIONS = 1000, TRIMARAN_WATCH_CHUNK_BYTES = 1 << 20 };

typedef struct trimaran_watcher trimaran_watcher;

typedef struct trimaran_watch_stream {
    trimaran_rpc_call *call;
    trimaran_watcher **watchers; /* in order of id */
    size_t count, capacity;
    int64_t next_id;
    bool blocked;
    struct trimaran_watch_stream *next, *previous;
} trimaran_watch_stream;

struct trimaran_watcher {
    trimaran_watch_stream *stream;
    int64_t id;
    int64_t next_revision; /* nothing before it may be sent any more */
    int64_t start_revision;
    trimaran_watch *registration;    /* NULL while it is behind */
    trimaran_watcher *next, *previous; /* among those behind */
    trimaran_watcher *next_touched;
    size_t pending; /* bytes of its events of the revision being applied */
    bool touched, progress_notify, quiet, prev_kv, fragment, no_put, no_delete;
    bool compacted; /* cancelled as such; its id is taken until the client cancels it, as in etcd */
    uint32_t key_size, end_size;
    uint8_t bytes[]; /* key, then range end */
};

struct trimaran_watchhub {
    trimaran_mvcc *mvcc;
    trimaran_watchindex *index;
    size_t fragment_bytes;
    trimaran_watch_stream *streams;
    trimaran_watcher *behind;  /* first in line */
    trimaran_watcher *touched; /* by the revision being applied */
    trimaran_buffer message, events;
    trimaran_watchhub_counts counts;
};

static inline trimaran_slice trimaran_watcher_key(const trimaran_watcher *watcher)
{
    return trimaran_slice_of(watcher->bytes, watcher->key_size);
}

static inline trimaran_slice trimaran_watcher_end(const trimaran_watcher *watcher)
{
    return trimaran_slice_of(watcher->bytes + watcher->key_size, watcher->end_size);
}

static inline bool trimaran_watcher_covers(const trimaran_watcher *watcher, trimaran_slice key)
{
    trimaran_slice end = trimaran_watcher_end(watcher);
    int order = trimaran_slice_compare(key, trimaran_watcher_key(watcher));
    if (end.size == 0 || order <= 0)
        return order == 0;
    return trimaran_slice_is_open_end(end) || trimaran_slice_compare(key, end) < 0;
}

/* Write change as the watcher's event (field 11) to out. False where its filters drop it. */
bool trimaran_watcher_event(trimaran_watchhub *hub, const trimaran_watcher *watcher,
                            const trimaran_change *change, trimaran_buffer *out);

/* What a response says besides its events. */
typedef struct trimaran_watch_answer {
    int64_t revision, watch_id, compact_revision;
    bool created, canceled;
    const char *cancel_reason;
} trimaran_watch_answer;
void trimaran_watch_send(trimaran_watchhub *hub, trimaran_watch_stream *stream,
                         const trimaran_watch_answer *answer);
/* Send encoded events, in fragments where the watcher asked for them. */
void trimaran_watch_send_events(trimaran_watchhub *hub, trimaran_watcher *watcher,
                                int64_t revision, trimaran_slice events);

void trimaran_watcher_set_behind(trimaran_watchhub *hub, trimaran_watcher *watcher,
                                 int64_t next_revision);
void trimaran_watcher_set_current(trimaran_watchhub *hub, trimaran_watcher *watcher);
void trimaran_watcher_leave_behind(trimaran_watchhub *hub, trimaran_watcher *watcher);
void trimaran_watcher_remove(trimaran_watchhub *hub, trimaran_watcher *watcher);

static inline bool trimaran_watch_is_full(trimaran_watch_stream *stream)
{
    if (!stream->blocked && trimaran_rpc_queued(stream->call) > TRIMARAN_WATCH_QUEUE_BYTES)
        stream->blocked = true;
    return stream->blocked;
}

#endif
