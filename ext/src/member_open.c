/* Who belongs to the group, as the data of a member has it when it starts. */
#include <errno.h>

#include "member_internal.h"

int trimaran_member_found(trimaran_raftlog *log, trimaran_mvcc *mvcc, trimaran_slice entry)
{
    trimaran_hard_state found = {.term = 1, .vote = 0, .commit = 1}, before;
    trimaran_configuration configuration;
    uint64_t applied, term;
    if (!trimaran_configuration_decode(entry, &configuration) || configuration.head.origin != 0)
        return -EINVAL;
    trimaran_raftlog_hard_state(log, &before);
    trimaran_state_applied(trimaran_mvcc_state(mvcc), &applied, &term);
    if (before.term != 0 || applied != 0 || trimaran_raftlog_last_index(log) != 0)
        return 0;
    trimaran_entry first = {.index = 1, .term = 1, .type = TRIMARAN_ENTRY_CONFIGURATION,
                            .size = (uint32_t)entry.size, .data = entry.data};
    return trimaran_raftlog_append(log, &found, &first, 1);
}

static int note_type(void *context, const trimaran_entry *entry)
{
    *(uint32_t *)context = entry->type;
    return 0;
}

/* Before there were groups, a log began with its leader's entry and no state named its members. */
static bool is_of_one(trimaran_raftlog *log, trimaran_mvcc *mvcc)
{
    uint64_t applied, term;
    uint32_t type = TRIMARAN_ENTRY_CONFIGURATION;
    trimaran_state_applied(trimaran_mvcc_state(mvcc), &applied, &term);
    if (applied > 0)
        return true;
    if (trimaran_raftlog_last_index(log) == 0)
        return false;
    return trimaran_raftlog_read(log, 1, 1, 1, note_type, &type) == 0 &&
           type == TRIMARAN_ENTRY_NORMAL;
}

int trimaran_member_load_group(trimaran_raftlog *log, trimaran_mvcc *mvcc, uint64_t id,
                               bool alone, trimaran_member_group *out)
{
    trimaran_slice row = trimaran_rowtable_get(trimaran_mvcc_rows(mvcc), trimaran_members_row);
    trimaran_buffer own = {0};
    *out = (trimaran_member_group){0};
    if (row.data == NULL) {
        if (!alone && !is_of_one(log, mvcc))
            return 0;
        trimaran_raft_members members = {.voters = &id, .voter_count = 1};
        trimaran_members_encode(&own, &members);
        trimaran_mvcc_set_row(mvcc, trimaran_members_row,
                              trimaran_slice_of(own.data, own.size));
        trimaran_buffer_free(&own);
        row = trimaran_rowtable_get(trimaran_mvcc_rows(mvcc), trimaran_members_row);
    }
    out->ids = trimaran_allocate(row.size);
    if (trimaran_members_decode(row, out->ids, &out->members))
        return 0;
    free(out->ids);
    return -EUCLEAN;
}
