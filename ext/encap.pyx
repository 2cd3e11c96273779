"""The packet path of the userspace overlay; see include/trimaran/encap.h for what it does.

No Python object exists for a packet: a native thread carries them and never takes the GIL. The
functions below `PacketPath` are the pure parts, for tests and tools.
"""

import errno
import ipaddress
import os

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdlib cimport free, malloc

from trimaran.errors import ConfigError, NetworkConfigError

_HINTS = {
    errno.EPERM: "it needs root or CAP_NET_ADMIN",
    errno.EBUSY: "another process holds the device; stop it or choose another name",
    errno.ENOENT: "there is no /dev/net/tun; load the tun module or pass the device in",
    errno.ENOTTY: "the descriptor is not a TUN device",
    errno.EBADFD: "the TUN device is gone; open it again",
    errno.EBADF: "a descriptor is closed",
    errno.EINVAL: "a descriptor or value is of the wrong kind",
}


cdef object os_error(int code, str what):
    """Make the OSError for a negative errno, with what to do about it."""
    cdef str text = f"{what}: {os.strerror(-code)}"
    if -code in _HINTS:
        text += f" ({_HINTS[-code]})"
    return OSError(-code, text)


cdef object parse_prefix(str text):
    try:
        return ipaddress.IPv4Network(text)
    except ValueError as error:
        raise NetworkConfigError(
            f"{text!r} is not an IPv4 network; write it as 10.5.1.0/24"
        ) from error


cdef trimaran_encap_route make_route(str subnet, str host, object port) except *:
    cdef trimaran_encap_route route
    prefix = parse_prefix(subnet)
    try:
        address = int(ipaddress.IPv4Address(host))
    except ValueError as error:
        raise NetworkConfigError(f"{host!r} is not an IPv4 address of a peer") from error
    if not 0 < port < 65536:
        raise NetworkConfigError(f"the port of peer {host} is {port}; it must be 1 to 65535")
    route.subnet = int(prefix.network_address)
    route.prefix_length = prefix.prefixlen
    route.peer.address = address
    route.peer.port = port
    return route


def open_tun(str name, unsigned int mtu, *, bint offload=True):
    """Create a TUN device, with segmentation offloads where asked for and available.

    Args:
        name: of the device, at most 15 bytes; may hold one %d, which the kernel replaces.
        mtu: of the device in bytes, 0 to leave the kernel's.
        offload: ask for a vnet header and segmentation offloads.

    Returns:
        the descriptor, the device's name, and whether it has the offloads. The device is down,
        and lives until the descriptor is closed.

    Raises:
        OSError: without CAP_NET_ADMIN or /dev/net/tun, or if another process holds the device.
    """
    cdef bytes encoded = name.encode()
    cdef const char *requested = encoded
    cdef char actual[16]
    cdef int has_offload = offload
    cdef int fd = trimaran_encap_open_tun(requested, mtu, &has_offload, actual)
    if fd < 0:
        raise os_error(fd, f"cannot open TUN device {name!r} with MTU {mtu}")
    return fd, actual.decode(), bool(has_offload)


cdef class Routes:
    """A route table: which peer owns the subnet an address is in.

    Args:
        network: the whole overlay network, e.g. "10.5.0.0/16".
        subnet_length: prefix length of the hosts' subnets; those are found in one step.
    """

    def __cinit__(self, str network, unsigned int subnet_length, *, PacketPath owner=None):
        cdef int code
        if owner is not None:
            self.owner = owner
            self.routes = trimaran_encap_path_routes(owner.path)
            return
        prefix = parse_prefix(network)
        code = trimaran_encap_routes_open(int(prefix.network_address), prefix.prefixlen,
                                          subnet_length, &self.routes)
        if code < 0:
            check_config(code, network, subnet_length)
            raise os_error(code, "cannot make a route table")

    def __dealloc__(self):
        if self.owner is None:
            trimaran_encap_routes_close(self.routes)

    def set(self, str subnet, str host, port):
        """Send a subnet's packets to a peer, in place of what was said of that subnet before.

        Raises:
            NetworkConfigError: not a subnet, address or port, or too many odd prefixes.
        """
        cdef trimaran_encap_route route = make_route(subnet, host, port)
        cdef int code = trimaran_encap_routes_set(self.routes, &route)
        if code < 0:
            raise NetworkConfigError(f"cannot route {subnet}: {os.strerror(-code)}")

    def delete(self, str subnet):
        """Forget a subnet's route.

        Raises:
            KeyError: there is no such route.
        """
        prefix = parse_prefix(subnet)
        if trimaran_encap_routes_delete(self.routes, int(prefix.network_address),
                                        prefix.prefixlen) < 0:
            raise KeyError(subnet)

    def replace(self, mapping):
        """Replace all routes at once; no packet sees a mixture.

        Args:
            mapping: subnet -> (host, port).

        Raises:
            NetworkConfigError: as `set`; nothing has changed then.
        """
        cdef size_t count = len(mapping)
        cdef size_t index = 0
        cdef int code
        cdef trimaran_encap_route *rows = <trimaran_encap_route *>malloc(
            (count + 1) * sizeof(trimaran_encap_route))
        if rows == NULL:
            raise MemoryError
        try:
            for subnet, (host, port) in mapping.items():
                rows[index] = make_route(subnet, host, port)
                index += 1
            code = trimaran_encap_routes_replace(self.routes, rows, count)
        finally:
            free(rows)
        if code < 0:
            raise NetworkConfigError(f"cannot replace the routes: {os.strerror(-code)}")

    def lookup(self, str address):
        """Find the peer for an address, longest prefix first.

        Returns:
            (host, port), or None where there is no route.
        """
        cdef trimaran_encap_peer peer
        if trimaran_encap_routes_lookup(self.routes, int(ipaddress.IPv4Address(address)),
                                        &peer) < 0:
            return None
        return str(ipaddress.IPv4Address(peer.address)), peer.port


