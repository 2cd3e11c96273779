/* Installing the state that a leader sent, in a running member. */
#ifndef TRIMARAN_INSTALL_H
#define TRIMARAN_INSTALL_H

#include "trimaran/raftlog.h"
#include "watchhub.h"

typedef struct trimaran_install {
    const char *directory; /* of the state; the new one is in directory.new, complete */
    trimaran_mvcc *mvcc;
    trimaran_mvcc *fresh; /* opened there; holds the old content afterwards, to be abandoned */
    trimaran_watchhub *hub;
    /* Of the log: waits for what is in flight, then drops everything. */
    int (*reset)(void *context, const trimaran_hard_state *hard_state, uint64_t index,
                 uint64_t term);
    void *context;
    const trimaran_hard_state *hard_state; /* that goes with it, or NULL for the one held */
} trimaran_install;

/* Reset the log to what the new state contains, put it in place on the disk and in memory, tell the
 * watchers. -ENOSPC: nothing was done, try again. Any other failure ends the process: a restart
 * finishes what is begun. */
int trimaran_install_run(const trimaran_install *install);

#endif
