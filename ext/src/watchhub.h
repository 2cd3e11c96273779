/* Watchers on gRPC streams: who is told of which change, in order, none left out.
 *
 * A watcher that has seen everything is registered in the watch index and told of each revision as
 * it is applied. One that starts in the past, or whose stream is full, reads from the state store
 * until it has caught up; so a slow client costs no memory and holds nobody up.
 */
#ifndef TRIMARAN_WATCHHUB_H
#define TRIMARAN_WATCHHUB_H

#include "mvcc.h"
#include "rpc.h"

typedef struct trimaran_watchhub trimaran_watchhub;

trimaran_watchhub *trimaran_watchhub_create(trimaran_mvcc *mvcc, uint64_t seed,
                                            size_t fragment_bytes);
void trimaran_watchhub_destroy(trimaran_watchhub *hub);

/* The handler's functions for calls of the method Watch. */
void trimaran_watchhub_message(trimaran_watchhub *hub, trimaran_rpc_call *call,
                               trimaran_slice message);
void trimaran_watchhub_closed(trimaran_watchhub *hub, trimaran_rpc_call *call);
void trimaran_watchhub_writable(trimaran_watchhub *hub, trimaran_rpc_call *call);

/* The observer of the MVCC state; context is the hub. */
void trimaran_watchhub_observe(void *context, int64_t revision, const trimaran_change *changes,
                               size_t count);

/* Let watchers that are behind read on, a bounded amount. Returns true where some could go on at
 * once, that is, where to call it again soon. */
bool trimaran_watchhub_step(trimaran_watchhub *hub);

/* The state was replaced by a later one, from a snapshot: whoever had all up to revision_before
 * goes on from there by reading history, or learns that it is compacted. */
void trimaran_watchhub_replaced(trimaran_watchhub *hub, int64_t revision_before);

/* Send a progress notification to every watcher that asked for them and had no event since the
 * last call. */
void trimaran_watchhub_progress(trimaran_watchhub *hub);

/* End the streams whose clients asked not to be served without a leader. */
void trimaran_watchhub_lose_leader(trimaran_watchhub *hub);

typedef struct trimaran_watchhub_counts {
    size_t streams, watchers, behind;
    uint64_t events;
} trimaran_watchhub_counts;
trimaran_watchhub_counts trimaran_watchhub_count(const trimaran_watchhub *hub);

#endif
