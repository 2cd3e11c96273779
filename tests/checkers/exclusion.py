"""Leases live as long as promised; a lock has one holder at a time."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from checkers.history import Violation

LEASES = "a lease lives as long as promised"
LOCKS = "a lock has one holder"


@dataclass(slots=True)
class LeaseRecord:
    """What is known of one lease.

    Attributes:
        id: of the lease.
        renewals: (when the grant or keep-alive that succeeded was ASKED, TTL it was told). The time
            to live cannot have begun earlier.
        revoked_at: when somebody asked to revoke it; -1: nobody did.
        gone_at: when it was first gone on the store; -1: it never was seen gone.
    """

    id: int
    renewals: list[tuple[int, int]] = field(default_factory=list)
    revoked_at: int = -1
    gone_at: int = -1


@dataclass(slots=True, frozen=True)
class Hold:
    """One holding of a lock.

    Attributes:
        since: when the holder was told that it has the lock.
        until: when it began to give it up, or could no longer be sure of it.
    """

    name: str
    owner: str
    since: int
    until: int


def check_leases(records: Iterable[LeaseRecord], slack: int = 0) -> None:
    """Check that no lease went before its time.

    Args:
        records: one for each lease, times in the unit of the TTLs.
        slack: how much earlier is forgiven, for clocks that do not run alike.

    Raises:
        Violation: a lease expired early.
    """
    for record in records:
        if record.gone_at < 0 or 0 <= record.revoked_at <= record.gone_at:
            continue
        before = [(at, ttl) for at, ttl in record.renewals if at <= record.gone_at]
        if not before:
            continue
        deadline = max(at + ttl for at, ttl in before)
        if record.gone_at < deadline - slack:
            raise Violation(
                LEASES,
                f"lease {record.id:x} was gone at {record.gone_at}, "
                f"and had until {deadline} (slack {slack}); renewed {before[-3:]}",
            )


def check_locks(holds: Iterable[Hold]) -> None:
    """Check that the times in which a lock was held do not overlap.

    Raises:
        Violation: two holders at once.
    """
    by_name: dict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        if hold.until > hold.since:
            by_name[hold.name].append(hold)
    for name, list_ in by_name.items():
        list_.sort(key=lambda hold: hold.since)
        latest = list_[0]
        for hold in list_[1:]:
            if hold.since < latest.until and hold.owner != latest.owner:
                raise Violation(LOCKS, f"{name!r} had two holders:\n  {latest}\n  {hold}")
            if hold.until > latest.until:
                latest = hold
