"""Which unit runs on which machine: a pure function of units, machines and present placement.

It is incremental: a unit that may stay where it is stays, whatever the load elsewhere. A unit that
must be placed goes to the machine with the fewest units that fits, ties by machine id.

A unit leaves a machine that is present in two steps: first the instruction to stop, and once the
agent has taken that entry away, the new place; so that two copies of it never run side by side.
Only a lost machine is not waited for. Where no other machine fits, the entry on the lost machine
stays, so that the machine finds its units still its own when it comes back.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from trimaran.fleet.cluster import Cluster, Unit
from trimaran.fleet.records import DesiredState
from trimaran.fleet.requirements import Requirements, id_matches


@dataclass(frozen=True, slots=True)
class Assignment:
    """One schedule entry to write.

    Attributes:
        machine_id: whose schedule.
        desired: loaded or launched to run it, inactive to stop it.
        revision: at which the entry was last written, 0 where there must be none yet.
    """

    machine_id: str
    desired: DesiredState
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be written for one unit, all of it or nothing.

    Attributes:
        name: the unit.
        revision: of the unit's record the decision rests on, 0 where there is none.
        assignments: the entries.
    """

    name: str
    revision: int
    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class Pending:
    """Why a unit that should run has no place.

    Attributes:
        name: the unit.
        reasons: what rules a machine out -> on how many machines.
        note: what holds for the unit as a whole, empty where machines decide.
    """

    name: str
    reasons: tuple[tuple[str, int], ...] = ()
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            return self.note
        if not self.reasons:
            return "no machine is present"
        counts = "; ".join(f"{count} {reason}" for reason, count in self.reasons)
        total = sum(count for _reason, count in self.reasons)
        return f"none of {total} machine{'s' * (total != 1)} fits: {counts}"


@dataclass(slots=True)
class Plan:
    """The outcome of one decision.

    Attributes:
        changes: what to write, in an order that can be cut anywhere.
        pending: units without a place, by name.
    """

    changes: list[Change] = field(default_factory=list)
    pending: dict[str, Pending] = field(default_factory=dict)


def place(cluster: Cluster, lost: frozenset[str] = frozenset()) -> Plan:
    """Decide what must change for every unit to be where it should be.

    Args:
        cluster: the fleet at one revision.
        lost: machines that are absent and whose units may be moved. A machine that is absent but
            not lost keeps its units, and gets none.

    Returns:
        the changes and who waits for what. With an unchanged cluster that has taken the changes
        in, and whose agents have done them, the next plan has no changes.
    """
    return _Planner(cluster, lost).plan()


