/* UDP to TUN in batches: receive with GRO, split, check, join, write with a vnet header. */
#include "encap_internal.h"

#include <errno.h>
#include <netinet/udp.h>

#ifndef UDP_GRO /* Linux 5.0 */
#define UDP_GRO 104
#endif
#define RECEIVE_ROUNDS_MAX 4

void trimaran_encap_receive_prepare(trimaran_encap_path *path)
{
    receive_batch *batch = &path->receive;
    for (int index = 0; index < RECEIVE_SLOTS; index++) {
        batch->vectors[index] =
            (struct iovec){.iov_base = batch->slots + (size_t)index * RECEIVE_SLOT_LENGTH,
                           .iov_len = RECEIVE_SLOT_LENGTH};
        batch->messages[index].msg_hdr = (struct msghdr){
            .msg_name = &batch->addresses[index],
            .msg_iov = &batch->vectors[index],
            .msg_iovlen = 1,
            .msg_control = batch->controls[index],
        };
    }
    trimaran_encap_coalescer_reset(&batch->coalescer, path->tun_udp_offload);
}

/* The length of each datagram in a GRO run; the whole message where it is but one. */
static uint32_t datagram_length(struct msghdr *message, uint32_t length)
{
    for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control != NULL;
         control = CMSG_NXTHDR(message, control)) {
        if (control->cmsg_level == IPPROTO_UDP && control->cmsg_type == UDP_GRO) {
            int size;
            memcpy(&size, CMSG_DATA(control), sizeof size);
            return size > 0 && (uint32_t)size < length ? (uint32_t)size : length;
        }
    }
    return length;
}

static void write_group(trimaran_encap_path *path, coalesce_group *group)
{
    const coalescer *state = &path->receive.coalescer;
    struct iovec vectors[COALESCE_JOIN_MAX + 1];
    int count = 0;
    for (uint32_t next = group->first_piece; next != 0; next = state->pieces[next - 1].next) {
        const coalesce_piece *piece = &state->pieces[next - 1];
        vectors[++count] = (struct iovec){.iov_base = piece->data, .iov_len = piece->length};
    }
    trimaran_encap_coalescer_finish(group);
    if (count > 1)
        COUNT(path, coalesced_packets, (uint64_t)count - 1);
    trimaran_encap_tun_write(path, &group->offload, vectors, count);
}

static void write_groups(trimaran_encap_path *path)
{
    coalescer *state = &path->receive.coalescer;
    for (uint32_t index = 0; index < state->group_count; index++)
        write_group(path, &state->groups[index]);
    trimaran_encap_coalescer_reset(state, path->tun_udp_offload);
}

static void write_alone(trimaran_encap_path *path, uint8_t *packet, size_t length)
{
    trimaran_encap_offload offload = {0};
    struct iovec vectors[2] = {{0}, {.iov_base = packet, .iov_len = length}};
    trimaran_encap_tun_write(path, &offload, vectors, 1);
}

static void take_message(trimaran_encap_path *path, const route_table *table,
                         struct mmsghdr *received)
{
    struct msghdr *message = &received->msg_hdr;
    uint8_t *data = message->msg_iov->iov_base;
    uint32_t left = received->msg_len;
    uint64_t sender = peer_entry(message->msg_name);
    trimaran_encap_packet parsed;
    COUNT(path, received_messages, 1);
    if (message->msg_flags & MSG_TRUNC) {
        COUNT(path, drop_truncated, 1);
        return;
    }
    if (left == 0)
        COUNT(path, drop_malformed, 1);
    uint32_t step = datagram_length(message, left);
    for (; left > 0; data += step, left -= step) {
        if (step > left)
            step = left;
        if (trimaran_encap_admit_received(path, table, data, step, sender, &parsed) != 0)
            continue;
        if (!path->vnet_header) {
            write_alone(path, data, step);
        } else if (trimaran_encap_coalescer_add(&path->receive.coalescer, data, &parsed) != 0) {
            write_groups(path);
            trimaran_encap_coalescer_add(&path->receive.coalescer, data, &parsed);
        }
    }
}

int trimaran_encap_fast_receive(trimaran_encap_path *path, const route_table *table)
{
    receive_batch *batch = &path->receive;
    int taken = 0;
    for (int round = 0; round < RECEIVE_ROUNDS_MAX; round++) {
        for (int index = 0; index < RECEIVE_SLOTS; index++) {
            struct msghdr *message = &batch->messages[index].msg_hdr;
            message->msg_namelen = sizeof batch->addresses[index];
            message->msg_controllen = sizeof batch->controls[index];
        }
        int count = recvmmsg(path->config.udp_fd, batch->messages, RECEIVE_SLOTS, MSG_DONTWAIT,
                             NULL);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && (errno == EBADF || errno == ENOTSOCK))
            return -errno;
        if (count <= 0) /* nothing waits, or an error a peer's host has sent us */
            break;
        for (int index = 0; index < count; index++)
            take_message(path, table, &batch->messages[index]);
        write_groups(path);
        taken += count;
        if (count < RECEIVE_SLOTS)
            break;
    }
    return taken;
}
