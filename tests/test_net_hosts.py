"""The overlay on real kernels: namespaces as hosts, netd in each, a real store of each kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from net_site import NetSite, why_not


@pytest.fixture
def net_site(tmp_path: Path, store_endpoint: str) -> Iterator[NetSite]:
    """A bridge and a store, without hosts yet."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    site = NetSite(tmp_path, store_endpoint)
    try:
        yield site
    finally:
        site.close()


def test_two_hosts_reach_each_other_by_vxlan(net_site: NetSite) -> None:
    first, second = net_site.add(2)
    first.start()
    first.wait("waiting", lambda status: "configuration" in status["detail"])
    net_site.configure("vxlan")
    second.start()
    for host in (first, second):
        host.wait_peers(1)
    assert first.ping(second)
    assert second.ping(first)
