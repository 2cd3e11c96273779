/* Applying what is committed: writes by the service, changes of the configuration here. */
#include "member_internal.h"

#include <stdio.h>

#include "failpoint.h"

enum { READ_BYTES = 8 << 20 };

static void save_members(trimaran_member *member)
{
    trimaran_raft_members members;
    trimaran_raft_members_get(member->raft, &members);
    member->members_row.size = 0;
    trimaran_members_encode(&member->members_row, &members);
    trimaran_mvcc_set_row(
        member->mvcc, trimaran_members_row,
        trimaran_slice_of(member->members_row.data, member->members_row.size));
}

static bool contains(const uint64_t *ids, uint32_t count, uint64_t id)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}

/* Only who is there can be removed; entries of no origin, written by hand, know what they do. */
static trimaran_error check_change(const trimaran_member *member,
                                   const trimaran_configuration *configuration)
{
    trimaran_raft_members members;
    trimaran_raft_members_get(member->raft, &members);
    for (size_t i = 0; i < configuration->count; i++) {
        uint64_t id = configuration->changes[i].id;
        if (configuration->head.origin != 0 &&
            configuration->changes[i].op == TRIMARAN_RAFT_REMOVE &&
            !contains(members.voters, members.voter_count, id) &&
            !contains(members.learners, members.learner_count, id))
            return TRIMARAN_ERROR_MEMBER_NOT_FOUND;
    }
    return TRIMARAN_ERROR_NONE;
}

/* The rows are set with the change or not at all. */
static trimaran_error change(trimaran_member *member,
                             const trimaran_configuration *configuration)
{
    trimaran_error error = check_change(member, configuration);
    if (error != TRIMARAN_ERROR_NONE)
        return error;
    if (configuration->count > 0) {
        if (trimaran_raft_change(member->raft, configuration->changes, configuration->count) != 0)
            return TRIMARAN_ERROR_UNHEALTHY; /* no voter would be left, or too many members */
        save_members(member);
    }
    trimaran_mvcc_set_rows(member->mvcc, configuration->rows);
    return TRIMARAN_ERROR_NONE;
}

static void apply_configuration(trimaran_member *member, const trimaran_entry *entry)
{
    trimaran_configuration configuration;
    trimaran_proposal *proposal = NULL;
    trimaran_error error = TRIMARAN_ERROR_NONE;
    trimaran_failpoint(TRIMARAN_FAIL_MEMBERSHIP_APPLY);
    if (entry->size == 0) {
        /* Nothing to leave is possible only where the one before it did not count. */
        if (trimaran_raft_change(member->raft, NULL, 0) == 0)
            save_members(member);
    } else {
        if (!trimaran_configuration_decode(trimaran_slice_of(entry->data, entry->size),
                                           &configuration)) {
            fprintf(stderr, "trimaran: log entry %llu is no configuration that this build knows: "
                            "run the version that wrote it\n",
                    (unsigned long long)entry->index);
            abort();
        }
        /* The entry that founds a cluster is nobody's. */
        if (configuration.head.origin == 0 ||
            trimaran_service_accepts(member->service, &configuration.head, &proposal))
            error = change(member, &configuration);
    }
    trimaran_state_set_applied(trimaran_mvcc_state(member->mvcc), entry->index, entry->term);
    trimaran_failpoint(TRIMARAN_FAIL_MEMBERSHIP_APPLIED);
    trimaran_service_configured(member->service, proposal, error);
}

static int apply_entry(void *context, const trimaran_entry *entry)
{
    trimaran_member *member = context;
    if (entry->type == TRIMARAN_ENTRY_CONFIGURATION)
        apply_configuration(member, entry);
    else
        trimaran_service_apply(member->service, entry->index, entry->term,
                               trimaran_slice_of(entry->data, entry->size));
    return 0;
}

void trimaran_member_apply(trimaran_member *member, const trimaran_raft_ready *ready)
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
