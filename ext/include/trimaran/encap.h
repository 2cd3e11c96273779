/* The packet path of the userspace overlay: inner IPv4 packets of a TUN device go as the payload of
 * UDP datagrams to the host that owns the destination's subnet, and back.
 *
 * The datagram carries the raw inner packet and nothing else, which is the format of flannel's
 * `udp` backend (default port 8285), so hosts of both kinds can share an overlay.
 *
 * Everything above "The path" below is pure: no descriptor, no thread, no privilege is needed.
 * Addresses and ports are in host byte order unless said otherwise; lengths are in bytes.
 * Functions return 0 or a count, or a negative errno value.
 */
#ifndef TRIMARAN_ENCAP_H
#define TRIMARAN_ENCAP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TRIMARAN_ENCAP_PORT 8285
#define TRIMARAN_ENCAP_PACKET_MAX 65535 /* longest IPv4 packet */
#define TRIMARAN_ENCAP_NAME_MAX 16      /* IFNAMSIZ: an interface name and its closing zero */

/* ---- Checksums (RFC 1071) --------------------------------------------------------------- */

/* Add `length` bytes to a running sum. Start with 0; a buffer of odd length must come last.
 * The result is a partial sum, to go on with or to fold. */
uint64_t trimaran_encap_sum(const void *data, size_t length, uint64_t sum);

/* Fold a running sum and complement it: the value to store, in memory order (no byte swap). */
uint16_t trimaran_encap_fold(uint64_t sum);

/* ---- Packets ----------------------------------------------------------------------------- */

/* What the path needs to know of an IPv4 packet. */
typedef struct trimaran_encap_packet {
    uint32_t source;
    uint32_t destination;
    uint16_t length;          /* of the whole packet, equal to the length it was parsed with */
    uint16_t header_length;   /* of the IP header with its options, 20 to 60 */
    uint16_t payload_offset;  /* past the TCP or UDP header; the IP header's end for others */
    uint16_t fragment_offset; /* in units of 8 bytes; not 0 for all but the first fragment */
    uint8_t protocol;
    uint8_t ttl;
    uint8_t more_fragments;
    uint8_t reserved;
} trimaran_encap_packet;

/* Parse an IPv4 packet and its TCP or UDP header.
 *
 * Returns 0; -EPFNOSUPPORT if it is not IPv4; -EBADMSG if a length in it contradicts `length` or
 * its parts do not fit. The IP header checksum is not looked at; see trimaran_encap_verify. */
int trimaran_encap_parse(const uint8_t *packet, size_t length, trimaran_encap_packet *parsed);

/* Check the IP header checksum of a parsed packet: 0 or -EBADMSG. */
int trimaran_encap_verify(const uint8_t *packet, const trimaran_encap_packet *parsed);

/* Take 1 from the time to live and mend the header checksum (RFC 1624).
 * Returns the new time to live; at 0 the packet must not travel further. */
int trimaran_encap_decrement_ttl(uint8_t *packet);

/* ---- Segmentation ------------------------------------------------------------------------ */

/* The values of Linux' struct virtio_net_hdr, with its layout: what a TUN device with IFF_VNET_HDR
 * puts before each packet. */
#define TRIMARAN_ENCAP_NEEDS_CHECKSUM 1
#define TRIMARAN_ENCAP_GSO_NONE 0
#define TRIMARAN_ENCAP_GSO_TCP4 1
#define TRIMARAN_ENCAP_GSO_UDP_L4 5
#define TRIMARAN_ENCAP_GSO_ECN 0x80 /* or-ed to TCP4: the first segment alone has CWR */

typedef struct trimaran_encap_offload {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t header_length;
    uint16_t gso_size;        /* payload bytes of each segment but the last */
    uint16_t checksum_start;  /* where the TCP or UDP header begins */
    uint16_t checksum_offset; /* of the checksum field, from checksum_start */
} trimaran_encap_offload;

/* Cut a packet into the packets that go over the wire, with final checksums.
 *
 * A packet with gso_type NONE is copied, its checksum finished where NEEDS_CHECKSUM is set.
 * Others become segments that lie one behind the other in `out`, each of *segment_length bytes,
 * the last maybe shorter. The kernel's header_length is never trusted.
 *
 * Returns the number of segments, *total their bytes; -EBADMSG if packet and offload contradict
 * each other; -EPFNOSUPPORT as trimaran_encap_parse; -ENOSPC if `capacity` is too small. */
