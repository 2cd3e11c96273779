"""A member's state on its way to another one: in chunks, on a connection of its own."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulation.options import TICK_US
from trimaran.ext.snapshot import PreparedState, StateBuilder, complete

if TYPE_CHECKING:
    from simulation.store_host import StoreHost

CHUNK_US = 20_000
ATTEMPTS = 5
RETRY_US = 3 * TICK_US


@dataclass
class Transfer:
    """One snapshot on its way; a connection that breaks is opened again, and it goes on.

    Attributes:
        sender, receiver: and their lives at the beginning: a crash of the sender ends it.
        term: raft's at the beginning.
        index: the last entry that it contains.
        chunks: all of it.
    """

    sender: "StoreHost"
    receiver: "StoreHost"
    life: int
    term: int
    index: int
    chunks: list[bytes]
    attempts: int = 0

    def begin(self) -> None:
        """Open a connection and go on where the last one broke off."""
        if self.sender.life != self.life:
            return
        self.attempts += 1
        if not self._is_connected():
            self._broken()
            return
        self._after(self._send_chunk, self.receiver.begin_state(self))

    def _is_connected(self) -> bool:
        pair = {(self.sender.number, self.receiver.number)}
        pair |= {(self.receiver.number, self.sender.number)}
        return self.receiver.is_up and not pair & self.sender.network.blocked

    def _after(self, action, *arguments) -> None:  # type: ignore[no-untyped-def]
        world = self.sender.world
        delay_us = CHUNK_US + self.sender.chance.randrange(self.sender.network.delay_us)
        world.after(delay_us, self._go_on, self.receiver.life, action, arguments)

    def _go_on(self, receiver_life: int, action, arguments) -> None:  # type: ignore[no-untyped-def]
        if self.sender.life != self.life:
            return
        if self.receiver.life != receiver_life or not self._is_connected():
            self._broken()
        elif self.sender.is_paused or self.receiver.is_paused:
            self._after(action, *arguments)
        elif self.sender.chance.random() < self.sender.network.disconnection:
            self._broken()
        else:
            action(*arguments)

    def _send_chunk(self, number: int) -> None:
        if number < len(self.chunks):
            following = self.receiver.take_chunk(self, number, self.chunks[number])
            if following is None:
                self._broken()
            else:
                self._after(self._send_chunk, following)
            return
        taken = self.receiver.install_state(self)
        self.sender.world.count("snapshots installed" if taken else "snapshots without news")
        self._after(self._sent)

    def _sent(self) -> None:
        self.sender.snapshot_ended(self, sent=True)

    def _broken(self) -> None:
        self.sender.world.count("snapshots broken off", self.sender.number, self.receiver.number)
        if self.attempts < ATTEMPTS:
            self.sender.world.after(RETRY_US, self.begin)
        else:
            self.sender.snapshot_ended(self, sent=False)


class Receiving:
    """The receiving side of one host: at most one state is being built.

    Args:
        host: whose.
    """

    def __init__(self, host: "StoreHost") -> None:
        self._host = host
        self._transfer: Transfer | None = None
        self._builder: StateBuilder | None = None

    def close(self) -> None:
        """Let go of what is half built, as a crash does."""
        if self._builder is not None:
            self._builder.close()
        self._builder = self._transfer = None

    def begin(self, transfer: Transfer) -> int:
        """A connection for a snapshot; returns the number of the chunk that is wanted."""
        if self._transfer is not transfer:
            self.close()
            self._transfer = transfer
            self._builder = StateBuilder(
                f"{self._host.engine_options.state_directory}.new",
                map_size_bytes=self._host.engine_options.map_size_bytes,
            )
        assert self._builder is not None
        return self._builder.next_chunk

    def take(self, transfer: Transfer, number: int, chunk: bytes) -> int | None:
        """A chunk has come; returns the next one wanted, None where another sender has begun."""
        if self._transfer is not transfer or self._builder is None:
            return None
        assert number == self._builder.next_chunk
        self._builder.write(chunk)
        return self._builder.next_chunk

    def install(self, transfer: Transfer) -> bool:
        """Everything has come: put it in the place of the state, if raft takes it."""
        if self._transfer is not transfer or self._builder is None:
            return False
        opened = self._host.engine_options
        self._builder.finish()
        complete(opened.state_directory, transfer.index)
        self.close()
        prepared = PreparedState(opened)
        taken = self._host.member.install(transfer.sender.number, transfer.term, prepared)
        prepared.close()
        return taken
