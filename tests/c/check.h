/* What the C programs of the tests share. */
#ifndef TRIMARAN_TESTS_CHECK_H
#define TRIMARAN_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

/* Say which expectation failed, and end. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#endif
