"""Opening a member: its data directory, the engine on it, and the start of a group of one."""

import os
import secrets
import select
from dataclasses import dataclass

from trimaran.daemons.data_directory import DataDirectory
from trimaran.errors import ConfigError
from trimaran.ext import member as engine
from trimaran.store.options import StoreOptions

LEADER_ROLE = 2
LOG_WAIT_S = 0.05  # a safety net: the log's descriptor tells
CLOCK_DRIFT_MAX = 0.1  # between the fastest and the slowest of a cluster
REQUEST_TIMEOUT_S = 5.0  # and two election time-outs on top, as etcd counts


@dataclass(frozen=True, slots=True)
class MemberOptions:
    """What the engine is opened with; see `engine.Options`."""

    log_directory: str
    state_directory: str
    cluster_id: int
    member_id: int
    election_ticks: int
    max_txn_ops: int
    max_request_bytes: int
    quota_bytes: int
    hash_seed: int
    seed: int
    incarnation: int
    bootstrap: bytes | None
    request_timeout_ticks: int
    pre_vote: bool = True
    lease_us: int = 0
    heartbeat_ticks: int = 1
    max_message_bytes: int = 1024**2
    journal_size_bytes: int = 0
    map_size_bytes: int = 256 * 1024**3
    max_pending_bytes: int = 512 * 1024**2
    max_uncommitted_bytes: int = 256 * 1024**2
    manual_log: bool = False


def request_timeout_s(options: StoreOptions) -> float:
    """Return after what time an unanswered request fails."""
    return REQUEST_TIMEOUT_S + 2 * options.election_timeout_ms / 1000


def member_options(options: StoreOptions, directory: DataDirectory) -> MemberOptions:
    """Return what the engine is opened with."""
    identity = directory.identity
    tick_s = options.heartbeat_interval_ms / 1000
    return MemberOptions(
        log_directory=str(directory.log),
        state_directory=str(directory.state),
        cluster_id=identity.cluster_id,
        member_id=identity.member_id,
        election_ticks=options.election_timeout_ms // options.heartbeat_interval_ms,
        max_txn_ops=options.max_txn_ops,
        max_request_bytes=options.max_request_bytes,
        quota_bytes=options.quota_bytes,
        hash_seed=secrets.randbits(63),
        seed=secrets.randbits(63),
        incarnation=directory.incarnation,
        bootstrap=directory.bootstrap,
        request_timeout_ticks=int(request_timeout_s(options) / tick_s),
        pre_vote=options.pre_vote,
        lease_us=lease_us(options),
    )


def lease_us(options: StoreOptions) -> int:
    """Return how long a leader may answer reads after a round of heartbeats; 0 for not at all.

    The others elect nobody for an election time-out, of which their first tick may be nearly over
    already; the rest is shortened for clocks that do not run at one speed.
    """
    if not options.lease_reads:
        return 0
    ticks = options.election_timeout_ms // options.heartbeat_interval_ms - 1
    return int(ticks * options.heartbeat_interval_ms * 1000 * (1 - CLOCK_DRIFT_MAX))


def is_alone(member: engine.Member, member_id: int) -> bool:
    """Tell whether a member is a group of its own, which needs no one to lead."""
    members = member.members()
    return set(members["voters"]) == {member_id} and not members["outgoing"]


def lead(member: engine.Member) -> None:
    """Make the only voter leader and let it replay its log.

    Raises:
        ConfigError: the disk has no room for the entry that begins the term.
    """
    with select.epoll() as poll:
        poll.register(member.log_fd, select.EPOLLIN)
        while member.turn() or not caught_up(member.status()):
            if member.status()["role"] == engine.FOLLOWER:
                # Without effect until the changes of members in the log are applied.
                member.campaign()
            if member.disk_error() != 0:
                raise ConfigError(f"cannot write the log: {os.strerror(member.disk_error())}")
            poll.poll(LOG_WAIT_S)
    member.results()


def caught_up(status: dict[str, int]) -> bool:
    """Tell whether a member leads and has applied all that its log holds."""
    return status["role"] == LEADER_ROLE and status["applied"] == status["last_index"]
