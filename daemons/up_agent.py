"""The agent of a host: what it does for the cluster while it runs.

It shows that the host is there, renews its certificate, follows who the members are, starts and
stops the host's own member as the store's list says, and serves the join endpoint beside it. On the
host whose member leads, it carries out the plan for the members (`trimaran.up.plan`).
"""

import asyncio
import contextlib
import datetime
import logging
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

from trimaran.client import Client, Compare, Member, Put
from trimaran.daemons.listening import bind_all
from trimaran.daemons.up_enroll import JoinClient, JoinUnavailableError
from trimaran.daemons.up_host import HostState
from trimaran.daemons.up_hosts import note_certificate, read_settings, revoked_serials
from trimaran.daemons.up_join_server import JoinServer
from trimaran.daemons.up_planner import Planner
from trimaran.daemons.up_store import (
    MemberRemovedError,
    own_member,
    raise_failure,
    refresh_known,
    set_data_aside,
    stop_member,
    take_up_member,
)
from trimaran.errors import (
    ConfigError,
    JoinRefusedError,
    StoreError,
    StoreUnavailableError,
    TrimaranError,
)
from trimaran.up.records import (
    ALIVE,
    CERTIFICATES,
    HOSTS,
    REVOKED,
    SETTINGS_KEY,
    TOKENS,
    HostRecord,
    alive_key,
    host_key,
)

LOG = logging.getLogger("trimaran.up")
ALIVE_TTL_S: Final = 10
LOOK_INTERVAL_S: Final = 2.0
RETRY_S: Final = 1.0
RENEWAL_CHECK_MAX_S: Final = 300.0
# What is worth nothing under another authority.
OF_AUTHORITY: Final = (HOSTS, ALIVE, TOKENS, CERTIFICATES, REVOKED)


class ForgottenError(TrimaranError):
    """The cluster has forgotten this host."""