int trimaran_encap_segment(const uint8_t *packet, size_t length,
                           const trimaran_encap_offload *offload, uint8_t *out, size_t capacity,
                           size_t *segment_length, size_t *total);

/* ---- Coalescing -------------------------------------------------------------------------- */

typedef struct trimaran_encap_span {
    const uint8_t *data;
    size_t length;
} trimaran_encap_span;

/* One packet of the result of trimaran_encap_coalesce: `length` bytes at `offset` of its output,
 * to be written with `offload` before it. */
typedef struct trimaran_encap_merged {
    trimaran_encap_offload offload;
    uint32_t offset;
    uint32_t length;
} trimaran_encap_merged;

/* Join consecutive TCP segments (and UDP datagrams where `udp` is not 0) of one flow into packets
 * that trimaran_encap_segment would cut into the same packets again. What cannot be joined goes
 * through unchanged, and packets of one flow keep their order. Packets that do not parse, or whose
 * IP header checksum is wrong, are left out.
 *
 * `merged` must have room for `count` rows, `out` for the bytes of all packets.
 * Returns the number of rows used; -ENOSPC if `capacity` is too small; -ENOMEM. */
int trimaran_encap_coalesce(const trimaran_encap_span *packets, size_t count, int udp, uint8_t *out,
                            size_t capacity, trimaran_encap_merged *merged);

/* ---- ICMP -------------------------------------------------------------------------------- */

#define TRIMARAN_ENCAP_ICMP_LENGTH_MAX (20 + 8 + 60 + 8)

/* Build the ICMP error (RFC 792) that answers `packet`: type 3 code 0 for no route, type 11 code 0
 * for an expired time to live. `out` has room for TRIMARAN_ENCAP_ICMP_LENGTH_MAX bytes.
 *
 * Returns its length, or 0 where none may be sent (RFC 1122, 3.2.2): about ICMP errors, fragments
 * but the first, and packets from or to no single host. */
int trimaran_encap_icmp_error(const uint8_t *packet, size_t length, uint32_t from, uint8_t type,
                              uint8_t code, uint8_t *out);

/* ---- Route table ------------------------------------------------------------------------- */

typedef struct trimaran_encap_peer {
    uint32_t address;
    uint16_t port;
    uint16_t reserved;
} trimaran_encap_peer;

typedef struct trimaran_encap_route {
    uint32_t subnet;        /* first address; bits past the prefix must be 0 */
    uint32_t prefix_length; /* 0 to 32 */
    trimaran_encap_peer peer;
} trimaran_encap_route;

/* Subnets of one network, each with the peer that owns it. Subnets of the common length are one
 * array load away; other prefixes are scanned, longest first, and should be few. All functions may
 * be called from several threads. */
typedef struct trimaran_encap_routes trimaran_encap_routes;

/* Make an empty table for subnets of length `subnet_length` inside network/prefix_length.
 * Returns 0; -EINVAL if subnet_length is below prefix_length, above 32 or more than 22 bits past
 * prefix_length, or if the network has bits past its prefix; -ENOMEM. */
int trimaran_encap_routes_open(uint32_t network, uint32_t prefix_length, uint32_t subnet_length,
                               trimaran_encap_routes **routes);
void trimaran_encap_routes_close(trimaran_encap_routes *routes);

/* Add a route or change its peer. Returns 0; -EINVAL if a bit past the prefix is set or the port
 * is 0; -ENOSPC past 1,024 prefixes of other lengths; -ENOMEM. */
int trimaran_encap_routes_set(trimaran_encap_routes *routes, const trimaran_encap_route *route);

/* Returns 0 or -ENOENT. */
int trimaran_encap_routes_delete(trimaran_encap_routes *routes, uint32_t subnet,
                                 uint32_t prefix_length);

/* Replace every route at once: a packet sees the old table or the new one. On error, as for set,
 * nothing has changed. */
int trimaran_encap_routes_replace(trimaran_encap_routes *routes,
                                  const trimaran_encap_route *list, size_t count);

/* Find the peer for an address, longest prefix first: 0 or -ENETUNREACH. */
int trimaran_encap_routes_lookup(trimaran_encap_routes *routes, uint32_t address,
                                 trimaran_encap_peer *peer);

/* ---- TUN device -------------------------------------------------------------------------- */

