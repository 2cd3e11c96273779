"""The members of the store and how they are."""

from trimaran.client import results
from trimaran.client.calls import Caller
from trimaran.client.results import Member, Status
from trimaran.wire import etcd_pb2 as pb


class ClusterCalls(Caller):
    """The Cluster service and Maintenance's Status."""

    async def members(self, *, linearizable: bool = True) -> list[Member]:
        """List the members; with linearizable=False as the asked member knows them."""
        request = pb.MemberListRequest(linearizable=linearizable)
        path = "/etcdserverpb.Cluster/MemberList"
        answer = await self.call(path, request, pb.MemberListResponse, repeatable=True)
        return results.members(answer.members)

    async def status(self, endpoint: str | None = None) -> Status:
        """Ask one member how it is.

        Args:
            endpoint: one of the client's; None for whichever answers.
        """
        answer = await self.call(
            "/etcdserverpb.Maintenance/Status",
            pb.StatusRequest(),
            pb.StatusResponse,
            repeatable=True,
            endpoint=endpoint,
        )
        return results.status(answer)
