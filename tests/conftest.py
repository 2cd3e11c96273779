"""Fixtures every test may use."""

import signal
from collections.abc import Callable, Iterator

import pytest

from etcd_server import StoreServer, missing_reason
from hosts import Host, Site, why_not

HostStarter = Callable[[int], list[Host]]

# A runner in the background of a shell starts with SIGINT ignored, and so would every program that
# the tests start and interrupt. A handler here gives them the default back.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --rewrite, after which the diff of tests/traces/ is to be read."""
    parser.addoption(
        "--rewrite", action="store_true", help="write what the traces under tests/traces/ say now"
    )


@pytest.fixture
def site() -> Iterator[Site]:
    """A bridge for test hosts, without hosts yet; skips where they cannot run."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Site() as site:
        yield site


@pytest.fixture
def hosts(site: Site) -> HostStarter:
    """Start test hosts: `first, second = hosts(2)`. They are gone when the test ends."""
    return site.start


@pytest.fixture(params=["etcd", "trimaran"])
def store_server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    """A fresh store process of each kind."""
    reason = missing_reason(request.param)
    if reason is not None:
        pytest.skip(reason)
    with StoreServer(request.param) as server:
        yield server


@pytest.fixture
def store_endpoint(store_server: StoreServer) -> str:
    """URL of a fresh store of each kind."""
    return store_server.endpoint
