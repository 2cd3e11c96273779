"""Power cuts, with the default settings: units move, and each is started once."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_server import missing_reason
from fleet_site import BridgeStore, Fleet
from hosts import Site, why_not
from trimaran.fleet.records import LEADER_KEY

SLEEP = "[Service]\nExecStart=/bin/sleep 1000\n"


@pytest.fixture(params=["etcd", "trimaran"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Three hosts of which the test may break some."""
    reason = why_not() or missing_reason(request.param)
    if reason:
        pytest.skip(reason)
    with Site() as site, BridgeStore(request.param, site) as store:
        fleet = Fleet(site, store)
        fleet.start(3)
        yield fleet


def test_units_of_a_dead_machine_move(
    fleet: Fleet, tmp_path: Path, record_property: "pytest.RecordProperty"
) -> None:
    leader_text = fleet.etcdctl("get", "--print-value-only", LEADER_KEY)
    # The worst case: the machine of the leading engine.
    victim = next(host for host in fleet.hosts if host.machine_id in leader_text)
    others = [host for host in fleet.hosts if host is not victim]
    (tmp_path / "hello.service").write_text(SLEEP)
    (tmp_path / "every.service").write_text(SLEEP + "[X-Fleet]\nGlobal=true\n")
    (tmp_path / "pinned.service").write_text(SLEEP + f"[X-Fleet]\nMachineID={victim.machine_id}\n")
    for host in others:
        # Ballast, so that the first unit lands on the victim.
        name = f"ballast-{host.name}.service"
        (tmp_path / name).write_text(SLEEP + f"[X-Fleet]\nMachineID={host.machine_id}\n")
    fleet.trimaran("unit", "start", *tmp_path.glob("ballast-*"))
    fleet.trimaran("unit", "start", tmp_path / "hello.service")
    assert fleet.hosts_of("hello.service") == [victim]
    fleet.trimaran("unit", "start", tmp_path / "every.service", tmp_path / "pinned.service")

    cut_s = time.monotonic()
    victim.power_off()
    fleet.wait(lambda: fleet.hosts_of("hello.service") != [], "it runs elsewhere")
    record_property("failover_s", time.monotonic() - cut_s)
    print(f"failover in {time.monotonic() - cut_s:.1f} s")

    assert len(fleet.hosts_of("hello.service")) == 1
    fleet.wait(lambda: len(fleet.machines()) == 2, "the machine is gone")
    assert fleet.hosts_of("every.service") == others
    for host in others:
        assert fleet.hosts_of(f"ballast-{host.name}.service") == [host]
    assert "not machine" in fleet.trimaran("unit", "status", "pinned", code=1)
