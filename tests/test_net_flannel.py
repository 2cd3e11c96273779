"""A real flanneld on the same overlay, where one is installed (PATH, or FLANNELD names it)."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from net_site import PREFIX, WAIT_S, NetHost, NetSite, eventually, make_site

FLANNELD = os.environ.get("FLANNELD") or shutil.which("flanneld")
pytestmark = pytest.mark.skipif(
    FLANNELD is None, reason="no flanneld is installed; FLANNELD=/path/to/flanneld names one"
)


@pytest.fixture
def net_site(tmp_path: Path, store_endpoint: str) -> Iterator[NetSite]:
    """A bridge and a store, without hosts yet."""
    yield from make_site(tmp_path, store_endpoint)


def start_flanneld(host: NetHost) -> subprocess.Popen[bytes]:
    """Start flanneld on a host without waiting for it."""
    assert FLANNELD is not None
    log = (host.folder / "flanneld.log").open("wb")
    with log:
        return subprocess.Popen(
            host.namespace.command(
                FLANNELD,
                f"-etcd-endpoints={host.site.endpoint}",
                f"-etcd-prefix={PREFIX}",
                "-iface=eth0",
                f"-subnet-file={host.folder / 'subnet.env'}",
                *("-ip-masq=false", "-iptables-forward-rules=false", "-healthz-port=0", "-v=2"),
            ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def flannel_base(host: NetHost) -> str:
    """Wait for the subnet flanneld took, and return its base address."""

    def read() -> str:
        for line in (host.folder / "subnet.env").read_text().splitlines():
            if line.startswith("FLANNEL_SUBNET="):
                return line.partition("=")[2].split("/")[0].rsplit(".", 1)[0] + ".0"
        return ""

    path = host.folder / "subnet.env"
    try:
        return eventually(lambda: path.exists() and read(), "flanneld has a subnet") or ""
    except AssertionError as error:
        log = (host.folder / "flanneld.log").read_text()[-3000:]
        raise AssertionError(f"{error}\n{log}") from None


def ping(host: NetHost, address: str) -> bool:
    """Ping once."""
    return "1 received" in host.namespace.attempt("ping", "-c1", "-W1", address).stdout


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
def test_flanneld_and_netd_share_an_overlay(net_site: NetSite, backend: str) -> None:
    ours, theirs = net_site.add(2)
    net_site.configure(backend)
    flanneld = start_flanneld(theirs)
    try:
        base = flannel_base(theirs)
        ours.start()
        ours.wait_peers(1)
        eventually(lambda: ping(ours, base), "we reach flanneld's host")
        eventually(lambda: ping(theirs, ours.overlay_address), "flanneld's host reaches us")
        # Their host moves to our daemon: the subnet stays, and so does a vxlan device.
        links = {link["ifname"]: link["ifindex"] for link in theirs.ip("link", "show")}
        flanneld.send_signal(signal.SIGTERM)
        flanneld.wait(WAIT_S)
        theirs.start()
        theirs.wait_peers(1)
        assert theirs.overlay_address == base
        if backend == "vxlan":
            assert theirs.ip("link", "show", "flannel.1")[0]["ifindex"] == links["flannel.1"]
        eventually(lambda: ping(ours, base), "we reach the moved host")
        # And back: flanneld finds its subnet under our record.
        theirs.kill(signal.SIGTERM)
        (theirs.folder / "subnet.env").unlink()
        flanneld = start_flanneld(theirs)
        assert flannel_base(theirs) == base
        eventually(lambda: ping(ours, base), "we reach flanneld's host again")
        assert len(net_site.records()) == 2
    finally:
        flanneld.kill()
        flanneld.wait()
