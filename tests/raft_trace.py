"""The language of the traces in tests/traces/raft/: a script, and what it prints.

A trace is blocks with an empty line between them; a block is commands, a line of dashes, and what
they print. Words with = are options, and a # begins a comment.

    nodes IDS..     a new group with all of them as voters; learners=IDS, and options of Raft; none:
                    an empty one
    node ID         one more, who knows nobody, or voters=IDS; log=TERMS of its entries, state=TERM,
                    VOTE,COMMIT and applied=INDEX are what it finds on its disk
    tick ID [N]     time passes for one member, or for `all`
    campaign ID     it stands for election
    propose ID ..   entries with these data
    change ID ..    a change of configuration: add-voter 4 remove 2 ..; none: leave the joint one
    read ID ..      reads with these contexts
    transfer ID TO  leadership
    ready ID        take its Readys: what it appends, sends, applies, answers
    done ID [N]     its oldest N appends are flushed
    install ID      the snapshot that it was asked to install is
    deliver [A>B]   the messages on their way, of all or of one pair; first=N: only so many
    drop [A>B]      they are lost
    repeat A>B      they will arrive twice
    queue           the messages on their way
    run N           N times: time passes for all, then settle
    settle          all of the above, until there is nothing left to do, without a word
    cut ID / heal   messages from and to it are lost in settle and deliver
    crash ID        it restarts with what was flushed
    compact ID I    its log begins after I
    gone ID TO      its transport says that the process there has ended
    unreachable ID TO, sent ID TO INDEX, failed ID TO     reports of its transport
    clock US        what all clocks say
    step TYPE ..    a made-up message: sender=, to=, term= and others
    status [ID], progress ID, log ID, members ID
"""

import errno
import json
import shlex
from typing import Any

from raft_group import Group, Node
from trimaran.errors import CorruptionError
from trimaran.ext.raft import CONFIGURATION, Members, Message, Raft, Ready
from trimaran.ext.raftlog import Entry, HardState


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def entry_text(entry: Entry) -> str:
    data = entry.data.decode()
    if entry.type == CONFIGURATION:
        changes = " ".join(f"{op} {id}" for op, id in json.loads(data)) if data else "leave joint"
        data = f"({changes})"
    return f"{entry.index}/{entry.term}" + (f" {data}" if data else "")


def message_text(m: Message) -> str:
    words = [f"{m.sender}>{m.to} {m.type} term={m.term}"]
    if m.type in ("vote", "pre-vote") and m.index:
        words.append(f"last={m.index}/{m.log_term}")
    elif m.type == "append":
        words.append(f"after={m.index}/{m.log_term}")
    elif m.type in ("append-response", "read-index-response", "snapshot"):
        words.append(f"index={m.index}")
    words += [f"{name}={getattr(m, name)}" for name in ("commit", "context") if getattr(m, name)]
    words += [name for name in ("reject", "force") if getattr(m, name)]
    if m.type.startswith(("vote", "pre-vote")) and m.commit:
        words[-1 - m.reject - m.force] += f"/{m.hint_term}"
    elif m.hint_index or m.hint_term:
        words.append(f"hint={m.hint_index}/{m.hint_term}")
    if m.entries:
        words.append("[" + ", ".join(map(entry_text, m.entries)) + "]")
    return " ".join(words)


def ready_text(ready: Ready) -> list[str]:
    lines = []
    if ready.install is not None:
        lines.append("  install {}/{}".format(*ready.install))
    if ready.hard_state is not None:
        lines.append("  save term={} vote={} commit={}".format(*ready.hard_state))
    lines += [f"  append {entry_text(entry)}" for entry in ready.entries]
    lines += [f"  send {message_text(message)}" for message in ready.messages]
    if ready.committed is not None and ready.committed_entries is None:
        lines.append("  apply {} to {} from the log".format(*ready.committed))
    lines += [f"  apply {entry_text(entry)}" for entry in ready.committed_entries or []]
    lines += [f"  read {context} at {index}" for context, index in ready.read_states]
    return lines


