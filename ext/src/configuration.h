/* Changes of the group's configuration as log entries, and the configuration as a row of the
 * state.
 *
 * An entry of type CONFIGURATION is a head as a batch's (version 1), a count of 16 bits and for
 * each change an op of 8 bits and a member's id, then rows of the state that are set with the
 * change (see rowtable.h). One of size 0 leaves a joint configuration.
 */
#ifndef TRIMARAN_CONFIGURATION_H
#define TRIMARAN_CONFIGURATION_H

#include "proposal.h"
#include "rowtable.h"

enum { TRIMARAN_CONFIGURATION_VERSION = 1, TRIMARAN_CONFIGURATION_CHANGES_MAX = 64 };

typedef struct trimaran_configuration {
    trimaran_proposal_head head;
    trimaran_raft_change_item changes[TRIMARAN_CONFIGURATION_CHANGES_MAX];
    size_t count;
    trimaran_slice rows;
} trimaran_configuration;

/* Returns false where the bytes are no configuration entry. */
bool trimaran_configuration_decode(trimaran_slice entry, trimaran_configuration *out);

/* The configuration as stored in the row "raft/members": a version, auto_leave, then the four
 * groups (voters, outgoing, learners, learners_next), each as a count of 16 bits and ids. */
extern const trimaran_slice trimaran_members_row;
void trimaran_members_encode(trimaran_buffer *out, const trimaran_raft_members *members);
/* ids has room for size / 8 of them; the groups of *out point there. False where it is none. */
bool trimaran_members_decode(trimaran_slice row, uint64_t *ids, trimaran_raft_members *out);

#endif
