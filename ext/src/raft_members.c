/* Configurations: joint and simple ones, their quorums, and the way from one to the next (§4).
 *
 * A change takes effect on a member when the member applies it, not when it appends it: the group's
 * safety then rests on one change at a time, and on nobody standing for election with a committed
 * change not yet applied. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "raft_internal.h"

trimaran_raft_peer *trimaran_raft_find(const trimaran_raft *raft, uint64_t id)
{
    for (uint32_t i = 0; i < raft->peer_count; i++)
        if (raft->peers[i].id == id)
            return &raft->peers[i];
    return NULL;
}

/* Quorums. A configuration is two halves, the voters and the outgoing ones; a decision needs a
 * majority of each that is not empty. */

static int compare_numbers(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* The highest number that a majority of one half has reached (§3.5). */
static uint64_t half_quorum(const trimaran_raft *raft, bool outgoing, size_t offset)
{
    uint64_t values[TRIMARAN_RAFT_MEMBERS_MAX];
    uint32_t count = 0;

    for (uint32_t i = 0; i < raft->peer_count; i++) {
        const trimaran_raft_peer *peer = &raft->peers[i];
        if (outgoing ? peer->outgoing : peer->voter)
            values[count++] = *(const uint64_t *)((const char *)peer + offset);
    }
    if (count == 0)
        return UINT64_MAX;
    qsort(values, count, sizeof *values, compare_numbers);
    return values[(count - 1) / 2];
}

static uint64_t quorum(const trimaran_raft *raft, size_t offset)
{
    uint64_t index = half_quorum(raft, false, offset), old;

    if (raft->voter_count == 0)
        return 0;
    if (raft->outgoing_count == 0)
        return index;
    old = half_quorum(raft, true, offset);
    return index < old ? index : old;
}

uint64_t trimaran_raft_quorum_match(const trimaran_raft *raft)
{
    if (trimaran_raft_is_alone(raft) && raft->self != NULL && raft->self->voter)
        return raft->self->match;
    return quorum(raft, offsetof(trimaran_raft_peer, match));
}

uint64_t trimaran_raft_quorum_round(const trimaran_raft *raft)
{
    return quorum(raft, offsetof(trimaran_raft_peer, acked_round));
}

bool trimaran_raft_quorum_active(const trimaran_raft *raft)
{
    uint32_t active[2] = {0, 0};

    for (uint32_t i = 0; i < raft->peer_count; i++) {
        active[0] += raft->peers[i].voter && raft->peers[i].active;
        active[1] += raft->peers[i].outgoing && raft->peers[i].active;
    }
    return active[0] > raft->voter_count / 2
           && (raft->outgoing_count == 0 || active[1] > raft->outgoing_count / 2);
}

bool trimaran_raft_quorum_with(const trimaran_raft *raft, uint64_t id)
{
    uint32_t present[2] = {0, 0};

    for (uint32_t i = 0; i < raft->peer_count; i++) {
        const trimaran_raft_peer *peer = &raft->peers[i];
        if (peer->id != raft->id && peer->id != id)
            continue;
        present[0] += peer->voter;
        present[1] += peer->outgoing;
    }
    return present[0] > raft->voter_count / 2
           && (raft->outgoing_count == 0 || present[1] > raft->outgoing_count / 2);
}

int trimaran_raft_quorum_votes(const trimaran_raft *raft)
{
    uint32_t granted[2] = {0, 0}, rejected[2] = {0, 0};
    uint32_t counts[2] = {raft->voter_count, raft->outgoing_count};
    int won = 1;

    for (uint32_t i = 0; i < raft->peer_count; i++) {
        const trimaran_raft_peer *peer = &raft->peers[i];
        granted[0] += peer->voter && peer->granted;
        rejected[0] += peer->voter && peer->rejected;
        granted[1] += peer->outgoing && peer->granted;
        rejected[1] += peer->outgoing && peer->rejected;
    }
    for (int half = 0; half < 2; half++) {
        if (half == 1 && counts[half] == 0)
            continue;
        if (counts[half] - rejected[half] <= counts[half] / 2)
            return -1;
        if (granted[half] <= counts[half] / 2)
            won = 0;
    }
    return won;
}

/* Configurations. */

static bool contains(const uint64_t *ids, uint32_t count, uint64_t id)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}

static const char *list_error(const uint64_t *ids, uint32_t count)
{
    if (count > TRIMARAN_RAFT_MEMBERS_MAX)
        return "the group has more than 255 members";
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] == 0)
            return "a member's id is 0";
        if (contains(ids, i, ids[i]))
            return "two members have the same id";
    }
    return NULL;
}

