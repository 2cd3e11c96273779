"""A leader that is removed leaves nobody behind, however suddenly it ends."""

import pytest

from store_cluster import Cluster, why_not
from trimaran.wire import etcd_pb2 as pb

KIND = "trimaran"
ROUNDS = 3


@pytest.mark.parametrize("size", [2, 3])
def test_the_leader_is_removed_and_ends_at_once(size: int) -> None:
    reason = why_not(KIND)
    if reason:
        pytest.skip(reason)
    for _ in range(ROUNDS):
        # Not strict: the check refuses to make one member of two.
        with Cluster(KIND, size, arguments=["--strict-reconfig-check=false"]) as cluster:
            leader = cluster.leader()
            leader.call("KV/Put", pb.PutRequest(key=b"kept", value=b"yes"))
            removed = leader.status().header.member_id
            answer = leader.call("Cluster/MemberRemove", pb.MemberRemoveRequest(ID=removed))
            leader.kill()
            assert removed not in [member.ID for member in answer.members]
            for other in cluster.followers(leader):
                assert other.call("KV/Range", pb.RangeRequest(key=b"kept")).kvs[0].value == b"yes"
                other.call("KV/Put", pb.PutRequest(key=b"new", value=b"yes"))
                listed = other.call("Cluster/MemberList", pb.MemberListRequest())
                assert len(listed.members) == size - 1
