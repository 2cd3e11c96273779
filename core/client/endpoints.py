"""The endpoints of a store: which one to use now, and its gRPC channel."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import grpc.aio

from trimaran.errors import ConfigError, StatusCode, StoreError, StoreUnavailableError
from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS

DEFAULT_PORT: Final = 2379
# The preferred endpoint has this long to connect before the others are tried beside it.
HEAD_START_S: Final = 0.25
# An endpoint that failed is passed over this long, where another one answers.
PENALTY_S: Final = 3.0
CLOSE_TIMEOUT_S: Final = 2.0
# Calls on an endpoint that is none any more have this long to end.
RETIRE_S: Final = 10.0
_PROBE_TIMEOUT_S: Final = 0.5
KEEPALIVE_TIME_MIN_S: Final = 7.0

_CHANNEL_OPTIONS: Final[list[tuple[str, int]]] = [
    # Whether to repeat a request is decided in calls.py alone.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Connections and their back-off are this client's own, not shared within the process.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True)
class Dialing:
    """How to connect and to notice that the other side is gone.

    Attributes:
        connect_timeout_s: how long an attempt may take.
        keepalive_time_s: silence after which the client pings; servers refuse pings more often
            than every 5 s, so that less than the default counts as the default.
        keepalive_timeout_s: how long an answer to that may take.
    """

    connect_timeout_s: float = 2.0
    keepalive_time_s: float = KEEPALIVE_TIME_MIN_S
    keepalive_timeout_s: float = 3.0

    def options(self) -> list[tuple[str, int]]:
        """Give them as gRPC's options of a channel."""
        time_s = max(self.keepalive_time_s, KEEPALIVE_TIME_MIN_S)
        return [
            ("grpc.min_reconnect_backoff_ms", round(self.connect_timeout_s * 1000)),
            ("grpc.keepalive_time_ms", round(time_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(self.keepalive_timeout_s * 1000)),
        ]


@dataclass(frozen=True, slots=True)
class TLSOptions:
    """How to reach https:// endpoints; all files are PEM.

    Attributes:
        ca: certificates that the server's must be signed by; None for the system's.
        cert: the client's own certificate, for servers that ask for one.
        key: key of cert.
        server_name: name to expect in the server's certificate instead of the endpoint's host.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def credentials(self) -> Any:
        """Read the files into gRPC's credentials.

        Raises:
            ConfigError: a file cannot be read, or only one of cert and key is given.
        """
        if (self.cert is None) != (self.key is None):
            raise ConfigError("TLS: give both the client's certificate and its key, or neither")
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca),
            private_key=_read(self.key),
            certificate_chain=_read(self.cert),
        )

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Tell one state of the files from another; a file that is missing counts as one."""
        return tuple(_stamp(path) for path in (self.ca, self.cert, self.key) if path is not None)


def _stamp(path: str | Path) -> tuple[int, int]:
    try:
        found = Path(path).stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino


def _read(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"TLS: cannot read {path}: {error.strerror}; check the path") from error


def parse_endpoint(url: str, tls: bool) -> tuple[str, bool]:
    """Split an endpoint into gRPC's target and whether it is TLS.

    Args:
        url: http://host:port, https://host:port, unix:///path, or bare host:port.
        tls: the client has TLS options; a bare endpoint then means TLS.

    Raises:
        ConfigError: it is none of these, or plain although TLS options were given.
    """
    if url.startswith("unix://"):
        return f"unix:{url.removeprefix('unix://')}", False
    parts = urlsplit(url if "://" in url else f"{'https' if tls else 'http'}://{url}")
    if parts.scheme not in ("http", "https") or parts.path not in ("", "/"):
        raise ConfigError(f"endpoint {url!r}: write http://HOST:PORT, https://HOST:PORT")
    if tls and parts.scheme == "http":
        raise ConfigError(f"endpoint {url!r} is plain but TLS options are given: write https://")
    try:
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ConfigError(f"endpoint {url!r}: {error}") from error
    if not host:
        raise ConfigError(f"endpoint {url!r} has no host: write http://HOST:PORT")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", parts.scheme == "https"


class Endpoint:
    """One address of the store with its channel, which is made at first use.

    Attributes:
        url: as the caller wrote it.
        failed_until_s: monotonic time until which other endpoints are preferred.
    """

    def __init__(self, url: str, tls: TLSOptions | None, dialing: Dialing | None = None) -> None:
        self.url = url
        self._dialing = dialing or Dialing()
        self._target, self._secure = parse_endpoint(url, tls is not None)
        self._tls = tls or TLSOptions()
        self._channel: Any = None
        self._methods: dict[str, Any] = {}
        self._stamp: tuple[tuple[int, int], ...] = ()
        self.failed_until_s = 0.0

    def channel(self) -> Any:
        """Give the channel, a `grpc.aio.Channel`.

        Raises:
            ConfigError: the TLS options do not work.
        """
        if self._channel is None:
            options: list[tuple[str, int | str]] = [
                *_CHANNEL_OPTIONS,
                *self._dialing.options(),
            ]
            if self._secure:
                if self._tls.server_name:
                    options.append(("grpc.ssl_target_name_override", self._tls.server_name))
                self._stamp = self._tls.stamp()
                credentials = self._tls.credentials()
                self._channel = grpc.aio.secure_channel(self._target, credentials, options)
            else:
                self._channel = grpc.aio.insecure_channel(self._target, options)
        return self._channel

    def has_old_files(self) -> bool:
        """Tell whether the files of TLS have been renewed since the channel read them."""
        return self._secure and self._channel is not None and self._stamp != self._tls.stamp()

    def method(self, path: str) -> Any:
        """Give the callable of a gRPC method, by a path of `METHODS`."""
        callable_ = self._methods.get(path)
        if callable_ is None:
            method = METHODS[path]
            kind = "_".join(
                "stream" if streaming else "unary"
                for streaming in (method.client_streaming, method.server_streaming)
            )
            callable_ = getattr(self.channel(), kind)(
                path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            self._methods[path] = callable_
        return callable_

    def is_ready(self) -> bool:
        """Tell whether a connection stands."""
        return bool(
            self._channel is not None
            and self._channel.get_state() is grpc.ChannelConnectivity.READY
        )

    def has_failed(self) -> bool:
        """Tell whether the last attempt to connect failed and none has succeeded since."""
        return bool(
            self._channel is not None
            and self._channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        )

    async def failure(self) -> str:
        """Say why the last attempt to connect failed.

        gRPC tells that only to a request that it cannot send, so a harmless one is tried.
        """
        if not self.has_failed():
            return "no answer"
        probe = self.method("/grpc.health.v1.Health/Check")
        try:
            await probe(pb.HealthCheckRequest(), timeout=_PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            reason = str(error.details()).rpartition("last error: ")[2]
            return reason.removeprefix("UNKNOWN: ") or "no answer"
        return "connected too late"

    def take_channel(self) -> Any:
        """Give the channel away, to be closed; None where there is none."""
        channel, self._channel = self._channel, None
        self._methods.clear()
        return channel

    async def close(self) -> None:
        """Close the channel; calls that run end as cancelled."""
        channel = self.take_channel()
        if channel is not None:
            await channel.close()


async def _unreachable(endpoints: Sequence[Endpoint]) -> StoreUnavailableError:
    """Build the error for endpoints of which none could be connected to in time."""
    failures = await asyncio.gather(*(endpoint.failure() for endpoint in endpoints))
    lines = [
        f"{endpoint.url} ({failure})" for endpoint, failure in zip(endpoints, failures, strict=True)
    ]
    return StoreUnavailableError(
        StatusCode.UNAVAILABLE,
        f"no endpoint could be connected to in time: {', '.join(lines)}; "
        "check that the store runs and can be reached",
    )


class EndpointPool:
    """Chooses an endpoint with a standing connection; sticks to it until it fails.

    A request goes out only over a connection that stands. So one that never found a connection
    has certainly not been sent, and one that was sent is known to have been.

    Args:
        urls: the endpoints, in order of preference.
        tls: options for those that are https.
        dialing: how long connecting and silence may take.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        urls: Sequence[str],
        tls: TLSOptions | None,
        dialing: Dialing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(urls, str) or not urls:
            raise ConfigError("give a list of at least one endpoint, e.g. http://127.0.0.1:2379")
        self._tls = tls
        self._dialing = dialing
        self._endpoints = [Endpoint(url, tls, dialing) for url in urls]
        self._closing: set[asyncio.Task[None]] = set()
        self._clock = clock
        self._preferred = 0
        self._connecting: dict[Endpoint, asyncio.Task[None]] = {}
        self._change: asyncio.Event | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._endpoints)

    @property
    def urls(self) -> list[str]:
        """The endpoints as the caller wrote them."""
        return [endpoint.url for endpoint in self._endpoints]

    def by_url(self, url: str) -> Endpoint:
        """Find the endpoint that was configured as `url`.

        Raises:
            ConfigError: there is none.
        """
        for endpoint in self._endpoints:
            if endpoint.url == url:
                return endpoint
        raise ConfigError(f"{url!r} is none of this client's endpoints: {', '.join(self.urls)}")

    def update(self, urls: Sequence[str]) -> None:
        """Use these endpoints from now on; connections to those that stay are kept.

        Raises:
            ConfigError: one is none, or there is none; nothing has changed.
        """
        if not urls:
            raise ConfigError("give a list of at least one endpoint")
        if list(urls) == self.urls:
            return
        known = {endpoint.url: endpoint for endpoint in self._endpoints}
        chosen = [
            known.pop(url) if url in known else Endpoint(url, self._tls, self._dialing)
            for url in urls
        ]
        preferred = self._endpoints[self._preferred]
        self._endpoints = chosen
        self._preferred = chosen.index(preferred) if preferred in chosen else 0
        for endpoint in known.values():
            self._close_later(endpoint)
        self._announce()

    def _close_later(self, endpoint: Endpoint) -> None:
        """Close an endpoint's channel when what runs on it has had time to end."""
        channel = endpoint.take_channel()
        if channel is None:
            return
        task = asyncio.create_task(channel.close(RETIRE_S))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _in_order(self) -> Iterator[Endpoint]:
        yield from self._endpoints[self._preferred :]
        yield from self._endpoints[: self._preferred]

    async def acquire(self, deadline_s: float, only: Endpoint | None = None) -> Endpoint:
        """Give an endpoint whose connection stands, connecting where none does.

        Args:
            deadline_s: monotonic time to give up at.
            only: accept no other endpoint.

        Raises:
            StoreUnavailableError: no endpoint could be connected to in time.
            StoreError: the pool is closed.
        """
        head_start_end_s = self._clock() + HEAD_START_S
        while True:
            if self._closed:
                raise StoreError(StatusCode.CANCELLED, "this client is closed")
            now_s = self._clock()
            candidates = [only] if only is not None else list(self._in_order())
            first = candidates[0]
            ready = [endpoint for endpoint in candidates if endpoint.is_ready()]
            healthy = [endpoint for endpoint in ready if endpoint.failed_until_s <= now_s]
            if healthy:
                return healthy[0]
            alone = len(candidates) == 1
            waited = now_s >= head_start_end_s
            if ready and (alone or waited):
                return ready[0]
            if now_s >= deadline_s:
                raise await _unreachable(candidates)
            all_at_once = waited or first.has_failed() or first.failed_until_s > now_s
            for endpoint in candidates if all_at_once else [first]:
                self._connect(endpoint)
            until_s = deadline_s if waited or alone else min(deadline_s, head_start_end_s)
            await self._wait_for_change(until_s - now_s)

    def _connect(self, endpoint: Endpoint) -> None:
        """Connect in the background, unless that is going on."""
        if endpoint.has_old_files() and not endpoint.is_ready():
            # The certificates have been renewed, and the old ones may have ended.
            self._connecting.pop(endpoint, None)
            self._close_later(endpoint)
        if endpoint not in self._connecting and not endpoint.is_ready():
            channel = endpoint.channel()
            task = asyncio.create_task(self._follow_state(channel))
            self._connecting[endpoint] = task
            task.add_done_callback(lambda task: self._connected(endpoint, task))

    def _connected(self, endpoint: Endpoint, task: asyncio.Task[None]) -> None:
        if self._connecting.get(endpoint) is task:
            del self._connecting[endpoint]

    async def _follow_state(self, channel: Any) -> None:
        """Wake those who wait at each change of a channel's state, until it is connected."""
        state = channel.get_state(try_to_connect=True)
        while state not in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.SHUTDOWN):
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)
            self._announce()

    def _announce(self) -> None:
        if self._change is not None:
            self._change.set()
            self._change = None

    async def _wait_for_change(self, timeout_s: float) -> None:
        """Wait until some channel's state changes or the time is over."""
        if self._change is None:
            self._change = asyncio.Event()
        event = self._change
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass

    def succeeded(self, endpoint: Endpoint) -> None:
        """Note that an endpoint answered: it is the preferred one from now on."""
        endpoint.failed_until_s = 0.0
        if endpoint in self._endpoints:
            self._preferred = self._endpoints.index(endpoint)

    def failed(self, endpoint: Endpoint) -> None:
        """Note that an endpoint did not answer well: the next one is preferred from now on."""
        endpoint.failed_until_s = self._clock() + PENALTY_S
        if endpoint is self._endpoints[self._preferred]:
            self._preferred = (self._preferred + 1) % len(self._endpoints)

    def is_retired(self, endpoint: Endpoint) -> bool:
        """Tell whether an endpoint is none any more, so that what runs on it ends."""
        return endpoint not in self._endpoints

    async def close(self) -> None:
        """Close every channel."""
        self._closed = True
        self._announce()
        tasks = [*self._connecting.values(), *self._closing]
        for endpoint in self._endpoints:
            await endpoint.close()
        # Closing a channel ends the wait for its state. Cancelling the wait instead would leave an
        # operation in gRPC that completes later, maybe after the event loop has been closed.
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)
        for task in tasks:
            task.cancel()
