/* The turn of a member; see member.h. */
#include "member_internal.h"

#include <errno.h>

/* In a group of one, what is applied is everything that was ever acknowledged, once an entry of
 * this term is: nobody else could have acknowledged more. */
static bool is_alone_and_current(const trimaran_member *member)
{
    trimaran_raft_members members;
    uint64_t applied, term;
    if (member->status.role != TRIMARAN_RAFT_LEADER)
        return false;
    trimaran_raft_members_get(member->raft, &members);
    trimaran_state_applied(trimaran_mvcc_state(member->mvcc), &applied, &term);
    return members.voter_count == 1 && members.voters[0] == member->status.id &&
           members.outgoing_count == 0 && term == member->status.term &&
           applied == member->status.commit;
}

static void update_mode(trimaran_member *member)
{
    bool was_learner = member->status.is_learner, was_voter = member->status.is_voter;
    trimaran_raft_status_get(member->raft, &member->status);
    if (member->status.is_learner != was_learner || member->status.is_voter != was_voter)
        member->status_version++;
    trimaran_service_mode mode = {
        .reads_at_once = is_alone_and_current(member),
        .is_learner = member->status.is_learner,
        .has_leader = member->status.leader != 0,
    };
    trimaran_service_set_mode(member->service, &mode);
}

/* Whom to ask and what was asked of whom may be void with another leader or term. */
static void note_status(trimaran_member *member)
{
    uint64_t leader = member->status.leader;
    member->status_version++;
    trimaran_raft_status_get(member->raft, &member->status);
    if (member->status.leader != leader && member->status.leader != 0)
        member->counts.leader_changes++;
    trimaran_mvcc_set_term(member->mvcc, member->status.term);
    trimaran_readqueue_ask_again(trimaran_service_reads(member->service));
}

static void note_reads(trimaran_member *member, const trimaran_raft_ready *ready)
{
    for (size_t i = 0; i < ready->read_state_count; i++)
        trimaran_readqueue_answer(trimaran_service_reads(member->service),
                                  ready->read_states[i].context, ready->read_states[i].index);
}

static void handle_ready(trimaran_member *member)
{
    trimaran_raft_ready ready;
    bool durable = false;
    trimaran_raft_ready_get(member->raft, &ready);
    if (ready.message_count > 0)
        trimaran_member_post_messages(member, &ready);
    if (ready.must_append)
        durable = trimaran_member_write(member, &ready);
    note_reads(member, &ready);
    if (ready.status_changed)
        note_status(member);
    trimaran_member_apply(member, &ready);
    if (ready.committed_last != 0)
        trimaran_raft_applied(member->raft, ready.committed_last);
    if (durable)
        trimaran_raft_append_done(member->raft, ready.number);
    if (ready.install)
        trimaran_member_want_install(member, &ready);
}

/* While nobody knows a leader, what arrives is one batch a tick. */
static void cut(trimaran_member *member)
{
    trimaran_proposals *proposals = trimaran_service_proposals(member->service);
    if (member->status.leader == 0 && member->cut_tick == proposals->tick)
        return;
    member->cut_tick = proposals->tick;
    trimaran_proposals_cut(proposals);
}

void trimaran_member_drive(trimaran_member *member)
{
    trimaran_member_try_install(member);
    trimaran_member_collect(member);
    do {
        trimaran_raft_status_get(member->raft, &member->status);
        trimaran_member_send_proposals(member);
        trimaran_member_ask_reads(member);
        while (trimaran_raft_has_ready(member->raft))
            handle_ready(member);
        trimaran_service_answer_reads(member->service);
        /* What waited for a leader, or for a question to be answered before its own, goes in the
         * same turn. */
    } while (trimaran_member_ask_reads(member) || trimaran_member_has_unsent(member));
}

bool trimaran_member_turn(trimaran_member *member)
{
    if (member->snapshots_taken)
        member->snapshot_count = 0;
    member->snapshots_taken = false;
    trimaran_member_write_staged(member);
    cut(member);
    trimaran_member_drive(member);
    update_mode(member);
    return trimaran_service_step(member->service) || member->staged.number != 0;
}

void trimaran_member_tick(trimaran_member *member)
{
    trimaran_readqueue *reads = trimaran_service_reads(member->service);
    uint64_t tick = trimaran_service_proposals(member->service)->tick + 1;
    trimaran_raft_tick(member->raft);
    trimaran_service_tick(member->service);
    if (reads->answered != reads->context &&
        tick - reads->asked_tick > member->election_ticks / 2)
        trimaran_readqueue_ask_again(reads);
}

trimaran_member *trimaran_member_create(trimaran_raft *raft, const trimaran_member_log *log,
                                        trimaran_mvcc *mvcc, trimaran_service *service,
                                        uint32_t election_ticks)
{
    trimaran_member *member = trimaran_allocate(sizeof *member);
    *member = (trimaran_member){.raft = raft, .log = *log, .mvcc = mvcc, .service = service,
                                .election_ticks = election_ticks, .cut_tick = UINT64_MAX};
    trimaran_raft_status_get(raft, &member->status);
    trimaran_mvcc_set_term(mvcc, member->status.term);
    update_mode(member);
    return member;
}

uint64_t trimaran_member_status_version(const trimaran_member *member)
{
    return member->status_version;
}

void trimaran_member_destroy(trimaran_member *member)
{
    for (size_t i = 0; i < member->staged.count; i++)
        trimaran_payload_release(member->staged.entries[i].payload);
    for (size_t i = 0; i < member->post_count; i++)
        trimaran_buffer_free(&member->posts[i].frames);
    free(member->posts);
    free(member->staged.entries);
    free(member->flying);
    free(member->snapshots);
    free(member->entries.entries);
    trimaran_buffer_free(&member->members_row);
    free(member);
}

void trimaran_member_compacted(trimaran_member *member, uint64_t index)
{
    trimaran_raft_compacted(member->raft, index + 1);
}

int trimaran_member_log_error(const trimaran_member *member)
{
    return member->log_error;
}

trimaran_member_counts trimaran_member_count(const trimaran_member *member)
{
    return member->counts;
}
