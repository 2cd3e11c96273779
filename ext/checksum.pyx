"""CRC-32C, for Python."""

from libc.stdint cimport uint8_t, uint32_t


def crc32c(const uint8_t[::1] data not None, uint32_t crc=0):
    if data.shape[0] == 0:
        return crc
    return trimaran_crc32c(crc, &data[0], data.shape[0])
