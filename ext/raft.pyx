"""The raft state machine, for Python: tests and simulation. See `trimaran/raft.h`."""

import errno
import os
from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from trimaran.errors import CorruptionError
from trimaran.ext.raftlog import Entry, HardState

from trimaran.ext.raftlog cimport (
    trimaran_payload_data,
    trimaran_payload_new,
    trimaran_payload_release,
)

ROLES = ("follower", "candidate", "leader", "pre-candidate")
MESSAGE_TYPES = ("", "vote", "vote-response", "pre-vote", "pre-vote-response", "append",
                 "append-response", "heartbeat", "heartbeat-response", "snapshot", "timeout-now",
                 "read-index", "read-index-response")
CHANGES = ("", "add-voter", "add-learner", "remove")
PROGRESS_STATES = ("probe", "replicate", "snapshot")
NORMAL = TRIMARAN_ENTRY_NORMAL
CONFIGURATION = TRIMARAN_ENTRY_CONFIGURATION


class Members(NamedTuple):
    voters: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False


class Message(NamedTuple):
    type: str
    sender: int
    to: int
    term: int
    log_term: int = 0
    index: int = 0
    commit: int = 0
    context: int = 0
    reject: bool = False
    hint_index: int = 0
    hint_term: int = 0
    force: bool = False
    entries: list[Entry] = []
    members: Members | None = None


class Ready(NamedTuple):
    number: int
    must_append: bool
    status_changed: bool
    hard_state: HardState | None
    entries: list[Entry]
    committed: tuple[int, int] | None
    committed_entries: list[Entry] | None
    read_states: list[tuple[int, int]]
    messages: list[Message]
    install: tuple[int, int] | None


class Status(NamedTuple):
    role: str
    id: int
    leader: int
    term: int
    vote: int
    commit: int
    applied: int
    stable: int
    last_index: int
    uncommitted_bytes: int
    transferee: int
    pending_configuration: int
    is_voter: bool
    is_learner: bool
    is_joint: bool
    lease_valid: bool


class Progress(NamedTuple):
    match: int
    next: int
    state: str
    active: bool
    is_learner: bool
    inflight_messages: int
    inflight_bytes: int
    snapshot_index: int


REFUSALS = {
    errno.EAGAIN: "this member is not the leader",
    errno.EBUSY: "too much is not committed yet",
    errno.EINPROGRESS: "a change of configuration is under way",
    errno.ENOENT: "no voter of the group has that id",
}


cdef int refuse(int code) except -1:
    if code == 0:
        return 0
    if code == -errno.EINVAL:
        raise ValueError("the arguments contradict each other or the configuration")
    raise OSError(-code, REFUSALS.get(-code, os.strerror(-code)))


cdef int term_in_log(void *context, uint64_t index, uint64_t *term) noexcept:
    raft = <Raft>context
    if raft.log is None:
        term[0] = raft.last_term
        return 0
    try:
        term[0] = raft.log.term(index)
    except IndexError:
        return -errno.ENOENT
    return 0


cdef int read_log(void *context, uint64_t first, uint64_t last, uint64_t max_bytes,
                  trimaran_raftlog_visitor visitor, void *visitor_context) noexcept:
    cdef trimaran_entry entry
    cdef const char *data
    cdef int code
    raft = <Raft>context
    try:
        entries = [] if raft.log is None else raft.log.read(first, last, max_bytes)
    except IndexError:
        entries = []
    for item in entries:
        memset(&entry, 0, sizeof(entry))
        entry.index, entry.term, entry.type = item.index, item.term, item.type
        entry.size = len(item.data)
        data = item.data
        entry.data = <const uint8_t *>data
        code = visitor(visitor_context, &entry)
        if code != 0:
            return code
    return 0 if entries else -errno.ENOENT


cdef list copies(const trimaran_entry *entries, size_t count):
    cdef size_t i
    return [
        Entry(entries[i].index, entries[i].term,
              (<const char *>entries[i].data)[:entries[i].size] if entries[i].size else b"",
              entries[i].type)
        for i in range(count)
    ]


cdef tuple id_tuple(const uint64_t *ids, uint32_t count):
    cdef uint32_t i
    return tuple([ids[i] for i in range(count)])


cdef class Ids:
    """Members as C wants them."""

    def __cinit__(self, members):
        cdef size_t place = 0
        lists = members[:4]
        self.ids = <uint64_t *>calloc(sum(map(len, lists)) + 1, sizeof(uint64_t))
        if self.ids == NULL:
            raise MemoryError
        memset(&self.members, 0, sizeof(self.members))
        self.members.voters = self.ids
        self.members.voter_count = len(lists[0])
        self.members.outgoing = self.members.voters + self.members.voter_count
        self.members.outgoing_count = len(lists[1])
        self.members.learners = self.members.outgoing + self.members.outgoing_count
        self.members.learner_count = len(lists[2])
        self.members.learners_next = self.members.learners + self.members.learner_count
        self.members.learner_next_count = len(lists[3])
        self.members.auto_leave = members[4]
        for ids in lists:
            for item in ids:
                self.ids[place] = item
                place += 1

    def __dealloc__(self):
        free(self.ids)


