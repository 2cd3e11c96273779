/* Named places at which a test can kill the process, to see that what follows a kill is as good as
 * what went before.
 *
 * One table for C and Python. Nothing is armed but by the environment: with
 * TRIMARAN_FAILPOINT=name or name:count the process kills itself as the place is passed for the
 * first, or the count-th, time. Where nothing is armed a place costs one comparison.
 */
#ifndef TRIMARAN_FAILPOINT_H
#define TRIMARAN_FAILPOINT_H

/* X(number, name, where it is) */
#define TRIMARAN_FAILPOINTS(X)                                                                     \
    X(LOG_APPEND_BEFORE, "log-append-before", "a record is built, nothing of it is written")       \
    X(LOG_APPEND_AFTER, "log-append-after", "a record is durable, nobody knows it yet")            \
    X(JOURNAL_RECYCLE_BEFORE, "journal-recycle-before", "entries are about to go to LMDB")         \
    X(JOURNAL_RECYCLE_AFTER, "journal-recycle-after", "entries are in LMDB, the ring is not free") \
    X(LOG_COMPACT_BEFORE, "log-compact-before", "entries are about to be cut off the log")         \
    X(LOG_COMPACT_AFTER, "log-compact-after", "a chunk of entries was cut off")                    \
    X(STATE_PERSIST_BEFORE, "state-persist-before", "a batch of the state is about to commit")     \
    X(STATE_PERSIST_AFTER, "state-persist-after", "a batch is committed, the loop is not told")    \
    X(COMPACTION_BEGIN, "compaction-begin", "the compact revision counts, nothing is dropped")     \
    X(COMPACTION_STEP, "compaction-step", "some keys are compacted, more are to come")             \
    X(COMPACTION_END, "compaction-end", "the last key is compacted, that is not committed")        \
    X(SNAPSHOT_SEND_BEGIN, "snapshot-send-begin", "a stream of the state is about to begin")       \
    X(SNAPSHOT_SEND_CHUNK, "snapshot-send-chunk", "a chunk of the state is about to be sent")      \
    X(SNAPSHOT_RECEIVE_BEGIN, "snapshot-receive-begin", "the directory for a state is made")       \
    X(SNAPSHOT_RECEIVE_CHUNK, "snapshot-receive-chunk", "a chunk of a state has arrived")          \
    X(SNAPSHOT_RECEIVE_END, "snapshot-receive-end", "a state is whole, its marker is missing")     \
    X(INSTALL_BEGIN, "install-begin", "a state is complete, the log is not reset")                 \
    X(INSTALL_RESET, "install-reset", "the log is reset, the old state is in its place")           \
    X(INSTALL_RENAME, "install-rename", "the old state is moved away, the new not in place")       \
    X(INSTALL_PLACED, "install-placed", "the new state is in place, the old not removed")          \
    X(INSTALL_END, "install-end", "the state is replaced in memory too")                           \
    X(DEFRAGMENT_COPY, "defragment-copy", "a part of the state is copied")                         \
    X(DEFRAGMENT_COMPLETE, "defragment-complete", "the copy is complete, not in place")            \
    X(DEFRAGMENT_RENAME, "defragment-rename", "the old file is moved away, the copy not in place") \
    X(DEFRAGMENT_PLACED, "defragment-placed", "the copy is in place, the old not removed")         \
    X(MEMBERSHIP_PROPOSE, "membership-propose", "a change of members is about to be proposed")     \
    X(MEMBERSHIP_APPLY, "membership-apply", "a change of members is committed, not applied")       \
    X(MEMBERSHIP_APPLIED, "membership-applied", "a change of members is applied, not on disk")

typedef enum trimaran_failpoint_id {
    TRIMARAN_FAIL_NONE,
#define TRIMARAN_FAILPOINT_ID(number, name, where) TRIMARAN_FAIL_##number,
    TRIMARAN_FAILPOINTS(TRIMARAN_FAILPOINT_ID)
#undef TRIMARAN_FAILPOINT_ID
    TRIMARAN_FAIL_COUNT,
} trimaran_failpoint_id;

/* The one that is armed; TRIMARAN_FAIL_NONE outside of tests. Set before main, never after. */
extern trimaran_failpoint_id trimaran_failpoint_armed;

/* Kill the process if the armed place was passed often enough. */
void trimaran_failpoint_hit(void);

static inline void trimaran_failpoint(trimaran_failpoint_id place)
{
    if (__builtin_expect(trimaran_failpoint_armed == place, 0))
        trimaran_failpoint_hit();
}

/* Name and place of a row of the table, by number from 1; NULL past its end. */
const char *trimaran_failpoint_name(int number);
const char *trimaran_failpoint_where(int number);

#endif
