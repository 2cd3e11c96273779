"""Methods of the store beside the hot path, over plain gRPC."""

import grpc
import pytest

from etcd_server import StoreServer
from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS

# What this version has. Everything else of etcd's interface answers UNIMPLEMENTED, not a stub.
SERVED = {
    *(f"/etcdserverpb.KV/{name}" for name in ("Range", "Put", "DeleteRange", "Txn", "Compact")),
    "/etcdserverpb.Watch/Watch",
    *(
        f"/etcdserverpb.Lease/Lease{name}"
        for name in ("Grant", "Revoke", "KeepAlive", "TimeToLive", "Leases")
    ),
    *(
        f"/etcdserverpb.Cluster/Member{name}"
        for name in ("List", "Add", "Remove", "Update", "Promote")
    ),
    *(
        f"/etcdserverpb.Maintenance/{name}"
        for name in ("Status", "Alarm", "Snapshot", "Hash", "HashKV", "Defragment", "MoveLeader")
    ),
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
}


@pytest.fixture(scope="module")
def channel():
    with (
        StoreServer("trimaran", name="rpc") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield channel


def call(channel, path, request):
    method = METHODS[path]
    stub = channel.unary_unary(
        path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )
    return stub(request, timeout=10)


def test_health(channel):
    path = "/grpc.health.v1.Health/Check"
    answer = call(channel, path, pb.HealthCheckRequest())
    assert answer.status == pb.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, path, pb.HealthCheckRequest(service="no.such"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("path", sorted(METHODS.keys() - SERVED))
def test_a_method_that_is_not_there_says_so(channel, path):
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, path, METHODS[path].request())
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details().startswith(("unknown service", "unknown method"))


def test_an_alarm_is_raised_and_cleared(channel):
    path = "/etcdserverpb.Maintenance/Alarm"
    member = call(channel, "/etcdserverpb.Maintenance/Status", pb.StatusRequest()).header.member_id
    raised = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=member, alarm=pb.NOSPACE)
    assert [a.memberID for a in call(channel, path, raised).alarms] == [member]
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "/etcdserverpb.KV/Put", pb.PutRequest(key=b"k", value=b"v"))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "etcdserver: mvcc: database space exceeded"
    # Reads and deletes go on, so that room can be made.
    call(channel, "/etcdserverpb.KV/DeleteRange", pb.DeleteRangeRequest(key=b"k"))
    cleared = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=member, alarm=pb.NOSPACE)
    assert [a.memberID for a in call(channel, path, cleared).alarms] == [member]
    assert not call(channel, path, pb.AlarmRequest()).alarms
    call(channel, "/etcdserverpb.KV/Put", pb.PutRequest(key=b"k", value=b"v"))
