#include "fatal.h"

#include <stdio.h>
#include <stdlib.h>

_Noreturn void trimaran_fatal(const char *what, const char *error)
{
    fprintf(stderr,
            "trimaran: %s: %s; stopping, for what is on the disk is not known any more: "
            "check the disk, then start again\n",
            what, error);
    fflush(stderr);
    abort();
}
