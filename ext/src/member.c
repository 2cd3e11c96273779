/* The turn of a member; see member.h. */
#include "member.h"

#include <errno.h>

enum { READ_BYTES = 8 << 20 };

/* A Ready whose entries are on their way to the disk. */
typedef struct in_flight {
    uint64_t sequence, number;
} in_flight_t;

struct trimaran_member {
    trimaran_raft *raft;
    trimaran_member_log log;
    trimaran_mvcc *mvcc;
    trimaran_service *service;
    in_flight_t *flying; /* oldest first, in a ring */
    size_t flying_first, flying_count, flying_capacity;
    int log_error;
};

static void propose(trimaran_member *member)
{
    size_t operations;
    trimaran_slice batch = trimaran_service_batch(member->service, &operations);
    if (operations == 0)
        return;
    trimaran_payload *payload = trimaran_payload_new(batch.size);
    if (payload == NULL)
        abort();
    memcpy(trimaran_payload_data(payload), batch.data, batch.size);
    uint64_t index;
    trimaran_raft_status status;
    int code = trimaran_raft_propose(member->raft, TRIMARAN_ENTRY_NORMAL, payload, &index);
    if (code != 0) {
        trimaran_payload_release(payload);
        trimaran_service_refuse_batch(member->service,
                                      code == -EBUSY     ? TRIMARAN_ERROR_TOO_MANY_REQUESTS
                                      : code == -EAGAIN ? TRIMARAN_ERROR_NO_LEADER
                                                        : TRIMARAN_ERROR_REQUEST_TOO_LARGE);
        return;
    }
    trimaran_raft_status_get(member->raft, &status);
    trimaran_service_proposed(member->service, index, status.term);
}

static void remember(trimaran_member *member, uint64_t sequence, uint64_t number)
{
    if (member->flying_count == member->flying_capacity) {
        size_t capacity = member->flying_capacity ? member->flying_capacity * 2 : 16;
        in_flight_t *flying = trimaran_allocate(capacity * sizeof *flying);
        for (size_t i = 0; i < member->flying_count; i++)
            flying[i] =
                member->flying[(member->flying_first + i) % member->flying_capacity];
        free(member->flying);
        member->flying = flying;
        member->flying_first = 0;
        member->flying_capacity = capacity;
    }
    size_t place = (member->flying_first + member->flying_count++) % member->flying_capacity;
    member->flying[place] = (in_flight_t){sequence, number};
}

/* Returns true where the entries are durable already. With nothing in flight a quick flush is
 * waited for here: that is cheaper than two changes of threads, and what arrives meanwhile makes
 * the next batch larger. */
static bool write_log(trimaran_member *member, const trimaran_raft_ready *ready)
{
    uint64_t sequence;
    const trimaran_member_log *log = &member->log;
    bool inline_flush = member->flying_count == 0 && log->is_quick(log->context);
    if (inline_flush && log->append(log->context, ready->hard_state, ready->entries,
                                    ready->entry_count, &sequence) == 0)
        return true;
    if (log->submit(log->context, ready->hard_state, ready->entries, ready->entry_count,
                    &sequence) != 0)
        abort(); /* out of memory: what raft believes written would never be */
    remember(member, sequence, ready->number);
    return false;
}

static int apply_entry(void *context, const trimaran_entry *entry)
{
    trimaran_member *member = context;
    trimaran_service_apply(member->service, entry->index, entry->term,
                           trimaran_slice_of(entry->data, entry->size));
    return 0;
}

static void apply_committed(trimaran_member *member, const trimaran_raft_ready *ready)
{
    uint64_t first = ready->committed_first, last = ready->committed_last, applied, term;
    if (last == 0)
        return;
    if (ready->committed != NULL) {
        for (uint64_t i = 0; i <= last - first; i++)
            apply_entry(member, &ready->committed[i]);
        return;
    }
    /* After a restart the entries are only in the log, and may be many. */
    while (first <= last) {
        int code = member->log.read(member->log.context, first, last, READ_BYTES, apply_entry,
                                    member);
        trimaran_state_applied(trimaran_mvcc_state(member->mvcc), &applied, &term);
        if (code != 0 || applied < first)
            abort(); /* a committed entry cannot be read: the log is corrupt */
        first = applied + 1;
    }
}

static void handle_ready(trimaran_member *member)
{
    trimaran_raft_ready ready;
    trimaran_raft_status status;
    bool durable = false;
    trimaran_raft_ready_get(member->raft, &ready);
    if (ready.must_append)
        durable = write_log(member, &ready);
    if (ready.status_changed) {
        trimaran_raft_status_get(member->raft, &status);
        trimaran_mvcc_set_term(member->mvcc, status.term);
        trimaran_service_set_refusal(member->service, status.role == TRIMARAN_RAFT_LEADER
                                                          ? TRIMARAN_ERROR_NONE
                                                          : TRIMARAN_ERROR_NO_LEADER);
    }
    apply_committed(member, &ready);
    if (ready.committed_last != 0)
        trimaran_raft_applied(member->raft, ready.committed_last);
    if (durable)
        trimaran_raft_append_done(member->raft, ready.number);
}

static void collect_completions(trimaran_member *member)
{
    trimaran_logthread_completion completion;
    if (member->flying_count == 0)
        return;
    member->log.completed(member->log.context, &completion);
    member->log_error = completion.error;
    uint64_t done = 0;
    while (member->flying_count > 0) {
        const in_flight_t *oldest = &member->flying[member->flying_first];
        if (oldest->sequence > completion.sequence)
            break;
        done = oldest->number;
        member->flying_first = (member->flying_first + 1) % member->flying_capacity;
        member->flying_count--;
    }
    if (done != 0)
        trimaran_raft_append_done(member->raft, done);
}

static void drive(trimaran_member *member)
{
    collect_completions(member);
    while (trimaran_raft_has_ready(member->raft))
        handle_ready(member);
}

static void propose_full_batch(void *context)
{
    trimaran_member *member = context;
    size_t operations;
    propose(member);
    trimaran_service_batch(member->service, &operations);
    assert(operations == 0);
}

bool trimaran_member_turn(trimaran_member *member)
{
    propose(member);
    drive(member);
    return trimaran_service_step(member->service);
}

trimaran_member *trimaran_member_create(trimaran_raft *raft, const trimaran_member_log *log,
                                        trimaran_mvcc *mvcc, trimaran_service *service)
{
    trimaran_member *member = trimaran_allocate(sizeof *member);
    *member = (trimaran_member){.raft = raft, .log = *log, .mvcc = mvcc, .service = service};
    trimaran_service_on_full(service, propose_full_batch, member);
    trimaran_service_set_refusal(service, TRIMARAN_ERROR_NO_LEADER);
    return member;
}

void trimaran_member_destroy(trimaran_member *member)
{
    free(member->flying);
    free(member);
}

int trimaran_member_log_error(const trimaran_member *member)
{
    return member->log_error;
}
