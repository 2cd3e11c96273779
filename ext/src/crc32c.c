#include "crc32c.h"

#include <endian.h>
#include <pthread.h>
#include <string.h>

#define POLYNOMIAL 0x82f63b78u /* reflected */

/* table[k][b]: the CRC of byte b followed by k zero bytes, so that 8 bytes are folded at once. */
static uint32_t table[8][256];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void fill_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? POLYNOMIAL : 0);
        table[0][byte] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int byte = 0; byte < 256; byte++)
            table[k][byte] = (table[k - 1][byte] >> 8) ^ table[0][table[k - 1][byte] & 0xff];
}

uint32_t trimaran_crc32c_portable(uint32_t crc, const void *data, size_t size)
{
    const uint8_t *bytes = data;

    pthread_once(&table_once, fill_table);
    crc = ~crc;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        word = le64toh(word) ^ crc;
        crc = 0;
        for (int k = 0; k < 8; k++)
            crc ^= table[7 - k][(word >> (8 * k)) & 0xff];
    }
    for (; size > 0; size--, bytes++)
        crc = (crc >> 8) ^ table[0][(crc ^ *bytes) & 0xff];
    return ~crc;
}

#if defined(__x86_64__)

__attribute__((target("sse4.2"))) static uint32_t with_instruction(uint32_t crc, const void *data,
                                                                   size_t size)
{
    const uint8_t *bytes = data;
    uint64_t wide = (uint32_t)~crc;

    for (; size >= 8; size -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = (uint32_t)wide;
    for (; size > 0; size--, bytes++)
        crc = __builtin_ia32_crc32qi(crc, *bytes);
    return ~crc;
}

static int have_instruction(void)
{
    return __builtin_cpu_supports("sse4.2");
}

#elif defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif

__attribute__((target("+crc"))) static uint32_t with_instruction(uint32_t crc, const void *data,
                                                                 size_t size)
{
    const uint8_t *bytes = data;

    crc = ~crc;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        crc = __builtin_aarch64_crc32cx(crc, word);
    }
    for (; size > 0; size--, bytes++)
        crc = __builtin_aarch64_crc32cb(crc, *bytes);
    return ~crc;
}

static int have_instruction(void)
{
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
}

#else

static uint32_t with_instruction(uint32_t crc, const void *data, size_t size)
{
    return trimaran_crc32c_portable(crc, data, size);
}

static int have_instruction(void)
{
    return 0;
}

#endif

uint32_t trimaran_crc32c(uint32_t crc, const void *data, size_t size)
{
    return have_instruction() ? with_instruction(crc, data, size)
                              : trimaran_crc32c_portable(crc, data, size);
}
