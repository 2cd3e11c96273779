/* What comes in: what every message has to satisfy, and the rules of terms (§3.3), which are the
 * same whatever the role. A message that is refused has changed nothing. */
#include <errno.h>

#include "raft_internal.h"

static bool is_response(uint32_t type)
{
    return type == TRIMARAN_RAFT_VOTE_RESPONSE || type == TRIMARAN_RAFT_PRE_VOTE_RESPONSE
           || type == TRIMARAN_RAFT_APPEND_RESPONSE || type == TRIMARAN_RAFT_HEARTBEAT_RESPONSE;
}

static bool is_vote(uint32_t type)
{
    return type == TRIMARAN_RAFT_VOTE || type == TRIMARAN_RAFT_PRE_VOTE;
}

/* Only the leader of the term sends these. */
static bool is_from_leader(uint32_t type)
{
    return type == TRIMARAN_RAFT_APPEND || type == TRIMARAN_RAFT_HEARTBEAT
           || type == TRIMARAN_RAFT_SNAPSHOT;
}

static bool entries_are_consistent(const trimaran_raft_message *message)
{
    uint64_t index = message->index, term = message->log_term;

    if ((index == 0) != (term == 0) || term > message->term)
        return false;
    for (size_t i = 0; i < message->entry_count; i++) {
        const trimaran_entry *entry = &message->entries[i];
        if (entry->index != ++index || entry->term < term || entry->term == 0
            || entry->term > message->term || entry->type > TRIMARAN_ENTRY_CONFIGURATION)
            return false;
        term = entry->term;
    }
    return true;
}

static bool is_well_formed(const trimaran_raft *raft, const trimaran_raft_message *m)
{
    if (m->type < TRIMARAN_RAFT_VOTE || m->type > TRIMARAN_RAFT_READ_INDEX_RESPONSE
        || m->from == 0 || m->from == raft->id || m->to != raft->id || m->term == 0)
        return false;
    if (m->term > TRIMARAN_RAFT_NUMBER_MAX || m->index > TRIMARAN_RAFT_NUMBER_MAX
        || m->log_term > TRIMARAN_RAFT_NUMBER_MAX || m->entry_count > TRIMARAN_RAFT_NUMBER_MAX)
        return false;
    if (m->entry_count > 0 && m->type != TRIMARAN_RAFT_APPEND)
        return false;
    if (m->type == TRIMARAN_RAFT_APPEND)
        return entries_are_consistent(m);
    if (is_vote(m->type))
        return (m->index == 0) == (m->log_term == 0) && m->log_term <= m->term;
    if (m->type == TRIMARAN_RAFT_SNAPSHOT)
        return m->index > 0 && m->log_term > 0 && m->log_term <= m->term && m->members != NULL
               && trimaran_raft_members_error(m->members) == NULL;
    if (m->type == TRIMARAN_RAFT_APPEND_RESPONSE && m->reject)
        return m->hint_index <= m->index;
    return true;
}

/* A member that hears from its leader does not listen to who cannot (§4.2.3); under leases that is
 * a promise that outlives a restart. */
static bool ignores_candidate(const trimaran_raft *raft, const trimaran_raft_message *message)
{
    if (message->force)
        return false;
    if (raft->silent_ticks > 0)
        return true;
    return (raft->flags & TRIMARAN_RAFT_USE_CHECK_QUORUM) && trimaran_raft_has_recent_leader(raft);
}

/* Of a past term. Its sender learns the term of now, so that it does not stay behind. */
static int step_past(trimaran_raft *raft, const trimaran_raft_message *message)
{
    if (message->type == TRIMARAN_RAFT_SNAPSHOT && raft->role == TRIMARAN_RAFT_FOLLOWER
        && raft->install == TRIMARAN_RAFT_INSTALL_NONE)
        return trimaran_raft_handle_snapshot(raft, message);
    if (is_from_leader(message->type)) {
        trimaran_raft_message *response =
            trimaran_raft_send(raft, TRIMARAN_RAFT_APPEND_RESPONSE, message->from);
        response->reject = 1;
        response->index = message->index;
    } else if (is_vote(message->type)) {
        return trimaran_raft_handle_vote(raft, message);
    }
    return 0;
}

