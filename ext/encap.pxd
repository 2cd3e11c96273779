from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "trimaran/encap.h" nogil:
    ctypedef struct trimaran_encap_offload:
        uint8_t flags
        uint8_t gso_type
        uint16_t header_length
        uint16_t gso_size
        uint16_t checksum_start
        uint16_t checksum_offset

    ctypedef struct trimaran_encap_packet:
        uint32_t source
        uint32_t destination
        uint16_t length
        uint16_t header_length
        uint16_t payload_offset
        uint16_t fragment_offset
        uint8_t protocol
        uint8_t ttl
        uint8_t more_fragments

    ctypedef struct trimaran_encap_span:
        const uint8_t *data
        size_t length

    ctypedef struct trimaran_encap_merged:
        trimaran_encap_offload offload
        uint32_t offset
        uint32_t length

    ctypedef struct trimaran_encap_peer:
        uint32_t address
        uint16_t port

    ctypedef struct trimaran_encap_route:
        uint32_t subnet
        uint32_t prefix_length
        trimaran_encap_peer peer

    ctypedef struct trimaran_encap_counters:
        uint64_t sent_packets
        uint64_t sent_bytes
        uint64_t sent_messages
        uint64_t received_packets
        uint64_t received_bytes
        uint64_t received_messages
        uint64_t tun_reads
        uint64_t tun_writes
        uint64_t segmented_packets
        uint64_t coalesced_packets
        uint64_t icmp_errors
        uint64_t drop_not_ipv4
        uint64_t drop_malformed
        uint64_t drop_ttl_expired
        uint64_t drop_no_route
        uint64_t drop_wrong_source
        uint64_t drop_truncated
        uint64_t drop_send_failed
        uint64_t drop_tun_write_failed
        uint64_t segment_offload_failed

    ctypedef struct trimaran_encap_config:
        int tun_fd
        int udp_fd
        uint32_t mode
        uint32_t strict_source
        uint32_t network
        uint32_t prefix_length
        uint32_t subnet_length

    ctypedef struct trimaran_encap_routes:
        pass

    ctypedef struct trimaran_encap_path:
        pass

    int TRIMARAN_ENCAP_FAST
    int TRIMARAN_ENCAP_PLAIN
    int TRIMARAN_ENCAP_ICMP_LENGTH_MAX

    uint64_t trimaran_encap_sum(const void *data, size_t length, uint64_t sum)
    uint16_t trimaran_encap_fold(uint64_t sum)
    int trimaran_encap_parse(const uint8_t *packet, size_t length, trimaran_encap_packet *parsed)
    int trimaran_encap_verify(const uint8_t *packet, const trimaran_encap_packet *parsed)
    int trimaran_encap_decrement_ttl(uint8_t *packet)
    int trimaran_encap_segment(const uint8_t *packet, size_t length,
                               const trimaran_encap_offload *offload, uint8_t *out,
                               size_t capacity, size_t *segment_length, size_t *total)
    int trimaran_encap_coalesce(const trimaran_encap_span *packets, size_t count, int udp,
                                uint8_t *out, size_t capacity, trimaran_encap_merged *merged)
    int trimaran_encap_icmp_error(const uint8_t *packet, size_t length, uint32_t source,
                                  uint8_t type, uint8_t code, uint8_t *out)
    int trimaran_encap_routes_open(uint32_t network, uint32_t prefix_length,
                                   uint32_t subnet_length, trimaran_encap_routes **routes)
    void trimaran_encap_routes_close(trimaran_encap_routes *routes)
    int trimaran_encap_routes_set(trimaran_encap_routes *routes,
                                  const trimaran_encap_route *route)
    int trimaran_encap_routes_delete(trimaran_encap_routes *routes, uint32_t subnet,
                                     uint32_t prefix_length)
    int trimaran_encap_routes_replace(trimaran_encap_routes *routes,
                                      const trimaran_encap_route *routes_list, size_t count)
    int trimaran_encap_routes_lookup(trimaran_encap_routes *routes, uint32_t address,
                                     trimaran_encap_peer *peer)
    int trimaran_encap_open_tun(const char *name, uint32_t mtu, int *offload, char *actual_name)
    int trimaran_encap_path_open(const trimaran_encap_config *config, trimaran_encap_path **path)
    void trimaran_encap_path_close(trimaran_encap_path *path)
    int trimaran_encap_path_start(trimaran_encap_path *path)
    int trimaran_encap_path_stop(trimaran_encap_path *path)
    int trimaran_encap_path_error(const trimaran_encap_path *path)
    trimaran_encap_routes *trimaran_encap_path_routes(trimaran_encap_path *path)
    void trimaran_encap_path_counters(const trimaran_encap_path *path,
                                      trimaran_encap_counters *counters)


cdef class Routes:
    cdef trimaran_encap_routes *routes
    cdef object owner


cdef class PacketPath:
    cdef trimaran_encap_path *path
