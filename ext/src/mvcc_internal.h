/* What the files of the MVCC state share among themselves. */
#ifndef TRIMARAN_MVCC_INTERNAL_H
#define TRIMARAN_MVCC_INTERNAL_H

#include "mvcc.h"

struct trimaran_mvcc {
    trimaran_keyindex *index;
    trimaran_state *state;
    trimaran_leasetable leases;
    trimaran_origintable origins;
    trimaran_rowtable rows;
    int64_t revision, compact_revision;
    uint64_t cluster_id, member_id, term;
    trimaran_alarm *alarms;
    size_t alarm_count;
    trimaran_mvcc_observer observer;
    void *observer_context;
    trimaran_arena arena;         /* of the request being applied or read */
    trimaran_buffer compact_from; /* the key at which the compaction under way goes on */
    bool compacting;
};

/* The changes of one revision while they are made. */
typedef struct trimaran_write {
    trimaran_mvcc *mvcc;
    int64_t main;
    int32_t count;
} trimaran_write;

trimaran_write trimaran_write_begin(trimaran_mvcc *mvcc);
/* Makes the revision visible and tells the observer, where anything changed. */
void trimaran_write_end(trimaran_write *write);
void trimaran_write_put(trimaran_write *write, trimaran_slice key, trimaran_slice value,
                        int64_t lease);
void trimaran_write_delete(trimaran_write *write, trimaran_key_record *record);

/* The revision that reads inside write see: its own once it has changed something. */
static inline int64_t trimaran_write_revision(const trimaran_write *write)
{
    return write->count > 0 ? write->main : write->main - 1;
}

/* Operations inside or outside a txn: the response's fields go to out with the given header. A NULL
 * out leaves the answer away. */
typedef struct trimaran_scope {
    trimaran_mvcc *mvcc;
    trimaran_write *write; /* NULL where only reads are allowed */
    bool nested;           /* headers of operations in a txn carry only a revision */
} trimaran_scope;

void trimaran_scope_header(const trimaran_scope *scope, int64_t revision, trimaran_buffer *out);
void trimaran_scope_range(const trimaran_scope *scope, const trimaran_range_request *request,
                          trimaran_buffer *out);
void trimaran_scope_put(const trimaran_scope *scope, const trimaran_put_request *request,
                        trimaran_buffer *out);
void trimaran_scope_delete(const trimaran_scope *scope, const trimaran_delete_request *request,
                           trimaran_buffer *out);
trimaran_error trimaran_scope_txn(const trimaran_scope *scope,
                                  const trimaran_txn_request *request, trimaran_buffer *out);

/* Checks at the time of applying. */
trimaran_error trimaran_apply_check_put(const trimaran_mvcc *mvcc,
                                        const trimaran_put_request *request);
trimaran_error trimaran_apply_check_range(const trimaran_mvcc *mvcc,
                                          const trimaran_range_request *request);

trimaran_error trimaran_compact_begin(trimaran_mvcc *mvcc, int64_t revision);
void trimaran_compact_restore(trimaran_mvcc *mvcc);
trimaran_error trimaran_apply_alarm(trimaran_mvcc *mvcc, trimaran_slice request);
trimaran_error trimaran_apply_rows(trimaran_mvcc *mvcc, trimaran_slice request);
trimaran_error trimaran_apply_checkpoint(trimaran_mvcc *mvcc, trimaran_slice request);
void trimaran_restore(trimaran_mvcc *mvcc);
void trimaran_restore_rows(trimaran_mvcc *mvcc);

/* The newest version of the key at revision, read only where it lives. */
static inline const trimaran_version *trimaran_find_live(const trimaran_mvcc *mvcc,
                                                         trimaran_slice key, int64_t revision,
                                                         trimaran_key_record **record)
{
    *record = trimaran_keyindex_find(mvcc->index, key);
    return *record == NULL ? NULL : trimaran_record_live(*record, revision);
}

#endif
