/* Writes on their way to the log: batches of operations, and who waits for each.
 *
 * Everything that arrives in one turn becomes one batch, one entry of the log. It carries the
 * member it comes from, that member's incarnation and a sequence number, by which it is recognised
 * when it is applied, whoever was leader in between, and by which it is applied once however often
 * it was sent. A batch stays here until then, or until nobody waits for it any more.
 */
#ifndef TRIMARAN_PROPOSAL_H
#define TRIMARAN_PROPOSAL_H

#include "bytes.h"
#include "rpc.h"
#include "trimaran/raft.h"

/* A batch is its version, origin, incarnation, sequence, then operations: kind, size, request. */
enum { TRIMARAN_BATCH_VERSION = 2, TRIMARAN_BATCH_HEAD = 25, TRIMARAN_OPERATION_HEAD = 5 };
enum { TRIMARAN_BATCH_OPERATIONS_MAX = 4096, TRIMARAN_BATCH_BYTES_MAX = 1 << 20 };

/* One who waits for an operation: a call, a token, or nobody any more. */
typedef struct trimaran_waiter {
    trimaran_rpc_call *call;
    uint64_t token;
    bool physical; /* a compaction whose end is waited for */
} trimaran_waiter;

typedef struct trimaran_proposal {
    struct trimaran_proposal *next;
    uint64_t sequence;
    uint32_t type; /* of the entry */
    uint32_t attempts;
    trimaran_payload *payload;
    uint64_t born_tick, sent_tick;
    uint64_t sent_term; /* in which it was last handed to a leader; 0: never */
    size_t count;
    trimaran_waiter waiters[TRIMARAN_BATCH_OPERATIONS_MAX];
} trimaran_proposal;

typedef struct trimaran_proposals {
    uint64_t origin, incarnation, sequence; /* the last one given out */
    uint64_t tick;
    trimaran_buffer bytes;        /* of the batch being gathered */
    trimaran_proposal *gathering; /* without a payload yet */
    trimaran_proposal *first, *last; /* cut and not applied, by sequence */
    size_t count, waiting_bytes;     /* of those */
    trimaran_proposal *spare;
    size_t spare_count;
} trimaran_proposals;

void trimaran_proposals_init(trimaran_proposals *proposals, uint64_t origin,
                             uint64_t incarnation);
void trimaran_proposals_free(trimaran_proposals *proposals);

/* Add an operation to the batch being gathered; a full one is cut before. */
void trimaran_proposals_add(trimaran_proposals *proposals, int kind, trimaran_slice request,
                            trimaran_waiter waiter);
/* End the batch being gathered and queue it; nothing where it is empty. */
void trimaran_proposals_cut(trimaran_proposals *proposals);
/* Queue a change of configuration, whose bytes have room for the head: see configuration.h. */
void trimaran_proposals_add_configuration(trimaran_proposals *proposals,
                                          trimaran_payload *payload, uint64_t token);

/* A batch of this member was applied: take it out of the queue and return it, for its waiters to be
 * answered; NULL where nobody waits. Those numbered before it have been overtaken and will be
 * skipped whenever they arrive, so they are queued again under new numbers. */
trimaran_proposal *trimaran_proposals_take(trimaran_proposals *proposals, uint64_t sequence);
/* Take out the oldest one born before that tick, or NULL. */
trimaran_proposal *trimaran_proposals_expired(trimaran_proposals *proposals, uint64_t born_before);
/* Take out the oldest one up to that sequence, or NULL. */
trimaran_proposal *trimaran_proposals_up_to(trimaran_proposals *proposals, uint64_t sequence);
/* Give back what the functions before have returned. */
void trimaran_proposals_release(trimaran_proposals *proposals, trimaran_proposal *proposal);

/* The head of an entry: where it comes from. version 1 has none; size 0 is a new leader's entry. */
typedef struct trimaran_proposal_head {
    uint64_t origin, incarnation, sequence;
} trimaran_proposal_head;
void trimaran_proposal_write_head(uint8_t *at, uint8_t version,
                               const trimaran_proposal_head *head);
trimaran_proposal_head trimaran_proposal_read_head(const uint8_t *at);

/* The operations of a batch, after its head. Returns 1 with the next one, 0 at the end, -1 where
 * the bytes are no operation. */
int trimaran_operation_next(trimaran_slice *rest, uint8_t *kind, trimaran_slice *request);
/* Whether bytes from elsewhere are a whole batch of that member. */
bool trimaran_proposal_check(trimaran_slice batch, uint64_t origin);

#endif
