"""Intruders at a real cluster: refused, logged once, counted, nothing changed, and it serves on."""

import asyncio
import re
import ssl
import struct
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from aio import run
from certificates import LOOPBACK, Authority, Issued
from etcd_server import (
    ServerTLS,
    StoreServer,
    free_port,
    missing_reason,
    wait_leader,
)
from trimaran.client import Client, TLSOptions
from trimaran.daemons.connection import TLSChannel
from trimaran.errors import TrimaranError
from trimaran.ext.checksum import crc32c
from trimaran.store.peer_frames import (
    FRAME_BYTES_MAX,
    HELLO,
    REFUSED,
    FrameReader,
    Hello,
    Purpose,
    encode_frame,
)

VERSION = "3.6.0"
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Cluster:
    """Three members with TLS on both sides, and those who sign for them."""

    servers: list[StoreServer]
    authority: Authority
    stranger: Authority
    own: Issued

    @property
    def target(self) -> StoreServer:
        """The member that is intruded on: the leader."""
        return wait_leader(self.servers)

    def client(self) -> Client:
        tls = TLSOptions(self.authority.path, self.own.cert, self.own.key)
        return Client([server.endpoint for server in self.servers], tls=tls)


def files(authority: Authority, issued: Issued) -> ServerTLS:
    return ServerTLS(
        authority.path, issued.cert, issued.key, client_auth=True, crl=authority.crl_path
    )


@contextmanager
def started(servers: list[StoreServer]) -> Iterator[None]:
    try:
        for server in servers:
            server.spawn()
        for server in servers:
            server.wait_ready()
        yield
    finally:
        for server in servers:
            server.close()


def make_servers(**options: object) -> list[StoreServer]:
    """Three members that know of each other, not started."""
    ports = [(free_port(), free_port()) for _ in range(3)]
    scheme = "https" if options.get("peer_tls") else "http"
    cluster = ",".join(f"m{i}={scheme}://127.0.0.1:{peer}" for i, (_, peer) in enumerate(ports))
    return [
        StoreServer(
            "trimaran",
            name=f"m{i}",
            client_port=client,
            peer_port=peer,
            initial_cluster=cluster,
            **options,  # type: ignore[arg-type]
        )
        for i, (client, peer) in enumerate(ports)
    ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = missing_reason("trimaran")
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("intruders")
    authority = Authority.create(folder)
    authority.revoke(authority.issue("revoked", hosts=LOOPBACK).serial)
    own = authority.issue("member", hosts=LOOPBACK)
    tls = files(authority, own)
    servers = make_servers(
        tls=tls, peer_tls=tls, arguments=["--peer-cert-allowed-cn=member,revoked,expired"]
    )
    with started(servers):
        made = Cluster(servers, authority, Authority.create(folder, "stranger"), own)
        wait_leader(servers)
        run(put(made, "before"))
        yield made


async def put(cluster: Cluster, value: str) -> None:
    async with cluster.client() as client:
        await client.put("key", value)


def metrics(server: StoreServer) -> dict[str, float]:
    with OPENER.open(f"{server.health_base}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^([^# ]\S*) (\S+)$", text, re.M)}


async def truth(cluster: Cluster) -> tuple[object, ...]:
    """What no intruder may change: members, terms and leader, and a key."""
    async with cluster.client() as client:
        members = sorted((m.id, m.name, m.peer_urls) for m in await client.members())
        kept = await client.get_one("key")
        assert kept is not None
        status = [await client.status(server.endpoint) for server in cluster.servers]
        led = ({one.raft_term for one in status}, {one.leader for one in status})
        return (members, led), kept.value, kept.mod_revision


async def identity(cluster: Cluster, server: StoreServer) -> tuple[int, int]:
    """Cluster id, and the id of a member."""
    async with cluster.client() as client:
        status = await client.status(server.endpoint)
        return status.cluster_id, status.member_id


