"""Deliberately broken variants, each of which a named checker has to catch.

An engine's own assertions may catch a mutant first; where a rule is asserted in the code as well,
the mutant lacks that assertion, so that the checkers are what is tested.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from checkers import replay
from checkers.exclusion import LEASES, LOCKS
from checkers.linearizability import CHECKER as LINEARIZABILITY
from checkers.watches import COMPLETE
from simulation import raft_checks
from simulation.library import Edit

SRC = "ext/src/"
ASSERTION = "assertion"


@dataclass(frozen=True)
class Mutant:
    """One breach of a rule.

    Attributes:
        rule: what it breaks.
        edits: how.
        checkers: at least one of these has to notice, in a bounded number of seeds.
        kind: of the seeds.
        seeds: how many to try at most.
        focus: options to set, for what is rare in ordinary seeds.
    """

    rule: str
    edits: tuple[Edit, ...]
    checkers: frozenset[str]
    kind: str = "store"
    seeds: int = 300
    focus: Mapping[str, Any] = field(default_factory=dict)


def _raft(
    rule: str, file: str, original: str, replacement: str, *checkers: str, **focus: Any
) -> Mutant:
    edit = Edit(SRC + file, original, replacement)
    return Mutant(rule, (edit,), frozenset(checkers), "raft", 1000, focus)


def _store(rule: str, path: str, original: str, replacement: str, *checkers: str) -> Mutant:
    return Mutant(rule, (Edit(path, original, replacement),), frozenset(checkers))


MUTANTS = {
    "commit-by-counting": Mutant(
        "entries of earlier terms are committed by one of the own term alone (§3.6.2)",
        (
            Edit(
                SRC + "raft_entries.c",
                "if (index <= raft->commit || index < raft->first_of_term)",
                "if (index <= raft->commit)",
            ),
            Edit(
                SRC + "raft_entries.c",
                "    assert(trimaran_raft_term_of(raft, index) == raft->term);\n    for",
                "    for",
            ),
            Edit(
                SRC + "raft_entries.c",
                "    if (first)\n        trimaran_raft_start_reads(raft);",
                "    if (first && raft->commit >= raft->first_of_term)\n"
                "        trimaran_raft_start_reads(raft);",
            ),
        ),
        frozenset({raft_checks.COMMITMENT}),
        kind="raft",
        focus={"max_message_bytes": 1},
    ),
    "vote-in-memory": _raft(
        "a vote is durable before it is sent (§3.8)",
        "raft_election.c",
        "trimaran_raft_send_durably(raft, type, message->from);",
        "trimaran_raft_send(raft, type, message->from);",
        raft_checks.ELECTION,
        raft_checks.MONOTONIC,
    ),
    "two-votes": Mutant(
        "one vote for a term (§3.4)",
        (
            Edit(
                SRC + "raft_election.c",
                "bool free = raft->vote == message->from || (raft->vote == 0 && raft->leader == 0)",
                "bool free = raft->leader == 0",
            ),
            Edit(
                SRC + "raft_election.c",
                "    assert(raft->vote == 0 || raft->vote == message->from);\n",
                "",
            ),
            Edit(
                SRC + "raft_election.c",
                "    if (raft->role == TRIMARAN_RAFT_PRE_CANDIDATE)\n"
                "        trimaran_raft_become_follower(raft, raft->term, 0);\n    assert(",
                "    if (raft->role != TRIMARAN_RAFT_FOLLOWER)\n"
                "        trimaran_raft_become_follower(raft, raft->term, 0);\n    assert(",
            ),
        ),
        frozenset({raft_checks.ELECTION, raft_checks.MONOTONIC}),
        kind="raft",
        seeds=1000,
    ),
    "vote-for-a-short-log": _raft(
        "a vote goes only to a log that has all that may be committed (§3.6.1)",
        "raft_election.c",
        "|| !free || !log_is_up_to_date(raft, message)",
        "|| !free",
        raft_checks.COMPLETENESS,
        raft_checks.STATE_MACHINE,
        ASSERTION,
    ),
    "acknowledgement-before-flush": _raft(
        "an append is acknowledged once it is durable (§3.8)",
        "raft_follower.c",
        "trimaran_raft_send_durably(raft, TRIMARAN_RAFT_APPEND_RESPONSE, to);",
        "trimaran_raft_send(raft, TRIMARAN_RAFT_APPEND_RESPONSE, to);",
        raft_checks.MAJORITY,
    ),
    "unchecked-append": Mutant(
        "entries are taken only after the one before them (§3.5)",
        (
            Edit(
                SRC + "raft_follower.c",
                "!= 0 || term != message->log_term) {\n        refuse(raft, message);",
                "!= 0) {\n        refuse(raft, message);",
            ),
        ),
        frozenset({raft_checks.LOG_MATCHING, raft_checks.STATE_MACHINE}),
        kind="raft",
        seeds=1000,
    ),
    "truncated-commit": Mutant(
        "a committed entry is never replaced",
        (
            Edit(
                SRC + "raft_follower.c",
                "if (index > raft->commit || !in_memory",
                "if (index <= raft->commit || index > raft->commit || !in_memory",
            ),
            Edit(
                SRC + "raft_election.c",
                "|| !free || !log_is_up_to_date(raft, message)",
                "|| !free",
            ),
            Edit(
                SRC + "raft_entries.c",
                "    assert(index > raft->commit);\n    assert(index > raft->applied);\n",
                "",
            ),
        ),
        frozenset({raft_checks.COMPLETENESS, raft_checks.STATE_MACHINE}),
        kind="raft",
        seeds=1000,
    ),
    "read-without-a-round": _raft(
        "a read is confirmed by a majority (§6.4)",
        "raft_read.c",
        "|| asker_is_enough(raft, request.from)) {",
        "|| asker_is_enough(raft, request.from) || raft->round > 0) {",
        raft_checks.READ_INDEX,
    ),
    "read-for-any-asker": _raft(
        "who asks for a read and its leader are a majority of three, not of five (§6.4)",
        "raft_read.c",
        "return from != raft->id && trimaran_raft_quorum_with(raft, from);",
        "return from != raft->id;",
        raft_checks.READ_INDEX,
        members=5,
        partition_ticks=8,
        wipe_ticks=0,
    ),
    "read-before-the-term": _raft(
        "a new leader reads once an entry of its term is committed (§6.4 step 1)",
        "raft_read.c",
        "return raft->role == TRIMARAN_RAFT_LEADER && raft->commit >= raft->first_of_term;",
        "return raft->role == TRIMARAN_RAFT_LEADER;",
        raft_checks.READ_INDEX,
    ),
    "lease-on-a-stopped-clock": _raft(
        "a lease ends when its time is over (§6.4.1)",
        "raft_read.c",
        "&& raft->now_us < raft->lease_until_us;",
        "&& raft->lease_until_us > 0;",
        raft_checks.READ_INDEX,
    ),
    "changes-at-once": _raft(
        "a change of the members waits for the one before it (§4.1)",
        "raft_entries.c",
        "    if (raft->pending_configuration > raft->applied)\n        return -EINPROGRESS;\n",
        "",
        raft_checks.STATE_MACHINE,
        raft_checks.ELECTION,
        raft_checks.COMPLETENESS,
        ASSERTION,
        change_ticks=3,
        wipe_ticks=0,
        partition_ticks=10,
        transfer_ticks=10,
    ),
    "joint-by-one-half": Mutant(
        "a joint configuration decides by majorities of both halves (§4.3)",
        (
            Edit(SRC + "raft_members.c", "half < 2; half++", "half < 1; half++"),
            Edit(
                SRC + "raft_members.c",
                "    return index < old ? index : old;",
                "    return index < old ? index : index;",
            ),
        ),
        frozenset({raft_checks.MAJORITY}),
        kind="raft",
        seeds=1000,
        focus={"change_ticks": 5, "wipe_ticks": 0, "partition_ticks": 8},
    ),
    "origins-ignored": _store(
        "a batch that was sent twice happens once",
        SRC + "service_apply.c",
        "        service->counts.skipped++;\n        return false;",
        "        service->counts.skipped++;",
        replay.ONCE,
        LINEARIZABILITY,
        replay.ACKNOWLEDGED,
    ),
    "read-before-applied": _store(
        "a read waits until its index is applied",
        SRC + "readqueue.c",
        "group->index != 0 && group->index <= applied ? group : NULL;",
        "group->index != 0 && applied > 0 ? group : NULL;",
        LINEARIZABILITY,
    ),
    "state-ahead-by-one": _store(
        "the state is stored with the index of the last entry that it contains",
        SRC + "state_commit.c",
        "trimaran_applied_store(file, txn, batch->applied_index, batch->applied_term);",
        "trimaran_applied_store(file, txn, batch->applied_index + 1, batch->applied_term);",
        raft_checks.STATE_MACHINE,
        ASSERTION,
    ),
    "watch-resumes-late": _store(
        "a watcher is told of the revision that it asked for first",
        SRC + "watchhub.c",
        "trimaran_watcher_set_behind(hub, watcher, create->start_revision);",
        "trimaran_watcher_set_behind(hub, watcher, create->start_revision + 1);",
        COMPLETE,
        replay.ACCOUNT,
    ),
    "lease-expired-by-a-follower": _store(
        "only the leader lets leases expire",
        "core/store/lease_keeper.py",
        "if not self._ports.is_leader or now_s < self._next_check_s:",
        "if now_s < self._next_check_s:",
        LEASES,
        LOCKS,
    ),
    "lease-cut-by-an-election": _store(
        "a new leader leaves a lease at least the time that its client was told",
        "core/store/lessor.py",
        "_Lease(ttl_s, now + remaining_s + extend_s, remaining_s)",
        "_Lease(ttl_s, now + remaining_s / 2, remaining_s)",
        LEASES,
        LOCKS,
    ),
}
