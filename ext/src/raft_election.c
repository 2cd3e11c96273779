/* Roles and how one follows another: elections (§3.4), pre-vote (§9.6), transfer (§3.10). */
#include <errno.h>

#include "raft_internal.h"

#define GONE_SPREAD_TICKS 3

/* The next of a sequence that depends on the seed alone (splitmix64). */
static uint64_t next_random(trimaran_raft *raft)
{
    uint64_t value = raft->random += 0x9e3779b97f4a7c15u;

    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

/* Time-outs differ between members and from one to the next, so that votes rarely split (§3.4). */
void trimaran_raft_restart_timer(trimaran_raft *raft)
{
    raft->elapsed_ticks = 0;
    raft->hurried = false;
    raft->timeout_ticks =
        raft->election_ticks + (uint32_t)(next_random(raft) % raft->election_ticks);
}

/* Stops a read of the log at an entry that changes the configuration. */
static int find_change(void *context, const trimaran_entry *entry)
{
    *(uint64_t *)context = entry->index;
    return entry->type == TRIMARAN_ENTRY_CONFIGURATION;
}

/* Whether a change is committed and not applied: whoever stood for election then might not know by
 * whom it has to be elected. */
static bool committed_change_waits(const trimaran_raft *raft)
{
    uint64_t index = raft->applied + 1;

    /* After a restart the entries are only in the log. */
    while (index <= raft->commit && index < raft->window.first && raft->read != NULL) {
        uint64_t last = raft->window.first - 1, seen = 0;
        if (last > raft->commit)
            last = raft->commit;
        if (raft->read(raft->log_context, index, last, 1 << 20, find_change, &seen) != 0)
            return true;
        assert(seen >= index);
        index = seen + 1;
    }
    if (index < raft->window.first)
        index = raft->window.first;
    for (; index <= raft->commit; index++)
        if (trimaran_raftwindow_at(&raft->window, index)->type == TRIMARAN_ENTRY_CONFIGURATION)
            return true;
    return false;
}

/* Learners and who is no member do not stand for election (§4.2.1), nor who has no log yet. */
static bool may_campaign(const trimaran_raft *raft)
{
    return raft->self != NULL && trimaran_raft_votes(raft->self)
           && raft->install == TRIMARAN_RAFT_INSTALL_NONE;
}

bool trimaran_raft_has_recent_leader(const trimaran_raft *raft)
{
    return raft->leader != 0 && raft->elapsed_ticks < raft->election_ticks;
}

static void tick_election(trimaran_raft *raft);
static void tick_leader(trimaran_raft *raft);

void trimaran_raft_become_follower(trimaran_raft *raft, uint64_t term, uint64_t leader)
{
    assert(term >= raft->term);
    assert(leader == 0 || raft->leader == 0 || term > raft->term || raft->leader == leader);
    if (term > raft->term) {
        raft->term = term;
        raft->vote = 0;
    }
    raft->role = TRIMARAN_RAFT_FOLLOWER;
    raft->leader = leader;
    raft->called = false;
    raft->tick = tick_election;
    raft->transferee = 0;
    raft->uncommitted_bytes = 0;
    raft->pending_configuration = 0;
    trimaran_raft_drop_reads(raft);
    for (uint32_t i = 0; i < raft->peer_count; i++)
        trimaran_raft_peer_free(&raft->peers[i]);
    trimaran_raft_restart_timer(raft);
    trimaran_raft_drop_settled(raft);
}

static void forget_votes(trimaran_raft *raft)
{
    for (uint32_t i = 0; i < raft->peer_count; i++)
        raft->peers[i].granted = raft->peers[i].rejected = false;
}

static void become_leader(trimaran_raft *raft)
{
    uint64_t next = trimaran_raft_last(raft) + 1;

    assert(raft->role == TRIMARAN_RAFT_CANDIDATE);
    assert(raft->vote == raft->id);
    assert(raft->self != NULL && trimaran_raft_votes(raft->self));
    raft->role = TRIMARAN_RAFT_LEADER;
    raft->tick = tick_leader;
    raft->leader = raft->id;
    raft->elapsed_ticks = raft->heartbeat_elapsed_ticks = 0;
    raft->transferee = 0;
    raft->handed_over = false;
    raft->lease_until_us = 0;
    raft->lease_round = raft->round;
    for (uint32_t i = 0; i < raft->peer_count; i++)
        trimaran_raft_peer_reset(&raft->peers[i], next);
    raft->self->match = raft->stable;
    raft->self->active = true;
    /* Whatever it took over may hold a change: none other before that is applied (§4.1). */
    raft->pending_configuration = next - 1;
    trimaran_raft_count_uncommitted(raft);
    /* An empty entry, whose commitment commits what earlier terms left (§6.4 step 1). */
    raft->first_of_term = trimaran_raft_append_own(raft, TRIMARAN_ENTRY_NORMAL, NULL);
}

/* Votes tell how far their sender knows the log to be committed. Without that a group could be
 * stuck: a change takes effect where it is applied, so a candidate that does not know the end of a
 * joint configuration to be committed needs votes of old voters, who know it, have more than the
 * candidate, and stand for election no more. */
static void tell_commit(const trimaran_raft *raft, trimaran_raft_message *message)
{
    message->commit = raft->commit;
    message->hint_term = trimaran_raft_term_of(raft, raft->commit);
}

/* What another knows committed is, where this log has the same entry (§3.5, log matching). */
static void learn_commit(trimaran_raft *raft, const trimaran_raft_message *message)
{
    uint64_t term;

    if (raft->role == TRIMARAN_RAFT_LEADER || message->commit <= raft->commit
        || trimaran_raft_term_at(raft, message->commit, &term) != 0 || term != message->hint_term)
        return;
    trimaran_raft_commit_to(raft, message->commit);
    if (raft->role != TRIMARAN_RAFT_FOLLOWER && committed_change_waits(raft))
        trimaran_raft_become_follower(raft, raft->term, 0);
}

static void ask_for_votes(trimaran_raft *raft, uint32_t type, uint64_t term, bool force)
{
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        trimaran_raft_peer *peer = &raft->peers[i];
        trimaran_raft_message *message;
        if (peer->id == raft->id || !trimaran_raft_votes(peer))
            continue;
        /* A candidate that forgot its log or term in a crash must not find votes that were given
         * to what it forgot: it asks once both are durable (§3.8). */
        message = type == TRIMARAN_RAFT_VOTE ? trimaran_raft_send_durably(raft, type, peer->id)
                                             : trimaran_raft_send(raft, type, peer->id);
        message->term = term;
        message->index = trimaran_raft_last(raft);
        message->log_term = trimaran_raft_term_of(raft, message->index);
        message->force = force;
        tell_commit(raft, message);
    }
}

