"""The raft state machine, for Python: tests and simulation. See `trimaran/raft.h`."""

import errno
from typing import NamedTuple

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from trimaran.errors import CorruptionError
from trimaran.ext.raftlog import Entry, HardState

from trimaran.ext.raftlog cimport (
    trimaran_payload_data,
    trimaran_payload_new,
    trimaran_payload_release,
)

ROLES = ("follower", "candidate", "leader")


class Ready(NamedTuple):
    number: int
    must_append: bool
    status_changed: bool
    hard_state: HardState | None
    entries: list[Entry]
    committed: tuple[int, int] | None
    committed_entries: list[Entry] | None
    read_states: list[tuple[int, int]]
    message_count: int


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


cdef int last_term_of(void *context, uint64_t index, uint64_t *term) noexcept:
    term[0] = (<uint64_t *>context)[0]
    return 0


cdef list copies(const trimaran_entry *entries, size_t count):
    cdef size_t i
    return [
        Entry(entries[i].index, entries[i].term,
              (<const char *>entries[i].data)[:entries[i].size] if entries[i].size else b"",
              entries[i].type)
        for i in range(count)
    ]


cdef class Raft:
    """One member of a raft group."""

    def __cinit__(self, uint64_t id, voters, *, uint32_t election_ticks=10,
                  uint32_t heartbeat_ticks=1, uint64_t seed=0, uint64_t max_uncommitted_bytes=0,
                  hard_state=(0, 0, 0), uint64_t first_index=1, uint64_t last_index=0,
                  uint64_t last_term=0, uint64_t applied_index=0) -> None:
        cdef trimaran_raft_config config
        cdef size_t i, count = len(voters)
        cdef uint64_t *ids = <uint64_t *>malloc((count + 1) * sizeof(uint64_t))
        cdef int code
        if ids == NULL:
            raise MemoryError
        try:
            for i in range(count):
                ids[i] = voters[i]
            memset(&config, 0, sizeof(config))
            config.struct_size = sizeof(config)
            config.election_ticks = election_ticks
            config.heartbeat_ticks = heartbeat_ticks
            config.members.voters = ids
            config.members.voter_count = <uint32_t>count
            config.flags = TRIMARAN_RAFT_USE_PRE_VOTE | TRIMARAN_RAFT_USE_CHECK_QUORUM
            config.id = id
            config.seed = seed
            config.max_uncommitted_bytes = max_uncommitted_bytes
            (config.hard_state.term, config.hard_state.vote,
             config.hard_state.commit) = hard_state
            config.first_index = first_index
            config.last_index = last_index
            config.applied_index = applied_index
            config.term = last_term_of
            config.log_context = &last_term
            code = trimaran_raft_new(&config, &self.handle)
        finally:
            free(ids)
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

    def campaign(self) -> None:
        trimaran_raft_campaign(self.handle)

    def step(self, *, uint64_t sender, uint32_t type=0, uint64_t term=0) -> None:
        cdef trimaran_raft_message message
        memset(&message, 0, sizeof(message))
        message.sender = sender
        message.type = type
        message.term = term
        if trimaran_raft_step(self.handle, &message) == -errno.ENOENT:
            raise KeyError(f"{sender:x} is no member of the group")

    def propose(self, bytes data=None) -> int:
        cdef trimaran_payload *payload = NULL
        cdef uint64_t index = 0
        cdef const char *source
        if data is not None:
            payload = trimaran_payload_new(len(data))
            if payload == NULL:
                raise MemoryError
            source = data
            memcpy(trimaran_payload_data(payload), source, len(data))
        cdef int code = trimaran_raft_propose(self.handle, TRIMARAN_ENTRY_NORMAL,
                                               payload, &index)
        if code != 0:
            trimaran_payload_release(payload)
            raise OSError(-code, {errno.EAGAIN: "this member is not the leader",
                                  errno.EBUSY: "too much is not committed yet"}[-code])
        return index

    def read_index(self, uint64_t context) -> None:
        cdef int code = trimaran_raft_read_index(self.handle, context)
        if code != 0:
            raise OSError(-code, "this member is not the leader")

    def has_ready(self) -> bool:
        return trimaran_raft_has_ready(self.handle) != 0

    def ready(self):
        cdef trimaran_raft_ready ready
        cdef size_t i
        trimaran_raft_ready_get(self.handle, &ready)
        self.last_number = ready.number
        state = None
        if ready.hard_state != NULL:
            state = HardState(ready.hard_state.term, ready.hard_state.vote,
                              ready.hard_state.commit)
        committed = committed_entries = None
        if ready.committed_first != 0:
            committed = (ready.committed_first, ready.committed_last)
            self.handed_commit = ready.committed_last
            if ready.committed != NULL:
                committed_entries = copies(
                    ready.committed, ready.committed_last - ready.committed_first + 1)
        reads = [(ready.read_states[i].context, ready.read_states[i].index)
                 for i in range(ready.read_state_count)]
        return Ready(ready.number, ready.must_append != 0, ready.status_changed != 0, state,
                     copies(ready.entries, ready.entry_count), committed, committed_entries,
                     reads, ready.message_count)

    def append_done(self, uint64_t number) -> None:
        if number > self.last_number:
            raise ValueError(f"Ready {number} has not been handed out")
        trimaran_raft_append_done(self.handle, number)

    def applied(self, uint64_t index) -> None:
        if not self.applied_index <= index <= self.handed_commit:
            raise ValueError(f"index {index} is not between those applied and those handed out")
        self.applied_index = index
        trimaran_raft_applied(self.handle, index)

    @property
    def status(self):
        cdef trimaran_raft_status status
        trimaran_raft_status_get(self.handle, &status)
        return Status(ROLES[status.role], status.id, status.leader, status.term, status.vote,
                      status.commit, status.applied, status.stable, status.last_index,
                      status.uncommitted_bytes)
