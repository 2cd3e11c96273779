/* TUN to UDP in batches: read, segment into the arena, group by peer, send with UDP_SEGMENT. */
#include "encap_internal.h"

#include <assert.h>
#include <errno.h>
#include <netinet/udp.h>
#include <poll.h>

#ifndef UDP_SEGMENT /* Linux 4.18 */
#define UDP_SEGMENT 103
#endif
#define TUN_READS_MAX 64 /* of one turn, so that the other direction gets its share */
#define SEND_WAIT_MS 20
#define SEND_TRIES 3

int trimaran_encap_send_one(trimaran_encap_path *path, const void *data, size_t length,
                            uint64_t peer)
{
    struct sockaddr_in address = peer_address(peer);
    for (int tries = 0;; tries++) {
        ssize_t sent = sendto(path->config.udp_fd, data, length, 0, (struct sockaddr *)&address,
                              sizeof address);
        if (sent >= 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN || tries == SEND_TRIES)
            return -errno;
        struct pollfd room = {.fd = path->config.udp_fd, .events = POLLOUT};
        poll(&room, 1, SEND_WAIT_MS);
    }
}

static uint16_t *peer_slot(transmit_batch *batch, uint64_t peer)
{
    return &batch->slots[(peer * 0x9e3779b97f4a7c15u) >> 32 & (TRANSMIT_SLOTS - 1)];
}

/* How many bytes of a block of datagrams may join a run: whole datagrams only. */
static uint32_t joinable(const trimaran_encap_path *path, const transmit_run *run,
                         uint32_t segment_length, uint32_t total)
{
    uint32_t segments_left = path->segments_max - run->segments;
    uint32_t bytes_left = DATAGRAM_MAX - run->bytes;
    if (run->closed || segments_left == 0)
        return 0;
    if (total <= segment_length)
        return total <= run->segment_length && total <= bytes_left ? total : 0;
    if (segment_length != run->segment_length)
        return 0;
    uint32_t count = bytes_left / segment_length;
    if (count > segments_left)
        count = segments_left;
    uint32_t bytes = count * segment_length;
    return bytes < total ? bytes : total;
}

static void join(transmit_batch *batch, transmit_run *run, uint32_t offset, uint32_t bytes)
{
    transmit_chunk *last = run->last_chunk == 0 ? NULL : &batch->chunks[run->last_chunk - 1];
    if (last != NULL && last->offset + last->length == offset) {
        last->length += bytes;
    } else {
        batch->chunks[batch->chunk_count++] = (transmit_chunk){.offset = offset, .length = bytes};
        if (last != NULL)
            last->next = batch->chunk_count;
        else
            run->first_chunk = batch->chunk_count;
        run->last_chunk = batch->chunk_count;
    }
    run->bytes += bytes;
    run->segments += (bytes + run->segment_length - 1) / run->segment_length;
    run->closed = run->bytes % run->segment_length != 0;
}

/* The run of `peer` that takes more, or a new one. The caller has made sure of room. */
static transmit_run *run_for(trimaran_encap_path *path, uint64_t peer, uint32_t segment_length,
                             uint32_t total, uint32_t *bytes)
{
    transmit_batch *batch = &path->transmit;
    uint16_t *slot = peer_slot(batch, peer);
    transmit_run *run = *slot == 0 ? NULL : &batch->runs[*slot - 1];
    if (run != NULL && run->peer == peer) {
        *bytes = joinable(path, run, segment_length, total);
        if (*bytes > 0)
            return run;
    }
    assert(batch->run_count < TRANSMIT_RUNS);
    run = &batch->runs[batch->run_count++];
    uint32_t length = total < segment_length ? total : segment_length;
    *run = (transmit_run){.peer = peer, .segment_length = length};
    *slot = (uint16_t)batch->run_count;
    *bytes = joinable(path, run, segment_length, total);
    return run;
}

void trimaran_encap_transmit_packet(trimaran_encap_path *path, const uint8_t *packet,
                                    size_t length, const trimaran_encap_offload *offload,
                                    uint64_t peer)
{
    transmit_batch *batch = &path->transmit;
    size_t segment_length;
    size_t total;
    if (batch->used > ARENA_LENGTH - ARENA_RESERVE)
        trimaran_encap_transmit_flush(path);
    int count = trimaran_encap_segment(packet, length, offload, batch->arena + batch->used,
                                       ARENA_LENGTH - batch->used, &segment_length, &total);
    if (count < 0 || segment_length > DATAGRAM_MAX) {
        COUNT(path, drop_malformed, 1);
        return;
    }
    if (count > 1)
        COUNT(path, segmented_packets, 1);
    COUNT(path, sent_packets, (uint64_t)count);
    COUNT(path, sent_bytes, total);
    uint32_t offset = batch->used;
    uint32_t left = (uint32_t)total;
    while (left > 0) {
        uint32_t bytes;
        if (batch->run_count == TRANSMIT_RUNS || batch->chunk_count == TRANSMIT_CHUNKS) {
            /* The arena's bytes stay where they are: only `used` starts anew afterwards. */
            trimaran_encap_transmit_flush(path);
        }
        transmit_run *run = run_for(path, peer, (uint32_t)segment_length, left, &bytes);
        assert(bytes > 0);
        join(batch, run, offset, bytes);
        offset += bytes;
        left -= bytes;
    }
    batch->used = offset;
}

