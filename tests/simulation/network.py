"""Streams of frames between hosts, which are late, lost, repeated, cut or partitioned.

Each direction of a pair is a stream of its own, as the members' connections are. Ordered streams
keep what TCP keeps: bytes in their order until the connection ends, then nothing. Others carry each
frame by itself, which is more than a correct transport does, and raft must bear it all the same.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from simulation.frames import describe
from simulation.options import Options
from simulation.world import World

SPLIT = 0.05
RECONNECT_US = 150_000
GONE_CHANCE = 0.3
NOTICE_US = 300_000  # until a sender notices that its stream leads nowhere


class Receiver(Protocol):
    """A host, as the network sees it."""

    def receive(self, peer: int, data: Any) -> None:
        """Take bytes of a peer."""

    def opened(self, peer: int) -> None:
        """A peer has connected."""

    def connected(self, peer: int) -> None:
        """The own stream to a peer is open."""

    def lost(self, peer: int) -> None:
        """The own stream to a peer has ended."""

    def gone(self, peer: int) -> None:
        """Nobody listens at a peer, it is said."""


@dataclass
class Stream:
    """One direction of a pair.

    Attributes:
        epoch: number of the connection; what was sent on an earlier one does not arrive.
        is_open: the connection stands.
        arrival_us: when the last of what was sent arrives, for the order.
    """

    epoch: int = 0
    is_open: bool = False
    arrival_us: int = 0
    is_dying: bool = False


class Network:
    """All streams.

    Args:
        world: time and chance.
        options: how bad it is.
    """

    def __init__(self, world: World, options: Options) -> None:
        self._world = world
        self._chance = world.chance("network")
        self._streams: dict[tuple[int, int], Stream] = {}
        self._hosts: dict[int, Receiver] = {}
        self.blocked: set[tuple[int, int]] = set()
        self.ordered = options.ordered
        self.delay_us = options.delay_us
        self.delay_tail = options.delay_tail
        self.loss = options.loss
        self.duplication = options.duplication
        self.disconnection = options.disconnection

    def calm(self) -> None:
        """End all faults of the network, from now on."""
        self.loss = self.duplication = self.disconnection = self.delay_tail = 0
        self.delay_us = min(self.delay_us, 10_000)
        self.blocked.clear()

    def attach(self, number: int, host: Receiver) -> None:
        """A host has started."""
        self._hosts[number] = host
        for other in list(self._hosts):
            if other != number:
                self._world.after(self._delay(), self._connect, number, other)
                self._world.after(self._delay(), self._connect, other, number)

    def detach(self, number: int) -> None:
        """A host has crashed: all its streams end."""
        self._hosts.pop(number, None)
        for (source, target), stream in self._streams.items():
            if number in (source, target) and stream.is_open:
                self._end(source, target, stream)

    def send(self, source: int, target: int, data: Any) -> None:
        """Send frames; data is bytes, or anything at all where nothing takes it apart."""
        stream = self._streams.get((source, target))
        if stream is None or not stream.is_open:
            self._world.counts["frames without a stream"] += 1
            return
        chance = self._chance
        if chance.random() < self.disconnection:
            self._world.count("connections cut", source, target)
            self._end(source, target, stream)
            return
        if (source, target) in self.blocked or chance.random() < self.loss:
            self._world.counts["frames lost"] += 1
            if self.ordered and not stream.is_dying:
                # A stream with a hole cannot go on: nothing arrives any more until it is ended.
                stream.is_dying = True
                self._world.after(NOTICE_US, self._give_up, source, target, stream.epoch)
            return
        if stream.is_dying:
            self._world.counts["frames lost"] += 1
            return
        if self._world.show and isinstance(data, bytes):
            print(f"{self._world.now_us / 1e6:10.6f} send {source:x} {target:x} {describe(data)}")
        if self.ordered and isinstance(data, bytes) and chance.random() < SPLIT:
            # Bytes arrive in pieces of any size; the connection may end between two.
            cut = chance.randrange(len(data))
            self._schedule(source, target, stream, data[:cut])
            data = data[cut:]
        self._schedule(source, target, stream, data)
        if not self.ordered and chance.random() < self.duplication:
            self._world.counts["frames repeated"] += 1
            self._schedule(source, target, stream, data)

    def _schedule(self, source: int, target: int, stream: Stream, data: Any) -> None:
        arrival_us = self._world.now_us + self._delay()
        if self.ordered:
            arrival_us = max(arrival_us, stream.arrival_us)
        elif arrival_us < stream.arrival_us:
            self._world.counts["frames reordered"] += 1
        stream.arrival_us = max(arrival_us, stream.arrival_us)
        delay_us = arrival_us - self._world.now_us
        self._world.after(delay_us, self._arrive, source, target, stream.epoch, data)

    def _delay(self) -> int:
        delay_us = int(self._chance.uniform(0.5, 1.5) * self.delay_us)
        if self.delay_tail and self._chance.random() < self.delay_tail:
            delay_us *= self._chance.randint(2, 20)
        return delay_us

    def _arrive(self, source: int, target: int, epoch: int, data: Any) -> None:
        stream = self._streams[source, target]
        host = self._hosts.get(target)
        if host is None or stream.epoch != epoch:
            self._world.counts["frames lost"] += 1
            return
        if (source, target) in self.blocked:
            self._world.counts["frames lost"] += 1
            return
        what = f"{len(data)} {zlib.crc32(data):x}" if isinstance(data, bytes) else data
        self._world.note("frame", source, target, what)
        self._world.counts["frames"] += 1
        host.receive(source, data)

    def refuse(self, source: int, target: int) -> None:
        """The receiver has closed a stream, because of what came."""
        self._end(source, target, self._streams[source, target])

    def _give_up(self, source: int, target: int, epoch: int) -> None:
        stream = self._streams[source, target]
        if stream.epoch == epoch and stream.is_open:
            self._end(source, target, stream)

    def _end(self, source: int, target: int, stream: Stream) -> None:
        stream.is_open = stream.is_dying = False
        stream.epoch += 1
        self._world.note("stream ended", source, target)
        if source in self._hosts:
            self._tell(self._hosts[source].lost, target)
            self._world.after(RECONNECT_US, self._connect, source, target)

    def _tell(self, report: Callable[[int], None], peer: int) -> None:
        # From an event of its own: the host may be in the middle of a turn.
        self._world.after(0, report, peer)

    def _connect(self, source: int, target: int) -> None:
        stream = self._streams.setdefault((source, target), Stream())
        if source not in self._hosts or stream.is_open:
            return
        # A connection needs both directions for its handshake.
        pairs = {(source, target), (target, source)}
        if target not in self._hosts or pairs & self.blocked:
            # Who is said to be gone may be cut off as well, and alive.
            if self._chance.random() < GONE_CHANCE:
                self._world.count("members said to be gone", source)
                self._tell(self._hosts[source].gone, target)
            self._world.after(RECONNECT_US, self._connect, source, target)
            return
        stream.is_open = True
        stream.epoch += 1
        self._world.note("stream open", source, target)
        self._hosts[target].opened(source)
        self._hosts[source].connected(target)
