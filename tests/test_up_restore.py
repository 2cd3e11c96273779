"""Hosts that begin again with a saved snapshot, step by step as docs/operators.md tells it."""

import shlex
from pathlib import Path

import pytest

from conftest import HostStarter
from hosts import Host, HostError
from test_up import log_of, start
from test_up_cluster import (
    ALONE,
    await_true,
    await_voters,
    begin,
    folders,
    forgets,
    get,
    put,
    voters,
)

FOLDER = "/var/lib/trimaran"


def save(host: Host, path: Path) -> None:
    """Take a snapshot away from its host."""
    host.run("trimaran", "snapshot", "save", "/root/backup.snap")
    assert "backup.snap" not in host.ask("trimaran", "snapshot", "status", "/root/backup.snap")
    path.write_bytes(host.path("/root/backup.snap").read_bytes())


def restore(host: Host, name: str, backup: Path, *, check: bool = True) -> str:
    """Make a member's data of a snapshot; returns what went wrong."""
    host.path("/root/backup.snap").write_bytes(backup.read_bytes())
    url = f"https://{host.address}:2380"
    words = f"""trimaran snapshot restore /root/backup.snap --data-dir {FOLDER}/store --name {name}
        --initial-cluster {name}={url} --initial-advertise-peer-urls {url}
        --initial-cluster-token restored-1 --bump-revision 1000000 --mark-compacted"""
    return host.run(*shlex.split(words), check=check).stderr


def test_hosts_begin_again_with_a_snapshot(hosts: HostStarter, tmp_path: Path) -> None:
    """Every disk but the stores' is there: hosts stay who they are."""
    machines = hosts(3)
    begin(machines)
    first, *others = machines
    await_voters(first, "host1", "host2", "host3")
    put(first, "/kept", "yes")
    backup = tmp_path / "backup.snap"
    save(first, backup)
    put(first, "/kept", "later")
    put(first, "/lost", "yes")
    for host in machines:
        host.run("systemctl", "stop", "trimaran")

    first.run("mv", f"{FOLDER}/store", "/root/store.before")
    damaged = tmp_path / "damaged.snap"
    whole = backup.read_bytes()
    for content, said in (
        (whole[:-1000], "is cut after"),
        (whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:], "is damaged"),
        (b"SQLite format 3" + bytes(4096), "no snapshot of this store"),
    ):
        damaged.write_bytes(content)
        error = restore(first, "host1", damaged, check=False)
        assert said in error, error
        assert "nothing was changed" in error
        assert [one for one in folders(first) if one.startswith("store")] == []
    restore(first, "host1", backup)
    first.run("systemctl", "start", "trimaran")
    for host in others:
        host.run("mv", f"{FOLDER}/store", "/root/store.before")
        host.run("systemctl", "start", "trimaran")
    await_voters(first, "host1", "host2", "host3")
    for host in machines:
        assert get(host, "/kept") == "yes"
        assert get(host, "/lost") == ""
        put(host, "/new", host.name)


def test_nothing_is_left_but_a_backup(hosts: HostStarter, tmp_path: Path) -> None:
    """All hosts are gone; their snapshot and one host's `cluster` folder are on another machine."""
    machines = hosts(4)
    lost, (third, fourth) = machines[:2], machines[2:]
    begin(lost)
    first = lost[0]
    await_true(first, "both", lambda: len(voters(first)) >= 1)
    put(first, "/kept", "yes")
    backup, identity = tmp_path / "backup.snap", tmp_path / "cluster.tar"
    save(first, backup)
    first.run("tar", "-C", FOLDER, "-cf", "/root/cluster.tar", "cluster")
    identity.write_bytes(first.path("/root/cluster.tar").read_bytes())
    token = first.ask("trimaran", "token", "create")
    for host in lost:
        host.power_off()

    # It has another address than before, and is the host that it was.
    third.path("/root/cluster.tar").write_bytes(identity.read_bytes())
    third.run("mkdir", "-p", FOLDER)
    third.run("tar", "-C", FOLDER, "-xf", "/root/cluster.tar")
    restore(third, "host1", backup)
    output = start(third, *ALONE, "--name", "host1", "--listen", third.address)
    assert "host1 is up" in output, output
    assert get(third, "/kept") == "yes"
    # The token was made after the snapshot: it is not known here.
    there = ("--join", third.address, "--token", token)
    assert "refuses this host" in start(fourth, *ALONE, *there)
    # The store believes for some seconds more that host2 runs, and has begun to count on it.
    await_true(third, "forgotten", lambda: forgets(third, "host2"))
    await_voters(third, "host1")
    token = third.ask("trimaran", "token", "create")
    output = start(fourth, *ALONE, "--name", "host2", "--join", token)
    assert "host2 is up" in output, output
    assert get(fourth, "/kept") == "yes"


def test_nothing_is_left_but_a_snapshot(hosts: HostStarter, tmp_path: Path) -> None:
    """All hosts are gone, and the authority with them: new ones begin a cluster with the data."""
    first, second, third = hosts(3)
    begin([first])
    put(first, "/kept", "yes")
    first.run("trimaran", "member", "scale", "5")
    backup = tmp_path / "backup.snap"
    save(first, backup)
    first.power_off()

    restore(second, "host1", backup)
    output = start(second, *ALONE, "--name", "host1", "--listen", second.address)
    assert "host1 is up" in output, output
    assert get(second, "/kept") == "yes"
    token = second.ask("trimaran", "token", "create")
    output = start(third, *ALONE, "--join", token)
    assert "host3 is up" in output, output
    await_true(second, "its settings", lambda: "5" in second.ask("trimaran", "member", "scale"))
    hosts_known = second.ask("trimaran", "kv", "get", "--prefix", "/trimaran/cluster/hosts/")
    assert first.address not in hosts_known
    second.run("systemctl", "restart", "trimaran")
    assert get(third, "/kept") == "yes"
    with pytest.raises(HostError):
        third.run("trimaran", "machine", "forget", "host1")
    assert log_of(second)
