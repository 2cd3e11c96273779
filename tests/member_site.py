"""A cluster whose members come and go, and etcdctl's words about it made comparable."""

import contextlib
import json
import random
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Self

from etcd_server import StoreServer
from etcdctl import COMMAND_TIMEOUT_S, Etcdctl, call, without_log
from trimaran.wire import etcd_pb2 as pb

MASKS = (
    (r'"(cluster_id|raft_term)": \d+', r'"\1": 0'),
    (r'"(ClusterID|RaftTerm)" : \d+', r'"\1" : 0'),
    (r"took = \S+", "took = T"),
    (r", 3\.\d+\.\d+, [\d.]+ [kM]B,", ", VERSION, SIZE,"),
    (r"(true|false), \d+, \d+, \d+,", r"\1, TERM, INDEX, INDEX,"),
    (r"-{3,}", "---"),
    (r" {2,}", " "),
    (r"(?<=ETCD_INITIAL_CLUSTER=\").*(?=\")", lambda m: ",".join(sorted(m[0].split(",")))),
)
KNOWN_TIMEOUT_S = 5.0
HEX_ID = re.compile(r"\b[0-9a-f]{12,16}\b")
DECIMAL_ID = re.compile(r"\b[0-9]{16,20}\b")


def quiet_port() -> int:
    """Find a free port that no outgoing connection takes before a member is started on it."""
    while True:
        port = random.randrange(12_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class MemberSite:
    """Members named m0, m1, ... of one cluster, of one kind of server.

    Args:
        kind: of the servers; see `etcd_server.KINDS`.
        version: of etcdctl.
        arguments: further flags for each member.

    Attributes:
        servers: those that were ever started, by name.
        said: what each command of `run` came to, comparable between kinds.
    """

    def __init__(self, kind: str, version: str, arguments: Sequence[str] = ()) -> None:
        self.kind = kind
        self.version = version
        self.arguments = list(arguments)
        self.servers: dict[str, StoreServer] = {}
        self.said: list[str] = []
        self._places = {f"m{i}": (quiet_port(), quiet_port()) for i in range(4)}

    def peer_url(self, name: str) -> str:
        """Where a member's peers reach it, started or not."""
        return f"http://127.0.0.1:{self._places[name][1]}"

    def start(self, name: str, others: Sequence[str] = (), *, ready: bool = True) -> StoreServer:
        """Start a member for the first time.

        Args:
            name: of the member.
            others: names of the running ones that it joins; none founds a cluster.
            ready: wait until it is healthy.
        """
        client, peer = self._places[name]
        members = [*others, name]
        server = StoreServer(
            self.kind,
            name=name,
            client_port=client,
            peer_port=peer,
            initial_cluster=",".join(f"{m}={self.peer_url(m)}" for m in members),
            arguments=[
                *self.arguments,
                f"--initial-cluster-state={'existing' if others else 'new'}",
            ],
        )
        self.servers[name] = server
        server.spawn()
        if ready:
            server.wait_ready()
        return server

    def ids(self) -> dict[str, int]:
        """Give the members' ids by name; those that have not started by peer URL's label."""
        answer = call(self._any(), "Cluster/MemberList", pb.MemberListRequest())
        names = self._names()
        return {m.name or names.get(m.peerURLs[0], "?"): m.ID for m in answer.members}

    def _local_url(self, name: str) -> str:
        return self.peer_url(name).replace("127.0.0.1", "localhost")

    def _names(self) -> dict[str, str]:
        """Members' names by peer URL."""
        return {self.peer_url(name): name for name in self._places}

    def run_until(self, line: str, said: str, at: str = "m0", timeout_s: float = 20.0) -> None:
        """Run a command until it says something, and note that time only."""
        deadline_s = time.monotonic() + timeout_s
        while said not in self.run(line, at):
            assert time.monotonic() < deadline_s, self.said[-1]
            self.said.pop()
            time.sleep(0.1)

    def _any(self) -> StoreServer:
        return next(s for s in self.servers.values() if s._process is not None)

    def run(self, line: str, at: str = "m0") -> str:
        """Run etcdctl and note what it said.

        Args:
            line: the command; {m1} is that member's id in hex, {peer:m1} its peer URL, {local:m1}
                the same by another name.
            at: the member it is sent to.
        """
        wanted = set(re.findall(r"\{(m\d)\}", line))
        ids = self.ids()
        deadline_s = time.monotonic() + KNOWN_TIMEOUT_S
        while not wanted <= ids.keys() and time.monotonic() < deadline_s:
            time.sleep(0.05)  # the member asked may be behind
            ids = self.ids()
        text = re.sub(r"\{(m\d)\}", lambda match: f"{ids[match[1]]:x}", line)
        text = re.sub(r"\{peer:(m\d)\}", lambda match: self.peer_url(match[1]), text)
        text = re.sub(r"\{local:(m\d)\}", lambda match: self._local_url(match[1]), text)
        tool = Etcdctl(self.version, self.servers[at])
        done = subprocess.run(
            [*tool.start, *shlex.split(text)],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            env=tool.environment,
        )
        labels = {number: name for name, number in {**ids, **self.ids()}.items()}
        said = self._comparable(without_log(done.stdout) + without_log(done.stderr), labels)
        self.said.append(f"$ etcdctl {line}\n{said}[exit {done.returncode}]")
        return said

    def _comparable(self, text: str, labels: dict[int, str]) -> str:
        """Replace ids and places by names; the order of members is that of their random ids."""
        with contextlib.suppress(ValueError):
            text = json.dumps(_sorted_members(json.loads(text), self._names()), indent=1) + "\n"
        for name, (client, peer) in self._places.items():
            text = text.replace(f"http://127.0.0.1:{client}", f"CLIENT-{name}")
            text = text.replace(f"127.0.0.1:{client}", f"CLIENT-{name}")
            text = text.replace(f"http://127.0.0.1:{peer}", f"PEER-{name}")
            text = text.replace(self._local_url(name), f"LOCAL-{name}")
        for pattern, masked in MASKS:
            text = re.sub(pattern, masked, text)
        text = HEX_ID.sub(lambda m: f"ID-{labels.get(int(m[0], 16), 'x')}", text)
        text = DECIMAL_ID.sub(lambda m: f"ID-{labels.get(int(m[0]), 'x')}", text)
        return "".join(f"{line}\n" for line in _in_order(text.splitlines()))

    def close(self) -> None:
        """End all members and remove their data."""
        for server in self.servers.values():
            server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _in_order(lines: Sequence[str]) -> list[str]:
    """Sort lines that list members, and leave others in their place."""
    if any(line.startswith(("ETCD_", "{", " ")) for line in lines):
        return list(lines)
    return sorted(lines)


def _sorted_members(content: Any, names: dict[str, str]) -> Any:
    if isinstance(content, dict) and isinstance(content.get("members"), list):
        members = sorted(content["members"], key=lambda member: names[member["peerURLs"][0]])
        return {**content, "members": members}
    return content
