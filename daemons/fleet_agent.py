"""The agent: makes this machine's systemd do what this machine's schedule says.

It reads one prefix of the store, watches it, and lets `trimaran.fleet.agent` decide each step. It
never acts on the absence of something: a unit stops only when its schedule entry says so.
"""

import asyncio
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trimaran.client import Client, Compare, Delete, EventType, Put
from trimaran.daemons.fleet_presence import Presence, write_atomically
from trimaran.daemons.systemd import Systemd, SystemdError, SystemdUnavailableError
from trimaran.errors import InvalidUnitError, StoreError
from trimaran.fleet.agent import Action, Local, next_action
from trimaran.fleet.names import parse_unit_name
from trimaran.fleet.records import (
    SCHEDULE,
    STATES,
    DesiredState,
    RecordError,
    ScheduleRecord,
    StateRecord,
    schedule_key,
    state_key,
)
from trimaran.fleet.unitfile import parse_unit_file

log = logging.getLogger("trimaran.fleet.agent")
# The first line of every unit file the agent writes: it touches no file without it.
MARK: Final = "# Written by trimaran-fleetd; change it with `trimaran unit`, not here.\n"
RETRY_FIRST_S: Final = 0.25
RETRY_LAST_S: Final = 15.0
STATES_IN_TXN_MAX: Final = 64


