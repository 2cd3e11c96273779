/* The hot messages of etcd's v3 protocol as C structures, decoded without copying.
 *
 * Byte fields are slices of the request; arrays come from an arena. Field numbers are those of
 * etcd's rpc.proto.
 */
#ifndef TRIMARAN_CODEC_H
#define TRIMARAN_CODEC_H

#include "proto.h"

/* Rows of core/errors.py's table; TRIMARAN_ERROR_NONE is success. */
#include "etcd_errors.h"

#define TRIMARAN_ERROR_ENUM(name, code, text) TRIMARAN_ERROR_##name,
typedef enum trimaran_error {
    TRIMARAN_ERROR_NONE,
    TRIMARAN_ETCD_ERRORS(TRIMARAN_ERROR_ENUM)
    TRIMARAN_ERROR_MALFORMED, /* not a protobuf message of the method */
    TRIMARAN_ERROR_COUNT
} trimaran_error;

int trimaran_error_status(trimaran_error error);
const char *trimaran_error_text(trimaran_error error);

typedef struct trimaran_put_request {
    trimaran_slice key, value;
    int64_t lease;
    bool prev_kv, ignore_value, ignore_lease;
} trimaran_put_request;

enum { TRIMARAN_SORT_NONE, TRIMARAN_SORT_ASCEND, TRIMARAN_SORT_DESCEND };
enum { TRIMARAN_SORT_KEY, TRIMARAN_SORT_VERSION, TRIMARAN_SORT_CREATE, TRIMARAN_SORT_MOD,
       TRIMARAN_SORT_VALUE };

typedef struct trimaran_range_request {
    trimaran_slice key, range_end;
    int64_t limit, revision;
    int32_t sort_order, sort_target;
    bool serializable, keys_only, count_only;
    int64_t min_mod_revision, max_mod_revision, min_create_revision, max_create_revision;
} trimaran_range_request;

typedef struct trimaran_delete_request {
    trimaran_slice key, range_end;
    bool prev_kv;
} trimaran_delete_request;

typedef struct trimaran_compaction_request {
    int64_t revision;
    bool physical;
} trimaran_compaction_request;

enum { TRIMARAN_COMPARE_EQUAL, TRIMARAN_COMPARE_GREATER, TRIMARAN_COMPARE_LESS,
       TRIMARAN_COMPARE_NOT_EQUAL };
enum { TRIMARAN_TARGET_VERSION, TRIMARAN_TARGET_CREATE, TRIMARAN_TARGET_MOD,
       TRIMARAN_TARGET_VALUE, TRIMARAN_TARGET_LEASE };

typedef struct trimaran_compare {
    int32_t result, target;
    trimaran_slice key, range_end, value;
    int64_t number;      /* the version, revision or lease of the union, 0 where another is set */
    int32_t union_field; /* the field number set last in target_union, 0 for none */
} trimaran_compare;

struct trimaran_txn_request;

/* Kinds are the field numbers of RequestOp's union. */
enum { TRIMARAN_OP_NONE, TRIMARAN_OP_RANGE, TRIMARAN_OP_PUT, TRIMARAN_OP_DELETE, TRIMARAN_OP_TXN };

typedef struct trimaran_request_op {
    int32_t kind;
    union {
        trimaran_range_request range;
        trimaran_put_request put;
        trimaran_delete_request remove;
        struct trimaran_txn_request *txn;
    };
} trimaran_request_op;

typedef struct trimaran_txn_request {
    trimaran_compare *compares;
    size_t compare_count;
    trimaran_request_op *success, *failure;
    size_t success_count, failure_count;
} trimaran_txn_request;

typedef struct trimaran_watch_create {
    trimaran_slice key, range_end;
    int64_t start_revision, watch_id;
    bool progress_notify, prev_kv, fragment, no_put, no_delete;
} trimaran_watch_create;

enum { TRIMARAN_WATCH_NONE, TRIMARAN_WATCH_CREATE, TRIMARAN_WATCH_CANCEL,
       TRIMARAN_WATCH_PROGRESS };

typedef struct trimaran_watch_request {
    int32_t kind;
    int64_t cancel_id;
    trimaran_watch_create create;
} trimaran_watch_request;

/* Each returns false where the bytes are not such a message; *out is then undefined. */
bool trimaran_decode_put(trimaran_slice message, trimaran_put_request *out);
bool trimaran_decode_range(trimaran_slice message, trimaran_range_request *out);
bool trimaran_decode_delete(trimaran_slice message, trimaran_delete_request *out);
bool trimaran_decode_compaction(trimaran_slice message, trimaran_compaction_request *out);
bool trimaran_decode_txn(trimaran_slice message, trimaran_arena *arena, trimaran_txn_request *out);
bool trimaran_decode_watch(trimaran_slice message, trimaran_watch_request *out);

/* A stored key-value pair (mvccpb.KeyValue). */
typedef struct trimaran_key_value {
    trimaran_slice key, value;
    int64_t create_revision, mod_revision, version, lease;
} trimaran_key_value;

bool trimaran_decode_key_value(trimaran_slice message, trimaran_key_value *out);
size_t trimaran_key_value_size(const trimaran_key_value *kv);
uint8_t *trimaran_put_key_value(uint8_t *at, const trimaran_key_value *kv);

/* Writes kv as an embedded message of the given field number. */
void trimaran_encode_key_value(trimaran_buffer *out, unsigned tag, const trimaran_key_value *kv);

typedef struct trimaran_header {
    uint64_t cluster_id, member_id, raft_term;
    int64_t revision;
} trimaran_header;

/* Writes the ResponseHeader as field 1. */
void trimaran_encode_header(trimaran_buffer *out, const trimaran_header *header);

/* Checks of a request before it is proposed; texts and order as etcd's. */
trimaran_error trimaran_check_put(const trimaran_put_request *request);
trimaran_error trimaran_check_range(const trimaran_range_request *request);
trimaran_error trimaran_check_delete(const trimaran_delete_request *request);
trimaran_error trimaran_check_txn(const trimaran_txn_request *request, int64_t max_txn_ops,
                                  trimaran_arena *arena);

/* True where neither branch of txn writes; such a txn is not proposed. A nested txn counts as a
 * write, as in etcd. */
bool trimaran_txn_is_read_only(const trimaran_txn_request *txn);
/* True where every operation of both branches is a serializable range. */
bool trimaran_txn_is_serializable(const trimaran_txn_request *txn);
/* True where a put stands in either branch at any depth. */
bool trimaran_txn_has_put(const trimaran_txn_request *txn);

#endif