class _Planner:
    """One pass. `kept` grows from the placements that stay to those newly made."""

    def __init__(self, cluster: Cluster, lost: frozenset[str]) -> None:
        self.cluster = cluster
        self.lost = lost - cluster.machines.keys()
        self.kept: dict[str, set[str]] = {}
        self.on_machine: dict[str, dict[str, Unit]] = {machine: {} for machine in cluster.machines}
        # The units of a machine that have patterns themselves: all a unit without any must pass.
        self.guarded: dict[str, dict[str, Unit]] = {}
        self.by_load: list[str] | None = None
        self.assignments: dict[str, list[Assignment]] = {}
        self.result = Plan()

    def plan(self) -> Plan:
        skipped = self.cluster.unreadable_units()
        for name, note in skipped.items():
            self.result.pending[name] = Pending(name, note=note)
        names = [name for name in self._ordered() if name not in skipped]
        for name in names:
            self._keep(self.cluster.units[name])
        for name in self.cluster.schedule:
            if name not in self.cluster.units and name not in skipped:
                self._stop_everywhere(name)
        everyone = [self.cluster.units[name] for name in names]
        for unit in everyone:
            if unit.requirements.is_global and _wants_place(unit):
                self._place_global(unit)
        for unit in everyone:
            if not unit.requirements.is_global:
                self._place_single(unit)
        for name, assignments in self.assignments.items():
            known = self.cluster.units.get(name)
            if known is not None and not known.requirements.is_global:
                self.result.changes.append(Change(name, known.revision, tuple(assignments)))
                continue
            # Machines are independent here, and may be too many for one transaction.
            revision = known.revision if known else 0
            self.result.changes += [Change(name, revision, (item,)) for item in assignments]
        return self.result

    def _ordered(self) -> list[str]:
        """Units by name, but those named by MachineOf before the ones that follow them."""
        order: dict[str, None] = {}
        visited: set[str] = set()
        for name in sorted(self.cluster.units):
            stack = [name]
            while stack:
                top = stack[-1]
                if top in visited:
                    order.setdefault(stack.pop())
                    continue
                visited.add(top)
                peers = self.cluster.units[top].requirements.machine_of
                stack.extend(
                    peer for peer in peers if peer in self.cluster.units and peer not in visited
                )
        return list(order)

    # What stays.

    def _keep(self, unit: Unit) -> None:
        """Keep the entries of a unit that still hold, and order stops of the others."""
        if unit.problem and unit.desired is not DesiredState.INACTIVE:
            for machine in self.cluster.live_machines(unit.name):
                self._occupy(unit, machine)
            return
        if not _wants_place(unit):
            self._stop_everywhere(unit.name)
            return
        for machine in self.cluster.live_machines(unit.name):
            alone = unit.requirements.is_global or not self.kept.get(unit.name)
            if machine in self.lost and not unit.requirements.is_global:
                continue
            fits = machine not in self.cluster.machines or not self._obstacle(unit, machine)
            if alone and fits:
                self._occupy(unit, machine)
                self._refresh(unit, machine)
            else:
                self._assign(unit.name, machine, DesiredState.INACTIVE)
        self._stop_strays(unit)

    def _refresh(self, unit: Unit, machine: str) -> None:
        entry = self.cluster.schedule[unit.name][machine]
        record = entry.record
        if (record.hash, record.desired, record.text) != (unit.hash, unit.desired, unit.text):
            self._assign(unit.name, machine, unit.desired)

    def _stop_everywhere(self, name: str) -> None:
        for machine in self.cluster.live_machines(name):
            self._assign(name, machine, DesiredState.INACTIVE)
        if name in self.cluster.units:
            self._stop_strays(self.cluster.units[name])

    def _stop_strays(self, unit: Unit) -> None:
        """A copy that reports itself from a machine it was never or is no longer assigned to."""
        entries = self.cluster.schedule.get(unit.name, {})
        elsewhere = bool(self.kept.get(unit.name)) or unit.desired is DesiredState.INACTIVE
        if unit.requirements.is_global or not elsewhere:
            return
        for machine in sorted(self.cluster.states.get(unit.name, {})):
            if machine not in entries and machine in self.cluster.machines:
                self._assign(unit.name, machine, DesiredState.INACTIVE)

    # New places.

    def _place_global(self, unit: Unit) -> None:
        reasons: Counter[str] = Counter()
        for machine in sorted(self.cluster.machines):
            if machine in self.kept.get(unit.name, ()):
                continue
            obstacle = self._obstacle(unit, machine) or self._stopping(unit, machine)
            if obstacle:
                reasons[obstacle] += 1
            else:
                self._occupy(unit, machine)
                self._assign(unit.name, machine, unit.desired)
        if self.kept.get(unit.name, set()).isdisjoint(self.cluster.machines):
            self.result.pending[unit.name] = Pending(unit.name, _counted(reasons))

    def _place_single(self, unit: Unit) -> None:
        if unit.problem and unit.desired is not DesiredState.INACTIVE:
            self.result.pending[unit.name] = Pending(unit.name, note=unit.problem)
            return
        if not _wants_place(unit):
            return
        old = [machine for machine in self.cluster.live_machines(unit.name) if machine in self.lost]
        if self.kept.get(unit.name):
            for machine in old:
                self._assign(unit.name, machine, DesiredState.INACTIVE)
            return
        waiting = self._unfinished_stops(unit)
        reasons: Counter[str] = Counter()
        target = None if waiting else self._least_loaded(unit, reasons)
        if target is None:
            note = f"waiting for {', '.join(waiting)} to stop its copy" if waiting else ""
            self.result.pending[unit.name] = Pending(unit.name, _counted(reasons), note)
            # Nowhere to go: the lost machine's entry stays for its return.
            for machine in old:
                self._occupy(unit, machine)
            return
        for machine in old:
            self._assign(unit.name, machine, DesiredState.INACTIVE)
        self._occupy(unit, target)
        self._assign(unit.name, target, unit.desired)

    def _unfinished_stops(self, unit: Unit) -> list[str]:
        """The machines, unless lost, that still have to stop a copy."""
        entries = self.cluster.schedule.get(unit.name, {})
        ordered = {
            assignment.machine_id
            for assignment in self.assignments.get(unit.name, ())
            if assignment.desired is DesiredState.INACTIVE
        }
        stopping = {machine for machine, entry in entries.items() if not entry.is_live} | ordered
        return sorted(stopping - self.lost)

    def _least_loaded(self, unit: Unit, reasons: Counter[str]) -> str | None:
        """The first machine by load and id that fits; counts in `reasons` why others do not."""
        if self.by_load is None:
            loads = self.on_machine
            self.by_load = sorted(loads, key=lambda machine: (len(loads[machine]), machine))
        for machine in self.by_load:
            obstacle = self._obstacle(unit, machine)
            if not obstacle:
                return machine
            reasons[obstacle] += 1
        return None

    # Tests of one machine.

    def _obstacle(self, unit: Unit, machine: str) -> str:
        """Why a present machine cannot run a unit, empty where it can."""
        requirements = unit.requirements
        record = self.cluster.machines[machine]
        return (
            _identity_obstacle(requirements, machine)
            or _metadata_obstacle(requirements, record.metadata)
            or self._peer_obstacle(unit, machine)
            or self._conflict_obstacle(unit, machine)
        )

    def _peer_obstacle(self, unit: Unit, machine: str) -> str:
        for peer in unit.requirements.machine_of:
            if machine not in self.kept.get(peer, ()):
                known = self.cluster.units.get(peer)
                if known is None:
                    return f"without {peer}, which MachineOf names and nobody has submitted"
                if not _wants_place(known):
                    return f"without {peer}, which MachineOf names and which is not loaded"
                return f"without {peer}, which MachineOf names"
        return ""

    def _conflict_obstacle(self, unit: Unit, machine: str) -> str:
        if unit.requirements.conflicts:
            others = self.on_machine[machine]
        else:
            others = self.guarded.get(machine, {})
        for name, other in others.items():
            if name != unit.name and (
                unit.requirements.conflicts_with(name)
                or other.requirements.conflicts_with(unit.name)
            ):
                return f"in conflict with {name}"
        return ""

    def _stopping(self, unit: Unit, machine: str) -> str:
        entry = self.cluster.schedule.get(unit.name, {}).get(machine)
        ordered = any(
            assignment.machine_id == machine for assignment in self.assignments.get(unit.name, ())
        )
        return "still stopping it" if entry is not None or ordered else ""

    # Bookkeeping.

    def _occupy(self, unit: Unit, machine: str) -> None:
        self.kept.setdefault(unit.name, set()).add(machine)
        if machine in self.on_machine:
            self.by_load = None
            self.on_machine[machine][unit.name] = unit
            if unit.requirements.conflicts:
                self.guarded.setdefault(machine, {})[unit.name] = unit

    def _assign(self, name: str, machine: str, desired: DesiredState) -> None:
        entry = self.cluster.schedule.get(name, {}).get(machine)
        revision = entry.revision if entry else 0
        self.assignments.setdefault(name, []).append(Assignment(machine, desired, revision))


def _wants_place(unit: Unit) -> bool:
    return unit.desired is not DesiredState.INACTIVE and not unit.problem


def _identity_obstacle(requirements: Requirements, machine: str) -> str:
    wanted = requirements.machine_id
    if wanted is not None and not id_matches(wanted, machine):
        return f"not machine {wanted}"
    return ""


def _metadata_obstacle(requirements: Requirements, metadata: Mapping[str, str]) -> str:
    for key, values in requirements.metadata.items():
        if metadata.get(key) not in values:
            return f"without metadata {key}={'|'.join(sorted(values))}"
    return ""


def _counted(reasons: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
