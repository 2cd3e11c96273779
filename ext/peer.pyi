"""Frames between members: what arrives from a peer goes to the member, or to Python."""

from typing import Final

from trimaran.ext.member import Member

# Kinds from here on are Python's; those below go to the member.
FIRST_KIND: Final[int]
FRAME_BODY_MAX: Final[int]

class PeerParser:
    """Reads the frames of one connection.

    Args:
        member: who gets raft's messages and forwarded writes; None where only Python's frames may
            come, as before a peer has said who it is.
        peer_id: who sends on this connection; messages in the name of another are refused.
    """

    def __init__(self, member: Member | None, peer_id: int) -> None: ...
    @property
    def peer_id(self) -> int: ...
    def feed(self, data: bytes | bytearray | memoryview) -> list[tuple[int, bytes]]:
        """Take bytes as they arrived and return Python's frames that are whole: (kind, body).

        Raises:
            ProtocolError: what came is no sound frame; the connection must be closed.
        """

def encode_frame(kind: int, body: bytes) -> bytes:
    """Return a frame of one of Python's kinds."""
