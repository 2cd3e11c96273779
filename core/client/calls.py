"""How a request reaches the store: fail-over, what may be repeated, the token, errors.

A request goes out over a standing connection only (see `EndpointPool`). If it then fails as
unavailable, a read is repeated on another endpoint until the time is over; a write is not, because
it may have taken effect. A refusal for a stale token comes before any effect, so that both are
repeated once with a new token.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from trimaran.client.endpoints import Dialing, Endpoint, EndpointPool, TLSOptions
from trimaran.errors import (
    ETCD_ERRORS,
    CompactedError,
    ConfigError,
    StatusCode,
    StoreError,
    StoreUnavailableError,
)
from trimaran.wire import etcd_pb2 as pb

M = TypeVar("M", bound=Message)
Metadata = tuple[tuple[str, str], ...]

# The server cuts a stream with this mark when it loses the leader, instead of leaving it mute.
HAS_LEADER: Final[Metadata] = (("hasleader", "true"),)
_BACKOFF_FIRST_S: Final = 0.05
_BACKOFF_LIMIT_S: Final = 2.0
_LEARNER: Final = ETCD_ERRORS["LEARNER"][1]
_AUTH_NOT_ENABLED: Final = "etcdserver: authentication is not enabled"
_STALE_TOKEN: Final = frozenset(
    {
        "etcdserver: invalid auth token",
        "etcdserver: user name is empty",
        "etcdserver: revision of auth store is old",
    }
)


class Backoff:
    """Waiting times between attempts: they double up to a limit, each scattered by half.

    Args:
        jitter: gives numbers in [0, 1), e.g. `random.random`.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._attempt = 0

    def reset(self) -> None:
        """Begin again with the shortest time."""
        self._attempt = 0

    def next_s(self) -> float:
        """Give the next waiting time in seconds."""
        full_s = min(_BACKOFF_LIMIT_S, _BACKOFF_FIRST_S * 2.0**self._attempt)
        if full_s < _BACKOFF_LIMIT_S:
            self._attempt += 1
        return full_s * (0.5 + 0.5 * self._jitter())


def store_error(code: StatusCode, message: str) -> StoreError:
    """Build the exception for an answer of the server that is not OK."""
    if message == ETCD_ERRORS["COMPACTED"][1]:
        return CompactedError(message)
    if code in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED):
        return StoreUnavailableError(code, message)
    return StoreError(code, message)


def from_rpc_error(error: Any) -> StoreError:
    """Translate gRPC's exception; its text is the server's, byte for byte."""
    return store_error(StatusCode(error.code().value[0]), error.details() or "")


# What reading or writing a stream raises when it is over, however it ended.
STREAM_ERRORS: Final = (
    grpc.aio.AioRpcError,
    grpc.aio.BaseError,
    asyncio.InvalidStateError,
    EOFError,
    TimeoutError,
)


def stream_error(error: BaseException) -> StoreError:
    """Translate one of STREAM_ERRORS."""
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    text = str(error) or "the server did not answer in time"
    return StoreUnavailableError(StatusCode.UNAVAILABLE, text)


