/* The internet checksum. */
#include "encap_internal.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define WIDEST __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define WIDEST
#endif

/* 32-bit words into 64-bit lanes never carry out for any packet, so the compiler may use the
 * widest vectors the machine has. */
WIDEST uint64_t trimaran_encap_sum(const void *data, size_t length, uint64_t sum)
{
    const uint8_t *bytes = data;
    size_t words = length / 4;
    for (size_t index = 0; index < words; index++) {
        uint32_t word;
        memcpy(&word, bytes + index * 4, sizeof word);
        sum += word;
    }
    bytes += words * 4;
    if (length & 2) {
        uint16_t word;
        memcpy(&word, bytes, sizeof word);
        sum += word;
        bytes += 2;
    }
    if (length & 1) {
        uint8_t last[2] = {*bytes, 0};
        uint16_t word;
        memcpy(&word, last, sizeof word);
        sum += word;
    }
    return sum;
}

uint16_t trimaran_encap_fold(uint64_t sum)
{
    sum = (sum >> 32) + (sum & 0xffffffff);
    sum = (sum >> 32) + (sum & 0xffffffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    return (uint16_t)~sum;
}

uint64_t trimaran_encap_pseudo_sum(const uint8_t *packet, uint8_t protocol, uint16_t length)
{
    return trimaran_encap_sum(packet + 12, 8, (uint64_t)htons(protocol) + htons(length));
}

void trimaran_encap_set_ip_checksum(uint8_t *packet, size_t header_length)
{
    write16(packet + 10, 0);
    store_checksum(packet + 10, trimaran_encap_fold(trimaran_encap_sum(packet, header_length, 0)));
}
