/* What the files of the packet path share; not for other programs. Include it first: recvmmsg and
 * sendmmsg are GNU extensions. */
#ifndef TRIMARAN_ENCAP_INTERNAL_H
#define TRIMARAN_ENCAP_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <trimaran/encap.h>

#define IPV4_HEADER 20
#define IPV4_DONT_FRAGMENT 0x4000
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET_MASK 0x1fff
#define TCP_HEADER 20
#define TCP_FIN 0x01
#define TCP_PSH 0x08
#define TCP_ACK 0x10
#define TCP_CWR 0x80
#define TCP_CHECKSUM_OFFSET 16
#define UDP_HEADER 8
#define UDP_CHECKSUM_OFFSET 6

static inline uint16_t read16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t read32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline void write16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void write32(uint8_t *at, uint32_t value)
{
    write16(at, (uint16_t)(value >> 16));
    write16(at + 2, (uint16_t)value);
}

/* A checksum is stored in the byte order it was summed in. */
static inline void store_checksum(uint8_t *at, uint16_t folded)
{
    memcpy(at, &folded, sizeof folded);
}

/* The running sum of the pseudo header of TCP and UDP (RFC 9293, 3.1). */
uint64_t trimaran_encap_pseudo_sum(const uint8_t *packet, uint8_t protocol, uint16_t length);
/* Compute the IP header checksum anew. */
void trimaran_encap_set_ip_checksum(uint8_t *packet, size_t header_length);

/* ---- Route table: what a reader without lock may use ---- */

typedef struct route_prefix {
    uint32_t subnet;
    uint32_t mask;
    uint32_t prefix_length;
    uint64_t entry;
} route_prefix;

/* One state of the table. An entry is address << 16 | port, 0 where there is no route, so that a
 * single route changes with one atomic store. */
typedef struct route_table {
    uint32_t network;
    uint32_t shift;
    uint32_t direct_count;
    uint32_t prefix_count;
    uint32_t longer_count; /* of prefixes, those longer than the common length, in front */
    route_prefix *prefixes;
    _Atomic uint64_t direct[];
} route_table;

struct trimaran_encap_routes {
    _Atomic(route_table *) current;
    _Atomic uint64_t epoch; /* odd while the reader may hold a table */
    pthread_mutex_t lock;   /* of writers, and of readers that have no epoch */
    struct retired_table *retired;
    uint32_t prefix_length;
    uint32_t subnet_length;
};

uint64_t trimaran_encap_table_scan(const route_table *table, uint32_t address, uint32_t from,
                                   uint32_t to);

/* The entry for an address, 0 if none. */
static inline uint64_t table_lookup(const route_table *table, uint32_t address)
{
    uint64_t entry;
    if (table->longer_count > 0) {
        entry = trimaran_encap_table_scan(table, address, 0, table->longer_count);
        if (entry != 0)
            return entry;
    }
    uint32_t index = (address - table->network) >> table->shift;
    if (index < table->direct_count && address >= table->network) {
        entry = atomic_load_explicit(&table->direct[index], memory_order_relaxed);
        if (entry != 0)
            return entry;
    }
    if (table->longer_count == table->prefix_count)
        return 0;
    return trimaran_encap_table_scan(table, address, table->longer_count, table->prefix_count);
}

/* The path's thread brackets each use of a table; in between, old tables are freed. */
static inline const route_table *table_enter(trimaran_encap_routes *routes)
{
    atomic_fetch_add(&routes->epoch, 1);
    return atomic_load(&routes->current);
}

static inline void table_leave(trimaran_encap_routes *routes)
{
    atomic_fetch_add(&routes->epoch, 1);
}

/* ---- Coalescer ---- */

#define COALESCE_GROUPS 256
#define COALESCE_PIECES 1024
#define COALESCE_SLOTS 128
#define COALESCE_PROBES 8
#define COALESCE_JOIN_MAX 128 /* packets in one group */

