/* Append to a log, open it again, read it: raftlog DIRECTORY */
#include <errno.h>
#include <string.h>
#include <trimaran/raftlog.h>

#include "check.h"

#define COUNT 1000u

struct seen {
    uint64_t next;
    uint64_t bytes;
};

static int see(void *context, const trimaran_entry *entry)
{
    struct seen *seen = context;
    char expected[32];

    CHECK(entry->index == seen->next);
    CHECK(entry->term == 1 + entry->index / 100);
    snprintf(expected, sizeof expected, "entry %llu", (unsigned long long)entry->index);
    CHECK(entry->size == strlen(expected));
    CHECK(memcmp(entry->data, expected, entry->size) == 0);
    seen->next++;
    seen->bytes += entry->size;
    return 0;
}

static int stop(void *context, const trimaran_entry *entry)
{
    (void)context;
    (void)entry;
    return 7;
}

static trimaran_raftlog *open_log(const char *directory)
{
    trimaran_raftlog_options options = {.struct_size = sizeof options,
                                        .journal_size_bytes = 256 << 10};
    trimaran_raftlog *log;
    int error = trimaran_raftlog_open(directory, &options, &log);

    if (error != 0) {
        fprintf(stderr, "%s\n", trimaran_raftlog_open_error());
        exit(1);
    }
    return log;
}

static void append(trimaran_raftlog *log)
{
    for (uint64_t index = 1; index <= COUNT; index++) {
        char text[32];
        trimaran_hard_state state = {1 + index / 100, 1, index - 1};
        trimaran_entry entry = {.index = index, .term = 1 + index / 100};
        entry.size = (uint32_t)snprintf(text, sizeof text, "entry %llu",
                                        (unsigned long long)index);
        entry.data = (const uint8_t *)text;
        CHECK(trimaran_raftlog_append(log, index % 10 == 0 ? &state : NULL, &entry, 1) == 0);
    }
}

static void read_back(trimaran_raftlog *log)
{
    struct seen seen = {.next = 1};
    trimaran_hard_state state;
    uint64_t term;

    CHECK(trimaran_raftlog_first_index(log) == 1);
    CHECK(trimaran_raftlog_last_index(log) == COUNT);
    CHECK(trimaran_raftlog_read(log, 1, COUNT, UINT64_MAX, see, &seen) == 0);
    CHECK(seen.next == COUNT + 1);
    CHECK(trimaran_raftlog_read(log, 1, COUNT + 1, UINT64_MAX, see, &seen) == -ENOENT);
    CHECK(trimaran_raftlog_read(log, 1, COUNT, UINT64_MAX, stop, NULL) == 7);
    CHECK(trimaran_raftlog_term(log, 250, &term) == 0 && term == 3);
    trimaran_raftlog_hard_state(log, &state);
    CHECK(state.term == 1 + COUNT / 100 && state.vote == 1 && state.commit == COUNT - 1);
    printf("read %llu entries of %llu bytes\n", (unsigned long long)(seen.next - 1),
           (unsigned long long)seen.bytes);
}

int main(int argc, char **argv)
{
    trimaran_raftlog *log, *second;

    CHECK(argc == 2);
    log = open_log(argv[1]);
    CHECK(trimaran_raftlog_open(argv[1], NULL, &second) == -EWOULDBLOCK);
    append(log);
    CHECK(trimaran_raftlog_close(log) == 0);
    log = open_log(argv[1]);
    read_back(log);
    CHECK(trimaran_raftlog_compact(log, 900) == 0);
    CHECK(trimaran_raftlog_first_index(log) == 901);
    CHECK(trimaran_raftlog_close(log) == 0);
    return 0;
}
