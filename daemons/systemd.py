"""systemd over D-Bus: load, start and stop units, await their jobs, follow their states.

The interface is org.freedesktop.systemd1, as its own manual page describes it. One connection; no
polling: systemd's signals say when a unit has changed and when a job has ended.
"""

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.errors import AuthError, DBusError, InvalidAddressError

from trimaran.errors import TrimaranError

SERVICE: Final = "org.freedesktop.systemd1"
MANAGER_PATH: Final = "/org/freedesktop/systemd1"
MANAGER: Final = SERVICE + ".Manager"
UNIT: Final = SERVICE + ".Unit"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
UNIT_PATHS: Final = MANAGER_PATH + "/unit/"
CALL_TIMEOUT_S: Final = 60.0
# Results of jobs that ended before their starter could ask; one is taken within a turn of the loop.
EARLY_RESULTS_MAX: Final = 1024
WITH_RESULT: Final = {
    "automount": "Automount",
    "mount": "Mount",
    "path": "Path",
    "service": "Service",
    "socket": "Socket",
    "swap": "Swap",
    "timer": "Timer",
}


class SystemdError(TrimaranError):
    """systemd refused a call.

    Attributes:
        name: the D-Bus error's name, e.g. org.freedesktop.systemd1.NoSuchUnit.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class SystemdUnavailableError(TrimaranError):
    """There is no systemd to talk to, or the connection to it broke."""


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """What systemd says of a unit.

    Attributes:
        load: LoadState.
        active: ActiveState.
        sub: SubState.
        fragment: path of the unit file in memory, empty where there is none.
        needs_reload: the file on disk is another one than in memory.
        problem: why it was not loaded, empty where it was.
    """

    load: str
    active: str
    sub: str
    fragment: str = ""
    needs_reload: bool = False
    problem: str = ""


def unit_of_path(path: str) -> str:
    """The unit name in an object path, where systemd writes odd characters as _xx."""
    escaped = path.removeprefix(UNIT_PATHS)
    raw = re.sub(r"_([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), escaped)
    return raw.encode("latin-1").decode("utf-8", "replace")


class Systemd:
    """A connection to one systemd.

    Attributes:
        on_change: called with a unit's name when its active or sub state has changed.
    """

    def __init__(self, bus_address: str | None = None) -> None:
        """Prepare a connection; `connect` makes it.

        Args:
            bus_address: D-Bus address, None for the system bus.
        """
        self._address = bus_address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS")
        self._bus: MessageBus | None = None
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self._early: dict[str, str] = {}
        self._known: dict[str, tuple[str, str]] = {}
        self._reload: asyncio.Task[None] | None = None
        self._reload_next: asyncio.Task[None] | None = None
        self.on_change: Callable[[str], None] = lambda _name: None

    async def connect(self) -> None:
        """Connect, check that systemd answers, and subscribe to its signals.

        Raises:
            SystemdUnavailableError: there is no bus or no systemd on it; says what to do.
        """
        try:
            bus = MessageBus(bus_address=self._address, bus_type=BusType.SYSTEM)
            self._bus = await asyncio.wait_for(bus.connect(), CALL_TIMEOUT_S)
        except (
            OSError,
            EOFError,
            AuthError,
            DBusError,
            InvalidAddressError,
            TimeoutError,
        ) as error:
            where = self._address or "the system bus"
            raise SystemdUnavailableError(
                f"no D-Bus at {where} ({error}); units are run by systemd: install the package "
                "dbus, and run this on a machine or in a container that was booted with systemd"
            ) from error
        self._bus.add_message_handler(self._receive)
        try:
            await self._match(f"interface='{PROPERTIES}',path_namespace='{UNIT_PATHS[:-1]}'")
            await self._match(f"interface='{MANAGER}',member='JobRemoved'")
            await self._manager("Subscribe")
        except SystemdError as error:
            self.close()
            raise SystemdUnavailableError(
                f"D-Bus answers, but no systemd on it ({error}); run this on a machine that was "
                "booted with systemd, as root"
            ) from error

    def close(self) -> None:
        """Leave the bus. Units go on."""
        if self._bus is not None:
            self._bus.disconnect()
        self._fail_jobs()

    async def wait_disconnected(self) -> None:
        """Return when the connection has ended."""
        assert self._bus is not None
        try:
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        except (OSError, EOFError):
            pass
        finally:
            self._fail_jobs()

    def _fail_jobs(self) -> None:
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            if not job.done():
                job.set_exception(SystemdUnavailableError("the connection to systemd ended"))

    # Calls.

    async def unit_path(self) -> list[str]:
        """The directories systemd reads unit files from."""
        reply = await self._call(MANAGER_PATH, PROPERTIES, "Get", "ss", [MANAGER, "UnitPath"])
        return [str(path) for path in reply[0].value]

    async def reload(self) -> None:
        """Have systemd read all unit files again.

        A reload reads everything, so calls that come while one waits to begin share it; those that
        come after it has begun share the next.
        """
        if self._reload_next is None:
            self._reload_next = asyncio.create_task(self._reload_after(self._reload))
        await asyncio.shield(self._reload_next)

    async def _reload_after(self, current: asyncio.Task[None] | None) -> None:
        if current is not None:
            await asyncio.wait([current])
        self._reload, self._reload_next = self._reload_next, None
        await self._manager("Reload")

    async def start(self, name: str) -> asyncio.Future[str]:
        """Enqueue the start of a unit.

        Args:
            name: the unit.

        Returns:
            a future of the job's result: done, canceled, timeout, failed, dependency or skipped.

        Raises:
            SystemdError: there is no such unit, or it cannot be started.
        """
        return self._job(await self._manager("StartUnit", "ss", [name, "replace"]))

    async def stop(self, name: str) -> asyncio.Future[str]:
        """Enqueue the stop of a unit; one that is not loaded counts as stopped.

        Args:
            name: the unit.

        Returns:
            a future of the job's result.
        """
        try:
            return self._job(await self._manager("StopUnit", "ss", [name, "replace"]))
        except SystemdError as error:
            if not error.name.endswith(".NoSuchUnit"):
                raise
        stopped: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stopped.set_result("done")
        return stopped

    async def reset_failed(self, name: str) -> None:
        """Forget that a unit failed."""
        try:
            await self._manager("ResetFailedUnit", "s", [name])
        except SystemdError as error:
            if not error.name.endswith(".NoSuchUnit"):
                raise

    async def status(self, name: str) -> UnitStatus:
        """Read a unit's state."""
        path = (await self._manager("LoadUnit", "s", [name]))[0]
        reply = await self._call(path, PROPERTIES, "GetAll", "s", [UNIT])
        values = {key: variant.value for key, variant in reply[0].items()}
        status = UnitStatus(
            load=values["LoadState"],
            active=values["ActiveState"],
            sub=values["SubState"],
            fragment=values.get("FragmentPath", ""),
            needs_reload=values.get("NeedDaemonReload", False),
            problem="" if values["LoadState"] == "not-found" else values["LoadError"][1],
        )
        self._known[name] = (status.active, status.sub)
        return status

    async def result(self, name: str) -> str:
        """Why a unit failed, in systemd's word (exit-code, signal, ...); empty where unknown."""
        kind = WITH_RESULT.get(name.rpartition(".")[2])
        if kind is None:
            return ""
        path = (await self._manager("LoadUnit", "s", [name]))[0]
        reply = await self._call(path, PROPERTIES, "Get", "ss", [f"{SERVICE}.{kind}", "Result"])
        return str(reply[0].value)

    def forget(self, name: str) -> None:
        """Stop following a unit that has gone."""
        self._known.pop(name, None)

    # Signals.

    def _receive(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "JobRemoved" and message.interface == MANAGER:
            _number, path, _unit, result = message.body
            job = self._jobs.pop(path, None)
            if job is None:
                self._early[path] = result
                while len(self._early) > EARLY_RESULTS_MAX:
                    del self._early[next(iter(self._early))]
            elif not job.done():
                job.set_result(result)
        elif message.member == "PropertiesChanged" and message.interface == PROPERTIES:
            interface, changed, _invalidated = message.body
            if interface == UNIT and message.path:
                self._note(unit_of_path(message.path), changed)

    def _note(self, name: str, changed: dict[str, Any]) -> None:
        """Pass on only true changes: systemd also sends signals that our own reading causes."""
        known = self._known.get(name)
        if known is None:
            return
        active = changed["ActiveState"].value if "ActiveState" in changed else known[0]
        sub = changed["SubState"].value if "SubState" in changed else known[1]
        if (active, sub) != known:
            self._known[name] = (active, sub)
            self.on_change(name)

    def _job(self, reply: list[Any]) -> asyncio.Future[str]:
        path = reply[0]
        job: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if path in self._early:
            job.set_result(self._early.pop(path))
        else:
            self._jobs[path] = job
        return job

    # Messages.

    async def _match(self, rule: str) -> None:
        rule = f"type='signal',sender='{SERVICE}',{rule}"
        await self._send(
            Message(
                destination="org.freedesktop.DBus",
                path="/org/freedesktop/DBus",
                interface="org.freedesktop.DBus",
                member="AddMatch",
                signature="s",
                body=[rule],
            )
        )

    async def _manager(
        self, member: str, signature: str = "", body: list[Any] | None = None
    ) -> list[Any]:
        return await self._call(MANAGER_PATH, MANAGER, member, signature, body or [])

    async def _call(
        self, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> list[Any]:
        return await self._send(
            Message(
                destination=SERVICE,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=body,
            )
        )

    async def _send(self, message: Message) -> list[Any]:
        if self._bus is None or not self._bus.connected:
            raise SystemdUnavailableError("there is no connection to systemd")
        try:
            reply = await asyncio.wait_for(self._bus.call(message), CALL_TIMEOUT_S)
        except (OSError, EOFError, TimeoutError) as error:
            raise SystemdUnavailableError(
                f"systemd did not answer {message.member}: {error or 'timeout'}"
            ) from error
        if reply is None or reply.message_type is MessageType.ERROR:
            name = (reply.error_name if reply else None) or "unknown"
            raise SystemdError(name, str(reply.body[0]) if reply and reply.body else name)
        return list(reply.body)