/* Every candidate votes for itself; the vote counts once it is durable (§3.8). */
static void become_candidate(trimaran_raft *raft, bool force)
{
    assert(raft->role != TRIMARAN_RAFT_LEADER);
    assert(raft->term < TRIMARAN_RAFT_NUMBER_MAX);
    raft->role = TRIMARAN_RAFT_CANDIDATE;
    raft->called = false;
    raft->tick = tick_election;
    raft->term++;
    raft->vote = raft->id;
    raft->leader = 0;
    forget_votes(raft);
    trimaran_raft_restart_timer(raft);
    ask_for_votes(raft, TRIMARAN_RAFT_VOTE, raft->term, force);
}

/* Asks whether it would be elected before it disturbs anyone with a new term (§9.6). */
static void become_pre_candidate(trimaran_raft *raft)
{
    assert(raft->role != TRIMARAN_RAFT_LEADER);
    raft->role = TRIMARAN_RAFT_PRE_CANDIDATE;
    raft->called = false;
    raft->tick = tick_election;
    raft->leader = 0;
    forget_votes(raft);
    trimaran_raft_restart_timer(raft);
    raft->self->granted = true;
    if (trimaran_raft_quorum_votes(raft) > 0)
        become_candidate(raft, false);
    else
        ask_for_votes(raft, TRIMARAN_RAFT_PRE_VOTE, raft->term + 1, false);
}

static void campaign(trimaran_raft *raft, bool force)
{
    if (!may_campaign(raft) || committed_change_waits(raft))
        return;
    if (!force && (raft->flags & TRIMARAN_RAFT_USE_PRE_VOTE))
        become_pre_candidate(raft);
    else
        become_candidate(raft, force);
}