typedef struct coalesce_piece {
    uint8_t *data;
    uint32_t length;
    uint32_t next; /* index + 1 of the group's next piece, 0 at its end */
} coalesce_piece;

typedef struct coalesce_group {
    trimaran_encap_offload offload;
    uint8_t *first; /* the whole first packet; its headers speak for the group */
    uint32_t length;
    uint32_t header_length; /* IP and TCP or UDP */
    uint32_t payload_length; /* of every packet but the last */
    uint32_t next_sequence;
    uint32_t count;
    uint32_t first_piece; /* index + 1 */
    uint32_t last_piece;
    uint16_t next_id;
    uint8_t protocol;
    uint8_t closing_flags; /* PSH and FIN of the last packet */
    bool closed;
} coalesce_group;

typedef struct coalescer {
    bool udp;
    uint32_t group_count;
    uint32_t piece_count;
    uint16_t slots[COALESCE_SLOTS]; /* flow -> index + 1 of its latest group */
    coalesce_group groups[COALESCE_GROUPS];
    coalesce_piece pieces[COALESCE_PIECES];
} coalescer;

void trimaran_encap_coalescer_reset(coalescer *state, bool udp);
/* Takes a packet whose IP checksum is right; it stays where it is, headers may be changed.
 * Returns 0 or -ENOSPC: flush and reset first. */
int trimaran_encap_coalescer_add(coalescer *state, uint8_t *packet,
                                 const trimaran_encap_packet *parsed);
/* Write the final headers of a group; call once, before its bytes are used. */
void trimaran_encap_coalescer_finish(coalesce_group *group);

/* ---- The path ---- */

#define DATAGRAM_MAX 65507       /* UDP payload that fits an IPv4 packet */
#define SEGMENTS_MAX 64          /* UDP_MAX_SEGMENTS of kernels before 6.9 */
#define TUN_BUFFER (TRIMARAN_ENCAP_PACKET_MAX + 1)
#define ARENA_LENGTH (512 * 1024)
#define ARENA_RESERVE (256 * 1024) /* room kept for the segments of one packet */
#define TRANSMIT_RUNS 64
#define TRANSMIT_CHUNKS 128
#define TRANSMIT_SLOTS 32
#define RECEIVE_SLOTS 16
#define RECEIVE_SLOT_LENGTH 65536

typedef struct transmit_chunk {
    uint32_t offset; /* in the arena */
    uint32_t length;
    uint32_t next; /* index + 1 */
} transmit_chunk;

/* Datagrams for one peer that go out with one UDP_SEGMENT message. */
typedef struct transmit_run {
    uint64_t peer; /* entry of the route table */
    uint32_t bytes;
    uint32_t segments;
    uint32_t segment_length;
    uint32_t first_chunk; /* index + 1 */
    uint32_t last_chunk;
    bool closed; /* its last datagram is short, so none may follow */
} transmit_run;

typedef struct transmit_batch {
    uint8_t *arena;
    uint32_t used;
    uint32_t run_count;
    uint32_t chunk_count;
    uint16_t slots[TRANSMIT_SLOTS]; /* peer hash -> index + 1 of its latest run */
    transmit_run runs[TRANSMIT_RUNS];
    transmit_chunk chunks[TRANSMIT_CHUNKS];
    struct mmsghdr messages[TRANSMIT_RUNS];
    struct sockaddr_in addresses[TRANSMIT_RUNS];
    struct iovec vectors[TRANSMIT_CHUNKS];
    char controls[TRANSMIT_RUNS][CMSG_SPACE(sizeof(uint16_t))]
        __attribute__((aligned(sizeof(size_t))));
} transmit_batch;

typedef struct receive_batch {
    uint8_t *slots; /* RECEIVE_SLOTS buffers */
    struct mmsghdr messages[RECEIVE_SLOTS];
    struct sockaddr_in addresses[RECEIVE_SLOTS];
    struct iovec vectors[RECEIVE_SLOTS];
    char controls[RECEIVE_SLOTS][CMSG_SPACE(sizeof(int))] __attribute__((aligned(sizeof(size_t))));
    coalescer coalescer;
} receive_batch;

