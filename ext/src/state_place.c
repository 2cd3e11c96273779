/* Putting a state in the place of another; see state_place.h. */
#define _GNU_SOURCE
#include "state_place.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "failpoint.h"

static int path_of(char *out, const char *directory, const char *ending)
{
    return (size_t)snprintf(out, PATH_MAX, "%s%s", directory, ending) < PATH_MAX ? 0
                                                                                 : -ENAMETOOLONG;
}

int trimaran_directory_flush(const char *directory)
{
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int error = fsync(fd) != 0 ? -errno : 0;
    close(fd);
    return error;
}

static int flush_parent(const char *directory)
{
    char path[PATH_MAX];
    int error = path_of(path, directory, "");
    if (error != 0)
        return error;
    char *slash = strrchr(path, '/');
    if (slash == NULL)
        return trimaran_directory_flush(".");
    slash[slash == path ? 1 : 0] = '\0';
    return trimaran_directory_flush(path);
}

int trimaran_directory_remove(const char *directory)
{
    DIR *entries = opendir(directory);
    const struct dirent *entry;
    int error = 0;
    if (entries == NULL)
        return errno == ENOENT ? 0 : -errno;
    while ((entry = readdir(entries)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (unlinkat(dirfd(entries), entry->d_name, 0) != 0 && error == 0)
            error = -errno;
    }
    closedir(entries);
    if (error == 0 && rmdir(directory) != 0)
        error = -errno;
    return error;
}

int trimaran_place_complete(const char *directory, uint64_t index)
{
    char path[PATH_MAX], whole[PATH_MAX];
    int error = path_of(path, directory, ".new/complete.new");
    if (error == 0)
        error = path_of(whole, directory, ".new/complete");
    if (error != 0)
        return error;
    FILE *file = fopen(path, "we");
    if (file == NULL)
        return -errno;
    fprintf(file, "%llu\n", (unsigned long long)index);
    if (fflush(file) != 0 || fsync(fileno(file)) != 0)
        error = -errno;
    fclose(file);
    if (error == 0 && rename(path, whole) != 0)
        error = -errno;
    whole[strlen(whole) - strlen("/complete")] = '\0';
    return error != 0 ? error : trimaran_directory_flush(whole);
}

int trimaran_place_completed(const char *directory, uint64_t *index)
{
    char path[PATH_MAX];
    unsigned long long number;
    int error = path_of(path, directory, ".new/complete");
    if (error != 0)
        return error;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return -errno;
    if (fscanf(file, "%llu", &number) != 1)
        error = -EUCLEAN;
    else
        *index = number;
    fclose(file);
    return error;
}

/* The failpoints are passed between the two steps, and after them. */
static int swap(const char *directory, const char *ending, trimaran_failpoint_id between,
                trimaran_failpoint_id after)
{
    char fresh[PATH_MAX], old[PATH_MAX];
    int error = path_of(fresh, directory, ending);
    if (error == 0)
        error = path_of(old, directory, ".old");
    if (error == 0)
        error = trimaran_directory_remove(old);
    /* After a crash the state may be moved away already. */
    if (error == 0 && rename(directory, old) != 0 && errno != ENOENT)
        error = -errno;
    if (error != 0)
        return error;
    trimaran_failpoint(between);
    if (rename(fresh, directory) != 0)
        return -errno;
    error = flush_parent(directory);
    trimaran_failpoint(after);
    return error;
}

int trimaran_place_install(const char *directory)
{
    uint64_t index;
    int error = trimaran_place_completed(directory, &index);
    return error != 0 ? error : swap(directory, ".new", TRIMARAN_FAIL_INSTALL_RENAME,
                                     TRIMARAN_FAIL_INSTALL_PLACED);
}

int trimaran_place_copy(const char *directory)
{
    return swap(directory, ".copy", TRIMARAN_FAIL_DEFRAGMENT_RENAME,
                TRIMARAN_FAIL_DEFRAGMENT_PLACED);
}

int trimaran_place_clean(const char *directory)
{
    char path[PATH_MAX];
    int error = path_of(path, directory, ".old");
    if (error == 0)
        error = trimaran_directory_remove(path);
    if (error == 0)
        error = path_of(path, directory, "/complete");
    if (error == 0 && unlink(path) != 0 && errno != ENOENT)
        error = -errno;
    return error;
}

/* Whether there is a state; whoever starts may have made an empty directory for one. */
static bool holds_state(const char *directory)
{
    char path[PATH_MAX];
    return path_of(path, directory, "/data.mdb") == 0 && access(path, F_OK) == 0;
}

int trimaran_place_recover(const char *directory, uint64_t log_marker)
{
    char fresh[PATH_MAX], copy[PATH_MAX], old[PATH_MAX];
    uint64_t index = 0;
    bool complete = trimaran_place_completed(directory, &index) == 0;
    int error = path_of(fresh, directory, ".new");
    if (error == 0)
        error = path_of(copy, directory, ".copy");
    if (error == 0)
        error = path_of(old, directory, ".old");
    if (error != 0)
        return error;
    /* A copy that was not in place is not needed: the state that it was made of is good. */
    if (!holds_state(directory) && holds_state(old) && rename(old, directory) != 0)
        return -errno;
    if (complete && index == log_marker)
        error = trimaran_place_install(directory);
    else
        error = trimaran_directory_remove(fresh);
    if (error == 0)
        error = trimaran_directory_remove(copy);
    if (error == 0)
        error = trimaran_place_clean(directory);
    return error != 0 ? error : flush_parent(directory);
}
