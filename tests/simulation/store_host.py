"""A machine that runs a whole member: raft, its log, the state, leases, membership."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from simulation.calls import CallLibrary, MemberCalls
from simulation.host import Host
from simulation.network import Network
from simulation.options import TICK_US, Options
from simulation.snapshots import Receiving, Transfer
from simulation.store_checks import StoreChecks
from simulation.world import World
from trimaran.errors import ProtocolError
from trimaran.ext import member as engine
from trimaran.store.node import Node, NodeSettings
from trimaran.wire import etcd_pb2 as pb

CLUSTER_ID = 0x7117
LEADER = 2
TURNS_MAX = 100
SECTOR_BYTES = 512
REMOVED_TICKS = 10  # from a member's removal until it stops


@dataclass
class EngineOptions:
    """What a member is opened with: see `trimaran.ext.member.Options`."""

    log_directory: str
    state_directory: str
    member_id: int
    incarnation: int
    bootstrap: bytes | None
    seed: int
    election_ticks: int
    lease_us: int
    max_message_bytes: int
    request_timeout_ticks: int
    cluster_id: int = CLUSTER_ID
    heartbeat_ticks: int = 1
    journal_size_bytes: int = 256 << 10
    map_size_bytes: int = 64 << 20
    hash_seed: int = 1
    max_txn_ops: int = 128
    max_request_bytes: int = 1 << 20
    quota_bytes: int = 0
    max_pending_bytes: int = 64 << 20
    max_uncommitted_bytes: int = 64 << 20
    pre_vote: bool = True
    manual_log: bool = True


class Watcher(Protocol):
    """The cluster, as its hosts know it."""

    def find(self, number: int) -> "StoreHost | None":
        """The host of a member, None where there is none any more."""

    def gone(self, host: "StoreHost") -> None:
        """A host has crashed."""

    def configured(self, applied: int, members: dict[str, list[int]]) -> None:
        """Somebody has applied this configuration."""

    def lease_gone(self, lease: int) -> None:
        """Somebody has applied the end of a lease."""

    def compact(self, host: "StoreHost", chance: random.Random) -> None:
        """Have a host compact up to some revision."""

    def removed(self, host: "StoreHost") -> None:
        """A host has learned that it belongs to the cluster no more."""


class StoreHost(Host):
    """One member of the store.

    Args:
        number: its member id.
        folder: its disk.
        bootstrap: the first entry of a new cluster; None where it joins one.
        library: where clients' calls are made.
        checks: what sees everything.
        watcher: is told what everybody may see of it.
    """

    def __init__(
        self,
        number: int,
        world: World,
        network: Network,
        options: Options,
        folder: Path,
        bootstrap: bytes | None,
        library: CallLibrary,
        checks: StoreChecks,
        watcher: "Watcher",
    ) -> None:
        super().__init__(number, world, network, options)
        self.folder = folder
        self.bootstrap = bootstrap
        self.checks = checks
        self._library = library
        self._watcher = watcher
        self._incarnation = 0
        self._flushing = False
        self._sending: set[int] = set()
        for name in ("log", "state"):
            (folder / name).mkdir(parents=True)

    # Power.

    def boot(self) -> None:
        self._incarnation += 1
        options = self.options
        lease_us = (options.election_ticks - 1) * TICK_US * (1 - 3 * options.clock_drift)
        self.engine_options = EngineOptions(
            log_directory=str(self.folder / "log"),
            state_directory=str(self.folder / "state"),
            member_id=self.number,
            incarnation=self._incarnation,
            bootstrap=self.bootstrap,
            seed=self.chance.getrandbits(63),
            election_ticks=options.election_ticks,
            lease_us=int(lease_us) - 1 if options.lease_reads else 0,
            max_message_bytes=options.max_message_bytes,
            request_timeout_ticks=5 * options.election_ticks,
        )
        self.member = engine.Member(self.engine_options)
        self.node = Node(self.member, self._settings(), self.now_us / 1e6)
        self.calls = MemberCalls(self._library, self.member.handler)
        self._flushing = False
        self._sending.clear()
        self._receiving = Receiving(self)
        self._rows_version = -1
        self._removed_ticks = 0
        self._leases: set[int] = set()
        self.note_state()
        self.later(self.chance.randint(1, 20) * TICK_US, self._persist)

    def _settings(self) -> NodeSettings:
        options = self.options
        return NodeSettings(
            member_id=self.number,
            cluster_id=CLUSTER_ID,
            name=f"m{self.number:x}",
            client_urls=(f"http://m{self.number:x}:2379",),
            version="3.6.0",
            election_timeout_s=options.election_ticks * TICK_US / 1e6,
            request_timeout_s=5 * options.election_ticks * TICK_US / 1e6,
            snapshot_count=options.snapshot_count,
            catch_up_entries=options.catch_up_entries,
            strict_reconfig_check=options.strict_changes,
            first_call=self._incarnation << 32 | 1,
        )

    def power_off(self, torn: bool) -> None:
        self.calls.close()
        self._receiving.close()
        journal, table = self.folder / "log/journal", self.folder / "log/data.mdb"
        # Letting go of the log moves entries from one to the other, which a crash does not.
        kept, kept_table = journal.read_bytes(), table.read_bytes()
        if torn and self.member.log_queue > 0:
            self.member.flush_log(1)
            if table.read_bytes() == kept_table:
                kept = self._tear(kept, journal.read_bytes())
        self.member.abandon()
        for path, content in ((journal, kept), (table, kept_table)):
            with path.open("r+b") as file:
                file.truncate(len(content))
                file.write(content)
        self._watcher.gone(self)

    def _tear(self, before: bytes, after: bytes) -> bytes:
        """Lose the power in the middle of a write: only some of its sectors are on the disk."""
        changed = [
            at
            for at in range(0, len(after), SECTOR_BYTES)
            if after[at : at + SECTOR_BYTES] != before[at : at + SECTOR_BYTES]
        ]
        torn = bytearray(before)
        kept = self.chance.sample(changed, self.chance.randrange(len(changed))) if changed else []
        for at in kept:
            torn[at : at + SECTOR_BYTES] = after[at : at + SECTOR_BYTES]
        self.world.count("writes torn", self.number, len(changed), len(kept))
        return bytes(torn)

    def close(self) -> None:
        """End the program in an orderly way."""
        if self.is_up:
            self.is_up = False
            self.life += 1
            self.calls.close()
            self._receiving.close()
            self.member.close()

    def destroy(self) -> None:
        """Take the disk away; the host must be off."""
        shutil.rmtree(self.folder)

    @property
    def leads(self) -> bool:
        """Whether it takes itself for the leader."""
        return self.is_up and self.member.status()["role"] == LEADER

    # What happens to it.

    def on_tick(self) -> None:
        self.node.tick(self.now_us / 1e6)
        leases = {lease for lease, _ in self.member.leases()}
        for lease in self._leases - leases:
            self._watcher.lease_gone(lease)
        self._leases = leases
        if self.node.members.is_removed:
            self._removed_ticks += 1
            if self._removed_ticks == REMOVED_TICKS:
                self.later(0, self._watcher.removed, self)

    def on_receive(self, peer: int, data: Any) -> None:
        try:
            self.node.receive(peer, data, self.now_us / 1e6)
        except ProtocolError as error:
            self.world.count(f"streams refused: {error}", peer, self.number)
            self.node.opened(peer, self.now_us / 1e6)
            self.network.refuse(peer, self.number)

    def on_opened(self, peer: int) -> None:
        self.node.opened(peer, self.now_us / 1e6)

    def on_connected(self, peer: int) -> None:
        self.node.connected(peer, self.now_us / 1e6)

    def on_lost(self, peer: int) -> None:
        self.node.lost(peer, self.now_us / 1e6)

    def on_gone(self, peer: int) -> None:
        self.node.gone(peer, self.now_us / 1e6)

    def turn(self) -> None:
        for _ in range(TURNS_MAX):
            more = self.node.turn(self.now_us / 1e6)
            self.calls.deliver()
            for peer, data in self.node.outgoing():
                self.network.send(self.number, peer, data)
            if not more:
                break
        else:
            raise AssertionError(f"{self.number:x} has never done")
        self._plan_flush()
        for peer in self.member.snapshot_requests():
            if peer not in self._sending:
                self._sending.add(peer)
                self.later(self.flush_us(), self._send_snapshot, peer)
        status = self.member.status()
        version = self.member.rows_version
        if version != self._rows_version:
            self._rows_version = version
            self._watcher.configured(status["applied"], self.member.members())
        if self.checks.seen(self.number, status, self.member.revision):
            self.world.count("elections won", self.number, status["term"])

    # The disk.

    def _plan_flush(self) -> None:
        queue = self.member.log_queue
        if not self._flushing and queue:
            self._flushing = True
            self.later(self.flush_us(), self._flush, self.chance.randint(1, queue))

    def _flush(self, count: int) -> None:
        if self.meets_doom():
            return
        self._flushing = False
        self.member.flush_log(count)
        self.wake()

    def _persist(self) -> None:
        self.later(self.chance.randint(2, 40) * TICK_US, self._persist)
        if self.member.commit():
            self.node.persisted()
        self.note_state()
        self.wake()

    def note_state(self) -> None:
        """Compare all that the state holds with what others held after the same entry."""
        request = pb.RangeRequest(key=b"\0", range_end=b"\0").SerializeToString()
        answer = pb.RangeResponse.FromString(self.member.range(request))
        content = [str(kv).replace("\n", " ") for kv in answer.kvs]
        leases = sorted(self.member.leases())
        applied = self.member.status()["applied"]
        self.checks.digest(self.number, applied, (content, leases))

    # Snapshots.

    def _send_snapshot(self, peer: int) -> None:
        receiver = self._watcher.find(peer)
        if receiver is None:
            self._sending.discard(peer)
            self.member.snapshot_failed(peer)
            return
        self.member.commit()
        reader = self.member.snapshot()
        _, count = reader.measure()
        chunks = [reader.read(number) for number in range(count)]
        index, term = reader.index, self.member.status()["term"]
        reader.close()
        self.world.count("snapshots begun", self.number, peer, index)
        Transfer(self, receiver, self.life, term, index, chunks).begin()

    def snapshot_ended(self, transfer: Transfer, sent: bool) -> None:
        """A snapshot of this member has arrived, or has been given up."""
        peer = transfer.receiver.number
        self._sending.discard(peer)
        if sent:
            self.member.snapshot_sent(peer, transfer.index)
        else:
            self.member.snapshot_failed(peer)
        self.wake()

    def begin_state(self, transfer: Transfer) -> int:
        """A member wants to send its state; returns the number of the chunk that is wanted."""
        return self._receiving.begin(transfer)

    def take_chunk(self, transfer: Transfer, number: int, chunk: bytes) -> int | None:
        """A chunk of a state has come; returns the next one wanted, None to end the connection."""
        return self._receiving.take(transfer, number, chunk)

    def install_state(self, transfer: Transfer) -> bool:
        """The whole state has come; returns whether it was news."""
        taken = self._receiving.install(transfer)
        if taken:
            self.node.replaced(self.now_us / 1e6)
            self._leases.clear()
            self.note_state()
        self.wake()
        return taken

    def keep_up(self, chance: random.Random) -> None:
        """Compact the keys, or copy the state compactly."""
        if chance.random() < 0.5:
            self._watcher.compact(self, chance)
            return
        self.world.count("defragmentations", self.number)
        copy = self.member.defragment()
        copy.copy()
        copy.renew()
        if not copy.hold():
            raise AssertionError("a commit is under way that nobody has begun")
        copy.renew()
        copy.copy()
        copy.finish()
        copy.swap()
        copy.end()
        copy.clean()
        self.wake()

    def hash_keys(self, revision: int) -> int:
        """Return etcd's hash of the keys up to a revision."""
        self.member.commit()
        reader = self.member.snapshot()
        value = reader.hash_keys(revision)
        reader.close()
        return value

    # Clients.

    @property
    def serves(self) -> bool:
        """Whether anybody listens here."""
        return self.is_up

    def begin(self, name: str, request: bytes, answer: Callable[[int, bytes], None]) -> int:
        """Begin a call; returns its number."""
        number = self.calls.begin(name, request, answer)
        self.wake()
        return number

    def message(self, number: int, request: bytes) -> None:
        """Go on with a stream."""
        self.calls.message(number, request)
        self.wake()

    def cancel(self, number: int) -> None:
        """Go away."""
        self.calls.cancel(number)