cdef int check_config(int code, str network, unsigned int subnet_length) except -1:
    """Raise what a wrong pair of network and subnet length deserves."""
    if code == -errno.EINVAL:
        length = ipaddress.IPv4Network(network).prefixlen
        if not (max(length, 1) <= subnet_length <= min(32, length + 22)):
            raise NetworkConfigError(
                f"SubnetLen {subnet_length} does not fit {network}; "
                f"choose from {max(length, 1)} to {min(32, length + 22)}"
            )
    return 0


cdef class PacketPath:
    """Carries packets between a TUN device and the peers of an overlay, in a native thread.

    The format on the wire is flannel's udp backend: the bare inner IPv4 packet is the payload.

    Args:
        tun_fd: a TUN device of `open_tun`; stays the caller's, open as long as this object.
        udp_fd: a bound IPv4 UDP socket; likewise. Both are made non-blocking.
        network: the whole overlay network, e.g. "10.5.0.0/16".
        subnet_length: prefix length of the hosts' subnets.
        mode: "fast", or "plain" for one packet a system call and no offloads.
        strict_source: drop packets whose inner source is not in a subnet of the sending peer.
            flannel has no such check.

    Raises:
        NetworkConfigError: network and subnet_length do not fit.
        ConfigError: an unknown mode.
        OSError: a descriptor is not what it must be.
    """

    def __cinit__(self, int tun_fd, int udp_fd, *, str network, unsigned int subnet_length,
                  str mode="fast", bint strict_source=True):
        cdef trimaran_encap_config config
        if mode not in ("fast", "plain"):
            raise ConfigError(f"packet path mode {mode!r} is unknown; use 'fast' or 'plain'")
        prefix = parse_prefix(network)
        config.tun_fd = tun_fd
        config.udp_fd = udp_fd
        config.mode = TRIMARAN_ENCAP_FAST if mode == "fast" else TRIMARAN_ENCAP_PLAIN
        config.strict_source = strict_source
        config.network = int(prefix.network_address)
        config.prefix_length = prefix.prefixlen
        config.subnet_length = subnet_length
        cdef int code = trimaran_encap_path_open(&config, &self.path)
        if code < 0:
            check_config(code, network, subnet_length)
            raise os_error(code, "cannot make a packet path")

    def __dealloc__(self):
        if self.path != NULL:
            with nogil:
                trimaran_encap_path_close(self.path)

    @property
    def routes(self):
        """The path's route table; changes take effect at once, also while packets flow."""
        return Routes("0.0.0.0/0", 1, owner=self)

    def set_route(self, str subnet, str host, port):
        """See `Routes.set`."""
        self.routes.set(subnet, host, port)

    def delete_route(self, str subnet):
        """See `Routes.delete`."""
        self.routes.delete(subnet)

    def replace_routes(self, mapping):
        """See `Routes.replace`."""
        self.routes.replace(mapping)

    def start(self):
        """Start carrying packets.

        Raises:
            OSError: it runs already (EALREADY), or no thread could be made.
        """
        cdef int code = trimaran_encap_path_start(self.path)
        if code < 0:
            raise os_error(code, "cannot start the packet path")

    def stop(self):
        """Stop, once the packets in hand are carried; may be started again.

        Raises:
            OSError: the thread had ended by itself, e.g. because the TUN device was deleted.
        """
        cdef int code
        with nogil:
            code = trimaran_encap_path_stop(self.path)
        if code < 0:
            raise os_error(code, "the packet path had ended")

    @property
    def error(self):
        """0 while all is well, or the errno that ended the thread."""
        return -trimaran_encap_path_error(self.path)

    def counters(self):
        """Read all counters, by the names of `trimaran_encap_counters`; at any time."""
        cdef trimaran_encap_counters values
        trimaran_encap_path_counters(self.path, &values)
        return values


