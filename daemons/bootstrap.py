"""The first start of a member: who founds its cluster, or which running cluster it joins."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError

from trimaran._version import ETCD_VERSION
from trimaran.daemons.data_directory import Founding, founding_of, read_data_directory
from trimaran.daemons.discovery import discover_by_dns, discover_by_registry
from trimaran.daemons.peer_connection import PeerIdentity
from trimaran.daemons.peer_transport import call_member
from trimaran.daemons.tls import TLSSide
from trimaran.errors import ConfigError, StoreError
from trimaran.store.options import StoreOptions
from trimaran.store.peer_calls import PeerMethod
from trimaran.wire import etcd_pb2 as pb

LOG = logging.getLogger("trimaran.store")
ASK_TIMEOUT_S = 10.0

# Asks whoever serves a URL of the peers' side for its members: (URL, request, time-out in seconds).
# Raises ConnectionError where there is no answer, StoreError where it is an error.
Ask = Callable[[str, pb.MemberListRequest, float], Awaitable[pb.MemberListResponse]]


def peer_ask(tls: TLSSide | None = None) -> Ask:
    """Ask over the peers' protocol, as one who is no member yet."""
    nobody = PeerIdentity(0, 0, ETCD_VERSION)

    async def ask(
        url: str, request: pb.MemberListRequest, timeout_s: float
    ) -> pb.MemberListResponse:
        payload = request.SerializeToString()
        _, answer = await call_member(url, PeerMethod.MEMBERS, payload, nobody, tls, timeout_s)
        try:
            return pb.MemberListResponse.FromString(answer)
        except DecodeError as error:
            raise ConnectionError(f"{url} does not answer with members: {error}") from None

    return ask


async def found(options: StoreOptions, ask: Ask) -> Founding | None:
    """Find out who this member is, where its data directory is new.

    Args:
        options: of the member.
        ask: how to ask other members for theirs.

    Returns:
        what `open_data_directory` needs; None where the directory knows.

    Raises:
        ConfigError: the member cannot found or join the cluster; the text says what to do.
        CorruptionError: the directory cannot be read.
    """
    if read_data_directory(options) is not None:
        return None
    if options.initial_cluster_state == "existing":
        return await _join(options, ask)
    if options.discovery_endpoints:
        founding = founding_of(options, await discover_by_registry(options))
    elif options.discovery_srv:
        founding = founding_of(options, await discover_by_dns(options), named=False)
    else:
        founding = founding_of(options)
    await _refuse_second_founding(options, founding, ask)
    return founding


def _urls_of_others(members: Iterable[pb.Member], own_urls: Sequence[str]) -> list[str]:
    others = (member for member in members if sorted(member.peerURLs) != sorted(own_urls))
    return sorted(url for member in others for url in member.peerURLs)


async def _answers(urls: Sequence[str], ask: Ask, timeout_s: float) -> list[pb.MemberListResponse]:
    """Ask all URLs at once; those that do not answer are left out, in the URLs' order.

    They tell their own view: they may have no leader before this member has started.
    """
    request = pb.MemberListRequest(linearizable=False)
    asked = (ask(url, request, timeout_s) for url in urls)
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    answers = []
    for url, outcome in zip(urls, outcomes, strict=True):
        if isinstance(outcome, pb.MemberListResponse):
            answers.append(outcome)
        elif isinstance(outcome, ConnectionError | StoreError | ConfigError):
            LOG.info("asking %s for its members: %s", url, outcome)
        else:
            raise outcome
    return answers


def _bootstrapped_error(options: StoreOptions, member: int) -> ConfigError:
    return ConfigError(
        f"member {member:x} has already been bootstrapped: its cluster knows it, but --data-dir "
        f"{options.data_dir} is empty. Its votes must not be lost: give the directory it had, or "
        f"remove it (member remove {member:x}), add it as a new member (member add) and start it "
        "with --initial-cluster-state existing"
    )


async def _refuse_second_founding(options: StoreOptions, founding: Founding, ask: Ask) -> None:
    """Refuse to found a cluster in which this member has been: it would forget what it promised."""
    urls = _urls_of_others(founding.founders, options.initial_advertise_peer_urls)
    timeout_s = 1.0 + options.election_timeout_ms / 1000
    for answer in await _answers(urls, ask, timeout_s):
        if answer.header.cluster_id != founding.cluster_id:
            continue
        for member in answer.members:
            if founding.member_id == member.ID and member.clientURLs:
                raise _bootstrapped_error(options, founding.member_id)


async def _join(options: StoreOptions, ask: Ask) -> Founding:
    """Find this member in the list of a running cluster."""
    cluster = options.initial_cluster
    urls = sorted(url for name, urls in cluster.items() if name != options.name for url in urls)
    if not urls:
        raise ConfigError(
            "--initial-cluster-state existing needs the running members in --initial-cluster: "
            "copy what `member add` printed"
        )
    answers = await _answers(urls, ask, ASK_TIMEOUT_S)
    if not answers:
        raise ConfigError(
            "cannot fetch cluster info from peer urls: could not retrieve cluster information "
            f"from the given URLs ({', '.join(urls)}): check --initial-cluster and that the "
            "cluster runs"
        )
    problem: ConfigError | None = None
    # A member that is behind may not know of this one yet: one that does is enough.
    for answer in answers:
        try:
            member = await _match(options, answer)
        except ConfigError as error:
            problem = problem or error
            continue
        if member.clientURLs:
            raise _bootstrapped_error(options, member.ID)
        return Founding(member.ID, answer.header.cluster_id, peers=tuple(answer.members))
    assert problem is not None
    raise problem


async def _match(options: StoreOptions, answer: pb.MemberListResponse) -> pb.Member:
    """Find this member among those of a cluster, which must be those of --initial-cluster."""
    cluster = options.initial_cluster
    listed = ", ".join(
        f"{member.name or f'{member.ID:x}'}={url}"
        for member in answer.members
        for url in member.peerURLs
    )
    hint = (
        f"the running cluster has {listed}: add this member first (member add), and give "
        "--initial-cluster as that prints it"
    )
    if len(answer.members) != len(cluster):
        raise ConfigError(
            f"error validating peerURLs: member count is unequal: --initial-cluster names "
            f"{len(cluster)} members, and {hint}"
        )
    own: pb.Member | None = None
    for member in answer.members:
        names = [name for name, urls in cluster.items() if await same_urls(member.peerURLs, urls)]
        if not names:
            raise ConfigError(
                f"error validating peerURLs: PeerURLs: no match found for existing member "
                f"({member.ID:x}, {list(member.peerURLs)}); {hint}"
            )
        if options.name in names:
            own = member
    if own is None:
        raise ConfigError(f"this member ({options.name}) is unknown: {hint}")
    return own


async def _addresses(url: str) -> set[tuple[str, str, int]]:
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {(parts.scheme, str(info[4][0]), int(info[4][1])) for info in infos}


async def same_urls(left: Sequence[str], right: Sequence[str]) -> bool:
    """Tell whether two lists of URLs mean the same places: by text, else by address."""
    one, other = (sorted(url.rstrip("/") for url in urls) for urls in (left, right))
    if one == other:
        return True
    if len(one) != len(other):
        return False
    places = [[await _addresses(url) for url in urls] for urls in (one, other)]
    return all(
        any(not found.isdisjoint(wanted) for found in places[1]) for wanted in places[0]
    ) and all(any(not found.isdisjoint(wanted) for found in places[0]) for wanted in places[1])
