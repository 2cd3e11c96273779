"""What must hold of raft at every moment, whoever crashes: the properties of figure 3.2 of the
thesis, and that reads see what was acknowledged.
"""

from collections.abc import Sequence
from typing import Protocol

from checkers.history import Violation

ELECTION = "election safety"
LOG_MATCHING = "log matching"
COMPLETENESS = "leader completeness"
STATE_MACHINE = "state machine safety"
COMMITMENT = "only entries of the own term are committed by counting"
MAJORITY = "what is committed is on the disks of a majority"
MONOTONIC = "durable state never goes back"
READ_INDEX = "reads see what was acknowledged"


class Log(Protocol):
    """A member's disk."""

    def has(self, index: int, term: int) -> bool:
        """Whether it holds an entry, or a snapshot that contains it."""


class RaftChecks:
    """Collects what the members of one group do, and raises `Violation` at the first contradiction.

    Attributes:
        logs: what each member has on its disk, those included whose disk is destroyed.
        commit: the highest index known to be committed.
    """

    def __init__(self) -> None:
        self.logs: dict[int, Log] = {}
        self._leaders: dict[int, int] = {}
        self._entries: dict[tuple[int, int], tuple[int, object]] = {}
        self._applied: dict[int, tuple[int, object]] = {}
        self._committed_by: dict[int, int] = {}  # the term, at the latest
        self._votes: dict[int, tuple[int, int]] = {}
        self.commit = 0

    def leads(self, member: int, term: int) -> bool:
        """A member is leader of a term (§3.4); returns whether that is news."""
        known = self._leaders.setdefault(term, member)
        if known != member:
            raise Violation(ELECTION, f"{known:x} and {member:x} both lead term {term}")
        return known == member

    def appended(self, index: int, term: int, previous_term: int, content: object) -> None:
        """A member has an entry (§3.5)."""
        found = self._entries.setdefault((index, term), (previous_term, content))
        if found != (previous_term, content):
            raise Violation(
                LOG_MATCHING,
                f"entry {index} of term {term} is {content} after an entry of term "
                f"{previous_term}, and elsewhere {found[1]} after one of term {found[0]}",
            )

    def applied(
        self, member: int, index: int, term: int, content: object, member_term: int
    ) -> None:
        """A member, in a term of its own, applies an entry (§3.6.3)."""
        self._committed_by.setdefault(index, member_term)
        found = self._applied.setdefault(index, (term, content))
        if found != (term, content):
            raise Violation(
                STATE_MACHINE,
                f"{member:x} applies {content} of term {term} as entry {index}, "
                f"and another applied {found[1]} of term {found[0]}",
            )
        self.commit = max(self.commit, index)

    def new_leader(self, member: int, term: int, log: dict[int, int]) -> None:
        """A member begins to lead with this log (§3.6.3): it must have all that is committed.

        Args:
            member, term: who, and when.
            log: term by index of what it holds, from its first entry on.
        """
        first = min(log, default=1)
        for index in range(max(first, self.commit - 200), self.commit + 1):
            entry_term = self._applied[index][0] if index in self._applied else 0
            if self._committed_by.get(index, term) < term and log.get(index) != entry_term:
                raise Violation(
                    COMPLETENESS,
                    f"{member:x} leads term {term} with {log.get(index)} as the term of entry "
                    f"{index}, which was committed with term {entry_term}",
                )

    def commits(
        self, member: int, term: int, index: int, entry_term: int, halves: Sequence[Sequence[int]]
    ) -> None:
        """A leader has found that an entry of its own term is committed (§3.6.2).

        Args:
            member, term: the leader.
            index, entry_term: of the entry.
            halves: the voters, and in a joint configuration the outgoing ones.
        """
        if entry_term != term:
            raise Violation(
                COMMITMENT,
                f"{member:x} leads term {term} and commits entry {index} of term {entry_term} "
                "by counting who has it",
            )
        for half in halves:
            having = [voter for voter in half if self.logs[voter].has(index, entry_term)]
            if half and 2 * len(having) <= len(half):
                raise Violation(
                    MAJORITY,
                    f"{member:x} commits entry {index}, which only {having} of {half} have "
                    "on their disks",
                )

    def hard_state(self, member: int, term: int, vote: int) -> None:
        """A member has stored its term and vote: one vote for a term (§3.4)."""
        known_term, known_vote = self._votes.get(member, (0, 0))
        if term < known_term or (term == known_term and known_vote not in (0, vote)):
            raise Violation(
                MONOTONIC,
                f"{member:x} stores term {term} vote {vote:x} after term {known_term} vote "
                f"{known_vote:x}",
            )
        self._votes[member] = term, vote

    def read(self, member: int, index: int, acknowledged: int) -> None:
        """A read is answered at an index; the other was acknowledged before it was asked (§6.4)."""
        if index < acknowledged:
            raise Violation(
                READ_INDEX,
                f"{member:x} answers a read at {index} after {acknowledged} was acknowledged",
            )
