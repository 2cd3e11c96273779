"""Members killed at failpoints in a cluster of real processes under load: nothing is lost.

`tests/faults.py --scenario failpoints` does this at every place; here are some of each kind.
"""

import pytest

from store_cluster import Cluster, why_not
from store_failpoints import FLAGS, PLACES, run
from trimaran.ext import failpoint

KIND = "trimaran"
NAMES = [
    *("snapshot-send-chunk", "snapshot-receive-end", "install-rename"),
    *("state-persist-after", "membership-apply"),
]


def test_nothing_is_lost() -> None:
    reason = why_not(KIND)
    if reason:
        pytest.skip(reason)
    with Cluster(KIND, 3, arguments=FLAGS) as cluster:
        results = run(cluster, NAMES, "killed/", seed=1)
    assert [result.name for result in results] == NAMES
    for result in results:
        assert "killed" in result.notes
        print(f"{result.name}: back after {result.back_in_elections:.2f} election time-outs")


def test_every_place_has_a_way_there() -> None:
    assert list(PLACES) == list(failpoint.names())
