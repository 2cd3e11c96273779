/* What the files of the service share among themselves. */
#ifndef TRIMARAN_SERVICE_INTERNAL_H
#define TRIMARAN_SERVICE_INTERNAL_H

#include "service.h"

enum { METHOD_RANGE, METHOD_PUT, METHOD_DELETE, METHOD_TXN, METHOD_COMPACT, METHOD_WATCH };

/* A physical compaction to be answered once it is done and on disk. */
typedef struct trimaran_physical {
    struct trimaran_physical *next;
    trimaran_waiter waiter;
    trimaran_buffer answer;
    uint64_t batch; /* of the state that holds its end; 0 while it goes on */
} trimaran_physical;

struct trimaran_service {
    trimaran_mvcc *mvcc;
    trimaran_watchhub *hub;
    trimaran_service_options options;
    trimaran_rpc_handler handler;
    trimaran_service_mode mode;
    uint64_t leader_tick; /* when a leader was last found */
    uint64_t leaderless_ticks; /* for how long none has been known */
    trimaran_proposals proposals;
    trimaran_readqueue reads;
    trimaran_physical *physical;
    trimaran_buffer out;
    trimaran_arena arena;
    trimaran_result *results;
    size_t result_count, result_capacity;
    bool results_taken, no_space;
    trimaran_service_counts counts;
};

/* End a call with an error, or with what is in service->out. */
void trimaran_service_fail(trimaran_rpc_call *call, trimaran_error error);
void trimaran_service_reply(trimaran_rpc_call *call, const trimaran_buffer *out);
void trimaran_service_answer(trimaran_service *service, trimaran_rpc_call *call,
                             trimaran_error error);
void trimaran_service_add_result(trimaran_service *service, const trimaran_result *result);

/* Answer reads that may be answered now; the request was checked before or is checked here. */
void trimaran_service_serve_range(trimaran_service *service, trimaran_rpc_call *call,
                                  const trimaran_range_request *request);
void trimaran_service_serve_group(trimaran_service *service, trimaran_read_group *group,
                                  trimaran_error error);

/* Answer physical compactions that are over. */
void trimaran_service_answer_physical(trimaran_service *service);

#endif
