/* Taking over the state that a leader has sent, in the place of one's own. */
#include <errno.h>

#include "install.h"
#include "member_internal.h"

static int reset_log(void *context, const trimaran_hard_state *hard_state, uint64_t index,
                     uint64_t term)
{
    trimaran_member *member = context;
    return member->log.reset(member->log.context, hard_state, index, term);
}

/* What was on its way to the log is dropped with it, and raft counts it as done. */
static void forget_writes(trimaran_member *member)
{
    member->flying_count = 0;
    trimaran_member_unstage(member);
}

void trimaran_member_try_install(trimaran_member *member)
{
    trimaran_pending_install *pending = &member->install;
    if (!pending->wanted)
        return;
    trimaran_install install = {
        .directory = pending->directory,
        .mvcc = member->mvcc,
        .fresh = pending->fresh,
        .hub = pending->hub,
        .reset = reset_log,
        .context = member,
        .hard_state = &pending->hard_state,
    };
    /* On a full disk everything stays as it was, and the next turn tries again. */
    if (trimaran_install_run(&install) != 0)
        return;
    pending->wanted = false;
    pending->fresh = NULL;
    forget_writes(member);
    trimaran_service_installed(member->service);
    trimaran_raft_snapshot_installed(member->raft);
}

void trimaran_member_want_install(trimaran_member *member, const trimaran_raft_ready *ready)
{
    uint64_t index, term;
    trimaran_pending_install *pending = &member->install;
    assert(pending->fresh != NULL);
    trimaran_state_applied(trimaran_mvcc_state(pending->fresh), &index, &term);
    assert(index == ready->install_index);
    assert(term == ready->install_term);
    pending->wanted = true;
    pending->hard_state = *ready->hard_state;
    trimaran_member_try_install(member);
}

bool trimaran_member_is_installing(const trimaran_member *member)
{
    return member->install.wanted;
}

bool trimaran_member_install(trimaran_member *member, const trimaran_member_snapshot *snapshot)
{
    trimaran_raft_message message = {.type = TRIMARAN_RAFT_SNAPSHOT, .from = snapshot->from,
                                     .to = member->status.id, .term = snapshot->term};
    trimaran_raft_members members;
    trimaran_pending_install *pending = &member->install;
    trimaran_slice row =
        trimaran_rowtable_get(trimaran_mvcc_rows(snapshot->fresh), trimaran_members_row);
    if (pending->wanted || row.data == NULL)
        return false;
    uint64_t *ids = trimaran_allocate(row.size);
    trimaran_state_applied(trimaran_mvcc_state(snapshot->fresh), &message.index,
                           &message.log_term);
    message.members = &members;
    bool taken = trimaran_members_decode(row, ids, &members);
    if (taken) {
        *pending = (trimaran_pending_install){.fresh = snapshot->fresh, .hub = snapshot->hub,
                                              .directory = snapshot->directory};
        trimaran_raft_step(member->raft, &message);
        trimaran_member_drive(member);
        /* Taken where raft has asked for it; what it did not ask for is older than what is here. */
        taken = pending->wanted || pending->fresh == NULL;
        if (!taken)
            pending->fresh = NULL;
    }
    free(ids);
    return taken;
}
