"""`trimaran net` and the errors of trimaran-netd, as a person meets them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from net_site import PREFIX, NetSite, eventually, make_site

NETD = (sys.executable, "-m", "trimaran.daemons.netd")
NOWHERE = "http://127.0.0.1:1"
# Where the store's kind makes no difference, one is enough.
ONE_KIND = pytest.mark.parametrize("store_server", ["etcd"], indirect=True)


@pytest.fixture
def net_site(tmp_path: Path, store_endpoint: str) -> Iterator[NetSite]:
    """A bridge and a store, without hosts yet."""
    yield from make_site(tmp_path, store_endpoint)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_a_network_from_the_command_line(net_site: NetSite) -> None:
    host, other = net_site.add(2)
    empty = host.trimaran("net", "config", "get")
    assert empty.returncode == 1
    assert "trimaran net config set" in empty.stderr
    none = host.trimaran("net", "status", "--state-dir", str(host.folder))
    assert none.returncode == 1
    assert "trimaran up" in none.stderr

    written = host.trimaran(
        "net", "config", "set", "--network", "10.77.0.0/16", "--option", "VNI=7"
    )
    assert written.returncode == 0, written.stderr
    stored = json.loads(net_site.etcdctl("get", "--print-value-only", f"{PREFIX}/config"))
    assert stored == {"Network": "10.77.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}
    shown = host.trimaran("net", "config", "get")
    assert "network\t10.77.0.0/16" in shown.stdout
    assert "vni\t7" in shown.stdout

    for each in (host, other):
        each.start()
    host.wait_peers(1)
    status = host.trimaran("net", "status", "--state-dir", str(host.folder), "--json")
    assert status.returncode == 0
    assert json.loads(status.stdout)["subnet"] == host.subnet
    rows = json.loads(host.trimaran("net", "leases", "--json").stdout)
    assert {row["subnet"] for row in rows} == {host.subnet, other.subnet}
    assert all(0 < int(row["ttl"]) <= 600 for row in rows)

    refused = host.trimaran("net", "config", "set", "--network", "10.78.0.0/16")
    assert refused.returncode == 1
    assert "2 hosts would lose their subnets" in refused.stderr
    busy = host.trimaran("net", "teardown", "--state-dir", str(host.folder))
    assert busy.returncode == 1
    assert "stop it" in busy.stderr

    host.kill()
    assert host.trimaran("net", "status", "--state-dir", str(host.folder)).returncode == 1
    gone = host.trimaran(
        *("net", "teardown", "--state-dir", str(host.folder), "--host-id", "id-h1"),
        *("--subnet-file", str(host.folder / "subnet.env")),
    )
    assert gone.returncode == 0, gone.stderr
    assert "flannel.7" in gone.stdout
    assert not host.routes()
    assert {link["ifname"] for link in host.ip("link", "show")} == {"lo", "eth0"}
    assert not (host.folder / "subnet.env").exists()
    eventually(lambda: set(net_site.records()) == {other.overlay_key}, "the record is gone")
    other.wait_peers(0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--network", "10.0.0.0/99"), "Network"),
        (("--network", "10.0.0.0/16", "--option", "VNI=x"), "VNI must be a number"),
        (("--network", "10.0.0.0/16", "--option", "VNI"), "NAME=VALUE"),
        (("--network", "10.0.0.0/16", "--option", "VIN=7"), "vxlan has no option VIN"),
        (("--network", "10.0.0.0/16", "--subnet-len", "12"), "at least 18"),
        (("--backend", "udp"), "--network is missing"),
        ((), "either --file or --network"),
        (("--network", "10.0.0.0/16"), "trimaran up"),
    ],
)
def test_config_set_refuses(arguments: tuple[str, ...], text: str) -> None:
    result = run(
        *(sys.executable, "-m", "trimaran.daemons.cli", "--endpoints", NOWHERE, "--timeout", "1"),
        *("net", "config", "set", *arguments),
    )
    assert result.returncode != 0
    assert text in result.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--prefix", "network"), "must start with /"),
        (("--public-ip", "x"), "--public-ip"),
        (("--nonsense",), "--nonsense"),
        (("--endpoints", ","), "--endpoints is empty"),
        (("--endpoints", "ftp://x"), "ftp://x"),
        (("--cert", "/etc/hostname"), "go together"),
        (("--lease-ttl", "1"), "--lease-ttl"),
    ],
)
def test_netd_refuses_bad_options(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    result = run(*NETD, "--host-id", "x", "--state-dir", str(tmp_path / "state"), *arguments)
    assert result.returncode != 0
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_netd_without_the_right_touches_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("dropping a capability needs root")
    result = run(
        *("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", *NETD),
        *("--host-id", "x", "--state-dir", str(tmp_path / "state")),
    )
    assert result.returncode == 1
    assert "CAP_NET_ADMIN" in result.stderr
    assert not (tmp_path / "state").exists()


@ONE_KIND
def test_a_state_directory_serves_one_daemon(net_site: NetSite) -> None:
    host = net_site.add(1)[0].start()
    host.wait("waiting")
    second = run(*host.namespace.command(*NETD, "--host-id", "x", "--state-dir", str(host.folder)))
    assert second.returncode == 1
    assert "another network daemon" in second.stderr


@ONE_KIND
def test_missing_tun_is_explained(net_site: NetSite) -> None:
    net_site.configure("udp")
    (host,) = net_site.add(1)
    host.start(
        wrapper=("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net; exec "$@"')
    )
    host.wait("degraded", lambda status: "/dev/net/tun" in str(status["problems"]))
