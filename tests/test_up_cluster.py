"""Hosts of `trimaran up` as a cluster: members that come, go, and are replaced; who gets in."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import HostStarter
from hosts import Host, HostError
from test_up import log_of, start

TIMEOUT_S = 90
ALONE = ("--no-fleet", "--no-net")


def await_true(host: Host, what: str, condition: Callable[[], bool]) -> None:
    """Ask until a condition holds."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            print(log_of(host))
            raise AssertionError(what, status(host))
        time.sleep(0.2)


def status(host: Host) -> list[dict[str, object]]:
    """The rows of `trimaran member status`."""
    output = host.ask("trimaran", "--timeout", "3", "member", "status", "-o", "json")
    rows: list[dict[str, object]] = json.loads(output or "[]")
    return rows


def voters(host: Host) -> set[object]:
    """The members that vote and are healthy, by name."""
    return {
        row["name"]
        for row in status(host)
        if row["role"] in ("leader", "follower") and row["health"] == "healthy"
    }


def begin(hosts: list[Host], *options: str) -> str:
    """Run `trimaran up` on every host; returns the token they joined with."""
    first, *others = hosts
    start(first, *ALONE, "--listen", first.address, *options)
    token = first.ask("trimaran", "token", "create")
    for host in others:
        start(host, *ALONE, "--join", token)
        assert host.ask("systemctl", "is-active", "trimaran") == "active", log_of(host)
    return token


def await_voters(host: Host, *names: str) -> None:
    """Wait until these members vote, are healthy, and there are no others."""
    wanted = set(names)
    await_true(
        host, f"voters {names}", lambda: voters(host) == wanted and len(status(host)) == len(names)
    )


def put(host: Host, key: str, value: str) -> None:
    """Write a key."""
    host.run("trimaran", "kv", "put", key, value)


def get(host: Host, key: str) -> str:
    """Read a key."""
    return host.ask("trimaran", "kv", "get", key)


def test_members_are_removed_replaced_and_taken_back(hosts: HostStarter) -> None:
    first, second, third, fourth = machines = hosts(4)
    begin(machines, "--replace-after", "8", "--certificate-lifetime", "20")
    await_voters(fourth, "host1", "host2", "host3")
    serial = certificate(fourth)
    put(fourth, "/kept", "1")

    # An operator takes host2's member away; host4 gets one, and host2 goes on without.
    first.run("trimaran", "member", "remove", "host2")
    await_voters(first, "host1", "host3", "host4")
    await_true(second, "data aside", lambda: "store.removed" in folders(second))
    assert "ca.key" not in second.ask("ls", "/var/lib/trimaran/cluster")
    assert get(second, "/kept") == "1"
    assert "may have a member" in second.ask("trimaran", "member", "add", "host2")

    # A member that is away for too long is replaced without a word.
    third.power_off()
    await_voters(first, "host1", "host2", "host4")
    put(second, "/kept", "2")
    assert get(fourth, "/kept") == "2"

    # All of this took longer than a certificate lasts.
    await_true(fourth, "renewed", lambda: certificate(fourth) != serial)
    rejected = second.run("trimaran", "machine", "forget", "host4", check=False)
    assert "runs on host4" in rejected.stderr
    first.run("trimaran", "machine", "forget", "host3")
    hosts_left = first.ask("trimaran", "kv", "get", "--prefix", "/trimaran/cluster/hosts/")
    assert "host3" not in hosts_left


def certificate(host: Host) -> str:
    """The host's certificate."""
    return host.ask("cat", "/var/lib/trimaran/cluster/host.crt")


def folders(host: Host) -> list[str]:
    """What is in the data directory."""
    return host.ask("ls", "/var/lib/trimaran").split()


def test_all_hosts_come_back_in_any_order(hosts: HostStarter) -> None:
    machines = hosts(3)
    begin(machines)
    await_voters(machines[0], "host1", "host2", "host3")
    put(machines[1], "/kept", "yes")
    for host in machines:
        host.run("systemctl", "kill", "--signal=KILL", "trimaran")
    for host in (machines[2], machines[0], machines[1]):
        await_true(host, "ended", lambda host=host: is_down(host))  # type: ignore[misc]
        host.run("systemctl", "reset-failed", "trimaran")
        host.run("systemctl", "start", "--no-block", "trimaran")
    await_voters(machines[2], "host1", "host2", "host3")
    assert get(machines[0], "/kept") == "yes"
    for host in machines:
        host.run("systemctl", "restart", "trimaran")
        put(host, "/kept", host.name)
    assert get(machines[0], "/kept") == "host3"


