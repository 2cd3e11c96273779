/* Software segmentation: one large packet of a TUN device with offloads becomes the packets that
 * go over the wire. */
#include "encap_internal.h"

#include <assert.h>
#include <errno.h>

/* What is the same for all segments of one packet. */
typedef struct segment_plan {
    size_t headers;        /* bytes of IP and TCP or UDP header */
    size_t header_length;  /* of the IP header */
    size_t payload_length; /* of each segment but the last */
    size_t payload_total;
    size_t count;
} segment_plan;

/* A packet that is not to be cut: copy it, and finish the checksum the kernel left open. */
static int copy_whole(const uint8_t *packet, size_t length, const trimaran_encap_offload *offload,
                      uint8_t *out, size_t capacity)
{
    if (length > capacity)
        return -ENOSPC;
    size_t start = offload->checksum_start;
    size_t field = start + offload->checksum_offset;
    bool open = (offload->flags & TRIMARAN_ENCAP_NEEDS_CHECKSUM) != 0;
    if (open && (start < IPV4_HEADER || start >= length || field + 2 > length))
        return -EBADMSG;
    memcpy(out, packet, length);
    if (!open)
        return 1;
    /* The field holds the sum of the pseudo header, so it takes part in the sum. */
    uint16_t checksum = trimaran_encap_fold(trimaran_encap_sum(out + start, length - start, 0));
    if (checksum == 0 && packet[9] == IPPROTO_UDP)
        checksum = 0xffff; /* 0 would say that there is no checksum (RFC 768) */
    store_checksum(out + field, checksum);
    return 1;
}

static int make_plan(const trimaran_encap_packet *parsed, const trimaran_encap_offload *offload,
                     segment_plan *plan)
{
    uint8_t type = offload->gso_type & (uint8_t)~TRIMARAN_ENCAP_GSO_ECN;
    bool tcp = type == TRIMARAN_ENCAP_GSO_TCP4 && parsed->protocol == IPPROTO_TCP;
    bool udp = type == TRIMARAN_ENCAP_GSO_UDP_L4 && parsed->protocol == IPPROTO_UDP;
    if ((!tcp && !udp) || parsed->payload_offset == parsed->header_length)
        return -EBADMSG;
    if (offload->gso_size == 0 || parsed->length == parsed->payload_offset)
        return -EBADMSG;
    plan->headers = parsed->payload_offset;
    plan->header_length = parsed->header_length;
    plan->payload_length = offload->gso_size;
    plan->payload_total = (size_t)parsed->length - parsed->payload_offset;
    plan->count = (plan->payload_total + plan->payload_length - 1) / plan->payload_length;
    if (plan->count > 1 && plan->headers + plan->payload_length > TRIMARAN_ENCAP_PACKET_MAX)
        return -EBADMSG;
    return 0;
}

/* Write the headers of segment `index` at `out`, all but the TCP or UDP checksum. */
static void write_headers(const uint8_t *packet, const segment_plan *plan, size_t index,
                          size_t payload, uint8_t *out)
{
    memcpy(out, packet, plan->headers);
    write16(out + 2, (uint16_t)(plan->headers + payload));
    write16(out + 4, (uint16_t)(read16(packet + 4) + index));
    trimaran_encap_set_ip_checksum(out, plan->header_length);
    uint8_t *transport = out + plan->header_length;
    if (packet[9] == IPPROTO_UDP) {
        write16(transport + 4, (uint16_t)(UDP_HEADER + payload));
        return;
    }
    uint32_t sequence = read32(transport + 4) + (uint32_t)(index * plan->payload_length);
    write32(transport + 4, sequence);
    if (index != 0)
        transport[13] &= (uint8_t)~TCP_CWR;
    if (index + 1 != plan->count)
        transport[13] &= (uint8_t) ~(TCP_PSH | TCP_FIN);
}

static void write_transport_checksum(uint8_t *out, const segment_plan *plan, size_t payload)
{
    bool udp = out[9] == IPPROTO_UDP;
    uint8_t *transport = out + plan->header_length;
    uint8_t *field = transport + (udp ? UDP_CHECKSUM_OFFSET : TCP_CHECKSUM_OFFSET);
    size_t length = plan->headers - plan->header_length + payload;
    write16(field, 0);
    uint64_t sum = trimaran_encap_pseudo_sum(out, out[9], (uint16_t)length);
    uint16_t checksum = trimaran_encap_fold(trimaran_encap_sum(transport, length, sum));
    if (checksum == 0 && udp)
        checksum = 0xffff;
    store_checksum(field, checksum);
}

int trimaran_encap_segment(const uint8_t *packet, size_t length,
                           const trimaran_encap_offload *offload, uint8_t *out, size_t capacity,
                           size_t *segment_length, size_t *total)
{
    trimaran_encap_packet parsed;
    segment_plan plan;
    int error = trimaran_encap_parse(packet, length, &parsed);
    if (error != 0)
        return error;
    *segment_length = *total = length;
    if (offload->gso_type == TRIMARAN_ENCAP_GSO_NONE)
        return copy_whole(packet, length, offload, out, capacity);
    error = make_plan(&parsed, offload, &plan);
    if (error != 0)
        return error;
    *total = plan.payload_total + plan.count * plan.headers;
    if (*total > capacity)
        return -ENOSPC;
    const uint8_t *payload = packet + plan.headers;
    size_t left = plan.payload_total;
    for (size_t index = 0; index < plan.count; index++) {
        size_t piece = left < plan.payload_length ? left : plan.payload_length;
        assert(piece > 0);
        write_headers(packet, &plan, index, piece, out);
        memcpy(out + plan.headers, payload, piece);
        write_transport_checksum(out, &plan, piece);
        if (index == 0)
            *segment_length = plan.headers + piece;
        out += plan.headers + piece;
        payload += piece;
        left -= piece;
    }
    assert(left == 0);
    return (int)plan.count;
}