const char *trimaran_raft_members_error(const trimaran_raft_members *m)
{
    const char *error = list_error(m->voters, m->voter_count);

    if (error == NULL)
        error = list_error(m->outgoing, m->outgoing_count);
    if (error == NULL)
        error = list_error(m->learners, m->learner_count);
    if (error == NULL)
        error = list_error(m->learners_next, m->learner_next_count);
    if (error != NULL)
        return error;
    if (m->voter_count == 0 && (m->outgoing_count > 0 || m->learner_count > 0))
        return "the group has no voters";
    for (uint32_t i = 0; i < m->learner_count; i++)
        if (contains(m->voters, m->voter_count, m->learners[i])
            || contains(m->outgoing, m->outgoing_count, m->learners[i]))
            return "a member is both voter and learner";
    for (uint32_t i = 0; i < m->learner_next_count; i++)
        if (!contains(m->outgoing, m->outgoing_count, m->learners_next[i])
            || contains(m->voters, m->voter_count, m->learners_next[i]))
            return "a member is to become a learner that is no outgoing voter";
    if (m->auto_leave && m->outgoing_count == 0)
        return "a configuration is to be left that is not joint";
    return NULL;
}

static int compare_peers(const void *a, const void *b)
{
    return compare_numbers(&((const trimaran_raft_peer *)a)->id,
                           &((const trimaran_raft_peer *)b)->id);
}

/* A configuration being built: peers of which only id and part are set, in any order. */
struct draft {
    trimaran_raft_peer peers[4 * TRIMARAN_RAFT_MEMBERS_MAX];
    uint32_t count;
};

static trimaran_raft_peer *draft_peer(struct draft *draft, uint64_t id)
{
    for (uint32_t i = 0; i < draft->count; i++)
        if (draft->peers[i].id == id)
            return &draft->peers[i];
    if (draft->count == 4 * TRIMARAN_RAFT_MEMBERS_MAX)
        return NULL;
    draft->peers[draft->count] = (trimaran_raft_peer){.id = id};
    return &draft->peers[draft->count++];
}

/* List the configuration's ids for members_get, in one piece of memory. */
static void list_members(trimaran_raft *raft)
{
    uint64_t *ids = malloc((4 * (size_t)raft->peer_count + 1) * sizeof *ids);
    uint64_t *lists[4];
    uint32_t counts[4] = {0, 0, 0, 0};

    assert(ids != NULL);
    for (uint32_t list = 0; list < 4; list++) {
        lists[list] = ids + (size_t)list * raft->peer_count;
        for (uint32_t i = 0; i < raft->peer_count; i++) {
            const trimaran_raft_peer *peer = &raft->peers[i];
            bool parts[4] = {peer->voter, peer->outgoing, peer->learner, peer->learner_next};
            if (parts[list])
                lists[list][counts[list]++] = peer->id;
        }
    }
    free(raft->member_ids);
    raft->member_ids = ids;
    raft->voter_count = counts[0];
    raft->outgoing_count = counts[1];
    raft->members = (trimaran_raft_members){
        .voters = lists[0],
        .outgoing = lists[1],
        .learners = lists[2],
        .learners_next = lists[3],
        .voter_count = counts[0],
        .outgoing_count = counts[1],
        .learner_count = counts[2],
        .learner_next_count = counts[3],
        .auto_leave = raft->auto_leave,
    };
}

/* Make a draft the configuration; members of both keep their progress. */
static void adopt(trimaran_raft *raft, struct draft *draft, bool auto_leave)
{
    trimaran_raft_peer *peers = calloc(draft->count + 1, sizeof *peers);
    uint32_t count = 0;

    assert(peers != NULL);
    for (uint32_t i = 0; i < draft->count; i++) {
        const trimaran_raft_peer *wanted = &draft->peers[i];
        trimaran_raft_peer *old = trimaran_raft_find(raft, wanted->id);
        trimaran_raft_peer *peer = &peers[count];
        if (!wanted->voter && !wanted->outgoing && !wanted->learner)
            continue;
        count++;
        if (old != NULL) {
            *peer = *old;
            old->inflight = NULL;
        } else {
            peer->id = wanted->id;
            trimaran_raft_peer_reset(peer, trimaran_raft_last(raft) + 1);
            peer->active = true; /* until it has had the time to answer */
        }
        peer->voter = wanted->voter;
        peer->outgoing = wanted->outgoing;
        peer->learner = wanted->learner;
        peer->learner_next = wanted->learner_next;
    }
    qsort(peers, count, sizeof *peers, compare_peers);
    for (uint32_t i = 0; i < raft->peer_count; i++)
        trimaran_raft_peer_free(&raft->peers[i]);
    free(raft->peers);
    raft->peers = peers;
    raft->peer_count = count;
    raft->auto_leave = auto_leave;
    raft->self = trimaran_raft_find(raft, raft->id);
    list_members(raft);
}

