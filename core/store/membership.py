"""Who is in the cluster, and which changes of that are allowed: etcd 3.6's rules and answers.

The members stand in rows of the replicated state: `member/<id>` has a member's peer URLs and
whether it is a learner, and is written only together with raft's change of the same member;
`member/<id>/attributes` has its name and client URLs, and is written by the member itself when it
has started; `removed/<id>` remembers an id that may never return. Ids are 16 hexadecimal digits.

Plans are made by the leader from what it has applied, and only while no other change is under way
(raft allows one at a time), so that none rests on a table that is out of date.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError

from trimaran.errors import CorruptionError, etcd_error
from trimaran.store.configuration import Configuration, Op, Row, encode_configuration
from trimaran.store.identity import member_id, runtime_member_id
from trimaran.wire import etcd_pb2 as pb

# A change of the voters needs members that have been connected for this long.
HEALTH_INTERVAL_S: Final = 5.0
LEARNER_READY_RATIO: Final = 0.9
_MEMBER: Final = b"member/"
_ATTRIBUTES: Final = b"/attributes"
_REMOVED: Final = b"removed/"
_ID_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class MemberTable:
    """The members and the ids that once were.

    Attributes:
        members: by id; name and client URLs are empty until a member has told them.
        removed: ids that never return.
    """

    members: Mapping[int, pb.Member]
    removed: frozenset[int] = frozenset()

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[bytes, bytes]]) -> "MemberTable":
        """Read the table from rows of the state; rows of other kinds are passed over.

        Raises:
            CorruptionError: a row is not what its key says.
        """
        members: dict[int, pb.Member] = {}
        attributes: dict[int, pb.Member] = {}
        removed: set[int] = set()
        for key, value in rows:
            if key.startswith(_REMOVED):
                removed.add(_id_of(key, _REMOVED))
            elif key.startswith(_MEMBER) and key.endswith(_ATTRIBUTES):
                found = _id_of(key.removesuffix(_ATTRIBUTES), _MEMBER)
                attributes[found] = _parse(key, value)
            elif key.startswith(_MEMBER):
                found = _id_of(key, _MEMBER)
                members[found] = _parse(key, value)
                if found != members[found].ID:
                    raise CorruptionError(f"row {key!r} is of member {members[found].ID:x}")
        for found, told in attributes.items():
            if found in members:
                members[found].name = told.name
                members[found].ClearField("clientURLs")
                members[found].clientURLs.extend(told.clientURLs)
        return cls(dict(sorted(members.items())), frozenset(removed))

    @property
    def voters(self) -> list[pb.Member]:
        """The members that vote, by id."""
        return [member for member in self.members.values() if not member.isLearner]

    @property
    def learners(self) -> list[pb.Member]:
        """The members that do not vote, by id."""
        return [member for member in self.members.values() if member.isLearner]

    def listed(self) -> list[pb.Member]:
        """Give a copy of each member, by id, as MemberList answers."""
        copies = []
        for member in self.members.values():
            copy = pb.Member()
            copy.CopyFrom(member)
            copies.append(copy)
        return copies

    def peer_urls(self) -> dict[int, tuple[str, ...]]:
        """Give where each member's peers reach it."""
        return {key: tuple(member.peerURLs) for key, member in self.members.items()}

    def by_peer_urls(self, urls: Iterable[str]) -> pb.Member | None:
        """Find the member with exactly these peer URLs."""
        wanted = sorted(urls)
        for member in self.members.values():
            if sorted(member.peerURLs) == wanted:
                return member
        return None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the membership, to be put through the log as one entry.

    Attributes:
        changes: what raft is told.
        rows: what the state's rows become; None removes one.
        member: the member concerned, as it will be; after a removal as it was.
    """

    changes: tuple[tuple[Op, int], ...]
    rows: tuple[Row, ...]
    member: pb.Member


@dataclass(frozen=True, slots=True)
class Health:
    """What the leader knows of its connections when a change is planned.

    Attributes:
        own_id: the leader itself.
        active: ids of the members that it has a connection to.
        steady: those of them whose connection is at least HEALTH_INTERVAL_S old.
        strict: whether --strict-reconfig-check is on.
    """

    own_id: int
    active: Collection[int] = field(default=frozenset())
    steady: Collection[int] = field(default=frozenset())
    strict: bool = True

    def steady_of(self, members: Iterable[pb.Member]) -> int:
        """Count the members that have been connected for long enough, the own one included."""
        return sum(self.own_id == m.ID or m.ID in self.steady for m in members)


def member_key(member: int) -> bytes:
    """The key of the row with a member's peer URLs."""
    return _MEMBER + b"%016x" % member


def attributes_key(member: int) -> bytes:
    """The key of the row with what a member tells of itself."""
    return member_key(member) + _ATTRIBUTES


def removed_key(member: int) -> bytes:
    """The key of the row that remembers a removed member."""
    return _REMOVED + b"%016x" % member


