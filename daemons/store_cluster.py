"""The Cluster service of a store member: who is in the cluster, and changes of that."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from trimaran.daemons.grpc_server import Call, GrpcServer
from trimaran.daemons.store_rpc import parse
from trimaran.store.member_keeper import MembersDone
from trimaran.wire import etcd_pb2 as pb

if TYPE_CHECKING:
    from trimaran.daemons.store_server import Stored


class ClusterMethods:
    """The Cluster service; its answers carry no revision, as in etcd."""

    def __init__(self, store: "Stored") -> None:
        self._store = store

    def register(self, server: GrpcServer) -> None:
        """Add every method to the server."""
        methods = {
            "MemberList": self.member_list,
            "MemberAdd": self.member_add,
            "MemberRemove": self.member_remove,
            "MemberUpdate": self.member_update,
            "MemberPromote": self.member_promote,
        }
        for name, method in methods.items():
            server.add_unary(f"/etcdserverpb.Cluster/{name}", method)

    def _header(self) -> pb.ResponseHeader:
        header = self._store.header()
        header.revision = 0
        return header

    def _members(self) -> list[pb.Member]:
        return self._store.node.members.table.listed()

    async def _change(self, begin: Callable[[MembersDone], None]) -> pb.Member:
        changed: pb.Member = await self._store.ask(begin)
        return changed

    async def member_list(self, data: bytes, call: Call) -> bytes:
        """List the members, on request as the leader confirms them."""
        request = parse(pb.MemberListRequest, data)
        if request.linearizable:
            await self._store.read()
        answer = pb.MemberListResponse(header=self._header(), members=self._members())
        return answer.SerializeToString()

    async def member_add(self, data: bytes, call: Call) -> bytes:
        """Add a member; its id comes from its URLs and the time."""
        request = parse(pb.MemberAddRequest, data)
        keeper = self._store.node.members
        unix_s = int(time.time())
        added = await self._change(lambda done: keeper.add(request, unix_s, done))
        answer = pb.MemberAddResponse(
            header=self._header(),
            member=pb.Member(ID=added.ID, peerURLs=added.peerURLs, isLearner=added.isLearner),
            members=self._members(),
        )
        return answer.SerializeToString()

    async def member_remove(self, data: bytes, call: Call) -> bytes:
        """Remove a member for good."""
        request = parse(pb.MemberRemoveRequest, data)
        keeper = self._store.node.members
        await self._change(lambda done: keeper.remove(request, done))
        # Where it is this one, the change itself may not come here any more.
        left = [member for member in self._members() if member.ID != request.ID]
        answer = pb.MemberRemoveResponse(header=self._header(), members=left)
        return answer.SerializeToString()

    async def member_update(self, data: bytes, call: Call) -> bytes:
        """Give a member other peer URLs."""
        request = parse(pb.MemberUpdateRequest, data)
        keeper = self._store.node.members
        await self._change(lambda done: keeper.update(request, done))
        answer = pb.MemberUpdateResponse(header=self._header(), members=self._members())
        return answer.SerializeToString()

    async def member_promote(self, data: bytes, call: Call) -> bytes:
        """Let a learner vote."""
        request = parse(pb.MemberPromoteRequest, data)
        keeper = self._store.node.members
        await self._change(lambda done: keeper.promote(request, done))
        answer = pb.MemberPromoteResponse(header=self._header(), members=self._members())
        return answer.SerializeToString()
