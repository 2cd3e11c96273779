"""Network namespaces as hosts for the tests of the network: a bridge, hosts on it, netd in each.

The namespaces have no names: each lives as long as a process of ours, and the kernel ends those
with the test run. So nothing is left behind, however a run ends.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import pytest

from netns import Namespace, why_not

WAIT_S = 20.0
PREFIX = "/coreos.com/network"
Value = TypeVar("Value")


def eventually(check: Callable[[], Value], text: str, timeout_s: float = WAIT_S) -> Value:
    """Poll until a check gives something true, and return that."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s} s: {text}")
        time.sleep(0.02)


class HostNamespace(Namespace):
    """A namespace with what tests ask of a host."""

    def ip(self, *words: str) -> list[dict[str, Any]]:
        """Run ip inside and return its JSON."""
        output = self.run("ip", "-j", *words)
        return json.loads(output) if output.strip() else []

    def attempt(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, check=False, timeout=30
        )


class Gate:
    """A TCP relay from a namespace's loopback to the same port of ours; closing it partitions."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, namespace: HostNamespace, port: int
    ) -> None:
        self._loop = loop
        self._port = port
        self._open = True
        self._writers: set[asyncio.StreamWriter] = set()
        with namespace.entered():
            listener = socket.create_server(("127.0.0.1", port))
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, sock=listener), loop
        ).result(WAIT_S)

    def set_open(self, value: bool) -> None:
        """Let connections through, or break them all and refuse new ones."""

        def change() -> None:
            self._open = value
            if not value:
                for writer in self._writers:
                    writer.transport.abort()

        self._loop.call_soon_threadsafe(change)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not self._open:
                raise ConnectionRefusedError
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except asyncio.CancelledError:
            pass  # The site closes, and the server's own callback would make noise of it.
        finally:
            self._writers -= {writer, far_writer}
            for item in (writer, far_writer):
                item.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.transport.abort()


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def make_site(folder: Path, endpoint: str) -> "Iterator[NetSite]":
    """Make a site for a fixture, or skip where there cannot be one."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    site = NetSite(folder, endpoint)
    try:
        yield site
    finally:
        site.close()