def checksum(bytes data, initial=0):
    """The internet checksum (RFC 1071) of data, as a number in network order.

    Args:
        data: what to sum.
        initial: a sum to go on from, of 16-bit words in network order.
    """
    cdef const uint8_t *start = data
    cdef uint64_t sum = trimaran_encap_sum(start, len(data), 0)
    cdef uint16_t folded = trimaran_encap_fold(sum)
    return ones_complement(int.from_bytes((<char *>&folded)[:2], "big"), initial)


cdef object ones_complement(object folded, object initial):
    total = (0xFFFF ^ folded) + initial
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return 0xFFFF ^ total


def parse(bytes packet):
    """Parse an IPv4 packet with its TCP or UDP header.

    Returns:
        the fields of `trimaran_encap_packet`, and "verified": whether the header checksum holds.

    Raises:
        ValueError: not IPv4, or its lengths contradict each other.
    """
    cdef trimaran_encap_packet parsed
    cdef const uint8_t *data = packet
    cdef int code = trimaran_encap_parse(data, len(packet), &parsed)
    if code < 0:
        raise ValueError(os.strerror(-code))
    fields = <dict>parsed
    fields["verified"] = trimaran_encap_verify(data, &parsed) == 0
    return fields


def decrement_ttl(bytes packet):
    """Return the packet one hop further, its checksum mended; at least 20 bytes."""
    if len(packet) < 20:
        raise ValueError("shorter than an IPv4 header")
    copy = bytearray(packet)
    cdef uint8_t[:] view = copy
    trimaran_encap_decrement_ttl(&view[0])
    return bytes(copy)


cdef trimaran_encap_offload make_offload(object fields) except *:
    cdef trimaran_encap_offload offload
    (offload.flags, offload.gso_type, offload.header_length, offload.gso_size,
     offload.checksum_start, offload.checksum_offset) = fields
    return offload


def segment(bytes packet, offload):
    """Cut a packet as the path would.

    Args:
        packet: an IPv4 packet, maybe longer than any MTU.
        offload: the six fields of `trimaran_encap_offload`.

    Returns:
        the list of packets.

    Raises:
        ValueError: packet and offload contradict each other.
    """
    cdef trimaran_encap_offload parsed = make_offload(offload)
    cdef size_t capacity = 8 * 1024 * 1024
    cdef size_t segment_length = 0
    cdef size_t total = 0
    cdef const uint8_t *data = packet
    cdef uint8_t *out = <uint8_t *>malloc(capacity)
    if out == NULL:
        raise MemoryError
    try:
        count = trimaran_encap_segment(data, len(packet), &parsed, out, capacity,
                                       &segment_length, &total)
        if count < 0:
            raise ValueError(os.strerror(-count))
        whole = (<char *>out)[:total]
    finally:
        free(out)
    pieces = [whole[at : at + segment_length] for at in range(0, total, segment_length)]
    assert len(pieces) == count
    return pieces


def coalesce(packets, *, bint udp=True):
    """Join packets as the path would.

    Args:
        packets: a list of bytes.
        udp: join UDP datagrams too.

    Returns:
        a list of (offload, packet), offload as `segment` takes it.
    """
    cdef list kept = [bytes(packet) for packet in packets]
    cdef size_t count = len(kept)
    cdef size_t total = sum(map(len, kept))
    cdef size_t index
    cdef int used
    cdef uint8_t *out = <uint8_t *>malloc(total + 1)
    cdef trimaran_encap_span *spans = <trimaran_encap_span *>malloc(
        (count + 1) * sizeof(trimaran_encap_span))
    cdef trimaran_encap_merged *merged = <trimaran_encap_merged *>malloc(
        (count + 1) * sizeof(trimaran_encap_merged))
    try:
        if out == NULL or spans == NULL or merged == NULL:
            raise MemoryError
        for index in range(count):
            spans[index].data = <const uint8_t *>PyBytes_AS_STRING(kept[index])
            spans[index].length = len(kept[index])
        used = trimaran_encap_coalesce(spans, count, udp, out, total, merged)
        if used < 0:
            raise os_error(used, "cannot coalesce")
        return [
            (tuple((<dict>merged[row].offload).values()),
             (<char *>out + merged[row].offset)[:merged[row].length])
            for row in range(used)
        ]
    finally:
        free(out)
        free(spans)
        free(merged)


def icmp_error(bytes packet, str source, unsigned char type, unsigned char code):
    """Build the ICMP error that answers a packet.

    Args:
        packet: the offender.
        source: IPv4 address the error comes from.
        type: ICMP type, e.g. 3 for unreachable, 11 for time exceeded.
        code: ICMP code.

    Returns:
        the packet, or b"" where none may be sent (RFC 1122, 3.2.2).
    """
    cdef uint8_t out[96]
    assert sizeof(out) >= TRIMARAN_ENCAP_ICMP_LENGTH_MAX
    cdef const uint8_t *data = packet
    cdef int length = trimaran_encap_icmp_error(
        data, len(packet), int(ipaddress.IPv4Address(source)), type, code, out)
    return (<char *>out)[:length]
