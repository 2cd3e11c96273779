/* The MVCC state: opening, restoring, and the two writes everything else is made of. */
#include "mvcc_internal.h"

#include <errno.h>

trimaran_write trimaran_write_begin(trimaran_mvcc *mvcc)
{
    return (trimaran_write){mvcc, mvcc->revision + 1, 0};
}

void trimaran_write_end(trimaran_write *write)
{
    trimaran_mvcc *mvcc = write->mvcc;
    if (write->count == 0)
        return;
    mvcc->revision = write->main;
    if (mvcc->observer != NULL) {
        size_t count = (size_t)write->count;
        mvcc->observer(mvcc->observer_context, write->main,
                       trimaran_state_tail(mvcc->state, count), count);
    }
}

void trimaran_write_put(trimaran_write *write, trimaran_slice key, trimaran_slice value,
                        int64_t lease)
{
    trimaran_mvcc *mvcc = write->mvcc;
    trimaran_key_record *record = trimaran_keyindex_add(mvcc->index, key);
    const trimaran_version *last = trimaran_record_live(record, write->main);
    trimaran_version version = {.main = write->main, .sub = write->count};
    version.create = last ? last->create : write->main;
    version.version = last ? last->version + 1 : 1;
    trimaran_key_value kv = {key, value, version.create, write->main, version.version, lease};
    trimaran_state_append(mvcc->state, write->main, write->count, false, &kv);
    trimaran_record_append(record, &version);
    trimaran_leasetable_attach(&mvcc->leases, record, lease);
    write->count++;
}

void trimaran_write_delete(trimaran_write *write, trimaran_key_record *record)
{
    trimaran_mvcc *mvcc = write->mvcc;
    trimaran_version version = {.main = write->main, .sub = write->count, .tombstone = 1};
    trimaran_key_value kv = {.key = trimaran_record_key(record)};
    trimaran_state_append(mvcc->state, write->main, write->count, true, &kv);
    trimaran_record_append(record, &version);
    trimaran_leasetable_attach(&mvcc->leases, record, 0);
    write->count++;
}

int trimaran_mvcc_open(const trimaran_mvcc_options *options, trimaran_mvcc **out)
{
    trimaran_mvcc *mvcc = trimaran_allocate(sizeof *mvcc);
    *mvcc = (trimaran_mvcc){.revision = 1, .compact_revision = -1};
    mvcc->cluster_id = options->cluster_id;
    mvcc->member_id = options->member_id;
    int code = trimaran_state_open(options->directory, options->map_size_bytes, &mvcc->state);
    if (code != 0) {
        free(mvcc);
        return code;
    }
    mvcc->index = trimaran_keyindex_create(options->hash_seed);
    trimaran_leasetable_create(&mvcc->leases);
    trimaran_restore(mvcc);
    *out = mvcc;
    return 0;
}

static void free_memory(trimaran_mvcc *mvcc)
{
    trimaran_origintable_free(&mvcc->origins);
    trimaran_rowtable_free(&mvcc->rows);
    trimaran_leasetable_destroy(&mvcc->leases);
    trimaran_keyindex_destroy(mvcc->index);
    trimaran_arena_free(&mvcc->arena);
    trimaran_buffer_free(&mvcc->compact_from);
    free(mvcc->alarms);
    free(mvcc);
}

void trimaran_mvcc_close(trimaran_mvcc *mvcc)
{
    trimaran_origintable_save(&mvcc->origins, mvcc->state);
    trimaran_state_close(mvcc->state);
    free_memory(mvcc);
}

void trimaran_mvcc_abandon(trimaran_mvcc *mvcc)
{
    trimaran_state_abandon(mvcc->state);
    free_memory(mvcc);
}

