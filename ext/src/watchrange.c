#include "watchrange.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

typedef trimaran_watch_range range_t;

int trimaran_compare_bytes(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size)
{
    size_t common = a_size < b_size ? a_size : b_size;
    int order = common > 0 ? memcmp(a, b, common) : 0;

    if (order == 0)
        order = (a_size > b_size) - (a_size < b_size);
    return (order > 0) - (order < 0);
}

/* An end of one zero byte is past every key. */
static int open_end(const uint8_t *end, size_t end_size)
{
    return end_size == 1 && end[0] == 0;
}

static const uint8_t *end_of(const range_t *range)
{
    return range->bytes + range->group.key_size;
}

static int compare_ends(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size)
{
    int a_open = open_end(a, a_size), b_open = open_end(b, b_size);

    if (a_open || b_open)
        return a_open - b_open;
    return trimaran_compare_bytes(a, a_size, b, b_size);
}

static int compare_range_ends(const range_t *a, const range_t *b)
{
    return compare_ends(end_of(a), a->end_size, end_of(b), b->end_size);
}

static int is_before_end(const uint8_t *key, size_t key_size, const range_t *range)
{
    return open_end(end_of(range), range->end_size)
           || trimaran_compare_bytes(key, key_size, end_of(range), range->end_size) < 0;
}

static void update(range_t *range)
{
    const range_t *farthest = range;

    if (range->left != NULL && compare_range_ends(range->left->farthest, farthest) > 0)
        farthest = range->left->farthest;
    if (range->right != NULL && compare_range_ends(range->right->farthest, farthest) > 0)
        farthest = range->right->farthest;
    range->farthest = farthest;
}

size_t trimaran_watch_range_bytes(const range_t *range)
{
    return sizeof *range + range->group.key_size + range->end_size;
}

static range_t *new_range(const uint8_t *key, size_t key_size, const uint8_t *end, size_t end_size,
                          uint32_t priority)
{
    range_t *range = malloc(sizeof *range + key_size + end_size);

    if (range == NULL)
        return NULL;
    *range = (range_t){
        .group = {.is_range = 1, .key_size = (uint32_t)key_size},
        .priority = priority,
        .end_size = (uint32_t)end_size,
    };
    if (key_size > 0)
        memcpy(range->bytes, key, key_size);
    memcpy(range->bytes + key_size, end, end_size);
    range->farthest = range;
    return range;
}

static int compare(const uint8_t *key, size_t key_size, const uint8_t *end, size_t end_size,
                   const range_t *range)
{
    int order = trimaran_compare_bytes(key, key_size, range->bytes, range->group.key_size);

    return order != 0 ? order : compare_ends(end, end_size, end_of(range), range->end_size);
}

static range_t *find(range_t *node, const uint8_t *key, size_t key_size, const uint8_t *end,
                     size_t end_size)
{
    while (node != NULL) {
        int order = compare(key, key_size, end, end_size, node);
        if (order == 0)
            return node;
        node = order < 0 ? node->left : node->right;
    }
    return NULL;
}

/* Part a subtree into what is before range and what is after it. */
static void split(range_t *node, const range_t *range, range_t **before, range_t **after)
{
    if (node == NULL) {
        *before = *after = NULL;
    } else if (compare(node->bytes, node->group.key_size, end_of(node), node->end_size, range)
               < 0) {
        split(node->right, range, &node->right, after);
        *before = node;
        update(node);
    } else {
        split(node->left, range, before, &node->left);
        *after = node;
        update(node);
    }
}

static range_t *merge(range_t *before, range_t *after)
{
    if (before == NULL || after == NULL)
        return before != NULL ? before : after;
    if (before->priority >= after->priority) {
        before->right = merge(before->right, after);
        update(before);
        return before;
    }
    after->left = merge(before, after->left);
    update(after);
    return after;
}

static range_t *insert(range_t *node, range_t *range)
{
    if (node == NULL || node->priority < range->priority) {
        split(node, range, &range->left, &range->right);
        update(range);
        return range;
    }
    if (compare(range->bytes, range->group.key_size, end_of(range), range->end_size, node) < 0)
        node->left = insert(node->left, range);
    else
        node->right = insert(node->right, range);
    update(node);
    return node;
}

range_t *trimaran_watch_range_put(range_t **root, const uint8_t *key, size_t key_size,
                                  const uint8_t *end, size_t end_size, uint32_t priority,
                                  int *made)
{
    range_t *range = find(*root, key, key_size, end, end_size);

    *made = range == NULL;
    if (range != NULL)
        return range;
    range = new_range(key, key_size, end, end_size, priority);
    if (range != NULL)
        *root = insert(*root, range);
    return range;
}

static range_t *removed(range_t *node, const range_t *range)
{
    assert(node != NULL);
    if (node == range)
        return merge(node->left, node->right);
    if (compare(range->bytes, range->group.key_size, end_of(range), range->end_size, node) < 0)
        node->left = removed(node->left, range);
    else
        node->right = removed(node->right, range);
    update(node);
    return node;
}

void trimaran_watch_range_remove(range_t **root, range_t *range)
{
    *root = removed(*root, range);
    free(range);
}

void trimaran_watch_range_free_all(range_t *root)
{
    if (root == NULL)
        return;
    trimaran_watch_range_free_all(root->left);
    trimaran_watch_range_free_all(root->right);
    free(root);
}

int trimaran_watch_range_match(const range_t *node, const uint8_t *key, size_t key_size,
                               int (*visitor)(void *context, const trimaran_watch_group *group),
                               void *context)
{
    while (node != NULL && is_before_end(key, key_size, node->farthest)) {
        int stop = trimaran_watch_range_match(node->left, key, key_size, visitor, context);
        if (stop != 0)
            return stop;
        if (trimaran_compare_bytes(node->bytes, node->group.key_size, key, key_size) > 0)
            return 0;
        if (is_before_end(key, key_size, node)) {
            stop = visitor(context, &node->group);
            if (stop != 0)
                return stop;
        }
        node = node->right;
    }
    return 0;
}