def is_down(host: Host) -> bool:
    """Whether the service has ended."""
    return host.ask("systemctl", "is-active", "trimaran") != "active"


def test_a_store_that_was_lost_is_filled_again(hosts: HostStarter) -> None:
    machines = hosts(3)
    begin(machines)
    first, _, third = machines
    await_voters(first, "host1", "host2", "host3")
    put(first, "/kept", "yes")
    before = {row["name"]: row["id"] for row in status(first)}
    third.run("systemctl", "stop", "trimaran")
    third.run("rm", "-r", "/var/lib/trimaran/store")
    third.run("systemctl", "start", "trimaran")
    await_voters(first, "host1", "host2", "host3")
    after = {row["name"]: row["id"] for row in status(first)}
    assert after["host3"] != before["host3"]
    assert after["host1"] == before["host1"]


def test_one_disk_is_enough_to_begin_again(hosts: HostStarter) -> None:
    machines = hosts(3)
    begin(machines)
    first, second, third = machines
    await_voters(first, "host1", "host2", "host3")
    put(first, "/kept", "yes")
    await_true(third, "caught up", lambda: get(third, "/kept") == "yes")
    first.power_off()
    second.run("systemctl", "stop", "trimaran")
    third.run("systemctl", "stop", "trimaran")
    unit = third.path("/etc/systemd/system/trimaran.service").read_text()
    forced = unit.replace("trimaran up", "trimaran up --force-new-cluster")
    third.write_unit("trimaran.service", forced)
    third.run("systemctl", "start", "trimaran")
    await_true(third, "alone", lambda: voters(third) == {"host3"})
    third.write_unit("trimaran.service", unit)
    third.run("systemctl", "restart", "trimaran")
    assert get(third, "/kept") == "yes"
    await_true(third, "forgotten", lambda: forgets(third, "host1"))
    # Who comes back is no member any more, and gets a new one where that makes sense.
    second.run("systemctl", "start", "--no-block", "trimaran")
    await_true(second, "data aside", lambda: "store.removed" in folders(second))
    await_true(third, "host2 again", lambda: "host2" in {row["name"] for row in status(third)})
    assert get(second, "/kept") == "yes"


def test_strangers_stay_out(hosts: HostStarter, tmp_path: Path) -> None:
    first, second, third = hosts(3)
    token = begin([first, second])
    url = f"https://{first.address}:2379"
    put(first, "/secret", "x")
    for options in ((), ("--insecure-skip-tls-verify", "--insecure-transport=false")):
        plain = third.run(
            "etcdctl", f"--endpoints={url}", *options, "--dial-timeout=2s", "get", "/secret",
            check=False,
        )  # fmt: skip
        assert plain.returncode != 0
        assert plain.stdout == ""
    first.run("trimaran", "token", "revoke", token)
    assert "is revoked" in start(third, *ALONE, "--join", token)
    assert "needs a token" in start(third, *ALONE, "--join", first.address)
    assert "refused 10.77.0.3" in log_of(first)

    # Who is forgotten does not get in any more with what he has.
    way = ("env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={url}", "--dial-timeout=2s")
    folder = "/var/lib/trimaran/cluster"
    files = (f"--cacert={folder}/ca.crt", f"--cert={folder}/host.crt", f"--key={folder}/host.key")
    read = (*way, *files, "get", "/secret", "--print-value-only")
    assert second.ask(*read) == "x"
    second.run("systemctl", "kill", "--signal=KILL", "trimaran")
    second.run("systemctl", "stop", "trimaran")
    await_true(first, "forgotten", lambda: forgets(first, "host2"))
    await_true(first, "revoked", lambda: second.run(*read, check=False).returncode != 0)
    with pytest.raises(HostError):
        second.run("systemctl", "start", "trimaran")


def forgets(host: Host, name: str) -> bool:
    """Try to forget a host, which works when it has been seen to be away."""
    return host.run("trimaran", "machine", "forget", name, check=False).returncode == 0
