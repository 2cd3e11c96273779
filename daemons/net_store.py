"""The network's side of the store: follow what it says, and hold this host's subnet in it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from trimaran.client import (
    Client,
    Compare,
    Delete,
    EventType,
    Put,
    TxnResult,
    WatchBatch,
    Watcher,
)
from trimaran.errors import StatusCode, StoreError
from trimaran.net.allocation import (
    Create,
    Decision,
    HostIdentity,
    Keep,
    Remove,
    Update,
    decide,
)
from trimaran.net.config import NetworkConfig
from trimaran.net.records import (
    StoredRecord,
    SubnetRecord,
    format_record,
    format_subnet_key,
)
from trimaran.net.view import NetworkView

log = logging.getLogger("trimaran.net")

DECISIONS_MAX: Final = 50  # Steps of one attempt; each lost race or removal takes one.
RESYNC_S: Final = 60.0
HEALTH_INTERVAL_S: Final = 1.0
NOT_CONNECTED: Final = "not connected yet"
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0


class StoreFollower:
    """Keeps a view equal to the store: list, watch from there, and list again now and then.

    Attributes:
        view: what is known.
        error: why the store cannot be reached, empty while it can.
        contact_s: monotonic time of the last answer, in seconds; 0 before the first.
    """

    def __init__(self, client: Client, view: NetworkView, changed: Callable[[], None]) -> None:
        self._client = client
        self._changed = changed
        self.view = view
        self.error = NOT_CONNECTED
        self.contact_s = 0.0
        self._listed_s = 0.0

    async def refresh(self) -> int:
        """List everything once.

        Returns:
            the revision of the list.

        Raises:
            StoreError: if the store does not answer or refuses.
        """
        try:
            result = await self._client.get(f"{self.view.prefix}/", prefix=True)
        except StoreError as error:
            self._unreachable(error)
            raise
        items = [
            (kv.key.decode("utf-8", "replace"), kv.value, kv.mod_revision, kv.lease)
            for kv in result.kvs
        ]
        self.view.replace(items, result.revision)
        if self.error:
            log.info("store: connected at revision %d, %d keys", result.revision, len(items))
            self.error = ""
        self.contact_s = self._listed_s = time.monotonic()
        self._changed()
        return result.revision

    async def run(self) -> None:
        """Follow the store until cancelled, through any number of outages."""
        backoff_s = BACKOFF_MIN_S
        while True:
            try:
                revision = await self.refresh()
                backoff_s = BACKOFF_MIN_S
                await self._watch(revision + 1)
            except StoreError as error:
                log.debug("store: %s", error.message)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _watch(self, start_revision: int) -> None:
        """Apply events; list again where history is gone, and slowly even without a reason."""
        async with self._client.watch(
            f"{self.view.prefix}/", prefix=True, start_revision=start_revision
        ) as watcher:
            resync = asyncio.create_task(self._resync(watcher))
            try:
                async for batch in watcher:
                    if batch.compacted:
                        log.info("store: history compacted, listing again")
                        await self.refresh()
                        continue
                    self._apply(batch)
            finally:
                resync.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await resync

    async def _resync(self, watcher: Watcher) -> None:
        """List now and then, and at once where the watch is broken, to learn of outage and end."""
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            if not watcher.connected and watcher.error is not None:
                self._unreachable(watcher.error)
            elif not self.error and time.monotonic() < self._listed_s + RESYNC_S:
                continue
            try:
                await self.refresh()
            except StoreError as error:
                log.debug("store: %s", error.message)

    def _unreachable(self, error: StoreError) -> None:
        if self.error in ("", NOT_CONNECTED):
            log.warning("store: %s; peers stay as they are", error.message)
        if self.error != error.message:
            self.error = error.message
            self._changed()

    def _apply(self, batch: WatchBatch) -> None:
        for event in batch.events:
            kv = event.kv
            key = kv.key.decode("utf-8", "replace")
            if event.type == EventType.DELETE:
                self.view.delete(key, kv.mod_revision)
            else:
                self.view.put(key, kv.value, kv.mod_revision, kv.lease)
        self.contact_s = time.monotonic()
        if batch.events:
            self._changed()


class TwinError(Exception):
    """Another host uses this host's identity; the text says how to tell them apart."""


