/* The replicated state of the store: keys at every retained revision, leases, alarms.
 *
 * `apply` takes committed operations in log order and is deterministic: the same operations give
 * the same state and the same answers on every member. Reads see all that was applied.
 */
#ifndef TRIMARAN_MVCC_H
#define TRIMARAN_MVCC_H

#include "codec.h"
#include "leasetable.h"
#include "origintable.h"
#include "rowtable.h"
#include "state.h"

typedef struct trimaran_mvcc trimaran_mvcc;

/* Kinds of operation in a log entry. The numbers are stored on disk. */
typedef enum trimaran_op_kind {
    TRIMARAN_APPLY_PUT = 1,
    TRIMARAN_APPLY_DELETE = 2,
    TRIMARAN_APPLY_TXN = 3,
    TRIMARAN_APPLY_COMPACT = 4,
    TRIMARAN_APPLY_LEASE_GRANT = 5,  /* LeaseGrantRequest: TTL=1 ID=2, both set */
    TRIMARAN_APPLY_LEASE_REVOKE = 6, /* LeaseRevokeRequest: ID=1 */
    TRIMARAN_APPLY_ALARM = 7,        /* AlarmRequest: action=1 memberID=2 alarm=3 */
    TRIMARAN_APPLY_ROWS = 8,         /* rows of the cluster, as rowtable.h says */
    /* Both begin with 64 bits of the leader's term, and count in an entry of that term only. */
    TRIMARAN_APPLY_LEASE_CHECKPOINT = 9, /* LeaseCheckpointRequest: checkpoints=1 {ID=1 TTL=2} */
    TRIMARAN_APPLY_LEASE_EXPIRE = 10,    /* LeaseRevokeRequest */
} trimaran_op_kind;

enum { TRIMARAN_ALARM_NO_SPACE = 1, TRIMARAN_ALARM_CORRUPT = 2 };

/* Told of the changes of one revision right after they were applied. */
typedef void (*trimaran_mvcc_observer)(void *context, int64_t revision,
                                       const trimaran_change *changes, size_t count);

typedef struct trimaran_mvcc_options {
    const char *directory;
    size_t map_size_bytes;
    uint64_t hash_seed;
    uint64_t cluster_id, member_id;
} trimaran_mvcc_options;

int trimaran_mvcc_open(const trimaran_mvcc_options *options, trimaran_mvcc **out);
void trimaran_mvcc_close(trimaran_mvcc *mvcc);
/* Close as a crash would: what is not committed is left to the log. */
void trimaran_mvcc_abandon(trimaran_mvcc *mvcc);
/* Put what fresh holds, opened on a later state, in the place of what mvcc holds, and the other way
 * round: fresh is then to be abandoned. Who mvcc belongs to, its term and its observer stay. */
void trimaran_mvcc_replace(trimaran_mvcc *mvcc, trimaran_mvcc *fresh);
void trimaran_mvcc_observe(trimaran_mvcc *mvcc, trimaran_mvcc_observer observer, void *context);

trimaran_state *trimaran_mvcc_state(trimaran_mvcc *mvcc);
int64_t trimaran_mvcc_revision(const trimaran_mvcc *mvcc);
/* -1 before the first compaction. */
int64_t trimaran_mvcc_compact_revision(const trimaran_mvcc *mvcc);
void trimaran_mvcc_set_term(trimaran_mvcc *mvcc, uint64_t term);
trimaran_header trimaran_mvcc_header(const trimaran_mvcc *mvcc);

/* The rows that describe the cluster, as applied. */
const trimaran_rowtable *trimaran_mvcc_rows(const trimaran_mvcc *mvcc);
void trimaran_mvcc_set_row(trimaran_mvcc *mvcc, trimaran_slice key, trimaran_slice value);
/* Set rows in the form they travel in, which were checked. */
void trimaran_mvcc_set_rows(trimaran_mvcc *mvcc, trimaran_slice rows);
/* What each member's proposals have reached. */
trimaran_origintable *trimaran_mvcc_origins(trimaran_mvcc *mvcc);
/* As trimaran_state_seal, with everything in the batch that belongs to its applied index. */
bool trimaran_mvcc_seal(trimaran_mvcc *mvcc);

/* Apply one operation. Where out is not NULL the answer to KV operations is appended to it as the
 * method's response message; on an error nothing is. */
trimaran_error trimaran_mvcc_apply(trimaran_mvcc *mvcc, trimaran_op_kind kind,
                                   trimaran_slice request, trimaran_buffer *out);

/* Answer a read from what is applied now. */
trimaran_error trimaran_mvcc_range(trimaran_mvcc *mvcc, const trimaran_range_request *request,
                                   trimaran_buffer *out);
trimaran_error trimaran_mvcc_read_txn(trimaran_mvcc *mvcc, const trimaran_txn_request *request,
                                      trimaran_buffer *out);

/* The stored bytes of key as of main revision `revision`; false where it does not exist then. */
bool trimaran_mvcc_get(trimaran_mvcc *mvcc, trimaran_slice key, int64_t revision,
                       trimaran_slice *out);

/* Visit the changes of one key with main revision >= from in order, until visit returns false. */
void trimaran_mvcc_history(trimaran_mvcc *mvcc, trimaran_slice key, int64_t from,
                           trimaran_change_visitor visit, void *context);

/* The key of a stored change. */
trimaran_slice trimaran_change_key(const trimaran_change *change);

/* One bounded step of a compaction under way. Returns false where there is none. */
bool trimaran_mvcc_compact_step(trimaran_mvcc *mvcc, size_t keys);
bool trimaran_mvcc_compacting(const trimaran_mvcc *mvcc);

const trimaran_leasetable *trimaran_mvcc_leases(const trimaran_mvcc *mvcc);
/* Raised alarms as (member, kind) pairs; returns how many there are. */
typedef struct trimaran_alarm {
    uint64_t member_id;
    int32_t kind;
} trimaran_alarm;
size_t trimaran_mvcc_alarms(const trimaran_mvcc *mvcc, const trimaran_alarm **out);
bool trimaran_mvcc_has_alarm(const trimaran_mvcc *mvcc, int32_t kind);

#endif
