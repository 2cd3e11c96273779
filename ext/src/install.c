/* Installing a state; see install.h. */
#include "install.h"

#include <errno.h>

#include "failpoint.h"
#include "fatal.h"
#include "state_place.h"

int trimaran_install_run(const trimaran_install *install)
{
    int64_t revision_before = trimaran_mvcc_revision(install->mvcc);
    uint64_t index, term;
    trimaran_state_applied(trimaran_mvcc_state(install->fresh), &index, &term);
    trimaran_failpoint(TRIMARAN_FAIL_INSTALL_BEGIN);
    int error = install->reset(install->context, install->hard_state, index, term);
    if (error == -ENOSPC)
        return error;
    if (error != 0)
        trimaran_fatal("resetting the raft log", strerror(-error));
    trimaran_failpoint(TRIMARAN_FAIL_INSTALL_RESET);
    error = trimaran_place_install(install->directory);
    if (error != 0)
        trimaran_fatal("putting a new state in place", strerror(-error));
    trimaran_mvcc_replace(install->mvcc, install->fresh);
    trimaran_watchhub_replaced(install->hub, revision_before);
    trimaran_failpoint(TRIMARAN_FAIL_INSTALL_END);
    /* What is left behind by a failure here is removed at the next start. */
    (void)trimaran_place_clean(install->directory);
    return 0;
}
