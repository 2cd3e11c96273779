"""What an agent does next with one unit: a pure function of its instruction and its systemd.

The caller carries the action out, looks again, and asks again until there is none. Units are
independent, so one that fails keeps no other waiting. Nothing is ever done to a unit without an
instruction in the schedule.
"""

from dataclasses import dataclass
from enum import Enum, auto

from trimaran.fleet.records import DesiredState, ScheduleRecord

RUNNING = frozenset(("active", "activating", "reloading", "deactivating", "refreshing"))


class Action(Enum):
    """One step with one unit."""

    WRITE = auto()  # the unit file, atomically
    RELOAD = auto()  # systemd's configuration; several units share one
    START = auto()
    ADOPT = auto()  # note that the unit is launched: it runs already
    STOP = auto()  # and note that it is not launched
    REMOVE = auto()  # the unit file, and systemd's memory of a failure
    CONFIRM = auto()  # the stop: take the entry out of the schedule
    REFUSE = auto()  # report the problem in `Local.problem` and leave the unit alone


@dataclass(frozen=True, slots=True)
class Local:
    """What a machine has of a unit.

    Attributes:
        file_hash: of the unit file the agent wrote, None where there is none.
        load: systemd's LoadState.
        active: systemd's ActiveState.
        sub: systemd's SubState.
        needs_reload: systemd has another version in memory than there is on disk.
        launched: the agent has started this version of the unit and not stopped it since.
        attempted: the agent has tried a start or reload for the present instruction.
        problem: why the unit cannot be run here, e.g. a file of somebody else by its name.
    """

    file_hash: str | None = None
    load: str = "not-found"
    active: str = "inactive"
    sub: str = "dead"
    needs_reload: bool = False
    launched: bool = False
    attempted: bool = False
    problem: str = ""

    @property
    def is_running(self) -> bool:
        """Whether there is something to stop."""
        return self.active in RUNNING


def next_action(entry: ScheduleRecord | None, local: Local) -> Action | None:
    """Decide one step.

    Args:
        entry: the instruction, None where there is none: then nothing is done.
        local: the machine's side.

    Returns:
        the action, None where the unit is as it should be.
    """
    if entry is None:
        return None
    if entry.desired is DesiredState.INACTIVE:
        return _take_away(local)
    if local.problem:
        return Action.REFUSE
    if local.file_hash != entry.hash:
        # The old version stops with its own ExecStop before its file goes.
        replaced = local.file_hash is not None and local.is_running
        return Action.STOP if replaced else Action.WRITE
    if local.needs_reload or (local.load == "not-found" and not local.attempted):
        return Action.RELOAD
    if entry.desired is DesiredState.LAUNCHED and not local.launched:
        # One that is on its way down is started again, which systemd queues behind the stop.
        return Action.ADOPT if local.active in RUNNING - {"deactivating"} else Action.START
    if entry.desired is DesiredState.LOADED and local.launched:
        return Action.STOP
    return None


def _take_away(local: Local) -> Action:
    if local.problem:
        return Action.CONFIRM
    if local.file_hash is None and not local.launched:
        return Action.RELOAD if local.needs_reload else Action.CONFIRM
    if local.is_running or local.launched:
        return Action.STOP
    return Action.REMOVE
