/* A B+ tree of key records.
 *
 * An inner node keeps, for each child but the first, the smallest record below it. Nodes are not
 * merged when they shrink, only dropped when empty: keys leave only by compaction, and a tree that
 * was large once is about to be so again.
 */
#include "keytree.h"

enum { FANOUT = 64, HEIGHT_MAX = 16 };

typedef struct trimaran_keyindex_leaf {
    struct trimaran_keyindex_leaf *next, *previous;
    unsigned count;
    trimaran_key_record *records[FANOUT];
} leaf_t;

typedef struct inner {
    unsigned count;
    trimaran_key_record *smallest[FANOUT]; /* of child i; that of child 0 is not kept */
    void *children[FANOUT];
} inner_t;

typedef struct path {
    inner_t *nodes[HEIGHT_MAX];
    unsigned positions[HEIGHT_MAX];
} path_t;

void trimaran_keytree_create(trimaran_keytree *tree)
{
    leaf_t *leaf = trimaran_allocate(sizeof *leaf);
    leaf->next = leaf->previous = NULL;
    leaf->count = 0;
    *tree = (trimaran_keytree){leaf, 0};
}

static void destroy_node(void *node, unsigned height)
{
    if (height > 0)
        for (unsigned i = 0; i < ((inner_t *)node)->count; i++)
            destroy_node(((inner_t *)node)->children[i], height - 1);
    free(node);
}

void trimaran_keytree_destroy(trimaran_keytree *tree)
{
    destroy_node(tree->root, tree->height);
    tree->root = NULL;
}

