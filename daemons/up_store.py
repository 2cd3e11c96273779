"""The store as a host of a cluster has it: a member of its own, or that of others."""

import asyncio
import contextlib
import datetime
import json
import logging
import shutil
import time
from typing import TYPE_CHECKING, Final

from trimaran.client import Client, Member
from trimaran.daemons.up_authority import fingerprint
from trimaran.daemons.up_enroll import JoinClient, JoinUnavailableError
from trimaran.daemons.up_host import HostState
from trimaran.daemons.up_parts import JOIN_INTERVAL_S, StartError, check_address, forever
from trimaran.errors import JoinRefusedError, StoreError, StoreUnavailableError, TrimaranError

if TYPE_CHECKING:
    from trimaran.daemons.stored import Stored

LOG = logging.getLogger("trimaran.up")
KEY_ATTEMPTS: Final = 20


class StorePart:
    """The member of this host where it has one; else the others', once they answer."""

    name = "store"

    def __init__(self, state: HostState) -> None:
        self._state = state
        self._telling: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Start the member, or wait for the others.

        A member that has been one before waits for a majority however long that takes, so that
        hosts may come back in any order. A host without one gives up after the join's time-out.

        Raises:
            StartError: an address cannot be listened on, or nobody answers.
            TrimaranError: the data cannot be used; the text says why.
        """
        state = self._state
        if state.options.force_new_cluster and not state.has_data:
            raise StartError(
                f"--force-new-cluster needs the data of a member, and {state.store_folder} has none"
            )
        if state.has_data or state.founding_file.exists():
            if state.has_data and state.endpoints:
                self._telling = asyncio.create_task(tell_new_address(state))
            try:
                await start_member(state, {})
                return f"a member at {state.host.client_url}"
            except MemberRemovedError:
                set_data_aside(state)
        return await self._wait_for_others()

    async def _wait_for_others(self) -> str:
        state = self._state
        deadline_s = time.monotonic() + state.options.join_timeout_s
        async with state.access.client(timeout_s=2.0) as client:
            while True:
                try:
                    members = await client.members()
                    if own_member(state, members) is not None:
                        await take_up_member(state, members)
                    if state.store is not None:
                        return f"a member at {state.host.client_url}"
                    return f"that of {', '.join(sorted(one.name for one in members if one.name))}"
                except StoreError as error:
                    if time.monotonic() > deadline_s:
                        raise StartError(
                            f"no store of the cluster answers at {', '.join(client.pool.urls)} "
                            f"({error.message}); do the hosts with members run?"
                        ) from error
                await asyncio.sleep(JOIN_INTERVAL_S)

    async def stop(self) -> None:
        """Stop the member: it finishes what is under way and closes its data."""
        if self._telling is not None:
            self._telling.cancel()
        await stop_member(self._state)

    async def wait_failed(self) -> None:
        """The agent looks after the member."""
        await forever()


class MemberRemovedError(Exception):
    """The cluster has removed this host's member."""


async def tell_new_address(state: HostState) -> None:
    """Tell the others where this host's member is, where that has changed since it last ran.

    They send to it on connections that they open, so until they know, it hears nothing from them
    and cannot tell them itself.
    """
    own_id = own_member_id(state)
    async with state.access.client(timeout_s=2.0) as client:
        while True:
            try:
                listed = next((one for one in await client.members() if one.id == own_id), None)
                if listed is not None and state.host.peer_url not in listed.peer_urls:
                    LOG.warning("telling the others that this host is at %s", state.host.peer_url)
                    await client.member_update(listed.id, [state.host.peer_url])
                return
            except StoreUnavailableError as error:
                LOG.debug("the others do not answer yet: %s", error.message)
            except StoreError as error:
                LOG.error("the others do not take this host's address: %s", error.message)
                return
            await asyncio.sleep(JOIN_INTERVAL_S)