def is_cancelled() -> bool:
    """Tell whether somebody cancels this task, as against gRPC that cancels a call in it.

    gRPC raises CancelledError for both: a channel that is closed cancels what runs on it.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Caller:
    """Sends requests to whichever endpoint answers; the base of `Client`.

    Args:
        endpoints: http://HOST:PORT, https://HOST:PORT or HOST:PORT, in order of preference.
        tls: options for TLS endpoints.
        user, password: log in with these; both or neither.
        timeout_s: how long a request may take in all, with its repetitions.
        dialing: how long connecting and silence may take.
        jitter: gives numbers in [0, 1) that scatter waiting times.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: TLSOptions | None = None,
        user: str | None = None,
        password: str | None = None,
        timeout_s: float = 5.0,
        jitter: Callable[[], float] = random.random,
        dialing: Dialing | None = None,
    ) -> None:
        if (user is None) != (password is None):
            raise ConfigError("give both user and password, or neither")
        self.timeout_s = timeout_s
        self.pool = EndpointPool(endpoints, tls, dialing)
        self._user = user
        self._password = password
        self._jitter = jitter
        self._token: str | None = None
        self._token_lock = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End watches and keep-alives and close every connection."""
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.pool.close()

    def backoff(self) -> Backoff:
        """Make the waiting times of one series of attempts."""
        return Backoff(self._jitter)

    def run_in_background(self, task: asyncio.Task[None]) -> None:
        """Tie a task's life to the client's."""
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def call(
        self,
        path: str,
        request: Message,
        response: type[M],
        *,
        repeatable: bool = False,
        endpoint: str | None = None,
        timeout_s: float | None = None,
    ) -> M:
        """Send one request and await its answer.

        Args:
            path: a path of `trimaran.wire.methods.METHODS` that takes and answers one message.
            request: its message.
            response: class of the answer.
            repeatable: repeating the request does no harm, even if it took effect.
            endpoint: ask this endpoint only.
            timeout_s: instead of the client's.

        Raises:
            StoreUnavailableError: no endpoint answered in time; a write may have taken effect.
            CompactedError: a revision asked for has been compacted away.
            StoreError: the server refused.
        """
        deadline_s = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        only = None if endpoint is None else self.pool.by_url(endpoint)
        backoff = self.backoff()
        renewed = False
        last_error: StoreUnavailableError | None = None
        while True:
            try:
                target = await self.pool.acquire(deadline_s, only)
            except StoreUnavailableError as error:
                raise last_error or error from None
            token = await self.token(deadline_s)
            try:
                attempt_s = self._attempt_timeout_s(deadline_s, repeatable and only is None)
                answer = await self._attempt(target, path, request, token, attempt_s)
                if only is None:
                    self.pool.succeeded(target)
                assert isinstance(answer, response)
                return answer
            except StoreUnavailableError as error:
                if not repeatable:
                    raise
                last_error = error
            except StoreError as error:
                if error.message == _LEARNER and only is None and time.monotonic() < deadline_s:
                    # It did nothing, and another member will.
                    self.pool.failed(target)
                    last_error = StoreUnavailableError(error.code, error.message)
                    await asyncio.sleep(backoff.next_s())
                    continue
                if renewed or not self.is_token_stale(error):
                    raise
                renewed = True
                self.forget_token(token)
                continue
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise last_error
            await asyncio.sleep(min(left_s, backoff.next_s()))

    def _attempt_timeout_s(self, deadline_s: float, shared: bool) -> float:
        """Leave time for the other endpoints, where a mute one may be given up."""
        left_s = max(0.001, deadline_s - time.monotonic())
        return max(left_s / len(self.pool), min(left_s, 1.0)) if shared else left_s

    async def _attempt(
        self, target: Endpoint, path: str, request: Message, token: str, timeout_s: float
    ) -> Any:
        """Send a request to one endpoint, once, and note it if that is not available."""
        metadata = (("token", token),) if token else ()
        try:
            answer = await target.method(path)(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            if isinstance(error, StoreUnavailableError):
                self.pool.failed(target)
            raise error from None
        return answer

    async def token(self, deadline_s: float) -> str:
        """Give the token to send, logging in where there is none; "" where none is needed."""
        if self._user is None:
            return ""
        async with self._token_lock:
            if self._token is None:
                self._token = await self._authenticate(deadline_s)
            return self._token

    def is_token_stale(self, error: StoreError | None) -> bool:
        """Tell whether a request was refused for its token, before it could have any effect."""
        return self._user is not None and error is not None and error.message in _STALE_TOKEN

    def forget_token(self, token: str) -> None:
        """Drop a token that the server refused, unless another call has renewed it since."""
        if self._token == token:
            self._token = None

    async def _authenticate(self, deadline_s: float) -> str:
        request = pb.AuthenticateRequest(name=self._user, password=self._password)
        backoff = self.backoff()
        while True:
            target = await self.pool.acquire(deadline_s)
            left_s = max(0.001, deadline_s - time.monotonic())
            try:
                path = "/etcdserverpb.Auth/Authenticate"
                answer = await self._attempt(target, path, request, "", left_s)
                return str(answer.token)
            except StoreUnavailableError:
                if time.monotonic() >= deadline_s:
                    raise
            except StoreError as error:
                if error.message == _AUTH_NOT_ENABLED:
                    return ""
                raise
            await asyncio.sleep(backoff.next_s())

    async def open_stream(self, path: str, deadline_s: float) -> tuple[Endpoint, str, Any]:
        """Open a stream of the kind both sides write to, on an endpoint that has a leader.

        Returns:
            the endpoint, the token used, and gRPC's call.
        """
        target = await self.pool.acquire(deadline_s)
        token = await self.token(deadline_s)
        metadata = (*HAS_LEADER, ("token", token)) if token else HAS_LEADER
        return target, token, target.method(path)(metadata=metadata)
