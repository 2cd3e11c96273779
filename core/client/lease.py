"""Leases: granting them, asking about them, and keeping them alive."""

import asyncio
import contextlib
import time
from typing import Any, Final, Self

import grpc
import grpc.aio

from trimaran.client.calls import STREAM_ERRORS, Caller, is_cancelled, stream_error
from trimaran.client.results import Lease, LeaseStatus
from trimaran.errors import StoreError
from trimaran.wire import etcd_pb2 as pb

_KEEP_ALIVE_PATH: Final = "/etcdserverpb.Lease/LeaseKeepAlive"


class LeaseCalls(Caller):
    """The Lease service."""

    async def lease_grant(self, ttl_s: int, lease_id: int = 0) -> Lease:
        """Make a lease.

        Args:
            ttl_s: seconds it lives after its grant and after each renewal; the store raises
                what is too short (2 s by default).
            lease_id: 0 lets the store choose.

        Raises:
            StoreError: the id is taken, or the TTL is too large.
        """
        request = pb.LeaseGrantRequest(TTL=ttl_s, ID=lease_id)
        answer = await self.call("/etcdserverpb.Lease/LeaseGrant", request, pb.LeaseGrantResponse)
        return Lease(answer.ID, answer.TTL)

    async def lease_revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys.

        Raises:
            StoreError: NOT_FOUND, there is no such lease.
        """
        request = pb.LeaseRevokeRequest(ID=lease_id)
        await self.call("/etcdserverpb.Lease/LeaseRevoke", request, pb.LeaseRevokeResponse)

    async def lease_time_to_live(self, lease_id: int, keys: bool = False) -> LeaseStatus:
        """Ask what is left of a lease; ttl_s is -1 where there is none.

        Args:
            lease_id: the lease.
            keys: list the keys that hang on it.
        """
        answer = await self.call(
            "/etcdserverpb.Lease/LeaseTimeToLive",
            pb.LeaseTimeToLiveRequest(ID=lease_id, keys=keys),
            pb.LeaseTimeToLiveResponse,
            repeatable=True,
        )
        return LeaseStatus(answer.ID, answer.TTL, answer.grantedTTL, list(answer.keys))

    async def leases(self) -> list[int]:
        """List the ids of all leases."""
        path = "/etcdserverpb.Lease/LeaseLeases"
        answer = await self.call(
            path, pb.LeaseLeasesRequest(), pb.LeaseLeasesResponse, repeatable=True
        )
        return [lease.ID for lease in answer.leases]

    def keep_alive(self, lease_id: int, ttl_s: float) -> "KeepAlive":
        """Keep a lease alive while the result is entered as a context.

        Args:
            lease_id: the lease.
            ttl_s: its TTL in seconds, as granted.
        """
        return KeepAlive(self, lease_id, ttl_s)


class KeepAlive:
    """Renews one lease in the background, a third of its TTL after each renewal.

    Leaving the context stops renewing; it does not revoke the lease.

    Attributes:
        deadline: monotonic time until which the lease certainly lives. It is counted from when
            the last confirmed renewal was sent, so it errs on the early side; before the first
            one, from entering the context.
        error: what the last attempt failed with, None while renewals work.
    """

    def __init__(self, caller: Caller, lease_id: int, ttl_s: float) -> None:
        self.lease_id = lease_id
        self.ttl_s = float(ttl_s)
        self.deadline = time.monotonic() + self.ttl_s
        self.error: StoreError | None = None
        self._caller = caller
        self._lost = asyncio.Event()
        self._renewed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        assert self._task is None, "a KeepAlive is entered once"
        self.deadline = time.monotonic() + self.ttl_s
        self._task = asyncio.create_task(self._run())
        self._caller.run_in_background(self._task)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def is_lost(self) -> bool:
        """Tell whether the lease is known to be gone."""
        return self._lost.is_set()

    async def lost(self) -> None:
        """Return when the lease is gone, or must be taken for it: the deadline passed."""
        await self._lost.wait()

    async def renewed(self) -> None:
        """Return when the first renewal is confirmed, or the lease is lost."""
        await self._renewed.wait()

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(self.ttl_s) as limit:
                await self._renew_until_gone(limit)
        except TimeoutError:
            pass
        finally:
            # Also at the end of the client: nobody renews the lease from here on.
            self._lost.set()
            self._renewed.set()

    async def _renew_until_gone(self, limit: asyncio.Timeout) -> None:
        """Renew over one stream after another; returns when the store says the lease is gone."""
        backoff = self._caller.backoff()
        while True:
            try:
                target, token, stream = await self._caller.open_stream(
                    _KEEP_ALIVE_PATH, time.monotonic() + self._attempt_timeout_s()
                )
            except StoreError as error:
                self.error = error
                await asyncio.sleep(backoff.next_s())
                continue
            try:
                while await self._renew(stream, limit):
                    self._caller.pool.succeeded(target)
                    backoff.reset()
                    await asyncio.sleep(self._until_next_renewal_s())
                return
            except STREAM_ERRORS as error:
                self.error = stream_error(error)
            except asyncio.CancelledError:
                if is_cancelled() or not self._caller.pool.is_retired(target):
                    raise
            finally:
                stream.cancel()
            if self._caller.is_token_stale(self.error):
                self._caller.forget_token(token)
            else:
                self._caller.pool.failed(target)
            await asyncio.sleep(backoff.next_s())

    def _attempt_timeout_s(self) -> float:
        """Give an endpoint that does not answer up while there is time for another one."""
        return max(0.5, self.ttl_s / 4)

    def _until_next_renewal_s(self) -> float:
        return max(0.0, self.deadline - self.ttl_s * 2 / 3 - time.monotonic())

    async def _renew(self, stream: Any, limit: asyncio.Timeout) -> bool:
        """Renew once; False says that the lease is gone."""
        sent_s = time.monotonic()
        async with asyncio.timeout(self._attempt_timeout_s()):
            await stream.write(pb.LeaseKeepAliveRequest(ID=self.lease_id))
            answer = await stream.read()
        if answer is grpc.aio.EOF:
            raise EOFError("the server ended the stream")
        if answer.TTL <= 0:
            return False
        self.ttl_s = float(answer.TTL)
        self.deadline = sent_s + self.ttl_s
        limit.reschedule(asyncio.get_running_loop().time() + self.deadline - time.monotonic())
        self.error = None
        self._renewed.set()
        return True
