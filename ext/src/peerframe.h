/* What members say to each other: frames with a checksum and a version, and raft messages in them.
 *
 * A frame is 12 bytes of head (size of what follows the checksum, CRC-32C of that, version, kind,
 * two bytes of 0) and a body, all little-endian. Kinds 1 to 31 are raft messages, one a frame; 32
 * is a proposal on its way to the leader; from 64 on they are the business of the transport and
 * the daemon. What does not parse, or what no correct peer sends, ends the connection.
 */
#ifndef TRIMARAN_PEERFRAME_H
#define TRIMARAN_PEERFRAME_H

#include "bytes.h"
#include "trimaran/raft.h"

enum { TRIMARAN_FRAME_VERSION = 1, TRIMARAN_FRAME_HEAD = 12, TRIMARAN_FRAME_FORWARD = 32,
       TRIMARAN_FRAME_PYTHON = 64 };
/* The largest body: an append with one entry of the largest request there may be. */
enum { TRIMARAN_FRAME_BODY_MAX = 64 << 20 };

/* Append a frame's head; the body is appended after it, then end fills in size and checksum. */
size_t trimaran_frame_begin(trimaran_buffer *out, uint8_t kind);
void trimaran_frame_end(trimaran_buffer *out, size_t start);

/* Append a raft message as a frame. Its members do not travel. */
void trimaran_frame_put_message(trimaran_buffer *out, const trimaran_raft_message *message);
/* Append a proposal for the leader: an entry's type and its bytes. */
void trimaran_frame_put_forward(trimaran_buffer *out, uint32_t type, trimaran_slice payload);

/* A frame as it arrived; body points into payload, which its receiver may retain. */
typedef struct trimaran_frame {
    uint8_t kind;
    trimaran_slice body;
    trimaran_payload *payload;
} trimaran_frame;

typedef struct trimaran_frame_parser {
    uint8_t head[TRIMARAN_FRAME_HEAD];
    size_t head_size;
    trimaran_payload *payload; /* of the frame being received, NULL before its head is complete */
    size_t received;           /* bytes of it */
} trimaran_frame_parser;

void trimaran_frame_parser_free(trimaran_frame_parser *parser);
/* Take bytes from *input as far as the end of a frame. Returns 1 with a frame (its payload is the
 * caller's reference to release), 0 where the input is used up, and -errno where it is no frame:
 * -EPROTO (size or kind), -EPROTONOSUPPORT (version), -EBADMSG (checksum). After an error the
 * parser must not be fed again. */
int trimaran_frame_parse(trimaran_frame_parser *parser, trimaran_slice *input,
                         trimaran_frame *out);

/* The entries of a decoded message; grown as needed and used again. */
typedef struct trimaran_frame_entries {
    trimaran_entry *entries;
    size_t capacity;
} trimaran_frame_entries;

/* Decode the body of a raft frame. Entries point into the frame and share its payload. Returns 0,
 * or -EPROTO where the bytes are no message of that kind. */
int trimaran_frame_message(const trimaran_frame *frame, trimaran_frame_entries *entries,
                           trimaran_raft_message *out);
/* Decode a forwarded proposal. */
int trimaran_frame_forward(const trimaran_frame *frame, uint32_t *type, trimaran_slice *payload);

#endif
