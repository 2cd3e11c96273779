"""One store member: raft, its log on disk, the MVCC state and the hot gRPC methods."""

import os

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_New
from libc.string cimport memset

from trimaran.errors import ConfigError, CorruptionError

PUT = 1
DELETE = 2
TXN = 3
COMPACT = 4
LEASE_GRANT = 5
LEASE_REVOKE = 6
ALARM = 7


cdef int log_submit(void *context, const trimaran_hard_state *hard_state,
                    const trimaran_entry *entries, size_t count,
                    uint64_t *sequence) noexcept nogil:
    return trimaran_logthread_submit((<LogContext *>context).thread, hard_state, entries, count,
                                     sequence)


cdef int log_append(void *context, const trimaran_hard_state *hard_state,
                    const trimaran_entry *entries, size_t count,
                    uint64_t *sequence) noexcept nogil:
    return trimaran_logthread_append((<LogContext *>context).thread, hard_state, entries, count,
                                     sequence)


cdef int log_is_quick(void *context) noexcept nogil:
    return trimaran_logthread_is_quick((<LogContext *>context).thread)


cdef void log_completed(void *context, trimaran_logthread_completion *out) noexcept nogil:
    trimaran_logthread_completed((<LogContext *>context).thread, out)


cdef int log_read(void *context, uint64_t first, uint64_t last, uint64_t max_bytes,
                  trimaran_raftlog_visitor visitor, void *visitor_context) noexcept nogil:
    return trimaran_raftlog_read((<LogContext *>context).log, first, last, max_bytes, visitor,
                                 visitor_context)


cdef int log_term(void *context, uint64_t index, uint64_t *term) noexcept nogil:
    return trimaran_raftlog_term(<trimaran_raftlog *>context, index, term)


@cython.no_gc_clear
cdef class Member:
    def __cinit__(self, options):
        cdef trimaran_mvcc_options state
        cdef trimaran_service_options service
        cdef trimaran_member_log log
        cdef int code
        directory = os.fsencode(options.state_directory)
        self.open_log(options.log_directory, options.journal_size_bytes)
        state.directory = directory
        state.map_size_bytes = options.map_size_bytes
        state.hash_seed = options.hash_seed
        state.cluster_id = options.cluster_id
        state.member_id = options.member_id
        with nogil:
            code = trimaran_mvcc_open(&state, &self.mvcc)
        if code != 0:
            raise ConfigError(f"cannot open {options.state_directory}: {describe(code)}")
        self.open_raft(options)
        code = trimaran_logthread_start(self.log, &self.thread)
        if code != 0:
            raise OSError(-code, os.strerror(-code))
        self.hub = trimaran_watchhub_create(self.mvcc, options.hash_seed,
                                            options.max_request_bytes + 512 * 1024)
        service.max_txn_ops = options.max_txn_ops
        service.max_request_bytes = options.max_request_bytes
        service.quota_bytes = options.quota_bytes
        service.max_pending_bytes = options.max_pending_bytes
        self.service = trimaran_service_create(self.mvcc, self.hub, &service)
        self.log_context.thread = self.thread
        self.log_context.log = self.log
        log.context = &self.log_context
        log.submit = log_submit
        log.append = log_append
        log.is_quick = log_is_quick
        log.completed = log_completed
        log.read = log_read
        self.member = trimaran_member_create(self.raft, &log, self.mvcc, self.service)

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

    cdef int open_raft(self, object options) except -1:
        cdef trimaran_raft_config config
        cdef uint64_t term, voter = options.member_id
        cdef int code
        memset(&config, 0, sizeof(config))
        config.struct_size = sizeof(config)
        config.flags = TRIMARAN_RAFT_USE_PRE_VOTE | TRIMARAN_RAFT_USE_CHECK_QUORUM
        config.election_ticks = options.election_ticks
        config.heartbeat_ticks = options.heartbeat_ticks
        config.members.voter_count = 1
        config.members.voters = &voter
        config.id = options.member_id
        config.seed = options.seed
        config.max_uncommitted_bytes = options.max_uncommitted_bytes
        trimaran_raftlog_hard_state(self.log, &config.hard_state)
        config.first_index = trimaran_raftlog_first_index(self.log)
        config.last_index = trimaran_raftlog_last_index(self.log)
        trimaran_state_applied(trimaran_mvcc_state(self.mvcc), &config.applied_index, &term)
        config.term = log_term
        config.log_context = self.log
        code = trimaran_raft_new(&config, &self.raft)
        if code != 0:
            raise CorruptionError(trimaran_raft_new_error().decode())
        return 0

    def __dealloc__(self):
        self.close()

    def close(self):
        """Write everything to disk and let go of it. May be repeated."""
        with nogil:
            if self.thread != NULL:
                trimaran_logthread_stop(self.thread)
                self.thread = NULL
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
                trimaran_mvcc_close(self.mvcc)
                self.mvcc = NULL
            if self.log != NULL:
                trimaran_raftlog_close(self.log)
                self.log = NULL

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
        return trimaran_logthread_fd(self.thread)

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
        trimaran_raft_tick(self.raft)

    def campaign(self):
        self.check()
        trimaran_raft_campaign(self.raft)

    def submit(self, int kind, bytes request, uint64_t token):
        cdef trimaran_slice message
        self.check()
        message.data = request
        message.size = len(request)
        trimaran_service_submit(self.service, kind, message, token)

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
        return bool(trimaran_state_seal(trimaran_mvcc_state(self.mvcc)))

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
        self.check()
        trimaran_logthread_compact(self.thread, index)

    def progress(self):
        self.check()
        trimaran_watchhub_progress(self.hub)

    def counts(self):
        cdef trimaran_service_counts service
        cdef trimaran_watchhub_counts watch
        self.check()
        service = trimaran_service_count(self.service)
        watch = trimaran_watchhub_count(self.hub)
        return {**<dict>service, **<dict>watch}


cdef str describe(int code):
    if -30800 < code < -30000:
        return f"LMDB error {code}: the file is no valid store or is damaged"
    return os.strerror(-code)
