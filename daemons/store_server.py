"""The store daemon's moving parts: one member, its server and its clocks on the event loop."""

import asyncio
import logging
import os
import secrets
import select
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from aiohttp import web

from trimaran.daemons.data_directory import Identity, open_data_directory
from trimaran.daemons.grpc_server import GrpcServer
from trimaran.daemons.health import HealthService
from trimaran.daemons.http_ports import HttpPorts
from trimaran.daemons.listening import bind_all
from trimaran.daemons.store_http import make_application
from trimaran.daemons.store_rpc import StoreMethods
from trimaran.daemons.store_tls import client_side, warn_of_plain_urls
from trimaran.errors import ETCD_ERRORS, ConfigError, StoreError, etcd_error
from trimaran.ext import member as engine
from trimaran.store.lessor import Lessor, minimum_ttl_s
from trimaran.store.logpolicy import log_compaction_target
from trimaran.store.options import StoreOptions
from trimaran.wire import etcd_pb2 as pb

LOG = logging.getLogger("trimaran.store")
LEADER_ROLE = 2
LOG_WAIT_S = 0.05  # a safety net: the log's descriptor tells
SEAL_INTERVAL_S = 0.1
SEAL_BYTES = 64 * 1024**2
LEASE_CHECK_S = 0.5
LEASES_A_CHECK = 500
_ERROR_NAMES = ("", *ETCD_ERRORS)


@dataclass(frozen=True, slots=True)
class MemberOptions:
    """What the engine is opened with; see `engine.Options`."""

    log_directory: str
    state_directory: str
    cluster_id: int
    member_id: int
    election_ticks: int
    max_txn_ops: int
    max_request_bytes: int
    quota_bytes: int
    hash_seed: int
    seed: int
    heartbeat_ticks: int = 1
    journal_size_bytes: int = 0
    map_size_bytes: int = 256 * 1024**3
    max_pending_bytes: int = 512 * 1024**2
    max_uncommitted_bytes: int = 256 * 1024**2


def open_member(options: StoreOptions) -> tuple[engine.Member, Identity]:
    """Open the data directory and the engine on it.

    Raises:
        ConfigError, CorruptionError: it cannot be used; the text says why.
    """
    directory = open_data_directory(options)
    identity = directory.identity
    engine_options = MemberOptions(
        log_directory=str(directory.log),
        state_directory=str(directory.state),
        cluster_id=identity.cluster_id,
        member_id=identity.member_id,
        election_ticks=options.election_timeout_ms // options.heartbeat_interval_ms,
        max_txn_ops=options.max_txn_ops,
        max_request_bytes=options.max_request_bytes,
        quota_bytes=options.quota_bytes,
        hash_seed=secrets.randbits(63),
        seed=secrets.randbits(63),
    )
    member = engine.Member(engine_options)
    try:
        lead(member)
    except BaseException:
        member.close()
        raise
    return member, identity


def lead(member: engine.Member) -> None:
    """Make the only voter leader and let it replay its log.

    Raises:
        ConfigError: the disk has no room for the entry that begins the term.
    """
    member.campaign()
    with select.epoll() as poll:
        poll.register(member.log_fd, select.EPOLLIN)
        while member.turn() or not caught_up(member.status()):
            if member.disk_error() != 0:
                raise ConfigError(f"cannot write the log: {os.strerror(member.disk_error())}")
            poll.poll(LOG_WAIT_S)
    member.results()


def caught_up(status: dict[str, int]) -> bool:
    """Tell whether a member leads and has applied all that its log holds."""
    return status["role"] == LEADER_ROLE and status["applied"] == status["last_index"]


