"""The store's methods that are not on the hot path: leases, members, maintenance."""

import os
import secrets
from typing import TYPE_CHECKING, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from trimaran._version import ETCD_VERSION
from trimaran.daemons.grpc_server import Call, GrpcServer
from trimaran.errors import StatusCode, StoreError, etcd_error
from trimaran.ext import member as engine
from trimaran.store.lessor import MAX_TTL_S
from trimaran.wire import etcd_pb2 as pb

if TYPE_CHECKING:
    from trimaran.daemons.store_server import Stored

LEASE_COST_BYTES: Final = 64  # as the quota counts one
ON_LEARNERS: Final = {
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Snapshot",
}

Request = TypeVar("Request", bound=Message)


def parse(kind: type[Request], data: bytes) -> Request:
    """Parse a request.

    Raises:
        StoreError: the bytes are no such message.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise StoreError(
            StatusCode.INTERNAL, f"grpc: error unmarshalling request: {error}"
        ) from None


class StoreMethods:
    """The cold methods of one member."""

    def __init__(self, store: "Stored") -> None:
        self._store = store

    def register(self, server: GrpcServer) -> None:
        """Add every method to the server, and name the services the hot path serves."""
        server.admit = self._admit
        lease, maintenance = "/etcdserverpb.Lease/", "/etcdserverpb.Maintenance/"
        server.add_service("etcdserverpb.KV")
        server.add_service("etcdserverpb.Watch")
        server.add_unary(lease + "LeaseGrant", self.lease_grant)
        server.add_unary(lease + "LeaseRevoke", self.lease_revoke)
        server.add_stream(lease + "LeaseKeepAlive", self.lease_keep_alive)
        server.add_unary(lease + "LeaseTimeToLive", self.lease_time_to_live)
        server.add_unary(lease + "LeaseLeases", self.lease_leases)
        server.add_unary(maintenance + "Status", self.status)
        server.add_unary(maintenance + "MoveLeader", self.move_leader)
        server.add_unary(maintenance + "Alarm", self.alarm)

    def _admit(self, call: Call) -> None:
        """Refuse what learners do not serve, and who asks not to be served without a leader."""
        if not call.path.startswith("/etcdserverpb."):
            return
        if self._store.node.is_learner and call.path not in ON_LEARNERS:
            raise etcd_error("LEARNER")
        if self._store.node.leader == 0 and call.metadata.get("hasleader") == "true":
            raise etcd_error("NO_LEADER")

    async def lease_grant(self, data: bytes, call: Call) -> bytes:
        """Grant a lease; id 0 asks for a fresh one, and short times are raised."""
        request = parse(pb.LeaseGrantRequest, data)
        if request.TTL > MAX_TTL_S:
            raise etcd_error("LEASE_TTL_TOO_LARGE")
        lease_id = request.ID or secrets.randbits(63) or 1
        ttl_s = max(request.TTL, self._store.minimum_ttl_s)
        grant = pb.LeaseGrantRequest(ID=lease_id, TTL=ttl_s)
        self._check_room(LEASE_COST_BYTES)
        await self._store.propose(engine.LEASE_GRANT, grant.SerializeToString())
        answer = pb.LeaseGrantResponse(header=self._store.header(), ID=lease_id, TTL=ttl_s)
        return answer.SerializeToString()

    def _check_room(self, cost_bytes: int) -> None:
        quota_bytes, member = self._store.options.quota_bytes, self._store.member
        used_bytes = member.sizes()[1] + member.pending_bytes
        if quota_bytes > 0 and used_bytes + cost_bytes >= quota_bytes:
            self._store.node.raise_no_space()
            raise etcd_error("NO_SPACE")

    async def lease_revoke(self, data: bytes, call: Call) -> bytes:
        """Revoke a lease and delete its keys."""
        request = parse(pb.LeaseRevokeRequest, data)
        await self._store.propose(engine.LEASE_REVOKE, request.SerializeToString())
        return pb.LeaseRevokeResponse(header=self._store.header()).SerializeToString()

    async def lease_keep_alive(self, call: Call) -> None:
        """Renew leases; TTL 0 answers for one that is gone."""
        async for data in call:
            request = parse(pb.LeaseKeepAliveRequest, data)
            header = self._store.header()
            ttl_s = await self._renew(request.ID)
            answer = pb.LeaseKeepAliveResponse(header=header, ID=request.ID, TTL=ttl_s)
            call.send(answer.SerializeToString())
            await call.drain()

    async def _renew(self, lease_id: int) -> int:
        ttl_s: int = await self._store.ask(
            lambda done: self._store.node.leases.renew(lease_id, done)
        )
        return ttl_s

    async def lease_time_to_live(self, data: bytes, call: Call) -> bytes:
        """Tell how long a lease has left; TTL -1 answers for one that is gone."""
        request = parse(pb.LeaseTimeToLiveRequest, data)
        known: tuple[int, int] | None = await self._store.ask(
            lambda done: self._store.node.leases.time_to_live(request.ID, done)
        )
        answer = pb.LeaseTimeToLiveResponse(header=self._store.header(), ID=request.ID, TTL=-1)
        if known is not None:
            answer.TTL, answer.grantedTTL = known
            if request.keys:
                answer.keys.extend(self._store.member.lease_keys(request.ID))
        return answer.SerializeToString()

    async def lease_leases(self, data: bytes, call: Call) -> bytes:
        """List the leases, the one that expires first at the head."""
        answer = pb.LeaseLeasesResponse(header=self._store.header())
        for lease_id in self._store.lessor.by_remaining_time():
            answer.leases.add(ID=lease_id)
        return answer.SerializeToString()

    def problems(self) -> list[str]:
        """Return the raised alarms as etcd's Status names them, and what the disk refuses."""
        alarms = [
            f"memberID:{member} alarm:{pb.AlarmType.Name(kind)} "
            for member, kind in self._store.member.alarms()
        ]
        if self._store.node.leader == 0:
            alarms.append("etcdserver: no leader")
        error = self._store.member.disk_error()
        return [*alarms, f"disk: {os.strerror(error)}"] if error else alarms

    async def status(self, data: bytes, call: Call) -> bytes:
        """Describe this member."""
        raft = self._store.member.status()
        total, in_use = self._store.member.sizes()
        answer = pb.StatusResponse(
            header=self._store.header(),
            version=ETCD_VERSION,
            dbSize=total,
            dbSizeInUse=in_use,
            leader=raft["leader"],
            raftIndex=raft["commit"],
            raftTerm=raft["term"],
            raftAppliedIndex=raft["applied"],
            isLearner=bool(raft["is_learner"]),
            errors=self.problems(),
            storageVersion=ETCD_VERSION,
            dbSizeQuota=self._store.options.quota_bytes,
            downgradeInfo=pb.DowngradeInfo(),
        )
        return answer.SerializeToString()

    async def move_leader(self, data: bytes, call: Call) -> bytes:
        """Have another member lead; only the leader itself can see to that."""
        request = parse(pb.MoveLeaderRequest, data)
        await self._store.wait(lambda done: self._store.node.move_leader(request.targetID, done))
        return pb.MoveLeaderResponse().SerializeToString()

    async def alarm(self, data: bytes, call: Call) -> bytes:
        """List, raise or clear alarms; a change answers with the alarm it changed."""
        request = parse(pb.AlarmRequest, data)
        if request.action == pb.AlarmRequest.GET:
            await self._store.read()
            changed = set(self._store.member.alarms())
        else:
            before = set(self._store.member.alarms())
            await self._store.propose(engine.ALARM, request.SerializeToString())
            after = set(self._store.member.alarms())
            changed = before ^ after
            if request.action == pb.AlarmRequest.ACTIVATE:
                changed = after & {(request.memberID, request.alarm)}
        answer = pb.AlarmResponse(header=self._store.header())
        for member, kind in sorted(changed):
            if request.alarm in (pb.NONE, kind):
                answer.alarms.add(memberID=member, alarm=pb.AlarmType.Name(kind))
        return answer.SerializeToString()
