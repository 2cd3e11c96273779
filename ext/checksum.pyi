"""CRC-32C (Castagnoli, RFC 3720 appendix B.4), for Python."""

def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """Continue crc (0 at the start) over data."""
