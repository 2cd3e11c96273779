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

    def receive(self, wire: PeerWire, frames: list[tuple[int, bytes]]) -> int:
        """Take what waits at a socket, and add Python's frames that are whole to `frames`.

        Returns:
            how many bytes; 0 where the other side sends no more.

        Raises:
            ProtocolError: as `feed`.
            BlockingIOError: nothing waits.
            OSError: the connection is lost.
        """

class PeerWire:
    """A peer's socket for bytes that Python need not see: a descriptor of its own for it.

    Args:
        fd: of a connected socket that does not block; stays the caller's.

    Attributes:
        blocked: bytes sent before wait elsewhere, so nothing may be sent here.
        sent_bytes: what went through here.
    """

    blocked: bool
    def __init__(self, fd: int) -> None: ...
    @property
    def sent_bytes(self) -> int: ...
    def fileno(self) -> int:
        """Its descriptor."""

    def send(self, data: bytes) -> int:
        """Send as much as the network takes now.

        Returns:
            how many bytes have left; 0 also where the connection is lost, which its owner learns in
            its own way.
        """

    def close(self) -> None:
        """Let go of the socket. May be repeated."""

def send_posts(member: Member, wires: dict[int, PeerWire]) -> list[tuple[int, bytes]]:
    """Send what a member has for its peers, as far as their sockets take it now.

    Args:
        wires: by peer; a peer without one is not sent to here.

    Returns:
        what is left to send, in order: (peer, bytes), which may begin within a frame.
    """

def encode_frame(kind: int, body: bytes) -> bytes:
    """Return a frame of one of Python's kinds."""