class Stored:
    """A running store member.

    Args:
        options: checked options, from `read_options` or `complete`.
    """

    def __init__(self, options: StoreOptions) -> None:
        self.options = options
        self.lessor = Lessor()
        self.minimum_ttl_s = minimum_ttl_s(options.election_timeout_ms)
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._token = 0
        self._timers: list[asyncio.TimerHandle] = []
        self._seal_timer: asyncio.TimerHandle | None = None
        self._again: asyncio.Handle | None = None
        self._log_cut = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._disk_error = 0

    async def start(self) -> None:
        """Open the data, listen and serve.

        Raises:
            ConfigError, CorruptionError: nothing was started; the text says why.
        """
        self._loop = asyncio.get_running_loop()
        self._tls = client_side(self.options)
        warn_of_plain_urls(self.options)
        sockets = bind_all(self.options.listen_client_urls, "--listen-client-urls")
        try:
            self.member, self.identity = await self._loop.run_in_executor(
                None, open_member, self.options
            )
        except BaseException:
            for listening in sockets:
                listening.close()
            raise
        extend_s = self.options.election_timeout_ms / 1000
        self.lessor.restore(self.member.leases(), time.monotonic(), extend_s)
        await self._serve(sockets)
        LOG.info(
            "serving clients on %s: member %x of cluster %x, revision %d",
            ", ".join(self.options.listen_client_urls),
            self.identity.member_id,
            self.identity.cluster_id,
            self.member.revision,
        )

    async def _serve(self, sockets: list[socket.socket]) -> None:
        self.server = GrpcServer(
            self._loop,
            self.member.handler,
            message_bytes_max=self.options.max_request_bytes + 512 * 1024,
        )
        self.server.before_flush = self._turn
        StoreMethods(self).register(self.server)
        self.health = HealthService(self.server)
        self._runner = web.AppRunner(make_application(self), access_log=None)
        await self._runner.setup()
        await self.server.start(sockets, self._runner.server, self._tls)
        assert self._runner.server is not None
        self._metrics = HttpPorts(self._runner.server, self._tls)
        await self._metrics.listen(
            bind_all(self.options.listen_metrics_urls, "--listen-metrics-urls")
        )
        self._loop.add_reader(self.member.log_fd, self._turn_and_flush)
        self._loop.add_reader(self.member.state_fd, self._collect)
        self._every(self.options.heartbeat_interval_ms / 1000, self.member.tick)
        self._every(LEASE_CHECK_S, self._expire_leases)
        self._every(self.options.watch_progress_notify_interval_s, self._progress)

    async def stop(self) -> None:
        """Finish what is under way, write everything to disk and let go of it."""
        if self._stopping:
            return
        self._stopping = True
        self.health.set_serving(False)
        await self.server.stop()
        self._metrics.stop()
        await self._runner.cleanup()
        self._loop.remove_reader(self.member.log_fd)
        self._loop.remove_reader(self.member.state_fd)
        for timer in (*self._timers, self._seal_timer, self._again):
            if timer is not None:
                timer.cancel()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(etcd_error("STOPPED"))
        await self._loop.run_in_executor(None, self.member.close)
        LOG.info("stopped")

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
        if self._stopping:
            raise etcd_error("STOPPED")
        self._token += 1
        future: asyncio.Future[int] = self._loop.create_future()
        self._waiting[self._token] = future
        token = self._token
        try:
            self.member.submit(kind, request, token)
            self._turn_soon()
            return await future
        finally:
            self._waiting.pop(token, None)

    def header(self) -> pb.ResponseHeader:
        """Return the header of a response made now."""
        return pb.ResponseHeader(
            cluster_id=self.identity.cluster_id,
            member_id=self.identity.member_id,
            revision=self.member.revision,
            raft_term=self.member.status()["term"],
        )

    def _every(self, interval_s: float, action: Callable[[], None]) -> None:
        """Call action at a fixed pace until stop."""
        slot = len(self._timers)

        def run() -> None:
            self._timers[slot] = self._loop.call_later(interval_s, run)
            action()

        self._timers.append(self._loop.call_later(interval_s, run))

    def _turn(self) -> None:
        if self.member.turn():
            self._turn_soon()
        results = self.member.results()
        if results:
            self._deliver(results)
        if self._seal_timer is None and self.member.pending_bytes > 0:
            self._seal_timer = self._loop.call_later(SEAL_INTERVAL_S, self._seal)
        if self.member.pending_bytes > SEAL_BYTES:
            self.member.seal()

    def _turn_and_flush(self) -> None:
        self._turn()
        self.server.flush()

    def _turn_soon(self) -> None:
        if self._again is None:
            self._again = self._loop.call_soon(self._turn_again)

    def _turn_again(self) -> None:
        self._again = None
        self._turn_and_flush()

    def _deliver(self, results: list[tuple[int, int, int, int, int, int]]) -> None:
        """Tell the lessor of leases, and those who wait of their outcome."""
        now = time.monotonic()
        for token, kind, error, revision, lease, ttl_s in results:
            if error == 0 and kind == engine.LEASE_GRANT:
                self.lessor.grant(lease, ttl_s, now)
            elif error == 0 and kind == engine.LEASE_REVOKE:
                self.lessor.revoke(lease)
            future = self._waiting.get(token)
            if future is None or future.done():
                continue
            if error == 0:
                future.set_result(revision)
            else:
                future.set_exception(etcd_error(_ERROR_NAMES[error]))

    def _seal(self) -> None:
        self._seal_timer = None
        if not self.member.seal() and self.member.pending_bytes > 0:
            self._seal_timer = self._loop.call_later(SEAL_INTERVAL_S, self._seal)

    def _collect(self) -> None:
        self.member.collect()
        self._cut_log()
        self._turn_and_flush()

    def _cut_log(self) -> None:
        """Drop log entries that the state no longer needs."""
        target = log_compaction_target(
            first_index=self.member.log_range()[0],
            persisted_index=self.member.persisted_index,
            snapshot_count=self.options.snapshot_count,
            catch_up_entries=self.options.snapshot_catchup_entries,
        )
        if target is not None and target > self._log_cut:
            self._log_cut = target
            self.member.compact_log(target)

    def _expire_leases(self) -> None:
        now = time.monotonic()
        for lease_id in self.lessor.expired(now, LEASES_A_CHECK):
            self._background(self._revoke_expired(lease_id))
        if self.member.take_no_space():
            LOG.error(
                "the quota of %d bytes is used up: writes are refused until data is deleted and "
                "compacted and the alarm disarmed",
                self.options.quota_bytes,
            )
            self._background(self._raise_no_space())
        self._report_disk()

    def _background(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _revoke_expired(self, lease_id: int) -> None:
        try:
            request = pb.LeaseRevokeRequest(ID=lease_id)
            await self.propose(engine.LEASE_REVOKE, request.SerializeToString())
        except StoreError as error:
            if not self._stopping:
                LOG.warning("expired lease %x is not revoked yet: %s", lease_id, error)
            self.lessor.retry(lease_id, time.monotonic())

    async def _raise_no_space(self) -> None:
        request = pb.AlarmRequest(
            action=pb.AlarmRequest.ACTIVATE, memberID=self.identity.member_id, alarm=pb.NOSPACE
        )
        try:
            await self.propose(engine.ALARM, request.SerializeToString())
        except StoreError as error:
            LOG.warning("the alarm for want of space is not raised yet: %s", error)

    def _report_disk(self) -> None:
        error = self.member.disk_error()
        if error != self._disk_error and error != 0:
            LOG.error(
                "cannot write to %s: %s; writes wait until there is room",
                self.options.data_dir,
                os.strerror(error),
            )
        if error == 0 and self._disk_error != 0:
            LOG.info("writing to %s again", self.options.data_dir)
        self._disk_error = error

    def _progress(self) -> None:
        self.member.progress()
        self.server.flush()
