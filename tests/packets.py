"""IPv4 packets written down the plain way, as a model for the packet path."""

import dataclasses
import struct
from ipaddress import IPv4Address

TCP = 6
UDP = 17
ICMP = 1
FIN, SYN, PSH, ACK, CWR = 0x01, 0x02, 0x08, 0x10, 0x80
DONT_FRAGMENT, MORE_FRAGMENTS = 0x4000, 0x2000

# The fields of trimaran_encap_offload: flags, gso_type, header_length, gso_size, checksum_start,
# checksum_offset.
NO_OFFLOAD = (0, 0, 0, 0, 0, 0)
GSO_TCP4 = 1
GSO_UDP_L4 = 5


def checksum(data: bytes) -> int:
    """RFC 1071, one word after the other."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total


def pseudo_header(source: str, destination: str, protocol: int, length: int) -> bytes:
    ends = IPv4Address(source).packed + IPv4Address(destination).packed
    return ends + struct.pack("!BBH", 0, protocol, length)


@dataclasses.dataclass(frozen=True)
class Packet:
    """One IPv4 packet; `build` gives its bytes with right lengths and checksums."""

    source: str = "10.5.1.7"
    destination: str = "10.5.2.9"
    protocol: int = TCP
    payload: bytes = b""
    identification: int = 0
    fragment: int = 0
    ttl: int = 64
    service: int = 0
    ip_options: bytes = b""
    source_port: int = 1000
    destination_port: int = 2000
    sequence: int = 0
    acknowledgement: int = 0
    flags: int = ACK
    window: int = 1000
    urgent: int = 0
    tcp_options: bytes = b""

    @property
    def ip_header_length(self) -> int:
        return 20 + len(self.ip_options)

    @property
    def header_length(self) -> int:
        return self.ip_header_length + {TCP: 20 + len(self.tcp_options), UDP: 8}.get(
            self.protocol, 0
        )

    def transport(self, field: int) -> bytes:
        """TCP or UDP header and payload with `field` as checksum."""
        ports = struct.pack("!HH", self.source_port, self.destination_port)
        if self.protocol == UDP:
            return ports + struct.pack("!HH", 8 + len(self.payload), field) + self.payload
        if self.protocol != TCP:
            return self.payload
        offset = (20 + len(self.tcp_options)) // 4 << 4
        middle = struct.pack("!LLBB", self.sequence, self.acknowledgement, offset, self.flags)
        end = struct.pack("!HHH", self.window, field, self.urgent)
        return ports + middle + end + self.tcp_options + self.payload

    def transport_checksum(self) -> int:
        body = self.transport(0)
        found = checksum(self._pseudo_header(len(body)) + body)
        return 0xFFFF if self.protocol == UDP and found == 0 else found

    def _pseudo_header(self, length: int) -> bytes:
        return pseudo_header(self.source, self.destination, self.protocol, length)

    def _with_ip_header(self, body: bytes) -> bytes:
        length = self.ip_header_length + len(body)

        def header(field: int) -> bytes:
            start = struct.pack(
                "!BBHHHBBH",
                0x40 | self.ip_header_length // 4,
                self.service,
                length,
                self.identification,
                self.fragment,
                self.ttl,
                self.protocol,
                field,
            )
            ends = IPv4Address(self.source).packed + IPv4Address(self.destination).packed
            return start + ends + self.ip_options

        return header(checksum(header(0))) + body

    def build(self) -> bytes:
        """The packet as it goes over the wire."""
        return self._with_ip_header(self.transport(self.transport_checksum()))

    def build_partial(self) -> bytes:
        """The packet as a kernel hands it over for segmentation: its TCP or UDP checksum holds the
        sum of the pseudo header only."""
        length = len(self.transport(0))
        return self._with_ip_header(self.transport(0xFFFF ^ checksum(self._pseudo_header(length))))

    def offload(self, gso_size: int) -> tuple[int, int, int, int, int, int]:
        """What a kernel puts before `build_partial`."""
        kind, field = (GSO_TCP4, 16) if self.protocol == TCP else (GSO_UDP_L4, 6)
        return (1, kind, self.header_length, gso_size, self.ip_header_length, field)

    def segments(self, gso_size: int) -> list[bytes]:
        """The packets that `build_partial` with `offload` must become."""
        pieces = [self.payload[at : at + gso_size] for at in range(0, len(self.payload), gso_size)]
        found = []
        for index, piece in enumerate(pieces):
            flags = self.flags
            if index != 0:
                flags &= ~CWR
            if index != len(pieces) - 1:
                flags &= ~(PSH | FIN)
            part = dataclasses.replace(
                self,
                payload=piece,
                identification=(self.identification + index) & 0xFFFF,
                sequence=(self.sequence + index * gso_size) & 0xFFFFFFFF,
                flags=flags,
            )
            found.append(part.build())
        return found
