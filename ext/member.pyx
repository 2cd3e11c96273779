"""One store member: raft, its log on disk, the MVCC state and the hot gRPC methods."""

import os
import time

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_New
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from trimaran.errors import ETCD_ERRORS, ConfigError, CorruptionError, etcd_error
from trimaran.ext.snapshot import recover

from trimaran.ext.snapshot cimport Defragment, PreparedState, SnapshotReader

PUT = 1
DELETE = 2
TXN = 3
COMPACT = 4
LEASE_GRANT = 5
LEASE_REVOKE = 6
ALARM = 7
ROWS = 8
LEASE_CHECKPOINT = 9
LEASE_EXPIRE = 10
READ, CHANGE = 100, 101
ADD_VOTER, ADD_LEARNER, REMOVE = 1, 2, 3
FOLLOWER, CANDIDATE, LEADER, PRE_CANDIDATE = 0, 1, 2, 3

_ERROR_NAMES = ("", *ETCD_ERRORS)


cdef int log_term(void *context, uint64_t index, uint64_t *term) noexcept nogil:
    return trimaran_raftlog_term(<trimaran_raftlog *>context, index, term)


cdef int raft_log_read(void *context, uint64_t first, uint64_t last, uint64_t max_bytes,
                       trimaran_raftlog_visitor visitor, void *visitor_context) noexcept nogil:
    return trimaran_raftlog_read(<trimaran_raftlog *>context, first, last, max_bytes, visitor,
                                 visitor_context)


