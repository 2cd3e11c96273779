"""The clock of leases: who expires when. Time is an argument, in seconds of any steady clock."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MAX_TTL_S: Final = 9_000_000_000


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    deadline: float


def minimum_ttl_s(election_timeout_ms: int) -> int:
    """Return the least time to live a lease gets: one and a half election time-outs, rounded up.

    A shorter one could expire while a new leader is being elected.
    """
    return -(-3 * election_timeout_ms // 2000)


class Lessor:
    """Deadlines of granted leases.

    An expired lease stays known until its revocation is applied, but can no longer be renewed: a
    key may vanish late, never come back.
    """

    def __init__(self) -> None:
        self._leases: dict[int, _Lease] = {}
        # (deadline, id); rows whose deadline is no longer the lease's are skipped.
        self._queue: list[tuple[float, int]] = []
        self._revoking: set[int] = set()

    def __len__(self) -> int:
        return len(self._leases)

    def restore(self, leases: Iterable[tuple[int, int]], now: float, extend_s: float) -> None:
        """Begin anew with leases whose remaining time is not known.

        Args:
            leases: (id, granted time to live in seconds).
            now: the time.
            extend_s: given on top of the full time to live, for clients to find the store again.
        """
        self._leases.clear()
        self._queue.clear()
        self._revoking.clear()
        for lease_id, ttl_s in leases:
            self._set(lease_id, _Lease(ttl_s, now + ttl_s + extend_s))

    def grant(self, lease_id: int, ttl_s: int, now: float) -> None:
        """A lease was granted."""
        self._set(lease_id, _Lease(ttl_s, now + ttl_s))

    def revoke(self, lease_id: int) -> None:
        """A lease is gone, revoked by whomever."""
        self._leases.pop(lease_id, None)
        self._revoking.discard(lease_id)

    def renew(self, lease_id: int, now: float) -> int:
        """Start a lease's time anew.

        Returns:
            its time to live in seconds; 0 where there is no such lease, or it has expired.
        """
        lease = self._leases.get(lease_id)
        if lease is None or lease.deadline <= now or lease_id in self._revoking:
            return 0
        self._set(lease_id, _Lease(lease.ttl_s, now + lease.ttl_s))
        return lease.ttl_s

    def time_to_live(self, lease_id: int, now: float) -> tuple[int, int] | None:
        """Return (remaining, granted) whole seconds, None for an unknown or expired lease."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.deadline <= now:
            return None
        return int(lease.deadline - now), lease.ttl_s

    def by_remaining_time(self) -> list[int]:
        """Return the ids of all leases, the one that expires first at the head."""
        return sorted(self._leases, key=lambda lease_id: self._leases[lease_id].deadline)

    def expired(self, now: float, limit: int) -> list[int]:
        """Take leases that have expired; each is returned once, to be revoked.

        Args:
            now: the time.
            limit: how many at most.
        """
        taken: list[int] = []
        while self._queue and self._queue[0][0] <= now and len(taken) < limit:
            deadline, lease_id = heapq.heappop(self._queue)
            lease = self._leases.get(lease_id)
            if lease is None or lease.deadline != deadline or lease_id in self._revoking:
                continue
            self._revoking.add(lease_id)
            taken.append(lease_id)
        return taken

    def retry(self, lease_id: int, now: float) -> None:
        """A revocation could not be proposed: return the lease from `expired` again."""
        lease = self._leases.get(lease_id)
        if lease is not None and lease_id in self._revoking:
            self._revoking.discard(lease_id)
            heapq.heappush(self._queue, (lease.deadline, lease_id))

    def _set(self, lease_id: int, lease: _Lease) -> None:
        self._leases[lease_id] = lease
        heapq.heappush(self._queue, (lease.deadline, lease_id))
        # Renewals leave stale rows behind; rebuild before they outnumber the leases by far.
        if len(self._queue) > 64 + 4 * len(self._leases):
            self._queue = [(known.deadline, key) for key, known in self._leases.items()]
            heapq.heapify(self._queue)
