"""Options of the store daemon: etcd's flags, environment names and checks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from trimaran.errors import ConfigError

DEFAULT_QUOTA_BYTES: Final = 2 * 1024**3
MAX_REQUEST_BYTES_LIMIT: Final = 1024**3
DURATION_S_MAX: Final = 8760 * 3600.0
LOG_LEVELS: Final = ("debug", "info", "warn", "error", "panic", "dpanic", "fatal")


@dataclass(frozen=True)
class StoreOptions:
    """What a store member is started with; names are those of etcd's flags."""

    name: str = "default"
    data_dir: str = ""
    listen_client_urls: tuple[str, ...] = ("http://localhost:2379",)
    advertise_client_urls: tuple[str, ...] = ("http://localhost:2379",)
    listen_peer_urls: tuple[str, ...] = ("http://localhost:2380",)
    initial_advertise_peer_urls: tuple[str, ...] = ("http://localhost:2380",)
    initial_cluster: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    initial_cluster_state: str = "new"
    initial_cluster_token: str = "etcd-cluster"
    heartbeat_interval_ms: int = 100
    election_timeout_ms: int = 1000
    snapshot_count: int = 10_000
    snapshot_catchup_entries: int = 5_000
    quota_backend_bytes: int = 0
    max_txn_ops: int = 128
    max_request_bytes: int = 1_572_864
    watch_progress_notify_interval_s: float = 600.0
    log_level: str = "info"

    @property
    def quota_bytes(self) -> int:
        """The quota in force: 0 stands for the default, a negative one for none (0 here)."""
        return max(self.quota_backend_bytes or DEFAULT_QUOTA_BYTES, 0)


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: its name on the command line, the field it sets, and what it means."""

    name: str
    field: str
    kind: str
    help: str

    @property
    def environment(self) -> str:
        """The environment variable that stands for the flag."""
        return "ETCD_" + self.name.upper().replace("-", "_")


FLAGS: Final = (
    Flag("name", "name", "text", "human-readable name of this member"),
    Flag("data-dir", "data_dir", "text", "directory of the data [NAME.etcd]"),
    Flag("listen-client-urls", "listen_client_urls", "urls", "URLs to serve clients on"),
    Flag("advertise-client-urls", "advertise_client_urls", "urls", "client URLs told to others"),
    Flag("listen-peer-urls", "listen_peer_urls", "urls", "URLs for other members"),
    Flag(
        "initial-advertise-peer-urls",
        "initial_advertise_peer_urls",
        "urls",
        "peer URLs told to others; the member's id comes from them",
    ),
    Flag("initial-cluster", "initial_cluster", "cluster", "NAME=URL,... of the first members"),
    Flag("initial-cluster-state", "initial_cluster_state", "state", "new or existing"),
    Flag(
        "initial-cluster-token", "initial_cluster_token", "text", "token that sets clusters apart"
    ),
    Flag("heartbeat-interval", "heartbeat_interval_ms", "number", "milliseconds of one tick"),
    Flag("election-timeout", "election_timeout_ms", "number", "milliseconds until an election"),
    Flag("snapshot-count", "snapshot_count", "number", "entries until the log is cut"),
    Flag(
        "snapshot-catchup-entries",
        "snapshot_catchup_entries",
        "number",
        "entries kept in the log after a cut",
    ),
    Flag(
        "quota-backend-bytes",
        "quota_backend_bytes",
        "number",
        "bytes of data allowed; 0 means 2 GiB, a negative number no limit",
    ),
    Flag("max-txn-ops", "max_txn_ops", "number", "operations allowed in one txn"),
    Flag("max-request-bytes", "max_request_bytes", "number", "largest request accepted"),
    Flag(
        "watch-progress-notify-interval",
        "watch_progress_notify_interval_s",
        "duration",
        "time between progress notifications, e.g. 10m",
    ),
    Flag("log-level", "log_level", "level", "debug, info, warn, error, panic or fatal"),
)

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration_s(text: str) -> float:
    """Parse a duration such as "1h30m" or "100ms".

    Returns:
        seconds.

    Raises:
        ValueError: the text is none.
    """
    parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def parse_urls(flag: str, text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of URLs with a host and a port.

    Raises:
        ConfigError: one of them is no such URL, or wants TLS.
    """
    urls = tuple(part.strip() for part in text.split(",") if part.strip())
    if not urls:
        raise ConfigError(f"--{flag} is empty: give URLs such as http://127.0.0.1:2379")
    for url in urls:
        check_url(flag, url)
    return urls


def check_url(flag: str, url: str) -> None:
    """Refuse what is no http URL of host and port."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"--{flag}: {url}: {error}") from None
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme == "https":
        raise ConfigError(
            f"--{flag}: {url}: TLS is not available in this version; use http and a private network"
        )
    if parts.scheme != "http":
        raise ConfigError(f"--{flag}: {url}: the URL must begin with http://")
    if not parts.hostname or port is None:
        raise ConfigError(f"--{flag}: {url}: the URL must name a host and a port")
    if parts.path not in ("", "/") or parts.query:
        raise ConfigError(f"--{flag}: {url}: the URL must not have a path")


def parse_cluster(flag: str, text: str) -> dict[str, tuple[str, ...]]:
    """Parse NAME=URL pairs; a name may come several times, once for each of its URLs."""
    cluster: dict[str, tuple[str, ...]] = {}
    for part in text.split(","):
        name, equals, url = part.strip().partition("=")
        if not equals or not name:
            raise ConfigError(f"--{flag}: '{part}' is not NAME=URL")
        check_url(flag, url)
        cluster[name] = (*cluster.get(name, ()), url)
    return cluster


def _choice(flag: str, text: str, allowed: Sequence[str]) -> str:
    if text not in allowed:
        raise ConfigError(f"--{flag}: '{text}' is not one of {', '.join(allowed)}")
    return text


def _number(text: str) -> int:
    """Parse a whole number of 64 bits, as etcd's flags take it."""
    if not re.fullmatch(r"[+-]?[0-9]+", text) or not -(2**63) <= int(text) < 2**63:
        raise ValueError(text)
    return int(text)


