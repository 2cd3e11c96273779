/* Configuration entries and the members' row; see configuration.h. */
#include "configuration.h"

enum { MEMBERS_VERSION = 1, CHANGE_SIZE = 9 };

const trimaran_slice trimaran_members_row = {(const uint8_t *)"raft/members", 12};

static uint16_t read_u16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

bool trimaran_configuration_decode(trimaran_slice entry, trimaran_configuration *out)
{
    if (entry.size < TRIMARAN_BATCH_HEAD + 2 || entry.data[0] != TRIMARAN_CONFIGURATION_VERSION)
        return false;
    out->head = trimaran_proposal_read_head(entry.data);
    out->count = read_u16(entry.data + TRIMARAN_BATCH_HEAD);
    size_t at = TRIMARAN_BATCH_HEAD + 2, changes_size = out->count * CHANGE_SIZE;
    if (out->count > TRIMARAN_CONFIGURATION_CHANGES_MAX || entry.size - at < changes_size)
        return false;
    for (size_t i = 0; i < out->count; i++, at += CHANGE_SIZE) {
        out->changes[i] = (trimaran_raft_change_item){
            .op = entry.data[at], .id = trimaran_read_u64(entry.data + at + 1)};
        if (out->changes[i].op < TRIMARAN_RAFT_ADD_VOTER ||
            out->changes[i].op > TRIMARAN_RAFT_REMOVE || out->changes[i].id == 0)
            return false;
    }
    out->rows = trimaran_slice_of(entry.data + at, entry.size - at);
    return trimaran_rows_check(out->rows);
}

static void put_group(trimaran_buffer *out, const uint64_t *ids, uint32_t count)
{
    assert(count <= UINT16_MAX);
    uint8_t *at = trimaran_buffer_reserve(out, 2 + 8 * (size_t)count);
    *at++ = (uint8_t)count;
    *at++ = (uint8_t)(count >> 8);
    for (uint32_t i = 0; i < count; i++)
        at = trimaran_put_u64(at, ids[i]);
    out->size = (size_t)(at - out->data);
}

void trimaran_members_encode(trimaran_buffer *out, const trimaran_raft_members *members)
{
    uint8_t head[2] = {MEMBERS_VERSION, members->auto_leave != 0};
    trimaran_buffer_append(out, head, sizeof head);
    put_group(out, members->voters, members->voter_count);
    put_group(out, members->outgoing, members->outgoing_count);
    put_group(out, members->learners, members->learner_count);
    put_group(out, members->learners_next, members->learner_next_count);
}

static bool take_group(trimaran_slice *row, uint64_t **space, const uint64_t **ids,
                       uint32_t *count)
{
    if (row->size < 2)
        return false;
    *count = read_u16(row->data);
    *ids = *space;
    size_t size = 2 + 8 * (size_t)*count;
    if (row->size < size)
        return false;
    for (uint32_t i = 0; i < *count; i++)
        *(*space)++ = trimaran_read_u64(row->data + 2 + 8 * (size_t)i);
    *row = trimaran_slice_of(row->data + size, row->size - size);
    return true;
}

bool trimaran_members_decode(trimaran_slice row, uint64_t *ids, trimaran_raft_members *out)
{
    *out = (trimaran_raft_members){0};
    if (row.size < 2 || row.data[0] != MEMBERS_VERSION)
        return false;
    out->auto_leave = row.data[1];
    row = trimaran_slice_of(row.data + 2, row.size - 2);
    return take_group(&row, &ids, &out->voters, &out->voter_count) &&
           take_group(&row, &ids, &out->outgoing, &out->outgoing_count) &&
           take_group(&row, &ids, &out->learners, &out->learner_count) &&
           take_group(&row, &ids, &out->learners_next, &out->learner_next_count) &&
           row.size == 0;
}
