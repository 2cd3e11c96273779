/* An index from keys and key ranges to those who watch them.
 *
 * Single keys live in a hash table, ranges in a balanced tree that answers which ranges contain a
 * key. Not thread-safe: one thread at a time. Functions return 0 or -errno.
 */
#ifndef TRIMARAN_WATCHINDEX_H
#define TRIMARAN_WATCHINDEX_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct trimaran_watchindex trimaran_watchindex;
/* One registration; valid until it is removed. */
typedef struct trimaran_watch trimaran_watch;

/* Called for each registration whose key or range contains the key; must not change the index.
 * Return 0 to go on; anything else stops the match, which then returns that. */
typedef int (*trimaran_watchindex_visitor)(void *context, void *watcher);

/* seed makes the hash table's order unknown to whoever chooses the keys. */
int trimaran_watchindex_create(uint64_t seed, trimaran_watchindex **out);
/* Frees the index and its registrations, not the watchers. NULL is allowed. */
void trimaran_watchindex_destroy(trimaran_watchindex *index);

/* Register watcher for one key (end_size 0), for [key, end), or for every key from key on (end is
 * one zero byte), as etcd's range_end. The bytes are copied. -EINVAL: end is not after key, or the
 * key or end is 2 GiB or more. The same watcher may be registered any number of times. */
int trimaran_watchindex_insert(trimaran_watchindex *index, const uint8_t *key, size_t key_size,
                               const uint8_t *end, size_t end_size, void *watcher,
                               trimaran_watch **out);
void trimaran_watchindex_remove(trimaran_watchindex *index, trimaran_watch *watch);

/* Visit the watcher of each registration that contains key, in no particular order. */
int trimaran_watchindex_match(trimaran_watchindex *index, const uint8_t *key, size_t key_size,
                              trimaran_watchindex_visitor visitor, void *context);

/* Registrations held. */
size_t trimaran_watchindex_count(const trimaran_watchindex *index);
/* Memory of the index itself, in bytes as asked of the allocator. */
size_t trimaran_watchindex_bytes(const trimaran_watchindex *index);

#ifdef __cplusplus
}
#endif
#endif