class AgentPart:
    """Runs the agent's tasks.

    Args:
        state: of this host.
        publish: called when the endpoints of the store have changed.
    """

    name = "host"

    def __init__(self, state: HostState, publish: Callable[[], object]) -> None:
        self._state = state
        self._publish = publish
        self._client: Client | None = None
        self._join_server: JoinServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._revoked: tuple[int, ...] | None = None
        self._told = ""

    async def start(self) -> str:
        """Register the host and begin.

        Raises:
            TrimaranError: the store does not take the host's record, or a port is taken.
        """
        state = self._state
        client = self._client = state.access.client()
        try:
            await self._register_with_any(client)
            await self._open_join_endpoint()
        except BaseException:
            await self.stop()
            raise
        await note_certificate(client, state.host.id, state.files.certificate())
        self._spawn(self._stay_alive(client))
        self._spawn(self._look_after_member(client))
        self._spawn(self._renew())
        self._spawn(Planner(state, client).run())
        if self._join_server is not None:
            return f"hosts join at {state.host.join_address}"
        return f"{state.host.name} at {state.host.address}"

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def stop(self) -> None:
        """End the tasks; the host counts as away when its lease has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._close_join_endpoint()
        if self._client is not None:
            await self._client.close()

    async def wait_failed(self) -> None:
        """Raise what ended one of the tasks."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _register_with_any(self, client: Client) -> None:
        """Register, for as long as this host has a member that may yet find a majority.

        A member that was away does not know yet whether it still is one. Where it learns that it
        has been removed, the host goes on with the others' store.

        Raises:
            TrimaranError: the store refuses, does not answer a host without a member, or the own
                member cannot go on.
        """
        told = False
        while True:
            store = self._state.store
            if store is None:
                await self._register(client)
                break
            failing = asyncio.create_task(store.failed.wait())
            registering = asyncio.create_task(self._register(client))
            try:
                await asyncio.wait([failing, registering], return_when=asyncio.FIRST_COMPLETED)
                if not failing.done():
                    await registering
                    break
                await self._member_failed()
                client.pool.update(self._state.access.endpoints)
            except StoreUnavailableError:
                if not told:
                    LOG.warning("the store has no majority yet: waiting for the other hosts")
                told = True
            finally:
                failing.cancel()
                registering.cancel()
                await asyncio.gather(failing, registering, return_exceptions=True)
        self._state.founding_file.unlink(missing_ok=True)

    async def _register(self, client: Client) -> None:
        """See that the store holds this host's record as it is now.

        Raises:
            ForgottenError: it holds none, and this host did not begin the cluster just now.
        """
        state = self._state
        key = host_key(state.host.id)
        pair = await client.get_one(key)
        if pair is None:
            if await self._found(client):
                return
            raise ForgottenError(
                f"the cluster has forgotten {state.host.name}: to have it back, give an empty "
                "--data-dir and let it join with a new token"
            )
        known = HostRecord.decode(pair.value)
        state.host = replace(state.host, store=known.store, token=known.token)
        if state.host != known:
            compare = [Compare.mod(key, "=", pair.mod_revision)]
            await client.txn(compare, [Put(key, state.host.encode())])

    async def _found(self, client: Client) -> bool:
        """Write the first records of a cluster that this host begins; tell whether it does.

        The store may be one that was restored from a snapshot, without the authority of its time.
        The settings stay then, but the hosts of that authority cannot come back as they were.
        """
        state = self._state
        if not state.founding_file.exists() or state.store is None:
            return False
        old = [await client.delete(prefix, prefix=True) for prefix in OF_AUTHORITY]
        if old[0].deleted:
            LOG.warning("%d hosts of the store's former cluster are forgotten", old[0].deleted)
        own = Put(host_key(state.host.id), state.host.encode())
        first = Compare.version(SETTINGS_KEY, "=", 0)
        settings = Put(SETTINGS_KEY, state.options.settings.encode())
        await client.txn([first], [settings, own], [own])
        return True

    async def _open_join_endpoint(self) -> None:
        """Let hosts join here, where this host can sign and others reach it."""
        state = self._state
        ready = state.store is not None and state.files.authority() is not None
        if self._join_server is not None or not ready or not state.options.is_open:
            return
        assert self._client is not None
        server = JoinServer(state.files, self._client)
        urls = state.options.listen_urls(state.options.join_port)
        await server.start(bind_all(urls, "--join-port"))
        self._join_server = server

    async def _close_join_endpoint(self) -> None:
        server, self._join_server = self._join_server, None
        if server is not None:
            await server.stop()

    async def _stay_alive(self, client: Client) -> None:
        """Hold a key on a lease for as long as this daemon runs."""
        state = self._state
        while True:
            try:
                lease = await client.lease_grant(ALIVE_TTL_S)
                compare = [Compare.create(host_key(state.host.id), "!=", 0)]
                put = Put(alive_key(state.host.id), state.host.name, lease=lease.id)
                if not (await client.txn(compare, [put])).succeeded:
                    raise ForgottenError(f"the cluster has forgotten {state.host.name}")
                async with client.keep_alive(lease.id, lease.ttl_s) as keeping:
                    await keeping.lost()
            except StoreError as error:
                LOG.debug("the host cannot show that it is there: %s", error.message)
            await asyncio.sleep(RETRY_S)

    async def _look_after_member(self, client: Client) -> None:
        """Follow who the members are, and do for the own one what that says."""
        state = self._state
        while True:
            try:
                if state.store is not None and state.store.failed.is_set():
                    await self._member_failed()
                members = await client.members(linearizable=state.store is None)
                await refresh_known(state, client, members)
                await self._refresh_revoked(client)
                client.pool.update(state.access.endpoints)
                await self._follow(client, members)
            except StoreError as error:
                LOG.debug("the members are not known: %s", error.message)
            if state.changed.is_set():
                state.changed.clear()
                self._publish()
            await self._pause()

    async def _refresh_revoked(self, client: Client) -> None:
        """Let the own member turn away certificates of forgotten hosts."""
        files = self._state.files
        if self._state.store is None or files.authority() is None:
            return
        serials = await revoked_serials(client)
        if serials != self._revoked:
            files.revoke(serials, datetime.datetime.now(datetime.UTC))
            self._revoked = serials

    async def _pause(self) -> None:
        """Wait a while, or until the member cannot go on."""
        store = self._state.store
        if store is None:
            await asyncio.sleep(LOOK_INTERVAL_S)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(store.failed.wait(), LOOK_INTERVAL_S)

    async def _follow(self, client: Client, members: list[Member]) -> None:
        """Start the own member where the list has one, and keep its peer URL true."""
        state = self._state
        own = own_member(state, members)
        if state.store is None:
            if own is not None:
                await self._begin_member(members)
            return
        listed = next((one for one in members if one.id == state.store.identity.member_id), None)
        if listed is not None and own is None:
            LOG.warning("telling the others that this host is at %s now", state.host.peer_url)
            await client.member_update(listed.id, [state.host.peer_url])

    async def _begin_member(self, members: list[Member]) -> None:
        try:
            await take_up_member(self._state, members)
        except MemberRemovedError:
            set_data_aside(self._state)
            return
        except TrimaranError as error:
            # The others go on without it, and this host with theirs; the plan gives it up in time.
            if str(error) != self._told:
                self._told = str(error)
                LOG.error("this host's member does not start: %s", error)
            return
        if self._state.store is not None:
            LOG.warning("this host has a member of the store now")
            await self._open_join_endpoint()

    async def _member_failed(self) -> None:
        """Go on without the member where it was removed.

        Raises:
            TrimaranError: it cannot go on for another reason.
        """
        state = self._state
        assert state.store is not None
        try:
            raise_failure(state.store)
        except MemberRemovedError:
            await self._close_join_endpoint()
            await stop_member(state)
            set_data_aside(state)
            state.refresh_access()

    async def _renew(self) -> None:
        """Renew the certificate whenever half of its life is over."""
        state, files = self._state, self._state.files
        while True:
            now = datetime.datetime.now(datetime.UTC)
            if files.must_renew(now):
                try:
                    await self._renew_now(now)
                except (StoreError, JoinUnavailableError, JoinRefusedError) as error:
                    LOG.warning("the certificate of %s is not renewed: %s", state.host.name, error)
            left = files.certificate().not_valid_after_utc - datetime.datetime.now(datetime.UTC)
            await asyncio.sleep(min(RENEWAL_CHECK_MAX_S, max(1.0, left.total_seconds() / 10)))

    async def _renew_now(self, now: datetime.datetime) -> None:
        state, files = self._state, self._state.files
        if files.authority() is None:
            await JoinClient(files, state.join_addresses).renew(state.host)
        else:
            assert self._client is not None
            settings = await read_settings(self._client)
            files.issue_own(now, settings.certificate_lifetime_s)
            await note_certificate(self._client, state.host.id, files.certificate())
        LOG.info("the certificate holds until %s", files.certificate().not_valid_after_utc)
        if self._join_server is not None:
            try:
                self._join_server.reload()
            except (ConfigError, ssl.SSLError) as error:
                LOG.error("the join endpoint keeps its old certificate: %s", error)
