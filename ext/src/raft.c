/* Sections named here are those of Ongaro's thesis (see raft.h).
 *
 * One place for each transition (become_*), one function for each role's tick; what a member learns
 * of the others is in its voters' progress, its own included: the local disk acknowledges an append
 * as a peer would, later and through append_done (§10.2.1).
 */
#include "trimaran/raft.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "raftwindow.h"

/* What is known of one voter. */
struct voter {
    uint64_t id;
    uint64_t match; /* it has the log durably up to here */
    int granted;    /* its vote is ours, durably */
};

/* An append handed out in a Ready and not yet durable. */
struct append {
    uint64_t number;
    uint64_t last_index, last_term; /* 0: no entries */
    uint64_t term, vote;            /* of the hard state then */
};

struct trimaran_raft {
    uint64_t id;
    uint32_t election_ticks, heartbeat_ticks;
    uint64_t max_uncommitted_bytes;
    struct voter *voters;
    uint32_t voter_count;
    uint64_t random;

    trimaran_raft_role role;
    uint64_t term, vote, leader;
    uint32_t elapsed_ticks, timeout_ticks;
    void (*tick)(trimaran_raft *raft);

    trimaran_raftwindow window;
    uint64_t stable;          /* last durable index */
    uint64_t handed;          /* last index handed out to be appended */
    uint64_t commit, applied;
    uint64_t handed_commit;   /* last index handed out to be applied */
    uint64_t first_of_term;   /* leader: index of the entry it began its term with */
    uint64_t uncommitted_bytes;

    uint64_t number; /* of the last Ready */
    trimaran_hard_state handed_state;
    trimaran_hard_state ready_state;
    struct append *appends; /* oldest first */
    size_t append_count, append_capacity;
    trimaran_raft_role shown_role;
    uint64_t shown_leader, shown_term;

    uint64_t *waiting_reads; /* contexts, until an entry of this term is committed */
    size_t waiting_count, waiting_capacity;
    trimaran_raft_read_state *reads, *handed_reads;
    size_t read_count, read_capacity, handed_read_capacity;
};

static _Thread_local char new_error[200];

const char *trimaran_raft_new_error(void)
{
    return new_error;
}

static int refuse(int error, const char *why)
{
    snprintf(new_error, sizeof new_error, "%s", why);
    return error;
}

static uint64_t last_index(const trimaran_raft *raft)
{
    return trimaran_raftwindow_last(&raft->window);
}

