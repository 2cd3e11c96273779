"""Options of the store daemon: etcd's flags, environment names and checks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trimaran.errors import ConfigError
from trimaran.store.config_file import read_config_file
from trimaran.store.flags import Flag, environment_texts, parse_flags, parse_value, variable_of
from trimaran.store.options_cluster import (
    CLUSTER_FLAGS,
    ClusterOptions,
    check_cluster,
    fill_cluster,
)
from trimaran.store.options_tls import TLS_FLAGS, TLSOptions, check_tls

DEFAULT_QUOTA_BYTES: Final = 2 * 1024**3
MAX_REQUEST_BYTES_LIMIT: Final = 1024**3
DURATION_S_MAX: Final = 8760 * 3600.0


@dataclass(frozen=True)
class StoreOptions(ClusterOptions, TLSOptions):
    """What a store member is started with; names are those of etcd's flags.

    Attributes:
        unknown_settings: keys of the configuration file that nobody reads, to be warned of.
    """

    name: str = "default"
    data_dir: str = ""
    listen_client_urls: tuple[str, ...] = ("http://localhost:2379",)
    advertise_client_urls: tuple[str, ...] = ("http://localhost:2379",)
    listen_peer_urls: tuple[str, ...] = ("http://localhost:2380",)
    listen_metrics_urls: tuple[str, ...] = ()
    heartbeat_interval_ms: int = 100
    election_timeout_ms: int = 1000
    snapshot_count: int = 10_000
    snapshot_catchup_entries: int = 5_000
    quota_backend_bytes: int = 0
    max_txn_ops: int = 128
    max_request_bytes: int = 1_572_864
    watch_progress_notify_interval_s: float = 600.0
    corrupt_check_time_s: float = 0.0
    compact_hash_check_time_s: float = 60.0
    log_level: str = "info"
    config_file: str = ""
    unknown_settings: tuple[str, ...] = ()

    @property
    def quota_bytes(self) -> int:
        """The quota in force: 0 stands for the default, a negative one for none (0 here)."""
        return max(self.quota_backend_bytes or DEFAULT_QUOTA_BYTES, 0)


FLAGS: Final = (
    Flag("name", "name", "text", "human-readable name of this member"),
    Flag("data-dir", "data_dir", "text", "directory of the data [NAME.etcd]"),
    Flag("listen-client-urls", "listen_client_urls", "urls", "URLs to serve clients on"),
    Flag("advertise-client-urls", "advertise_client_urls", "urls", "client URLs told to others"),
    Flag("listen-peer-urls", "listen_peer_urls", "urls", "URLs for other members"),
    Flag(
        "listen-metrics-urls",
        "listen_metrics_urls",
        "urls",
        "further URLs for /metrics and /health, for those who have no certificate",
    ),
    *CLUSTER_FLAGS,
    Flag("heartbeat-interval", "heartbeat_interval_ms", "number", "milliseconds of one tick"),
    Flag("election-timeout", "election_timeout_ms", "number", "milliseconds until an election"),
    Flag("snapshot-count", "snapshot_count", "number", "entries until the log is cut"),
    Flag(
        "snapshot-catchup-entries",
        "snapshot_catchup_entries",
        "number",
        "entries kept in the log after a cut",
        "experimental-snapshot-catchup-entries",
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
        "experimental-watch-progress-notify-interval",
    ),
    Flag(
        "corrupt-check-time",
        "corrupt_check_time_s",
        "duration",
        "time between comparisons of the members' data; 0 for none",
        "experimental-corrupt-check-time",
    ),
    Flag(
        "compact-hash-check-time",
        "compact_hash_check_time_s",
        "duration",
        "time between comparisons of the members' hashes at compactions",
        "experimental-compact-hash-check-time",
    ),
    *TLS_FLAGS,
    Flag("log-level", "log_level", "level", "debug, info, warn, error, panic or fatal"),
    Flag(
        "config-file",
        "config_file",
        "text",
        "YAML or JSON file of these settings; all other flags and variables are then ignored",
    ),
)


def _no_files(path: str) -> str:
    raise ConfigError(f"--config-file {path}: files are not read here")


def read_options(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    read_file: Callable[[str], str] = _no_files,
) -> StoreOptions:
    """Read the options of a member from its command line and environment, or from a file.

    Args:
        arguments: the words after the program's name.
        environment: ETCD_* variables count, each as the flag of that name.
        read_file: gives the text of the configuration file, where one is named; it may raise
            ConfigError.

    Returns:
        the options, checked.

    Raises:
        ConfigError: something is wrong; the text says what to change.
    """
    texts = parse_flags(FLAGS, arguments)
    path = texts.get("config-file") or environment.get(variable_of("config-file"), "")
    unknown: tuple[str, ...] = ()
    if path:
        texts, unknown = read_config_file(FLAGS, path, read_file(path))
    else:
        variables = environment_texts(FLAGS, environment)
        for name in sorted(texts.keys() & variables.keys()):
            raise ConfigError(
                f"--{name} is given and {variable_of(name)} is set: unset one of them"
            )
        texts |= variables
    values = {
        flag.field: parse_value(flag, texts[flag.name]) for flag in FLAGS if flag.name in texts
    }
    if "listen_client_urls" in values and "advertise_client_urls" not in values:
        raise ConfigError("--advertise-client-urls is required when --listen-client-urls is given")
    return complete(values | {"config_file": path, "unknown_settings": unknown})


def complete(values: Mapping[str, Any]) -> StoreOptions:
    """Fill in what follows from other options and check how they go together.

    Raises:
        ConfigError: two options contradict each other, or a number is out of range.
    """
    filled = dict(values)
    name = filled.setdefault("name", "default")
    filled["data_dir"] = filled.get("data_dir") or f"{name}.etcd"
    fill_cluster(name, filled)
    options = StoreOptions(**filled)
    check_cluster(options.name, options)
    check_tls(
        options,
        options.listen_client_urls,
        options.listen_peer_urls,
        options.listen_metrics_urls,
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
        raise ConfigError("--snapshot-count must be above 0, --snapshot-catchup-entries at least 0")
    if options.watch_progress_notify_interval_s < 0.1:
        raise ConfigError("--watch-progress-notify-interval must be at least 100ms")
    if options.compact_hash_check_time_s <= 0:
        raise ConfigError("--compact-hash-check-time must be above 0")
    for flag in FLAGS:
        if flag.kind == "duration" and getattr(options, flag.field) > DURATION_S_MAX:
            raise ConfigError(f"--{flag.name} must be at most a year (8760h)")


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the ETCD_* variables that no flag reads, sorted; they are only warned of."""
    known = {variable_of(name) for flag in FLAGS for name in flag.names}
    return sorted(key for key in environment if key.startswith("ETCD_") and key not in known)
