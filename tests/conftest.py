"""Fixtures every test may use."""

from collections.abc import Callable, Iterator

import pytest
from hosts import Host, Site, why_not

HostStarter = Callable[[int], list[Host]]


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
