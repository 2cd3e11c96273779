/* What the files of the state store share among themselves. */
#ifndef TRIMARAN_STATE_INTERNAL_H
#define TRIMARAN_STATE_INTERNAL_H

#include <pthread.h>

#include "state_batch.h"
#include "state_file.h"

struct trimaran_state {
    trimaran_state_file *file;
    MDB_txn *reader;          /* the loop's view of what is committed */
    trimaran_batch batches[2];
    trimaran_batch *open;     /* being filled by the loop */
    trimaran_batch *sealed;   /* being committed, NULL where the thread is idle */
    uint64_t applied_index, applied_term, persisted_index;
    uint64_t batch_number, committed_batch;
    bool held;                /* no batch goes to the thread: the file is being replaced */
    trimaran_change *dropped; /* since `track`: what compaction dropped, as far as committed */
    size_t dropped_count, dropped_capacity;
    bool tracking;
    pthread_t thread;
    pthread_mutex_t mutex;    /* guards the five fields below */
    pthread_cond_t changed;
    trimaran_batch *work;
    bool done, stop;
    int event_fd;
    _Atomic int error;
};

/* The thread that commits batches; context is the state. */
void *trimaran_state_run(void *context);

#endif
