"""Options of the store daemon that concern the cluster: bootstrap, discovery, membership."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from trimaran.errors import ConfigError
from trimaran.store.flags import Flag


@dataclass(frozen=True)
class ClusterOptions:
    """How a member finds its cluster, and the rules of membership."""

    initial_advertise_peer_urls: tuple[str, ...] = ("http://localhost:2380",)
    initial_cluster: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    initial_cluster_state: str = "new"
    initial_cluster_token: str = "etcd-cluster"
    force_new_cluster: bool = False
    strict_reconfig_check: bool = True
    pre_vote: bool = True
    lease_reads: bool = False
    max_learners: int = 1
    initial_election_tick_advance: bool = True
    discovery_srv: str = ""
    discovery_srv_name: str = ""
    discovery_token: str = ""
    discovery_endpoints: tuple[str, ...] = ()
    discovery_dial_timeout_s: float = 2.0
    discovery_request_timeout_s: float = 5.0
    discovery_keepalive_time_s: float = 2.0
    discovery_keepalive_timeout_s: float = 6.0
    discovery_insecure_transport: bool = True
    discovery_insecure_skip_tls_verify: bool = False
    discovery_cert: str = ""
    discovery_key: str = ""
    discovery_cacert: str = ""
    discovery_user: str = ""
    discovery_password: str = ""

    @property
    def is_discovered(self) -> bool:
        """Whether the first members are to be found out at the first start."""
        return bool(self.discovery_srv or self.discovery_endpoints)


CLUSTER_FLAGS: Final = (
    Flag(
        "initial-advertise-peer-urls",
        "initial_advertise_peer_urls",
        "urls",
        "peer URLs told to others; the member's id comes from them",
    ),
    Flag("initial-cluster", "initial_cluster", "cluster", "NAME=URL,... of the first members"),
    Flag(
        "initial-cluster-state",
        "initial_cluster_state",
        "state",
        "new, or existing to join a running cluster",
    ),
    Flag(
        "initial-cluster-token", "initial_cluster_token", "text", "token that sets clusters apart"
    ),
    Flag(
        "force-new-cluster",
        "force_new_cluster",
        "bool",
        "make this member's data a cluster of its own; the others are removed from it",
    ),
    Flag(
        "strict-reconfig-check",
        "strict_reconfig_check",
        "bool",
        "refuse changes of members that could lose the majority",
    ),
    Flag("pre-vote", "pre_vote", "bool", "ask before an election whether it could be won"),
    Flag(
        "lease-reads",
        "lease_reads",
        "bool",
        "answer reads while the leader's lease lasts; trusts the clocks, on all members or none",
    ),
    Flag(
        "max-learners",
        "max_learners",
        "number",
        "members that may be learners at a time",
        "experimental-max-learners",
    ),
    Flag(
        "initial-election-tick-advance",
        "initial_election_tick_advance",
        "bool",
        "shorten the first election time-out after a start",
    ),
    Flag("discovery-srv", "discovery_srv", "text", "domain whose SRV records name the members"),
    Flag("discovery-srv-name", "discovery_srv_name", "text", "suffix of the SRV records' name"),
    Flag("discovery-token", "discovery_token", "text", "token of this cluster at the discovery"),
    Flag(
        "discovery-endpoints",
        "discovery_endpoints",
        "list",
        "URLs of a store at which the first members find each other",
    ),
    Flag(
        "discovery-dial-timeout",
        "discovery_dial_timeout_s",
        "duration",
        "longest time to connect to the discovery",
    ),
    Flag(
        "discovery-request-timeout",
        "discovery_request_timeout_s",
        "duration",
        "longest time for a request to the discovery",
    ),
    Flag(
        "discovery-keepalive-time",
        "discovery_keepalive_time_s",
        "duration",
        "time between pings to the discovery",
    ),
    Flag(
        "discovery-keepalive-timeout",
        "discovery_keepalive_timeout_s",
        "duration",
        "longest time for the answer to such a ping",
    ),
    Flag(
        "discovery-insecure-transport",
        "discovery_insecure_transport",
        "bool",
        "speak to the discovery without TLS",
    ),
    Flag(
        "discovery-insecure-skip-tls-verify",
        "discovery_insecure_skip_tls_verify",
        "bool",
        "not supported: give --discovery-cacert instead",
    ),
    Flag("discovery-cert", "discovery_cert", "text", "client certificate for the discovery"),
    Flag("discovery-key", "discovery_key", "text", "key of that certificate"),
    Flag("discovery-cacert", "discovery_cacert", "text", "CA that the discovery is checked by"),
    Flag("discovery-user", "discovery_user", "text", "NAME[:PASSWORD] at the discovery"),
    Flag("discovery-password", "discovery_password", "text", "password at the discovery"),
)


def fill_cluster(name: str, values: dict[str, Any]) -> None:
    """Fill in who the first members are where that follows from other options.

    Args:
        name: of this member.
        values: fields that were given; the missing ones are added.

    Raises:
        ConfigError: more than one way to find the members is given.
    """
    ways = {
        "--initial-cluster": bool(values.get("initial_cluster")),
        "--discovery-srv": bool(values.get("discovery_srv")),
        "--discovery-endpoints": bool(
            values.get("discovery_endpoints") or values.get("discovery_token")
        ),
    }
    given = [way for way, is_given in ways.items() if is_given]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other: give one of them")
    urls = values.get("initial_advertise_peer_urls", ClusterOptions.initial_advertise_peer_urls)
    if not values.get("initial_cluster"):
        values["initial_cluster"] = {name: urls}
    if values.get("discovery_token"):
        # Ids come from it, as in etcd: it is what all the members have in common.
        values["initial_cluster_token"] = values["discovery_token"]


def check_cluster(name: str, options: ClusterOptions) -> None:
    """Check how the options go together.

    Args:
        name: of this member.
        options: filled in.

    Raises:
        ConfigError: two of them contradict each other; the text says what to change.
    """
    if not name:
        raise ConfigError("--name is empty: give this member a name")
    cluster = options.initial_cluster
    if name not in cluster:
        raise ConfigError(f"--initial-cluster has no member named '{name}' (--name)")
    if sorted(cluster[name]) != sorted(options.initial_advertise_peer_urls):
        raise ConfigError(
            f"--initial-cluster gives '{name}' other URLs than "
            "--initial-advertise-peer-urls: make them equal"
        )
    urls = [url.rstrip("/") for member in cluster.values() for url in member]
    for url in sorted(set(urls)):
        if urls.count(url) > 1:
            raise ConfigError(f"--initial-cluster has {url} twice: give each member its own")
    if options.max_learners < 0:
        raise ConfigError("--max-learners must not be negative")
    _check_discovery(options)


def _check_discovery(options: ClusterOptions) -> None:
    if bool(options.discovery_token) != bool(options.discovery_endpoints):
        raise ConfigError("--discovery-token and --discovery-endpoints need each other: give both")
    if options.is_discovered and options.initial_cluster_state == "existing":
        raise ConfigError(
            "--initial-cluster-state existing needs --initial-cluster: "
            "discovery is for new clusters"
        )
    if bool(options.discovery_cert) != bool(options.discovery_key):
        raise ConfigError("--discovery-cert and --discovery-key need each other: give both")
    if options.discovery_insecure_skip_tls_verify:
        raise ConfigError(
            "--discovery-insecure-skip-tls-verify is not supported: name the CA of the discovery "
            "with --discovery-cacert"
        )
    if options.discovery_password and not options.discovery_user:
        raise ConfigError("--discovery-password needs --discovery-user: give both")
    for name in ("dial_timeout", "request_timeout", "keepalive_time", "keepalive_timeout"):
        if not 0 < getattr(options, f"discovery_{name}_s") <= 86_400:
            flag = name.replace("_", "-")
            raise ConfigError(f"--discovery-{flag} must be above 0 and at most a day (24h)")
