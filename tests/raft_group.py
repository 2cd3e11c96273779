"""A group of rafts in memory: each with a disk that may lose what was not flushed, and a network
that holds messages until they are delivered or dropped."""

import contextlib
import json
from collections.abc import Callable, Iterator

from trimaran.ext.raft import CONFIGURATION, Members, Message, Raft, Ready
from trimaran.ext.raftlog import Entry, HardState


class Disk:
    """A log in memory, as `Log` wants it, with what was handed to it and not yet flushed."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.first = 1
        self.first_term = 0  # of the entry before
        self.hard_state = HardState(0, 0, 0)
        self.snapshot: tuple[int, int, Members, list[Entry]] | None = None

    @property
    def last(self) -> int:
        return self.first + len(self.entries) - 1

    def term(self, index: int) -> int:
        if index == self.first - 1:
            return self.first_term
        return self.at(index).term

    def at(self, index: int) -> Entry:
        if not self.first <= index <= self.last:
            raise IndexError(index)
        return self.entries[index - self.first]

    def read(self, first: int, last: int, max_bytes: int = 2**63) -> list[Entry]:
        found: list[Entry] = []
        for index in range(first, last + 1):
            entry = self.at(index)
            if found and sum(len(e.data) for e in found) + len(entry.data) > max_bytes:
                break
            found.append(entry)
        return found

    def append(self, entries: list[Entry], hard_state: HardState | None) -> None:
        if entries:
            assert self.first <= entries[0].index <= self.last + 1, "a hole in the log"
            assert entries[0].index > self.hard_state.commit, "a committed entry was replaced"
            del self.entries[entries[0].index - self.first :]
            self.entries += entries
        self.hard_state = hard_state or self.hard_state
        assert self.hard_state.commit <= self.last

    def compact(self, index: int) -> None:
        self.first_term = self.term(index)
        del self.entries[: index + 1 - self.first]
        self.first = index + 1

    def reset(self, index: int, term: int, hard_state: HardState) -> None:
        self.entries = []
        self.first, self.first_term = index + 1, term
        self.hard_state = hard_state


class Node:
    """One member: raft, its disk, and what it has applied (index, term, data)."""

    def __init__(self, id: int, members: Members, **options: int | bool) -> None:
        self.id = id
        self.options = options
        self.disk = Disk()
        self.members = members  # as applied
        self.applied: list[Entry] = []
        self.base = 0  # applied entries up to it came by a snapshot or are only remembered
        self.in_flight: list[Ready] = []
        self.reads: list[tuple[int, int]] = []
        self.received: Message | None = None  # the snapshot that waits to be installed
        self.received_entries: list[Entry] = []
        self.installing = False
        self.seed = int(options.pop("seed", id))
        self.start()

    @property
    def applied_index(self) -> int:
        return self.applied[-1].index if self.applied else 0

    def start(self) -> None:
        """Start from what is on the disk, as after a crash."""
        self.in_flight = []
        self.installing = False
        self.received = None
        disk = self.disk
        self.raft = Raft(
            self.id,
            members=self.members,
            log=disk,
            seed=self.seed,
            hard_state=disk.hard_state,
            first_index=disk.first,
            last_index=disk.last,
            applied_index=self.applied_index,
            **self.options,  # type: ignore[arg-type]
        )
        self.seed += 1000

    def apply(self, entry: Entry) -> None:
        assert entry.index == self.applied_index + 1
        self.applied.append(entry)
        if entry.type == CONFIGURATION:
            changes = json.loads(entry.data) if entry.data else []
            with contextlib.suppress(ValueError):  # the same on every member: nothing changes
                self.raft.change([(op, id) for op, id in changes])
            self.members = self.raft.members

    def take_ready(self) -> Ready:
        """Take a Ready and do everything but the flush and the sending."""
        ready = self.raft.ready()
        if ready.install is not None:
            self.installing = True
            assert ready.hard_state is not None
            assert not ready.must_append
            self.install_state = ready.hard_state
        if ready.must_append:
            self.in_flight.append(ready)
        self.reads += ready.read_states
        if ready.committed is not None:
            first, last = ready.committed
            entries = ready.committed_entries
            if entries is None:
                entries = self.disk.read(first, last)
            for entry in entries:
                assert self.disk.at(entry.index) == entry, "committed before it was durable"
                self.apply(entry)
            self.raft.applied(last)
        return ready

    def flush(self, count: int = 1) -> None:
        """Make the oldest appends durable and say so once."""
        done, self.in_flight = self.in_flight[:count], self.in_flight[count:]
        for ready in done:
            self.disk.append(ready.entries, ready.hard_state)
        if done:
            self.raft.append_done(done[-1].number)

    def install(self) -> None:
        """Install the snapshot that a Ready asked for; appends before it are flushed first."""
        assert self.received is not None
        self.flush(len(self.in_flight))
        message = self.received
        self.disk.reset(message.index, message.log_term, self.install_state)
        self.applied = list(self.received_entries)
        assert message.members is not None
        self.members = message.members
        self.installing = False
        self.received = None
        self.raft.snapshot_installed()

    def take_reads(self) -> list[tuple[int, int]]:
        """Return the read states since the last call."""
        reads, self.reads = self.reads, []
        return reads

    def receive_snapshot(self, message: Message, entries: list[Entry]) -> None:
        """The whole data of a snapshot has arrived."""
        if self.received is not None:
            return
        before = self.raft.status.commit
        self.received, self.received_entries = message, entries
        self.raft.step(message)
        status = self.raft.status
        if not (status.commit > before and status.last_index == message.index):
            self.received = None

    def compact(self, index: int) -> None:
        self.disk.compact(index)
        self.raft.compacted(index + 1)


class Group:
    """Nodes and the messages between them, in the order of their sending."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.messages: list[Message] = []

    def add(self, id: int, members: Members, **options: int | bool) -> Node:
        node = Node(id, members, **options)
        self.nodes[id] = node
        return node

    def turn(self, node: Node) -> Iterator[Ready]:
        """Take every Ready of a node; messages go to the network."""
        while node.raft.has_ready():
            ready = node.take_ready()
            self.messages += ready.messages
            yield ready

    def deliver(self, message: Message) -> bool:
        """Step a message where its receiver runs; whether it was taken."""
        node = self.nodes.get(message.to)
        if node is None:
            return False
        if message.type == "snapshot" and message.members is None:
            return self.deliver_snapshot(message, node)
        try:
            node.raft.step(message)
        except (KeyError, ValueError, OSError):
            return False
        return True

    def deliver_snapshot(self, request: Message, node: Node) -> bool:
        """The leader's owner streams its state as applied now, in one piece."""
        leader = self.nodes[request.sender]
        last = leader.applied[-1]
        message = request._replace(index=last.index, log_term=last.term, members=leader.members)
        node.receive_snapshot(message, list(leader.applied))
        leader.raft.snapshot_sent(request.to, last.index)
        return True

    def settle(
        self, limit: int = 10000, lost: Callable[[Message], bool] = lambda message: False
    ) -> None:
        """Run until nothing is left to do, with all flushes done and all but lost messages
        delivered."""
        for _ in range(limit):
            busy = False
            for node in self.nodes.values():
                for _ready in self.turn(node):
                    busy = True
                if node.installing:
                    node.install()
                    busy = True
                if node.in_flight:
                    node.flush(len(node.in_flight))
                    busy = True
            messages, self.messages = self.messages, []
            for message in messages:
                if not lost(message):
                    self.deliver(message)
            if not busy and not messages:
                return
        raise AssertionError("the group does not come to rest")

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            for node in self.nodes.values():
                node.raft.tick()

    @property
    def leader(self) -> Node | None:
        leaders = [n for n in self.nodes.values() if n.raft.status.role == "leader"]
        return max(leaders, key=lambda n: n.raft.status.term, default=None)
