/* A B+ tree of key records in key order. */
#ifndef TRIMARAN_KEYTREE_H
#define TRIMARAN_KEYTREE_H

#include "keyindex.h"

typedef struct trimaran_keytree {
    void *root; /* a leaf where height is 0 */
    unsigned height;
} trimaran_keytree;

void trimaran_keytree_create(trimaran_keytree *tree);
/* Frees the nodes, not the records. */
void trimaran_keytree_destroy(trimaran_keytree *tree);
void trimaran_keytree_insert(trimaran_keytree *tree, trimaran_key_record *record);
void trimaran_keytree_remove(trimaran_keytree *tree, trimaran_key_record *record);
trimaran_keyindex_cursor trimaran_keytree_seek(const trimaran_keytree *tree, trimaran_slice key);

#endif