async def speak(port: int, words: bytes, context: ssl.SSLContext | None) -> list[tuple[int, bytes]]:
    """Say something on a connection; returns the frames that come until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    channel = None
    if context is not None:
        channel = TLSChannel(context, server_side=False, server_name="127.0.0.1")
        channel.start()
        writer.write(channel.output())
        while not channel.established:
            channel.feed(await reader.read(65536))
            writer.write(channel.output())
        channel.send(words)
        words = channel.output()
    frames = FrameReader()
    try:
        writer.write(words)
        while data := await reader.read(65536):
            frames.add(data if channel is None else channel.feed(data))
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()
    return list(frames.frames())


def context_of(cluster: Cluster, issued: Issued | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=cluster.authority.path)
    if issued is not None:
        context.load_cert_chain(issued.cert, issued.key)
    return context


Make = Callable[[Cluster], Issued | None]
# What is shown, and what it is counted as.
CERTIFICATES: dict[str, tuple[Make, str]] = {
    "no certificate": (lambda c: None, "no_certificate"),
    "another authority": (
        lambda c: c.stranger.issue("member", hosts=LOOPBACK, file="strange"),
        "unknown_authority",
    ),
    "expired": (lambda c: c.authority.expired("expired", hosts=LOOPBACK), "expired"),
    "revoked": (
        lambda c: Issued(c.authority.folder / "revoked.crt", c.authority.folder / "revoked.key", 0),
        "revoked",
    ),
}


def check(cluster: Cluster, counter: str, attack: Callable[[StoreServer], None]) -> None:
    """Attack three times; refused and counted each time, logged once, and nothing changed."""
    target = cluster.target
    before, known = metrics(target), run(truth(cluster))
    logged = len(target.log_path.read_text(errors="replace").splitlines())
    for _ in range(3):
        attack(target)
    assert metrics(target)[counter] == before[counter] + 3
    new = target.log_path.read_text(errors="replace").splitlines()[logged:]
    refusals = [line for line in new if "refused" in line]
    assert len(refusals) <= 1, refusals
    if before[counter] == 0:
        assert len(refusals) == 1, new
    assert not any("Traceback" in line for line in new)
    assert run(truth(cluster)) == known
    run(put(cluster, f"after {counter} {time.monotonic_ns()}"))


@pytest.mark.parametrize("name", CERTIFICATES)
@pytest.mark.parametrize("side", ["peer", "client"])
def test_certificates_that_are_not_accepted(side: str, name: str, cluster: Cluster) -> None:
    make, reason = CERTIFICATES[name]
    context = context_of(cluster, make(cluster))
    cluster_id, member_id = run(identity(cluster, cluster.target))
    words = Hello(cluster_id, 1, member_id, Purpose.MESSAGES, VERSION).encode()

    def attack(target: StoreServer) -> None:
        port = target.peer_port if side == "peer" else target.client_port
        frames = run(speak(port, words, context))
        assert [kind for kind, _ in frames] in ([], [REFUSED])

    check(cluster, f'trimaran_{side}_refused_total{{reason="{reason}"}}', attack)


def test_who_is_revoked_is_cut_off(tmp_path: Path) -> None:
    """Certificates that are revoked while connections are open: a member's and a client's."""
    authority = Authority.create(tmp_path)
    authority.revoke()
    issued = [authority.issue(f"m{i}", hosts=LOOPBACK) for i in range(3)]
    own, bad = authority.issue("own"), authority.issue("bad")
    servers = make_servers(tls=files(authority, issued[0]), peer_tls=files(authority, issued[0]))
    for server, cert in zip(servers, issued, strict=True):
        server.tls = server.peer_tls = files(authority, cert)
    with started(servers):
        lost = next(i for i, server in enumerate(servers) if server is not wait_leader(servers))
        rest = [server for server in servers if server is not servers[lost]]
        cluster = Cluster(rest, authority, authority, own)

        async def scenario() -> None:
            trust = TLSOptions(authority.path, bad.cert, bad.key)
            endpoints = [server.endpoint for server in rest]
            async with Client(endpoints, tls=trust) as client:
                await client.put("key", "before")
                authority.revoke(issued[lost].serial, bad.serial)
                with pytest.raises(TrimaranError):
                    await put_on(client)

        run(scenario())
        for server in rest:
            told = '{reason="revoked"}'
            eventually_now(lambda s=server: active_peers(s) == 1)
            assert metrics(server)[f"trimaran_peer_refused_total{told}"] >= 2
            assert "is revoked; its connection is ended" in server.log_path.read_text()
        assert sum(metrics(one)[f"trimaran_client_refused_total{told}"] for one in rest) >= 1
        eventually_now(lambda: metrics(servers[lost])["etcd_server_has_leader"] == 0)
        run(put(cluster, "and goes on"))


async def put_on(client: Client) -> None:
    """Write until that fails, for some seconds at most."""
    async with asyncio.timeout(20):
        while True:
            await client.put("key", "still")
            await asyncio.sleep(0.1)


def active_peers(server: StoreServer) -> float:
    """How many other members it is connected to."""
    found = metrics(server).items()
    return sum(value for name, value in found if name.startswith("etcd_network_active_peers"))


def eventually_now(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until something holds."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_a_member_with_a_wrong_name(cluster: Cluster) -> None:
    for name, hosts in (("mallory", LOOPBACK), ("member", ("10.9.9.9",))):
        context = context_of(cluster, cluster.authority.issue(name, hosts=hosts, file="wrong"))
        cluster_id, member_id = run(identity(cluster, cluster.target))
        words = Hello(cluster_id, 1, member_id, Purpose.MESSAGES, VERSION).encode()

        def attack(
            target: StoreServer, context: ssl.SSLContext = context, words: bytes = words
        ) -> None:
            frames = run(speak(target.peer_port, words, context))
            assert [kind for kind, _ in frames] == [REFUSED]

        check(cluster, 'trimaran_peer_refused_total{reason="wrong_name"}', attack)


def hello(cluster_id: int, sender: int, addressee: int, **more: int) -> bytes:
    return Hello(cluster_id, sender, addressee, Purpose.MESSAGES, VERSION, **more).encode()


FRAME = encode_frame(80, b"something")
RAFT_KIND = 1
# With a good certificate: (cluster id, an other member's id, the target's id) -> what is said.
BAD_WORDS: dict[str, tuple[Callable[[int, int, int], bytes], str]] = {
    "another cluster": (lambda c, o, t: hello(c + 1, o, t), "wrong_cluster"),
    "another addressee": (lambda c, o, t: hello(c, o, o), "wrong_member"),
    "the member itself": (lambda c, o, t: hello(c, t, t), "wrong_member"),
    "no member": (lambda c, o, t: hello(c, 0, t), "wrong_member"),
    "a later version": (lambda c, o, t: hello(c, o, t, protocol_min=9, protocol_max=9), "version"),
    "no greeting": (lambda c, o, t: FRAME, "protocol"),
    "HTTP": (lambda c, o, t: b"GET /members HTTP/1.1\r\n\r\n", "protocol"),
    "a cut greeting": (lambda c, o, t: hello(c, o, t)[:20] + FRAME * 3, "protocol"),
    "a corrupted greeting": (lambda c, o, t: hello(c, o, t)[:-1] + b"?", "protocol"),
    "a corrupted frame": (lambda c, o, t: hello(c, 77, t) + FRAME[:-1] + b"?", "protocol"),
    "a cut frame": (lambda c, o, t: hello(c, 77, t) + FRAME[:-3] + FRAME, "protocol"),
    "an oversize frame": (
        lambda c, o, t: hello(c, 77, t) + (2**31 - 1).to_bytes(4, "little") + FRAME[4:],
        "protocol",
    ),
    "a frame's other version": (
        lambda c, o, t: hello(c, 77, t) + FRAME[:8] + b"\x02" + FRAME[9:],
        "protocol",
    ),
    "no message of raft": (
        lambda c, o, t: hello(c, 77, t) + raft_frame(b"\xff" * 40),
        "protocol",
    ),
}


def raft_frame(body: bytes) -> bytes:
    """A sound envelope around what raft cannot make sense of."""
    rest = bytes([1, RAFT_KIND, 0, 0]) + body
    return len(rest).to_bytes(4, "little") + crc32c(rest).to_bytes(4, "little") + rest


@pytest.mark.parametrize("name", BAD_WORDS)
def test_words_that_make_no_sense(name: str, cluster: Cluster) -> None:
    say, reason = BAD_WORDS[name]
    context = context_of(cluster, cluster.own)
    other = next(server for server in cluster.servers if server is not cluster.target)
    cluster_id, member_id = run(identity(cluster, cluster.target))
    words = say(cluster_id, run(identity(cluster, other))[1], member_id)

    def attack(target: StoreServer) -> None:
        frames = run(speak(target.peer_port, words, context))
        assert frames[-1][0] == REFUSED
        assert {kind for kind, _ in frames} <= {HELLO, REFUSED}

    check(cluster, f'trimaran_peer_refused_total{{reason="{reason}"}}', attack)


def test_much_memory_is_not_had_for_a_size(cluster: Cluster) -> None:
    """A frame is announced as large as may be, and never sent."""
    target = cluster.target
    context = context_of(cluster, cluster.own)
    cluster_id, member_id = run(identity(cluster, target))

    async def main() -> None:
        before = metrics(target)["process_resident_memory_bytes"]
        words = hello(cluster_id, 77, member_id) + (FRAME_BYTES_MAX - 1).to_bytes(4, "little")
        opened = [
            await asyncio.open_connection("127.0.0.1", target.peer_port, ssl=context)
            for _ in range(20)
        ]
        for _, writer in opened:
            writer.write(words + bytes(100))
            await writer.drain()
        await put(cluster, "meanwhile")
        after = metrics(target)["process_resident_memory_bytes"]
        assert after - before < 2 * FRAME_BYTES_MAX
        for _, writer in opened:
            writer.transport.abort()

    run(main())


def test_a_snapshot_that_is_none_is_not_taken(cluster: Cluster) -> None:
    target = cluster.target
    context = context_of(cluster, cluster.own)
    cluster_id, member_id = run(identity(cluster, target))
    greeting = Hello(cluster_id, 77, member_id, Purpose.SNAPSHOT, VERSION).encode()
    begin = encode_frame(67, struct.pack("<QQQ", 1, 99, 10**6))
    end = encode_frame(68, struct.pack("<Q", 2**64 - 1))
    words = (
        begin[:-1] + b"?",
        encode_frame(67, b""),
        encode_frame(80, b"x"),
        begin + encode_frame(68, bytes(8) + b"no chunk of a state" * 100) + end,
        begin + encode_frame(68, struct.pack("<Q", 7) + bytes(100)),
        begin + end,
    )
    known = run(truth(cluster))
    for said in words:
        frames = run(speak(target.peer_port, greeting + said, context))
        assert frames[0][0] == HELLO
    assert run(truth(cluster)) == known
    run(put(cluster, "after snapshots"))
    assert "Traceback" not in target.log_path.read_text(errors="replace")


def test_who_says_nothing_is_let_go(cluster: Cluster) -> None:
    target = cluster.target
    counters = ['trimaran_peer_refused_total{reason="timeout"}']
    counters.append('trimaran_client_refused_total{reason="timeout"}')
    before, known = metrics(target), run(truth(cluster))

    async def main() -> None:
        opened = [
            await asyncio.open_connection("127.0.0.1", port)
            for port in (target.peer_port, target.client_port)
            for _ in range(10)
        ]
        opened += [
            await asyncio.open_connection(
                "127.0.0.1", target.peer_port, ssl=context_of(cluster, cluster.own)
            )
        ]
        await put(cluster, "meanwhile")
        for reader, _ in opened:
            try:
                while await reader.read(1000):
                    pass
            except ConnectionError:
                pass

    run(main())
    after = metrics(target)
    assert [after[name] - before[name] for name in counters] == [11, 10]
    assert run(truth(cluster))[0] == known[0]


class Recorder:
    """Passes connections on, and keeps what goes to the server on each of them.

    Attributes:
        target: the port they are passed to.
        port: the recorder's own.
        streams: what was said, connection by connection.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.streams: list[bytearray] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        kept = bytearray()
        self.streams.append(kept)
        for source, sink, record in ((reader, far_writer, kept), (far_reader, writer, None)):
            task = asyncio.create_task(self._pass(source, sink, record))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _pass(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, record: bytearray | None
    ) -> None:
        try:
            while data := await source.read(65536):
                if record is not None:
                    record.extend(data)
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()


