"""Placement, loss and the agent's steps: tables of cases, and random fleets run to rest."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimaran.fleet import view
from trimaran.fleet.agent import Action, Local, next_action
from trimaran.fleet.cluster import Cluster
from trimaran.fleet.loss import LossJudge
from trimaran.fleet.placement import Plan, place
from trimaran.fleet.records import (
    LEADER_KEY,
    DesiredState,
    LeaderRecord,
    MachineRecord,
    ScheduleRecord,
    StateRecord,
    UnitRecord,
    machine_key,
    schedule_key,
    state_key,
    unit_key,
)

INACTIVE, LOADED, LAUNCHED = DesiredState


class Fleet:
    """A model of a whole fleet: applies plans and plays the agents."""

    def __init__(self, machines: Iterable[str] = ("a", "b", "c")) -> None:
        self.cluster = Cluster()
        self.revision = 0
        for machine in machines:
            self.machine(machine)

    def put(self, key: str, value: str) -> None:
        self.revision += 1
        self.cluster.put(key, value.encode(), self.revision)

    def machine(self, machine: str, **metadata: str) -> None:
        self.put(machine_key(machine), MachineRecord("10.0.0.1", metadata).encode())

    def cut(self, machine: str) -> None:
        """A machine goes, and with its lease its reports."""
        self.cluster.delete(machine_key(machine))
        for name in list(self.cluster.states):
            self.cluster.delete(state_key(machine, name))

    def unit(self, name: str, fleet: str = "", desired: DesiredState = LAUNCHED) -> None:
        text = "[Service]\nExecStart=/bin/true\n" + (f"[X-Fleet]\n{fleet}\n" if fleet else "")
        self.put(unit_key(name), UnitRecord(text, desired).encode())

    def drop(self, name: str) -> None:
        self.cluster.delete(unit_key(name))

    def apply(self, plan: Plan) -> None:
        for change in plan.changes:
            unit = self.cluster.units.get(change.name)
            assert change.revision == (unit.revision if unit else 0)
            for item in change.assignments:
                entry = self.cluster.schedule.get(change.name, {}).get(item.machine_id)
                assert item.revision == (entry.revision if entry else 0)
                if item.desired is INACTIVE:
                    record = ScheduleRecord("", "", INACTIVE)
                else:
                    assert unit is not None
                    record = ScheduleRecord(unit.text, unit.hash, item.desired)
                self.put(schedule_key(item.machine_id, change.name), record.encode())

    def agents(self) -> bool:
        """Every present agent does what its schedule says; whether there was anything."""
        acted = False
        for name, row in list(self.cluster.schedule.items()):
            for machine, entry in list(row.items()):
                if machine not in self.cluster.machines:
                    continue
                key = state_key(machine, name)
                if not entry.is_live:
                    self.cluster.delete(schedule_key(machine, name))
                    self.cluster.delete(key)
                    acted = True
                    continue
                launched = entry.record.desired is LAUNCHED
                active, sub = ("active", "running") if launched else ("inactive", "dead")
                state = StateRecord("loaded", active, sub, entry.record.hash, "", launched)
                if self.cluster.states.get(name, {}).get(machine) != state:
                    self.put(key, state.encode())
                    acted = True
        return acted

    def settle(self, lost: Iterable[str] = ()) -> Plan:
        """Plan and act until nothing changes."""
        for _ in range(20):
            plan = place(self.cluster, frozenset(lost))
            self.apply(plan)
            if not self.agents() and not plan.changes:
                return plan
        raise AssertionError("the fleet does not come to rest")

    def where(self) -> dict[str, str]:
        """Unit -> the machines it is on."""
        placed = {name: self.cluster.live_machines(name) for name in self.cluster.schedule}
        return {name: "".join(machines) for name, machines in sorted(placed.items()) if machines}


def test_units_go_to_the_least_loaded_machine() -> None:
    fleet = Fleet()
    for number in range(6):
        fleet.unit(f"{number}.service")
    fleet.settle()
    assert list(fleet.where().values()) == ["a", "b", "c", "a", "b", "c"]


def test_placement_is_incremental() -> None:
    fleet = Fleet(["a"])
    for number in range(4):
        fleet.unit(f"{number}.service")
    fleet.settle()
    fleet.machine("b")
    assert fleet.settle().changes == []
    fleet.unit("4.service")
    fleet.settle()
    assert fleet.where()["4.service"] == "b"
    assert set(fleet.where().values()) == {"a", "b"}


CASES = {
    "by id": ({"x.service": "MachineID=b"}, {"x.service": "b"}),
    "by metadata": ({"x.service": "MachineMetadata=disk=ssd"}, {"x.service": "c"}),
    "any of several values": (
        {"x.service": 'MachineMetadata="disk=ssd" "disk=hdd"'}, {"x.service": "b"}),
    "every key": (
        {"x.service": 'MachineMetadata="disk=hdd" "region=us"'}, {}),
    "with a peer": (
        {"a.service": "MachineOf=z.service", "z.service": "MachineID=c"},
        {"a.service": "c", "z.service": "c"}),
    "with a chain of peers": (
        {"a.service": "MachineOf=b.service", "b.service": "MachineOf=c.service",
         "c.service": "MachineID=b"},
        {"a.service": "b", "b.service": "b", "c.service": "b"}),
    "a circle of peers never starts": (
        {"a.service": "MachineOf=b.service", "b.service": "MachineOf=a.service"}, {}),
    "a peer that is nowhere": ({"a.service": "MachineOf=b.service"}, {}),
    "with a global peer": (
        {"a.service": "MachineOf=g.service", "g.service": "Global=1\nMachineMetadata=disk=ssd"},
        {"a.service": "c", "g.service": "c"}),
    "conflicts spread": (
        {f"{n}.service": "Conflicts=[0-9].service" for n in range(5)},
        {"0.service": "a", "1.service": "b", "2.service": "c"}),
    "a conflict holds both ways": (
        {"a.service": "MachineMetadata=disk=ssd\nConflicts=z.service",
         "z.service": "MachineMetadata=disk=ssd"},
        {"a.service": "c"}),
    "several patterns": (
        {"a.service": "Conflicts=b.service c.service", "b.service": "", "c.service": ""},
        {"a.service": "a", "b.service": "b", "c.service": "c"}),
    "a unit does not conflict with itself": (
        {"a.service": "Conflicts=*"}, {"a.service": "a"}),
    "global": ({"g.service": "Global=true"}, {"g.service": "abc"}),
    "global by metadata": (
        {"g.service": 'Global=true\nMachineMetadata="disk=hdd" "disk=ssd"'}, {"g.service": "bc"}),
    "globals in conflict": (
        {"g.service": "Global=true\nConflicts=h.service", "h.service": "Global=true"},
        {"g.service": "abc"}),
    "a template runs nowhere": ({"t@.service": ""}, {}),
    "instances are units": (
        {"t@1.service": "MachineMetadata=disk=%i", "t@hdd.service": "MachineMetadata=disk=%i"},
        {"t@hdd.service": "b"}),
    "a bad file runs nowhere": ({"x.service": "MachineMetadata=oops"}, {}),
    "an unknown key runs nowhere": ({"x.service": "MachineIdd=b"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_constraints(case: str) -> None:
    units, expected = CASES[case]
    fleet = Fleet(["a"])
    fleet.machine("b", disk="hdd", region="eu")
    fleet.machine("c", disk="ssd", region="us")
    for name, text in units.items():
        fleet.unit(name, text)
    plan = fleet.settle()
    assert fleet.where() == expected
    wanting = {name for name, unit in fleet.cluster.units.items() if unit.desired is not INACTIVE}
    assert set(plan.pending) == wanting - set(expected)
    assert all(str(pending) for pending in plan.pending.values())


def test_pending_says_why_with_counts() -> None:
    fleet = Fleet(["a", "b"])
    fleet.machine("c", disk="ssd")
    fleet.unit("w@1.service", "Conflicts=w@*\nMachineMetadata=disk=ssd")
    fleet.unit("w@2.service", "Conflicts=w@*\nMachineMetadata=disk=ssd")
    pending = fleet.settle().pending["w@2.service"]
    assert pending.reasons == (
        ("without metadata disk=ssd", 2),
        ("in conflict with w@1.service", 1),
    )
    assert str(pending) == (
        "none of 3 machines fits: 2 without metadata disk=ssd; 1 in conflict with w@1.service"
    )


def test_a_lost_machine_is_left_in_one_step() -> None:
    fleet = Fleet()
    fleet.unit("x.service")
    fleet.settle()
    fleet.cut("a")
    assert place(fleet.cluster).changes == []
    (change,) = place(fleet.cluster, frozenset("a")).changes
    steps = [(item.machine_id, item.desired) for item in change.assignments]
    assert steps == [("a", INACTIVE), ("b", LAUNCHED)]
    fleet.settle("a")
    # The machine comes back with its old copy, and is told to stop it; nothing moves back.
    fleet.machine("a")
    fleet.settle()
    assert fleet.where() == {"x.service": "b"}
    assert fleet.cluster.schedule["x.service"].keys() == {"b"}


def test_a_unit_with_nowhere_to_go_stays_assigned() -> None:
    fleet = Fleet(["a", "b"])
    fleet.unit("x.service", "MachineID=a")
    fleet.unit("follower.service", "MachineOf=x.service")
    fleet.settle()
    fleet.cut("a")
    plan = fleet.settle("a")
    assert fleet.where() == {"x.service": "a", "follower.service": "a"}
    assert set(plan.pending) == {"x.service", "follower.service"}
    fleet.machine("a")
    assert place(fleet.cluster).changes == []


def test_a_follower_moves_with_its_peer() -> None:
    fleet = Fleet()
    fleet.unit("ping.service")
    fleet.unit("pong.service", "MachineOf=ping.service")
    fleet.settle()
    fleet.cut("a")
    fleet.settle("a")
    assert fleet.where() == {"ping.service": "b", "pong.service": "b"}


def test_a_unit_leaves_a_present_machine_in_two_steps() -> None:
    fleet = Fleet(["a", "b"])
    fleet.unit("x.service")
    fleet.settle()
    fleet.unit("x.service", "MachineID=b")
    plan = place(fleet.cluster)
    assert [item.desired for change in plan.changes for item in change.assignments] == [INACTIVE]
    fleet.apply(plan)
    plan = place(fleet.cluster)
    assert plan.changes == []
    assert "waiting for a to stop" in str(plan.pending["x.service"])
    fleet.settle()
    assert fleet.where() == {"x.service": "b"}


def test_a_copy_nobody_ordered_is_stopped_only_where_the_unit_runs_elsewhere() -> None:
    fleet = Fleet()
    fleet.unit("x.service")
    fleet.settle()
    fleet.put(state_key("c", "x.service"), StateRecord("loaded", "active", "running").encode())
    fleet.put(state_key("c", "gone.service"), StateRecord("loaded", "active", "running").encode())
    (change,) = place(fleet.cluster).changes
    assert (change.name, change.assignments[0].machine_id) == ("x.service", "c")
    assert change.assignments[0].desired is INACTIVE


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b'{"desiredState":"up"}', b"\xff"])
def test_an_unreadable_record_leaves_its_unit_alone(value: bytes) -> None:
    fleet = Fleet()
    fleet.unit("x.service")
    fleet.settle()
    fleet.cluster.put(unit_key("x.service"), value, 99)
    plan = place(fleet.cluster)
    assert plan.changes == []
    assert fleet.where() == {"x.service": "a"}
    fleet.unit("y.service")
    fleet.settle()
    fleet.cluster.put(schedule_key("b", "y.service"), value, 100)
    plan = place(fleet.cluster)
    assert plan.changes == []
    assert "y.service" in plan.pending


def test_a_destroyed_unit_is_stopped_everywhere_and_forgotten() -> None:
    fleet = Fleet()
    fleet.unit("g.service", "Global=1")
    fleet.settle()
    fleet.cut("c")
    fleet.settle("c")
    assert fleet.where() == {"g.service": "abc"}
    fleet.drop("g.service")
    fleet.settle("c")
    assert fleet.where() == {}
    assert fleet.cluster.schedule["g.service"].keys() == {"c"}
    fleet.machine("c")
    fleet.settle()
    assert fleet.cluster.schedule == {}


def test_changed_state_and_text_are_written_in_place() -> None:
    fleet = Fleet()
    fleet.unit("x.service")
    fleet.settle()
    fleet.unit("x.service", desired=LOADED)
    fleet.settle()
    assert fleet.cluster.schedule["x.service"]["a"].record.desired is LOADED
    fleet.unit("x.service", "Conflicts=y*", LOADED)
    fleet.settle()
    assert "Conflicts" in fleet.cluster.schedule["x.service"]["a"].record.text
    fleet.unit("x.service", desired=INACTIVE)
    fleet.settle()
    assert fleet.where() == {}


UNITS = st.sampled_from(
    [
        "",
        "Conflicts=u*.service",
        "Conflicts=u1.service u2.service",
        "MachineOf=u0.service",
        "MachineOf=u1.service",
        "MachineMetadata=disk=ssd",
        'MachineMetadata="disk=ssd" "disk=hdd"',
        "Global=true",
        "Global=true\nMachineMetadata=disk=hdd",
        "MachineID=m1",
    ]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("unit"), st.integers(0, 7), UNITS, st.sampled_from(DesiredState)),
        st.tuples(st.just("drop"), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.integers(0, 4)),
        st.tuples(st.just("join"), st.integers(0, 4), st.sampled_from(["ssd", "hdd", "tape"])),
    ),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_a_random_fleet_comes_to_a_right_rest(steps: list[tuple[object, ...]]) -> None:
    fleet = Fleet(())
    for step in steps:
        match step:
            case ("unit", number, text, desired):
                fleet.unit(f"u{number}.service", str(text), DesiredState(str(desired)))
            case ("drop", number):
                fleet.drop(f"u{number}.service")
            case ("cut", number):
                fleet.cut(f"m{number}")
            case ("join", number, disk):
                fleet.machine(f"m{number}", disk=str(disk))
        absent = {f"m{number}" for number in range(5)} - fleet.cluster.machines.keys()
        plan = fleet.settle(absent)
        check_invariants(fleet.cluster, plan)


def check_invariants(cluster: Cluster, plan: Plan) -> None:
    """What must hold of every fleet at rest."""
    for name, unit in cluster.units.items():
        here = [m for m in cluster.live_machines(name) if m in cluster.machines]
        if unit.desired is INACTIVE:
            assert not here
            continue
        if unit.problem:
            # What ran before the file went bad is left as it is.
            assert name in plan.pending
            continue
        assert unit.requirements.is_global or len(here) <= 1
        assert here or name in plan.pending
        for machine in here:
            metadata = cluster.machines[machine].metadata
            wanted = unit.requirements.metadata
            assert all(metadata.get(key) in values for key, values in wanted.items())
            assert unit.requirements.machine_id in (None, machine)
            for peer in unit.requirements.machine_of:
                assert machine in cluster.live_machines(peer)
            for other in cluster.units:
                if other != name and machine in cluster.live_machines(other):
                    assert not unit.requirements.conflicts_with(other)
    assert not cluster.schedule.keys() - cluster.units.keys() or all(
        machine not in cluster.machines
        for name in cluster.schedule.keys() - cluster.units.keys()
        for machine in cluster.schedule[name]
    )


def test_a_large_fleet_is_spread_evenly() -> None:
    fleet = Fleet(f"m{number:03}" for number in range(100))
    for number in range(1000):
        fleet.unit(f"app@{number}.service", "Conflicts=app@*0.service" if number % 10 == 0 else "")
    fleet.settle()
    loads = [0] * 100
    for machines in fleet.where().values():
        loads[int(machines[1:])] += 1
    assert max(loads) - min(loads) <= 2


def test_a_global_unit_is_written_machine_by_machine() -> None:
    fleet = Fleet(f"m{number:03}" for number in range(300))
    fleet.unit("g.service", "Global=true")
    plan = place(fleet.cluster)
    assert [len(change.assignments) for change in plan.changes] == [1] * 300
    fleet.settle()
    fleet.drop("g.service")
    assert [len(change.assignments) for change in place(fleet.cluster).changes] == [1] * 300


# Loss of machines.


def judge(*present: str) -> LossJudge:
    result = LossJudge(settle_s=15, brake_s=30)
    result.reset(set(present), 0)
    return result


def test_one_machine_seen_to_vanish_is_lost_at_once() -> None:
    watcher = judge("a", "b", "c")
    watcher.vanished("a", 100)
    verdict = watcher.judge({"a", "b"}, 100)
    assert (verdict.lost, verdict.hold, verdict.wake_s) == ({"a"}, "", None)
    watcher.appeared("a")
    assert watcher.judge({"a", "b"}, 101).lost == set()


def test_an_absence_not_seen_to_begin_settles_first() -> None:
    watcher = judge("b", "c")
    verdict = watcher.judge({"a"}, 100)
    assert verdict.lost == set()
    assert "settling" in verdict.hold
    assert verdict.wake_s == 115
    assert watcher.judge({"a"}, 115).lost == {"a"}


def test_after_a_store_outage_machines_may_come_back() -> None:
    watcher = judge("a", "b", "c")
    watcher.unsteady(95)
    watcher.vanished("a", 100)
    assert watcher.judge({"a"}, 105).wake_s == 110
    watcher.appeared("a")
    watcher.vanished("b", 111)
    assert watcher.judge({"b"}, 111).lost == {"b"}


def test_an_outage_prolongs_what_is_still_settling() -> None:
    watcher = judge("b")
    watcher.judge({"a"}, 100)
    watcher.unsteady(110)
    assert watcher.judge({"a"}, 116).wake_s == 125


def test_the_brake_holds_when_many_vanish() -> None:
    watcher = judge(*"abcdefghi")
    for number, machine in enumerate("abcd"):
        watcher.vanished(machine, 100 + number)
    verdict = watcher.judge(set("abcd"), 103)
    assert verdict.lost == set()
    assert "many machines" in verdict.hold
    assert watcher.judge(set("abcd"), 133).lost == set("abcd")


def test_the_brake_lets_go_when_they_return() -> None:
    watcher = judge("a", "b", "c")
    watcher.vanished("a", 100)
    watcher.vanished("b", 100)
    assert watcher.judge({"a", "b"}, 100).lost == set()
    watcher.appeared("b")
    assert watcher.judge({"a", "b"}, 101).lost == {"a"}


# The agent's steps.

TEXT = ScheduleRecord("text", "new", LAUNCHED)
LOAD = ScheduleRecord("text", "new", LOADED)
STOP = ScheduleRecord("", "", INACTIVE)
FRESH = Local()
WRITTEN = Local(file_hash="new", load="loaded")
RUNS = Local(file_hash="new", load="loaded", active="active", sub="running", launched=True)


@pytest.mark.parametrize(
    ("entry", "local", "expected"),
    [
        (None, RUNS, None),
        (None, FRESH, None),
        (TEXT, FRESH, Action.WRITE),
        (TEXT, Local(file_hash="new"), Action.RELOAD),
        (TEXT, Local(file_hash="new", attempted=True), Action.START),
        (TEXT, WRITTEN, Action.START),
        (TEXT, RUNS, None),
        (TEXT, Local("new", "loaded", "failed", "failed", launched=True), None),
        (TEXT, Local("new", "loaded", "inactive", "dead", launched=True), None),
        (TEXT, Local("new", "loaded", "active", "running"), Action.ADOPT),
        (TEXT, Local("new", "loaded", "deactivating", "stop"), Action.START),
        (TEXT, Local("old", "loaded", "active", "running", launched=True), Action.STOP),
        (TEXT, Local("old", "loaded", "inactive", "dead"), Action.WRITE),
        (TEXT, Local("new", "loaded", needs_reload=True), Action.RELOAD),
        (TEXT, Local(problem="not ours"), Action.REFUSE),
        (LOAD, FRESH, Action.WRITE),
        (LOAD, WRITTEN, None),
        (LOAD, RUNS, Action.STOP),
        (LOAD, Local("new", "loaded", "active", "running"), None),
        (STOP, RUNS, Action.STOP),
        (STOP, Local("new", "loaded", "deactivating", "stop"), Action.STOP),
        (STOP, Local("new", "loaded", "failed", "failed"), Action.REMOVE),
        (STOP, WRITTEN, Action.REMOVE),
        (STOP, Local(load="loaded", needs_reload=True), Action.RELOAD),
        (STOP, FRESH, Action.CONFIRM),
        (STOP, Local(problem="not ours", active="active"), Action.CONFIRM),
    ],
)
def test_the_agents_next_step(
    entry: ScheduleRecord | None, local: Local, expected: Action | None
) -> None:
    assert next_action(entry, local) is expected


# What a person is shown.


def test_views_of_a_fleet() -> None:
    fleet = Fleet(["m1234567890"])
    fleet.unit("x.service")
    assert view.waiting_reason(fleet.cluster, fleet.cluster.units["x.service"]).startswith(
        "no engine leads"
    )
    fleet.put(LEADER_KEY, LeaderRecord("m1234567890").encode())
    assert not view.progress(fleet.cluster, "x.service").done
    fleet.settle()
    assert view.progress(fleet.cluster, "x.service").done
    (row,) = view.unit_rows(fleet.cluster)
    assert (row["machine"], row["active"], row["sub"]) == (
        "m1234567.../10.0.0.1", "active", "running",
    )  # fmt: skip
    (row,) = view.unit_file_rows(fleet.cluster, full=True)
    assert (row["state"], row["target"]) == ("launched", "m1234567890/10.0.0.1")
    failed = StateRecord(
        "loaded",
        "failed",
        "failed",
        fleet.cluster.units["x.service"].hash,
        "result: exit-code",
        True,
    )
    fleet.put(state_key("m1234567890", "x.service"), failed.encode())
    problem = view.progress(fleet.cluster, "x.service").problem
    assert problem.startswith("result: exit-code on m1234567.../10.0.0.1; ")
    assert "journalctl -u x.service" in problem
    fleet.cut("m1234567890")
    current = view.progress(fleet.cluster, "x.service")
    assert (current.waiting, current.problem) == (True, "no machine is present")