void trimaran_raft_campaign(trimaran_raft *raft)
{
    if (raft->role != TRIMARAN_RAFT_FOLLOWER)
        return;
    /* Under leases a member's silence is a promise, also towards itself (§6.4.1). */
    if (raft->lease_us > 0 && !trimaran_raft_is_alone(raft)
        && (raft->silent_ticks > 0 || trimaran_raft_has_recent_leader(raft)))
        return;
    campaign(raft, false);
}

/* Not all at once, so that votes rarely split; nor later than a client would notice. */
void trimaran_raft_gone(trimaran_raft *raft, uint64_t id)
{
    if (raft->role != TRIMARAN_RAFT_FOLLOWER || raft->leader != id || raft->lease_us > 0)
        return;
    if (raft->elapsed_ticks < raft->election_ticks)
        raft->elapsed_ticks = raft->election_ticks;
    raft->timeout_ticks =
        raft->election_ticks + 1 + (uint32_t)(next_random(raft) % GONE_SPREAD_TICKS);
    raft->hurried = true;
}

/* A follower or candidate that hears of no leader for long enough stands for election (§3.4). */
static void tick_election(trimaran_raft *raft)
{
    if (raft->elapsed_ticks < UINT32_MAX)
        raft->elapsed_ticks++;
    if (raft->silent_ticks > 0)
        raft->silent_ticks--;
    if (raft->elapsed_ticks >= raft->timeout_ticks && raft->silent_ticks == 0)
        campaign(raft, false);
}

/* A leader that a majority no longer answers steps down, so that clients look elsewhere (§6.2). */
static bool check_quorum(trimaran_raft *raft)
{
    bool active = trimaran_raft_quorum_active(raft);

    if ((raft->flags & TRIMARAN_RAFT_USE_CHECK_QUORUM) && !active) {
        trimaran_raft_become_follower(raft, raft->term, 0);
        return false;
    }
    for (uint32_t i = 0; i < raft->peer_count; i++)
        raft->peers[i].active = raft->peers[i].id == raft->id;
    return true;
}

static void tick_leader(trimaran_raft *raft)
{
    if (raft->silent_ticks > 0)
        raft->silent_ticks--;
    if (++raft->elapsed_ticks >= raft->election_ticks) {
        raft->elapsed_ticks = 0;
        if (!check_quorum(raft))
            return;
    }
    if (raft->transferee != 0 && ++raft->transfer_elapsed_ticks >= raft->election_ticks)
        raft->transferee = 0;
    if (++raft->heartbeat_elapsed_ticks < raft->heartbeat_ticks)
        return;
    raft->heartbeat_elapsed_ticks = 0;
    if (raft->peer_count == 1)
        return;
    for (uint32_t i = 0; i < raft->peer_count; i++)
        raft->peers[i].may_poke = true;
    trimaran_raft_begin_round(raft);
}

/* Votes. */

static bool log_is_up_to_date(const trimaran_raft *raft, const trimaran_raft_message *message)
{
    uint64_t last = trimaran_raft_last(raft), term = trimaran_raft_term_of(raft, last);

    return message->log_term > term || (message->log_term == term && message->index >= last);
}

/* A vote goes to one candidate a term, and only to one whose log has all that may be committed
 * (§3.6.1). Asking for a vote of this or a later term; the step has dealt with terms. */
int trimaran_raft_handle_vote(trimaran_raft *raft, const trimaran_raft_message *message)
{
    bool pre = message->type == TRIMARAN_RAFT_PRE_VOTE;
    bool free = raft->vote == message->from || (raft->vote == 0 && raft->leader == 0)
                || (pre && message->term > raft->term);
    uint32_t type = pre ? TRIMARAN_RAFT_PRE_VOTE_RESPONSE : TRIMARAN_RAFT_VOTE_RESPONSE;
    trimaran_raft_message *response;

    learn_commit(raft, message);
    if (message->term < raft->term || !free || !log_is_up_to_date(raft, message)) {
        response = trimaran_raft_send(raft, type, message->from);
        response->reject = 1;
        tell_commit(raft, response);
        return 0;
    }
    if (pre) {
        response = trimaran_raft_send(raft, type, message->from);
        response->term = message->term;
        return 0;
    }
    if (raft->role == TRIMARAN_RAFT_PRE_CANDIDATE)
        trimaran_raft_become_follower(raft, raft->term, 0);
    assert(raft->role == TRIMARAN_RAFT_FOLLOWER);
    assert(message->term == raft->term);
    assert(raft->vote == 0 || raft->vote == message->from);
    raft->vote = message->from;
    raft->elapsed_ticks = 0;
    trimaran_raft_send_durably(raft, type, message->from);
    return 0;
}

