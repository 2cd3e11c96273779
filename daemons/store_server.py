"""The store daemon's moving parts: one member, its servers and its clocks on the event loop."""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from trimaran._version import ETCD_VERSION
from trimaran.daemons.bootstrap import found, peer_ask
from trimaran.daemons.data_directory import (
    DataDirectory,
    Founding,
    mark_removed,
    open_data_directory,
    removed_error,
)
from trimaran.daemons.force_new import force
from trimaran.daemons.grpc_server import GrpcServer
from trimaran.daemons.health import HealthService
from trimaran.daemons.http_ports import HttpPorts
from trimaran.daemons.listening import bind_all, close_all
from trimaran.daemons.peer_connection import PeerIdentity
from trimaran.daemons.store_cluster import ClusterMethods
from trimaran.daemons.store_http import make_application
from trimaran.daemons.store_maintenance import StoreMaintenance
from trimaran.daemons.store_open import is_alone, lead, member_options, request_timeout_s
from trimaran.daemons.store_peers import StorePeers
from trimaran.daemons.store_rpc import StoreMethods
from trimaran.daemons.store_snapshots import StoreSnapshots
from trimaran.daemons.store_tls import client_side, peer_side, warn_of_plain_urls
from trimaran.daemons.tls import TLSSide
from trimaran.errors import (
    ConfigError,
    CorruptionError,
    StatusCode,
    StoreError,
    TrimaranError,
    etcd_error,
)
from trimaran.ext import member as engine
from trimaran.ext import turn
from trimaran.store.corruption import HashDone, StateHash
from trimaran.store.lease_keeper import CHECK_INTERVAL_S
from trimaran.store.lessor import Lessor, minimum_ttl_s
from trimaran.store.node import Node, NodeSettings, ReadDone
from trimaran.store.options import StoreOptions
from trimaran.wire import etcd_pb2 as pb

LOG = logging.getLogger("trimaran.store")
SEAL_INTERVAL_S = 0.1
REVOCATION_INTERVAL_S = 1.0
ADDRESS_PATIENCE = 5  # election time-outs
LEADER_TICKS = 3
SEAL_BYTES = 64 * 1024**2

Outcome = TypeVar("Outcome")


