/* Building the file of a state aside, in a directory of its own: from a snapshot's stream, or as a
 * compact copy. What is built is not flushed until the end, and good for nothing before. Any
 * thread, one at a time. Functions return 0 or -errno; after an error all is to be thrown away.
 */
#ifndef TRIMARAN_STATE_BUILDER_H
#define TRIMARAN_STATE_BUILDER_H

#include "snapshot.h"

typedef struct trimaran_state_builder trimaran_state_builder;

/* Remove what directory holds, make it anew and begin. */
int trimaran_state_builder_open(const char *directory, size_t map_size_bytes,
                                trimaran_state_builder **out);
void trimaran_state_builder_close(trimaran_state_builder *builder);

/* Take the next chunk of a stream. -EBADMSG: it is damaged, cut, not the next one, or of a version
 * that is not known; `reason` says what. */
int trimaran_state_builder_chunk(trimaran_state_builder *builder, const uint8_t *chunk,
                                 size_t size);
uint32_t trimaran_state_builder_next_chunk(const trimaran_state_builder *builder);
const char *trimaran_state_builder_reason(const trimaran_state_builder *builder);
/* Of the stream's header, all zero before its first chunk. */
const trimaran_snapshot_facts *
trimaran_state_builder_facts(const trimaran_state_builder *builder);

/* Set a row, or remove it (value without data), beside what the stream brings. */
int trimaran_state_builder_set(trimaran_state_builder *builder, trimaran_slice key,
                               trimaran_slice value);
/* Remove all rows whose key starts with prefix. */
int trimaran_state_builder_remove(trimaran_state_builder *builder, trimaran_slice prefix);
/* Set the applied index, which stands in the stream too. */
int trimaran_state_builder_set_applied(trimaran_state_builder *builder, uint64_t index,
                                       uint64_t term);

/* Make a copy of a snapshot, or bring a copy up to a later snapshot of the same state: rows anew,
 * the changes that are newer, less those that were dropped between. */
int trimaran_state_builder_copy(trimaran_state_builder *builder, trimaran_snapshot *snapshot,
                                const trimaran_change *dropped, size_t dropped_count);

/* Flush everything, with the directory. A stream must have ended (-EBADMSG). */
int trimaran_state_builder_finish(trimaran_state_builder *builder);

/* Let state, held and idle, go on with what was built and finished. */
int trimaran_state_builder_move(trimaran_state_builder *builder, trimaran_state *state);

#endif
