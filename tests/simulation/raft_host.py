"""A machine that runs raft alone, over a log and a state that are Python lists: for many seeds.

What it applies is a chain of hashes, so that equal states have had equal histories.
"""

import random
import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from simulation.host import Host
from simulation.network import Network
from simulation.options import TICK_US, Options
from simulation.raft_checks import RaftChecks
from simulation.world import World
from trimaran.ext.raft import CONFIGURATION, NORMAL, Members, Message, Raft, Ready
from trimaran.ext.raftlog import Entry, HardState

SNAPSHOT_US = 30_000


class State(NamedTuple):
    """What applying has led to."""

    index: int = 0
    term: int = 0
    digest: int = 0
    members: Members = Members()


class MemoryLog:
    """Entries after a snapshot's index; what raft reads of the log."""

    def __init__(self) -> None:
        self.base_index = 0
        self.base_term = 0
        self.entries: list[Entry] = []

    @property
    def last_index(self) -> int:
        """Index of the last entry, or of the snapshot."""
        return self.base_index + len(self.entries)

    def term(self, index: int) -> int:
        """Term of an entry."""
        if index == self.base_index:
            return self.base_term
        return self.read(index, index)[0].term

    def has(self, index: int, term: int) -> bool:
        """Whether it holds an entry, or a snapshot that contains it."""
        if index <= self.base_index:
            return True
        return index <= self.last_index and self.term(index) == term

    def read(self, first: int, last: int, max_bytes: int = 1 << 62) -> list[Entry]:
        """Entries from first to last, at least one, up to so many bytes."""
        if not self.base_index < first <= last <= self.last_index:
            raise IndexError(f"{first}..{last} of {self.base_index + 1}..{self.last_index}")
        found = self.entries[first - self.base_index - 1 : last - self.base_index]
        size = 0
        for count, entry in enumerate(found):
            size += len(entry.data)
            if size > max_bytes and count:
                return found[:count]
        return found

    def append(self, entries: Sequence[Entry]) -> None:
        """Append, over what conflicts."""
        if entries:
            assert self.base_index < entries[0].index <= self.last_index + 1
            del self.entries[entries[0].index - self.base_index - 1 :]
            self.entries.extend(entries)

    def cut(self, index: int) -> None:
        """Forget entries up to one."""
        if index > self.base_index:
            self.base_term = self.term(index)
            del self.entries[: index - self.base_index]
            self.base_index = index

    def reset(self, index: int, term: int) -> None:
        """Begin anew after a snapshot."""
        self.base_index, self.base_term = index, term
        self.entries.clear()