class Stored:
    """A running store member.

    Args:
        options: checked options, from `read_options` or `complete`.

    Attributes:
        failed: set when the member cannot go on and has to be stopped.
        failure: why.
        is_removed: whether that is because the cluster has removed this member.
    """

    def __init__(self, options: StoreOptions) -> None:
        self.options = options
        self.minimum_ttl_s = minimum_ttl_s(options.election_timeout_ms)
        self.failed = asyncio.Event()
        self.is_removed = False
        self.failure: TrimaranError | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._seal_timer: asyncio.TimerHandle | None = None
        self._again: asyncio.Handle | None = None
        self._published = asyncio.Event()
        self._is_open = False
        self._stopping = False
        self._may_hurry = False
        self._leaderless_ticks = 0
        self._disk_error = 0
        self.maintenance = StoreMaintenance(self)
        self._server: GrpcServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def lessor(self) -> Lessor:
        """The clock of the leases."""
        return self.node.leases.lessor

    @property
    def server(self) -> GrpcServer:
        """The server of the client URLs."""
        assert self._server is not None
        return self._server

    async def start(self) -> None:
        """Open the data, listen, join the others and serve.

        Raises:
            ConfigError, CorruptionError: nothing was started; the text says why.
        """
        self._loop = asyncio.get_running_loop()
        self._tls = client_side(self.options)
        peer_tls = peer_side(self.options)
        warn_of_plain_urls(self.options)
        clients = bind_all(self.options.listen_client_urls, "--listen-client-urls")
        try:
            founding = await found(self.options, peer_ask(peer_tls))
            self.member, directory = await self._loop.run_in_executor(None, self._open, founding)
            self.identity = directory.identity
            try:
                await self._connect(directory, peer_tls)
            except BaseException:
                await self._loop.run_in_executor(None, self.member.close)
                raise
        except BaseException:
            close_all(clients)
            raise
        self.node.members.changed = self._members_changed
        self._members_changed()
        self._is_open = True
        self._run_clocks()
        try:
            await self._published.wait()
        except BaseException:
            close_all(clients)
            raise
        await self._serve(clients)
        LOG.info(
            "serving clients on %s: member %x of cluster %x, revision %d",
            ", ".join(self.options.listen_client_urls),
            self.identity.member_id,
            self.identity.cluster_id,
            self.member.revision,
        )

    async def _connect(self, directory: DataDirectory, tls: TLSSide | None) -> None:
        """Make the node and what connects it to the others."""
        self.node = Node(self.member, self._settings(), time.monotonic())
        self.node.no_space = self._report_no_space
        self.node.leader_changed = self._report_leader
        self.node.hash_state = self._hash_state
        self.node.corruption.found = self._report_corruption
        identity = PeerIdentity(self.identity.cluster_id, self.identity.member_id, ETCD_VERSION)
        self.peers = StorePeers(self.node, identity, self._turn_soon, self._turn_and_flush, tls)
        self.peers.removed = self._fail_removed
        self._turns = turn.Turns(self.member, self.peers.transport.wires)
        self.snapshots = StoreSnapshots(
            self.member,
            member_options(self.options, directory),
            self.peers.transport,
            self.maintenance.take,
            self._state_replaced,
            self._turn_soon,
        )
        await self.peers.start(self.options.listen_peer_urls, directory.known)

    def _open(self, founding: Founding | None) -> tuple[engine.Member, DataDirectory]:
        directory = open_data_directory(self.options, founding)
        if self.options.force_new_cluster:
            force(self.options, directory)
        member = engine.Member(member_options(self.options, directory))
        try:
            if is_alone(member, directory.identity.member_id):
                lead(member)
        except BaseException:
            member.close()
            raise
        return member, directory

    def _settings(self) -> NodeSettings:
        options = self.options
        return NodeSettings(
            member_id=self.identity.member_id,
            cluster_id=self.identity.cluster_id,
            name=options.name,
            client_urls=tuple(options.advertise_client_urls),
            version=ETCD_VERSION,
            election_timeout_s=options.election_timeout_ms / 1000,
            request_timeout_s=request_timeout_s(options),
            snapshot_count=options.snapshot_count,
            catch_up_entries=options.snapshot_catchup_entries,
            strict_reconfig_check=options.strict_reconfig_check,
            max_learners=options.max_learners,
            hash_interval_s=options.corrupt_check_time_s or options.compact_hash_check_time_s,
            peer_urls=tuple(self.identity.peer_urls),
            first_call=secrets.randbits(48),
        )

    def _run_clocks(self) -> None:
        self._loop.add_reader(self.member.log_fd, self._turn_and_flush)
        self._loop.add_reader(self.member.state_fd, self._collect)
        self._every(self.options.heartbeat_interval_ms / 1000, self._tick)
        own = self.identity.member_id
        # A lease of reads rests on a started member's silence, which must not be cut short.
        self._may_hurry = (
            self.options.initial_election_tick_advance
            and not self.options.lease_reads
            and not is_alone(self.member, own)
        )
        self._every(CHECK_INTERVAL_S, self._report_disk)
        self._every(REVOCATION_INTERVAL_S, self.peers.transport.end_revoked)
        patience_s = ADDRESS_PATIENCE * self.options.election_timeout_ms / 1000
        self._timers.append(self._loop.call_later(patience_s, self._check_address))
        self._turn_soon()

    async def _serve(self, sockets: list[socket.socket]) -> None:
        self._server = GrpcServer(
            self._loop,
            self.member.handler,
            message_bytes_max=self.options.max_request_bytes + 512 * 1024,
        )
        self._server.before_flush = self._turn
        StoreMethods(self).register(self._server)
        self.maintenance.register(self._server)
        ClusterMethods(self).register(self._server)
        self.health = HealthService(self._server)
        self._runner = web.AppRunner(make_application(self), access_log=None)
        await self._runner.setup()
        await self._server.start(sockets, self._runner.server, self._tls)
        assert self._runner.server is not None
        self._metrics = HttpPorts(self._runner.server, self._tls)
        await self._metrics.listen(
            bind_all(self.options.listen_metrics_urls, "--listen-metrics-urls")
        )
        self._every(self.options.watch_progress_notify_interval_s, self._progress)
        self._every(REVOCATION_INTERVAL_S, self._server.end_revoked)
        self._every(REVOCATION_INTERVAL_S, self._metrics.end_revoked)

    async def stop(self) -> None:
        """Finish what is under way, write everything to disk and let go of it."""
        if self._stopping or not self._is_open:
            return
        await self._hand_over()
        self._stopping = True
        if self._server is not None:
            self.health.set_serving(False)
            await self._server.stop()
            self._metrics.stop()
            await self._runner.cleanup()
        self._loop.remove_reader(self.member.log_fd)
        self._loop.remove_reader(self.member.state_fd)
        for timer in (*self._timers, self._seal_timer, self._again):
            if timer is not None:
                timer.cancel()
        self.node.stop()
        await self.snapshots.stop()
        await self.peers.stop()
        await self._loop.run_in_executor(None, self.member.close)
        LOG.info("stopped")

    async def _hand_over(self) -> None:
        """Let another member lead before this one goes: the others need not wait for a time-out."""
        if not self.node.is_leader:
            return
        own = self.identity.member_id
        others = [peer for peer in self.member.members()["voters"] if peer != own]
        progress = {peer: self.member.raft_progress(peer) for peer in others}
        ready = [peer for peer in others if (progress[peer] or {}).get("active")]
        if not ready:
            return
        best = max(ready, key=lambda peer: (progress[peer] or {})["match"])
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(self.options.election_timeout_ms / 1000):
                await self.wait(lambda done: self.node.move_leader(best, done))

    async def ask(self, begin: Callable[[Callable[[Outcome | StoreError], None]], None]) -> Outcome:
        """Begin something on the node and wait for its outcome.

        Args:
            begin: called with the `done` that is to get the outcome.

        Raises:
            StoreError: the outcome was one.
        """
        if self._stopping:
            raise etcd_error("STOPPED")
        future: asyncio.Future[Outcome] = self._loop.create_future()

        def done(outcome: Outcome | StoreError) -> None:
            if future.done():
                return
            if isinstance(outcome, StoreError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.node.now_s = time.monotonic()
        begin(done)
        self._turn_soon()
        return await future

    async def wait(self, begin: Callable[[ReadDone], None]) -> None:
        """Begin something on the node that has no result, and wait for its end.

        Raises:
            StoreError: it failed.
        """

        def ask(done: Callable[[bool | StoreError], None]) -> None:
            begin(lambda error: done(True if error is None else error))

        await self.ask(ask)

    async def propose(self, kind: int, request: bytes) -> int:
        """Put an operation through the log.

        Args:
            kind: one of the engine's kinds.
            request: its protobuf request.

        Returns:
            the revision after it was applied.

        Raises:
            StoreError: it was refused.
        """
        revision: int = await self.ask(lambda done: self.node.propose(kind, request, done))
        return revision

    async def read(self) -> None:
        """Wait until reads here see everything that was acknowledged anywhere before.

        Raises:
            StoreError: no leader confirmed it in time.
        """
        await self.wait(self.node.read)

    def header(self) -> pb.ResponseHeader:
        """Return the header of a response made now."""
        return pb.ResponseHeader(
            cluster_id=self.identity.cluster_id,
            member_id=self.identity.member_id,
            revision=self.member.revision,
            raft_term=self.node.term,
        )

    def _every(self, interval_s: float, action: Callable[[], None]) -> None:
        """Call action at a fixed pace until stop."""
        slot = len(self._timers)

        def run() -> None:
            self._timers[slot] = self._loop.call_later(interval_s, run)
            action()

        self._timers.append(self._loop.call_later(interval_s, run))

    def _hurry_first_election(self) -> None:
        """Once most members are connected and none leads: wait no longer than chance has it.

        Each waits the election time-out and up to as long again, at random. The first part gives a
        leader time to be heard; after a start it is left out, once, as etcd does.
        """
        voters = set(self.member.members()["voters"]) - {self.identity.member_id}
        connected = sum(map(self.peers.transport.is_connected, voters))
        if self.node.leader != 0:
            self._may_hurry = False
        elif connected * 2 >= len(voters) and connected > 0:
            # A leader that is there already is heard within a tick or two.
            self._leaderless_ticks += 1
            if self._leaderless_ticks <= LEADER_TICKS:
                return
            self._may_hurry = False
            ticks = self.options.election_timeout_ms // self.options.heartbeat_interval_ms
            ticks -= LEADER_TICKS + 1
            LOG.info("the first election comes %d ticks early", ticks)
            for _ in range(ticks):
                self.member.tick()

    def _tick(self) -> None:
        if self._may_hurry:
            self._hurry_first_election()
        self.node.tick(time.monotonic())
        self._turn_and_flush()

    def _turn(self) -> None:
        news = self._turns.turn()
        if news or self.node.frames:
            self._take_news(news)

    def _take_news(self, news: int) -> None:
        """Do what a turn has left to be done."""
        if news & turn.UNSENT:
            # Before all else: it may be the rest of a frame.
            self.peers.send(self._turns.take_unsent())
        if news & (turn.RESULTS | turn.STATUS):
            self.node.turned(time.monotonic())
        if news & turn.MORE:
            self._turn_soon()
        self.peers.send(self.node.take_frames())
        if news & turn.SNAPSHOTS:
            self.snapshots.send_wanted()
        if news & turn.UNSAVED:
            if self._seal_timer is None:
                self._seal_timer = self._loop.call_later(SEAL_INTERVAL_S, self._seal)
            if self.member.pending_bytes > SEAL_BYTES:
                self.member.seal()

    def _turn_and_flush(self) -> None:
        self._turn()
        if self._server is not None:
            self._server.flush()

    def _turn_soon(self) -> None:
        if self._again is None:
            self._again = self._loop.call_soon(self._turn_again)

    def _turn_again(self) -> None:
        self._again = None
        self._turn_and_flush()

    def _seal(self) -> None:
        self._seal_timer = None
        if not self.member.seal() and self.member.pending_bytes > 0:
            self._seal_timer = self._loop.call_later(SEAL_INTERVAL_S, self._seal)

    def _collect(self) -> None:
        self.member.collect()
        self.node.persisted()
        self.maintenance.collected()
        self._turn_and_flush()

    def _report_leader(self, leader: int) -> None:
        term = self.node.term
        if leader == 0:
            LOG.warning("no leader is known in term %d: writes and reads wait for one", term)
        elif leader == self.identity.member_id:
            LOG.info("this member leads in term %d", term)
        else:
            LOG.info("member %x leads in term %d", leader, term)

    def _members_changed(self) -> None:
        self.peers.members_changed()
        if self.node.members.is_published:
            self._published.set()
        if self.node.members.is_removed and not self.is_removed:
            self._note_removal()
        elif self.node.members.is_too_old:
            version = self.node.members.version
            self.fail(ConfigError(f"the cluster is of version {version}, this is {ETCD_VERSION}"))

    def _note_removal(self) -> None:
        """Stop soon, and do not start again: what this member promised no longer counts.

        A leader that was removed has to tell the others first: they may need its word that the
        change is committed before they can elect one of their own.
        """
        self.is_removed = True
        try:
            mark_removed(self.options)
        except TrimaranError as error:
            LOG.warning("the removal cannot be noted: %s", error)
        self._loop.call_later(self.options.election_timeout_ms / 1000, self._fail_removed)

    def _fail_removed(self) -> None:
        self.is_removed = True
        self.fail(removed_error(self.options, self.identity))

    def fail(self, reason: TrimaranError) -> None:
        """Note why the member cannot go on; its owner has to stop it."""
        if self.failure is None:
            LOG.error("%s", reason)
            self.failure = reason
            self.failed.set()

    def _state_replaced(self) -> None:
        self.node.replaced(time.monotonic())

    def _hash_state(self, revision: int, done: HashDone) -> None:
        async def hash_it() -> None:
            try:
                value, compact_revision = await self.maintenance.hash_of_keys(revision)
            except StoreError as error:
                done(error)
            except (OSError, CorruptionError) as error:
                done(StoreError(StatusCode.INTERNAL, str(error)))
            else:
                done(StateHash(value, revision, compact_revision))
            self._turn_soon()

        task = self._loop.create_task(hash_it())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _report_corruption(self, members: list[int]) -> None:
        LOG.critical(
            "the data of %s differs from that of the others: writes are refused until it is "
            "replaced and the alarm disarmed",
            ", ".join(f"member {member:x}" for member in members),
        )

    def _report_no_space(self) -> None:
        LOG.error(
            "the quota of %d bytes is used up: writes are refused until data is deleted and "
            "compacted and the alarm disarmed",
            self.options.quota_bytes,
        )

    def _check_address(self) -> None:
        """Say so where the others look for this member at another place than it is."""
        urls = sorted(self.options.initial_advertise_peer_urls)
        own = self.node.members.table.members.get(self.identity.member_id)
        if urls == [*StoreOptions.initial_advertise_peer_urls]:
            return  # most likely not given, as it is not needed after the first start
        if own is None or urls == sorted(own.peerURLs) or self.options.discovery_srv:
            return  # DNS has names where the flag may have addresses
        LOG.warning(
            "the others look for this member at %s, not at %s: `trimaran member update %x "
            "--peer-urls %s` tells them",
            ",".join(own.peerURLs),
            ",".join(urls),
            self.identity.member_id,
            ",".join(urls),
        )

    def _report_disk(self) -> None:
        error = self.member.disk_error()
        if error != self._disk_error and error != 0:
            LOG.error(
                "cannot write to %s: %s; writes wait until there is room",
                self.options.data_dir,
                os.strerror(error),
            )
        if error != 0:
            self.node.persisted()
        if error == 0 and self._disk_error != 0:
            LOG.info("writing to %s again", self.options.data_dir)
        self._disk_error = error

    def _progress(self) -> None:
        self.member.progress()
        self.server.flush()
