/* CRC-32C (Castagnoli, RFC 3720 appendix B.4), by the processor's instruction where it has one. */
#ifndef TRIMARAN_CRC32C_H
#define TRIMARAN_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continue crc (0 at the start) over size bytes. */
uint32_t trimaran_crc32c(uint32_t crc, const void *data, size_t size);
/* The same without the instruction; the tests compare the two. */
uint32_t trimaran_crc32c_portable(uint32_t crc, const void *data, size_t size);

#endif
