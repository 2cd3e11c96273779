/* The ranges of a watch index: a treap ordered by (key, end), in which each subtree knows its
 * farthest end, so that the ranges that contain a key are found without looking at the others. */
#ifndef TRIMARAN_WATCHRANGE_H
#define TRIMARAN_WATCHRANGE_H

#include <stddef.h>
#include <stdint.h>

struct trimaran_watch;

/* Those registered for the same key or range. */
typedef struct trimaran_watch_group {
    struct trimaran_watch *first;
    uint32_t is_range : 1;
    uint32_t key_size : 31;
    uint32_t hash; /* of a single key */
} trimaran_watch_group;

typedef struct trimaran_watch_range {
    trimaran_watch_group group;
    struct trimaran_watch_range *left, *right;
    const struct trimaran_watch_range *farthest; /* in this subtree, by end */
    uint32_t priority;                           /* not less than the children's */
    uint32_t end_size;
    uint8_t bytes[]; /* key, then end */
} trimaran_watch_range;

/* Memory of one range. */
size_t trimaran_watch_range_bytes(const trimaran_watch_range *range);

/* Find the range, or make it with that priority; NULL without memory. *made tells which. */
trimaran_watch_range *trimaran_watch_range_put(trimaran_watch_range **root, const uint8_t *key,
                                               size_t key_size, const uint8_t *end,
                                               size_t end_size, uint32_t priority, int *made);
/* Take a range out and free it. */
void trimaran_watch_range_remove(trimaran_watch_range **root, trimaran_watch_range *range);
void trimaran_watch_range_free_all(trimaran_watch_range *root);

/* Call visitor for each range that contains key, until it returns other than 0. */
int trimaran_watch_range_match(const trimaran_watch_range *root, const uint8_t *key,
                               size_t key_size,
                               int (*visitor)(void *context, const trimaran_watch_group *group),
                               void *context);

/* Order of two byte strings: -1, 0 or 1. */
int trimaran_compare_bytes(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size);

#endif
