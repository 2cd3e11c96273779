"""The turns of a member beside its peers' sockets, most of which have nothing for Python."""

from typing import Final

from trimaran.ext.member import Member
from trimaran.ext.peer import PeerWire

# What a turn may leave to be done, as bits.
MORE: Final[int]  # another turn would find work
RESULTS: Final[int]  # `Member.results` has some
STATUS: Final[int]  # `Member.status` or `Member.rows` have changed
SNAPSHOTS: Final[int]  # `Member.snapshot_requests` has some
UNSENT: Final[int]  # `take_unsent` has some
UNSAVED: Final[int]  # changes are not on their way to the disk yet

class Turns:
    """Runs turns, and sends what they make.

    Args:
        member: whose turns.
        wires: to its peers, by their ids; the caller adds and removes them.
    """

    def __init__(self, member: Member, wires: dict[int, PeerWire]) -> None: ...
    def turn(self) -> int:
        """Tell the member the time, do all that can be done without waiting, and send.

        Returns:
            what is left to the caller, 0 where nothing is.
        """

    def take_unsent(self) -> list[tuple[int, bytes]]:
        """Take what is left to send, in order: (peer, bytes), which may begin within a frame."""