void trimaran_mvcc_replace(trimaran_mvcc *mvcc, trimaran_mvcc *fresh)
{
    trimaran_mvcc before = *mvcc;
    trimaran_state_succeed(fresh->state, mvcc->state);
    *mvcc = *fresh;
    mvcc->cluster_id = before.cluster_id;
    mvcc->member_id = before.member_id;
    mvcc->term = before.term;
    mvcc->observer = before.observer;
    mvcc->observer_context = before.observer_context;
    /* Whoever looks at the version of the rows finds that they are others. */
    mvcc->rows.version += before.rows.version + 1;
    *fresh = before;
    fresh->observer = NULL;
}

void trimaran_mvcc_observe(trimaran_mvcc *mvcc, trimaran_mvcc_observer observer, void *context)
{
    mvcc->observer = observer;
    mvcc->observer_context = context;
}

trimaran_state *trimaran_mvcc_state(trimaran_mvcc *mvcc)
{
    return mvcc->state;
}

int64_t trimaran_mvcc_revision(const trimaran_mvcc *mvcc)
{
    return mvcc->revision;
}

int64_t trimaran_mvcc_compact_revision(const trimaran_mvcc *mvcc)
{
    return mvcc->compact_revision;
}

void trimaran_mvcc_set_term(trimaran_mvcc *mvcc, uint64_t term)
{
    mvcc->term = term;
}

trimaran_header trimaran_mvcc_header(const trimaran_mvcc *mvcc)
{
    return (trimaran_header){mvcc->cluster_id, mvcc->member_id, mvcc->term, mvcc->revision};
}

const trimaran_leasetable *trimaran_mvcc_leases(const trimaran_mvcc *mvcc)
{
    return &mvcc->leases;
}

size_t trimaran_mvcc_alarms(const trimaran_mvcc *mvcc, const trimaran_alarm **out)
{
    *out = mvcc->alarms;
    return mvcc->alarm_count;
}

bool trimaran_mvcc_has_alarm(const trimaran_mvcc *mvcc, int32_t kind)
{
    for (size_t i = 0; i < mvcc->alarm_count; i++)
        if (mvcc->alarms[i].kind == kind)
            return true;
    return false;
}

bool trimaran_mvcc_get(trimaran_mvcc *mvcc, trimaran_slice key, int64_t revision,
                       trimaran_slice *out)
{
    trimaran_key_record *record;
    const trimaran_version *version = trimaran_find_live(mvcc, key, revision, &record);
    if (version == NULL)
        return false;
    *out = trimaran_state_read(mvcc->state, version->main, version->sub);
    return true;
}

trimaran_slice trimaran_change_key(const trimaran_change *change)
{
    trimaran_proto_reader reader =
        trimaran_proto_read(trimaran_slice_of(change->data, change->size));
    trimaran_proto_field field;
    while (trimaran_proto_next(&reader, &field) > 0)
        if (field.tag == 1)
            return field.bytes;
    abort(); /* every stored change names its key */
}

void trimaran_mvcc_history(trimaran_mvcc *mvcc, trimaran_slice key, int64_t from,
                           trimaran_change_visitor visit, void *context)
{
    const trimaran_key_record *record = trimaran_keyindex_find(mvcc->index, key);
    const trimaran_key_value dead = {.key = key};
    trimaran_buffer tombstone = {0};
    uint8_t *end = trimaran_put_key_value(
        trimaran_buffer_reserve(&tombstone, trimaran_key_value_size(&dead)), &dead);
    tombstone.size = (size_t)(end - tombstone.data);
    /* A key that changes all the time has a long history, and each chunk of it starts anew. */
    const trimaran_version *before = record ? trimaran_record_at(record, from - 1) : NULL;
    uint32_t first = before ? (uint32_t)(before - record->versions) + 1 : 0;
    for (uint32_t i = first; record != NULL && i < record->count; i++) {
        const trimaran_version *version = &record->versions[i];
        trimaran_slice stored = trimaran_slice_of(tombstone.data, tombstone.size);
        if (!version->tombstone)
            stored = trimaran_state_read(mvcc->state, version->main, version->sub);
        trimaran_change change = {version->main, version->sub, version->tombstone != 0,
                                  (uint32_t)stored.size, stored.data};
        if (!visit(context, &change))
            break;
    }
    trimaran_buffer_free(&tombstone);
}