class Netd:
    """A place for one netd: a namespace, a state directory, and the process while it runs."""

    def __init__(self, site: "NetSite", name: str, namespace: HostNamespace) -> None:
        self.site = site
        self.name = name
        self.namespace = namespace
        self.folder = site.folder / name
        self.folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = (self.folder / "log").open("ab")
        self.run = namespace.run
        self.ip = namespace.ip

    @property
    def status_path(self) -> Path:
        """Where netd tells its status."""
        return self.folder / "net-status.json"

    def trimaran(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line on this host."""
        return self.namespace.attempt(
            *(sys.executable, "-m", "trimaran.daemons.cli"),
            *("--endpoints", self.site.endpoint, *arguments),
        )

    def start(
        self,
        *arguments: str,
        host_id: str = "",
        ttl_s: int = 600,
        wrapper: Sequence[str] = (),
    ) -> Self:
        """Start netd without waiting for it; wrapper is a command that executes its arguments."""
        assert self._process is None
        self._process = subprocess.Popen(
            self.namespace.command(
                *(*wrapper, *(["netd"] if wrapper else [])),
                *(sys.executable, "-m", "trimaran.daemons.netd"),
                *("--endpoints", self.site.endpoint, "--state-dir", str(self.folder)),
                *("--subnet-file", str(self.folder / "subnet.env")),
                *("--host-id", host_id or f"id-{self.name}", "--lease-ttl", str(ttl_s)),
                *("--log-level", "debug", *arguments),
            ),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        return self

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End netd with a signal and return its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(WAIT_S)
        self._process = None
        return code

    def status(self) -> dict[str, Any]:
        """Return what the running netd says of itself, empty before it says anything."""
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"netd of {self.name} ended: {self.log()}")
        try:
            status: dict[str, Any] = json.loads(self.status_path.read_text())
        except FileNotFoundError:
            return {}
        return status if self._process and status["pid"] == self._process.pid else {}

    def wait(
        self, state: str = "running", check: Callable[[dict[str, Any]], object] = bool
    ) -> dict[str, Any]:
        """Wait for a state and a condition on the status."""

        def reached() -> dict[str, Any]:
            status = self.status()
            return status if status.get("state") == state and check(status) else {}

        try:
            return eventually(reached, f"{self.name} is {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.status()}\n{self.log()}") from None

    def wait_peers(self, count: int) -> dict[str, Any]:
        """Wait until so many peers are set up."""
        return self.wait(check=lambda status: status["peers"] == count)

    def log(self) -> str:
        """Return the end of netd's log."""
        return (self.folder / "log").read_text()[-4000:]

    @property
    def overlay_address(self) -> str:
        """The device's address on the overlay."""
        return self.subnet.split("/")[0]

    @property
    def subnet(self) -> str:
        """The subnet this host held last."""
        return str(json.loads(self.status_path.read_text())["subnet"])

    @property
    def overlay_key(self) -> str:
        """Last part of the record's key."""
        return self.subnet.replace("/", "-")

    def transfer(self, other: "Netd", size: int) -> int:
        """Send bytes to another host over TCP across the overlay; return how many came."""
        with other.namespace.entered():
            listener = socket.create_server((other.overlay_address, 0))
        with self.namespace.entered():
            sender = socket.create_connection(listener.getsockname(), timeout=WAIT_S)
        receiver, _ = listener.accept()
        with listener, sender, receiver:
            pusher = threading.Thread(target=sender.sendall, args=(bytes(size),))
            pusher.start()
            received = 0
            while received < size:
                received += len(receiver.recv(65536))
            pusher.join()
        return received

    def ping(self, other: "Netd", *, size: int = 56) -> bool:
        """Send echo requests across the overlay until one is answered."""
        command = ("ping", "-c", "1", "-W", "1", "-M", "do", "-s", str(size))
        return "1 received" in self.namespace.attempt(*command, other.overlay_address).stdout

    def routes(self) -> dict[str, dict[str, Any]]:
        """Return the routes with our protocol, by destination."""
        return {route["dst"]: route for route in self.ip("route", "show", "proto", "84")}

    def close(self) -> None:
        """End netd and the namespace."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.namespace.close()
        self._log.close()


class NetHost(Netd):
    """One host: a namespace with an underlay address, and netd in it while it runs."""

    def __init__(self, site: "NetSite", number: int) -> None:
        super().__init__(site, f"h{number}", HostNamespace())
        self.address = f"192.0.2.{number}"
        self.gate = Gate(site.loop, self.namespace, site.port)
        site.bridge.run(
            *("ip", "link", "add", self.name, "type", "veth"),
            *("peer", "name", "eth0", "netns", self.namespace.path),
        )
        site.bridge.run("ip", "link", "set", self.name, "master", "br0", "up")
        self.namespace.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.namespace.run("ip", "link", "set", "eth0", "up")
        self.namespace.run("ip", "route", "add", "default", "dev", "eth0")

    def second(self, prefix: str) -> Netd:
        """Make a place for a further netd on this host, with a state of its own."""
        netd = Netd(self.site, self.name + prefix.replace("/", "-"), self.namespace)
        self.site.others.append(netd)
        return netd


class NetSite:
    """A bridge, the way to the store, and the hosts."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder = folder
        self.endpoint = endpoint
        port = urlsplit(endpoint).port
        assert port is not None
        self.port = port
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.bridge = HostNamespace()
        self.bridge.run("ip", "link", "add", "br0", "type", "bridge")
        self.bridge.run("ip", "link", "set", "br0", "up")
        self.hosts: list[NetHost] = []
        self.others: list[Netd] = []

    def add(self, count: int) -> list[NetHost]:
        """Make hosts, without netd running yet."""
        added = []
        for _ in range(count):
            self.hosts.append(NetHost(self, len(self.hosts) + 1))
            added.append(self.hosts[-1])
        return added

    def etcdctl(self, *arguments: str, text: str | None = None) -> str:
        """Run etcdctl against the store, with a text on its standard input."""
        environment = {**os.environ, "ETCDCTL_API": "3"}
        return subprocess.run(
            ["etcdctl", f"--endpoints={self.endpoint}", *arguments],
            env=environment,
            input=text,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout

    def configure(self, backend: str = "vxlan", network: str = "10.77.0.0/16", **rest: Any) -> None:
        """Write the configuration as flannel's users do."""
        document = {"Network": network, "Backend": {"Type": backend, **rest.pop("options", {})}}
        self.etcdctl("put", f"{PREFIX}/config", json.dumps({**document, **rest}))

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the records in the store, by the last part of the key."""
        output = self.etcdctl("get", "--prefix", f"{PREFIX}/subnets/")
        lines: Sequence[str] = output.splitlines()
        return {
            key.rsplit("/", 1)[1]: json.loads(value)
            for key, value in zip(lines[::2], lines[1::2], strict=True)
        }

    def close(self) -> None:
        """End everything."""
        for netd in (*self.others, *self.hosts):
            netd.close()
        self.bridge.close()
        asyncio.run_coroutine_threadsafe(_end_others(), self.loop).result(WAIT_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT_S)
        self.loop.close()
