"""A machine's presence in the fleet: one lease, one key, kept alive as long as the daemon runs.

The daemon's token and its lease are kept in its runtime directory, which a reboot empties. So a
daemon that is restarted, after SIGKILL too, takes up the lease of the one before, and nobody sees
the machine go; while a second machine with the same id, or the same machine after a power cut,
waits until the old presence has run out.
"""

import asyncio
import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from trimaran.client import Client, Compare, EventType, Get, Put, RangeResult
from trimaran.errors import StoreError
from trimaran.fleet.records import MachineRecord, RecordError, machine_key

log = logging.getLogger("trimaran.fleet")
RETRY_FIRST_S: Final = 0.2
RETRY_LAST_S: Final = 2.0


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file so that a reader, or a crash, finds the old content or the new."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w", encoding="utf-8", opener=lambda p, f: os.open(p, f, mode)) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Presence:
    """Holds the machine's lease and key.

    Attributes:
        lease_id: the lease to attach keys to, 0 while there is none.
        acquired: set while there is a lease.
    """

    def __init__(
        self,
        client: Client,
        machine_id: str,
        record: MachineRecord,
        ttl_s: int,
        runtime_directory: Path,
    ) -> None:
        """Prepare; `run` does the work.

        Args:
            client: of the store.
            machine_id: this machine.
            record: what to publish of it.
            ttl_s: seconds after which a machine that is silent counts as gone.
            runtime_directory: where the token is kept; must be emptied by a reboot.
        """
        self._client = client
        self._machine_id = machine_id
        self._ttl_s = ttl_s
        self._path = runtime_directory / "presence.json"
        token, self._last_lease_id = self._remembered()
        self._record = replace(record, owner=token)
        self._deadline_s: Callable[[], float] = lambda: float("-inf")
        self._registered_revision = 0
        self._was_lost = False
        self.lease_id = 0
        self.acquired = asyncio.Event()
        self.on_acquired: list[Callable[[], None]] = []
        self.on_lost: list[Callable[[], None]] = []

    def _remembered(self) -> tuple[str, int]:
        try:
            data = json.loads(self._path.read_text())
            return str(data["owner"]), int(data["lease"])
        except FileNotFoundError:
            return secrets.token_hex(16), 0
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s); starting as a new daemon", self._path, error)
            return secrets.token_hex(16), 0

    @property
    def is_steady(self) -> bool:
        """Whether the store has confirmed the lease lately.

        Renewals are a third of the time to live apart. An outage that ends any lease lasts two
        thirds of it at least, and is noticed here before that.
        """
        return self._deadline_s() - time.monotonic() > self._ttl_s * 0.4

    @property
    def check_interval_s(self) -> float:
        """How often to look whether it is steady, so as to miss no outage that ends leases."""
        return self._ttl_s / 20

    async def run(self) -> None:
        """Be present, through every loss of the store, until cancelled. The lease is left."""
        retry_s = RETRY_FIRST_S
        while True:
            try:
                lease_id = await self._acquire()
            except StoreError as error:
                log.warning("cannot register the machine: %s; trying again", error)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_LAST_S)
                continue
            if not lease_id:
                continue
            retry_s = RETRY_FIRST_S
            await self._hold(lease_id)

    async def _hold(self, lease_id: int) -> None:
        keep_alive = self._client.keep_alive(lease_id, self._ttl_s)
        async with keep_alive:
            self._deadline_s = lambda: keep_alive.deadline
            is_new = lease_id != self.lease_id
            self.lease_id = lease_id
            self.acquired.set()
            # Whoever was told that the store was away is to learn that it is back.
            level = logging.WARNING if self._was_lost else logging.INFO
            log.log(level, "machine %s is registered, lease %x", self._machine_id, lease_id)
            self._was_lost = False
            if is_new:
                for callback in self.on_acquired:
                    callback()
            gone = asyncio.ensure_future(self._key_deleted())
            lost = asyncio.ensure_future(keep_alive.lost())
            try:
                await asyncio.wait((gone, lost), return_when=asyncio.FIRST_COMPLETED)
                if not lost.done():
                    gone.result()
                    log.warning("the machine's key was deleted; registering again")
                    # Whatever hung on the lease may have been deleted with it.
                    self.lease_id = 0
                    return
            finally:
                gone.cancel()
                lost.cancel()
        self._was_lost = True
        log.warning("the store was out of reach for %d s; units are left as they are", self._ttl_s)
        for callback in self.on_lost:
            callback()

    async def _key_deleted(self) -> None:
        """Return when somebody has deleted the machine's key, or may have."""
        key = machine_key(self._machine_id)
        async with self._client.watch(key, start_revision=self._registered_revision + 1) as watcher:
            async for batch in watcher:
                if batch.compacted or any(e.type == EventType.DELETE for e in batch.events):
                    return

    async def _acquire(self) -> int:
        """Take up the last lease or a new one, and have the key on it; 0 to try again."""
        lease_id = await self._usable_lease()
        if not lease_id:
            lease_id = (await self._client.lease_grant(self._ttl_s)).id
        self._last_lease_id = lease_id
        write_atomically(
            self._path, json.dumps({"owner": self._record.owner, "lease": lease_id}), 0o600
        )
        key, value = machine_key(self._machine_id), self._record.encode()
        result = await self._client.txn(
            [Compare.create(key, "=", 0)], [Put(key, value, lease=lease_id)], [Get(key)]
        )
        self._registered_revision = result.revision
        if result.succeeded:
            return lease_id
        answer = result.responses[0]
        assert isinstance(answer, RangeResult)
        present = answer.kvs[0]
        try:
            owner = MachineRecord.decode(present.value).owner
        except RecordError:
            owner = ""
        if owner != self._record.owner:
            await self._client.lease_revoke(lease_id)
            self._last_lease_id = 0
            await self._wait_for_other(key, present.mod_revision)
            return 0
        if present.lease != lease_id or present.value != value.encode():
            result = await self._client.txn(
                [Compare.mod(key, "=", present.mod_revision)], [Put(key, value, lease=lease_id)]
            )
            self._registered_revision = result.revision
        return lease_id

    async def _usable_lease(self) -> int:
        if not self._last_lease_id:
            return 0
        status = await self._client.lease_time_to_live(self._last_lease_id)
        return (
            self._last_lease_id if status.granted_ttl_s == self._ttl_s and status.ttl_s > 0 else 0
        )

    async def _wait_for_other(self, key: str, revision: int) -> None:
        log.warning(
            "another daemon is registered as machine %s; waiting until it has gone. After a power "
            "cut this lasts up to its time to live. If two machines have the same id, give one its "
            "own: remove /etc/machine-id and run systemd-machine-id-setup",
            self._machine_id,
        )
        async with self._client.watch(key, start_revision=revision + 1) as watcher:
            async for batch in watcher:
                gone = any(event.type == EventType.DELETE for event in batch.events)
                if gone or batch.compacted:
                    return
