"""Hosts of `trimaran up` that come back under another address, one after the other."""

from functools import partial

from conftest import HostStarter
from hosts import Host
from test_up import log_of
from test_up_cluster import await_true, await_voters, begin, get, put, status


def move(host: Host, number: int) -> str:
    """Give a host another address, and its service the words that go with it."""
    address = f"10.77.0.{number}"
    before = host.address
    host.run("systemctl", "stop", "trimaran")
    host.run("ip", "address", "del", f"{before}/24", "dev", "eth0")
    host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    host.run("ip", "route", "replace", "default", "via", host.site.address)
    host.address = address
    unit = host.path("/etc/systemd/system/trimaran.service").read_text()
    host.write_unit("trimaran.service", unit.replace(f"--listen {before}", f"--listen {address}"))
    host.run("systemctl", "start", "trimaran")
    return address


def peers_of(host: Host) -> str:
    """The members as the store lists them."""
    return host.ask("trimaran", "member", "list")


def knows(host: Host, url: str) -> bool:
    """Whether a member is listed with a URL."""
    return url in peers_of(host)


def test_hosts_get_other_addresses(hosts: HostStarter) -> None:
    machines = hosts(4)
    begin(machines)
    first, second, third, fourth = machines
    await_voters(fourth, "host1", "host2", "host3")
    put(first, "/kept", "yes")
    before = {row["name"]: row["id"] for row in status(first)}
    for number, host in ((33, third), (44, fourth), (11, first)):
        address = move(host, number)
        assert "is up" in log_of(host).rsplit("ready:", 1)[-1]
        await_voters(second, "host1", "host2", "host3")
        if host is not fourth:
            await_true(second, "told", partial(knows, second, f"https://{address}:2380"))
        for other in machines:
            put(other, "/from", other.name)
            assert get(other, "/kept") == "yes"
    assert {row["name"]: row["id"] for row in status(first)} == before
    assert "10.77.0.1:" not in peers_of(first)
    assert "10.77.0.3:" not in peers_of(first)
    # Everybody finds everybody at the new addresses after a restart.
    for host in machines:
        host.run("systemctl", "restart", "trimaran")
    await_voters(fourth, "host1", "host2", "host3")
    # A new host joins by what a new token says.
    token = first.ask("trimaran", "token", "create")
    assert token
    assert get(fourth, "/from") == "host4"
