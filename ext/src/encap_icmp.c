/* ICMP errors the path sends itself, and the checks that lead to them. */
#include "encap_internal.h"

#include <errno.h>
#include <net/if.h>
#include <netinet/ip_icmp.h>
#include <sys/ioctl.h>
#include <time.h>

#include <linux/if_tun.h>

#define ICMP_TTL 64
#define ICMP_PER_SECOND 100
#define ICMP_BURST 50

/* An address that names one host: not 0/8, loopback, multicast, reserved or broadcast. */
static bool is_one_host(uint32_t address)
{
    uint8_t first = (uint8_t)(address >> 24);
    return first != 0 && first != 127 && first < 224;
}

/* Tell whether an ICMP error must not be answered by another: the packet is one, or is too short
 * to say. */
static bool is_icmp_error(const uint8_t *packet, const trimaran_encap_packet *parsed)
{
    if (parsed->protocol != IPPROTO_ICMP)
        return false;
    if (parsed->length == parsed->header_length)
        return true;
    switch (packet[parsed->header_length]) {
    case ICMP_ECHO:
    case ICMP_ECHOREPLY:
    case ICMP_TIMESTAMP:
    case ICMP_TIMESTAMPREPLY:
        return false;
    default:
        return true;
    }
}

int trimaran_encap_icmp_error(const uint8_t *packet, size_t length, uint32_t from, uint8_t type,
                              uint8_t code, uint8_t *out)
{
    trimaran_encap_packet parsed;
    if (trimaran_encap_parse(packet, length, &parsed) != 0 || parsed.fragment_offset != 0)
        return 0;
    if (!is_one_host(parsed.source) || !is_one_host(parsed.destination) ||
        is_icmp_error(packet, &parsed))
        return 0;
    /* RFC 792: the offender's IP header and the 8 bytes behind it. */
    size_t quoted = (size_t)parsed.header_length + 8;
    if (quoted > length)
        quoted = length;
    size_t total = IPV4_HEADER + 8 + quoted;
    memset(out, 0, IPV4_HEADER + 8);
    out[0] = 0x45;
    out[1] = 0xc0; /* precedence: internetwork control (RFC 1812, 4.3.2.5) */
    write16(out + 2, (uint16_t)total);
    out[8] = ICMP_TTL;
    out[9] = IPPROTO_ICMP;
    write32(out + 12, from);
    write32(out + 16, parsed.source);
    trimaran_encap_set_ip_checksum(out, IPV4_HEADER);
    uint8_t *icmp = out + IPV4_HEADER;
    icmp[0] = type;
    icmp[1] = code;
    memcpy(icmp + 8, packet, quoted);
    store_checksum(icmp + 2, trimaran_encap_fold(trimaran_encap_sum(icmp, 8 + quoted, 0)));
    return (int)total;
}

/* The token bucket of all ICMP errors of a path. */
static bool take_token(trimaran_encap_path *path)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    double elapsed_s = (double)(now_ns - path->icmp_refill_ns) / 1e9;
    path->icmp_refill_ns = now_ns;
    path->icmp_tokens += elapsed_s * ICMP_PER_SECOND;
    if (path->icmp_tokens > ICMP_BURST)
        path->icmp_tokens = ICMP_BURST;
    if (path->icmp_tokens < 1)
        return false;
    path->icmp_tokens -= 1;
    return true;
}

/* The TUN device's own address, 0 if it has none. Asked each time, for it may change; the rate
 * limit keeps this rare. */
static uint32_t tun_address(const trimaran_encap_path *path)
{
    struct ifreq request = {0};
    if (ioctl(path->config.tun_fd, TUNGETIFF, &request) != 0)
        return 0;
    request.ifr_addr.sa_family = AF_INET;
    if (ioctl(path->config.udp_fd, SIOCGIFADDR, &request) != 0)
        return 0;
    struct sockaddr_in address;
    memcpy(&address, &request.ifr_addr, sizeof address);
    return ntohl(address.sin_addr.s_addr);
}