@dataclass(slots=True)
class Tracked:
    """What the agent remembers of one unit.

    Attributes:
        entry: the instruction, None where there is none.
        revision: of the schedule entry.
        launched_hash: the version the agent has started and not stopped since.
        attempted: a reload was tried for the present instruction.
        starting: its start job has not ended yet.
        reason: why it does not run.
        refusal: why the agent leaves it alone, e.g. it is not the fleet's.
        changed: set when the instruction has changed.
        task: carries out the instruction, None when all is done.
    """

    entry: ScheduleRecord | None = None
    revision: int = 0
    launched_hash: str | None = None
    attempted: bool = False
    starting: bool = False
    reason: str = ""
    refusal: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Agent:
    """Drives the units of one machine."""

    def __init__(
        self,
        client: Client,
        machine_id: str,
        presence: Presence,
        systemd: Systemd,
        units_directory: Path,
        runtime_directory: Path,
    ) -> None:
        """Prepare; `run` does the work.

        Args:
            client: of the store.
            machine_id: this machine.
            presence: whose lease carries the reports.
            systemd: not connected yet.
            units_directory: where unit files go; one of those systemd reads.
            runtime_directory: for the agent's own notes; must be emptied by a reboot.
        """
        self._client = client
        self._machine_id = machine_id
        self._presence = presence
        self._systemd = systemd
        self._units_directory = units_directory
        self._launched_path = runtime_directory / "launched.json"
        self._units: dict[str, Tracked] = {}
        self._published: dict[str, StateRecord] = {}
        self._stale: set[str] = set()
        self._report_wanted = asyncio.Event()
        self._write_lock = asyncio.Lock()
        self._group: asyncio.TaskGroup | None = None
        # Units the store has a report of, as far as known: what has none is not deleted again.
        self._rows: set[str] = set()
        presence.on_acquired.append(self._lease_changed)
        systemd.on_change = self._state_changed

    # The life of the agent.

    async def run(self) -> None:
        """Work until cancelled; units stay as they are then."""
        self._restore()
        try:
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._report_forever())
                self._group.create_task(self._reconnect_forever())
                self._group.create_task(self._follow_schedule())
        finally:
            self._systemd.close()

    def _restore(self) -> None:
        """Find what an agent before this one has written and started."""
        launched: dict[str, str] = {}
        try:
            launched = json.loads(self._launched_path.read_text())
        except FileNotFoundError:
            pass
        except ValueError as error:
            log.warning("%s cannot be read: %s", self._launched_path, error)
        for name, version in launched.items():
            self._track(name).launched_hash = str(version)
        for path in self._units_directory.iterdir():
            if self._owned_text(path.name) is not None:
                self._track(path.name)
        self._mark_stale(self._units)

    async def _reconnect_forever(self) -> None:
        """Get back to systemd after the message bus was restarted."""
        while True:
            await self._systemd.wait_disconnected()
            log.warning("the connection to systemd ended; connecting again")
            retry_s = RETRY_FIRST_S
            while True:
                try:
                    await self._systemd.connect()
                    break
                except SystemdUnavailableError as error:
                    log.warning("%s", error)
                    await asyncio.sleep(retry_s)
                    retry_s = min(retry_s * 2, RETRY_LAST_S)
            for name, unit in self._units.items():
                unit.changed.set()
                self._wake(name)
            self._mark_stale(self._units)

    async def _follow_schedule(self) -> None:
        retry_s = RETRY_FIRST_S
        while True:
            try:
                await self._presence.acquired.wait()
                await self._load_and_watch()
                retry_s = RETRY_FIRST_S
            except StoreError as error:
                log.warning("cannot read the schedule: %s; units are left as they are", error)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_LAST_S)

    async def _load_and_watch(self) -> None:
        prefix = f"{SCHEDULE}{self._machine_id}/"
        schedule = await self._client.get(prefix, prefix=True)
        states = await self._client.get(f"{STATES}{self._machine_id}/", prefix=True, keys_only=True)
        listed = set()
        for pair in schedule.kvs:
            name = pair.key.decode().removeprefix(prefix)
            listed.add(name)
            self._instruct(name, pair.value, pair.mod_revision)
        for name in self._units.keys() - listed:
            self._lose_entry(name)
        self._rows = {pair.key.decode().rpartition("/")[2] for pair in states.kvs}
        self._mark_stale(self._rows)
        async with self._client.watch(
            prefix, prefix=True, start_revision=schedule.revision + 1
        ) as watcher:
            async for batch in watcher:
                if batch.compacted:
                    return
                for event in batch.events:
                    name = event.kv.key.decode().removeprefix(prefix)
                    if event.type == EventType.PUT:
                        self._instruct(name, event.kv.value, event.kv.mod_revision)
                    elif (
                        self._units.get(name) and self._units[name].revision < event.kv.mod_revision
                    ):
                        self._lose_entry(name)

    def _instruct(self, name: str, value: bytes, revision: int) -> None:
        try:
            entry = ScheduleRecord.decode(value)
            parse_unit_name(name)
        except (RecordError, InvalidUnitError) as error:
            log.error("the schedule entry of %r cannot be used: %s", name, error)
            return
        unit = self._track(name)
        if unit.entry is None or unit.revision != revision:
            unit.entry, unit.revision = entry, revision
            unit.attempted, unit.reason = False, ""
            unit.changed.set()
        self._wake(name)

    def _lose_entry(self, name: str) -> None:
        """There is no entry and there was no order to stop: whatever did that, the unit stays."""
        unit = self._units[name]
        is_live = unit.entry is not None and unit.entry.desired is not DesiredState.INACTIVE
        if is_live or self._owned_text(name) is not None:
            log.warning("%s is not in the schedule any more; it is left as it is", name)
        unit.entry = None
        unit.changed.set()
        # The report may have gone the same way.
        self._published.pop(name, None)
        self._mark_stale((name,))

    def _track(self, name: str) -> Tracked:
        return self._units.setdefault(name, Tracked())

    # One unit.

    def _wake(self, name: str) -> None:
        unit = self._units[name]
        if unit.task is None:
            assert self._group is not None
            unit.task = self._group.create_task(self._work(name, unit), name=f"unit {name}")

    async def _work(self, name: str, unit: Tracked) -> None:
        """Take step after step until the unit is as instructed."""
        retry_s = RETRY_FIRST_S
        try:
            while True:
                unit.changed.clear()
                try:
                    local = await self._observe(name, unit)
                    action = next_action(unit.entry, local)
                    unit.refusal = local.problem if action is Action.REFUSE else ""
                    if action is None or action is Action.REFUSE:
                        break
                    log.info("%s: %s", name, action.name.lower())
                    if await self._act(action, name, unit):
                        retry_s = RETRY_FIRST_S
                        continue
                except (SystemdError, SystemdUnavailableError, StoreError, OSError) as error:
                    log.warning("%s: %s; trying again", name, error)
                    unit.reason = str(error)
                self._mark_stale((name,))
                await _wait_at_most(unit.changed, retry_s)
                retry_s = min(retry_s * 2, RETRY_LAST_S)
        finally:
            unit.task = None
        self._mark_stale((name,))
        if unit.changed.is_set():
            self._wake(name)
        elif unit.entry is None and self._owned_text(name) is None:
            del self._units[name]

    async def _observe(self, name: str, unit: Tracked) -> Local:
        status = await self._systemd.status(name)
        text = self._owned_text(name)
        path = self._units_directory / name
        problem = ""
        if (text is None and path.is_symlink()) or (text is None and path.exists()):
            problem = f"{path} is somebody else's file; remove it or choose another unit name"
        elif status.load == "masked":
            problem = f"{name} is masked on this machine; run `systemctl unmask {name}` there"
        elif status.fragment and not _same_file(status.fragment, path):
            problem = f"the machine has a {name} of its own, {status.fragment}; choose another name"
        version = None if text is None else _hash_of(text)
        return Local(
            file_hash=version,
            load=status.load,
            active=status.active,
            sub=status.sub,
            needs_reload=status.needs_reload,
            launched=unit.launched_hash is not None,
            attempted=unit.attempted,
            problem=problem,
        )

    async def _act(self, action: Action, name: str, unit: Tracked) -> bool:
        """Carry out one step; False to wait before the next."""
        assert unit.entry is not None
        match action:
            case Action.WRITE:
                write_atomically(self._units_directory / name, MARK + unit.entry.text)
            case Action.RELOAD:
                unit.attempted = True
                await self._systemd.reload()
            case Action.ADOPT:
                self._set_launched(name, unit.entry.hash)
            case Action.START:
                await self._start(name, unit)
            case Action.STOP:
                return await self._stop(name, unit)
            case Action.REMOVE:
                await self._systemd.reset_failed(name)
                (self._units_directory / name).unlink(missing_ok=True)
            case Action.CONFIRM:
                await self._confirm(name, unit)
            case Action.REFUSE:
                raise AssertionError("a refusal is not carried out")
        return True

    async def _start(self, name: str, unit: Tracked) -> None:
        assert unit.entry is not None
        try:
            job = await self._systemd.start(name)
        except SystemdError as error:
            unit.reason = f"cannot be started: {error}"
            log.warning("%s %s", name, unit.reason)
            self._set_launched(name, unit.entry.hash)
            return
        unit.starting = True
        self._set_launched(name, unit.entry.hash)
        self._mark_stale((name,))
        try:
            result = await _unless(job, unit.changed)
        finally:
            unit.starting = False
        if result not in (None, "done"):
            unit.reason = f"start job: {result}"
            log.warning("%s: start job ended with %s", name, result)

    async def _stop(self, name: str, unit: Tracked) -> bool:
        job = await self._systemd.stop(name)
        self._mark_stale((name,))
        result = await _unless(job, unit.changed)
        if result == "done":
            self._set_launched(name, None)
            return True
        if result is not None:
            unit.reason = f"stop job: {result}"
        return result is None

    async def _confirm(self, name: str, unit: Tracked) -> None:
        """Take the entry away: the unit is stopped and gone."""
        key = schedule_key(self._machine_id, name)
        async with self._write_lock:
            result = await self._client.txn(
                [Compare.mod(key, "=", unit.revision)],
                [Delete(key), Delete(state_key(self._machine_id, name))],
            )
            if result.succeeded:
                unit.entry, unit.revision = None, result.revision
                self._published.pop(name, None)
                self._rows.discard(name)
                self._systemd.forget(name)
                return
        # The engine has written a newer instruction, which the watch brings.
        await unit.changed.wait()

    def _set_launched(self, name: str, version: str | None) -> None:
        self._units[name].launched_hash = version
        launched = {
            name: unit.launched_hash for name, unit in self._units.items() if unit.launched_hash
        }
        write_atomically(self._launched_path, json.dumps(launched))

    def _owned_text(self, name: str) -> str | None:
        """The unit text in a file this agent, or one before it, has written."""
        path = self._units_directory / name
        if path.is_symlink() or not path.is_file():
            return None
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return None
        return text.removeprefix(MARK) if text.startswith(MARK) else None

    # Reports.

    def _state_changed(self, name: str) -> None:
        if name in self._units:
            self._mark_stale((name,))

    def _lease_changed(self) -> None:
        self._published.clear()
        self._mark_stale(self._units)

    def _mark_stale(self, names: Iterable[str]) -> None:
        self._stale.update(names)
        self._report_wanted.set()

    async def _report_forever(self) -> None:
        retry_s = RETRY_FIRST_S
        while True:
            await self._report_wanted.wait()
            await self._presence.acquired.wait()
            self._report_wanted.clear()
            names, self._stale = sorted(self._stale), set()
            try:
                for start in range(0, len(names), STATES_IN_TXN_MAX):
                    await self._report(names[start : start + STATES_IN_TXN_MAX])
                retry_s = RETRY_FIRST_S
            except (StoreError, SystemdError, SystemdUnavailableError) as error:
                log.warning("cannot report the states of units: %s; trying again", error)
                self._mark_stale(names)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_LAST_S)

    async def _report(self, names: list[str]) -> None:
        """Write the states that differ from what the store has."""
        found = {name: await self._state_of(name) for name in names}
        async with self._write_lock:
            lease_id = self._presence.lease_id
            operations: list[Put | Delete] = []
            for name in names:
                # It may have gone while its state was read.
                state = found[name] if self._has_report(name) else None
                found[name] = state
                key = state_key(self._machine_id, name)
                if state is None:
                    if name in self._rows:
                        operations.append(Delete(key))
                elif self._published.get(name) != state:
                    operations.append(Put(key, state.encode(), lease=lease_id))
            if not operations:
                return
            await self._client.txn([], operations)
            for name, state in found.items():
                if state is None:
                    self._published.pop(name, None)
                    self._rows.discard(name)
                else:
                    self._published[name] = state
                    self._rows.add(name)

    def _has_report(self, name: str) -> bool:
        """Whether a unit is the agent's: by an instruction or by a file it has written."""
        unit = self._units.get(name)
        if unit is None:
            return False
        return unit.entry is not None or self._owned_text(name) is not None

    async def _state_of(self, name: str) -> StateRecord | None:
        if not self._has_report(name):
            return None
        unit = self._units[name]
        if unit.refusal:
            # What systemd has by that name is not what the fleet was asked for.
            return StateRecord("error", "inactive", "dead", reason=unit.refusal)
        status = await self._systemd.status(name)
        text = self._owned_text(name)
        reason = unit.reason
        if status.active == "failed":
            reason = reason or f"result: {await self._systemd.result(name)}"
        elif status.load not in ("loaded", "not-found"):
            reason = reason or status.problem
        elif status.active == "active":
            reason = unit.reason = ""
        version = _hash_of(text) if text is not None else ""
        launched = unit.launched_hash is not None and not unit.starting
        return StateRecord(status.load, status.active, status.sub, version, reason, launched)


def _hash_of(text: str) -> str:
    """The version of a written unit file; one that was damaged matches no version."""
    try:
        return parse_unit_file(text).hash
    except InvalidUnitError:
        return "damaged"


def _same_file(left: str, right: Path) -> bool:
    """Whether two paths name one file, in a directory that may be reached in two ways."""
    return Path(left) == right or Path(left).resolve() == right.resolve()


async def _wait_at_most(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


async def _unless(job: asyncio.Future[str], event: asyncio.Event) -> str | None:
    """The job's result, or None if the event comes first."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((job, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return job.result() if job.done() else None
