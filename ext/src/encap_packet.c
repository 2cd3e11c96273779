/* Parsing of inner packets, and the hop each takes. */
#include "encap_internal.h"

#include <errno.h>

/* Check the TCP or UDP header of a packet that holds it whole, and find its payload. */
static int parse_transport(const uint8_t *packet, trimaran_encap_packet *parsed)
{
    const uint8_t *header = packet + parsed->header_length;
    size_t room = (size_t)parsed->length - parsed->header_length;
    size_t header_length;
    if (parsed->protocol == IPPROTO_TCP) {
        if (room < TCP_HEADER)
            return -EBADMSG;
        header_length = (size_t)(header[12] >> 4) * 4;
        if (header_length < TCP_HEADER || header_length > room)
            return -EBADMSG;
    } else if (parsed->protocol == IPPROTO_UDP) {
        if (room < UDP_HEADER)
            return -EBADMSG;
        /* Shorter than the room is allowed: the surplus may hold options (RFC 9868). */
        size_t length = read16(header + 4);
        if (length < UDP_HEADER || length > room)
            return -EBADMSG;
        header_length = UDP_HEADER;
    } else {
        return 0;
    }
    parsed->payload_offset = (uint16_t)(parsed->header_length + header_length);
    return 0;
}

int trimaran_encap_parse(const uint8_t *packet, size_t length, trimaran_encap_packet *parsed)
{
    if (length == 0)
        return -EBADMSG;
    if (packet[0] >> 4 != 4)
        return -EPFNOSUPPORT;
    if (length < IPV4_HEADER || length > TRIMARAN_ENCAP_PACKET_MAX)
        return -EBADMSG;
    size_t header_length = (size_t)(packet[0] & 15) * 4;
    if (header_length < IPV4_HEADER || header_length > length || read16(packet + 2) != length)
        return -EBADMSG;
    uint16_t fragment = read16(packet + 6);
    *parsed = (trimaran_encap_packet){
        .source = read32(packet + 12),
        .destination = read32(packet + 16),
        .length = (uint16_t)length,
        .header_length = (uint16_t)header_length,
        .payload_offset = (uint16_t)header_length,
        .fragment_offset = fragment & IPV4_OFFSET_MASK,
        .protocol = packet[9],
        .ttl = packet[8],
        .more_fragments = (fragment & IPV4_MORE_FRAGMENTS) != 0,
    };
    /* Fragments that would end past the longest packet exist only to harm who reassembles. */
    if (parsed->fragment_offset * 8u + length > TRIMARAN_ENCAP_PACKET_MAX)
        return -EBADMSG;
    if (parsed->fragment_offset != 0 || parsed->more_fragments)
        return 0;
    return parse_transport(packet, parsed);
}

int trimaran_encap_verify(const uint8_t *packet, const trimaran_encap_packet *parsed)
{
    uint64_t sum = trimaran_encap_sum(packet, parsed->header_length, 0);
    return trimaran_encap_fold(sum) == 0 ? 0 : -EBADMSG;
}

int trimaran_encap_decrement_ttl(uint8_t *packet)
{
    if (packet[8] == 0)
        return 0;
    /* RFC 1624, equation 3: the old word leaves as its complement, the new one enters. */
    uint32_t sum = (uint16_t)~read16(packet + 10);
    sum += (uint16_t)~read16(packet + 8);
    packet[8]--;
    sum += read16(packet + 8);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    write16(packet + 10, (uint16_t)~sum);
    return packet[8];
}