def parse_value(flag: Flag, text: str) -> Any:
    """Parse one flag's text into the value of its field.

    Raises:
        ConfigError: the text does not fit the flag.
    """
    if flag.kind == "urls":
        return parse_urls(flag.name, text)
    if flag.kind == "cluster":
        return parse_cluster(flag.name, text)
    if flag.kind == "state":
        return _choice(flag.name, text, ("new", "existing"))
    if flag.kind == "level":
        return _choice(flag.name, text, LOG_LEVELS)
    try:
        if flag.kind == "number":
            return _number(text)
        if flag.kind == "duration":
            return parse_duration_s(text)
    except ValueError:
        what = (
            "a whole number of 64 bits"
            if flag.kind == "number"
            else "a duration such as 10s or 1h30m"
        )
        raise ConfigError(f"--{flag.name}: '{text}' is not {what}") from None
    return text


def parse_flags(arguments: Sequence[str]) -> dict[str, str]:
    """Split a command line into flags, with one dash or two, as etcd's takes them.

    Returns:
        texts by flag name.

    Raises:
        ConfigError: an unknown flag, a missing value, or a word that is no flag.
    """
    known = {flag.name for flag in FLAGS}
    found: dict[str, str] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or word in ("-", "--"):
            raise ConfigError(f"'{word}' is not a flag; see --help")
        if name not in known:
            raise ConfigError(f"unknown flag --{name}; see --help")
        if not equals:
            if not words:
                raise ConfigError(f"--{name} needs a value")
            value = words.pop(0)
        found[name] = value
    return found


def read_options(arguments: Sequence[str], environment: Mapping[str, str]) -> StoreOptions:
    """Read the options of a member from its command line and environment.

    Args:
        arguments: the words after the program's name.
        environment: ETCD_* variables count, each as the flag of that name.

    Returns:
        the options, checked.

    Raises:
        ConfigError: something is wrong; the text says what to change.
    """
    texts = parse_flags(arguments)
    for flag in FLAGS:
        text = environment.get(flag.environment)
        if not text:  # set to nothing is not set
            continue
        if flag.name in texts:
            raise ConfigError(
                f"--{flag.name} is given and {flag.environment} is set: unset one of them"
            )
        texts[flag.name] = text
    values = {
        flag.field: parse_value(flag, texts[flag.name]) for flag in FLAGS if flag.name in texts
    }
    if "listen_client_urls" in values and "advertise_client_urls" not in values:
        raise ConfigError("--advertise-client-urls is required when --listen-client-urls is given")
    return complete(values)


def complete(values: Mapping[str, Any]) -> StoreOptions:
    """Fill in what follows from other options and check how they go together.

    Raises:
        ConfigError: two options contradict each other, or a number is out of range.
    """
    filled = dict(values)
    name = filled.setdefault("name", "default")
    filled["data_dir"] = filled.get("data_dir") or f"{name}.etcd"
    urls = filled.get("initial_advertise_peer_urls", StoreOptions.initial_advertise_peer_urls)
    filled.setdefault("initial_cluster", {name: urls})
    options = StoreOptions(**filled)
    if not options.name:
        raise ConfigError("--name is empty: give this member a name")
    if options.name not in options.initial_cluster:
        raise ConfigError(f"--initial-cluster has no member named '{options.name}' (--name)")
    if sorted(options.initial_cluster[options.name]) != sorted(options.initial_advertise_peer_urls):
        raise ConfigError(
            f"--initial-cluster gives '{options.name}' other URLs than "
            "--initial-advertise-peer-urls: make them equal"
        )
    if len(options.initial_cluster) > 1:
        raise ConfigError(
            "--initial-cluster names several members: this version runs a store of one member"
        )
    _check_numbers(options)
    return options


def _check_numbers(options: StoreOptions) -> None:
    heartbeat, election = options.heartbeat_interval_ms, options.election_timeout_ms
    if heartbeat <= 0 or election <= 0:
        raise ConfigError("--heartbeat-interval and --election-timeout must be above 0")
    if election < 5 * heartbeat:
        raise ConfigError(
            f"--election-timeout ({election} ms) must be at least five times "
            f"--heartbeat-interval ({heartbeat} ms)"
        )
    if election > 50_000:
        raise ConfigError(f"--election-timeout ({election} ms) must be at most 50000 ms")
    if options.max_txn_ops <= 0 or options.max_request_bytes <= 0:
        raise ConfigError("--max-txn-ops and --max-request-bytes must be above 0")
    if options.max_request_bytes > MAX_REQUEST_BYTES_LIMIT:
        raise ConfigError(f"--max-request-bytes must be at most {MAX_REQUEST_BYTES_LIMIT}")
    if options.snapshot_count <= 0 or options.snapshot_catchup_entries < 0:
        raise ConfigError("--snapshot-count must be above 0")
    if options.watch_progress_notify_interval_s < 0.1:
        raise ConfigError("--watch-progress-notify-interval must be at least 100ms")
    if options.watch_progress_notify_interval_s > DURATION_S_MAX:
        raise ConfigError("--watch-progress-notify-interval must be at most a year (8760h)")


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the ETCD_* variables that no flag reads, sorted; they are only warned of."""
    known = {flag.environment for flag in FLAGS} | {"ETCD_CONFIG_FILE"}
    return sorted(key for key in environment if key.startswith("ETCD_") and key not in known)
