/* Request headers: what the engine needs of them, and whether they are sound.
 *
 * nghttp2 could check every byte of every field; that took a sixth of the engine's time. Here a
 * field whose name is known is right by comparison, and only others are looked at byte by byte.
 */
#include <errno.h>
#include <string.h>

#include "rpc_internal.h"

static int hot_method(trimaran_rpc_server *server, const uint8_t *path, size_t size) {
    if (!server->handled) {
        return -1;
    }
    uint32_t hash = (uint32_t)size * 31;
    for (size_t i = size < 8 ? 0 : size - 8; i < size; i++) {
        hash = hash * 31 + path[i];
    }
    rpc_path *known = &server->paths[hash % PATHS];
    if (known->size == size && memcmp(known->text, path, size) == 0) {
        return known->method;
    }
    int method = server->handler.method(server->handler.context, (const char *)path, size);
    if (method >= 0 && size <= sizeof known->text) {
        known->size = (uint16_t)size;
        known->method = method;
        memcpy(known->text, path, size);
    }
    return method;
}

static bool is(const uint8_t *data, size_t size, const char *text) {
    return size == strlen(text) && memcmp(data, text, size) == 0;
}

/* application/grpc, or with a subtype after + or parameters after ; */
static bool is_grpc(const uint8_t *value, size_t size) {
    return size >= 16 && memcmp(value, "application/grpc", 16) == 0 &&
           (size == 16 || value[16] == '+' || value[16] == ';');
}

/* gRPC over HTTP/2, "Timeout": at most 8 digits and a unit. */
static int parse_timeout(const uint8_t *value, size_t size, uint64_t *timeout_us) {
    if (size < 2 || size > 9) {
        return -EINVAL;
    }
    uint64_t number = 0;
    for (size_t i = 0; i < size - 1; i++) {
        if (value[i] < '0' || value[i] > '9') {
            return -EINVAL;
        }
        number = number * 10 + (value[i] - '0');
    }
    switch (value[size - 1]) {
    case 'H': number *= 3600000000u; break;
    case 'M': number *= 60000000u; break;
    case 'S': number *= 1000000u; break;
    case 'm': number *= 1000u; break;
    case 'u': break;
    case 'n': number = (number + 999) / 1000; break;
    default: return -EINVAL;
    }
    *timeout_us = number > 0 ? number : 1;
    return 0;
}

static void keep_header(trimaran_rpc_call *call, const uint8_t *name, size_t name_size,
                        const uint8_t *value, size_t value_size) {
    uint16_t sizes[2] = {(uint16_t)name_size, (uint16_t)value_size};
    trimaran_rpc_buffer_append(&call->headers, sizes, sizeof sizes);
    trimaran_rpc_buffer_append(&call->headers, name, name_size);
    trimaran_rpc_buffer_append(&call->headers, value, value_size);
}

/* RFC 9113 §8.3: known ones, each once, before all other fields. */
static void pseudo_header(trimaran_rpc_call *call, const uint8_t *name, size_t name_size,
                          const uint8_t *value, size_t value_size) {
    uint32_t which = 0;
    if (is(name, name_size, ":path")) {
        which = SEEN_PATH;
        call->method = hot_method(call->server, value, value_size);
        if (call->method < 0) {
            call->flags |= CALL_COLD;
            keep_header(call, name, name_size, value, value_size);
        }
    } else if (is(name, name_size, ":method")) {
        which = SEEN_METHOD;
        if (is(value, value_size, "POST")) {
            which |= SEEN_POST;
        } else if (is(value, value_size, "GET") || is(value, value_size, "HEAD")) {
            which |= SEEN_GET;
            keep_header(call, name, name_size, value, value_size);
        }
    } else if (is(name, name_size, ":scheme")) {
        which = SEEN_SCHEME;
    } else if (is(name, name_size, ":authority")) {
        which = SEEN_AUTHORITY;
    } else {
        which = SEEN_UNSOUND;
    }
    if (call->seen & (which | SEEN_REGULAR)) {
        which |= SEEN_UNSOUND;
    }
    call->seen |= which;
}

/* Whether a field that the engine does not know may stand in a request: RFC 9113 §8.2. */
static bool is_sound(const uint8_t *name, size_t name_size, const uint8_t *value,
                     size_t value_size) {
    static const char *const forbidden[] = {"connection", "keep-alive", "proxy-connection",
                                            "transfer-encoding", "upgrade"};
    for (size_t i = 0; i < sizeof forbidden / sizeof *forbidden; i++) {
        if (is(name, name_size, forbidden[i])) {
            return false;
        }
    }
    for (size_t i = 0; i < name_size; i++) {
        uint8_t byte = name[i];
        if (byte <= ' ' || byte >= 0x7f || byte == ':' || (byte >= 'A' && byte <= 'Z')) {
            return false;
        }
    }
    for (size_t i = 0; i < value_size; i++) {
        if ((value[i] < ' ' && value[i] != '\t') || value[i] == 0x7f) {
            return false;
        }
    }
    return name_size > 0;
}

bool trimaran_rpc_headers_are_sound(const trimaran_rpc_call *call) {
    const uint32_t needed = SEEN_METHOD | SEEN_SCHEME | SEEN_PATH;
    return (call->seen & needed) == needed && !(call->seen & SEEN_UNSOUND);
}

/* Note what the engine needs of a header field and keep what may concern the method. */
void trimaran_rpc_call_header(trimaran_rpc_call *call, const uint8_t *name, size_t name_size,
                              const uint8_t *value, size_t value_size) {
    call->header_bytes += (uint32_t)(name_size + value_size + 32);
    if (call->header_bytes > call->server->options.header_bytes_max) {
        call->flags |= CALL_DISCARD;
        return;
    }
    if (name_size > 0 && name[0] == ':') {
        pseudo_header(call, name, name_size, value, value_size);
        return;
    }
    call->seen |= SEEN_REGULAR;
    switch (name_size) {
    case 2:
        if (is(name, name_size, "te")) {
            call->seen |= is(value, value_size, "trailers") ? 0 : SEEN_UNSOUND;
            return;
        }
        break;
    case 10:
        if (is(name, name_size, "user-agent")) {
            return;
        }
        break;
    case 12:
        if (is(name, name_size, "content-type")) {
            call->seen |= is_grpc(value, value_size) ? SEEN_CONTENT_TYPE : 0;
            return;
        }
        if (is(name, name_size, "grpc-timeout")) {
            int rc = parse_timeout(value, value_size, &call->timeout_us);
            call->seen |= rc != 0 ? SEEN_BAD_TIMEOUT : 0;
            return;
        }
        break;
    case 13:
        if (is(name, name_size, "grpc-encoding")) {
            call->flags |= is(value, value_size, "gzip") ? CALL_GZIP : 0;
            bool known = call->flags & CALL_GZIP || is(value, value_size, "identity");
            call->seen |= known ? 0 : SEEN_BAD_ENCODING;
            return;
        }
        break;
    case 14:
        if (is(name, name_size, "content-length")) {
            return;
        }
        break;
    case 15:
    case 20:
        if (is(name, name_size, "accept-encoding") ||
            is(name, name_size, "grpc-accept-encoding")) {
            return;
        }
        break;
    }
    if (!is_sound(name, name_size, value, value_size)) {
        call->seen |= SEEN_UNSOUND;
        return;
    }
    keep_header(call, name, name_size, value, value_size);
}
