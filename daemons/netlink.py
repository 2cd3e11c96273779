"""The socket to the kernel's route netlink: read the state, apply steps, hear of changes.

The kernel works on a request inside the sending call, so requests here are plain calls: a dump or
a batch of a thousand entries takes milliseconds. Only events are awaited.
"""

import asyncio
import errno
import itertools
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from trimaran.net import rtnetlink
from trimaran.net.kernel import (
    Add,
    Address,
    ChangeLink,
    Conflict,
    CreateLink,
    Delete,
    DeleteLink,
    Forwarding,
    KernelState,
    Link,
    Neighbour,
    Route,
    Step,
)
from trimaran.net.rtnetlink import Message
from trimaran.net.underlay import DefaultRoute, Interface

BATCH: Final = 64  # Messages a send; their answers must fit the receive buffer.
RECEIVE_BYTES: Final = 1 << 18
RECEIVE_BUFFER_BYTES: Final = 4 << 20
DUMP_ATTEMPTS: Final = 20
ANSWER_TIMEOUT_S: Final = 5.0
SO_RCVBUFFORCE: Final = 33
# What is gone already is what a removal wanted.
_GONE: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})


Request = tuple[int, int, bytes]  # message type, flags, body


@dataclass(frozen=True)
class Snapshot:
    """What the kernel holds, as far as an overlay is concerned."""

    kernel: KernelState
    interfaces: tuple[Interface, ...]
    default_routes: tuple[DefaultRoute, ...]
    indexes: dict[str, int]


