"""Whatever a peer sends, a member goes on: it takes it or refuses it, and keeps its word."""

import contextlib
import random

import pytest

from raft_group import Group, Node
from trimaran.ext.raft import MESSAGE_TYPES, Members, Message
from trimaran.ext.raftlog import Entry


def is_proof_of_corruption(node: Node, message: Message) -> bool:
    """A committed entry contradicted by a leader of the term: the one thing that stops a member."""
    status = node.raft.status
    if message.type != "append" or message.term < status.term:
        return False
    known = {entry.index: entry.term for entry in node.disk.entries}
    known[node.disk.first - 1] = node.disk.first_term
    for ready in node.in_flight:
        known.update({entry.index: entry.term for entry in ready.entries})
    told = [(message.index, message.log_term), *((e.index, e.term) for e in message.entries)]
    return any(index <= status.commit and known.get(index, 0) != term for index, term in told)


def lie(random: random.Random, node: Node) -> Message:
    """A message of any kind whose numbers are near those that would fit."""
    status = node.raft.status

    def near(value: int) -> int:
        return max(0, value + random.choice([-3, -1, 0, 0, 0, 0, 1, 1, 5]))

    term, index = near(status.term), near(status.last_index)
    log_term = min(near(status.term), term) if index else 0
    entries = []
    entry_term = log_term
    for offset in range(random.choice([0, 0, 1, 3])):
        entry_term = min(max(1, entry_term + random.choice([0, 0, 1])), max(1, term))
        entries.append(Entry(index + 1 + offset, entry_term, b"lie", random.choice([0, 0, 0, 1])))
    kind = random.choice(MESSAGE_TYPES[1:])
    return Message(
        type=kind,
        sender=random.choice([2, 3, 3, 9]),
        to=1,
        term=random.choice([term, term, term, 2**62, 2**64 - 1, 0])
        if random.random() < 0.05
        else term,
        log_term=log_term,
        index=index,
        commit=near(status.commit),
        context=near(3),
        reject=random.random() < 0.4,
        hint_index=near(index - 1),
        hint_term=near(log_term),
        force=random.random() < 0.2,
        entries=entries if kind == "append" else [],
        members=Members((1, 2, 3)) if kind == "snapshot" else None,
    )


@pytest.mark.parametrize("seed", range(30))
def test_no_message_stops_a_member(seed: int) -> None:
    choose = random.Random(seed)
    group = Group()
    node = group.add(1, Members((1, 2, 3)), seed=seed, election_ticks=5, pre_vote=seed % 2)
    before = node.raft.status
    for count in range(400):
        message = lie(choose, node)
        if message.type == "snapshot" and node.received is not None:
            continue
        if not is_proof_of_corruption(node, message):
            with contextlib.suppress(OSError, ValueError, KeyError):
                if message.type == "snapshot":
                    entries = [Entry(i + 1, 1, b"") for i in range(message.index)]
                    node.receive_snapshot(message, entries)
                else:
                    node.raft.step(message)
        chance = choose.random()
        if chance < 0.3:
            node.raft.tick()
        elif chance < 0.4:
            with contextlib.suppress(OSError):
                node.raft.propose(f"{count}".encode())
            with contextlib.suppress(OSError):
                node.raft.read_index(count)
        while node.raft.has_ready():
            ready = node.raft.ready()
            if ready.must_append:
                node.in_flight.append(ready)
            if ready.install is not None:
                node.installing = True
                assert ready.hard_state is not None
                node.install_state = ready.hard_state
            if ready.committed is not None:
                node.raft.applied(ready.committed[1])
        if node.installing and choose.random() < 0.5:
            node.install()
        node.flush(choose.randint(0, 2))
        now = node.raft.status
        assert now.term >= before.term
        assert now.commit >= before.commit
        assert now.applied >= before.applied
        before = now
