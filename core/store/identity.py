"""Who a member is: ids derived from its peer URLs, as etcd derives them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence


def member_id(peer_urls: Iterable[str], cluster_token: str) -> int:
    """Derive a member's id.

    Args:
        peer_urls: the member's advertised peer URLs, in any order.
        cluster_token: the initial cluster token.

    Returns:
        the first eight bytes of the SHA-1 of the sorted URLs and the token, as a number.
    """
    text = "".join(sorted(peer_urls)) + cluster_token
    return int.from_bytes(hashlib.sha1(text.encode()).digest()[:8], "big")


def runtime_member_id(peer_urls: Iterable[str], unix_s: int) -> int:
    """Derive the id of a member that is added to a running cluster.

    etcd leaves the cluster's token out there and puts the time in, so that a member that returns
    under its old URLs is another one.

    Args:
        peer_urls: the member's advertised peer URLs, in any order.
        unix_s: the time of the request in whole seconds since 1970.
    """
    return member_id(peer_urls, str(unix_s))


def cluster_id(members: Iterable[int]) -> int:
    """Derive a cluster's id from the ids of its first members."""
    packed = b"".join(member.to_bytes(8, "big") for member in sorted(members))
    return int.from_bytes(hashlib.sha1(packed).digest()[:8], "big")


def identify(
    name: str, initial_cluster: Mapping[str, Sequence[str]], cluster_token: str
) -> tuple[int, int]:
    """Derive the ids of a member and of the cluster it starts.

    Args:
        name: the member's name, a key of initial_cluster.
        initial_cluster: peer URLs by member name.
        cluster_token: the initial cluster token.

    Returns:
        (member id, cluster id).
    """
    ids = {key: member_id(urls, cluster_token) for key, urls in initial_cluster.items()}
    return ids[name], cluster_id(ids.values())