static void count_votes(trimaran_raft *raft)
{
    int result = trimaran_raft_quorum_votes(raft);

    if (result < 0)
        trimaran_raft_become_follower(raft, raft->term, 0);
    else if (result > 0 && raft->role == TRIMARAN_RAFT_PRE_CANDIDATE)
        become_candidate(raft, false);
    else if (result > 0)
        become_leader(raft);
}

void trimaran_raft_handle_vote_response(trimaran_raft *raft, trimaran_raft_peer *peer,
                                        const trimaran_raft_message *message)
{
    bool pre = message->type == TRIMARAN_RAFT_PRE_VOTE_RESPONSE;

    learn_commit(raft, message);
    if (raft->role != (pre ? TRIMARAN_RAFT_PRE_CANDIDATE : TRIMARAN_RAFT_CANDIDATE)
        || peer->id == raft->id || peer->granted || peer->rejected)
        return;
    if (pre && !message->reject && message->term != raft->term + 1)
        return;
    peer->granted = !message->reject;
    peer->rejected = message->reject != 0;
    count_votes(raft);
}

void trimaran_raft_own_vote_done(trimaran_raft *raft)
{
    assert(raft->role == TRIMARAN_RAFT_CANDIDATE && raft->vote == raft->id);
    if (raft->self == NULL || raft->self->granted)
        return;
    raft->self->granted = true;
    count_votes(raft);
}

void trimaran_raft_cancel_candidacy(trimaran_raft *raft)
{
    if (raft->role == TRIMARAN_RAFT_CANDIDATE || raft->role == TRIMARAN_RAFT_PRE_CANDIDATE)
        trimaran_raft_become_follower(raft, raft->term, 0);
}

/* Transfer (§3.10). */

static void send_timeout_now(trimaran_raft *raft, uint64_t to)
{
    raft->handed_over = true;
    trimaran_raft_send(raft, TRIMARAN_RAFT_TIMEOUT_NOW, to);
}

void trimaran_raft_continue_transfer(trimaran_raft *raft)
{
    const trimaran_raft_peer *peer = trimaran_raft_find(raft, raft->transferee);

    if (peer != NULL && peer->match == trimaran_raft_last(raft))
        send_timeout_now(raft, peer->id);
}

int trimaran_raft_transfer(trimaran_raft *raft, uint64_t to)
{
    const trimaran_raft_peer *peer = trimaran_raft_find(raft, to);

    if (raft->role != TRIMARAN_RAFT_LEADER)
        return -EAGAIN;
    if (peer == NULL || !trimaran_raft_votes(peer))
        return -ENOENT;
    if (to == raft->transferee)
        return 0;
    raft->transferee = to == raft->id ? 0 : to;
    raft->transfer_elapsed_ticks = 0;
    trimaran_raft_continue_transfer(raft);
    return 0;
}

/* The leader has the configuration committed that it is no part of (§4.2.2): whoever has the whole
 * log may follow at once. */
void trimaran_raft_step_down(trimaran_raft *raft)
{
    assert(raft->role == TRIMARAN_RAFT_LEADER);
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        const trimaran_raft_peer *peer = &raft->peers[i];
        if (peer->id == raft->id || !trimaran_raft_votes(peer)
            || peer->match != trimaran_raft_last(raft))
            continue;
        send_timeout_now(raft, peer->id);
        break;
    }
    trimaran_raft_become_follower(raft, raft->term, 0);
}

void trimaran_raft_handle_timeout_now(trimaran_raft *raft, const trimaran_raft_message *message)
{
    if (raft->role != TRIMARAN_RAFT_FOLLOWER || raft->leader != message->from)
        return;
    raft->called = true;
    trimaran_raft_answer_call(raft);
}

/* A leader that leaves calls its successor just as the change that removes it is committed. */
void trimaran_raft_answer_call(trimaran_raft *raft)
{
    if (!raft->called || committed_change_waits(raft))
        return;
    raft->called = false;
    campaign(raft, true);
}