static int step_response(trimaran_raft *raft, const trimaran_raft_message *message)
{
    trimaran_raft_peer *peer = trimaran_raft_find(raft, message->from);

    if (message->type == TRIMARAN_RAFT_APPEND_RESPONSE)
        return trimaran_raft_handle_append_response(raft, peer, message);
    if (message->type == TRIMARAN_RAFT_HEARTBEAT_RESPONSE)
        return trimaran_raft_handle_heartbeat_response(raft, peer, message);
    trimaran_raft_handle_vote_response(raft, peer, message);
    return 0;
}

static int step_from_leader(trimaran_raft *raft, const trimaran_raft_message *message)
{
    /* There is one leader a term (§3.2): one of the two is no correct member. */
    if (raft->role == TRIMARAN_RAFT_LEADER
        || (raft->leader != 0 && raft->leader != message->from))
        return -EPROTO;
    if (raft->role != TRIMARAN_RAFT_FOLLOWER || raft->leader == 0)
        trimaran_raft_become_follower(raft, raft->term, message->from);
    raft->elapsed_ticks = 0;
    if (raft->hurried)
        trimaran_raft_restart_timer(raft);
    assert(raft->leader == message->from);
    if (message->type == TRIMARAN_RAFT_APPEND)
        return trimaran_raft_handle_append(raft, message);
    if (message->type == TRIMARAN_RAFT_HEARTBEAT)
        return trimaran_raft_handle_heartbeat(raft, message);
    /* One snapshot at a time. */
    return raft->install == TRIMARAN_RAFT_INSTALL_NONE
               ? trimaran_raft_handle_snapshot(raft, message)
               : 0;
}

static int step_present(trimaran_raft *raft, const trimaran_raft_message *message)
{
    if (is_vote(message->type))
        return trimaran_raft_handle_vote(raft, message);
    if (is_response(message->type))
        return step_response(raft, message);
    if (is_from_leader(message->type))
        return step_from_leader(raft, message);
    if (message->type == TRIMARAN_RAFT_TIMEOUT_NOW)
        trimaran_raft_handle_timeout_now(raft, message);
    else if (message->type == TRIMARAN_RAFT_READ_INDEX)
        trimaran_raft_handle_read_index(raft, message);
    else
        trimaran_raft_handle_read_index_response(raft, message);
    return 0;
}

int trimaran_raft_step(trimaran_raft *raft, const trimaran_raft_message *message)
{
    uint64_t before = raft->term;
    bool pre_answer = message->type == TRIMARAN_RAFT_PRE_VOTE_RESPONSE && !message->reject;
    int result;

    if (!is_well_formed(raft, message))
        return -EINVAL;
    if (is_response(message->type) && trimaran_raft_find(raft, message->from) == NULL)
        return -ENOENT;
    /* A heartbeat tells how much of what this member acknowledged is committed. */
    if (message->type == TRIMARAN_RAFT_HEARTBEAT && message->term >= raft->term
        && message->commit > trimaran_raft_last(raft))
        return -EPROTO;
    if (is_vote(message->type) && message->term >= raft->term && ignores_candidate(raft, message))
        return 0;
    if (message->term < raft->term)
        return step_past(raft, message);
    /* Nobody is in the term of a pre-vote yet. */
    if (message->term > raft->term && message->type != TRIMARAN_RAFT_PRE_VOTE && !pre_answer)
        trimaran_raft_become_follower(raft, message->term,
                                      is_from_leader(message->type) ? message->from : 0);
    result = step_present(raft, message);
    assert(raft->term >= before);
    return result;
}
