"""What the differential test compares, and where two servers may rightly differ.

Identities (cluster, member, lease the server chose) and times are masked; all else must be equal.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from differential_steps import Call, State, Step, WatchSend

HEADER_IDENTITIES = frozenset({"cluster_id", "member_id", "raft_term"})
SORT_ORDERS, SORT_TARGETS = range(3), range(5)


@dataclass(frozen=True)
class Outcome:
    """What a call came to.

    Attributes:
        code: name of the gRPC status.
        details: its text.
        reply: the plain form of the answer, None after an error.
        revision: of the answer's header.
    """

    code: str
    details: str = ""
    reply: Any = None
    revision: int = 0


def plain(message: Any) -> dict[str, Any]:
    """Give the fields of a message that are set, as comparable values, identities masked."""
    fields = {}
    for descriptor, value in message.ListFields():
        name = descriptor.name
        if message.DESCRIPTOR.name == "ResponseHeader" and name in HEADER_IDENTITIES:
            fields[name] = "set"
        elif isinstance(value, (bytes, str, int)):
            fields[name] = value
        elif hasattr(value, "ListFields"):
            fields[name] = plain(value)
        else:
            fields[name] = [plain(v) if hasattr(v, "ListFields") else v for v in value]
    if message.DESCRIPTOR.name == "LeaseTimeToLiveResponse":
        if 0 < message.TTL <= message.grantedTTL:
            fields["TTL"] = "running"
        # The server keeps the keys of a lease in no order.
        fields["keys"] = sorted(message.keys)
    return fields


SORT_FIELDS = {1: "version", 2: "create_revision", 3: "mod_revision", 4: "value"}


def without_tie_order(request: Any, reply: Any) -> Any:
    """Give an answer with the keys that a sort cannot tell apart in the order of their names.

    etcd's sort is not stable. Where the limit cuts through such keys, only their number stays.
    """
    reply = type(reply).FromString(reply.SerializeToString())
    _order_ties(request, reply)
    return reply


def _order_ties(request: Any, reply: Any) -> None:
    name = request.DESCRIPTOR.name
    if name == "TxnRequest":
        branch = request.success if reply.succeeded else request.failure
        for operation, response in zip(branch, reply.responses, strict=False):
            kind = operation.WhichOneof("request") or ""
            if kind.replace("request", "response") == response.WhichOneof("response"):
                nested = getattr(response, kind.replace("request", "response"))
                _order_ties(getattr(operation, kind), nested)
    elif name == "RangeRequest" and request.sort_target in SORT_FIELDS:
        target = SORT_FIELDS[request.sort_target]
        groups = [
            sorted(group, key=lambda kv: kv.key)
            for _, group in itertools.groupby(list(reply.kvs), lambda kv: getattr(kv, target))
        ]
        if reply.more and groups:
            groups[-1] = [type(kv)(**{target: getattr(kv, target)}) for kv in groups[-1]]
        del reply.kvs[:]
        reply.kvs.extend(kv for group in groups for kv in group)


def differences(left: Any, right: Any, path: str = "") -> Iterator[str]:
    """Name each place where two plain values differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        for name in sorted(left.keys() | right.keys()):
            yield from differences(left.get(name), right.get(name), f"{path}.{name}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from differences(a, b, f"{path}[{i}]")
    elif left != right:
        yield f"{path or 'answer'}: {left!r} against {right!r}"


def range_requests(request: Any) -> Iterator[Any]:
    """Give every RangeRequest in a request, those of nested transactions too."""
    if request.DESCRIPTOR.name == "RangeRequest":
        yield request
    for field in ("success", "failure"):
        for operation in getattr(request, field, ()):
            if operation.HasField("request_range"):
                yield operation.request_range
            if operation.HasField("request_txn"):
                yield from range_requests(operation.request_txn)


def _odd_sort_order(step: Step, state: State) -> bool:
    return isinstance(step, Call) and any(
        r.sort_order not in SORT_ORDERS for r in range_requests(step.request)
    )


def _odd_sort_target(step: Step, state: State) -> bool:
    return isinstance(step, Call) and any(
        r.sort_target not in SORT_TARGETS for r in range_requests(step.request)
    )


def _negative_start(step: Step, state: State) -> bool:
    return isinstance(step, WatchSend) and step.request.create_request.start_revision < 0


def _progress_unclear(step: Step, state: State) -> bool:
    if not isinstance(step, WatchSend) or not step.request.HasField("progress_request"):
        return False
    starts = state.watchers[step.stream].values()
    return not starts or max(starts) > state.revision


@dataclass(frozen=True)
class KnownDifference:
    """A request that two versions answer differently on purpose; it is not sent to them.

    Attributes:
        between: kinds of server that answer one way; the others answer the other way.
        reason: what the difference is and why it is right.
        applies: whether a step is such a request, in this state.
        never: not even two servers of that kind can be compared, e.g. because they crash.
    """

    between: frozenset[str]
    reason: str
    applies: Callable[[Step, State], bool]
    never: bool = False


# trimaran follows 3.6; what it shares with the older versions needs no row here.
OLDER = frozenset({"etcd", "3.4", "3.5"})
KNOWN_DIFFERENCES = (
    KnownDifference(
        OLDER,
        "an unknown sort order: older versions ignore it, newer ones refuse it with "
        "'invalid sort option'",
        _odd_sort_order,
    ),
    KnownDifference(
        OLDER,
        "an unknown sort target: older versions end with a panic, newer ones refuse it",
        _odd_sort_target,
        never=True,
    ),
    KnownDifference(
        OLDER,
        "a watcher with a negative start revision: older versions create it and cancel it as "
        "compacted, 3.6.6 and later refuse to create it",
        _negative_start,
    ),
    KnownDifference(
        OLDER,
        "a progress request on a stream without watchers, or with one that waits for a later "
        "revision or was cancelled by a compaction: older versions answer, newer ones are silent",
        _progress_unclear,
    ),
)


def known_difference(step: Step, state: State, kinds: Iterable[str]) -> KnownDifference | None:
    """Find the row that says two kinds answer this step differently."""
    kinds = set(kinds)
    for known in KNOWN_DIFFERENCES:
        shared = kinds & known.between
        differ = bool(shared) if known.never else len(shared) not in (0, len(kinds))
        if differ and known.applies(step, state):
            return known
    return None


def without_compacted_deletes(log: list[Any], state: State, kinds: Iterable[str]) -> list[Any]:
    """Drop deletions at compacted revisions from a watcher's log where the versions differ.

    3.5.16 and later keep a tombstone exactly at the compacted revision, so that a watcher from
    there sees the deletion; older versions lose it.
    """
    if len(set(kinds) & OLDER) in (0, len(set(kinds))):
        return log
    return [
        item
        for item in log
        if not (item[0] == "event" and item[1].get("type") and _revision(item) in state.compactions)
    ]


def _revision(item: Any) -> int:
    return int(item[1]["kv"]["mod_revision"])


def watcher_logs(responses: Iterable[Any]) -> dict[int, list[Any]]:
    """Sort the responses of a watch stream by watcher: controls and single events, in order.

    How events are put together into responses depends on timing, so only what must hold is
    checked: their order, and that no revision is split.

    Raises:
        AssertionError: a response breaks what every watch promises.
    """
    logs: dict[int, list[Any]] = {}
    for response in responses:
        log = logs.setdefault(response.watch_id, [])
        if not response.events:
            log.append(("control", plain(response)))
            continue
        revisions = [event.kv.mod_revision for event in response.events]
        assert revisions == sorted(revisions), f"events out of order: {response}"
        assert response.header.revision >= revisions[-1], f"event from the future: {response}"
        assert not response.created, f"events with created: {response}"
        assert not response.canceled, f"events with canceled: {response}"
        last = next((_revision(item) for item in reversed(log) if item[0] == "event"), 0)
        # A new watcher may get an old one's number, and then starts anywhere.
        controls = log and log[-1][0] == "control"
        assert controls or revisions[0] > last, f"revision {last} split or repeated: {response}"
        log.extend(("event", plain(event)) for event in response.events)
    return logs