@cython.no_gc_clear
cdef class Member:
    def __cinit__(self, options):
        cdef trimaran_mvcc_options state
        cdef uint64_t incarnation = getattr(options, "incarnation", 0) or time.time_ns()
        cdef int code
        self.member_id = options.member_id
        directory = self.state_path = os.fsencode(options.state_directory)
        self.cluster_id = options.cluster_id
        self.state_directory = options.state_directory
        self.map_size_bytes = options.map_size_bytes
        self.open_log(options.log_directory, options.journal_size_bytes)
        recover(directory, trimaran_raftlog_first_index(self.log) - 1)
        state.directory = directory
        state.map_size_bytes = options.map_size_bytes
        state.hash_seed = options.hash_seed
        state.cluster_id = options.cluster_id
        state.member_id = options.member_id
        with nogil:
            code = trimaran_mvcc_open(&state, &self.mvcc)
        if code != 0:
            raise ConfigError(f"cannot open {options.state_directory}: {describe(code)}")
        bootstrap = getattr(options, "bootstrap", None)
        if bootstrap is not None:
            self.found(bootstrap)
        self.open_raft(options)
        self.open_service(options, incarnation)
        self.open_member(options)

    cdef int open_log(self, str directory, uint64_t journal_size_bytes) except -1:
        cdef trimaran_raftlog_options options
        cdef bytes path = os.fsencode(directory)
        cdef const char *name = path
        cdef int code
        options.struct_size = sizeof(options)
        options.flags = 0
        options.map_size_bytes = 0
        options.journal_size_bytes = journal_size_bytes
        with nogil:
            code = trimaran_raftlog_open(name, &options, &self.log)
        if code == 0:
            return 0
        reason = trimaran_raftlog_open_error().decode() or describe(code)
        if code == -117:  # EUCLEAN
            raise CorruptionError(f"the raft log in {directory} is corrupt: {reason}")
        raise ConfigError(f"cannot open the raft log in {directory}: {reason}")

    cdef int found(self, bytes entry) except -1:
        cdef trimaran_slice bytes_of_entry
        bytes_of_entry.data = entry
        bytes_of_entry.size = len(entry)
        code = trimaran_member_found(self.log, self.mvcc, bytes_of_entry)
        if code != 0:
            raise ConfigError(f"cannot write the first entry of the log: {describe(code)}")
        return 0

    cdef int open_raft(self, object options) except -1:
        cdef trimaran_raft_config config
        cdef trimaran_member_group group
        cdef uint64_t term
        # Who does not say how the group began has it alone.
        cdef bint alone = not hasattr(options, "bootstrap")
        cdef int code = trimaran_member_load_group(self.log, self.mvcc, self.member_id, alone,
                                                   &group)
        if code != 0:
            raise CorruptionError("the state store's row of members is malformed")
        memset(&config, 0, sizeof(config))
        config.struct_size = sizeof(config)
        config.flags = TRIMARAN_RAFT_USE_CHECK_QUORUM
        if getattr(options, "pre_vote", True):
            config.flags |= TRIMARAN_RAFT_USE_PRE_VOTE
        config.election_ticks = options.election_ticks
        config.heartbeat_ticks = options.heartbeat_ticks
        config.members = group.members
        config.id = options.member_id
        config.seed = options.seed
        config.max_uncommitted_bytes = options.max_uncommitted_bytes
        config.max_message_bytes = getattr(options, "max_message_bytes", 0)
        config.lease_us = getattr(options, "lease_us", 0)
        trimaran_raftlog_hard_state(self.log, &config.hard_state)
        config.first_index = trimaran_raftlog_first_index(self.log)
        config.last_index = trimaran_raftlog_last_index(self.log)
        trimaran_state_applied(trimaran_mvcc_state(self.mvcc), &config.applied_index, &term)
        config.term = log_term
        config.read = raft_log_read
        config.log_context = self.log
        code = trimaran_raft_new(&config, &self.raft)
        free(group.ids)
        if code != 0:
            raise CorruptionError(trimaran_raft_new_error().decode())
        return 0

    cdef int open_service(self, object options, uint64_t incarnation) except -1:
        cdef trimaran_service_options service
        self.hub = trimaran_watchhub_create(self.mvcc, options.hash_seed,
                                            options.max_request_bytes + 512 * 1024)
        service.max_txn_ops = options.max_txn_ops
        service.max_request_bytes = options.max_request_bytes
        service.quota_bytes = options.quota_bytes
        service.max_pending_bytes = options.max_pending_bytes
        service.max_waiting_bytes = options.max_uncommitted_bytes
        service.member_id = options.member_id
        service.incarnation = incarnation
        service.timeout_ticks = getattr(options, "request_timeout_ticks", 0)
        service.election_ticks = options.election_ticks
        self.service = trimaran_service_create(self.mvcc, self.hub, &service)
        return 0

    cdef int open_member(self, object options) except -1:
        cdef trimaran_member_log log
        cdef int code
        cdef bint manual = getattr(options, "manual_log", False)
        code = trimaran_member_disk_open(&self.disk, self.log, manual)
        if code != 0:
            raise OSError(-code, os.strerror(-code))
        log = trimaran_member_disk_log(&self.disk)
        self.member = trimaran_member_create(self.raft, &log, self.mvcc, self.service,
                                             options.election_ticks)
        return 0

    def __dealloc__(self):
        self.release(False)

    def close(self):
        """Write everything to disk and let go of it. May be repeated."""
        self.release(False)

    def abandon(self):
        """Let go of everything as a crash would: nothing more is written."""
        self.release(True)

    cdef int release(self, bint abandon) except -1:
        with nogil:
            trimaran_member_disk_close(&self.disk, abandon)
            if self.member != NULL:
                trimaran_member_destroy(self.member)
                self.member = NULL
            if self.service != NULL:
                trimaran_service_destroy(self.service)
                self.service = NULL
            if self.hub != NULL:
                trimaran_watchhub_destroy(self.hub)
                self.hub = NULL
            if self.raft != NULL:
                trimaran_raft_free(self.raft)
                self.raft = NULL
            if self.mvcc != NULL:
                if abandon:
                    trimaran_mvcc_abandon(self.mvcc)
                else:
                    trimaran_mvcc_close(self.mvcc)
                self.mvcc = NULL
            if self.log != NULL:
                trimaran_raftlog_close(self.log)
                self.log = NULL
        return 0

    cdef int check(self) except -1:
        if self.member == NULL:
            raise ValueError("the member is closed")
        return 0

    @property
    def handler(self):
        self.check()
        return PyCapsule_New(<void *>trimaran_service_handler(self.service),
                             "trimaran.rpc_handler", NULL)

    @property
    def log_fd(self):
        self.check()
        if self.disk.thread == NULL:
            raise ValueError("a manual log has no descriptor: flush_log tells")
        return trimaran_logthread_fd(self.disk.thread)

    @property
    def state_fd(self):
        self.check()
        return trimaran_state_event_fd(trimaran_mvcc_state(self.mvcc))

    def turn(self):
        cdef bint more
        self.check()
        with nogil:
            more = trimaran_member_turn(self.member)
        return more

    def tick(self):
        self.check()
        trimaran_member_tick(self.member)

    def campaign(self):
        self.check()
        trimaran_raft_campaign(self.raft)

    def submit(self, int kind, bytes request, uint64_t token):
        cdef trimaran_slice message
        self.check()
        message.data = request
        message.size = len(request)
        trimaran_service_submit(self.service, kind, message, token)

    def read(self, uint64_t token):
        self.check()
        trimaran_service_read(self.service, token)

    def range(self, bytes request):
        cdef trimaran_range_request decoded
        cdef trimaran_slice message
        cdef trimaran_buffer out
        cdef trimaran_error error = 0
        self.check()
        memset(&out, 0, sizeof(out))
        message.data = request
        message.size = len(request)
        if not trimaran_decode_range(message, &decoded):
            raise ValueError("the request is no RangeRequest")
        error = trimaran_check_range(&decoded)
        if error == 0:
            error = trimaran_mvcc_range(self.mvcc, &decoded, &out)
        try:
            if error != 0:
                raise etcd_error(_ERROR_NAMES[error])
            return PyBytes_FromStringAndSize(<const char *>out.data, out.size)
        finally:
            trimaran_buffer_free(&out)

    # Other members.

    def messages(self):
        cdef const trimaran_member_post *posts
        cdef size_t count, i
        self.check()
        count = trimaran_member_outbox(self.member, &posts)
        frames = []
        for i in range(count):
            if posts[i].frames.size > 0:
                frames.append((posts[i].to,
                               PyBytes_FromStringAndSize(<const char *>posts[i].frames.data,
                                                         posts[i].frames.size)))
        if frames:
            trimaran_member_outbox_clear(self.member)
        return frames

    def snapshot_requests(self):
        cdef const uint64_t *ids
        cdef size_t count, i
        self.check()
        count = trimaran_member_snapshot_requests(self.member, &ids)
        return [ids[i] for i in range(count)]

    def snapshot_sent(self, uint64_t to, uint64_t index):
        self.check()
        trimaran_raft_snapshot_sent(self.raft, to, index)

    def snapshot_failed(self, uint64_t to):
        self.check()
        trimaran_raft_snapshot_failed(self.raft, to)

    def install(self, uint64_t sender, uint64_t term, PreparedState prepared):
        cdef trimaran_member_snapshot snapshot
        self.check()
        if prepared.mvcc == NULL:
            raise ValueError("the prepared state is closed")
        snapshot.sender = sender
        snapshot.term = term
        snapshot.fresh = <trimaran_mvcc *><void *>prepared.mvcc
        snapshot.hub = self.hub
        snapshot.directory = self.state_path
        if not trimaran_member_install(self.member, &snapshot):
            return False
        self.prepared = prepared
        return True

    @property
    def is_installing(self):
        self.check()
        return bool(trimaran_member_is_installing(self.member))

    def unreachable(self, uint64_t peer_id, bint gone=False):
        self.check()
        trimaran_member_unreachable(self.member, peer_id)
        if gone:
            trimaran_raft_gone(self.raft, peer_id)

    def set_clock(self, uint64_t now_us):
        self.check()
        trimaran_raft_set_clock(self.raft, now_us)

    def propose_change(self, changes, rows, uint64_t token):
        cdef trimaran_configuration checked
        cdef trimaran_slice entry
        cdef trimaran_payload *payload
        self.check()
        encoded = bytes([TRIMARAN_CONFIGURATION_VERSION]).ljust(TRIMARAN_BATCH_HEAD, b"\0")
        encoded += encode_changes(changes) + encode_rows(rows)
        entry.data = encoded
        entry.size = len(encoded)
        if not trimaran_configuration_decode(entry, &checked):
            raise ValueError("the change or a row of it is none that there may be")
        payload = trimaran_payload_new(entry.size)
        if payload == NULL:
            raise MemoryError
        memcpy(trimaran_payload_data(payload), entry.data, entry.size)
        trimaran_member_propose_change(self.member, payload, token)

    def members(self):
        cdef trimaran_raft_members members
        self.check()
        trimaran_raft_members_get(self.raft, &members)
        return {
            "voters": ids_of(members.voters, members.voter_count),
            "outgoing": ids_of(members.outgoing, members.outgoing_count),
            "learners": ids_of(members.learners, members.learner_count),
            "learners_next": ids_of(members.learners_next, members.learner_next_count),
        }

    def rows(self, bytes prefix):
        cdef const trimaran_rowtable *table
        cdef trimaran_slice key
        cdef size_t place
        self.check()
        table = trimaran_mvcc_rows(self.mvcc)
        key.data = prefix
        key.size = len(prefix)
        rows = []
        for place in range(table.count - trimaran_rowtable_place(table, key)):
            row = row_of(&table.rows[trimaran_rowtable_place(table, key) + place])
            if not row[0].startswith(prefix):
                break
            rows.append(row)
        return rows

    @property
    def rows_version(self):
        self.check()
        return trimaran_mvcc_rows(self.mvcc).version

    @property
    def is_leader(self):
        cdef trimaran_raft_status status
        self.check()
        trimaran_raft_status_get(self.raft, &status)
        return status.role == LEADER

    def transfer(self, uint64_t to):
        cdef int code
        self.check()
        code = trimaran_raft_transfer(self.raft, to)
        if code == -11:  # EAGAIN
            raise etcd_error("NOT_LEADER")
        if code != 0:
            raise etcd_error("BAD_LEADER_TRANSFEREE")

    def raft_progress(self, uint64_t peer_id):
        cdef trimaran_raft_progress progress
        self.check()
        if trimaran_raft_progress_get(self.raft, peer_id, &progress) != 0:
            return None
        return <dict>progress

    # A log that its owner flushes.

    @property
    def log_queue(self):
        self.check()
        if self.disk.manual == NULL:
            raise ValueError("the log is not manual")
        return trimaran_manuallog_pending(self.disk.manual)

    def flush_log(self, uint64_t count):
        cdef int code
        self.check()
        if self.disk.manual == NULL:
            raise ValueError("the log is not manual")
        with nogil:
            code = trimaran_manuallog_flush(self.disk.manual, count)
        if code != 0:
            raise OSError(-code, os.strerror(-code))

    def commit(self):
        cdef bint sealed
        self.check()
        with nogil:
            trimaran_state_wait(trimaran_mvcc_state(self.mvcc))
            sealed = trimaran_mvcc_seal(self.mvcc)
            trimaran_state_wait(trimaran_mvcc_state(self.mvcc))
        return sealed

    def results(self):
        cdef const trimaran_result *results
        cdef size_t count, i
        self.check()
        count = trimaran_service_results(self.service, &results)
        if count == 0:
            return ()
        return [(results[i].token, results[i].kind, results[i].error, results[i].revision,
                 results[i].lease, results[i].ttl_s) for i in range(count)]

    def status(self):
        cdef trimaran_raft_status status
        self.check()
        trimaran_raft_status_get(self.raft, &status)
        return <dict>status

    @property
    def status_version(self):
        self.check()
        return trimaran_member_status_version(self.member)

    @property
    def revision(self):
        self.check()
        return trimaran_mvcc_revision(self.mvcc)

    @property
    def compact_revision(self):
        self.check()
        return trimaran_mvcc_compact_revision(self.mvcc)

    def leases(self):
        cdef const trimaran_leasetable *table
        cdef size_t i
        self.check()
        table = trimaran_mvcc_leases(self.mvcc)
        return [(table.slots[i].id, table.slots[i].ttl_s) for i in range(table.mask + 1)
                if table.slots[i] != NULL]

    def checkpoints(self):
        cdef const trimaran_leasetable *table
        cdef size_t i
        self.check()
        table = trimaran_mvcc_leases(self.mvcc)
        return [(table.slots[i].id, table.slots[i].remaining_s) for i in range(table.mask + 1)
                if table.slots[i] != NULL and table.slots[i].remaining_s > 0]

    def lease_keys(self, int64_t lease_id):
        cdef trimaran_lease *lease
        cdef trimaran_slice key
        cdef uint32_t i
        self.check()
        lease = trimaran_leasetable_find(trimaran_mvcc_leases(self.mvcc), lease_id)
        if lease == NULL:
            raise KeyError(lease_id)
        keys = []
        for i in range(lease.count):
            key = trimaran_record_key(lease.keys[i])
            keys.append(PyBytes_FromStringAndSize(<const char *>key.data, key.size))
        return sorted(keys)

    def alarms(self):
        cdef const trimaran_alarm *alarms
        cdef size_t count, i
        self.check()
        count = trimaran_mvcc_alarms(self.mvcc, &alarms)
        return [(alarms[i].member_id, alarms[i].kind) for i in range(count)]

    def take_no_space(self):
        self.check()
        return bool(trimaran_service_take_no_space(self.service))

    def seal(self):
        self.check()
        return bool(trimaran_mvcc_seal(self.mvcc))

    def collect(self):
        self.check()
        return bool(trimaran_state_collect(trimaran_mvcc_state(self.mvcc)))

    @property
    def pending_bytes(self):
        self.check()
        return trimaran_state_pending_bytes(trimaran_mvcc_state(self.mvcc))

    @property
    def persisted_index(self):
        self.check()
        return trimaran_state_persisted(trimaran_mvcc_state(self.mvcc))

    def sizes(self):
        cdef int64_t total, in_use
        self.check()
        trimaran_state_sizes(trimaran_mvcc_state(self.mvcc), &total, &in_use)
        return total, in_use

    def disk_error(self):
        cdef int error
        self.check()
        error = trimaran_state_error(trimaran_mvcc_state(self.mvcc))
        return error or -trimaran_member_log_error(self.member)

    def log_range(self):
        self.check()
        return trimaran_raftlog_first_index(self.log), trimaran_raftlog_last_index(self.log)

    def compact_log(self, uint64_t index):
        cdef int code
        self.check()
        trimaran_member_compacted(self.member, index)
        with nogil:
            code = trimaran_member_disk_compact(&self.disk, index)
        if code != 0:
            raise OSError(-code, os.strerror(-code))

    def progress(self):
        self.check()
        trimaran_watchhub_progress(self.hub)

    def snapshot(self):
        self.check()
        return SnapshotReader.take(trimaran_mvcc_state(self.mvcc), self.cluster_id,
                                   self.member_id)

    def defragment(self):
        self.check()
        return Defragment.begin(self, self.mvcc, self.state_directory, self.map_size_bytes)

    def counts(self):
        cdef trimaran_service_counts service
        cdef trimaran_watchhub_counts watch
        cdef trimaran_member_counts member
        self.check()
        service = trimaran_service_count(self.service)
        watch = trimaran_watchhub_count(self.hub)
        member = trimaran_member_count(self.member)
        return {**<dict>service, **<dict>watch, **<dict>member}


cdef bytes encode_changes(object changes):
    encoded = [len(changes).to_bytes(2, "little")]
    encoded += [bytes([op]) + member.to_bytes(8, "little") for op, member in changes]
    return b"".join(encoded)


def encode_rows(rows):
    encoded = [len(rows).to_bytes(4, "little")]
    for key, value in rows:
        encoded += [len(key).to_bytes(4, "little"), key]
        encoded += [b"\xff\xff\xff\xff"] if value is None else [
            len(value).to_bytes(4, "little"), value]
    return b"".join(encoded)


cdef list ids_of(const uint64_t *ids, uint32_t count):
    return [ids[i] for i in range(count)]


cdef tuple row_of(const trimaran_table_row *row):
    return (PyBytes_FromStringAndSize(<const char *>row.key.data, row.key.size),
            PyBytes_FromStringAndSize(<const char *>row.value.data, row.value.size))


cdef str describe(int code):
    if -30800 < code < -30000:
        return f"LMDB error {code}: the file is no valid store or is damaged"
    return os.strerror(-code)