async def contents(client: Client) -> list[tuple[bytes, bytes, int, int, int]]:
    """Every key there is, with its revisions and lease, and the store's revision."""
    found = await client.get("", prefix=True)
    kept = [(k.key, k.value, k.mod_revision, k.version, k.lease) for k in found.kvs]
    return [*kept, (b"", b"", found.revision, 0, 0)]


async def replay(recorder: Recorder) -> None:
    """Say every recorded connection again: whole, and cut in the middle of something."""
    for words in [bytes(stream) for stream in recorder.streams]:
        for size in (len(words), len(words) * 2 // 3):
            _, writer = await asyncio.open_connection("127.0.0.1", recorder.target)
            writer.write(words[:size])
            await writer.drain()
            writer.close()


def test_replayed_frames_change_nothing() -> None:
    """Where there is no TLS, everything that members have said is said to them again."""
    reason = missing_reason("trimaran")
    if reason is not None:
        pytest.skip(reason)
    servers = make_servers()
    recorders = [Recorder(server.peer_port, free_port()) for server in servers]
    for server, recorder in zip(servers, recorders, strict=True):
        server.arguments = [f"--listen-peer-urls=http://127.0.0.1:{recorder.target}"]

    async def main() -> None:
        for recorder in recorders:
            await recorder.start()
        for server in servers:
            await asyncio.to_thread(server.wait_ready)
        # Whoever leads: the writes of two of the three are forwarded.
        for server in servers:
            async with Client([server.endpoint]) as client:
                for number in range(30):
                    await client.put("counter", str(number))
                lease = await client.lease_grant(600)
                await client.put(f"leased/{server.name}", "x", lease=lease.id)
        async with Client([server.endpoint for server in servers]) as client:
            before = await contents(client)
            for recorder in recorders:
                assert any(len(stream) > 1000 for stream in recorder.streams)
                await replay(recorder)
            assert await contents(client) == before
            await client.put("counter", "after")
            found = await client.get_one("counter")
            assert found is not None
            assert found.version == 91
        for recorder in recorders:
            await recorder.stop()

    try:
        for server in servers:
            server.spawn()
        run(main(), timeout_s=120)
    finally:
        for server in servers:
            server.close()