class SubnetHolder:
    """Holds one subnet for this host: finds or creates the record and keeps its lease alive.

    The record stays under one lease that is kept alive, so renewal writes nothing: no revision,
    no event at every peer. Stopping leaves the lease to run out by itself, so that a restart or
    a reboot within its time finds the subnet again.

    Attributes:
        held: the record as last confirmed, None before the first.
    """

    def __init__(
        self, client: Client, follower: StoreFollower, ttl_s: int, lost: Callable[[], None]
    ) -> None:
        self._client = client
        self._follower = follower
        self._ttl_s = ttl_s
        self._lost = lost
        self._lease = 0
        self._keeper: asyncio.Task[None] | None = None
        self._published: IPv4Address | None = None
        self.held: StoredRecord | None = None

    async def ensure(
        self, config: NetworkConfig, host: HostIdentity, preferred: Sequence[IPv4Network]
    ) -> StoredRecord:
        """Bring the store to hold exactly one correct record of this host.

        Args:
            config: the network.
            host: this host.
            preferred: subnets to take again where they are free.

        Returns:
            the record.

        Raises:
            StoreError: if the store does not answer or refuses.
            SubnetExhaustedError: if no subnet is free.
            TwinError: if another host writes records under our identity.
        """
        for _ in range(DECISIONS_MAX):
            stored = tuple(self._follower.view.records.values())
            decision = decide(config, stored, host, preferred)
            self._check_twin(decision, host)
            if await self._carry_out(decision):
                current = self._own(host)
                if current is not None:
                    self.held = current
                    self._published = host.public_ip
                    return current
            else:
                # Another writer was first, so what we know is behind.
                await self._follower.refresh()
        raise StoreError(StatusCode.ABORTED, f"lost {DECISIONS_MAX} races for a subnet in a row")

    async def close(self) -> None:
        """Stop keeping the lease alive; it and the record stay."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        self._lease = 0

    def _own(self, host: HostIdentity) -> StoredRecord | None:
        for item in self._follower.view.records.values():
            if item.record.host_id == host.host_id:
                return item
        return None

    def _check_twin(self, decision: Decision, host: HostIdentity) -> None:
        if (
            isinstance(decision, Update)
            and self._published == host.public_ip != decision.stored.record.public_ip
            and decision.stored.record.host_id == host.host_id
        ):
            self._published = None
            raise TwinError(
                f"host {decision.stored.record.public_ip} uses this host's id {host.host_id}; "
                "give one of them another with --host-id or a new /etc/machine-id"
            )

    async def _carry_out(self, decision: Decision) -> bool:
        """Do one step; False if the store was not as the decision assumed."""
        if isinstance(decision, Keep):
            return await self._keep(decision.stored)
        if isinstance(decision, Remove):
            log.warning("giving up subnet %s: %s", decision.stored.record.subnet, decision.reason)
            return await self._remove(decision.stored)
        if isinstance(decision, Update):
            lease = await self._usable_lease(decision.stored)
            return await self._write(decision.record, decision.stored, lease)
        assert isinstance(decision, Create)
        if await self._write(decision.record, None, await self._grant()):
            log.info("took subnet %s", decision.record.subnet)
            return True
        return False

    async def _keep(self, stored: StoredRecord) -> bool:
        lease = await self._usable_lease(stored)
        if lease == stored.lease:
            await self._keep_alive(lease)
            return True
        return await self._write(stored.record, stored, lease)

    async def _usable_lease(self, stored: StoredRecord) -> int:
        """Return the record's lease where it lives and has our time to live, else a new one.

        A record without lease is a reservation by the operator and stays one.
        """
        if stored.lease == 0 or (stored.lease == self._lease and self._keeper is not None):
            return stored.lease
        status = await self._client.lease_time_to_live(stored.lease)
        if status.ttl_s > 0 and status.granted_ttl_s == self._ttl_s:
            return stored.lease
        return await self._grant()

    async def _grant(self) -> int:
        lease = await self._client.lease_grant(self._ttl_s)
        self._ttl_s = lease.ttl_s  # The store raises what it finds too short.
        return lease.id

    async def _write(self, record: SubnetRecord, old: StoredRecord | None, lease: int) -> bool:
        name = old.key if old is not None else format_subnet_key(record.subnet)
        key = self._follower.view.subnets_prefix + name
        if old is None:
            compare = Compare.version(key, "=", 0)
        else:
            compare = Compare.mod(key, "=", old.mod_revision)
        value = format_record(record).encode()
        result: TxnResult = await self._client.txn([compare], [Put(key, value, lease=lease)])
        if result.succeeded:
            self._follower.view.put(key, value, result.revision, lease)
            await self._keep_alive(lease)
        elif lease and (old is None or lease != old.lease):
            await self._client.lease_revoke(lease)
        return result.succeeded

    async def _remove(self, stored: StoredRecord) -> bool:
        key = self._follower.view.subnets_prefix + stored.key
        compare = Compare.mod(key, "=", stored.mod_revision)
        result = await self._client.txn([compare], [Delete(key)])
        if result.succeeded:
            self._follower.view.delete(key, result.revision)
        return result.succeeded

    async def _keep_alive(self, lease: int) -> None:
        if lease == self._lease and (self._keeper is not None or lease == 0):
            return
        await self.close()
        self._lease = lease
        if lease:
            self._keeper = asyncio.create_task(self._run_keeper(lease))

    async def _run_keeper(self, lease: int) -> None:
        """Renew the lease until it is lost, then have the record looked at again."""
        try:
            async with self._client.keep_alive(lease, self._ttl_s) as keepalive:
                await keepalive.lost()
        except StoreError as error:
            log.warning("lease of the subnet: %s", error.message)
        log.warning("the lease of the subnet is not confirmed any more; checking")
        self._keeper = None
        self._lost()