/* The last child whose smallest record is not above key. */
static unsigned child_of(const inner_t *node, trimaran_slice key)
{
    unsigned low = 1, high = node->count;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (trimaran_slice_compare(trimaran_record_key(node->smallest[middle]), key) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low - 1;
}

/* The first place in leaf whose record is not below key. */
static unsigned place_in(const leaf_t *leaf, trimaran_slice key)
{
    unsigned low = 0, high = leaf->count;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (trimaran_slice_compare(trimaran_record_key(leaf->records[middle]), key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Go down to the leaf of key; path[level] holds the inner node of that height - 1. */
static leaf_t *descend(const trimaran_keytree *tree, trimaran_slice key, path_t *path)
{
    void *node = tree->root;
    for (unsigned level = tree->height; level > 0; level--) {
        inner_t *inner = node;
        unsigned position = child_of(inner, key);
        if (path != NULL) {
            path->nodes[level - 1] = inner;
            path->positions[level - 1] = position;
        }
        node = inner->children[position];
    }
    return node;
}

static void insert_child(inner_t *node, unsigned position, void *child,
                         trimaran_key_record *smallest)
{
    size_t tail = node->count - position;
    memmove(&node->children[position + 1], &node->children[position], tail * sizeof(void *));
    memmove(&node->smallest[position + 1], &node->smallest[position], tail * sizeof(void *));
    node->children[position] = child;
    node->smallest[position] = smallest;
    node->count++;
}

/* Hang a new right sibling into the tree, splitting inner nodes that are full. */
static void attach(trimaran_keytree *tree, path_t *path, void *child,
                   trimaran_key_record *smallest)
{
    for (unsigned level = 0; level < tree->height; level++) {
        inner_t *node = path->nodes[level];
        unsigned position = path->positions[level] + 1;
        if (node->count < FANOUT) {
            insert_child(node, position, child, smallest);
            return;
        }
        inner_t *right = trimaran_allocate(sizeof *right);
        right->count = FANOUT / 2;
        node->count = FANOUT / 2;
        memcpy(right->children, &node->children[FANOUT / 2], right->count * sizeof(void *));
        memcpy(right->smallest, &node->smallest[FANOUT / 2], right->count * sizeof(void *));
        trimaran_key_record *right_smallest = right->smallest[0];
        if (position <= FANOUT / 2)
            insert_child(node, position, child, smallest);
        else
            insert_child(right, position - FANOUT / 2, child, smallest);
        child = right;
        smallest = right_smallest;
    }
    inner_t *root = trimaran_allocate(sizeof *root);
    root->count = 2;
    root->children[0] = tree->root;
    root->smallest[0] = NULL;
    root->children[1] = child;
    root->smallest[1] = smallest;
    tree->root = root;
    tree->height++;
    assert(tree->height <= HEIGHT_MAX);
}

static leaf_t *split_leaf(leaf_t *leaf, unsigned keep)
{
    leaf_t *right = trimaran_allocate(sizeof *right);
    right->count = leaf->count - keep;
    memcpy(right->records, &leaf->records[keep], right->count * sizeof(void *));
    leaf->count = keep;
    right->next = leaf->next;
    right->previous = leaf;
    if (right->next != NULL)
        right->next->previous = right;
    leaf->next = right;
    return right;
}

void trimaran_keytree_insert(trimaran_keytree *tree, trimaran_key_record *record)
{
    path_t path;
    trimaran_slice key = trimaran_record_key(record);
    leaf_t *leaf = descend(tree, key, &path);
    unsigned place = place_in(leaf, key);
    if (leaf->count == FANOUT) {
        /* Keys that arrive in order fill the last leaf whole instead of leaving halves behind. */
        bool ascending = place == FANOUT && leaf->next == NULL;
        leaf_t *right = split_leaf(leaf, ascending ? FANOUT : FANOUT / 2);
        if (place > leaf->count || ascending) {
            place -= leaf->count;
            if (ascending)
                right->records[0] = record;
            attach(tree, &path, right, right->records[0]);
            leaf = right;
        } else {
            attach(tree, &path, right, right->records[0]);
        }
    }
    size_t tail = leaf->count - place;
    memmove(&leaf->records[place + 1], &leaf->records[place], tail * sizeof(void *));
    leaf->records[place] = record;
    leaf->count++;
}

/* Drop an empty leaf and the inner nodes it leaves empty. Returns the level of the node that keeps
 * other children, or the height where none did and the tree starts again as one empty leaf. */
static unsigned detach_leaf(trimaran_keytree *tree, const path_t *path, leaf_t *leaf)
{
    unsigned height = tree->height;
    if (leaf->previous != NULL)
        leaf->previous->next = leaf->next;
    if (leaf->next != NULL)
        leaf->next->previous = leaf->previous;
    free(leaf);
    for (unsigned level = 0; level < height; level++) {
        inner_t *node = path->nodes[level];
        unsigned position = path->positions[level];
        size_t tail = node->count - position - 1;
        memmove(&node->children[position], &node->children[position + 1], tail * sizeof(void *));
        memmove(&node->smallest[position], &node->smallest[position + 1], tail * sizeof(void *));
        if (--node->count > 0)
            return level;
        free(node);
    }
    trimaran_keytree_create(tree);
    return height;
}

/* The smallest record below node, found in its leftmost leaf. */
static trimaran_key_record *smallest_below(void *node, unsigned height)
{
    for (; height > 0; height--)
        node = ((inner_t *)node)->children[0];
    return ((leaf_t *)node)->records[0];
}

void trimaran_keytree_remove(trimaran_keytree *tree, trimaran_key_record *record)
{
    path_t path = {0};
    trimaran_slice key = trimaran_record_key(record);
    leaf_t *leaf = descend(tree, key, &path);
    unsigned place = place_in(leaf, key), height = tree->height, level = 0;
    assert(place < leaf->count && leaf->records[place] == record);
    size_t tail = leaf->count - place - 1;
    memmove(&leaf->records[place], &leaf->records[place + 1], tail * sizeof(void *));
    if (--leaf->count == 0 && height > 0)
        level = detach_leaf(tree, &path, leaf) + 1;
    /* One node at most, on the way down to the record, still names it as a smallest. */
    for (; level < height; level++) {
        inner_t *node = path.nodes[level];
        unsigned position = path.positions[level];
        if (position > 0 && node->smallest[position] == record)
            node->smallest[position] = smallest_below(node->children[position], level);
    }
}

trimaran_keyindex_cursor trimaran_keytree_seek(const trimaran_keytree *tree, trimaran_slice key)
{
    leaf_t *leaf = descend(tree, key, NULL);
    return (trimaran_keyindex_cursor){leaf, place_in(leaf, key)};
}

trimaran_key_record *trimaran_keyindex_next(trimaran_keyindex_cursor *cursor)
{
    while (cursor->leaf != NULL && cursor->position >= cursor->leaf->count) {
        cursor->leaf = cursor->leaf->next;
        cursor->position = 0;
    }
    return cursor->leaf == NULL ? NULL : cursor->leaf->records[cursor->position++];
}
