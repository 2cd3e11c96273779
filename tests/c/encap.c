/* The packet path's pure functions: build a large TCP packet, cut it, join it, route it. */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <trimaran/encap.h>

#include "check.h"

#define HEADERS 40u
#define SEGMENT 1000u
#define COUNT 5u
#define PAYLOAD (SEGMENT * COUNT - 300u)

static void put16(uint8_t *at, uint16_t value)
{
    value = htons(value);
    memcpy(at, &value, 2);
}

static void put32(uint8_t *at, uint32_t value)
{
    value = htonl(value);
    memcpy(at, &value, 4);
}

static size_t build(uint8_t *packet)
{
    uint16_t checksum;

    memset(packet, 0, HEADERS);
    packet[0] = 0x45;
    put16(packet + 2, HEADERS + PAYLOAD);
    packet[8] = 64;
    packet[9] = 6;
    put32(packet + 12, 0x0a010203);
    put32(packet + 16, 0x0a020304);
    put16(packet + 20, 1234);
    put16(packet + 22, 80);
    packet[32] = 0x50;
    packet[33] = 0x10;
    for (size_t i = 0; i < PAYLOAD; i++)
        packet[HEADERS + i] = (uint8_t)(i * 7);
    checksum = trimaran_encap_fold(trimaran_encap_sum(packet, 20, 0));
    memcpy(packet + 10, &checksum, 2);
    return HEADERS + PAYLOAD;
}

static void cut_and_join(const uint8_t *packet, size_t length)
{
    static uint8_t cut[16384], joined[16384];
    trimaran_encap_offload offload = {.flags = TRIMARAN_ENCAP_NEEDS_CHECKSUM,
                                      .gso_type = TRIMARAN_ENCAP_GSO_TCP4,
                                      .header_length = HEADERS,
                                      .gso_size = SEGMENT,
                                      .checksum_start = 20,
                                      .checksum_offset = 16};
    trimaran_encap_merged merged[COUNT];
    trimaran_encap_span spans[COUNT];
    trimaran_encap_packet parsed;
    size_t size, total;

    CHECK(trimaran_encap_segment(packet, length, &offload, cut, sizeof cut, &size, &total)
          == COUNT);
    CHECK(size == HEADERS + SEGMENT && total == COUNT * HEADERS + PAYLOAD);
    for (size_t i = 0; i < COUNT; i++) {
        size_t left = total - i * size;
        spans[i] = (trimaran_encap_span){cut + i * size, left < size ? left : size};
        CHECK(trimaran_encap_parse(spans[i].data, spans[i].length, &parsed) == 0);
        CHECK(trimaran_encap_verify(spans[i].data, &parsed) == 0);
    }
    CHECK(trimaran_encap_coalesce(spans, COUNT, 0, joined, sizeof joined, merged) == 1);
    CHECK(merged[0].length == length);
    CHECK(memcmp(joined + merged[0].offset + HEADERS, packet + HEADERS, PAYLOAD) == 0);
}

static void route(void)
{
    trimaran_encap_routes *routes;
    trimaran_encap_peer peer;
    trimaran_encap_route to = {0x0a020300, 24, {0xc0a80001, TRIMARAN_ENCAP_PORT, 0}};

    CHECK(trimaran_encap_routes_open(0x0a000000, 8, 24, &routes) == 0);
    CHECK(trimaran_encap_routes_set(routes, &to) == 0);
    CHECK(trimaran_encap_routes_lookup(routes, 0x0a020304, &peer) == 0);
    CHECK(peer.address == 0xc0a80001 && peer.port == TRIMARAN_ENCAP_PORT);
    CHECK(trimaran_encap_routes_lookup(routes, 0x0a020404, &peer) == -ENETUNREACH);
    trimaran_encap_routes_close(routes);
}

int main(void)
{
    static uint8_t packet[8192];
    trimaran_encap_packet parsed;
    size_t length = build(packet);

    CHECK(trimaran_encap_parse(packet, length, &parsed) == 0);
    CHECK(parsed.source == 0x0a010203 && parsed.destination == 0x0a020304);
    CHECK(trimaran_encap_verify(packet, &parsed) == 0);
    CHECK(trimaran_encap_parse(packet, length - 1, &parsed) == -EBADMSG);
    cut_and_join(packet, length);
    CHECK(trimaran_encap_decrement_ttl(packet) == 63);
    CHECK(trimaran_encap_parse(packet, length, &parsed) == 0);
    CHECK(trimaran_encap_verify(packet, &parsed) == 0);
    route();
    printf("%u segments\n", COUNT);
    return 0;
}
