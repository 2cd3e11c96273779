"""The engine: one of the fleet's daemons decides which unit runs where; the others stand by.

All engines follow presence and the leader key, so that a new leader knows what it has seen vanish
and need not wait to find out. The leader key hangs on its machine's lease: when the leader's
machine dies, both go at once, and its failure adds nothing to the time its units are away.

Every write of the leader compares the leader key's creation, so that one that has been replaced
without knowing it changes nothing, and the revisions its decision rests on.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Final

from trimaran.client import (
    Client,
    Compare,
    Event,
    EventType,
    Get,
    KeyValue,
    Put,
    RangeResult,
    WatchBatch,
    prefix_range_end,
)
from trimaran.daemons.fleet_presence import RETRY_FIRST_S, RETRY_LAST_S, Presence
from trimaran.errors import StoreError
from trimaran.fleet.cluster import Cluster
from trimaran.fleet.loss import LossJudge
from trimaran.fleet.placement import Change, Plan, place
from trimaran.fleet.records import (
    LEADER_KEY,
    MACHINES,
    PREFIX,
    DesiredState,
    LeaderRecord,
    RecordError,
    ScheduleRecord,
    schedule_key,
    unit_key,
)

log = logging.getLogger("trimaran.fleet.engine")
# etcd refuses a transaction of more than 128 operations, or of more than 1.5 MiB.
OPERATIONS_MAX: Final = 100
BYTES_MAX: Final = 1024 * 1024
REPLAN_S: Final = 1.0


class Engine:
    """Stands by, leads when elected, and decides while it leads."""

    def __init__(
        self, client: Client, machine_id: str, presence: Presence, judge: LossJudge
    ) -> None:
        """Prepare; `run` does the work.

        Args:
            client: of the store.
            machine_id: this machine.
            presence: whose lease carries the leader key.
            judge: says which absent machines are lost.
        """
        self._client = client
        self._machine_id = machine_id
        self._presence = presence
        self._judge = judge
        self._token = 0
        self._cluster = Cluster()
        self._hold = ""
        self._reported: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._was_lost = False
        self._group: asyncio.TaskGroup | None = None
        presence.on_lost.append(self._presence_lost)
        presence.on_acquired.append(self._presence_acquired)

    def _presence_lost(self) -> None:
        self._was_lost = True
        self._judge.unsteady(time.monotonic())

    def _presence_acquired(self) -> None:
        if self._was_lost:
            self._was_lost = False
            self._judge.unsteady(time.monotonic())

    @property
    def is_leader(self) -> bool:
        """Whether this engine decides, as far as it knows."""
        return self._token != 0

    async def run(self) -> None:
        """Follow presence and the leader key, and campaign whenever there is no leader."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._watch_steadiness(), name="fleet steadiness")
            retry_s = RETRY_FIRST_S
            while True:
                await self._presence.acquired.wait()
                try:
                    await self._stand_by()
                    retry_s = RETRY_FIRST_S
                except StoreError as error:
                    self._judge.unsteady(time.monotonic())
                    log.warning("the engine cannot follow the store: %s; trying again", error)
                    await asyncio.sleep(retry_s)
                    retry_s = min(retry_s * 2, RETRY_LAST_S)

    async def _watch_steadiness(self) -> None:
        """Remember outages: when the store is back, others' leases may end before their renewal."""
        while True:
            await self._presence.acquired.wait()
            await asyncio.sleep(self._presence.check_interval_s)
            if not self._presence.is_steady:
                self._judge.unsteady(time.monotonic())

    async def _stand_by(self) -> None:
        # One range that holds the leader key and every machine: of one revision, in one watch.
        range_end = prefix_range_end(MACHINES)
        listed = await self._client.get(LEADER_KEY, range_end=range_end)
        self._read_presence(listed)
        leading: asyncio.Task[None] | None = None
        leader = next((pair for pair in listed.kvs if pair.key == LEADER_KEY.encode()), None)
        try:
            async with self._client.watch(
                LEADER_KEY, range_end=range_end, start_revision=listed.revision + 1
            ) as watcher:
                if leader is None or _machine_of(leader) == self._machine_id:
                    leading = await self._campaign()
                async for batch in watcher:
                    if batch.compacted:
                        return
                    seat = [event for event in batch.events if event.kv.key == LEADER_KEY.encode()]
                    for event in batch.events:
                        self._take_presence(event)
                    self._wake.set()
                    if any(self._is_deposed_by(event) for event in seat):
                        await _cancel(leading)
                        self._token, leading = 0, None
                    if seat and seat[-1].type == EventType.DELETE:
                        leading = await self._campaign()
        finally:
            await _cancel(leading)
            self._token = 0

    def _read_presence(self, listed: RangeResult) -> None:
        present = {
            pair.key.decode().removeprefix(MACHINES)
            for pair in listed.kvs
            if pair.key.startswith(MACHINES.encode())
        }
        self._judge.reset(present, time.monotonic())

    def _is_deposed_by(self, event: Event) -> bool:
        """Whether a change of the leader key ends this engine's term."""
        return event.type == EventType.DELETE or event.kv.create_revision != self._token

    def _take_presence(self, event: Event) -> None:
        """Note the coming or going of a machine."""
        key = event.kv.key.decode()
        if not key.startswith(MACHINES):
            return
        machine = key.removeprefix(MACHINES)
        if event.type == EventType.PUT:
            self._judge.appeared(machine)
        else:
            self._judge.vanished(machine, time.monotonic())
            log.info("machine %s is gone", machine)

    async def _campaign(self) -> asyncio.Task[None] | None:
        """Take the leader key if nobody has it, and start to lead."""
        value = LeaderRecord(self._machine_id).encode()
        result = await self._client.txn(
            [Compare.create(LEADER_KEY, "=", 0)],
            [Put(LEADER_KEY, value, lease=self._presence.lease_id)],
            [Get(LEADER_KEY)],
        )
        if result.succeeded:
            self._token = result.revision
        else:
            answer = result.responses[0]
            assert isinstance(answer, RangeResult)
            # One that this machine's daemon left behind when it was restarted is ours.
            if _machine_of(answer.kvs[0]) != self._machine_id:
                return None
            self._token = answer.kvs[0].create_revision
        log.info("this engine leads, since revision %d", self._token)
        assert self._group is not None
        return self._group.create_task(self._lead(), name="fleet leader")

    # Leading.

    async def _lead(self) -> None:
        retry_s = RETRY_FIRST_S
        while True:
            try:
                await self._follow_and_decide()
                retry_s = RETRY_FIRST_S
            except StoreError as error:
                log.warning("the leader cannot reach the store: %s; trying again", error)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_LAST_S)

    async def _follow_and_decide(self) -> None:
        """Read everything, then decide after every change, until the history breaks."""
        listed = await self._client.get(PREFIX, prefix=True)
        self._cluster = Cluster()
        for pair in listed.kvs:
            self._cluster.put(pair.key.decode(), pair.value, pair.mod_revision)
        self._hold = self._cluster.leader.hold if self._cluster.leader else ""
        deciding = asyncio.create_task(self._decide_forever(), name="fleet decisions")
        try:
            async with self._client.watch(
                PREFIX, prefix=True, start_revision=listed.revision + 1
            ) as watcher:
                changes = asyncio.create_task(self._mirror(aiter(watcher)), name="fleet mirror")
                try:
                    done, _ = await asyncio.wait(
                        (deciding, changes), return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    # Before the watch closes, which would be an error to a mirror that still reads.
                    await _cancel(changes)
                for task in done:
                    task.result()
        finally:
            await _cancel(deciding)

    async def _mirror(self, batches: AsyncIterator[WatchBatch]) -> None:
        async for batch in batches:
            if batch.compacted:
                return
            for event in batch.events:
                key = event.kv.key.decode()
                if event.type == EventType.PUT:
                    self._cluster.put(key, event.kv.value, event.kv.mod_revision)
                else:
                    self._cluster.delete(key)
            self._wake.set()

    async def _decide_forever(self) -> None:
        wake_s: float | None = None
        while True:
            self._wake.clear()
            now_s = time.monotonic()
            needed = {machine for row in self._cluster.schedule.values() for machine in row}
            verdict = self._judge.judge(needed, now_s)
            wake_s = None if verdict.wake_s is None else max(0.01, verdict.wake_s - now_s)
            await self._announce(verdict.hold)
            plan = place(self._cluster, verdict.lost)
            self._log_pending(plan)
            if plan.changes and not await self._write(plan.changes):
                # Somebody was faster: the watch brings what, or it was the leader key.
                wake_s = REPLAN_S
            try:
                async with asyncio.timeout(wake_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _log_pending(self, plan: Plan) -> None:
        pending = {name: str(reason) for name, reason in plan.pending.items()}
        for name, reason in pending.items():
            if self._reported.get(name) != reason:
                log.info("%s waits: %s", name, reason)
        self._reported = pending

    async def _announce(self, hold: str) -> None:
        """Show in the leader key why absent machines' units are not moved yet."""
        if hold == self._hold:
            return
        log.info("%s", hold or "absent machines count as lost again")
        self._hold = hold
        record = LeaderRecord(self._machine_id, hold).encode()
        await self._client.txn(
            [Compare.create(LEADER_KEY, "=", self._token)],
            [Put(LEADER_KEY, record, lease=self._presence.lease_id)],
        )

    async def _write(self, changes: list[Change]) -> bool:
        """Write changes in few transactions; False where one did not apply."""
        for batch in self._batches(changes):
            compares = [Compare.create(LEADER_KEY, "=", self._token)]
            puts: list[Put] = []
            for change, values in batch:
                compares.append(Compare.mod(unit_key(change.name), "=", change.revision))
                for assignment, value in zip(change.assignments, values, strict=True):
                    key = schedule_key(assignment.machine_id, change.name)
                    compares.append(Compare.mod(key, "=", assignment.revision))
                    puts.append(Put(key, value))
                    log.info("%s: %s on %s", change.name, assignment.desired, assignment.machine_id)
            result = await self._client.txn(compares, puts)
            if not result.succeeded:
                log.info("a decision was overtaken by other changes; deciding again")
                return False
            # What was written is known before the watch tells; so no decision is made twice.
            for put in puts:
                self._cluster.put(str(put.key), str(put.value).encode(), result.revision)
        return True

    def _batches(self, changes: list[Change]) -> list[list[tuple[Change, list[str]]]]:
        """Group changes below what one transaction may hold; a change is never split."""
        batches: list[list[tuple[Change, list[str]]]] = [[]]
        operations = size = 0
        for change in changes:
            values = [self._value(change.name, item.desired) for item in change.assignments]
            added = 1 + len(values)
            length = sum(len(value.encode()) for value in values)
            if batches[-1] and (operations + added > OPERATIONS_MAX or size + length > BYTES_MAX):
                batches.append([])
                operations = size = 0
            batches[-1].append((change, values))
            operations += added
            size += length
        return batches

    def _value(self, name: str, desired: DesiredState) -> str:
        if desired is DesiredState.INACTIVE:
            return ScheduleRecord("", "", desired).encode()
        unit = self._cluster.units[name]
        return ScheduleRecord(unit.text, unit.hash, desired).encode()


def _machine_of(pair: KeyValue) -> str:
    try:
        return LeaderRecord.decode(pair.value).machine_id
    except RecordError:
        return ""


async def _cancel(task: asyncio.Task[None] | None) -> None:
    """End a task and wait until it has; how it ended is of no interest any more."""
    if task is None:
        return
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
