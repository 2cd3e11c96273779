/* The store's hot gRPC methods: reads answered at once, writes gathered into log entries.
 *
 * Everything that arrives in one turn of the loop becomes one entry, a batch of operations with
 * their requests as they came. When the entry is committed, `apply` runs its operations and
 * answers those that wait for them here.
 */
#ifndef TRIMARAN_SERVICE_H
#define TRIMARAN_SERVICE_H

#include "mvcc.h"
#include "rpc.h"
#include "watchhub.h"

typedef struct trimaran_service trimaran_service;

typedef struct trimaran_service_options {
    int64_t max_txn_ops;
    size_t max_request_bytes;
    int64_t quota_bytes;        /* 0 or less: none */
    size_t max_pending_bytes;   /* applied and not yet on disk; writes are refused above */
} trimaran_service_options;

trimaran_service *trimaran_service_create(trimaran_mvcc *mvcc, trimaran_watchhub *hub,
                                          const trimaran_service_options *options);
void trimaran_service_destroy(trimaran_service *service);
const trimaran_rpc_handler *trimaran_service_handler(trimaran_service *service);

/* Whether reads and writes are served; while not, they are refused with the given error. */
void trimaran_service_set_refusal(trimaran_service *service, trimaran_error refusal);

/* Called when the batch has no room for the next operation: it must be proposed or refused then. */
typedef void (*trimaran_service_full)(void *context);
void trimaran_service_on_full(trimaran_service *service, trimaran_service_full full,
                              void *context);

/* Add an operation on behalf of the caller, whose result comes out of `results` under token (not
 * 0). */
void trimaran_service_submit(trimaran_service *service, trimaran_op_kind kind,
                             trimaran_slice request, uint64_t token);

/* The batch gathered so far, empty where there is none; operations is how many it holds. */
trimaran_slice trimaran_service_batch(const trimaran_service *service, size_t *operations);
/* The batch was proposed and got this log index: start a new one. */
void trimaran_service_proposed(trimaran_service *service, uint64_t index, uint64_t term);
/* The batch could not be proposed: refuse all of its operations. */
void trimaran_service_refuse_batch(trimaran_service *service, trimaran_error error);

/* Apply a committed entry and answer those that wait for it. */
void trimaran_service_apply(trimaran_service *service, uint64_t index, uint64_t term,
                            trimaran_slice entry);

/* After each turn: goes on with compaction and answers those that wait for its end. Returns true
 * where there is more to do at once. */
bool trimaran_service_step(trimaran_service *service);

typedef struct trimaran_result {
    uint64_t token; /* 0: an operation of somebody else, told because it concerns leases */
    trimaran_op_kind kind;
    trimaran_error error;
    int64_t revision;
    int64_t lease, ttl_s;
} trimaran_result;
/* Take the results collected so far; the array is valid until the next apply. */
size_t trimaran_service_results(trimaran_service *service, const trimaran_result **out);

/* True once after a write was refused for want of space. */
bool trimaran_service_take_no_space(trimaran_service *service);

typedef struct trimaran_service_counts {
    uint64_t ranges, puts, deletes, txns, entries, operations, refused;
} trimaran_service_counts;
trimaran_service_counts trimaran_service_count(const trimaran_service *service);

#endif