def own_member_id(state: HostState) -> int:
    """The id of the member whose data is here, 0 where that cannot be read."""
    try:
        return int(json.loads(state.identity_file.read_text())["member_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def own_member(state: HostState, members: list[Member]) -> Member | None:
    """Find this host's member by its peer URL."""
    return next((one for one in members if state.host.peer_url in one.peer_urls), None)


async def take_up_member(state: HostState, members: list[Member]) -> None:
    """Start the member that the others have added for this host.

    Raises:
        StartError: its data is gone, or the authority's key is refused.
        MemberRemovedError: it has been removed again.
    """
    own = own_member(state, members)
    assert own is not None
    if own.client_urls and not state.has_data:
        # Its votes went with its data: under the same id it could vote twice.
        await replace_lost_member(state, own)
        return
    await fetch_authority_key(state)
    cluster = {
        one.name or (state.host.name if one.id == own.id else f"{one.id:x}"): tuple(one.peer_urls)
        for one in members
    }
    await start_member(state, {"initial_cluster": cluster, "initial_cluster_state": "existing"})


async def replace_lost_member(state: HostState, own: Member) -> None:
    """Have the member removed whose data is lost, so that this host can get a new one."""
    LOG.warning("the data of member %x is lost: it is removed, to be added anew", own.id)
    async with state.access.client() as client:
        try:
            await client.member_remove(own.id)
        except StoreError as error:
            raise StartError(
                f"the data of this host's member {own.id:x} in {state.store_folder} is lost, and "
                f"it cannot be removed ({error.message}): see `trimaran member status` elsewhere"
            ) from error


async def fetch_authority_key(state: HostState) -> None:
    """Get the authority's key from another member, unless it is here.

    Raises:
        StartError: it is refused, or nobody answers.
    """
    if state.files.authority_key_file.exists():
        return
    problem: Exception | None = None
    for _ in range(KEY_ATTEMPTS):
        try:
            await JoinClient(state.files, state.join_addresses).fetch_key()
            return
        except (JoinRefusedError, JoinUnavailableError) as error:
            # A member that is behind may not know yet that this host has become one.
            problem = error
        await asyncio.sleep(JOIN_INTERVAL_S)
    raise StartError(f"the authority's key was not given to this host: {problem}") from problem


async def start_member(state: HostState, how: dict[str, object]) -> None:
    """Start the member and wait until it is part of the store.

    Args:
        state: of this host; its `store` is set.
        how: options of the first start.

    Raises:
        MemberRemovedError: the cluster has removed it.
        StartError: an address cannot be listened on.
        TrimaranError: the data cannot be used.
    """
    from trimaran.daemons.stored import Stored
    from trimaran.store.options import complete

    options = state.options
    for port in (options.port, options.peer_port):
        for address in options.listen:
            check_address(address, port)
    if not state.files.revoked_file.exists():
        state.files.revoke((), datetime.datetime.now(datetime.UTC))
    store = Stored(complete({**member_options(state), **how}))
    starting = asyncio.create_task(store.start())
    failing = asyncio.create_task(store.failed.wait())
    try:
        await asyncio.wait([starting, failing], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            raise_failure(store)
        starting.result()
        state.store = store
        learn_from_own(state, store)
    except TrimaranError as error:
        if is_removed(state):
            raise MemberRemovedError(str(error)) from error
        raise
    finally:
        failing.cancel()
        if state.store is not store:
            starting.cancel()
            await asyncio.wait([starting])
            await store.stop()


def learn_from_own(state: HostState, store: "Stored") -> None:
    """Note the members that the own member's data lists.

    They may have come after this host last asked, and where the own member turns out to have been
    removed, they are who it can go on with.
    """
    listed = (url for one in store.node.members.table.voters for url in one.clientURLs)
    others = {url for url in listed if url != state.host.client_url}
    state.note_known(tuple(sorted(others.union(state.endpoints))), ())


def raise_failure(store: "Stored") -> None:
    """Raise why a member cannot go on.

    Raises:
        MemberRemovedError: the cluster has removed it.
        TrimaranError: another reason.
    """
    assert store.failure is not None
    if store.is_removed:
        raise MemberRemovedError(str(store.failure))
    raise store.failure


def is_removed(state: HostState) -> bool:
    """Tell whether the data is of a member that has been removed, as it notes itself."""
    try:
        return json.loads(state.identity_file.read_text()).get("removed") is True
    except (OSError, ValueError, AttributeError):
        return False


def member_options(state: HostState) -> dict[str, object]:
    """The options of this host's member at any start."""
    options, host, files = state.options, state.host, state.files
    shown = {"cert_file": str(files.certificate_file), "key_file": str(files.key_file)}
    trusted = {"trusted_ca_file": str(files.authority_file), "client_cert_auth": True}
    return {
        "name": host.name,
        "force_new_cluster": options.force_new_cluster,
        "data_dir": str(state.store_folder),
        "listen_client_urls": options.listen_urls(options.port),
        "advertise_client_urls": (host.client_url,),
        "listen_peer_urls": options.listen_urls(options.peer_port),
        "initial_advertise_peer_urls": (host.peer_url,),
        # Two clusters on the same addresses must not be taken for each other.
        "initial_cluster_token": fingerprint(files.authority_certificate()).hex(),
        **shown,
        **trusted,
        **{f"peer_{name}": value for name, value in (shown | trusted).items()},
        "client_crl_file": str(files.revoked_file),
        "peer_crl_file": str(files.revoked_file),
        # A host with several addresses comes from another one than its certificate names.
        "peer_skip_client_san_verification": True,
    }


async def stop_member(state: HostState) -> None:
    """Stop the member, where one runs."""
    store, state.store = state.store, None
    if store is not None:
        await store.stop()


def set_data_aside(state: HostState) -> None:
    """Put away what a removed member leaves: it is of no use, but not ours to delete at once."""
    aside = state.options.data_dir / "store.removed"
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        state.store_folder.rename(aside)
    state.files.authority_key_file.unlink(missing_ok=True)
    LOG.warning("this host's member was removed from the store; its data is in %s", aside)


async def refresh_known(state: HostState, client: Client, members: list[Member]) -> None:
    """Note where the members are, for this host's clients and for its next start."""
    from trimaran.daemons.up_hosts import read_hosts

    peers = {url for one in members for url in one.peer_urls}
    hosts = [host for host, _ in await read_hosts(client)]
    endpoints = [url for one in members if not one.is_learner for url in one.client_urls]
    joins = [host.join_address for host in hosts if host.peer_url in peers]
    state.note_known(tuple(sorted(endpoints)), tuple(sorted(joins)))
