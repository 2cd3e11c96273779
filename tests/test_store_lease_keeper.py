"""Whose clock a lease's renewal sets when the leader changes meanwhile."""

import struct
from collections.abc import Callable

from trimaran.errors import StoreError
from trimaran.store.lease_keeper import LeaseKeeper, ProposeDone, ReadDone
from trimaran.store.peer_calls import Done, PeerMethod

LEASE = 7


class Member:
    """A node's part in it: a read that is confirmed when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.is_leader = True
        self.term = 2
        self.reads: list[ReadDone] = []
        self.calls: list[tuple[PeerMethod, bytes, Done]] = []
        self.proposals: list[tuple[int, bytes]] = []

    def propose(self, kind: int, request: bytes, done: ProposeDone) -> None:
        self.proposals.append((kind, request))

    def read(self, done: ReadDone) -> None:
        self.reads.append(done)

    def call_leader(self, method: PeerMethod, payload: bytes, done: Done) -> None:
        self.calls.append((method, payload, done))


def begin(ask: Callable[[LeaseKeeper, list[object]], None]) -> tuple[Member, list[object]]:
    """Ask a leader about a lease that the state holds too little time of."""
    member = Member()
    keeper = LeaseKeeper(member, extend_s=0.5)
    keeper.lead([(LEASE, 5, 3)], member.now_s)
    outcomes: list[object] = []
    ask(keeper, outcomes)
    assert not outcomes
    return member, outcomes


def renew(keeper: LeaseKeeper, outcomes: list[object]) -> None:
    keeper.renew(LEASE, outcomes.append)


def ask_time(keeper: LeaseKeeper, outcomes: list[object]) -> None:
    keeper.time_to_live(LEASE, outcomes.append)


def test_a_deposed_leader_passes_a_renewal_on() -> None:
    member, outcomes = begin(renew)
    # The next leader confirms the read: it says nothing about the clock here.
    member.is_leader, member.term = False, 3
    member.reads.pop()(None)
    assert not outcomes
    assert not member.proposals
    [(method, payload, answered)] = member.calls
    assert (method, payload) == (PeerMethod.LEASE_RENEW, struct.pack("<q", LEASE))
    answered(struct.pack("<q", 5))
    assert outcomes == [5]


def test_a_leader_of_a_later_term_asks_anew() -> None:
    member, outcomes = begin(renew)
    member.term = 4
    member.reads.pop()(None)
    assert not outcomes
    assert not member.proposals
    member.reads.pop()(None)
    assert len(member.proposals) == 1  # the longer time has to be in the state first


def test_a_deposed_leader_passes_a_question_on() -> None:
    member, outcomes = begin(ask_time)
    member.is_leader, member.term = False, 3
    member.reads.pop()(None)
    [(method, _, answered)] = member.calls
    assert method == PeerMethod.LEASE_TIME_TO_LIVE
    answered(struct.pack("<qq", 4, 5))
    assert outcomes == [(4, 5)]


def test_a_leader_that_stays_answers_itself() -> None:
    member, outcomes = begin(ask_time)
    member.reads.pop()(None)
    assert outcomes == [(3, 5)]
    assert not member.calls


def test_errors_are_passed_on() -> None:
    member, outcomes = begin(renew)
    member.reads.pop()(StoreError(14, "etcdserver: request timed out"))  # type: ignore[arg-type]
    assert isinstance(outcomes[0], StoreError)
