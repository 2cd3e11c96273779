"""--force-new-cluster: a member's data becomes a cluster of its own after the others are lost.

The log is written to while the member is closed: first what it holds is declared committed (this
member alone decides now, and what was acknowledged must not be dropped because the news of its
commit did not arrive), then one entry for each other member removes it.
"""

import logging
import select

from trimaran.daemons.data_directory import DataDirectory
from trimaran.daemons.store_open import LOG_WAIT_S, member_options
from trimaran.errors import ConfigError
from trimaran.ext import member as engine
from trimaran.ext.raftlog import Entry, RaftLog
from trimaran.store.membership import MemberTable, force_new_cluster
from trimaran.store.options import StoreOptions

LOG = logging.getLogger("trimaran.store")
CONFIGURATION = 1  # type of raft's entries that change the members


def force(options: StoreOptions, directory: DataDirectory) -> None:
    """Make the data in a directory that of a cluster of this member alone.

    Args:
        options: of the member.
        directory: opened; its member is not.

    Raises:
        ConfigError: there is no data, or it cannot be used.
        CorruptionError: the data contradicts itself.
    """
    own = directory.identity.member_id
    last_index, term = _commit_all(directory)
    if last_index == 0:
        raise ConfigError(
            f"--force-new-cluster: --data-dir {options.data_dir} has no data to make a cluster of: "
            "leave the flag out to found a new one"
        )
    entries = _entries(options, directory)
    others = len(entries) - 1
    if others <= 0:
        LOG.warning("--force-new-cluster: member %x is alone already; leave the flag out", own)
        return
    LOG.warning(
        "--force-new-cluster: member %x makes its data a cluster of its own. The other members are "
        "removed for good: stop those that still run and delete their data, or there will be two "
        "truths. Leave the flag out from the next start on",
        own,
    )
    log = RaftLog(directory.log)
    try:
        forced = [
            Entry(last_index + number, term, data, CONFIGURATION)
            for number, data in enumerate(entries, 1)
        ]
        log.append(forced, (term, 0, forced[-1].index))
    finally:
        log.close()


def _commit_all(directory: DataDirectory) -> tuple[int, int]:
    """Declare committed what the log holds; returns its last index and a term to go on in."""
    log = RaftLog(directory.log)
    try:
        state = log.hard_state
        if log.last_index > state.commit:
            log.append((), (state.term, state.vote, log.last_index))
        # In a term of its own, so that no entry of a former leader can stand at the same place.
        return log.last_index, state.term + 1
    finally:
        log.close()


def _entries(options: StoreOptions, directory: DataDirectory) -> list[bytes]:
    """Apply what the log holds, and see from the result who is to be removed."""
    member = engine.Member(member_options(options, directory))
    try:
        with select.epoll() as poll:
            poll.register(member.log_fd, select.EPOLLIN)
            while member.turn() or member.status()["applied"] < member.status()["commit"]:
                poll.poll(LOG_WAIT_S)
        table = MemberTable.from_rows([*member.rows(b"member/"), *member.rows(b"removed/")])
        groups = member.members()
        ids = {number for ids in groups.values() if not isinstance(ids, bool) for number in ids}
        own = directory.identity.member_id
        return force_new_cluster(table, own, raft_ids=ids, joint=bool(groups["outgoing"]))
    finally:
        member.close()