/* Create or attach to a TUN device: IFF_TUN | IFF_NO_PI, one queue, non-blocking, close-on-exec.
 *
 * `name` may hold one %d; `actual_name` has TRIMARAN_ENCAP_NAME_MAX bytes. With *offload not 0 the
 * device gets a vnet header and segmentation offloads where the kernel has them, and *offload says
 * whether it has. `mtu` is set where it is not 0. The device is not brought up.
 *
 * Returns the descriptor; -EINVAL for a bad name; -EPERM without CAP_NET_ADMIN; -EBUSY if another
 * process holds the device; -ENOENT if there is no /dev/net/tun. */
int trimaran_encap_open_tun(const char *name, uint32_t mtu, int *offload, char *actual_name);

/* ---- The path ---------------------------------------------------------------------------- */

typedef enum trimaran_encap_mode {
    TRIMARAN_ENCAP_FAST = 0,  /* batches, segmentation offloads on both sides */
    TRIMARAN_ENCAP_PLAIN = 1, /* one packet for each system call, no offloads */
} trimaran_encap_mode;

typedef struct trimaran_encap_config {
    int tun_fd;             /* stays the caller's; must stay open while the path exists */
    int udp_fd;             /* a bound IPv4 UDP socket; likewise */
    uint32_t mode;          /* trimaran_encap_mode */
    uint32_t strict_source; /* drop packets whose inner source is not of the sending peer */
    uint32_t network;
    uint32_t prefix_length;
    uint32_t subnet_length;
} trimaran_encap_config;

/* All counts since the path was opened. "sent" is TUN to UDP, "received" is UDP to TUN. */
typedef struct trimaran_encap_counters {
    uint64_t sent_packets;     /* inner packets as they went over the wire */
    uint64_t sent_bytes;       /* of these packets */
    uint64_t sent_messages;    /* UDP messages handed to the kernel; one may hold many packets */
    uint64_t received_packets; /* inner packets accepted from peers */
    uint64_t received_bytes;
    uint64_t received_messages;      /* UDP messages, each one packet or a GRO run of them */
    uint64_t tun_reads;              /* packets read, each maybe to be segmented */
    uint64_t tun_writes;             /* packets written, each maybe coalesced */
    uint64_t segmented_packets;      /* packets read that were cut into more than one */
    uint64_t coalesced_packets;      /* packets received that were joined to another */
    uint64_t icmp_errors;            /* sent by the path itself */
    uint64_t drop_not_ipv4;          /* either way */
    uint64_t drop_malformed;         /* either way */
    uint64_t drop_ttl_expired;       /* either way */
    uint64_t drop_no_route;          /* sent */
    uint64_t drop_wrong_source;      /* received: the sender does not own the inner source */
    uint64_t drop_truncated;         /* received: longer than any IPv4 packet */
    uint64_t drop_send_failed;       /* sent: the kernel refused the datagram */
    uint64_t drop_tun_write_failed;  /* received: the kernel refused the packet */
    uint64_t segment_offload_failed; /* runs sent again one datagram at a time */
} trimaran_encap_counters;

typedef struct trimaran_encap_path trimaran_encap_path;

/* Make a path that is not started yet, with no routes. It sets both descriptors non-blocking,
 * probes their offloads and sets socket buffers. Returns 0; -EINVAL for a bad config; -EBADF,
 * -ENOTTY if a descriptor is not what it should be; -ENOMEM. */
int trimaran_encap_path_open(const trimaran_encap_config *config, trimaran_encap_path **path);

/* Stop if started, and free. */
void trimaran_encap_path_close(trimaran_encap_path *path);

/* Start the thread that carries packets. Returns 0; -EALREADY if it runs; -EAGAIN, -EMFILE. */
int trimaran_encap_path_start(trimaran_encap_path *path);

/* Stop the thread and wait for its end; a stopped path may be started again.
 * Returns 0, or the negative errno that ended the thread by itself (-EBADFD: the TUN device is
 * gone). */
int trimaran_encap_path_stop(trimaran_encap_path *path);

/* 0 while all is well, or the negative errno that ended the thread. */
int trimaran_encap_path_error(const trimaran_encap_path *path);

/* The path's route table; changes take effect at once, also while it runs. */
trimaran_encap_routes *trimaran_encap_path_routes(trimaran_encap_path *path);

/* Read the counters; each is exact, all together are not of one instant. */
void trimaran_encap_path_counters(const trimaran_encap_path *path,
                                  trimaran_encap_counters *counters);

#ifdef __cplusplus
}
#endif

#endif
