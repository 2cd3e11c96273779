"""When an absent machine counts as lost, so that its units may start elsewhere.

One machine whose presence runs out while everything else is well is lost at once. But presence
also runs out when the store was away, and then most machines are alive and come back within
seconds; moving their units would turn a short outage into a restart of everything. So absence
counts at once only if it was seen to happen under a steady store; otherwise after a settle period.
And when many machines vanish close together, a brake holds all of them for a while: it is likelier
that the network or the store failed than that they all did.
"""

from dataclasses import dataclass
from typing import Final

SETTLE_S: Final = 15.0
BRAKE_S: Final = 30.0
# Of the machines that were there; but one may always be lost without the brake.
BRAKE_SHARE: Final = 1 / 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge says now.

    Attributes:
        lost: absent machines whose units may be moved.
        hold: why other absent machines are not lost yet, empty where there are none.
        wake_s: the time at which to ask again, None where only an event changes the answer.
    """

    lost: frozenset[str]
    hold: str = ""
    wake_s: float | None = None


class LossJudge:
    """Follows presence. Times are seconds of one monotonic clock."""

    def __init__(self, settle_s: float = SETTLE_S, brake_s: float = BRAKE_S) -> None:
        """Start knowing nothing.

        Args:
            settle_s: how long an absence that was not seen to begin must last.
            brake_s: how long the vanishing of many machines holds, counted from the last one.
        """
        self._settle_s = settle_s
        self._brake_s = brake_s
        self._present: set[str] = set()
        # Machine -> (when it was first found absent, when it may be called lost).
        self._absent: dict[str, tuple[float, float]] = {}
        self._unsteady_until_s = float("-inf")

    def unsteady(self, now_s: float) -> None:
        """The store was out of reach, or may have been: absences from here on must settle.

        Args:
            now_s: when it is, or was last, so.
        """
        self._unsteady_until_s = max(self._unsteady_until_s, now_s + self._settle_s)
        release_s = now_s + self._settle_s
        for machine, (since_s, due_s) in self._absent.items():
            if due_s > now_s:
                self._absent[machine] = (since_s, max(due_s, release_s))

    def appeared(self, machine_id: str) -> None:
        """A machine is present."""
        self._present.add(machine_id)
        self._absent.pop(machine_id, None)

    def vanished(self, machine_id: str, now_s: float) -> None:
        """The presence of a machine ended, seen as it happened."""
        if machine_id not in self._present:
            return
        self._present.discard(machine_id)
        self._absent[machine_id] = (now_s, max(now_s, self._unsteady_until_s))

    def reset(self, present: set[str], now_s: float) -> None:
        """Presence read anew, after events may have been missed.

        Args:
            present: the machines that are there.
            now_s: the time.
        """
        for machine in self._present - present:
            self._absent[machine] = (now_s, now_s + self._settle_s)
        for machine in present:
            self._absent.pop(machine, None)
        self._present = set(present)

    def judge(self, needed: set[str], now_s: float) -> Verdict:
        """Say which of the machines with units are lost.

        Args:
            needed: machines that the schedule names.
            now_s: the time.

        Returns:
            the verdict.
        """
        for machine in needed - self._present - self._absent.keys():
            self._absent[machine] = (now_s, now_s + self._settle_s)
        absent = {machine: self._absent[machine] for machine in needed - self._present}
        brake_until_s = self._brake(now_s)
        releases = {
            machine: max(due_s, brake_until_s if since_s + self._brake_s > now_s else due_s)
            for machine, (since_s, due_s) in absent.items()
        }
        held = {machine: due_s for machine, due_s in releases.items() if due_s > now_s}
        lost = frozenset(releases.keys() - held.keys())
        if not held:
            return Verdict(lost)
        wake_s = min(held.values())
        cause = "many machines vanished at once" if brake_until_s > now_s else "settling"
        names = ", ".join(sorted(held)[:3]) + (", ..." if len(held) > 3 else "")
        text = f"{cause}: {len(held)} absent ({names}) not counted as lost yet"
        return Verdict(lost, text, wake_s)

    def _brake(self, now_s: float) -> float:
        """Until when the brake holds; a time that is past where it does not."""
        recent = [
            since_s for since_s, _due_s in self._absent.values() if since_s + self._brake_s > now_s
        ]
        known = len(self._present) + len(recent)
        if len(recent) <= max(1, int(known * BRAKE_SHARE)):
            return now_s
        return max(recent) + self._brake_s
