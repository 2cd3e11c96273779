"""What must hold of whole members at every moment."""

from typing import Any

from checkers.history import Violation
from simulation.raft_checks import RaftChecks

STATE_MACHINE = "state machine safety"
LEADER_COMPLETENESS = "leader completeness"
BACKWARDS = "a member's applied state never goes back while it runs"


class StoreChecks:
    """Collects what members show of themselves, and raises `Violation` at a contradiction.

    Attributes:
        raft: the same for raft.
    """

    def __init__(self) -> None:
        self.raft = RaftChecks()
        self._committed: dict[int, int] = {}
        self._revisions: dict[int, tuple[int, int]] = {}
        self._digests: dict[int, tuple[int, Any]] = {}
        self._led: dict[int, int] = {}

    def seen(self, member: int, status: dict[str, int], revision: int) -> bool:
        """A member after a turn; returns whether it has just begun to lead."""
        applied = status["applied"]
        known = self._revisions.setdefault(applied, (member, revision))
        if known[1] != revision:
            raise Violation(
                STATE_MACHINE,
                f"{member:x} has revision {revision} after entry {applied}, "
                f"and {known[0]:x} has {known[1]}",
            )
        news = False
        if status["role"] == 2 and self._led.get(status["term"]) != member:
            self.raft.leads(member, status["term"])
            self._led[status["term"]] = member
            news = True
            self._check_complete(member, status)
        term, commit = status["term"], status["commit"]
        if commit > self._committed.get(term, 0):
            self._committed[term] = commit
        return news

    def _check_complete(self, member: int, status: dict[str, int]) -> None:
        """A leader has all that was committed in terms before its own (§3.6.3)."""
        for term, commit in self._committed.items():
            if term < status["term"] and commit > status["last_index"]:
                raise Violation(
                    LEADER_COMPLETENESS,
                    f"{member:x} leads term {status['term']} with entries up to "
                    f"{status['last_index']}, and {commit} was committed in term {term}",
                )

    def digest(self, member: int, applied: int, content: Any) -> None:
        """All that a member's state holds after an entry."""
        known = self._digests.setdefault(applied, (member, content))
        if known[1] != content:
            raise Violation(
                STATE_MACHINE,
                f"after entry {applied} {member:x} has\n  {content}\n"
                f"and {known[0]:x} has\n  {known[1]}",
            )
