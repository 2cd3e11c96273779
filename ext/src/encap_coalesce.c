/* Joining of received segments: the reverse of encap_segment.c. */
#include "encap_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

void trimaran_encap_coalescer_reset(coalescer *state, bool udp)
{
    state->udp = udp;
    state->group_count = 0;
    state->piece_count = 0;
    memset(state->slots, 0, sizeof state->slots);
}

static const uint8_t *transport_of(const uint8_t *packet)
{
    return packet + (size_t)(packet[0] & 15) * 4;
}

/* Find the slot of a packet's flow: its own if it has one, else a free one near its hash, else that
 * of another flow, which only loses a chance to be joined. A slot once taken is not freed before
 * reset, so no older slot of the same flow can lie behind. */
static uint16_t *flow_slot(coalescer *state, const uint8_t *packet)
{
    uint64_t addresses;
    uint32_t ports;
    memcpy(&addresses, packet + 12, sizeof addresses);
    memcpy(&ports, transport_of(packet), sizeof ports);
    uint64_t hash = addresses * 0x9e3779b97f4a7c15u;
    hash = (hash ^ ports ^ (uint64_t)packet[9] << 32) * 0xbf58476d1ce4e5b9u;
    uint32_t start = (uint32_t)(hash >> 40);
    for (uint32_t probe = 0; probe < COALESCE_PROBES; probe++) {
        uint16_t *slot = &state->slots[(start + probe) & (COALESCE_SLOTS - 1)];
        if (*slot == 0)
            return slot;
        const uint8_t *owner = state->groups[*slot - 1].first;
        if (memcmp(owner + 12, packet + 12, 8) == 0 && owner[9] == packet[9] &&
            memcmp(transport_of(owner), &ports, sizeof ports) == 0)
            return slot;
    }
    return &state->slots[start & (COALESCE_SLOTS - 1)];
}

static bool checksum_holds(const uint8_t *packet, const trimaran_encap_packet *parsed)
{
    uint16_t length = (uint16_t)(parsed->length - parsed->header_length);
    uint64_t sum = trimaran_encap_pseudo_sum(packet, parsed->protocol, length);
    return trimaran_encap_fold(trimaran_encap_sum(packet + IPV4_HEADER, length, sum)) == 0;
}

/* Tell whether a packet may be part of a group. Its checksum is looked at because the kernel takes
 * a joined packet's as right, so a broken one would be hidden. */
static bool can_join(const coalescer *state, const uint8_t *packet,
                     const trimaran_encap_packet *parsed)
{
    const uint8_t *transport = packet + IPV4_HEADER;
    if (parsed->header_length != IPV4_HEADER || parsed->payload_offset >= parsed->length)
        return false;
    if (parsed->protocol == IPPROTO_TCP) {
        if ((transport[13] & ~(TCP_PSH | TCP_FIN)) != TCP_ACK || (transport[12] & 15) != 0)
            return false;
    } else {
        if (!state->udp || read16(transport + UDP_CHECKSUM_OFFSET) == 0)
            return false;
        if (read16(transport + 4) != parsed->length - IPV4_HEADER)
            return false;
    }
    return checksum_holds(packet, parsed);
}

/* Compare all header fields that every packet of a group shares. */
static bool same_headers(const uint8_t *one, const uint8_t *other, uint8_t protocol,
                         size_t header_length)
{
    /* Type of service; fragment flags, time to live, protocol; addresses and ports. */
    if (one[1] != other[1] || memcmp(one + 6, other + 6, 4) != 0 ||
        memcmp(one + 12, other + 12, 12) != 0)
        return false;
    if (protocol == IPPROTO_UDP)
        return true;
    const uint8_t *left = one + IPV4_HEADER;
    const uint8_t *right = other + IPV4_HEADER;
    /* Acknowledgement and data offset; window; urgent pointer and options. */
    return memcmp(left + 8, right + 8, 5) == 0 && memcmp(left + 14, right + 14, 2) == 0 &&
           memcmp(left + 18, right + 18, header_length - IPV4_HEADER - 18) == 0;
}