class RaftHost(Host):
    """One member of a raft group.

    Args:
        founders: the first members; empty where it joins later.
        checks: what sees everything.
    """

    def __init__(
        self,
        number: int,
        world: World,
        network: Network,
        options: Options,
        founders: Sequence[int],
        checks: RaftChecks,
    ) -> None:
        super().__init__(number, world, network, options)
        self.checks = checks
        self.log = checks.logs[number] = MemoryLog()
        self.hard_state = HardState(0, 0, 0)
        self.stored = State()
        self.state = self.stored
        if founders:
            # The first entry is the same on all of them, and committed without a word.
            text = " ".join(f"add-voter {founder}" for founder in founders)
            self.log.append([Entry(1, 1, text.encode(), CONFIGURATION)])
            self.hard_state = HardState(1, 0, 1)
            self.checks.appended(1, 1, 0, zlib.crc32(text.encode()))
        self.incoming: dict[tuple[int, int], State] = {}
        self.pending: deque[tuple[int, HardState | None, list[Entry]]] = deque()
        self.reads: dict[int, int] = {}
        self.proposed: dict[int, int] = {}  # index: term
        self.acknowledged = 0
        self._flushing = False
        self._read_number = 0
        self._waiting_reads: list[tuple[int, int]] = []

    # Power.

    def boot(self) -> None:
        self.state = self.stored
        self.pending.clear()
        self.reads.clear()
        self.proposed.clear()
        self._waiting_reads.clear()
        self._flushing = False
        self.incoming.clear()
        drift = self.options.clock_drift
        lease_us = (self.options.election_ticks - 1) * TICK_US * (1 - 3 * drift)
        self.raft = Raft(
            self.number,
            members=self.state.members,
            log=self.log,
            election_ticks=self.options.election_ticks,
            seed=self.chance.getrandbits(63),
            lease_us=int(lease_us) - 1 if self.options.lease_reads else 0,
            max_message_bytes=self.options.max_message_bytes,
            max_inflight_messages=16,
            hard_state=self.hard_state,
            first_index=self.log.base_index + 1,
            last_index=self.log.last_index,
            applied_index=self.state.index,
        )
        self._was_leading = self._led_commit = 0
        self.later(self.chance.randint(5, 20) * TICK_US, self._persist)

    def power_off(self, torn: bool) -> None:
        # A torn write is dropped when the log is opened: as if it had not been begun.
        self.pending.clear()
        del self.raft

    @property
    def leads(self) -> bool:
        """Whether it takes itself for the leader."""
        return self.is_up and self.raft.status.role == "leader"

    # What happens to it.

    def on_tick(self) -> None:
        self.raft.set_clock(self.now_us)
        self.raft.tick()

    def on_receive(self, peer: int, data: Any) -> None:
        self.raft.set_clock(self.now_us)
        kind, content = data
        try:
            if kind == "message":
                self.raft.step(content)
            else:
                # More than one may come before raft takes one of them.
                self.incoming[content[1].index, content[1].term] = content[1]
                self.raft.step(content[0])
        except (KeyError, OSError, ValueError) as error:
            self.world.count(f"messages refused: {type(error).__name__}", peer, self.number)

    def on_lost(self, peer: int) -> None:
        self.raft.unreachable(peer)

    def on_gone(self, peer: int) -> None:
        self.raft.gone(peer)

    def turn(self) -> None:
        self.raft.set_clock(self.now_us)
        self._check_leader()
        for _ in range(100):
            if not self.raft.has_ready():
                break
            self._carry_out(self.raft.ready())
            self._check_leader()
        else:
            raise AssertionError("raft has never done")

    def _check_leader(self) -> None:
        status = self.raft.status
        if status.role != "leader":
            return
        self.checks.leads(self.number, status.term)
        if self._was_leading != status.term:
            self._was_leading = status.term
            self._led_commit = status.commit
            self.checks.new_leader(self.number, status.term, self.view())
            self.world.count("elections won", self.number, status.term)
        if status.commit > self._led_commit:
            self._led_commit = status.commit
            members = self.raft.members
            term = self._term(status.commit)
            halves = members.voters, members.outgoing
            self.checks.commits(self.number, status.term, status.commit, term, halves)

    def _carry_out(self, ready: Ready) -> None:
        if ready.install is not None:
            self._install(ready)
        elif ready.must_append:
            self._note_entries(ready.entries)
            self.pending.append((ready.number, ready.hard_state, ready.entries))
            self._plan_flush()
        for message in ready.messages:
            if message.type == "snapshot":
                self.later(SNAPSHOT_US, self._send_snapshot, message.to, message.term)
            else:
                self.network.send(self.number, message.to, ("message", message))
        if ready.committed is not None:
            first, last = ready.committed
            entries = ready.committed_entries or self.log.read(first, last)
            for entry in entries:
                self._apply(entry)
            self.raft.applied(entries[-1].index)
            if entries[-1].index < last:
                raise AssertionError(f"got entries to {entries[-1].index} of {last}")
        for context, index in ready.read_states:
            self._waiting_reads.append((context, index))
        self._answer_reads()

    # The log.

    def view(self) -> dict[int, int]:
        """Term by index of all it holds, flushed or not."""
        held = {self.log.base_index: self.log.base_term}
        for batch in [self.log.entries, *(entries for _, _, entries in self.pending)]:
            for entry in batch:
                held[entry.index] = entry.term
            if batch:
                for index in [index for index in held if index > batch[-1].index]:
                    del held[index]
        return held

    def _term(self, index: int) -> int:
        """Term of an entry, flushed or not."""
        for _, _, entries in reversed(self.pending):
            if entries and entries[0].index <= index:
                return entries[index - entries[0].index].term
        return self.log.term(index)

    def is_changing(self, index: int) -> bool:
        """Whether it holds a change of the configuration after an index."""
        batches = [self.log.entries, *(entries for _, _, entries in self.pending)]
        return any(
            entry.index > index and entry.type == CONFIGURATION
            for batch in batches
            for entry in batch
        )

    def _note_entries(self, entries: list[Entry]) -> None:
        if not entries:
            return
        before = self.view().get(entries[0].index - 1, 0)
        for entry in entries:
            self.checks.appended(entry.index, entry.term, before, zlib.crc32(entry.data))
            before = entry.term

    def _plan_flush(self) -> None:
        if not self._flushing and self.pending:
            self._flushing = True
            self.later(self.flush_us(), self._flush, self.chance.randint(1, len(self.pending)))

    def _flush(self, count: int) -> None:
        if self.meets_doom():
            return
        self._flushing = False
        if not self.pending:
            return  # an installed snapshot has taken their place
        number = 0
        for _ in range(min(count, len(self.pending))):
            number, hard_state, entries = self.pending.popleft()
            self.log.append(entries)
            if hard_state is not None:
                self._store(hard_state)
        self.raft.append_done(number)
        self._plan_flush()
        self.wake()

    def _store(self, hard_state: HardState) -> None:
        self.checks.hard_state(self.number, hard_state.term, hard_state.vote)
        self.hard_state = hard_state

    # The state.

    def _apply(self, entry: Entry) -> None:
        assert entry.index == self.state.index + 1
        content = zlib.crc32(entry.data)
        term = self.raft.status.term
        self.checks.applied(self.number, entry.index, entry.term, content, term)
        digest = zlib.crc32(entry.data, self.state.digest ^ entry.index)
        members = self.state.members
        if entry.type == CONFIGURATION:
            members = self._change(parse_changes(entry.data))
        self.state = State(entry.index, entry.term, digest, members)
        if self.proposed.pop(entry.index, None) == entry.term:
            self.acknowledged = entry.index

    def _change(self, changes: list[tuple[str, int]]) -> Members:
        try:
            self.raft.change(changes)
        except ValueError:
            # Asked of a leader that did not know what was under way: the same for each member.
            assert changes
            self.world.count("changes without sense", self.number, changes)
        self.world.count("changes applied", self.number, self.raft.members)
        return self.raft.members

    def _persist(self) -> None:
        self.later(self.chance.randint(1, 10) * TICK_US, self._persist)
        self.stored = self.state
        if self.stored.index - self.log.base_index > self.options.snapshot_count:
            self._cut(self.options.catch_up_entries)

    def _cut(self, keep: int) -> None:
        index = min(self.stored.index, self.log.last_index) - keep
        if index > self.log.base_index:
            self.world.count("logs cut", self.number, index)
            self.log.cut(index)
            self.raft.compacted(index + 1)

    def keep_up(self, chance: random.Random) -> None:
        """Cut the log, short or long after what is stored."""
        self._cut(chance.choice([0, 1, 20]))

    # Snapshots.

    def _send_snapshot(self, to: int, term: int) -> None:
        state = self.state
        if self.raft.status.term != term or self.raft.status.role != "leader":
            return
        if self.chance.random() < 0.2:
            self.world.count("snapshots failed", self.number, to)
            self.raft.snapshot_failed(to)
            self.wake()
            return
        message = Message(
            "snapshot", self.number, to, term, state.term, state.index, members=state.members
        )
        self.world.count("snapshots sent", self.number, to, state.index)
        self.network.send(self.number, to, ("snapshot", (message, state)))
        self.raft.snapshot_sent(to, state.index)
        self.wake()

    def _install(self, ready: Ready) -> None:
        assert ready.install is not None
        self.world.count("snapshots installed", self.number, ready.install)
        self.state = self.stored = self.incoming[ready.install]
        self.incoming.clear()
        self.log.reset(*ready.install)
        self.pending.clear()
        if ready.hard_state is not None:
            self._store(ready.hard_state)
        self.raft.snapshot_installed()

    # Clients.

    def propose(self, data: bytes, kind: int = NORMAL) -> int:
        """Propose an entry; returns its index, 0 where it was refused."""
        try:
            index = self.raft.propose(data, type=kind)
        except OSError:
            return 0
        self.proposed[index] = self.raft.status.term
        self.wake()
        return index

    def read(self, acknowledged: int) -> None:
        """Read, after an index was acknowledged somewhere."""
        self._read_number += 1
        context = self.life << 32 | self._read_number
        try:
            self.raft.read_index(context)
        except OSError:
            return
        self.reads[context] = acknowledged
        self.wake()

    def _answer_reads(self) -> None:
        left = []
        for context, index in self._waiting_reads:
            if index > self.state.index:
                left.append((context, index))
            elif context in self.reads:
                self.world.count("reads answered", self.number, index)
                self.checks.read(self.number, self.state.index, self.reads.pop(context))
        self._waiting_reads = left


def parse_changes(data: bytes) -> list[tuple[str, int]]:
    """Read what `propose` was given for a change; nothing of it leaves a joint configuration."""
    words = data.decode().split()
    return [(words[at], int(words[at + 1])) for at in range(0, len(words), 2)]
