/* The store's hot gRPC methods: reads answered from what is applied, writes gathered into batches.
 *
 * Everything that arrives in one turn of the loop becomes one batch. When its entry is committed,
 * `apply` runs its operations and answers those that wait for them here. A linearizable read waits
 * until the group has confirmed an index and it is applied; in a group of one it is answered at
 * once.
 */
#ifndef TRIMARAN_SERVICE_H
#define TRIMARAN_SERVICE_H

#include "mvcc.h"
#include "proposal.h"
#include "readqueue.h"
#include "rpc.h"
#include "watchhub.h"

typedef struct trimaran_service trimaran_service;

typedef struct trimaran_service_options {
    int64_t max_txn_ops;
    size_t max_request_bytes;
    int64_t quota_bytes;        /* 0 or less: none */
    size_t max_pending_bytes;   /* applied and not yet on disk; writes are refused above */
    size_t max_waiting_bytes;   /* of writes, and of reads, that wait for the group; 0: no limit */
    uint64_t member_id, incarnation; /* name the batches of this member */
    uint64_t timeout_ticks;     /* a request that waits longer is answered so; 0: never */
    uint64_t election_ticks;
} trimaran_service_options;

trimaran_service *trimaran_service_create(trimaran_mvcc *mvcc, trimaran_watchhub *hub,
                                          const trimaran_service_options *options);
void trimaran_service_destroy(trimaran_service *service);
const trimaran_rpc_handler *trimaran_service_handler(trimaran_service *service);

/* What the service needs to know of the group; a new service takes itself for a group of one. */
typedef struct trimaran_service_mode {
    bool reads_at_once; /* what is applied is all that was ever acknowledged */
    bool is_learner;    /* serves little: see trimaran_service_admits */
    bool has_leader;
} trimaran_service_mode;
void trimaran_service_set_mode(trimaran_service *service, const trimaran_service_mode *mode);

/* Add an operation on behalf of the caller, whose result comes out of `results` under token (not
 * 0). */
void trimaran_service_submit(trimaran_service *service, trimaran_op_kind kind,
                             trimaran_slice request, uint64_t token);
/* Ask for a result of kind READ when this member has applied all that was acknowledged anywhere
 * before now. */
void trimaran_service_read(trimaran_service *service, uint64_t token);

/* The queues that the member empties towards raft. */
trimaran_proposals *trimaran_service_proposals(trimaran_service *service);
trimaran_readqueue *trimaran_service_reads(trimaran_service *service);

/* Time passes by one tick: those that have waited too long are told so. */
void trimaran_service_tick(trimaran_service *service);

/* Apply a committed NORMAL entry and answer those that wait for it. */
void trimaran_service_apply(trimaran_service *service, uint64_t index, uint64_t term,
                            trimaran_slice entry);
/* Whether an entry of that origin counts, or has been applied or overtaken before. The proposal it
 * answers goes to *proposal, NULL where nobody waits here. */
bool trimaran_service_accepts(trimaran_service *service, const trimaran_proposal_head *head,
                              trimaran_proposal **proposal);
/* A CONFIGURATION entry was applied by the member; release the proposal that asked for it, if any,
 * with the outcome. */
void trimaran_service_configured(trimaran_service *service, trimaran_proposal *proposal,
                                 trimaran_error error);
/* Answer the reads for which enough is applied. */
void trimaran_service_answer_reads(trimaran_service *service);
/* The state was replaced by a snapshot: the outcome of what it covers is not known. */
void trimaran_service_installed(trimaran_service *service);

/* After each turn: goes on with compaction and answers those that wait for its end. Returns true
 * where there is more to do at once. */
bool trimaran_service_step(trimaran_service *service);

/* Kinds of result beside those of operations. */
enum { TRIMARAN_RESULT_READ = 100, TRIMARAN_RESULT_CHANGE = 101 };

typedef struct trimaran_result {
    uint64_t token; /* 0: an operation of somebody else, told because it concerns leases */
    int kind;
    trimaran_error error;
    int64_t revision;
    int64_t lease, ttl_s;
} trimaran_result;
/* Take the results collected so far; the array is valid until the next apply. */
bool trimaran_service_has_results(const trimaran_service *service);
size_t trimaran_service_results(trimaran_service *service, const trimaran_result **out);

/* True once after a write was refused for want of space. */
bool trimaran_service_take_no_space(trimaran_service *service);

typedef struct trimaran_service_counts {
    uint64_t ranges, puts, deletes, txns, entries, operations, refused;
    uint64_t skipped;       /* entries applied before or overtaken */
    uint64_t timeouts;      /* requests that waited too long */
    uint64_t waiting_reads, waiting_batches;
} trimaran_service_counts;
trimaran_service_counts trimaran_service_count(const trimaran_service *service);

#endif