def _id_of(key: bytes, prefix: bytes) -> int:
    digits = key[len(prefix) :]
    try:
        if len(digits) != _ID_DIGITS:
            raise ValueError(digits)
        return int(digits, 16)
    except ValueError:
        raise CorruptionError(f"row {key!r} has no member id") from None


def _parse(key: bytes, value: bytes) -> pb.Member:
    try:
        return pb.Member.FromString(value)
    except DecodeError as error:
        raise CorruptionError(f"row {key!r} is no member: {error}") from None


def _row(member: pb.Member) -> Row:
    """The row of a member; a name is kept for those that have not told one yet."""
    kept = pb.Member(
        ID=member.ID,
        name=member.name,
        peerURLs=member.peerURLs,
        isLearner=member.isLearner,
    )
    return member_key(member.ID), kept.SerializeToString(deterministic=True)


def checked_peer_urls(peer_urls: Sequence[str]) -> list[str]:
    """Check peer URLs of a request and sort them.

    Raises:
        StoreError: there are none, or one is not http(s)://HOST:PORT.
    """
    urls = sorted(url.strip() for url in peer_urls)
    for url in urls:
        try:
            parts = urlsplit(url)
            whole = bool(parts.hostname) and parts.port is not None
        except ValueError:
            raise etcd_error("MEMBER_BAD_URLS") from None
        if parts.scheme not in ("http", "https") or not whole or parts.path or parts.query:
            raise etcd_error("MEMBER_BAD_URLS")
    if not urls:
        raise etcd_error("MEMBER_BAD_URLS")
    return urls


def _started(members: Iterable[pb.Member]) -> int:
    """Count the members that have told their name, which they do when they start."""
    return sum(bool(member.name) for member in members)


def _quorum(voters: int) -> int:
    return voters // 2 + 1


def _check_add(table: MemberTable, health: Health, is_learner: bool) -> None:
    """Refuse a change that could leave the cluster without a majority of running members."""
    voters = table.voters
    if not is_learner:
        started = _started(voters)
        # The one member of a restored cluster may get its second.
        alone = started == 1 and len(voters) == 1
        if not alone and started < _quorum(len(voters) + 1):
            raise etcd_error("NOT_ENOUGH_STARTED")
    if health.steady_of(voters) != len(voters):
        raise etcd_error("UNHEALTHY")


def _refuse_taken_urls(table: MemberTable, urls: Iterable[str], but: int = 0) -> None:
    others = (member for member in table.members.values() if but != member.ID)
    taken = {url for member in others for url in member.peerURLs}
    if taken.intersection(urls):
        raise etcd_error("PEER_URL_EXISTS")


def plan_add(
    table: MemberTable,
    peer_urls: Sequence[str],
    health: Health,
    *,
    unix_s: int,
    is_learner: bool = False,
    learners_max: int = 1,
) -> Change:
    """Plan the addition of a member.

    Args:
        table: the members now.
        peer_urls: where the new member's peers will reach it.
        health: what is known of the connections.
        unix_s: the time in whole seconds since 1970; it goes into the new id.
        is_learner: the new member shall not vote yet.
        learners_max: how many learners there may be.

    Raises:
        StoreError: with etcd's code and text, where the change is not allowed.
    """
    urls = checked_peer_urls(peer_urls)
    if health.strict:
        _check_add(table, health, is_learner)
    new_id = runtime_member_id(urls, unix_s)
    if new_id in table.removed:
        raise etcd_error("MEMBER_NOT_FOUND")
    if new_id in table.members:
        raise etcd_error("MEMBER_EXISTS")
    _refuse_taken_urls(table, urls)
    if is_learner and len(table.learners) >= learners_max:
        raise etcd_error("TOO_MANY_LEARNERS")
    member = pb.Member(ID=new_id, peerURLs=urls, isLearner=is_learner)
    op = Op.ADD_LEARNER if is_learner else Op.ADD_VOTER
    return Change(((op, new_id),), (_row(member),), member)


def _check_remove(table: MemberTable, health: Health, member: int) -> None:
    known = table.members.get(member)
    if known is not None and known.isLearner:
        return
    voters = table.voters
    others = [voter for voter in voters if member != voter.ID]
    if _started(others) < _quorum(len(others)):
        raise etcd_error("NOT_ENOUGH_STARTED")
    if member != health.own_id and member not in health.active:
        return  # one that is down is no part of the running majority
    if health.steady_of(voters) - 1 < 1 + (len(voters) - 1) // 2:
        raise etcd_error("UNHEALTHY")


def plan_remove(table: MemberTable, member: int, health: Health) -> Change:
    """Plan the removal of a member; its id never returns.

    Raises:
        StoreError: with etcd's code and text, where the change is not allowed.
    """
    if health.strict:
        _check_remove(table, health, member)
    if member not in table.members:
        raise etcd_error("MEMBER_NOT_FOUND")
    rows: tuple[Row, ...] = (
        (member_key(member), None),
        (attributes_key(member), None),
        (removed_key(member), b""),
    )
    return Change(((Op.REMOVE, member),), rows, table.members[member])


