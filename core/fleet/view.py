"""The fleet as a person asks for it: the rows of tables, a unit's state, why it waits."""

from dataclasses import dataclass

from trimaran.fleet.cluster import Cluster, Unit
from trimaran.fleet.placement import place
from trimaran.fleet.records import DesiredState, StateRecord
from trimaran.fleet.requirements import SHORT_ID_LENGTH
from trimaran.fleet.unitfile import parse_unit_file

SHORT_HASH_LENGTH = 7


def short_id(machine_id: str, full: bool = False) -> str:
    """A machine's id as tables show it."""
    return (
        machine_id
        if full or len(machine_id) <= SHORT_ID_LENGTH
        else (machine_id[:SHORT_ID_LENGTH] + "...")
    )


def machine_label(cluster: Cluster, machine_id: str, full: bool = False) -> str:
    """A machine as `id/ip`."""
    record = cluster.machines.get(machine_id)
    ip = record.public_ip if record else ""
    return short_id(machine_id, full) + (f"/{ip}" if ip else "")


def machine_rows(cluster: Cluster, full: bool = False) -> list[dict[str, str]]:
    """The rows of `machine list`: machine, ip, metadata."""
    rows = []
    for machine_id, record in sorted(cluster.machines.items()):
        metadata = ",".join(f"{key}={value}" for key, value in sorted(record.metadata.items()))
        rows.append(
            {
                "machine": short_id(machine_id, full),
                "ip": record.public_ip or "-",
                "metadata": metadata or "-",
            }
        )
    return rows


def unit_rows(cluster: Cluster, full: bool = False) -> list[dict[str, str]]:
    """The rows of `unit list`: one for each unit and machine, and for each unit that waits."""
    rows = []
    names = {name for name, unit in cluster.units.items() if _should_show(unit)}
    for name in sorted(names | cluster.states.keys()):
        states = cluster.states.get(name, {})
        places: list[tuple[str, StateRecord | None]] = sorted(states.items())
        for machine_id, state in places or [("", None)]:
            rows.append(
                {
                    "unit": name,
                    "machine": machine_label(cluster, machine_id, full) if machine_id else "-",
                    "load": state.load if state else "-",
                    "active": state.active if state else "-",
                    "sub": state.sub if state else "-",
                    "hash": _shown_hash(state.hash, full) if state else "-",
                }
            )
    return rows


def _should_show(unit: Unit) -> bool:
    return unit.desired is not DesiredState.INACTIVE


def unit_file_rows(cluster: Cluster, full: bool = False) -> list[dict[str, str]]:
    """The rows of `unit list-files`: what was submitted, what is wanted, and where it is."""
    rows = []
    for name, unit in sorted(cluster.units.items()):
        targets = cluster.live_machines(name)
        single = not unit.requirements.is_global
        shown = targets[0] if targets and single else ""
        rows.append(
            {
                "unit": name,
                "hash": _shown_hash(unit.hash, full) or "-",
                "dstate": unit.desired.value,
                "state": current_state(cluster, name).value if single else "-",
                "target": machine_label(cluster, shown, full) if shown else "-",
                "global": "true" if unit.requirements.is_global else "false",
                "desc": "" if unit.problem else parse_unit_file(unit.text).description or "-",
            }
        )
    return rows


def _shown_hash(version: str, full: bool) -> str:
    return version if full else version[:SHORT_HASH_LENGTH]


def current_state(cluster: Cluster, name: str) -> DesiredState:
    """How far the fleet has come with a unit, whatever systemd makes of it afterwards."""
    states = cluster.states.get(name, {})
    placed = [states[machine] for machine in cluster.live_machines(name) if machine in states]
    if not placed:
        return DesiredState.INACTIVE
    if any(state.launched for state in placed):
        return DesiredState.LAUNCHED
    return DesiredState.LOADED


@dataclass(frozen=True, slots=True)
class Progress:
    """How a unit stands against what is wanted of it.

    Attributes:
        done: the fleet has done all it can.
        machines: where the unit is.
        problem: why it is not, or not well, where that is so.
        waiting: nothing is under way: only a change of the fleet or the unit helps.
    """

    done: bool
    machines: tuple[str, ...] = ()
    problem: str = ""
    waiting: bool = False


def progress(cluster: Cluster, name: str) -> Progress:
    """Compare a unit with what is wanted of it.

    Args:
        cluster: the fleet at one revision.
        name: the unit; one that was destroyed is done when no machine has it any more.

    Returns:
        the progress.
    """
    unit = cluster.units.get(name)
    if unit is None or unit.desired is DesiredState.INACTIVE:
        entries = cluster.schedule.get(name, {})
        left = sorted(machine for machine in entries if machine in cluster.machines)
        states = cluster.states.get(name, {})
        reasons = [states[machine].reason for machine in left if machine in states]
        return Progress(not left, tuple(left), "; ".join(filter(None, reasons)))
    live = cluster.live_machines(name)
    targets = [machine for machine in live if machine in cluster.machines]
    reason = waiting_reason(cluster, unit)
    if reason or not targets:
        return Progress(False, problem=reason or "", waiting=reason != "")
    done, problems, journal = True, [], False
    for machine in targets:
        state = cluster.states.get(name, {}).get(machine)
        settled, problem = _settled(unit, state)
        done = done and settled
        if problem:
            problems.append(f"{problem} on {machine_label(cluster, machine)}")
            # What went wrong when systemd started it, only that machine's journal tells.
            journal = journal or (state is not None and state.launched and state.load == "loaded")
    if journal:
        problems.append(f"`journalctl -u {name}` there tells more")
    return Progress(done, tuple(targets), "; ".join(problems))


def _settled(unit: Unit, state: StateRecord | None) -> tuple[bool, str]:
    """Whether one machine has done its part, and what went wrong there."""
    if state is None:
        return False, ""
    if state.active == "failed" or (state.reason and state.hash != unit.hash):
        return True, state.reason or "failed"
    if state.hash != unit.hash:
        return False, ""
    if unit.desired is DesiredState.LOADED:
        return not state.launched and state.active != "deactivating", state.reason
    settled = state.launched and state.active not in ("activating", "deactivating", "reloading")
    return settled, state.reason


def waiting_reason(cluster: Cluster, unit: Unit) -> str:
    """Why a unit that should have a place has none; empty where it has or is about to get one."""
    targets = cluster.live_machines(unit.name)
    if any(machine in cluster.machines for machine in targets):
        return ""
    lost = (
        frozenset(machine for row in cluster.schedule.values() for machine in row)
        - cluster.machines.keys()
    )
    pending = place(cluster, lost).pending.get(unit.name)
    if pending is not None:
        return str(pending)
    if cluster.leader is None:
        return "no engine leads; is trimaran-fleetd running on any machine?"
    if targets and cluster.leader.hold:
        return cluster.leader.hold
    return ""