static bool extends(const coalesce_group *group, const uint8_t *packet,
                    const trimaran_encap_packet *parsed)
{
    uint32_t payload = (uint32_t)parsed->length - parsed->payload_offset;
    if (group->closed || group->protocol != parsed->protocol ||
        group->header_length != parsed->payload_offset || payload > group->payload_length)
        return false;
    if (group->length + payload > TRIMARAN_ENCAP_PACKET_MAX || group->count >= COALESCE_JOIN_MAX)
        return false;
    if (parsed->protocol == IPPROTO_TCP &&
        read32(packet + IPV4_HEADER + 4) != group->next_sequence)
        return false;
    /* The identification only matters to packets that may be fragmented (RFC 6864). */
    if ((read16(packet + 6) & IPV4_DONT_FRAGMENT) == 0 && read16(packet + 4) != group->next_id)
        return false;
    return same_headers(group->first, packet, parsed->protocol, group->header_length);
}

static void append_piece(coalescer *state, coalesce_group *group, uint8_t *data, uint32_t length)
{
    coalesce_piece *piece = &state->pieces[state->piece_count++];
    *piece = (coalesce_piece){.data = data, .length = length};
    if (group->last_piece == 0)
        group->first_piece = state->piece_count;
    else
        state->pieces[group->last_piece - 1].next = state->piece_count;
    group->last_piece = state->piece_count;
}

/* Note what the packet just taken says about those that may follow it. */
static void follow(coalesce_group *group, const uint8_t *packet, uint32_t payload)
{
    group->next_id = (uint16_t)(read16(packet + 4) + 1);
    if (payload < group->payload_length)
        group->closed = true;
    if (group->protocol != IPPROTO_TCP)
        return;
    const uint8_t *transport = packet + IPV4_HEADER;
    group->next_sequence = read32(transport + 4) + payload;
    group->closing_flags = transport[13] & (TCP_PSH | TCP_FIN);
    if (group->closing_flags != 0)
        group->closed = true;
}

static coalesce_group *new_group(coalescer *state, uint8_t *packet,
                                 const trimaran_encap_packet *parsed)
{
    coalesce_group *group = &state->groups[state->group_count++];
    *group = (coalesce_group){
        .first = packet,
        .length = parsed->length,
        .header_length = parsed->payload_offset,
        .payload_length = (uint32_t)parsed->length - parsed->payload_offset,
        .count = 1,
        .protocol = parsed->protocol,
    };
    append_piece(state, group, packet, parsed->length);
    return group;
}

int trimaran_encap_coalescer_add(coalescer *state, uint8_t *packet,
                                 const trimaran_encap_packet *parsed)
{
    if (state->group_count == COALESCE_GROUPS || state->piece_count == COALESCE_PIECES)
        return -ENOSPC;
    bool fragment = parsed->fragment_offset != 0 || parsed->more_fragments;
    bool flow = !fragment && parsed->payload_offset > parsed->header_length;
    if (!flow) {
        new_group(state, packet, parsed);
        return 0;
    }
    uint16_t *slot = flow_slot(state, packet);
    if (!can_join(state, packet, parsed)) {
        /* Later packets of the flow must not overtake this one, so it takes the slot. */
        new_group(state, packet, parsed)->closed = true;
        *slot = (uint16_t)state->group_count;
        return 0;
    }
    uint32_t payload = (uint32_t)parsed->length - parsed->payload_offset;
    coalesce_group *group = *slot == 0 ? NULL : &state->groups[*slot - 1];
    if (group != NULL && extends(group, packet, parsed)) {
        append_piece(state, group, packet + parsed->payload_offset, payload);
        group->length += payload;
        group->count++;
    } else {
        group = new_group(state, packet, parsed);
        *slot = (uint16_t)state->group_count;
    }
    follow(group, packet, payload);
    return 0;
}

