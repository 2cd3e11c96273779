/* Linearizable reads that wait: for an index at which they are, and for it to be applied.
 *
 * What arrives between two questions to raft forms one group, which asks once (a read index, §6.4
 * of the Raft thesis). An index that answers a question answers all that were asked before it,
 * because it was established after all of their reads had arrived. Requests are copied: their
 * bytes live no longer than the turn.
 */
#ifndef TRIMARAN_READQUEUE_H
#define TRIMARAN_READQUEUE_H

#include "proposal.h"

enum { TRIMARAN_READS_A_GROUP = 1024, TRIMARAN_READ_ROUNDS_MAX = 2 };

typedef struct trimaran_read {
    trimaran_waiter waiter;
    int method; /* the service's own; -1: a token that only wants to know the moment */
    uint32_t size;
    size_t offset; /* of its request in the group's bytes */
} trimaran_read;

typedef struct trimaran_read_group {
    struct trimaran_read_group *next;
    uint64_t context; /* 0: raft has not been asked yet */
    uint64_t index;   /* 0: raft has not answered yet */
    uint64_t born_tick;
    trimaran_buffer bytes;
    size_t count;
    trimaran_read reads[TRIMARAN_READS_A_GROUP];
} trimaran_read_group;

typedef struct trimaran_readqueue {
    trimaran_read_group *first, *last, *spare;
    uint64_t context, answered; /* the last one asked, and the last one answered or given up */
    uint64_t asked_tick;
    size_t count, waiting_bytes;
} trimaran_readqueue;

void trimaran_readqueue_free(trimaran_readqueue *queue);
void trimaran_readqueue_add(trimaran_readqueue *queue, uint64_t tick, trimaran_waiter waiter,
                            int method, trimaran_slice request);

/* Whether to ask raft now: some group has not asked, and not too many questions are open. */
bool trimaran_readqueue_wants(const trimaran_readqueue *queue);
/* The context of the next question. When raft has taken it, call asked. */
uint64_t trimaran_readqueue_next_context(const trimaran_readqueue *queue);
void trimaran_readqueue_asked(trimaran_readqueue *queue, uint64_t tick);
/* Raft's answer. */
void trimaran_readqueue_answer(trimaran_readqueue *queue, uint64_t context, uint64_t index);
/* The questions under way may have been lost: they are to be asked again. */
void trimaran_readqueue_ask_again(trimaran_readqueue *queue);

/* The oldest group, if all it needs is applied; take it when it was answered. */
trimaran_read_group *trimaran_readqueue_ready(const trimaran_readqueue *queue, uint64_t applied);
/* The oldest group, if it was born before that tick. */
trimaran_read_group *trimaran_readqueue_expired(const trimaran_readqueue *queue,
                                                uint64_t born_before);
/* Take the oldest group off; its memory stays valid until the next add. */
void trimaran_readqueue_take(trimaran_readqueue *queue);

#endif
