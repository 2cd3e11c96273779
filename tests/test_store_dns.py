"""Members that find each other by DNS, as processes with a resolv.conf of their own."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_server import ServerStartError, StoreServer, free_port, missing_reason, wait_leader
from etcdctl import call
from test_store_intruders import eventually_now, started
from trimaran.wire import etcd_pb2 as pb

ADDRESS = f"127.53.{os.getpid() % 250}.{os.getpid() // 250 % 250 + 1}"
SRV = "_etcd-server._tcp.x.test"
# It has a /etc/resolv.conf of its own, which nobody else sees.
OWN_RESOLVER = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
PROGRAM = Path(__file__).with_name("dns_server.py")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None or missing_reason("trimaran") is not None,
    reason="needs root for port 53 and a mount namespace",
)


class Member(StoreServer):
    """One that asks this test's DNS server."""

    resolver: Path

    def _command_line(self) -> list[str]:
        own = ["unshare", "--mount", "sh", "-c", OWN_RESOLVER, "sh", str(self.resolver)]
        return [*own, *super()._command_line()]


def make_members(folder: Path, *words: str) -> list[StoreServer]:
    resolver = folder / "resolv.conf"
    resolver.write_text(f"nameserver {ADDRESS}\noptions timeout:1 attempts:1\n")
    members: list[StoreServer] = []
    for number in range(3):
        options: dict[str, Any] = {"client_port": free_port(), "peer_port": free_port()}
        arguments = ["--discovery-srv=x.test", *words]
        member = Member(
            "trimaran", name=f"m{number}", arguments=arguments, initial_cluster=None, **options
        )
        member.resolver = resolver
        members.append(member)
    return members


@contextlib.contextmanager
def dns(*records: tuple[str, str, list[str]]) -> Iterator[None]:
    """Run the server while the block lasts."""
    line = [sys.executable, str(PROGRAM), ADDRESS, json.dumps(records)]
    guard = ["setpriv", "--pdeathsig", "KILL"]
    process = subprocess.Popen([*guard, *line], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.wait()


def records_of(members: list[StoreServer]) -> list[tuple[str, str, list[str]]]:
    names = [f"{member.name}.x.test" for member in members]
    services = [
        f"0 0 {member.peer_port} {name}." for member, name in zip(members, names, strict=True)
    ]
    return [(SRV, "SRV", services), *((name, "A", ["127.0.0.1"]) for name in names)]


def test_three_members_found_a_cluster(tmp_path: Path) -> None:
    members = make_members(tmp_path)
    with dns(*records_of(members)), told(members), started(members):
        leader = wait_leader(members)
        listed = call(leader, "Cluster/MemberList", pb.MemberListRequest()).members
        assert {one.name: [*one.peerURLs] for one in listed} == {
            one.name: [f"http://{one.name}.x.test:{one.peer_port}"] for one in members
        }
        for one in members:
            call(one, "KV/Put", pb.PutRequest(key=one.name.encode(), value=b"x"))
        # After the first start the records are not asked for any more.
        members[0].restart()
        call(members[0], "KV/Put", pb.PutRequest(key=b"again", value=b"x"))


@contextlib.contextmanager
def told(members: list[StoreServer]) -> Iterator[None]:
    """Show every member's log where something fails."""
    try:
        yield
    except BaseException:
        for member in members:
            print(member.name, member.log_tail(3000))
        raise


def refused(member: StoreServer) -> str:
    """Start a member that cannot start, and give what it said."""
    try:
        with pytest.raises(ServerStartError):
            member.start()
        assert not (member.folder / "data" / "member.json").exists()
        return member.log_path.read_text()
    finally:
        member.close()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("none", "there are no SRV records _etcd-server-ssl._tcp"),
        ("others", "names no member with the"),
        ("silent", "DNS has no answer for"),
    ],
)
def test_answers_that_do_not_help(kind: str, said: str, tmp_path: Path) -> None:
    members = make_members(tmp_path)
    for unused in members[1:]:
        unused.close()
    if kind == "silent":
        # Its peers' URL is an address: nothing but the records is asked for.
        assert said in refused(members[0])
        return
    records = records_of(members)
    if kind == "none":
        records = records[1:]
    else:
        records[0] = (SRV, "SRV", records[0][2][1:])
    with dns(*records):
        text = refused(members[0])
    assert said in text
    assert "Traceback" not in text
    eventually_now(lambda: not members[0].runs)