void trimaran_encap_coalescer_finish(coalesce_group *group)
{
    if (group->count == 1)
        return;
    assert(group->length <= TRIMARAN_ENCAP_PACKET_MAX);
    bool udp = group->protocol == IPPROTO_UDP;
    uint8_t *packet = group->first;
    uint8_t *transport = packet + IPV4_HEADER;
    uint16_t transport_length = (uint16_t)(group->length - IPV4_HEADER);
    uint16_t offset = udp ? UDP_CHECKSUM_OFFSET : TCP_CHECKSUM_OFFSET;
    write16(packet + 2, (uint16_t)group->length);
    trimaran_encap_set_ip_checksum(packet, IPV4_HEADER);
    if (udp)
        write16(transport + 4, transport_length);
    else
        transport[13] |= group->closing_flags;
    /* The kernel wants the sum of the pseudo header, and sums the rest where it must. */
    uint64_t sum = trimaran_encap_pseudo_sum(packet, group->protocol, transport_length);
    store_checksum(transport + offset, (uint16_t)~trimaran_encap_fold(sum));
    group->offload = (trimaran_encap_offload){
        .flags = TRIMARAN_ENCAP_NEEDS_CHECKSUM,
        .gso_type = udp ? TRIMARAN_ENCAP_GSO_UDP_L4 : TRIMARAN_ENCAP_GSO_TCP4,
        .header_length = (uint16_t)group->header_length,
        .gso_size = (uint16_t)group->payload_length,
        .checksum_start = IPV4_HEADER,
        .checksum_offset = offset,
    };
}

/* Where trimaran_encap_coalesce puts its result. */
typedef struct coalesce_output {
    uint8_t *out;
    size_t capacity;
    size_t used;
    trimaran_encap_merged *merged;
    int count;
} coalesce_output;

static int write_groups(coalescer *state, coalesce_output *output)
{
    for (uint32_t index = 0; index < state->group_count; index++) {
        coalesce_group *group = &state->groups[index];
        trimaran_encap_coalescer_finish(group);
        if (output->capacity - output->used < group->length)
            return -ENOSPC;
        output->merged[output->count++] = (trimaran_encap_merged){
            .offload = group->offload,
            .offset = (uint32_t)output->used,
            .length = group->length,
        };
        for (uint32_t next = group->first_piece; next != 0; next = state->pieces[next - 1].next) {
            const coalesce_piece *piece = &state->pieces[next - 1];
            memcpy(output->out + output->used, piece->data, piece->length);
            output->used += piece->length;
        }
    }
    trimaran_encap_coalescer_reset(state, state->udp);
    return 0;
}

/* `scratch` holds copies of the packets, one behind the other. */
static int coalesce_all(coalescer *state, const trimaran_encap_span *packets, size_t count,
                        uint8_t *scratch, coalesce_output *output)
{
    for (size_t index = 0; index < count; index++) {
        trimaran_encap_packet parsed;
        size_t length = packets[index].length;
        memcpy(scratch, packets[index].data, length);
        if (trimaran_encap_parse(scratch, length, &parsed) == 0 &&
            trimaran_encap_verify(scratch, &parsed) == 0 &&
            trimaran_encap_coalescer_add(state, scratch, &parsed) == -ENOSPC) {
            int error = write_groups(state, output);
            if (error != 0)
                return error;
            error = trimaran_encap_coalescer_add(state, scratch, &parsed);
            assert(error == 0);
        }
        scratch += length;
    }
    return write_groups(state, output);
}

int trimaran_encap_coalesce(const trimaran_encap_span *packets, size_t count, int udp, uint8_t *out,
                            size_t capacity, trimaran_encap_merged *merged)
{
    size_t total = 0;
    for (size_t index = 0; index < count; index++)
        total += packets[index].length;
    coalescer *state = malloc(sizeof *state);
    uint8_t *scratch = malloc(total + 1);
    coalesce_output output = {.out = out, .capacity = capacity, .merged = merged};
    int error = -ENOMEM;
    if (state != NULL && scratch != NULL) {
        trimaran_encap_coalescer_reset(state, udp != 0);
        error = coalesce_all(state, packets, count, scratch, &output);
    }
    free(scratch);
    free(state);
    return error != 0 ? error : output.count;
}