/* Where an answer comes from. A peer's host sees the TUN device's address. Our own kernel drops
 * what seems to come from itself (a martian), so there it is the network's first address, which no
 * host has and which the device has the route of; the second subnet's, should we have the first. */
static uint32_t answer_source(const trimaran_encap_path *path, uint64_t peer)
{
    uint32_t own = tun_address(path);
    if (peer != 0)
        return own;
    uint32_t first = path->config.network;
    return own != first ? first : first + ((uint32_t)1 << (32 - path->config.subnet_length));
}

void trimaran_encap_answer_icmp(trimaran_encap_path *path, const uint8_t *packet, size_t length,
                                uint8_t type, uint64_t peer)
{
    uint8_t answer[TRIMARAN_ENCAP_ICMP_LENGTH_MAX];
    if (!take_token(path))
        return;
    uint32_t from = answer_source(path, peer);
    if (!is_one_host(from))
        return;
    int size = trimaran_encap_icmp_error(packet, length, from, type, 0, answer);
    if (size == 0)
        return;
    COUNT(path, icmp_errors, 1);
    if (peer != 0) {
        if (trimaran_encap_send_one(path, answer, (size_t)size, peer) != 0)
            COUNT(path, drop_send_failed, 1);
        return;
    }
    trimaran_encap_offload offload = {0};
    struct iovec vectors[2] = {{0}, {.iov_base = answer, .iov_len = (size_t)size}};
    trimaran_encap_tun_write(path, &offload, vectors, 1);
}

static void count_unparsed(trimaran_encap_path *path, int error)
{
    if (error == -EPFNOSUPPORT)
        COUNT(path, drop_not_ipv4, 1);
    else
        COUNT(path, drop_malformed, 1);
}

uint64_t trimaran_encap_admit_sent(trimaran_encap_path *path, const route_table *table,
                                   uint8_t *packet, size_t length)
{
    trimaran_encap_packet parsed;
    int error = trimaran_encap_parse(packet, length, &parsed);
    if (error != 0) {
        count_unparsed(path, error);
        return 0;
    }
    uint64_t peer = table_lookup(table, parsed.destination);
    if (peer == 0) {
        COUNT(path, drop_no_route, 1);
        trimaran_encap_answer_icmp(path, packet, length, ICMP_DEST_UNREACH, 0);
        return 0;
    }
    if (parsed.ttl <= 1) {
        COUNT(path, drop_ttl_expired, 1);
        trimaran_encap_answer_icmp(path, packet, length, ICMP_TIME_EXCEEDED, 0);
        return 0;
    }
    trimaran_encap_decrement_ttl(packet);
    return peer;
}

int trimaran_encap_admit_received(trimaran_encap_path *path, const route_table *table,
                                  uint8_t *packet, size_t length, uint64_t sender,
                                  trimaran_encap_packet *parsed)
{
    int error = trimaran_encap_parse(packet, length, parsed);
    if (error == 0)
        error = trimaran_encap_verify(packet, parsed);
    if (error != 0) {
        count_unparsed(path, error);
        return -1;
    }
    if (path->config.strict_source && table_lookup(table, parsed->source) != sender) {
        COUNT(path, drop_wrong_source, 1);
        return -1;
    }
    if (parsed->ttl <= 1) {
        COUNT(path, drop_ttl_expired, 1);
        /* Only a peer that is known is answered: anybody can send a datagram. */
        if (table_lookup(table, parsed->source) == sender)
            trimaran_encap_answer_icmp(path, packet, length, ICMP_TIME_EXCEEDED, sender);
        return -1;
    }
    trimaran_encap_decrement_ttl(packet);
    parsed->ttl--;
    COUNT(path, received_packets, 1);
    COUNT(path, received_bytes, length);
    return 0;
}