def status_text(raft: Raft) -> str:
    s = raft.status
    words = [
        f"{s.role} leader={s.leader} term={s.term} vote={s.vote} commit={s.commit} "
        f"applied={s.applied} stable={s.stable} last={s.last_index}"
    ]
    for name in ("transferee", "pending_configuration"):
        words += [f"{name}={getattr(s, name)}"] if getattr(s, name) else []
    words += ["learner"] if s.is_learner else []
    words += ["joint"] if s.is_joint else []
    words += ["lease"] if s.lease_valid else []
    return " ".join(words)


class GroupTrace:
    """Runs the commands on a group; what goes wrong is printed too."""

    def __init__(self) -> None:
        self.group = Group()
        self.isolated: set[int] = set()

    def run(self, line: str) -> list[str]:
        command, *words = shlex.split(line)
        options = dict(word.split("=", 1) for word in words if "=" in word)
        plain = [word for word in words if "=" not in word]
        try:
            return [*getattr(self, f"do_{command}")(*plain, **options)]
        except (OSError, ValueError, KeyError, CorruptionError) as error:
            name = errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else ""
            return [f"error: {error.args[-1]}" + (f" ({name})" if name else "")]

    def node(self, id: str) -> Node:
        return self.group.nodes[int(id)]

    def matching(self, pair: str | None) -> list[Message]:
        """The messages of a pair like 1>2, 1> or >2; of all where none is named."""
        sender, _, to = (pair or ">").partition(">")
        return [
            m
            for m in self.group.messages
            if (not sender or m.sender == int(sender)) and (not to or m.to == int(to))
        ]

    def is_cut(self, message: Message) -> bool:
        return message.sender in self.isolated or message.to in self.isolated

    def do_nodes(self, *ids: str, learners: str = "", **options: str) -> list[str]:
        self.group = Group()
        self.isolated = set()
        members = Members(tuple(map(int, ids)), learners=tuple(numbers(learners)))
        values = {name: int(value) for name, value in options.items()}
        for id in (*members.voters, *members.learners):
            self.group.add(id, members, **values)
        return []

    def do_node(self, id: str, *, voters: str = "", log: str = "", **options: str) -> list[str]:
        state = numbers(options.pop("state", "0,0,0"))
        applied = int(options.pop("applied", "0"))
        values = {name: int(value) for name, value in options.items()}
        node = self.group.add(int(id), Members(tuple(numbers(voters))), **values)
        entries = [Entry(i + 1, term, b"") for i, term in enumerate(numbers(log))]
        node.disk.append(entries, HardState(*state))
        node.applied = entries[:applied]
        node.start()
        return []

    def do_tick(self, id: str, count: str = "1") -> list[str]:
        nodes = self.group.nodes.values() if id == "all" else [self.node(id)]
        for _ in range(int(count)):
            for node in nodes:
                node.raft.tick()
        return []

    def do_clock(self, now_us: str) -> list[str]:
        for node in self.group.nodes.values():
            node.raft.set_clock(int(now_us))
        return []

    def do_campaign(self, id: str) -> list[str]:
        self.node(id).raft.campaign()
        return []

    def do_propose(self, id: str, *data: str) -> list[str]:
        for text in data:
            self.node(id).raft.propose(text.encode())
        return []

    def do_change(self, id: str, *words: str) -> list[str]:
        changes = [(op, int(to)) for op, to in zip(words[::2], words[1::2], strict=True)]
        data = json.dumps(changes).encode() if changes else None
        self.node(id).raft.propose(data, type=CONFIGURATION)
        return []

    def do_read(self, id: str, *contexts: str) -> list[str]:
        for context in contexts:
            self.node(id).raft.read_index(int(context))
        return []

    def do_transfer(self, id: str, to: str) -> list[str]:
        self.node(id).raft.transfer(int(to))
        return []

    def do_ready(self, *ids: str) -> list[str]:
        lines = []
        for id in ids:
            node = self.node(id)
            if not node.raft.has_ready():
                lines.append(f"{id} has nothing to do")
            for ready in self.group.turn(node):
                shown = f" {node.raft.status.role}" if ready.status_changed else ""
                lines += [f"{id} Ready{shown}", *ready_text(ready)]
                node.take_reads()
        return lines

    def do_done(self, id: str, count: str = "1") -> list[str]:
        self.node(id).flush(int(count))
        return []

    def do_install(self, id: str) -> list[str]:
        self.node(id).install()
        return []

    def do_deliver(self, pair: str | None = None, first: str = "1000") -> list[str]:
        lines = []
        for message in self.matching(pair)[: int(first)]:
            self.group.messages.remove(message)
            if self.is_cut(message):
                lines.append(f"lost {message_text(message)}")
                continue
            taken = self.group.deliver(message)
            lines.append(message_text(message) + ("" if taken else " -> refused"))
        return lines

    def do_drop(self, pair: str | None = None) -> list[str]:
        lines = []
        for message in self.matching(pair):
            self.group.messages.remove(message)
            lines.append(f"lost {message_text(message)}")
        return lines

    def do_repeat(self, pair: str) -> list[str]:
        self.group.messages += self.matching(pair)
        return []

    def do_queue(self) -> list[str]:
        return [message_text(message) for message in self.group.messages]

    def do_settle(self) -> list[str]:
        self.group.settle(lost=self.is_cut)
        return [
            f"{node.id} reads {context} at {index}"
            for node in self.group.nodes.values()
            for context, index in node.take_reads()
        ]

    def do_run(self, count: str) -> list[str]:
        lines = []
        for _ in range(int(count)):
            self.do_tick("all")
            lines += self.do_settle()
        return lines

    def do_cut(self, *ids: str) -> list[str]:
        self.isolated |= {int(id) for id in ids}
        return []

    def do_heal(self) -> list[str]:
        self.isolated = set()
        return []

    def do_crash(self, id: str) -> list[str]:
        self.node(id).start()
        return []

    def do_compact(self, id: str, index: str) -> list[str]:
        self.node(id).compact(int(index))
        return []

    def do_unreachable(self, id: str, to: str) -> list[str]:
        self.node(id).raft.unreachable(int(to))
        return []

    def do_gone(self, id: str, to: str) -> list[str]:
        self.node(id).raft.gone(int(to))
        return []

    def do_sent(self, id: str, to: str, index: str) -> list[str]:
        self.node(id).raft.snapshot_sent(int(to), int(index))
        return []

    def do_failed(self, id: str, to: str) -> list[str]:
        self.node(id).raft.snapshot_failed(int(to))
        return []

    def do_step(self, type: str, *, entries: str = "", **fields: str) -> list[str]:
        values: dict[str, Any] = {name: int(value) for name, value in fields.items()}
        first = values.get("index", 0) + 1
        values["entries"] = [Entry(first + i, t, b"") for i, t in enumerate(numbers(entries))]
        node = self.node(str(values["to"]))
        if type == "snapshot":
            sender = self.node(str(values["sender"]))
            message = Message(type, members=sender.members, **values)
            node.receive_snapshot(message, sender.applied[: message.index])
        else:
            node.raft.step(Message(type, **values))
        return []

    def do_status(self, *ids: str) -> list[str]:
        return [
            f"{id} {status_text(self.node(str(id)).raft)}" for id in ids or sorted(self.group.nodes)
        ]

    def do_progress(self, id: str) -> list[str]:
        raft = self.node(id).raft
        members = raft.members
        lines = []
        for other in sorted({*members.voters, *members.outgoing, *members.learners} - {int(id)}):
            p = raft.progress(other)
            words = [f"{other} {p.state} match={p.match} next={p.next}"]
            words += [f"inflight={p.inflight_messages}"] if p.inflight_messages else []
            words += [f"snapshot={p.snapshot_index}"] if p.snapshot_index else []
            words += ["learner"] if p.is_learner else []
            words += [] if p.active else ["inactive"]
            lines.append("  " + " ".join(words))
        return lines

    def do_log(self, *ids: str) -> list[str]:
        lines = []
        for id in ids:
            disk = self.node(id).disk
            start = f"after {disk.first - 1}/{disk.first_term}: " if disk.first > 1 else ""
            lines.append(f"{id} log {start}" + ", ".join(map(entry_text, disk.entries)))
        return lines

    def do_members(self, *ids: str) -> list[str]:
        lines = []
        for id in ids:
            members = self.node(id).raft.members._asdict()
            leaves = " auto_leave" if members.pop("auto_leave") else ""
            named = [f"{name}={','.join(map(str, ids))}" for name, ids in members.items() if ids]
            lines.append(f"{id} {' '.join(named) or 'knows nobody'}{leaves}")
        return lines
