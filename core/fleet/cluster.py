"""The fleet as the store shows it at one revision: machines, units, schedule and states."""

from dataclasses import dataclass, field
from typing import Any

from trimaran.errors import InvalidUnitError
from trimaran.fleet.names import UnitName, parse_unit_name
from trimaran.fleet.records import (
    LEADER_KEY,
    MACHINES,
    SCHEDULE,
    STATES,
    UNITS,
    DesiredState,
    LeaderRecord,
    MachineRecord,
    RecordError,
    ScheduleRecord,
    StateRecord,
    UnitRecord,
)
from trimaran.fleet.requirements import Requirements, parse_requirements
from trimaran.fleet.unitfile import parse_unit_file

NO_REQUIREMENTS = Requirements()


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of the fleet, parsed once when its record changes.

    Attributes:
        name: its name.
        text: the unit file.
        desired: what the user wants.
        hash: of the unit file.
        requirements: what it asks of a machine.
        revision: at which its record was last changed.
        problem: why it cannot be used, empty for a good unit. A unit with a problem is placed
            nowhere, and where it runs already it is left alone.
    """

    name: str
    text: str
    desired: DesiredState
    hash: str = ""
    requirements: Requirements = NO_REQUIREMENTS
    revision: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A schedule entry.

    Attributes:
        record: the instruction.
        revision: at which it was written.
    """

    record: ScheduleRecord
    revision: int

    @property
    def is_live(self) -> bool:
        """Whether the unit belongs on the machine, rather than is to be stopped there."""
        return self.record.desired is not DesiredState.INACTIVE


@dataclass(slots=True)
class Cluster:
    """A mutable mirror: feed it key-value pairs and deletions in the order of revisions.

    Attributes:
        machines: presence by machine id.
        units: by name; templates are among them.
        schedule: by unit name, then machine id.
        states: by unit name, then machine id.
        leader: the engine that decides, None while there is none.
        unreadable: key -> what is wrong with its value.
    """

    machines: dict[str, MachineRecord] = field(default_factory=dict)
    units: dict[str, Unit] = field(default_factory=dict)
    schedule: dict[str, dict[str, Entry]] = field(default_factory=dict)
    states: dict[str, dict[str, StateRecord]] = field(default_factory=dict)
    leader: LeaderRecord | None = None
    unreadable: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: bytes, revision: int) -> None:
        """Take in one key-value pair.

        Args:
            key: below the fleet's prefix; others are ignored.
            value: its JSON.
            revision: at which the key was last changed.
        """
        self.unreadable.pop(key, None)
        try:
            self._put(key, value, revision)
        except RecordError as error:
            # One bad value must not stop the fleet, nor pass for a deletion: that unit is left
            # as it is wherever it runs.
            self.unreadable[key] = str(error)
            if key.startswith(UNITS):
                name = key.removeprefix(UNITS)
                self.units[name] = Unit(
                    name, "", DesiredState.LOADED, revision=revision, problem=str(error)
                )

    def _put(self, key: str, value: bytes, revision: int) -> None:
        if key == LEADER_KEY:
            self.leader = LeaderRecord.decode(value)
        elif key.startswith(MACHINES):
            self.machines[key.removeprefix(MACHINES)] = MachineRecord.decode(value)
        elif key.startswith(UNITS):
            name = key.removeprefix(UNITS)
            self.units[name] = read_unit(name, UnitRecord.decode(value), revision)
        elif key.startswith(SCHEDULE):
            machine_id, _, name = key.removeprefix(SCHEDULE).partition("/")
            entry = Entry(ScheduleRecord.decode(value), revision)
            row = self.schedule.setdefault(name, {})
            # The leader takes its own writes in at once, before its watch brings older ones.
            if machine_id not in row or row[machine_id].revision <= revision:
                row[machine_id] = entry
        elif key.startswith(STATES):
            machine_id, _, name = key.removeprefix(STATES).partition("/")
            self.states.setdefault(name, {})[machine_id] = StateRecord.decode(value)

    def delete(self, key: str) -> None:
        """Take in the deletion of a key."""
        self.unreadable.pop(key, None)
        if key == LEADER_KEY:
            self.leader = None
        elif key.startswith(MACHINES):
            self.machines.pop(key.removeprefix(MACHINES), None)
        elif key.startswith(UNITS):
            self.units.pop(key.removeprefix(UNITS), None)
        elif key.startswith(SCHEDULE):
            _drop(self.schedule, key.removeprefix(SCHEDULE))
        elif key.startswith(STATES):
            _drop(self.states, key.removeprefix(STATES))

    def unreadable_units(self) -> dict[str, str]:
        """Units of whose schedule something cannot be read, and what: they are not decided on."""
        return {
            key.removeprefix(SCHEDULE).partition("/")[2]: f"{key}: {problem}"
            for key, problem in self.unreadable.items()
            if key.startswith(SCHEDULE)
        }

    def live_machines(self, name: str) -> list[str]:
        """The machines a unit is placed on, in order; stops under way are not among them."""
        return sorted(
            machine for machine, entry in self.schedule.get(name, {}).items() if entry.is_live
        )


def _drop(table: dict[str, dict[str, Any]], path: str) -> None:
    machine_id, _, name = path.partition("/")
    row = table.get(name)
    if row is not None:
        row.pop(machine_id, None)
        if not row:
            del table[name]


def read_unit(name: str, record: UnitRecord, revision: int) -> Unit:
    """Parse a unit's record; what is wrong with it becomes its `problem`."""
    try:
        parsed: UnitName = parse_unit_name(name)
        unit_file = parse_unit_file(record.text)
        requirements = parse_requirements(parsed, unit_file)
        if parsed.is_template and record.desired is not DesiredState.INACTIVE:
            raise InvalidUnitError(f"{name} is a template and cannot run; start an instance of it")
    except InvalidUnitError as error:
        return Unit(name, record.text, record.desired, revision=revision, problem=str(error))
    return Unit(name, record.text, record.desired, unit_file.hash, requirements, revision)