/* Describe the queued runs to the kernel. */
static void build_messages(transmit_batch *batch)
{
    uint32_t vector = 0;
    for (uint32_t index = 0; index < batch->run_count; index++) {
        const transmit_run *run = &batch->runs[index];
        struct msghdr *message = &batch->messages[index].msg_hdr;
        batch->addresses[index] = peer_address(run->peer);
        *message = (struct msghdr){
            .msg_name = &batch->addresses[index],
            .msg_namelen = sizeof batch->addresses[index],
            .msg_iov = &batch->vectors[vector],
        };
        for (uint32_t next = run->first_chunk; next != 0; next = batch->chunks[next - 1].next) {
            const transmit_chunk *chunk = &batch->chunks[next - 1];
            batch->vectors[vector++] = (struct iovec){.iov_base = batch->arena + chunk->offset,
                                                      .iov_len = chunk->length};
            message->msg_iovlen++;
        }
        if (run->segments == 1)
            continue;
        message->msg_control = batch->controls[index];
        message->msg_controllen = sizeof batch->controls[index];
        struct cmsghdr *control = CMSG_FIRSTHDR(message);
        uint16_t size = (uint16_t)run->segment_length;
        control->cmsg_level = IPPROTO_UDP;
        control->cmsg_type = UDP_SEGMENT;
        control->cmsg_len = CMSG_LEN(sizeof size);
        memcpy(CMSG_DATA(control), &size, sizeof size);
    }
}

/* Send the datagrams of a run that the kernel would not take as one message: over a device without
 * checksum offload (EIO), or longer than the way allows unfragmented (EINVAL, EMSGSIZE). */
static void send_singly(trimaran_encap_path *path, const transmit_run *run)
{
    transmit_batch *batch = &path->transmit;
    COUNT(path, segment_offload_failed, 1);
    for (uint32_t next = run->first_chunk; next != 0; next = batch->chunks[next - 1].next) {
        const transmit_chunk *chunk = &batch->chunks[next - 1];
        for (uint32_t done = 0; done < chunk->length;) {
            uint32_t left = chunk->length - done;
            uint32_t size = left < run->segment_length ? left : run->segment_length;
            const uint8_t *data = batch->arena + chunk->offset + done;
            if (trimaran_encap_send_one(path, data, size, run->peer) == 0)
                COUNT(path, sent_messages, 1);
            else
                COUNT(path, drop_send_failed, 1);
            done += size;
        }
    }
}

/* Deal with the error of one run. Returns true if the same run is to be tried again. */
static bool recover(trimaran_encap_path *path, const transmit_run *run, int error, int *waits)
{
    if (error == EINTR)
        return true;
    if (error == EAGAIN && *waits < SEND_TRIES) {
        struct pollfd room = {.fd = path->config.udp_fd, .events = POLLOUT};
        poll(&room, 1, SEND_WAIT_MS);
        ++*waits;
        return true;
    }
    if (run->segments > 1 && (error == EIO || error == EINVAL || error == EMSGSIZE)) {
        if (error == EIO)
            path->segments_max = 1; /* so it will be every time */
        send_singly(path, run);
    } else {
        COUNT(path, drop_send_failed, run->segments);
    }
    return false;
}

void trimaran_encap_transmit_flush(trimaran_encap_path *path)
{
    transmit_batch *batch = &path->transmit;
    uint32_t sent = 0;
    int waits = 0;
    build_messages(batch);
    while (sent < batch->run_count) {
        int result = sendmmsg(path->config.udp_fd, &batch->messages[sent],
                              batch->run_count - sent, 0);
        if (result > 0) {
            sent += (uint32_t)result;
            COUNT(path, sent_messages, (uint64_t)result);
        } else if (!recover(path, &batch->runs[sent], errno, &waits)) {
            sent++;
        }
    }
    batch->used = 0;
    batch->run_count = 0;
    batch->chunk_count = 0;
    memset(batch->slots, 0, sizeof batch->slots);
}

int trimaran_encap_fast_transmit(trimaran_encap_path *path, const route_table *table)
{
    trimaran_encap_offload offload;
    int reads = 0;
    ssize_t size = 0;
    while (reads < TUN_READS_MAX) {
        size = trimaran_encap_tun_read(path, &offload);
        if (size <= 0)
            break;
        reads++;
        uint64_t peer =
            trimaran_encap_admit_sent(path, table, path->tun_buffer, (size_t)size);
        if (peer != 0)
            trimaran_encap_transmit_packet(path, path->tun_buffer, (size_t)size, &offload, peer);
    }
    trimaran_encap_transmit_flush(path);
    return size < 0 ? (int)size : reads;
}
