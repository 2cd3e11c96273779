"""Every gRPC method of the etcd v3 interface: path, messages and which sides stream.

The one table for client and server. Services: etcdserverpb.{KV, Watch, Lease, Cluster, Maintenance,
Auth}, v3lockpb.Lock, v3electionpb.Election and grpc.health.v1.Health.
"""

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message

from trimaran.wire import etcd_pb2 as pb


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the interface.

    Attributes:
        path: what goes out as HTTP/2's :path, e.g. "/etcdserverpb.KV/Put".
        request: class of the message, or of each message, that the client sends.
        response: class of the message, or of each message, that the server sends.
        client_streaming: the client sends a stream of messages.
        server_streaming: the server sends a stream of messages.
    """

    path: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool = False
    server_streaming: bool = False


def _unary(service: str, **messages: tuple[type[Message], type[Message]]) -> list[Method]:
    """List the methods of one service that take one message and answer one."""
    return [Method(f"/{service}/{name}", *pair) for name, pair in messages.items()]


_ALL: Final[list[Method]] = [
    *_unary(
        "etcdserverpb.KV",
        Range=(pb.RangeRequest, pb.RangeResponse),
        Put=(pb.PutRequest, pb.PutResponse),
        DeleteRange=(pb.DeleteRangeRequest, pb.DeleteRangeResponse),
        Txn=(pb.TxnRequest, pb.TxnResponse),
        Compact=(pb.CompactionRequest, pb.CompactionResponse),
    ),
    Method(
        "/etcdserverpb.KV/RangeStream",
        pb.RangeRequest,
        pb.RangeStreamResponse,
        server_streaming=True,
    ),
    Method(
        "/etcdserverpb.Watch/Watch",
        pb.WatchRequest,
        pb.WatchResponse,
        client_streaming=True,
        server_streaming=True,
    ),
    *_unary(
        "etcdserverpb.Lease",
        LeaseGrant=(pb.LeaseGrantRequest, pb.LeaseGrantResponse),
        LeaseRevoke=(pb.LeaseRevokeRequest, pb.LeaseRevokeResponse),
        LeaseTimeToLive=(pb.LeaseTimeToLiveRequest, pb.LeaseTimeToLiveResponse),
        LeaseLeases=(pb.LeaseLeasesRequest, pb.LeaseLeasesResponse),
    ),
    Method(
        "/etcdserverpb.Lease/LeaseKeepAlive",
        pb.LeaseKeepAliveRequest,
        pb.LeaseKeepAliveResponse,
        client_streaming=True,
        server_streaming=True,
    ),
    *_unary(
        "etcdserverpb.Cluster",
        MemberList=(pb.MemberListRequest, pb.MemberListResponse),
        MemberAdd=(pb.MemberAddRequest, pb.MemberAddResponse),
        MemberRemove=(pb.MemberRemoveRequest, pb.MemberRemoveResponse),
        MemberUpdate=(pb.MemberUpdateRequest, pb.MemberUpdateResponse),
        MemberPromote=(pb.MemberPromoteRequest, pb.MemberPromoteResponse),
    ),
    *_unary(
        "etcdserverpb.Maintenance",
        Alarm=(pb.AlarmRequest, pb.AlarmResponse),
        Status=(pb.StatusRequest, pb.StatusResponse),
        Defragment=(pb.DefragmentRequest, pb.DefragmentResponse),
        Hash=(pb.HashRequest, pb.HashResponse),
        HashKV=(pb.HashKVRequest, pb.HashKVResponse),
        MoveLeader=(pb.MoveLeaderRequest, pb.MoveLeaderResponse),
        Downgrade=(pb.DowngradeRequest, pb.DowngradeResponse),
    ),
    Method(
        "/etcdserverpb.Maintenance/Snapshot",
        pb.SnapshotRequest,
        pb.SnapshotResponse,
        server_streaming=True,
    ),
    *_unary(
        "etcdserverpb.Auth",
        AuthEnable=(pb.AuthEnableRequest, pb.AuthEnableResponse),
        AuthDisable=(pb.AuthDisableRequest, pb.AuthDisableResponse),
        AuthStatus=(pb.AuthStatusRequest, pb.AuthStatusResponse),
        Authenticate=(pb.AuthenticateRequest, pb.AuthenticateResponse),
        UserAdd=(pb.AuthUserAddRequest, pb.AuthUserAddResponse),
        UserGet=(pb.AuthUserGetRequest, pb.AuthUserGetResponse),
        UserList=(pb.AuthUserListRequest, pb.AuthUserListResponse),
        UserDelete=(pb.AuthUserDeleteRequest, pb.AuthUserDeleteResponse),
        UserChangePassword=(pb.AuthUserChangePasswordRequest, pb.AuthUserChangePasswordResponse),
        UserGrantRole=(pb.AuthUserGrantRoleRequest, pb.AuthUserGrantRoleResponse),
        UserRevokeRole=(pb.AuthUserRevokeRoleRequest, pb.AuthUserRevokeRoleResponse),
        RoleAdd=(pb.AuthRoleAddRequest, pb.AuthRoleAddResponse),
        RoleGet=(pb.AuthRoleGetRequest, pb.AuthRoleGetResponse),
        RoleList=(pb.AuthRoleListRequest, pb.AuthRoleListResponse),
        RoleDelete=(pb.AuthRoleDeleteRequest, pb.AuthRoleDeleteResponse),
        RoleGrantPermission=(
            pb.AuthRoleGrantPermissionRequest,
            pb.AuthRoleGrantPermissionResponse,
        ),
        RoleRevokePermission=(
            pb.AuthRoleRevokePermissionRequest,
            pb.AuthRoleRevokePermissionResponse,
        ),
    ),
    *_unary(
        "v3lockpb.Lock",
        Lock=(pb.LockRequest, pb.LockResponse),
        Unlock=(pb.UnlockRequest, pb.UnlockResponse),
    ),
    *_unary(
        "v3electionpb.Election",
        Campaign=(pb.CampaignRequest, pb.CampaignResponse),
        Proclaim=(pb.ProclaimRequest, pb.ProclaimResponse),
        Leader=(pb.LeaderRequest, pb.LeaderResponse),
        Resign=(pb.ResignRequest, pb.ResignResponse),
    ),
    Method(
        "/v3electionpb.Election/Observe",
        pb.LeaderRequest,
        pb.LeaderResponse,
        server_streaming=True,
    ),
    *_unary("grpc.health.v1.Health", Check=(pb.HealthCheckRequest, pb.HealthCheckResponse)),
    Method(
        "/grpc.health.v1.Health/Watch",
        pb.HealthCheckRequest,
        pb.HealthCheckResponse,
        server_streaming=True,
    ),
]

METHODS: Final[dict[str, Method]] = {method.path: method for method in _ALL}
