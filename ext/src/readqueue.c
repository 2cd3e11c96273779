/* The queue of linearizable reads; see readqueue.h. */
#include "readqueue.h"

enum { GROUP_BYTES = 256 << 10, KEPT_BYTES = 64 << 10 };

static void free_groups(trimaran_read_group *group)
{
    while (group != NULL) {
        trimaran_read_group *next = group->next;
        trimaran_buffer_free(&group->bytes);
        free(group);
        group = next;
    }
}

void trimaran_readqueue_free(trimaran_readqueue *queue)
{
    free_groups(queue->first);
    free_groups(queue->spare);
    *queue = (trimaran_readqueue){0};
}

static trimaran_read_group *new_group(trimaran_readqueue *queue, uint64_t tick)
{
    trimaran_read_group *group = queue->spare;
    if (group != NULL) {
        queue->spare = group->next;
    } else {
        group = trimaran_allocate(sizeof *group);
        group->bytes = (trimaran_buffer){0};
    }
    group->next = NULL;
    group->context = group->index = 0;
    group->born_tick = tick;
    group->bytes.size = group->count = 0;
    if (queue->last != NULL)
        queue->last->next = group;
    else
        queue->first = group;
    queue->last = group;
    return group;
}

void trimaran_readqueue_add(trimaran_readqueue *queue, uint64_t tick, trimaran_waiter waiter,
                            int method, trimaran_slice request)
{
    trimaran_read_group *group = queue->last;
    /* A group of an earlier tick is full, so that each read has its whole time-out. */
    if (group == NULL || group->context != 0 || group->count == TRIMARAN_READS_A_GROUP ||
        group->bytes.size > GROUP_BYTES || group->born_tick != tick)
        group = new_group(queue, tick);
    trimaran_read *read = &group->reads[group->count++];
    *read = (trimaran_read){waiter, method, (uint32_t)request.size, group->bytes.size};
    trimaran_buffer_append(&group->bytes, request.data, request.size);
    if (waiter.call != NULL)
        trimaran_rpc_set_user(waiter.call, &read->waiter);
    queue->count++;
    queue->waiting_bytes += request.size;
}

bool trimaran_readqueue_wants(const trimaran_readqueue *queue)
{
    return queue->last != NULL && queue->last->context == 0 &&
           queue->context - queue->answered < TRIMARAN_READ_ROUNDS_MAX;
}

uint64_t trimaran_readqueue_next_context(const trimaran_readqueue *queue)
{
    return queue->context + 1;
}

void trimaran_readqueue_asked(trimaran_readqueue *queue, uint64_t tick)
{
    queue->context++;
    queue->asked_tick = tick;
    for (trimaran_read_group *group = queue->first; group != NULL; group = group->next)
        if (group->context == 0)
            group->context = queue->context;
}

void trimaran_readqueue_answer(trimaran_readqueue *queue, uint64_t context, uint64_t index)
{
    /* One that was given up may still be answered: later groups did not take part in it. */
    if (context > queue->context)
        return;
    if (context > queue->answered)
        queue->answered = context;
    for (trimaran_read_group *group = queue->first; group != NULL; group = group->next)
        if (group->index == 0 && group->context != 0 && group->context <= context)
            group->index = index;
}

void trimaran_readqueue_ask_again(trimaran_readqueue *queue)
{
    queue->answered = queue->context;
    for (trimaran_read_group *group = queue->first; group != NULL; group = group->next)
        if (group->index == 0)
            group->context = 0;
}

trimaran_read_group *trimaran_readqueue_ready(const trimaran_readqueue *queue, uint64_t applied)
{
    trimaran_read_group *group = queue->first;
    return group != NULL && group->index != 0 && group->index <= applied ? group : NULL;
}

trimaran_read_group *trimaran_readqueue_expired(const trimaran_readqueue *queue,
                                                uint64_t born_before)
{
    trimaran_read_group *group = queue->first;
    return group != NULL && group->born_tick < born_before ? group : NULL;
}

void trimaran_readqueue_take(trimaran_readqueue *queue)
{
    trimaran_read_group *group = queue->first;
    queue->first = group->next;
    if (queue->first == NULL)
        queue->last = NULL;
    queue->count -= group->count;
    queue->waiting_bytes -= group->bytes.size;
    if (group->bytes.capacity > KEPT_BYTES)
        trimaran_buffer_free(&group->bytes);
    group->next = queue->spare;
    queue->spare = group;
}
