/* Putting a state in the place of another on the disk, so that a crash at any moment leaves one
 * that can be opened. Beside the directory of the state, NAME, there may be
 *
 *   NAME.new   a state that a leader sends; whole once `complete` is in it, which tells its index
 *   NAME.copy  a compact copy of the state
 *   NAME.old   the state that was replaced, to be removed
 *
 * A snapshot that a leader sent takes the place once the log is reset to its index: that is the
 * point of no return. A compact copy that is not in place after a crash is thrown away. Functions
 * return 0 or -errno.
 */
#ifndef TRIMARAN_STATE_PLACE_H
#define TRIMARAN_STATE_PLACE_H

#include <stdint.h>

/* Remove a directory of files; 0 where there is none. */
int trimaran_directory_remove(const char *directory);
/* Have the disk keep the names in a directory. */
int trimaran_directory_flush(const char *directory);

/* Say in NAME.new that it is complete, with the last log index it contains. */
int trimaran_place_complete(const char *directory, uint64_t index);
/* The index it was said to be complete with; -ENOENT where it is not there or not complete. */
int trimaran_place_completed(const char *directory, uint64_t *index);

/* Put NAME.new or NAME.copy in the place of NAME, which becomes NAME.old; durable on return. */
int trimaran_place_install(const char *directory);
int trimaran_place_copy(const char *directory);
/* Remove NAME.old, and in NAME the word that it is complete. */
int trimaran_place_clean(const char *directory);

/* At a start, between opening the log and the state: finish or undo what a crash interrupted.
 * log_marker: index that the log begins after. */
int trimaran_place_recover(const char *directory, uint64_t log_marker);

#endif
