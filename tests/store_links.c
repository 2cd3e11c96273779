/* The network between the peers of a test cluster: one TUN device for each, and every direction of
 * every pair with its own loss and delay.
 *
 *   store_links FD ...
 *
 * Each FD is a TUN device without packet information; the packets of device i come from and those
 * for it go to the address that ends in i + 1. Each line of standard input sets one direction,
 *
 *   FROM TO LOSS_PERMILLE DELAY_US JITTER_US
 *
 * and is answered by a line "ok". A loss of 1000 cuts the direction. Delay is even between
 * DELAY_US and DELAY_US + JITTER_US, so jitter reorders. Ends with its standard input.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { DEVICES_MAX = 8, PACKET_BYTES_MAX = 9216, QUEUE_MAX = 65536, LINE_BYTES = 256 };
enum { SOURCE_OFFSET = 15, TARGET_OFFSET = 19, HEADER_BYTES = 20, BURST = 64 };

typedef struct link {
    uint32_t loss_permille, delay_us, jitter_us;
} link_t;

typedef struct packet {
    uint64_t due_ns;
    int from, to;
    size_t size;
    uint8_t bytes[];
} packet_t;

static link_t links[DEVICES_MAX][DEVICES_MAX];
static struct pollfd polls[DEVICES_MAX + 1];
static int device_count;
/* A heap by due time: the children of i are 2 i + 1 and 2 i + 2. */
static packet_t *queue[QUEUE_MAX];
static size_t queue_count;
static uint64_t random_state = 88172645463325252u;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t draw(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void swap(size_t a, size_t b)
{
    packet_t *kept = queue[a];
    queue[a] = queue[b];
    queue[b] = kept;
}

static void push(packet_t *packet)
{
    assert(queue_count < QUEUE_MAX);
    size_t at = queue_count++;
    queue[at] = packet;
    while (at > 0 && queue[(at - 1) / 2]->due_ns > queue[at]->due_ns) {
        swap(at, (at - 1) / 2);
        at = (at - 1) / 2;
    }
}

static packet_t *pop(void)
{
    assert(queue_count > 0);
    packet_t *first = queue[0];
    queue[0] = queue[--queue_count];
    for (size_t at = 0;;) {
        size_t least = at;
        for (size_t child = 2 * at + 1; child <= 2 * at + 2; child++)
            if (child < queue_count && queue[child]->due_ns < queue[least]->due_ns)
                least = child;
        if (least == at)
            return first;
        swap(at, least);
        at = least;
    }
}

/* Write a packet to its device; where that has no room it is lost, as on any network. */
static void deliver(int to, const uint8_t *bytes, size_t size)
{
    if (write(polls[to + 1].fd, bytes, size) < 0 && errno != EAGAIN && errno != EIO) {
        perror("store_links: write");
        exit(1);
    }
}

static void carry(int from, const uint8_t *bytes, size_t size)
{
    if (size < HEADER_BYTES || bytes[0] >> 4 != 4)
        return;
    int to = bytes[TARGET_OFFSET] - 1;
    if (bytes[SOURCE_OFFSET] - 1 != from || to < 0 || to >= device_count || to == from)
        return;
    const link_t *link = &links[from][to];
    if (link->loss_permille > 0 && draw() % 1000 < link->loss_permille)
        return;
    if (link->delay_us + link->jitter_us == 0) {
        deliver(to, bytes, size);
        return;
    }
    if (queue_count == QUEUE_MAX)
        return;
    packet_t *packet = malloc(sizeof *packet + size);
    if (packet == NULL)
        return;
    uint64_t delay_us = link->delay_us + draw() % (link->jitter_us + 1u);
    packet->due_ns = now_ns() + delay_us * 1000u;
    packet->from = from;
    packet->to = to;
    packet->size = size;
    memcpy(packet->bytes, bytes, size);
    push(packet);
}

static void receive(int from)
{
    static uint8_t bytes[PACKET_BYTES_MAX];
    for (int i = 0; i < BURST; i++) {
        ssize_t size = read(polls[from + 1].fd, bytes, sizeof bytes);
        if (size < 0 && errno == EAGAIN)
            return;
        if (size < 0) {
            perror("store_links: read");
            exit(1);
        }
        carry(from, bytes, (size_t)size);
    }
}

static void deliver_due(void)
{
    while (queue_count > 0 && queue[0]->due_ns <= now_ns()) {
        packet_t *packet = pop();
        /* A direction that has been cut since loses what is on its way. */
        if (links[packet->from][packet->to].loss_permille < 1000)
            deliver(packet->to, packet->bytes, packet->size);
        free(packet);
    }
}

static void set_link(const char *line)
{
    unsigned from, to, loss_permille, delay_us, jitter_us;
    int count = sscanf(line, "%u %u %u %u %u", &from, &to, &loss_permille, &delay_us, &jitter_us);
    if (count != 5 || from >= (unsigned)device_count || to >= (unsigned)device_count ||
        loss_permille > 1000) {
        fprintf(stderr, "store_links: bad line: %s\n", line);
        exit(2);
    }
    links[from][to] = (link_t){loss_permille, delay_us, jitter_us};
    printf("ok\n");
    fflush(stdout);
}

static void read_lines(void)
{
    static char text[LINE_BYTES];
    static size_t size;
    ssize_t got = read(STDIN_FILENO, text + size, sizeof text - 1 - size);
    if (got <= 0)
        exit(0);
    size += (size_t)got;
    char *end;
    while ((end = memchr(text, '\n', size)) != NULL) {
        *end = '\0';
        set_link(text);
        size -= (size_t)(end + 1 - text);
        memmove(text, end + 1, size);
    }
}

int main(int count, char **words)
{
    device_count = count - 1;
    if (device_count < 1 || device_count > DEVICES_MAX) {
        fprintf(stderr, "usage: store_links FD ...\n");
        return 2;
    }
    polls[0] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
    for (int i = 0; i < device_count; i++)
        polls[i + 1] = (struct pollfd){.fd = atoi(words[i + 1]), .events = POLLIN};
    for (;;) {
        struct timespec wait = {.tv_sec = 3600};
        if (queue_count > 0) {
            uint64_t now = now_ns(), due = queue[0]->due_ns;
            uint64_t left_ns = due > now ? due - now : 0;
            wait.tv_sec = (time_t)(left_ns / 1000000000u);
            wait.tv_nsec = (long)(left_ns % 1000000000u);
        }
        if (ppoll(polls, (nfds_t)device_count + 1, &wait, NULL) < 0 && errno != EINTR)
            return 1;
        if (polls[0].revents)
            read_lines();
        for (int i = 0; i < device_count; i++)
            if (polls[i + 1].revents & POLLIN)
                receive(i);
        deliver_due();
    }
}
