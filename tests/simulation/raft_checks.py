"""What must hold of raft at every moment, whoever crashes: the properties of figure 3.2 of the
thesis, and that reads see what was acknowledged.
"""

from checkers.history import Violation

ELECTION = "election safety"
LOG_MATCHING = "log matching"
COMPLETENESS = "leader completeness"
STATE_MACHINE = "state machine safety"
MONOTONIC = "durable state never goes back"
READ_INDEX = "reads see what was acknowledged"


class RaftChecks:
    """Collects what the members of one group do, and raises `Violation` at the first contradiction.

    Attributes:
        commit: the highest index known to be committed.
    """

    def __init__(self) -> None:
        self._leaders: dict[int, int] = {}
        self._entries: dict[tuple[int, int], tuple[int, object]] = {}
        self._applied: dict[int, tuple[int, object]] = {}
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

    def applied(self, member: int, index: int, term: int, content: object) -> None:
        """A member applies an entry (§3.6.3)."""
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
            entry_term = self._applied.get(index, (0, None))[0]
            if entry_term > term or (entry_term and log.get(index) != entry_term):
                raise Violation(
                    COMPLETENESS,
                    f"{member:x} leads term {term} with {log.get(index)} as the term of entry "
                    f"{index}, which was committed in term {entry_term}",
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
