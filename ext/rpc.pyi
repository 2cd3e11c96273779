"""The gRPC server engine: gRPC over HTTP/2 for many connections on one thread.

One turn of the owner's loop is `poll`, then `events`, then `flush`.
"""

from typing import Any, Final

OPEN: Final[int]
MESSAGE: Final[int]
HALF_CLOSED: Final[int]
CLOSED: Final[int]
DRAINED: Final[int]
FOREIGN: Final[int]
OUTPUT: Final[int]

class RpcServer:
    """A set of listening sockets and their connections.

    Args:
        handler: capsule "trimaran.rpc_handler" of the C functions that serve the hot methods; it
            must outlive the server. None: every method is cold.
        limits: fields of `trimaran_rpc_options` in ext/src/rpc.h, by name.

    Raises:
        OSError: a limit out of range (EINVAL), or no descriptor left.
        TypeError: an unknown limit.
    """

    def __init__(self, handler: object | None = None, **limits: int) -> None: ...
    def fileno(self) -> int:
        """Return the one descriptor to watch for reading."""

    def listen(self, fd: int, listener: int) -> None:
        """Serve the non-blocking listening socket fd, which the server owns from here."""

    def poll(self) -> bool:
        """Accept, read and dispatch; returns whether more is waiting already."""

    def flush(self) -> bool:
        """Write what is queued; returns whether more could be written at once."""

    @property
    def pending(self) -> bool:
        """Whether `events` has something to give."""

    def tick(self) -> None:
        """Do time-outs and keepalive; call it about every second."""

    def shutdown(self) -> None:
        """Stop accepting and let open calls finish; connections then end by themselves."""

    def close(self) -> None:
        """End every connection at once. May be repeated."""

    def counters(self) -> dict[str, int]:
        """Return the fields of `trimaran_rpc_counters`."""

    def events(self) -> list[tuple[int, Any, Any]]:
        """Take what happened, in order.

        (OPEN | HALF_CLOSED | CLOSED | DRAINED, RpcCall, None), (MESSAGE, RpcCall, bytes),
        (FOREIGN, fd, listener), (OUTPUT, RpcChannel, None).
        """

    def attach(self) -> RpcChannel:
        """Make a connection whose bytes the caller carries."""

class RpcCall:
    """One cold call, kept by its server until it is finished or its stream is gone.

    Attributes:
        is_plain: a GET or HEAD that is no gRPC: it is ended by `answer`, or by `finish`, which says
            503; nothing can be sent on it.
        http_method: "GET" or "HEAD" for such a call, or else "".
    """

    path: str
    http_method: str
    is_plain: bool
    metadata: dict[str, str]
    timeout_s: float
    owner: Any
    @property
    def closed(self) -> bool:
        """Whether the call is finished or its stream is gone."""

    @property
    def queued_bytes(self) -> int:
        """Bytes not yet handed to the socket."""

    def send(self, message: bytes) -> bool:
        """Queue a message for the next flush; returns False where the call is closed."""

    def finish(self, status: int, message: str = "") -> None:
        """End the call with a gRPC status, for the next flush to send."""

    def answer(self, http_status: int, content_type: str, content_length: int, body: bytes) -> None:
        """End a plain call, for the next flush to send; for HEAD, body is empty.

        Raises:
            ValueError: this is no plain call, or the values do not fit each other.
        """

    def consumed(self, size: int) -> None:
        """Tell that size bytes of messages are dealt with, which re-opens the client's window."""

class RpcChannel:
    """A connection whose bytes the owner carries, as TLS needs."""

    owner: Any
    def feed(self, data: bytes) -> bool:
        """Take what arrived; returns False once the connection is over."""

    def take(self) -> bytes | None:
        """Return what must leave, b"" where nothing must; None once the connection is over."""

    def close(self) -> None:
        """End the connection."""
