/* Arming a failpoint from the environment; see failpoint.h. */
#include "failpoint.h"

#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[] = {
    NULL,
#define NAME(number, name, where) name,
    TRIMARAN_FAILPOINTS(NAME)
#undef NAME
};

static const char *const places[] = {
    NULL,
#define PLACE(number, name, where) where,
    TRIMARAN_FAILPOINTS(PLACE)
#undef PLACE
};

trimaran_failpoint_id trimaran_failpoint_armed = TRIMARAN_FAIL_NONE;
static _Atomic long passes_left;

/* A name that is not known would make a test pass that tests nothing. */
__attribute__((constructor)) static void arm(void)
{
    const char *wanted = getenv("TRIMARAN_FAILPOINT");
    if (wanted == NULL || *wanted == '\0')
        return;
    size_t size = strcspn(wanted, ":");
    char *end = NULL;
    long count = wanted[size] == ':' ? strtol(wanted + size + 1, &end, 10) : 1;
    for (int i = 1; i < TRIMARAN_FAIL_COUNT; i++)
        if (strlen(names[i]) == size && memcmp(names[i], wanted, size) == 0)
            trimaran_failpoint_armed = (trimaran_failpoint_id)i;
    if (trimaran_failpoint_armed == TRIMARAN_FAIL_NONE || count < 1 ||
        (end != NULL && *end != '\0')) {
        fprintf(stderr, "trimaran: TRIMARAN_FAILPOINT=%s is not name or name:count of a known "
                        "failpoint; unset it, it is for tests\n",
                wanted);
        _exit(2);
    }
    atomic_store(&passes_left, count);
}

void trimaran_failpoint_hit(void)
{
    if (atomic_fetch_sub(&passes_left, 1) != 1)
        return;
    /* So that a test knows what ended the process. */
    dprintf(STDERR_FILENO, "trimaran: killed at the failpoint %s\n",
            names[trimaran_failpoint_armed]);
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

const char *trimaran_failpoint_name(int number)
{
    return number > 0 && number < TRIMARAN_FAIL_COUNT ? names[number] : NULL;
}

const char *trimaran_failpoint_where(int number)
{
    return number > 0 && number < TRIMARAN_FAIL_COUNT ? places[number] : NULL;
}
