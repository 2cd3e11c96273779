/* One packet for each system call, no offloads: for kernels that have none, and to measure
 * against. The two directions take turns while either has packets, as flannel's proxy does. */
#include "encap_internal.h"

#include <errno.h>

/* A packet the kernel queued while offloads were still on. */
static void send_segmented(trimaran_encap_path *path, size_t length,
                           const trimaran_encap_offload *offload, uint64_t peer)
{
    trimaran_encap_transmit_packet(path, path->tun_buffer, length, offload, peer);
    trimaran_encap_transmit_flush(path);
}

int trimaran_encap_plain_transmit(trimaran_encap_path *path, const route_table *table)
{
    trimaran_encap_offload offload;
    ssize_t size = trimaran_encap_tun_read(path, &offload);
    if (size <= 0)
        return (int)size;
    uint64_t peer = trimaran_encap_admit_sent(path, table, path->tun_buffer, (size_t)size);
    if (peer == 0)
        return 1;
    if (offload.flags != 0 || offload.gso_type != TRIMARAN_ENCAP_GSO_NONE) {
        send_segmented(path, (size_t)size, &offload, peer);
        return 1;
    }
    if (trimaran_encap_send_one(path, path->tun_buffer, (size_t)size, peer) != 0) {
        COUNT(path, drop_send_failed, 1);
        return 1;
    }
    COUNT(path, sent_packets, 1);
    COUNT(path, sent_bytes, (uint64_t)size);
    COUNT(path, sent_messages, 1);
    return 1;
}

int trimaran_encap_plain_receive(trimaran_encap_path *path, const route_table *table)
{
    struct sockaddr_in from = {0};
    socklen_t from_length = sizeof from;
    uint8_t *packet = path->receive.slots;
    trimaran_encap_packet parsed;
    trimaran_encap_offload offload = {0};
    ssize_t size = recvfrom(path->config.udp_fd, packet, RECEIVE_SLOT_LENGTH,
                            MSG_DONTWAIT | MSG_TRUNC, (struct sockaddr *)&from, &from_length);
    if (size < 0)
        return errno == EBADF || errno == ENOTSOCK ? -errno : 0;
    COUNT(path, received_messages, 1);
    if (size > RECEIVE_SLOT_LENGTH) {
        COUNT(path, drop_truncated, 1);
        return 1;
    }
    if (trimaran_encap_admit_received(path, table, packet, (size_t)size, peer_entry(&from),
                                      &parsed) != 0)
        return 1;
    struct iovec vectors[2] = {{0}, {.iov_base = packet, .iov_len = (size_t)size}};
    trimaran_encap_tun_write(path, &offload, vectors, 1);
    return 1;
}