/* The next of a sequence that depends on the seed alone (splitmix64). */
static uint64_t next_random(trimaran_raft *raft)
{
    uint64_t value = raft->random += 0x9e3779b97f4a7c15u;

    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

/* Time-outs differ between members and from one to the next, so that votes rarely split (§3.4). */
static void restart_timer(trimaran_raft *raft)
{
    raft->elapsed_ticks = 0;
    raft->timeout_ticks =
        raft->election_ticks + (uint32_t)(next_random(raft) % raft->election_ticks);
}

static struct voter *find_voter(const trimaran_raft *raft, uint64_t id)
{
    for (uint32_t i = 0; i < raft->voter_count; i++)
        if (raft->voters[i].id == id)
            return &raft->voters[i];
    return NULL;
}

static int compare_numbers(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* The highest index that a majority of the voters has (§3.5). */
static uint64_t majority_match(const trimaran_raft *raft)
{
    uint64_t matches[raft->voter_count];

    for (uint32_t i = 0; i < raft->voter_count; i++)
        matches[i] = raft->voters[i].match;
    qsort(matches, raft->voter_count, sizeof *matches, compare_numbers);
    return matches[(raft->voter_count - 1) / 2];
}

static int majority_granted(const trimaran_raft *raft)
{
    uint32_t granted = 0;

    for (uint32_t i = 0; i < raft->voter_count; i++)
        granted += raft->voters[i].granted != 0;
    return granted > raft->voter_count / 2;
}

static int grow(void **array, size_t *capacity, size_t count, size_t size)
{
    size_t wanted = *capacity > 0 ? *capacity : 16;
    void *grown;

    if (count <= *capacity)
        return 0;
    while (wanted < count)
        wanted *= 2;
    grown = realloc(*array, wanted * size);
    if (grown == NULL)
        return -ENOMEM;
    *array = grown;
    *capacity = wanted;
    return 0;
}

/* Append an entry of this term; room is reserved. */
static uint64_t append_own(trimaran_raft *raft, uint32_t type, trimaran_payload *payload)
{
    trimaran_entry entry = {
        .index = last_index(raft) + 1,
        .term = raft->term,
        .type = type,
        .payload = payload,
    };

    if (payload != NULL) {
        entry.size = (uint32_t)trimaran_payload_size(payload);
        entry.data = trimaran_payload_data(payload);
    }
    trimaran_raftwindow_push(&raft->window, &entry);
    raft->uncommitted_bytes += entry.size;
    return entry.index;
}

/* Entries that are durable and applied need not stay in memory. */
static void drop_settled(trimaran_raft *raft)
{
    uint64_t index = raft->applied < raft->stable ? raft->applied : raft->stable;

    trimaran_raftwindow_drop(&raft->window, index);
}

static void answer_waiting_reads(trimaran_raft *raft)
{
    size_t count = raft->read_count + raft->waiting_count;
    int error = grow((void **)&raft->reads, &raft->read_capacity, count, sizeof *raft->reads);

    assert(error == 0);
    for (size_t i = 0; i < raft->waiting_count; i++)
        raft->reads[raft->read_count++] =
            (trimaran_raft_read_state){raft->waiting_reads[i], raft->commit};
    raft->waiting_count = 0;
}

static int committed_in_term(const trimaran_raft *raft)
{
    return raft->role == TRIMARAN_RAFT_LEADER && raft->commit >= raft->first_of_term;
}

/* A leader commits by counting only from an entry of its own term on; what is before it is
 * committed with it (§3.6.2). */
static void maybe_commit(trimaran_raft *raft)
{
    uint64_t index = majority_match(raft);

    if (index <= raft->commit || index < raft->first_of_term)
        return;
    assert(index <= last_index(raft));
    for (uint64_t i = raft->commit + 1; i <= index; i++)
        if (i >= raft->first_of_term)
            raft->uncommitted_bytes -= trimaran_raftwindow_at(&raft->window, i)->size;
    raft->commit = index;
    answer_waiting_reads(raft);
}

static void become_leader(trimaran_raft *raft)
{
    assert(raft->role == TRIMARAN_RAFT_CANDIDATE);
    raft->role = TRIMARAN_RAFT_LEADER;
    raft->tick = NULL;
    raft->leader = raft->id;
    for (uint32_t i = 0; i < raft->voter_count; i++)
        raft->voters[i].match = 0;
    find_voter(raft, raft->id)->match = raft->stable;
    raft->uncommitted_bytes = 0;
    /* An empty entry, whose commitment commits what earlier terms left (§6.4 step 1). */
    raft->first_of_term = append_own(raft, TRIMARAN_ENTRY_NORMAL, NULL);
}

/* Every candidate votes for itself; the vote counts once it is durable (§3.8). */
static void become_candidate(trimaran_raft *raft)
{
    assert(raft->role != TRIMARAN_RAFT_LEADER);
    raft->role = TRIMARAN_RAFT_CANDIDATE;
    raft->term++;
    raft->vote = raft->id;
    raft->leader = 0;
    for (uint32_t i = 0; i < raft->voter_count; i++)
        raft->voters[i].granted = 0;
    restart_timer(raft);
}

/* A follower or candidate that hears of no leader for long enough stands for election (§3.4). */
static void tick_election(trimaran_raft *raft)
{
    raft->elapsed_ticks++;
    if (raft->elapsed_ticks >= raft->timeout_ticks)
        become_candidate(raft);
}

static int check_members(const trimaran_raft_config *config)
{
    int found = 0;

    if (config->id == 0)
        return refuse(-EINVAL, "the member's id is 0");
    if (config->members.voter_count == 0)
        return refuse(-EINVAL, "the group has no voters");
    for (uint32_t i = 0; i < config->members.voter_count; i++) {
        if (config->members.voters[i] == 0)
            return refuse(-EINVAL, "a voter's id is 0");
        for (uint32_t j = 0; j < i; j++)
            if (config->members.voters[i] == config->members.voters[j])
                return refuse(-EINVAL, "two voters have the same id");
        found |= config->members.voters[i] == config->id;
    }
    if (!found)
        return refuse(-EINVAL, "the member is not among the voters");
    if (config->members.voter_count > 1)
        return refuse(-ENOTSUP, "the group has more than one voter: this version keeps a store on "
                                "one member only; configure it alone");
    return 0;
}

static int check_config(const trimaran_raft_config *config)
{
    uint64_t last_term = 0;

    if (config->struct_size != sizeof *config)
        return refuse(-EINVAL, "the configuration is of another version of the library");
    if (config->heartbeat_ticks == 0 || config->election_ticks <= config->heartbeat_ticks)
        return refuse(-EINVAL, "election_ticks is not greater than heartbeat_ticks, which is not "
                               "greater than 0");
    if (config->first_index == 0 || config->last_index + 1 < config->first_index
        || config->term == NULL)
        return refuse(-EINVAL, "the log's first and last index do not fit");
    if (config->hard_state.commit > config->last_index)
        return refuse(-EUCLEAN, "entries were committed that the log does not have");
    if (config->applied_index > config->last_index)
        return refuse(-EUCLEAN, "the state is ahead of the log: the log is another or an older "
                                "one; restore both from the same snapshot");
    if (config->applied_index + 1 < config->first_index)
        return refuse(-EUCLEAN, "the state is behind the first entry of the log: restore both "
                                "from the same snapshot");
    if (config->last_index > 0
        && config->term(config->log_context, config->last_index, &last_term) != 0)
        return refuse(-EUCLEAN, "the log does not have its last entry's term");
    if (last_term > config->hard_state.term)
        return refuse(-EUCLEAN, "the log has entries of a later term than the hard state's");
    return check_members(config);
}

static int start(trimaran_raft *raft, const trimaran_raft_config *config)
{
    int error = trimaran_raftwindow_init(&raft->window, config->last_index + 1);

    raft->voters = calloc(config->members.voter_count, sizeof *raft->voters);
    if (error != 0 || raft->voters == NULL)
        return refuse(-ENOMEM, "no memory");
    raft->voter_count = config->members.voter_count;
    for (uint32_t i = 0; i < config->members.voter_count; i++)
        raft->voters[i].id = config->members.voters[i];
    raft->id = config->id;
    raft->election_ticks = config->election_ticks;
    raft->heartbeat_ticks = config->heartbeat_ticks;
    raft->max_uncommitted_bytes = config->max_uncommitted_bytes;
    raft->random = config->seed;
    raft->term = raft->shown_term = config->hard_state.term;
    raft->vote = config->hard_state.vote;
    raft->stable = raft->handed = config->last_index;
    raft->applied = raft->handed_commit = config->applied_index;
    /* What was applied had been committed, though the hard state may not have said so yet. */
    raft->commit = config->hard_state.commit;
    if (raft->commit < raft->applied)
        raft->commit = raft->applied;
    raft->handed_state = config->hard_state;
    raft->role = TRIMARAN_RAFT_FOLLOWER;
    raft->tick = tick_election;
    restart_timer(raft);
    return 0;
}

int trimaran_raft_new(const trimaran_raft_config *config, trimaran_raft **out)
{
    trimaran_raft *raft;
    int error = check_config(config);

    if (error != 0)
        return error;
    raft = calloc(1, sizeof *raft);
    if (raft == NULL)
        return refuse(-ENOMEM, "no memory");
    error = start(raft, config);
    if (error != 0) {
        trimaran_raft_free(raft);
        return error;
    }
    *out = raft;
    return 0;
}

void trimaran_raft_free(trimaran_raft *raft)
{
    if (raft == NULL)
        return;
    trimaran_raftwindow_free(&raft->window);
    free(raft->voters);
    free(raft->appends);
    free(raft->waiting_reads);
    free(raft->reads);
    free(raft->handed_reads);
    free(raft);
}

void trimaran_raft_tick(trimaran_raft *raft)
{
    if (raft->tick != NULL)
        raft->tick(raft);
}

void trimaran_raft_campaign(trimaran_raft *raft)
{
    if (raft->role == TRIMARAN_RAFT_FOLLOWER)
        become_candidate(raft);
}

int trimaran_raft_step(trimaran_raft *raft, const trimaran_raft_message *message)
{
    /* A group of one has no other members to hear from. */
    assert(raft->voter_count == 1);
    (void)message;
    return -ENOENT;
}

int trimaran_raft_propose(trimaran_raft *raft, uint32_t type, trimaran_payload *payload,
                          uint64_t *index)
{
    size_t size = payload != NULL ? trimaran_payload_size(payload) : 0;
    int error;

    if (raft->role != TRIMARAN_RAFT_LEADER)
        return -EAGAIN;
    if (size > UINT32_MAX)
        return -EMSGSIZE;
    /* One proposal larger than the limit must still have its turn. */
    if (raft->max_uncommitted_bytes > 0 && raft->uncommitted_bytes > 0
        && raft->uncommitted_bytes + size > raft->max_uncommitted_bytes)
        return -EBUSY;
    /* The second place is kept for the entry that a new leader begins with. */
    error = trimaran_raftwindow_reserve(&raft->window, 2);
    if (error != 0)
        return error;
    *index = append_own(raft, type, payload);
    return 0;
}

/* A leader answers with its commit index, once it has committed an entry of its term and a majority
 * has confirmed that it leads still (§6.4); in a group of one the latter is itself. */
int trimaran_raft_read_index(trimaran_raft *raft, uint64_t context)
{
    int error;

    if (raft->role != TRIMARAN_RAFT_LEADER)
        return -EAGAIN;
    error = grow((void **)&raft->reads, &raft->read_capacity,
                 raft->read_count + raft->waiting_count + 1, sizeof *raft->reads);
    if (error == 0)
        error = grow((void **)&raft->waiting_reads, &raft->waiting_capacity,
                     raft->waiting_count + 1, sizeof *raft->waiting_reads);
    if (error != 0)
        return error;
    raft->waiting_reads[raft->waiting_count++] = context;
    if (committed_in_term(raft))
        answer_waiting_reads(raft);
    return 0;
}

static int vote_or_term_changed(const trimaran_raft *raft)
{
    return raft->term != raft->handed_state.term || raft->vote != raft->handed_state.vote;
}

static int status_changed(const trimaran_raft *raft)
{
    return raft->role != raft->shown_role || raft->leader != raft->shown_leader
           || raft->term != raft->shown_term;
}

int trimaran_raft_has_ready(const trimaran_raft *raft)
{
    return vote_or_term_changed(raft) || last_index(raft) > raft->handed
           || raft->commit > raft->handed_commit || raft->read_count > 0 || status_changed(raft);
}

static void note_append(trimaran_raft *raft, const trimaran_raft_ready *ready)
{
    int error = grow((void **)&raft->appends, &raft->append_capacity, raft->append_count + 1,
                     sizeof *raft->appends);
    struct append append = {.number = ready->number, .term = raft->term, .vote = raft->vote};

    assert(error == 0);
    if (ready->entry_count > 0) {
        append.last_index = ready->entries[ready->entry_count - 1].index;
        append.last_term = ready->entries[ready->entry_count - 1].term;
    }
    raft->appends[raft->append_count++] = append;
}

/* A new commit index alone is not worth a flush: it goes with the next append, and is found again
 * from the log after a restart (§3.8). */
static void hand_out_append(trimaran_raft *raft, trimaran_raft_ready *out)
{
    if (last_index(raft) > raft->handed) {
        out->entries = trimaran_raftwindow_at(&raft->window, raft->handed + 1);
        out->entry_count = (size_t)(last_index(raft) - raft->handed);
        raft->handed = last_index(raft);
    }
    out->must_append = out->entry_count > 0 || vote_or_term_changed(raft);
    if (!out->must_append)
        return;
    raft->ready_state = (trimaran_hard_state){raft->term, raft->vote, raft->commit};
    if (memcmp(&raft->ready_state, &raft->handed_state, sizeof raft->ready_state) != 0)
        out->hard_state = &raft->ready_state;
    raft->handed_state = raft->ready_state;
    note_append(raft, out);
}

static void hand_out_committed(trimaran_raft *raft, trimaran_raft_ready *out)
{
    if (raft->commit == raft->handed_commit)
        return;
    out->committed_first = raft->handed_commit + 1;
    out->committed_last = raft->commit;
    if (out->committed_first >= raft->window.first)
        out->committed = trimaran_raftwindow_at(&raft->window, out->committed_first);
    else if (out->committed_last >= raft->window.first)
        out->committed_last = raft->window.first - 1;
    raft->handed_commit = out->committed_last;
}

static void hand_out_reads(trimaran_raft *raft, trimaran_raft_ready *out)
{
    trimaran_raft_read_state *reads = raft->reads;
    size_t capacity = raft->read_capacity;

    out->read_states = reads;
    out->read_state_count = raft->read_count;
    raft->reads = raft->handed_reads;
    raft->read_capacity = raft->handed_read_capacity;
    raft->handed_reads = reads;
    raft->handed_read_capacity = capacity;
    raft->read_count = 0;
}

void trimaran_raft_ready_get(trimaran_raft *raft, trimaran_raft_ready *out)
{
    *out = (trimaran_raft_ready){.number = ++raft->number};
    out->status_changed = status_changed(raft);
    raft->shown_role = raft->role;
    raft->shown_leader = raft->leader;
    raft->shown_term = raft->term;
    hand_out_append(raft, out);
    hand_out_committed(raft, out);
    hand_out_reads(raft, out);
}

/* The local disk has answered. */
static void finish_append(trimaran_raft *raft, const struct append *append)
{
    struct voter *self = find_voter(raft, raft->id);

    if (append->last_index > raft->stable) {
        /* Without a leader elsewhere nothing replaces an entry between its append and this. */
        assert(trimaran_raftwindow_at(&raft->window, append->last_index)->term
               == append->last_term);
        raft->stable = append->last_index;
    }
    if (raft->role == TRIMARAN_RAFT_CANDIDATE && append->term == raft->term
        && append->vote == raft->id) {
        self->granted = 1;
        if (majority_granted(raft))
            become_leader(raft);
    }
    if (raft->role == TRIMARAN_RAFT_LEADER) {
        self->match = raft->stable;
        maybe_commit(raft);
    }
}

void trimaran_raft_append_done(trimaran_raft *raft, uint64_t number)
{
    size_t done = 0;

    assert(number <= raft->number);
    while (done < raft->append_count && raft->appends[done].number <= number)
        done++;
    for (size_t i = 0; i < done; i++)
        finish_append(raft, &raft->appends[i]);
    raft->append_count -= done;
    if (done > 0)
        memmove(raft->appends, raft->appends + done, raft->append_count * sizeof *raft->appends);
    drop_settled(raft);
}

void trimaran_raft_applied(trimaran_raft *raft, uint64_t index)
{
    assert(index >= raft->applied);
    assert(index <= raft->handed_commit);
    raft->applied = index;
    drop_settled(raft);
}

void trimaran_raft_status_get(const trimaran_raft *raft, trimaran_raft_status *out)
{
    *out = (trimaran_raft_status){
        .role = raft->role,
        .id = raft->id,
        .leader = raft->leader,
        .term = raft->term,
        .vote = raft->vote,
        .commit = raft->commit,
        .applied = raft->applied,
        .stable = raft->stable,
        .last_index = last_index(raft),
        .uncommitted_bytes = raft->uncommitted_bytes,
    };
}

/* What replication brings. */

int trimaran_raft_change(trimaran_raft *raft, const trimaran_raft_change_item *changes, size_t count)
{
    (void)raft, (void)changes, (void)count;
    return -ENOTSUP;
}

void trimaran_raft_members_get(const trimaran_raft *raft, trimaran_raft_members *out)
{
    *out = (trimaran_raft_members){.voters = &raft->voters[0].id, .voter_count = 1};
}

int trimaran_raft_transfer(trimaran_raft *raft, uint64_t to)
{
    (void)raft, (void)to;
    return -ENOTSUP;
}

void trimaran_raft_set_clock(trimaran_raft *raft, uint64_t now_us)
{
    (void)raft, (void)now_us;
}

void trimaran_raft_snapshot_installed(trimaran_raft *raft)
{
    (void)raft;
}

void trimaran_raft_compacted(trimaran_raft *raft, uint64_t first_index)
{
    (void)raft, (void)first_index;
}

void trimaran_raft_unreachable(trimaran_raft *raft, uint64_t id)
{
    (void)raft, (void)id;
}

void trimaran_raft_snapshot_sent(trimaran_raft *raft, uint64_t to, uint64_t index)
{
    (void)raft, (void)to, (void)index;
}

void trimaran_raft_snapshot_failed(trimaran_raft *raft, uint64_t to)
{
    (void)raft, (void)to;
}

int trimaran_raft_progress_get(const trimaran_raft *raft, uint64_t id, trimaran_raft_progress *out)
{
    (void)raft, (void)id, (void)out;
    return -ENOTSUP;
}