void trimaran_raft_members_set(trimaran_raft *raft, const trimaran_raft_members *members)
{
    struct draft *draft = calloc(1, sizeof *draft);

    assert(draft != NULL);
    for (uint32_t i = 0; i < members->voter_count; i++)
        draft_peer(draft, members->voters[i])->voter = true;
    for (uint32_t i = 0; i < members->outgoing_count; i++)
        draft_peer(draft, members->outgoing[i])->outgoing = true;
    for (uint32_t i = 0; i < members->learner_count; i++)
        draft_peer(draft, members->learners[i])->learner = true;
    for (uint32_t i = 0; i < members->learner_next_count; i++)
        draft_peer(draft, members->learners_next[i])->learner_next = true;
    adopt(raft, draft, members->auto_leave != 0);
    free(draft);
}

void trimaran_raft_members_get(const trimaran_raft *raft, trimaran_raft_members *out)
{
    *out = raft->members;
}

/* Changes. */

static int check_changes(const trimaran_raft *raft, const trimaran_raft_change_item *changes,
                         size_t count)
{
    bool joint = raft->outgoing_count > 0;

    if (joint != (count == 0))
        return -EINVAL;
    for (size_t i = 0; i < count; i++) {
        if (changes[i].id == 0 || changes[i].op < TRIMARAN_RAFT_ADD_VOTER
            || changes[i].op > TRIMARAN_RAFT_REMOVE)
            return -EINVAL;
        for (size_t j = 0; j < i; j++)
            if (changes[j].id == changes[i].id)
                return -EINVAL;
    }
    return 0;
}

static void leave_joint(struct draft *draft)
{
    for (uint32_t i = 0; i < draft->count; i++) {
        trimaran_raft_peer *peer = &draft->peers[i];
        peer->learner |= peer->learner_next;
        peer->outgoing = peer->learner_next = false;
    }
}

static int apply_changes(struct draft *draft, const trimaran_raft_change_item *changes,
                         size_t count)
{
    for (size_t i = 0; i < count; i++) {
        trimaran_raft_peer *peer = draft_peer(draft, changes[i].id);
        if (peer == NULL)
            return -EINVAL;
        peer->voter = changes[i].op == TRIMARAN_RAFT_ADD_VOTER;
        peer->learner = changes[i].op == TRIMARAN_RAFT_ADD_LEARNER && !peer->outgoing;
        /* A voter of the outgoing half goes on voting until that half is left. */
        peer->learner_next = changes[i].op == TRIMARAN_RAFT_ADD_LEARNER && peer->outgoing;
    }
    return 0;
}

static int make_draft(const trimaran_raft *raft, struct draft *draft,
                      const trimaran_raft_change_item *changes, size_t count)
{
    uint32_t voters = 0, members = 0;
    int error;

    for (uint32_t i = 0; i < raft->peer_count; i++) {
        const trimaran_raft_peer *peer = &raft->peers[i];
        draft->peers[draft->count++] = (trimaran_raft_peer){
            .id = peer->id,
            .voter = peer->voter,
            .outgoing = peer->outgoing || (count > 1 && peer->voter),
            .learner = peer->learner,
            .learner_next = peer->learner_next,
        };
    }
    if (count == 0)
        leave_joint(draft);
    error = apply_changes(draft, changes, count);
    if (error != 0)
        return error;
    for (uint32_t i = 0; i < draft->count; i++) {
        const trimaran_raft_peer *peer = &draft->peers[i];
        voters += peer->voter;
        members += peer->voter || peer->outgoing || peer->learner;
    }
    return voters > 0 && members <= TRIMARAN_RAFT_MEMBERS_MAX ? 0 : -EINVAL;
}

/* What a leader does about a configuration that it has just entered. */
static void lead_on(trimaran_raft *raft)
{
    const trimaran_raft_peer *transferee = trimaran_raft_find(raft, raft->transferee);

    if (transferee == NULL || !trimaran_raft_votes(transferee))
        raft->transferee = 0;
    if (raft->self == NULL || !trimaran_raft_votes(raft->self)) {
        trimaran_raft_step_down(raft); /* §4.2.2 */
        return;
    }
    /* With fewer voters, what the rest have may be a majority already. */
    trimaran_raft_maybe_commit(raft);
    trimaran_raft_confirm_reads(raft);
}

int trimaran_raft_change(trimaran_raft *raft, const trimaran_raft_change_item *changes,
                         size_t count)
{
    struct draft *draft;
    int error = check_changes(raft, changes, count);

    if (error != 0)
        return error;
    draft = calloc(1, sizeof *draft);
    if (draft == NULL)
        return -ENOMEM;
    error = make_draft(raft, draft, changes, count);
    if (error == 0) {
        adopt(raft, draft, count > 1 && raft->voter_count > 0);
        assert(raft->voter_count > 0);
        assert(!raft->auto_leave || raft->outgoing_count > 0);
        trimaran_raft_reset_lease(raft);
        if (raft->role == TRIMARAN_RAFT_LEADER)
            lead_on(raft);
        else if (raft->self == NULL || !trimaran_raft_votes(raft->self))
            trimaran_raft_cancel_candidacy(raft);
    }
    free(draft);
    return error;
}
