"""The clock of leases: who expires when. Time is an argument, in seconds of any steady clock."""

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MAX_TTL_S: Final = 9_000_000_000
# A client renews at a third of the time to live, so a lease that it keeps never falls below this
# share and costs no checkpoint.
CHECKPOINT_BELOW: Final = 0.6
CHECKPOINT_STEP: Final = 0.05
CHECKPOINT_STEP_MIN_S: Final = 2.0


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    deadline: float
    recorded_s: float  # the remaining time that a new leader would find in the state


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

    def restore(self, leases: Iterable[tuple[int, int, int]], now: float, extend_s: float) -> None:
        """Begin anew, as a leader that knows of the leases what the state says.

        Args:
            leases: (id, granted time to live, remaining time as last recorded or 0), in seconds.
            now: the time.
            extend_s: given on top of the remaining time, for clients to find the leader.
        """
        self._leases.clear()
        self._queue.clear()
        self._revoking.clear()
        for lease_id, ttl_s, recorded_s in leases:
            remaining_s = recorded_s if 0 < recorded_s < ttl_s else ttl_s
            self._set(lease_id, _Lease(ttl_s, now + remaining_s + extend_s, remaining_s))

    def grant(self, lease_id: int, ttl_s: int, now: float) -> None:
        """A lease was granted."""
        self._set(lease_id, _Lease(ttl_s, now + ttl_s, ttl_s))

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
        self._set(lease_id, _Lease(lease.ttl_s, now + lease.ttl_s, lease.recorded_s))
        return lease.ttl_s

    def is_recorded_lower(self, lease_id: int) -> bool:
        """Tell whether the state holds less time than the lease gets by a renewal.

        A renewal then counts only once the state says so too: the next leader must not let the
        lease expire before its client expects it.
        """
        lease = self._leases.get(lease_id)
        return lease is not None and lease.recorded_s < lease.ttl_s

    def record(self, lease_id: int, remaining_s: float, only_lower: bool = False) -> None:
        """The state holds this remaining time, or will hold it soon where it is only lowered."""
        lease = self._leases.get(lease_id)
        if lease is not None and not (only_lower and remaining_s > lease.recorded_s):
            lease.recorded_s = remaining_s

    def checkpoints(self, now: float) -> list[tuple[int, int]]:
        """Return (id, remaining whole seconds) of leases whose recorded time is much too long.

        Rounded up: a lease may live a little longer through a change of leaders, never shorter.
        """
        due = []
        for lease_id, lease in self._leases.items():
            remaining_s = lease.deadline - now
            step_s = max(CHECKPOINT_STEP_MIN_S, lease.ttl_s * CHECKPOINT_STEP)
            if remaining_s <= 0 or remaining_s > lease.ttl_s * CHECKPOINT_BELOW:
                continue
            if lease.recorded_s - remaining_s >= step_s:
                due.append((lease_id, math.ceil(remaining_s)))
        return due

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
