/* Configuration, status and time; raft_internal.h says where the rest is. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "raft_internal.h"

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

static int check_members(const trimaran_raft_config *config)
{
    const char *error = trimaran_raft_members_error(&config->members);

    if (config->id == 0)
        return refuse(-EINVAL, "the member's id is 0");
    if (error != NULL)
        return refuse(-EINVAL, error);
    if (config->members.voter_count + config->members.outgoing_count > 1 && config->read == NULL)
        return refuse(-EINVAL, "a group of several members needs to read its log");
    if (config->lease_us > 0 && !(config->flags & TRIMARAN_RAFT_USE_CHECK_QUORUM))
        return refuse(-EINVAL, "leases need check-quorum");
    return 0;
}

static int check_log(const trimaran_raft_config *config)
{
    uint64_t last_term = 0;

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
    return 0;
}

static int check_config(const trimaran_raft_config *config)
{
    int error;

    if (config->struct_size != sizeof *config)
        return refuse(-EINVAL, "the configuration is of another version of the library");
    if (config->heartbeat_ticks == 0 || config->election_ticks <= config->heartbeat_ticks)
        return refuse(-EINVAL, "election_ticks is not greater than heartbeat_ticks, which is not "
                               "greater than 0");
    error = check_log(config);
    return error != 0 ? error : check_members(config);
}

static void set_options(trimaran_raft *raft, const trimaran_raft_config *config)
{
    raft->id = config->id;
    raft->flags = config->flags;
    raft->election_ticks = config->election_ticks;
    raft->heartbeat_ticks = config->heartbeat_ticks;
    raft->max_uncommitted_bytes = config->max_uncommitted_bytes;
    raft->max_message_bytes = config->max_message_bytes > 0 ? config->max_message_bytes : 1 << 20;
    raft->max_inflight_messages =
        config->max_inflight_messages > 0 ? config->max_inflight_messages : 256;
    raft->max_inflight_bytes =
        config->max_inflight_bytes > 0 ? config->max_inflight_bytes : 64 << 20;
    raft->lease_us = config->lease_us;
    raft->term_of = config->term;
    raft->read = config->read;
    raft->log_context = config->log_context;
    raft->random = config->seed;
}

static int start(trimaran_raft *raft, const trimaran_raft_config *config)
{
    int error = trimaran_raftwindow_init(&raft->window, config->last_index + 1);

    if (error != 0)
        return refuse(error, "no memory");
    set_options(raft, config);
    raft->first_index = config->first_index;
    raft->before_index = UINT64_MAX;
    raft->before_term = trimaran_raft_term_of(raft, config->last_index);
    raft->before_index = config->last_index;
    raft->term = raft->shown_term = config->hard_state.term;
    raft->vote = config->hard_state.vote;
    raft->stable = raft->handed = config->last_index;
    raft->applied = raft->handed_commit = config->applied_index;
    /* What was applied had been committed, though the hard state may not have said so yet. */
    raft->commit = config->hard_state.commit;
    if (raft->commit < raft->applied)
        raft->commit = raft->applied;
    raft->handed_state = config->hard_state;
    trimaran_raft_members_set(raft, &config->members);
    /* It may have promised a leader its silence just before it stopped (§6.4.1). */
    if (raft->lease_us > 0 && raft->term > 0 && !trimaran_raft_is_alone(raft))
        raft->silent_ticks = raft->election_ticks;
    trimaran_raft_become_follower(raft, raft->term, 0);
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
    trimaran_raft_forget_fetched(raft);
    trimaran_raftwindow_free(&raft->window);
    for (uint32_t i = 0; i < raft->peer_count; i++)
        trimaran_raft_peer_free(&raft->peers[i]);
    free(raft->peers);
    free(raft->member_ids);
    free(raft->appends);
    free(raft->messages);
    free(raft->handed_messages);
    free(raft->held);
    free(raft->fetched);
    free(raft->requests);
    free(raft->reads);
    free(raft->handed_reads);
    free(raft);
}

void trimaran_raft_tick(trimaran_raft *raft)
{
    raft->tick(raft);
}

void trimaran_raft_compacted(trimaran_raft *raft, uint64_t first_index)
{
    assert(first_index <= raft->applied + 1);
    if (first_index > raft->first_index)
        raft->first_index = first_index;
}

void trimaran_raft_status_get(const trimaran_raft *raft, trimaran_raft_status *out)
{
    bool leads = raft->role == TRIMARAN_RAFT_LEADER;

    *out = (trimaran_raft_status){
        .role = raft->role,
        .id = raft->id,
        .leader = raft->leader,
        .term = raft->term,
        .vote = raft->vote,
        .commit = raft->commit,
        .applied = raft->applied,
        .stable = raft->stable,
        .last_index = trimaran_raft_last(raft),
        .uncommitted_bytes = raft->uncommitted_bytes,
        .transferee = raft->transferee,
        .pending_configuration =
            leads && raft->pending_configuration > raft->applied ? raft->pending_configuration : 0,
        .is_voter = raft->self != NULL && trimaran_raft_votes(raft->self),
        .is_learner = raft->self != NULL && raft->self->learner,
        .is_joint = raft->outgoing_count > 0,
        .lease_valid = trimaran_raft_committed_in_term(raft) && trimaran_raft_lease_is_valid(raft),
    };
}

int trimaran_raft_progress_get(const trimaran_raft *raft, uint64_t id, trimaran_raft_progress *out)
{
    const trimaran_raft_peer *peer = trimaran_raft_find(raft, id);

    if (raft->role != TRIMARAN_RAFT_LEADER || peer == NULL)
        return -ENOENT;
    *out = (trimaran_raft_progress){
        .match = peer->match,
        .next = peer->next,
        .state = peer->state,
        .active = peer->active,
        .is_learner = peer->learner,
        .inflight_messages = peer->inflight_count,
        .inflight_bytes = peer->inflight_bytes,
        .snapshot_index = peer->snapshot_index,
    };
    if (peer == raft->self) {
        out->next = trimaran_raft_last(raft) + 1;
        out->state = TRIMARAN_RAFT_REPLICATE;
    }
    return 0;
}
