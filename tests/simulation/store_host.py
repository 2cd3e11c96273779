"""A machine that runs a whole member: raft, its log, the state, leases, membership."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulation.bare_node import BareNode as Node
from simulation.calls import CallLibrary, MemberCalls
from simulation.host import Host
from simulation.network import Network
from simulation.options import TICK_US, Options
from simulation.store_checks import StoreChecks
from simulation.world import World
from trimaran.errors import ProtocolError
from trimaran.ext import member as engine
from trimaran.wire import etcd_pb2 as pb

CLUSTER_ID = 0x7117
LEADER = 2
TURNS_MAX = 100
SECTOR_BYTES = 512


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


class StoreHost(Host):
    """One member of the store.

    Args:
        number: its member id.
        folder: its disk.
        bootstrap: the first entry of a new cluster; None where it joins one.
        library: where clients' calls are made.
        checks: what sees everything.
        gone: called when it has crashed.
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
        gone: Callable[["StoreHost"], None],
    ) -> None:
        super().__init__(number, world, network, options)
        self.folder = folder
        self.bootstrap = bootstrap
        self.checks = checks
        self._library = library
        self._gone = gone
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
        opened = EngineOptions(
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
        self.member = engine.Member(opened)
        self.node = Node(self.member, None, self.now_us / 1e6)
        self.calls = MemberCalls(self._library, self.member.handler)
        self._flushing = False
        self._sending.clear()
        self.note_state()
        self.later(self.chance.randint(1, 20) * TICK_US, self._persist)

    def power_off(self, torn: bool) -> None:
        self.calls.close()
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
        self._gone(self)

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
            self.later(30_000, self._send_snapshot, peer)
        status = self.member.status()
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
        self.later(self.chance.randint(1, 10) * TICK_US, self._persist)
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

    def _send_snapshot(self, peer: int) -> None:
        self.member.snapshot_failed(peer)
        self.world.count("snapshots failed", self.number, peer)

    def keep_up(self, chance: random.Random) -> None:
        """Compact or defragment."""

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