struct trimaran_encap_path {
    trimaran_encap_config config;
    trimaran_encap_routes *routes;
    bool vnet_header;   /* the TUN device puts a trimaran_encap_offload before each packet */
    bool tun_udp_offload;
    uint32_t segments_max; /* of one UDP message; 1 without UDP_SEGMENT */
    int stop_fd;
    int epoll_fd;
    pthread_t thread;
    bool started;
    _Atomic bool stopping;
    _Atomic int error;
    double icmp_tokens;
    uint64_t icmp_refill_ns;
    uint8_t *tun_buffer;
    transmit_batch transmit;
    receive_batch receive;
    /* Written by the thread alone; its own cache lines, for readers must not slow it. */
    trimaran_encap_counters counters __attribute__((aligned(64)));
    uint8_t padding[64];
};

#define COUNT(path, name, number)                                                                  \
    __atomic_store_n(&(path)->counters.name, (path)->counters.name + (number), __ATOMIC_RELAXED)

/* Set the offloads a mode wants on a TUN descriptor; sets vnet_header and tun_udp_offload. */
int trimaran_encap_configure_tun(trimaran_encap_path *path);
/* Read one packet: its length, 0 if none waits, or the negative errno that ends the path. */
ssize_t trimaran_encap_tun_read(trimaran_encap_path *path, trimaran_encap_offload *offload);
/* Write one packet given as vectors[1..count]; vectors[0] is for the offload header. */
void trimaran_encap_tun_write(trimaran_encap_path *path, trimaran_encap_offload *offload,
                              struct iovec *vectors, int count);

/* Check a packet read from TUN, take its hop and find its peer: entry, or 0 if it was dropped. */
uint64_t trimaran_encap_admit_sent(trimaran_encap_path *path, const route_table *table,
                                   uint8_t *packet, size_t length);
/* The same for a packet from a peer: 0 to carry on, -1 if it was dropped. */
int trimaran_encap_admit_received(trimaran_encap_path *path, const route_table *table,
                                  uint8_t *packet, size_t length, uint64_t sender,
                                  trimaran_encap_packet *parsed);
/* Answer `packet` with an ICMP error, through the TUN device or, for a peer's packet, back to
 * `peer`, within the rate limit. */
void trimaran_encap_answer_icmp(trimaran_encap_path *path, const uint8_t *packet, size_t length,
                                uint8_t type, uint64_t peer);

static inline struct sockaddr_in peer_address(uint64_t entry)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl((uint32_t)(entry >> 16));
    address.sin_port = htons((uint16_t)entry);
    return address;
}

static inline uint64_t peer_entry(const struct sockaddr_in *address)
{
    return (uint64_t)ntohl(address->sin_addr.s_addr) << 16 | ntohs(address->sin_port);
}

/* Send one datagram, waiting a little for room in the socket: 0 or -errno. */
int trimaran_encap_send_one(trimaran_encap_path *path, const void *data, size_t length,
                            uint64_t peer);

/* One turn of a direction, as much as a batch holds: packets handled, or -errno that ends the
 * path. */
int trimaran_encap_fast_transmit(trimaran_encap_path *path, const route_table *table);
int trimaran_encap_fast_receive(trimaran_encap_path *path, const route_table *table);
int trimaran_encap_plain_transmit(trimaran_encap_path *path, const route_table *table);
int trimaran_encap_plain_receive(trimaran_encap_path *path, const route_table *table);
void trimaran_encap_receive_prepare(trimaran_encap_path *path);
/* Cut and queue a packet; sends what is queued first where it does not fit. */
void trimaran_encap_transmit_packet(trimaran_encap_path *path, const uint8_t *packet,
                                    size_t length, const trimaran_encap_offload *offload,
                                    uint64_t peer);
void trimaran_encap_transmit_flush(trimaran_encap_path *path);

#endif
