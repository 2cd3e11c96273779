"""Telling systemd that a service is ready, stopping, or what it is about (sd_notify(3))."""

import os
import socket


def notify(*assignments: str) -> None:
    """Send assignments such as READY=1 to the service manager that started this process.

    Does nothing where there is none, or where it has stopped listening: a daemon works the same
    without systemd.
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto("\n".join(assignments).encode(), address)
        except (ConnectionError, FileNotFoundError):
            return
