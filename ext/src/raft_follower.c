/* What a follower does with its leader's messages (§3.5, §5). The step has dealt with terms: these
 * are of this term and from its one leader. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "raft_internal.h"

static trimaran_raft_message *accept(trimaran_raft *raft, uint64_t to, uint64_t index)
{
    trimaran_raft_message *response =
        trimaran_raft_send_durably(raft, TRIMARAN_RAFT_APPEND_RESPONSE, to);

    response->index = index;
    return response;
}

/* The leader is told the last place where the logs may agree: what is after it here is of terms
 * later than the leader's entry, or does not exist. */
static void refuse(trimaran_raft *raft, const trimaran_raft_message *message)
{
    uint64_t last = trimaran_raft_last(raft);
    uint64_t hint = message->index < last ? message->index : last;
    trimaran_raft_message *response =
        trimaran_raft_send(raft, TRIMARAN_RAFT_APPEND_RESPONSE, message->from);

    if (hint > raft->commit)
        hint = trimaran_raft_last_of_term(raft, raft->commit, hint, message->log_term);
    if (hint < raft->commit)
        hint = raft->commit;
    response->reject = 1;
    response->index = message->index;
    response->hint_index = hint;
    response->hint_term = trimaran_raft_term_of(raft, hint);
}

/* The leader of a term has every committed entry (§3.6.3). If its log has another one, there are
 * two truths in the cluster, and this member must not add to either. */
static void check_committed(const trimaran_raft *raft, uint64_t index, uint64_t term)
{
    bool in_memory = index >= raft->window.first || index == raft->before_index;

    if (index > raft->commit || !in_memory || trimaran_raft_term_of(raft, index) == term)
        return;
    fprintf(stderr,
            "trimaran: the leader's log has another entry than the committed one at %llu: the "
            "cluster is corrupt; stop all members and restore them from one snapshot\n",
            (unsigned long long)index);
    abort();
}

int trimaran_raft_handle_append(trimaran_raft *raft, const trimaran_raft_message *message)
{
    uint64_t term, last = message->index + message->entry_count;

    check_committed(raft, message->index, message->log_term);
    for (size_t i = 0; i < message->entry_count; i++)
        check_committed(raft, message->entries[i].index, message->entries[i].term);
    if (message->index < raft->commit) {
        accept(raft, message->from, raft->commit);
        return 0;
    }
    if (trimaran_raft_term_at(raft, message->index, &term) != 0 || term != message->log_term) {
        refuse(raft, message);
        return 0;
    }
    trimaran_raft_take_entries(raft, message->entries, message->entry_count);
    assert(trimaran_raft_last(raft) >= last);
    trimaran_raft_commit_to(raft, message->commit < last ? message->commit : last);
    accept(raft, message->from, last);
    return 0;
}

int trimaran_raft_handle_heartbeat(trimaran_raft *raft, const trimaran_raft_message *message)
{
    trimaran_raft_message *response;

    trimaran_raft_commit_to(raft, message->commit);
    response = trimaran_raft_send(raft, TRIMARAN_RAFT_HEARTBEAT_RESPONSE, message->from);
    response->context = message->context;
    return 0;
}

/* A snapshot is of committed entries, whoever sent it (§5). */
int trimaran_raft_handle_snapshot(trimaran_raft *raft, const trimaran_raft_message *message)
{
    uint64_t term;

    if (message->index <= raft->commit) {
        accept(raft, message->from, raft->commit);
        return 0;
    }
    if (trimaran_raft_term_at(raft, message->index, &term) == 0 && term == message->log_term) {
        /* The log has all of it: it only learns that it is committed. */
        trimaran_raft_commit_to(raft, message->index);
        accept(raft, message->from, raft->commit);
        return 0;
    }
    trimaran_raft_restart_log(raft, message->index, message->log_term);
    trimaran_raft_members_set(raft, message->members);
    raft->install = TRIMARAN_RAFT_INSTALL_WANTED;
    raft->install_index = message->index;
    raft->install_term = message->log_term;
    accept(raft, message->from, message->index);
    return 0;
}
