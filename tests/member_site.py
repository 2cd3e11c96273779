"""A cluster whose members come and go, and etcdctl's words about it made comparable."""

import contextlib
import json
import random
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import grpc

from etcd_server import StoreServer
from etcdctl import COMMAND_TIMEOUT_S, Etcdctl, call, revision, without_log
from trimaran.wire import etcd_pb2 as pb

MASKS = (
    (r"-{3,}", "---"),
    (r" {2,}", " "),
    (r'"(cluster_id|raft_?[tT]erm|raft(?:Applied)?Index|dbSize(?:InUse)?)": \d+', r'"\1": 0'),
    (r'"(ClusterID|RaftTerm|Raft(?:Applied)?Index|DBSize(?:InUse)?)" : \d+', r'"\1" : 0'),
    (r'"([Vv]ersion)"( ?): "[^"]*"', r'"\1"\2: "V"'),
    (r"took = \S+", "took = T"),
    # Client and server see the end of the client's time; either may say so first.
    (r"etcdserver: request timed out, leader transfer took too long", "context deadline exceeded"),
    (r"rpc error: code = \w+ desc = (context deadline exceeded)", r"\1"),
    (r"compacted revision \d+", "compacted revision N"),
    (r'"([Tt]ook)"( ?): ("?)[^",\n]+\3', r'"\1"\2: T'),
    (r"(?<=\| )[\d.]+(m|µ)?s(?= +\|)", "T"),
    (r"\| 3\.\d+\.\d+ \| +[\d.]+ [kM]B \|", "| VERSION | SIZE |"),
    (r"(true|false) \| +\d+ \| +\d+ \| +\d+ \|", r"\1 | TERM | INDEX | INDEX |"),
    (r", 3\.\d+\.\d+, [\d.]+ [kM]B,", ", VERSION, SIZE,"),
    (r"(true|false), \d+, \d+, \d+,", r"\1, TERM, INDEX, INDEX,"),
    (r"(?<=ETCD_INITIAL_CLUSTER=\").*(?=\")", lambda m: ",".join(sorted(m[0].split(",")))),
)
MEMBERS_MAX = 4
KNOWN_TIMEOUT_S = 5.0
LEAD_TIMEOUT_S = 20.0
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
        masks: patterns and what to put in their place, for all commands from now on.
        folder: a folder of this site, empty at first.
    """

    def __init__(self, kind: str, version: str, arguments: Sequence[str] = ()) -> None:
        self.kind = kind
        self.version = version
        self.arguments = list(arguments)
        self.servers: dict[str, StoreServer] = {}
        self.said: list[str] = []
        self.masks: list[tuple[str, str]] = []
        self.folder = Path(tempfile.mkdtemp(prefix="trimaran-members-"))
        # In order, so that what is sorted by address is sorted by name.
        clients, peers = (sorted(quiet_port() for _ in range(MEMBERS_MAX)) for _ in range(2))
        self._places = {f"m{i}": ports for i, ports in enumerate(zip(clients, peers, strict=True))}

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

    def found(self, names: Sequence[str]) -> None:
        """Start the first members of a cluster at once, and wait until all are healthy."""
        cluster = ",".join(f"{name}={self.peer_url(name)}" for name in names)
        for name in names:
            client, peer = self._places[name]
            self.servers[name] = StoreServer(
                self.kind,
                name=name,
                client_port=client,
                peer_port=peer,
                initial_cluster=cluster,
                arguments=self.arguments,
            )
            self.servers[name].spawn()
        for name in names:
            self.servers[name].wait_ready()

    def lead(self, name: str) -> None:
        """Have a member lead, and wait until all that run know it."""
        wanted, deadline_s = self.ids()[name], time.monotonic() + LEAD_TIMEOUT_S
        while (leaders := self._leaders()) != {wanted}:
            assert time.monotonic() < deadline_s, f"{name} does not lead: {leaders}"
            for server in self.servers.values():
                if server.runs and server.is_leader() and server.name != name:
                    with contextlib.suppress(grpc.RpcError):
                        request = pb.MoveLeaderRequest(targetID=wanted)
                        call(server, "Maintenance/MoveLeader", request)
            time.sleep(0.02)

    def _leaders(self) -> set[int]:
        running = [server for server in self.servers.values() if server.runs]
        return {call(server, "Maintenance/Status", pb.StatusRequest()).leader for server in running}

    def await_no_leader(self, name: str) -> None:
        """Wait until a member has noticed that nobody leads."""
        deadline_s = time.monotonic() + LEAD_TIMEOUT_S
        while call(self.servers[name], "Maintenance/Status", pb.StatusRequest()).leader:
            assert time.monotonic() < deadline_s, f"{name} still has a leader"
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait until all that run have applied what any of them knows as committed."""
        deadline_s = time.monotonic() + LEAD_TIMEOUT_S
        while True:
            statuses = [
                call(server, "Maintenance/Status", pb.StatusRequest())
                for server in self.servers.values()
                if server.runs
            ]
            committed = max(status.raftIndex for status in statuses)
            if all(status.raftAppliedIndex >= committed for status in statuses):
                return
            assert time.monotonic() < deadline_s, statuses
            time.sleep(0.01)

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

    def run_until(
        self, line: str, said: str, at: str = "m0", stdin: str = "", timeout_s: float = 20.0
    ) -> None:
        """Run a command until it says something, and note that time only."""
        deadline_s = time.monotonic() + timeout_s
        while said not in self.run(line, at, stdin):
            assert time.monotonic() < deadline_s, self.said[-1]
            self.said.pop()
            time.sleep(0.1)

    def _any(self) -> StoreServer:
        return next(s for s in self.servers.values() if s.runs)

    def run(self, line: str, at: str = "m0", stdin: str = "") -> str:
        """Run etcdctl and note what it said.

        Args:
            line: the command; {m1} is that member's id in hex, {peer:m1} its peer URL, {local:m1}
                the same by another name, {folder} a folder of this site, {revision} the current
                one.
            at: the members whose endpoints it is given, with spaces between.
            stdin: what it reads.
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
        text = text.replace("{folder}", str(self.folder))
        if "{revision}" in line:
            text = text.replace("{revision}", str(revision(self._any())))
        endpoints = ",".join(f"127.0.0.1:{self._places[name][0]}" for name in at.split())
        tool = Etcdctl(self.version, self._any())
        done = subprocess.run(
            [tool.start[0], f"--endpoints={endpoints}", *shlex.split(text)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            env=tool.environment,
        )
        labels = {number: name for name, number in {**ids, **self.ids()}.items()}
        said = "".join(self._comparable(without_log(t), labels) for t in (done.stdout, done.stderr))
        self.said.append(f"{at}$ etcdctl {line}\n{said}[exit {done.returncode}]")
        return said

    def _comparable(self, text: str, labels: dict[int, str]) -> str:
        """Replace ids and places by names; the order of members is that of their random ids."""
        with contextlib.suppress(ValueError):
            text = json.dumps(_sorted(json.loads(text), self._names()), indent=1) + "\n"
        text = text.replace(str(self.folder), "FOLDER")
        for name, (client, peer) in self._places.items():
            text = text.replace(f"http://127.0.0.1:{client}", f"CLIENT-{name}")
            text = text.replace(f"127.0.0.1:{client}", f"CLIENT-{name}")
            text = text.replace(f"http://127.0.0.1:{peer}", f"PEER-{name}")
            text = text.replace(self._local_url(name), f"LOCAL-{name}")
        for pattern, masked in (*MASKS, *self.masks):
            text = re.sub(pattern, masked, text)
        text = HEX_ID.sub(lambda m: f"ID-{labels.get(int(m[0], 16), 'x')}", text)
        text = DECIMAL_ID.sub(lambda m: f"ID-{labels.get(int(m[0]), 'x')}", text)
        return "".join(f"{line}\n" for line in _in_order(text.splitlines()))

    def close(self) -> None:
        """End all members and remove their data."""
        for server in self.servers.values():
            server.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _in_order(lines: Sequence[str]) -> list[str]:
    """Sort lines that list members, and leave others in their place."""
    if any(line.startswith('"Endpoint"') for line in lines):
        blocks = [block.strip() for block in "\n".join(lines).split("\n\n")]
        return sorted(blocks, key=lambda block: re.findall('^"Endpoint".*', block, re.MULTILINE))
    if any(line.startswith(("ETCD_", "{", " ")) for line in lines):
        return list(lines)
    return sorted(lines)


def _sorted(content: Any, names: dict[str, str]) -> Any:
    if isinstance(content, list):
        return sorted(content, key=lambda item: item.get("Endpoint") or item["endpoint"])
    if isinstance(content, dict) and isinstance(content.get("members"), list):
        members = sorted(content["members"], key=lambda member: names[member["peerURLs"][0]])
        return {**content, "members": members}
    return content
