/* Random and half-right packets through every pure function of the packet path. Compiled with
 * sanitizers, which end the program at the first byte read or written out of bounds.
 *
 * Usage: encap_fuzz SEED ROUNDS */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <trimaran/encap.h>

#define PACKETS_MAX 300

static uint64_t state;

static uint32_t draw(uint32_t below)
{
    /* splitmix64 */
    uint64_t value = state += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((value ^ value >> 31) % below);
}

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* A packet that parses more often than not, in a buffer of exactly its length. */
static uint8_t *make_packet(size_t *length)
{
    static const uint8_t protocols[] = {6, 6, 6, 17, 17, 1, 99};
    *length = draw(8) == 0 ? draw(60) : 40 + draw(draw(10) == 0 ? 65000 : 200);
    uint8_t *packet = malloc(*length + (*length == 0));
    for (size_t at = 0; at < *length; at++)
        packet[at] = at < 80 ? (uint8_t)draw(256) : 0xaa;
    if (*length < 40 || draw(20) == 0)
        return packet;
    uint32_t words = draw(4) == 0 ? draw(16) : 5;
    packet[0] = (uint8_t)(0x40 | words);
    packet[1] = 0;
    put16(packet + 2, draw(10) == 0 ? draw(65536) : (uint32_t)*length);
    put16(packet + 6, draw(10) == 0 ? draw(65536) : 0x4000);
    packet[8] = 64;
    packet[9] = protocols[draw(sizeof protocols)];
    memset(packet + 12, 10, 8);
    put16(packet + 10, 0);
    size_t header = words * 4 <= *length ? words * 4 : *length;
    uint16_t folded = trimaran_encap_fold(trimaran_encap_sum(packet, header, 0));
    memcpy(packet + 10, &folded, 2);
    uint8_t *transport = packet + header;
    if (header + 20 > *length)
        return packet;
    memset(transport, (int)draw(2), 4);
    if (packet[9] == 17)
        put16(transport + 4, draw(4) == 0 ? draw(65536) : (uint32_t)(*length - header));
    else
        transport[12] = draw(4) == 0 ? (uint8_t)draw(256) : 0x50;
    transport[13] = 0x10;
    return packet;
}

static void check_segments(const uint8_t *packet, size_t length)
{
    trimaran_encap_offload offload = {
        .flags = (uint8_t)draw(3),
        .gso_type = (uint8_t)(draw(6) == 0 ? draw(256) : draw(2) * 4 + 1),
        .header_length = (uint16_t)draw(65536),
        .gso_size = (uint16_t)(draw(4) == 0 ? draw(65536) : 1 + draw(1500)),
        .checksum_start = (uint16_t)(draw(2) == 0 ? draw(65536) : 20),
        .checksum_offset = (uint16_t)(draw(2) == 0 ? draw(65536) : 16),
    };
    size_t capacity = draw(2) == 0 ? 1u << 20 : draw(100000);
    uint8_t *out = malloc(capacity + 1);
    size_t step;
    size_t total;
    int count = trimaran_encap_segment(packet, length, &offload, out, capacity, &step, &total);
    for (int index = 0; index < count; index++) {
        trimaran_encap_packet parsed;
        size_t at = (size_t)index * step;
        size_t size = total - at < step ? total - at : step;
        assert(trimaran_encap_parse(out + at, size, &parsed) == 0);
    }
    assert(count < 0 || (total <= capacity && (size_t)count * step >= total));
    free(out);
}

static void check_joining(uint8_t **packets, const size_t *lengths, size_t count)
{
    trimaran_encap_span spans[PACKETS_MAX];
    trimaran_encap_merged merged[PACKETS_MAX];
    size_t total = 0;
    for (size_t index = 0; index < count; index++) {
        spans[index] = (trimaran_encap_span){packets[index], lengths[index]};
        total += lengths[index];
    }
    size_t capacity = draw(4) == 0 ? draw((uint32_t)total + 1) : total;
    uint8_t *out = malloc(capacity + 1);
    int found = trimaran_encap_coalesce(spans, count, (int)draw(2), out, capacity, merged);
    assert(found <= (int)count);
    for (int index = 0; index < found; index++)
        assert(merged[index].offset + merged[index].length <= capacity);
    free(out);
}

int main(int count_of_words, char **words)
{
    assert(count_of_words == 3);
    state = strtoull(words[1], NULL, 10);
    long rounds = strtol(words[2], NULL, 10);
    long parsed_count = 0;
    for (long round = 0; round < rounds; round++) {
        uint8_t *packets[PACKETS_MAX];
        size_t lengths[PACKETS_MAX];
        size_t count = 1 + draw(draw(50) == 0 ? PACKETS_MAX : 8);
        for (size_t index = 0; index < count; index++) {
            uint8_t *packet = packets[index] = make_packet(&lengths[index]);
            uint8_t answer[TRIMARAN_ENCAP_ICMP_LENGTH_MAX];
            trimaran_encap_packet parsed;
            if (trimaran_encap_parse(packet, lengths[index], &parsed) == 0) {
                parsed_count++;
                trimaran_encap_verify(packet, &parsed);
            }
            trimaran_encap_icmp_error(packet, lengths[index], 1, 3, 0, answer);
            check_segments(packet, lengths[index]);
        }
        check_joining(packets, lengths, count);
        for (size_t index = 0; index < count; index++)
            free(packets[index]);
    }
    printf("%ld\n", parsed_count);
    return 0;
}
