"""The members of the store: how they are, and changing who they are."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from trimaran.client import results
from trimaran.client.calls import STREAM_ERRORS, Caller, stream_error
from trimaran.client.results import Member, Status
from trimaran.errors import StoreError
from trimaran.wire import etcd_pb2 as pb

log = logging.getLogger("trimaran.client")
# How often daemons look who the members are.
FOLLOW_INTERVAL_S: Final = 10.0


class ClusterCalls(Caller):
    """The Cluster service, and of Maintenance what concerns members.

    A change of the members is sent once: where it fails as unavailable it may have taken effect,
    which `members` tells.
    """

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

    async def snapshot(self, endpoint: str | None = None) -> AsyncIterator[tuple[int, bytes]]:
        """Read the whole state of one member; the file of a backup is all blobs in order.

        Args:
            endpoint: one of the client's; None for whichever answers.

        Yields:
            how many bytes follow, and the next blob. The last blob is the SHA-256 of the rest.

        Raises:
            StoreError: the member refused or was lost; what was read is of no use.
        """
        deadline_s = time.monotonic() + self.timeout_s
        only = None if endpoint is None else self.pool.by_url(endpoint)
        target = await self.pool.acquire(deadline_s, only)
        token = await self.token(deadline_s)
        method = target.method("/etcdserverpb.Maintenance/Snapshot")
        call = method(pb.SnapshotRequest(), metadata=(("token", token),) if token else ())
        try:
            async for answer in call:
                yield answer.remaining_bytes, answer.blob
        except STREAM_ERRORS as error:
            raise stream_error(error) from None
        finally:
            call.cancel()

    async def member_add(
        self, peer_urls: Sequence[str], *, learner: bool = False
    ) -> tuple[Member, list[Member]]:
        """Add a member, which is then to be started.

        Args:
            peer_urls: where its peers will reach it.
            learner: it gets everything and has no vote, until it is promoted.

        Returns:
            the new member, and all members with it.
        """
        request = pb.MemberAddRequest(peerURLs=peer_urls, isLearner=learner)
        path = "/etcdserverpb.Cluster/MemberAdd"
        answer = await self.call(path, request, pb.MemberAddResponse)
        (added,) = results.members([answer.member])
        return added, results.members(answer.members)

    async def member_remove(self, member_id: int) -> list[Member]:
        """Remove a member for ever; gives those that remain."""
        request = pb.MemberRemoveRequest(ID=member_id)
        path = "/etcdserverpb.Cluster/MemberRemove"
        answer = await self.call(path, request, pb.MemberRemoveResponse)
        return results.members(answer.members)

    async def member_update(self, member_id: int, peer_urls: Sequence[str]) -> list[Member]:
        """Change where a member's peers reach it; gives all members."""
        request = pb.MemberUpdateRequest(ID=member_id, peerURLs=peer_urls)
        path = "/etcdserverpb.Cluster/MemberUpdate"
        answer = await self.call(path, request, pb.MemberUpdateResponse)
        return results.members(answer.members)

    async def member_promote(self, member_id: int) -> list[Member]:
        """Give a learner its vote; gives all members."""
        request = pb.MemberPromoteRequest(ID=member_id)
        path = "/etcdserverpb.Cluster/MemberPromote"
        answer = await self.call(path, request, pb.MemberPromoteResponse)
        return results.members(answer.members)

    async def move_leader(self, member_id: int, endpoint: str | None = None) -> None:
        """Hand the lead to another voter.

        Args:
            member_id: who shall lead.
            endpoint: of the member that leads; etcd takes the request there only.
        """
        request = pb.MoveLeaderRequest(targetID=member_id)
        path = "/etcdserverpb.Maintenance/MoveLeader"
        await self.call(path, request, pb.MoveLeaderResponse, endpoint=endpoint)

    async def follow_members(self, interval_s: float, prefer: str = "") -> None:
        """Keep the endpoints those of the members that vote; returns when it is cancelled.

        Args:
            interval_s: time between looks, in seconds.
            prefer: the endpoint to use first where it is one of them.
        """
        while True:
            try:
                await self.sync(prefer)
            except StoreError as error:
                log.debug("the members are not known: %s", error.message)
            await asyncio.sleep(interval_s)

    async def sync(self, prefer: str = "") -> None:
        """Make the endpoints those of the members that vote.

        Args:
            prefer: the endpoint to use first where it is one of them.

        Raises:
            StoreError: the store does not answer; the endpoints stay.
        """
        members = await self.members(linearizable=False)
        urls = [url for member in members if not member.is_learner for url in member.client_urls]
        if urls:
            self.pool.update(sorted(dict.fromkeys(urls), key=lambda url: url != prefer))