class Netlink:
    """One request socket; bound to the network namespace it was opened in."""

    def __init__(self) -> None:
        self._socket = _open_socket(0)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._sequence = itertools.count(1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def read(self) -> Snapshot:
        """Read devices, addresses, neighbours, forwarding entries and routes.

        Raises:
            OSError: if the kernel refuses.
        """
        entries = [rtnetlink.decode_link(item.body) for item in self._dump(*rtnetlink.DUMP_LINKS)]
        names = {entry.index: entry.link.name for entry in entries}
        addresses = [
            decoded
            for item in self._dump(*rtnetlink.DUMP_ADDRESSES)
            if (decoded := rtnetlink.decode_address(item.body)) is not None
        ]
        neighbours, forwardings = self._read_neighbours(names)
        routes = [
            route
            for item in self._dump(*rtnetlink.DUMP_ROUTES)
            if (route := rtnetlink.decode_route(item.body, names)) is not None
        ]
        kernel = KernelState(
            links={entry.link.name: _name_underlay(entry, names) for entry in entries},
            addresses=frozenset(
                Address(names[index], item.ip, item.network.prefixlen)
                for index, item in addresses
                if index in names
            ),
            neighbours=frozenset(neighbours),
            forwardings=frozenset(forwardings),
            routes=frozenset(routes),
        )
        interfaces = tuple(
            Interface(
                entry.index,
                entry.link.name,
                entry.link.mtu,
                entry.link.up,
                tuple(item for index, item in addresses if index == entry.index),
            )
            for entry in entries
        )
        defaults = tuple(
            DefaultRoute(route.link, route.metric)
            for route in routes
            if route.destination.prefixlen == 0
        )
        return Snapshot(kernel, interfaces, defaults, {name: i for i, name in names.items()})

    def _read_neighbours(self, names: dict[int, str]) -> tuple[list[Neighbour], list[Forwarding]]:
        neighbours: list[Neighbour] = []
        forwardings: list[Forwarding] = []
        for dump in (rtnetlink.DUMP_NEIGHBOURS, rtnetlink.DUMP_FORWARDINGS):
            for item in self._dump(*dump):
                entry = rtnetlink.decode_neighbour(item.body, names)
                if isinstance(entry, Neighbour):
                    neighbours.append(entry)
                elif isinstance(entry, Forwarding):
                    forwardings.append(entry)
        return neighbours, forwardings

    def apply(self, steps: Iterable[Step], make_tun: Callable[[Link], None]) -> list[str]:
        """Carry out steps in order.

        Args:
            steps: from `trimaran.net.kernel.difference`.
            make_tun: opens a TUN device, which netlink cannot.

        Returns:
            what failed, one sentence each; the caller compares again later.
        """
        problems: list[str] = []
        indexes = self._read_indexes()
        requests: list[tuple[Step, Request]] = []

        def flush() -> None:
            problems.extend(self._send(requests))
            requests.clear()

        for step in steps:
            if isinstance(step, Conflict):
                problems.append(step.text)
            elif isinstance(step, CreateLink | ChangeLink | DeleteLink):
                flush()
                problems += self._apply_link(step, indexes, make_tun)
                indexes = self._read_indexes()
            elif step.entry.link not in indexes:
                if isinstance(step, Add):
                    problems.append(f"{describe(step)}: no device {step.entry.link}")
            elif isinstance(step, Add):
                body = rtnetlink.encode_add(step.entry, indexes, replace=step.replace)
                requests.append((step, body))
            else:
                assert isinstance(step, Delete)
                body = rtnetlink.encode_delete(step.entry, indexes)
                requests.append((step, body))
        flush()
        return problems

    def _apply_link(
        self,
        step: CreateLink | ChangeLink | DeleteLink,
        indexes: dict[str, int],
        make_tun: Callable[[Link], None],
    ) -> list[str]:
        if isinstance(step, DeleteLink):
            return self._send([(step, rtnetlink.encode_delete_link(step.name))])
        if isinstance(step, CreateLink):
            if step.link.kind == "tun":
                try:
                    make_tun(step.link)
                except OSError as error:
                    return [f"{describe(step)}: {error.strerror}"]
            else:
                vxlan = step.link.vxlan
                if vxlan is not None and vxlan.underlay and vxlan.underlay not in indexes:
                    return [f"{describe(step)}: no interface {vxlan.underlay}"]
                created = rtnetlink.encode_create_link(step.link, indexes)
                problems = self._send([(step, created)])
                if problems:
                    return problems
                step = ChangeLink(replace(step.link, mac=""))
        return self._send([(step, rtnetlink.encode_change_link(step.link))])

    def _read_indexes(self) -> dict[str, int]:
        entries = (rtnetlink.decode_link(item.body) for item in self._dump(*rtnetlink.DUMP_LINKS))
        return {entry.link.name: entry.index for entry in entries}

    def _send(self, requests: list[tuple[Step, Request]]) -> list[str]:
        """Send requests in batches and collect the failures."""
        problems: list[str] = []
        for start in range(0, len(requests), BATCH):
            pending: dict[int, Step] = {}
            data = bytearray()
            for step, (kind, flags, body) in requests[start : start + BATCH]:
                sequence = next(self._sequence)
                pending[sequence] = step
                data += rtnetlink.message(kind, flags | rtnetlink.FLAG_ACK, sequence, body)
                data += b"\0" * (-len(data) % 4)
            self._socket.send(data)
            while pending:
                for item in self._receive():
                    done = pending.pop(item.sequence, None)
                    code = rtnetlink.error_number(item.body)
                    if done is not None and code and not _already_gone(done, code):
                        problems.append(explain(done, code))
        return problems

    def _receive(self) -> Iterator[Message]:
        return rtnetlink.split_messages(self._socket.recv(RECEIVE_BYTES))

    def _dump(self, kind: int, body: bytes) -> list[Message]:
        for _ in range(DUMP_ATTEMPTS):
            items, interrupted = self._dump_once(kind, body)
            if not interrupted:
                return items
        raise OSError(errno.EAGAIN, "the kernel's tables change too fast to be read")

    def _dump_once(self, kind: int, body: bytes) -> tuple[list[Message], bool]:
        """Read one table; the second value tells that it changed meanwhile."""
        sequence = next(self._sequence)
        self._socket.send(rtnetlink.message(kind, rtnetlink.FLAG_DUMP, sequence, body))
        items: list[Message] = []
        interrupted = False
        while True:
            for item in self._receive():
                if item.sequence != sequence:
                    continue
                interrupted |= bool(item.flags & rtnetlink.FLAG_DUMP_INTERRUPTED)
                if item.type == rtnetlink.NLMSG_DONE:
                    return items, interrupted
                if item.type == rtnetlink.NLMSG_ERROR:
                    code = rtnetlink.error_number(item.body)
                    raise OSError(code, f"netlink dump {kind}: {os.strerror(code)}")
                items.append(item)


class NetlinkEvents:
    """Hears of changes and calls back, from the loop, for those that may concern us."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._socket = _open_socket(rtnetlink.GROUPS)
        self._socket.setblocking(False)
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self.indexes: frozenset[int] = frozenset()
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Stop listening."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        relevant = False
        for _ in range(BATCH):
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # Events were lost; the comparison that follows reads everything anyway.
                relevant = True
                continue
            relevant |= any(self._concerns(item) for item in rtnetlink.split_messages(data))
        if relevant:
            self._changed()

    def _concerns(self, item: Message) -> bool:
        # Neighbours of other devices come and go all day; everything else is rare.
        if item.type in (rtnetlink.NEW_NEIGHBOUR, rtnetlink.DELETE_NEIGHBOUR):
            return rtnetlink.event_index(item) in self.indexes
        return True


def _open_socket(groups: int) -> socket.socket:
    netlink = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    try:
        netlink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    except PermissionError:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    netlink.bind((0, groups))
    return netlink


def _name_underlay(entry: rtnetlink.LinkEntry, names: dict[int, str]) -> Link:
    vxlan = entry.link.vxlan
    if vxlan is None:
        return entry.link
    return replace(entry.link, vxlan=replace(vxlan, underlay=names.get(entry.underlay_index, "")))


def _already_gone(step: Step, code: int) -> bool:
    return isinstance(step, Delete | DeleteLink) and code in _GONE


def explain(step: Step, code: int) -> str:
    """Say what failed, why, and what to do where that is known."""
    text = f"{describe(step)}: {os.strerror(code)}"
    if isinstance(step, CreateLink) and code == errno.EOPNOTSUPP:
        return f"{text}; load the kernel module {step.link.kind}, or choose another backend"
    if isinstance(step, CreateLink) and code == errno.EEXIST:
        return f"{text}; another device uses this VNI and port: remove it, or choose another VNI"
    if isinstance(step, Add) and isinstance(step.entry, Route) and code == errno.EEXIST:
        route = step.entry.destination
        return f"{text}; a route of someone else is in the way (ip route show {route}): remove it"
    return text


def describe(step: Step) -> str:
    """Say in a few words what a step does."""
    match step:
        case CreateLink(link) | ChangeLink(link):
            verb = "create" if isinstance(step, CreateLink) else "change"
            return f"{verb} {link.kind} device {link.name}"
        case DeleteLink(name):
            return f"remove device {name}"
        case Conflict(text):
            return text
    verb = "add" if isinstance(step, Add) else "remove"
    entry = step.entry
    match entry:
        case Address():
            return f"{verb} address {entry.address}/{entry.prefix_length} on {entry.link}"
        case Neighbour():
            return f"{verb} neighbour {entry.address} on {entry.link}"
        case Forwarding():
            return f"{verb} forwarding {entry.mac} to {entry.destination} on {entry.link}"
        case Route():
            return f"{verb} route {entry.destination} on {entry.link}"