cdef object message_of(const trimaran_raft_message *m):
    return Message(MESSAGE_TYPES[m.type], m.sender, m.to, m.term, m.log_term, m.index, m.commit,
                   m.context, m.reject != 0, m.hint_index, m.hint_term, m.force != 0,
                   copies(m.entries, m.entry_count))


cdef object ready_of(const trimaran_raft_ready *ready):
    cdef size_t i
    state = committed = committed_entries = install = None
    if ready.hard_state != NULL:
        state = HardState(ready.hard_state.term, ready.hard_state.vote, ready.hard_state.commit)
    if ready.committed_first != 0:
        committed = (ready.committed_first, ready.committed_last)
        if ready.committed != NULL:
            committed_entries = copies(ready.committed,
                                       ready.committed_last - ready.committed_first + 1)
    if ready.install:
        install = (ready.install_index, ready.install_term)
    reads = [(ready.read_states[i].context, ready.read_states[i].index)
             for i in range(ready.read_state_count)]
    messages = [message_of(&ready.messages[i]) for i in range(ready.message_count)]
    return Ready(ready.number, ready.must_append != 0, ready.status_changed != 0, state,
                 copies(ready.entries, ready.entry_count), committed, committed_entries, reads,
                 messages, install)


cdef class Raft:
    """One member of a raft group."""

    def __cinit__(self, uint64_t id, voters=(), *, members=None, log=None,
                  uint32_t election_ticks=10, uint32_t heartbeat_ticks=1, uint64_t seed=0,
                  bint pre_vote=True, bint check_quorum=True, uint64_t lease_us=0,
                  uint64_t max_uncommitted_bytes=0, uint64_t max_message_bytes=0,
                  uint32_t max_inflight_messages=0, uint64_t max_inflight_bytes=0,
                  hard_state=(0, 0, 0), uint64_t first_index=1, uint64_t last_index=0,
                  uint64_t last_term=0, uint64_t applied_index=0) -> None:
        cdef trimaran_raft_config config
        cdef Ids ids = Ids(Members(tuple(voters)) if members is None else members)
        cdef int code
        self.log = log
        self.last_term = last_term
        memset(&config, 0, sizeof(config))
        config.struct_size = sizeof(config)
        config.election_ticks = election_ticks
        config.heartbeat_ticks = heartbeat_ticks
        config.flags |= TRIMARAN_RAFT_USE_PRE_VOTE if pre_vote else 0
        config.flags |= TRIMARAN_RAFT_USE_CHECK_QUORUM if check_quorum else 0
        config.id = id
        config.seed = seed
        config.members = ids.members
        config.max_uncommitted_bytes = max_uncommitted_bytes
        config.max_message_bytes = max_message_bytes
        config.max_inflight_messages = max_inflight_messages
        config.max_inflight_bytes = max_inflight_bytes
        config.lease_us = lease_us
        config.hard_state.term, config.hard_state.vote, config.hard_state.commit = hard_state
        config.first_index = first_index
        config.last_index = last_index
        config.applied_index = applied_index
        config.term = term_in_log
        config.read = read_log
        config.log_context = <void *>self
        code = trimaran_raft_new(&config, &self.handle)
        self.applied_index = self.handed_commit = applied_index
        if code == -errno.ENOMEM:
            raise MemoryError
        if code != 0:
            text = trimaran_raft_new_error().decode()
            raise CorruptionError(text) if code == -errno.EUCLEAN else ValueError(text)

    def __dealloc__(self) -> None:
        trimaran_raft_free(self.handle)

    def tick(self) -> None:
        trimaran_raft_tick(self.handle)

    def set_clock(self, uint64_t now_us) -> None:
        trimaran_raft_set_clock(self.handle, now_us)

    def campaign(self) -> None:
        trimaran_raft_campaign(self.handle)

    def step(self, message) -> None:
        cdef trimaran_raft_message m
        cdef Ids ids
        cdef size_t i, count = len(message.entries)
        cdef trimaran_entry *entries = <trimaran_entry *>calloc(count + 1, sizeof(trimaran_entry))
        cdef const char *data
        memset(&m, 0, sizeof(m))
        m.type = MESSAGE_TYPES.index(message.type) if message.type in MESSAGE_TYPES else 99
        m.sender, m.to, m.term = message.sender, message.to, message.term
        m.log_term, m.index, m.commit = message.log_term, message.index, message.commit
        m.context, m.reject, m.force = message.context, message.reject, message.force
        m.hint_index, m.hint_term = message.hint_index, message.hint_term
        for i in range(count):
            entry = message.entries[i]
            entries[i].index, entries[i].term = entry.index, entry.term
            entries[i].type, entries[i].size = entry.type, len(entry.data)
            data = entry.data
            entries[i].data = <const uint8_t *>data
        m.entries, m.entry_count = entries, count
        if message.members is not None:
            ids = Ids(message.members)
            m.members = &ids.members
        code = trimaran_raft_step(self.handle, &m)
        free(entries)
        if code == -errno.ENOENT:
            raise KeyError(f"{message.sender:x} is no member of the group")
        if code == -errno.EINVAL:
            raise ValueError("the message's fields contradict each other")
        if code != 0:
            raise OSError(-code, os.strerror(-code))

    def propose(self, bytes data=None, *, uint32_t type=TRIMARAN_ENTRY_NORMAL) -> int:
        cdef trimaran_payload *payload = NULL
        cdef uint64_t index = 0
        cdef const char *source
        if data is not None:
            payload = trimaran_payload_new(len(data))
            if payload == NULL:
                raise MemoryError
            source = data
            memcpy(trimaran_payload_data(payload), source, len(data))
        cdef int code = trimaran_raft_propose(self.handle, type, payload, &index)
        if code != 0:
            trimaran_payload_release(payload)
        refuse(code)
        return index

    def change(self, changes) -> None:
        cdef trimaran_raft_change_item items[64]
        cdef size_t count = len(changes)
        if count > 64:
            raise ValueError("more than 64 changes")
        memset(items, 0, sizeof(items))
        for i, (op, id) in enumerate(changes):
            items[i].op = CHANGES.index(op)
            items[i].id = id
        refuse(trimaran_raft_change(self.handle, items, count))

    @property
    def members(self):
        cdef trimaran_raft_members m
        trimaran_raft_members_get(self.handle, &m)
        return Members(id_tuple(m.voters, m.voter_count),
                       id_tuple(m.outgoing, m.outgoing_count),
                       id_tuple(m.learners, m.learner_count),
                       id_tuple(m.learners_next, m.learner_next_count), m.auto_leave != 0)

    def transfer(self, uint64_t to) -> None:
        refuse(trimaran_raft_transfer(self.handle, to))

    def read_index(self, uint64_t context) -> None:
        cdef int code = trimaran_raft_read_index(self.handle, context)
        if code == -errno.EAGAIN:
            raise BlockingIOError(errno.EAGAIN, "no leader is known")
        refuse(code)

    def has_ready(self) -> bool:
        return trimaran_raft_has_ready(self.handle) != 0

    def ready(self):
        cdef trimaran_raft_ready ready
        trimaran_raft_ready_get(self.handle, &ready)
        self.last_number = ready.number
        if ready.committed_first != 0:
            self.handed_commit = ready.committed_last
        if ready.install:
            self.install_index = ready.install_index
        return ready_of(&ready)

    def append_done(self, uint64_t number) -> None:
        if number > self.last_number:
            raise ValueError(f"Ready {number} has not been handed out")
        trimaran_raft_append_done(self.handle, number)

    def applied(self, uint64_t index) -> None:
        if not self.applied_index <= index <= self.handed_commit:
            raise ValueError(f"index {index} is not between those applied and those handed out")
        self.applied_index = index
        trimaran_raft_applied(self.handle, index)

    def snapshot_installed(self) -> None:
        if self.install_index == 0:
            raise ValueError("no Ready asked to install a snapshot")
        self.applied_index = self.handed_commit = self.install_index
        self.install_index = 0
        trimaran_raft_snapshot_installed(self.handle)

    def compacted(self, uint64_t first_index) -> None:
        if first_index > self.applied_index + 1:
            raise ValueError(f"the entries before {first_index} are not all applied")
        trimaran_raft_compacted(self.handle, first_index)

    def unreachable(self, uint64_t id) -> None:
        trimaran_raft_unreachable(self.handle, id)

    def gone(self, uint64_t id) -> None:
        trimaran_raft_gone(self.handle, id)

    def snapshot_sent(self, uint64_t to, uint64_t index) -> None:
        if index > self.applied_index:
            raise ValueError(f"no snapshot of index {index} can be yet")
        trimaran_raft_snapshot_sent(self.handle, to, index)

    def snapshot_failed(self, uint64_t to) -> None:
        trimaran_raft_snapshot_failed(self.handle, to)

    @property
    def status(self):
        cdef trimaran_raft_status s
        trimaran_raft_status_get(self.handle, &s)
        return Status(ROLES[s.role], s.id, s.leader, s.term, s.vote, s.commit, s.applied, s.stable,
                      s.last_index, s.uncommitted_bytes, s.transferee, s.pending_configuration,
                      s.is_voter != 0, s.is_learner != 0, s.is_joint != 0, s.lease_valid != 0)

    def progress(self, uint64_t id):
        cdef trimaran_raft_progress p
        if trimaran_raft_progress_get(self.handle, id, &p) != 0:
            raise KeyError(f"this is not the leader, or {id:x} is no member")
        return Progress(p.match, p.next, PROGRESS_STATES[p.state], p.active != 0,
                        p.is_learner != 0, p.inflight_messages, p.inflight_bytes,
                        p.snapshot_index)
