"""Listening sockets of the addresses that a URL names."""

import errno
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from trimaran.errors import ConfigError


class SecureSocket(socket.socket):
    """A listening socket whose connections begin with TLS: that of an https URL."""


def bind(url: str, flag: str) -> list[socket.socket]:
    """Listen on every address of a URL.

    Args:
        url: scheme, host and port.
        flag: the option it comes from, for the error.

    Returns:
        the sockets; those of an https URL are of the class SecureSocket.

    Raises:
        ConfigError: the address is taken, not this machine's, or not known.
    """
    parts = urlsplit(url)
    make = SecureSocket if parts.scheme == "https" else socket.socket
    sockets: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(
            parts.hostname, parts.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            listening = make(family, kind, protocol)
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(1024)
    except OSError as error:
        close_all(sockets)
        reason = error.strerror or str(error)
        hint = f"stop what uses it or change {flag}"
        if error.errno != errno.EADDRINUSE:
            hint = f"change {flag}; `ip address` lists this host's addresses"
        raise ConfigError(f"cannot listen on {url}: {reason}; {hint}") from None
    return sockets


def bind_all(urls: Iterable[str], flag: str) -> list[socket.socket]:
    """Listen on all of the URLs, or on none.

    Raises:
        ConfigError: one of them cannot be listened on.
    """
    sockets: list[socket.socket] = []
    try:
        for url in urls:
            sockets += bind(url, flag)
    except ConfigError:
        close_all(sockets)
        raise
    return sockets


def close_all(sockets: Iterable[socket.socket]) -> None:
    """Close the sockets."""
    for listening in sockets:
        listening.close()
