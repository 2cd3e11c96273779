"""The fleet's keys in the store and the JSON under them.

    /trimaran/fleet/leader                     the engine that decides; on its machine's lease
    /trimaran/fleet/machines/<id>              a machine is here; on the machine's one lease
    /trimaran/fleet/units/<name>               what the user wants
    /trimaran/fleet/schedule/<id>/<name>       what one machine must do: written by the engine
    /trimaran/fleet/states/<id>/<name>         what systemd says there; on the machine's lease

A schedule entry is complete: an agent reads its own prefix and nothing else. Taking a unit away is
an entry too, with the desired state `inactive`, which the agent deletes once the unit is stopped;
so that a schedule that is missing or was lost never stops anything.
"""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from trimaran.errors import TrimaranError

PREFIX: Final = "/trimaran/fleet/"
LEADER_KEY: Final = PREFIX + "leader"
MACHINES: Final = PREFIX + "machines/"
UNITS: Final = PREFIX + "units/"
SCHEDULE: Final = PREFIX + "schedule/"
STATES: Final = PREFIX + "states/"


class RecordError(TrimaranError):
    """A value under the fleet's keys is not what the fleet writes there."""


class DesiredState(StrEnum):
    """What the user wants of a unit, as fleet names it."""

    INACTIVE = "inactive"
    LOADED = "loaded"
    LAUNCHED = "launched"


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A machine that is present.

    Attributes:
        public_ip: the address it is known by.
        metadata: what MachineMetadata= can ask for.
        version: of the daemon.
        owner: a token of the one daemon that may renew this record.
    """

    public_ip: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    version: str = ""
    owner: str = ""

    def encode(self) -> str:
        """The JSON under the machine's key."""
        return _dump(
            publicIP=self.public_ip,
            metadata=self.metadata,
            version=self.version,
            owner=self.owner,
        )

    @classmethod
    def decode(cls, value: bytes) -> "MachineRecord":
        """Read what `encode` wrote; raises RecordError."""
        data = _load(value)
        metadata = data.get("metadata", {})
        if not isinstance(metadata, dict):
            raise RecordError("metadata is not an object")
        return cls(
            _text(data, "publicIP"),
            {str(key): str(content) for key, content in metadata.items()},
            _text(data, "version"),
            _text(data, "owner"),
        )


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """A unit as the user submitted it.

    Attributes:
        text: the unit file.
        desired: the state the user wants.
    """

    text: str
    desired: DesiredState

    def encode(self) -> str:
        """The JSON under the unit's key."""
        return _dump(desiredState=self.desired.value, unit=self.text)

    @classmethod
    def decode(cls, value: bytes) -> "UnitRecord":
        """Read what `encode` wrote; raises RecordError."""
        data = _load(value)
        return cls(_text(data, "unit"), _desired(data))


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """What one machine must do with one unit.

    Attributes:
        text: the unit file; empty where the unit is to go.
        hash: of the unit file.
        desired: loaded or launched; inactive is the instruction to stop and remove it.
    """

    text: str
    hash: str
    desired: DesiredState

    def encode(self) -> str:
        """The JSON under the schedule key."""
        return _dump(desiredState=self.desired.value, hash=self.hash, unit=self.text)

    @classmethod
    def decode(cls, value: bytes) -> "ScheduleRecord":
        """Read what `encode` wrote; raises RecordError."""
        data = _load(value)
        return cls(_text(data, "unit"), _text(data, "hash"), _desired(data))


@dataclass(frozen=True, slots=True)
class StateRecord:
    """What a machine's systemd says of a unit.

    Attributes:
        load: LoadState, e.g. loaded.
        active: ActiveState, e.g. active.
        sub: SubState, e.g. running.
        hash: of the unit file on that machine, empty where there is none.
        reason: why it does not run, where something is wrong.
        launched: it was started by the agent, and the start has come to its end.
    """

    load: str
    active: str
    sub: str
    hash: str = ""
    reason: str = ""
    launched: bool = False

    def encode(self) -> str:
        """The JSON under the state key."""
        return _dump(
            systemdLoadState=self.load,
            systemdActiveState=self.active,
            systemdSubState=self.sub,
            hash=self.hash,
            reason=self.reason,
            launched=self.launched,
        )

    @classmethod
    def decode(cls, value: bytes) -> "StateRecord":
        """Read what `encode` wrote; raises RecordError."""
        data = _load(value)
        return cls(
            _text(data, "systemdLoadState"),
            _text(data, "systemdActiveState"),
            _text(data, "systemdSubState"),
            _text(data, "hash"),
            _text(data, "reason"),
            data.get("launched") is True,
        )


@dataclass(frozen=True, slots=True)
class LeaderRecord:
    """The engine that decides.

    Attributes:
        machine_id: where it runs.
        hold: why it does not move units at the moment, empty where it does.
    """

    machine_id: str
    hold: str = ""

    def encode(self) -> str:
        """The JSON under the leader key."""
        return _dump(machineID=self.machine_id, hold=self.hold)

    @classmethod
    def decode(cls, value: bytes) -> "LeaderRecord":
        """Read what `encode` wrote; raises RecordError."""
        data = _load(value)
        return cls(_text(data, "machineID"), _text(data, "hold"))


def machine_key(machine_id: str) -> str:
    """The key of a machine's presence."""
    return MACHINES + machine_id


def unit_key(name: str) -> str:
    """The key of a unit's desired state."""
    return UNITS + name


def schedule_key(machine_id: str, name: str) -> str:
    """The key of an instruction to a machine."""
    return f"{SCHEDULE}{machine_id}/{name}"


def state_key(machine_id: str, name: str) -> str:
    """The key of a machine's report of a unit."""
    return f"{STATES}{machine_id}/{name}"


def _dump(**fields: object) -> str:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def _load(value: bytes) -> dict[str, Any]:
    try:
        data = json.loads(value)
    except ValueError as error:
        raise RecordError(f"value is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise RecordError("value is not a JSON object")
    return data


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name, "")
    if not isinstance(value, str):
        raise RecordError(f"{name} is not a string")
    return value


def _desired(data: dict[str, Any]) -> DesiredState:
    try:
        return DesiredState(data.get("desiredState", ""))
    except ValueError as error:
        raise RecordError("desiredState is not inactive, loaded or launched") from error
