/* Watch keys and ranges. */
#include <errno.h>
#include <string.h>
#include <trimaran/watchindex.h>

#include "check.h"

static int add(void *context, void *watcher)
{
    *(unsigned *)context |= *(unsigned *)watcher;
    return 0;
}

static unsigned match(trimaran_watchindex *index, const char *key)
{
    unsigned found = 0;

    CHECK(trimaran_watchindex_match(index, (const uint8_t *)key, strlen(key), add, &found) == 0);
    return found;
}

static trimaran_watch *watch(trimaran_watchindex *index, const char *key, const char *end,
                             size_t end_size, unsigned *watcher)
{
    trimaran_watch *made;

    CHECK(trimaran_watchindex_insert(index, (const uint8_t *)key, strlen(key),
                                     (const uint8_t *)end, end_size, watcher, &made)
          == 0);
    return made;
}

int main(void)
{
    unsigned one = 1, range = 2, open = 4;
    trimaran_watchindex *index;
    trimaran_watch *first, *bad;

    CHECK(trimaran_watchindex_create(42, &index) == 0);
    first = watch(index, "/a/1", NULL, 0, &one);
    watch(index, "/a/", "/a0", 3, &range);
    watch(index, "/b", "\0", 1, &open);
    CHECK(trimaran_watchindex_insert(index, (const uint8_t *)"b", 1, (const uint8_t *)"a", 1, &one,
                                     &bad)
          == -EINVAL);
    CHECK(trimaran_watchindex_count(index) == 3);
    CHECK(match(index, "/a/1") == 3);
    CHECK(match(index, "/a/2") == 2);
    CHECK(match(index, "/a") == 0);
    CHECK(match(index, "/zzz") == 4);
    trimaran_watchindex_remove(index, first);
    CHECK(match(index, "/a/1") == 2);
    printf("%zu watches in %zu bytes\n", trimaran_watchindex_count(index),
           trimaran_watchindex_bytes(index));
    trimaran_watchindex_destroy(index);
    return 0;
}