def plan_update(table: MemberTable, member: int, peer_urls: Sequence[str]) -> Change:
    """Plan other peer URLs for a member.

    The change tells raft what it knows already. It goes that way so that it cannot cross another
    change of the same row.

    Raises:
        StoreError: with etcd's code and text, where the change is not allowed.
    """
    urls = checked_peer_urls(peer_urls)
    if member not in table.members:
        raise etcd_error("MEMBER_NOT_FOUND")
    _refuse_taken_urls(table, urls, but=member)
    updated = pb.Member()
    updated.CopyFrom(table.members[member])
    updated.ClearField("peerURLs")
    updated.peerURLs.extend(urls)
    op = Op.ADD_LEARNER if updated.isLearner else Op.ADD_VOTER
    return Change(((op, member),), (_row(updated),), updated)


def plan_promote(
    table: MemberTable, member: int, *, match: int, leader_match: int, strict: bool = True
) -> Change:
    """Plan to let a learner vote.

    Args:
        table: the members now.
        member: id of the learner.
        match: the last log index that it is known to have.
        leader_match: the leader's own last durable log index.
        strict: whether --strict-reconfig-check is on.

    Raises:
        StoreError: with etcd's code and text, where the change is not allowed.
    """
    known = table.members.get(member)
    if known is None:
        raise etcd_error("MEMBER_NOT_FOUND")
    if match < LEARNER_READY_RATIO * leader_match:
        raise etcd_error("LEARNER_NOT_READY")
    voters = table.voters
    # The learner counts as a member that votes and has started.
    if strict and _started(voters) + 1 < _quorum(len(voters) + 1):
        raise etcd_error("NOT_ENOUGH_STARTED")
    if not known.isLearner:
        raise etcd_error("MEMBER_NOT_LEARNER")
    promoted = pb.Member()
    promoted.CopyFrom(known)
    promoted.isLearner = False
    return Change(((Op.ADD_VOTER, member),), (_row(promoted),), promoted)


def attributes_rows(member: int, name: str, client_urls: Sequence[str]) -> tuple[Row, ...]:
    """Give the rows by which a started member tells its name and client URLs."""
    told = pb.Member(name=name, clientURLs=sorted(client_urls))
    return ((attributes_key(member), told.SerializeToString(deterministic=True)),)


def founding_entry(members: Iterable[pb.Member]) -> bytes:
    """Give the first entry of a new cluster's log, which each of its first members writes alike.

    Args:
        members: all of them; they become voters.
    """
    first = sorted(members, key=lambda member: int(member.ID))
    changes = tuple((Op.ADD_VOTER, int(member.ID)) for member in first)
    return encode_configuration(Configuration(changes, tuple(_row(member) for member in first)))


def founding_members(cluster: Mapping[str, Sequence[str]], token: str) -> list[pb.Member]:
    """Make the first members of a new cluster.

    Args:
        cluster: peer URLs by member name.
        token: the initial cluster token.
    """
    return [
        pb.Member(ID=member_id(urls, token), name=name, peerURLs=sorted(urls))
        for name, urls in cluster.items()
    ]


def bootstrap_entry(initial_cluster: Mapping[str, Sequence[str]], token: str) -> bytes:
    """Give the first entry of a new cluster's log; arguments as those of `founding_members`."""
    return founding_entry(founding_members(initial_cluster, token))


def adopt(own_id: int, name: str, peer_urls: Sequence[str]) -> Change:
    """Give the change by which the only member enters itself into a table that lacks it.

    Data of the first version, which knew no other members, has no such rows.
    """
    own = pb.Member(ID=own_id, name=name, peerURLs=sorted(peer_urls))
    return Change(((Op.ADD_VOTER, own_id),), (_row(own),), own)


def force_new_cluster(
    table: MemberTable, own_id: int, *, raft_ids: Iterable[int], joint: bool
) -> list[bytes]:
    """Give the entries that make a member the only one of its cluster, whoever else was in it.

    Each changes one member, because a joint change would need the majority that is lost.

    Args:
        table: the members as applied.
        own_id: the member that stays.
        raft_ids: all ids that raft knows, voters and learners.
        joint: raft is between two configurations.
    """
    entries = [b""] if joint else []
    own = pb.Member()
    if own_id in table.members:
        own.CopyFrom(table.members[own_id])
    own.ID, own.isLearner = own_id, False
    # First of all, so that there is a voter left at any time.
    promote = Configuration(((Op.ADD_VOTER, own_id),), (_row(own),))
    entries.append(encode_configuration(promote))
    for other in sorted((set(raft_ids) | set(table.members)) - {own_id}):
        rows: tuple[Row, ...] = (
            (member_key(other), None),
            (attributes_key(other), None),
            (removed_key(other), b""),
        )
        entries.append(encode_configuration(Configuration(((Op.REMOVE, other),), rows)))
    return entries
