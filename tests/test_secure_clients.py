"""The clients' port through TLS: HTTP beside gRPC, etcdctl, and clients that mean no good."""

import asyncio
import os
import random
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from aiohttp import web
from cryptography.x509.oid import ExtendedKeyUsageOID

from aio import eventually
from certificates import LOOPBACK, Authority, Issued, server_side
from etcd_server import ServerTLS, StoreServer, missing_reason
from etcdctl import VERSIONS, binary
from http2_frames import PREFACE
from rpc_helpers import hot_handler, listening_socket
from trimaran.daemons import secure_clients
from trimaran.daemons.connection import TLSChannel
from trimaran.daemons.grpc_server import GrpcServer
from trimaran.daemons.http_ports import HttpPorts
from trimaran.daemons.tls import TLSSide


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path)


@asynccontextmanager
async def serving(tls: TLSSide, **limits: int) -> AsyncIterator[tuple[GrpcServer, int]]:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(body=await request.read() * int(request.headers.get("times", "1")))

    server = GrpcServer(asyncio.get_running_loop(), hot_handler(), **limits)
    listening, port = listening_socket(secure=True)
    await server.start([listening], web.Server(answer), tls)
    try:
        yield server, port
    finally:
        await server.stop(grace_s=2)


def run(
    tls: TLSSide, scenario: Callable[[GrpcServer, int], Awaitable[None]], **limits: int
) -> None:
    async def main() -> None:
        unhandled: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, it: unhandled.append(it))
        async with asyncio.timeout(60), serving(tls, **limits) as (server, port):
            await scenario(server, port)
        assert not unhandled, unhandled

    uvloop.run(main())


async def echoes(authority: Authority, port: int, own: Issued | None = None) -> None:
    """A client that belongs is served, whatever others did."""
    key = (own.key.read_bytes(), own.cert.read_bytes()) if own else (None, None)
    trust = grpc.ssl_channel_credentials(authority.path.read_bytes(), *key)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", trust) as channel:
        call = channel.unary_unary("/hot.Test/Echo")
        assert await call(b"hello", timeout=10, wait_for_ready=True) == b"hello"


def context(authority: Authority, *protocols: str) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=authority.path)
    if protocols:
        made.set_alpn_protocols(list(protocols))
    return made


def test_http_2_is_spoken_where_it_is_offered(authority: Authority) -> None:
    async def scenario(server: GrpcServer, port: int) -> None:
        for offered, agreed in (
            (("h2", "http/1.1"), "h2"),
            (("http/1.1", "h2"), "h2"),
            (("grpc-exp", "h2"), "h2"),
            (("h2",), "h2"),
            (("http/1.1",), "http/1.1"),
            (("other",), None),
            ((), None),
        ):
            channel = TLSChannel(
                context(authority, *offered), server_side=False, server_name="127.0.0.1"
            )
            _, writer = await shake(channel, port)
            assert channel.protocol == agreed, offered
            writer.close()

    run(server_side(authority), scenario)


def test_ports_without_grpc_speak_http_1(authority: Authority) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(text=str(request.version))

    async def main() -> None:
        tls = server_side(authority)
        ports = HttpPorts(web.Server(answer), tls)
        listening, port = listening_socket(secure=True)
        await ports.listen([listening])
        channel = TLSChannel(
            context(authority, "h2", "http/1.1"), server_side=False, server_name="127.0.0.1"
        )
        reader, writer = await shake(channel, port)
        assert channel.protocol == "http/1.1"
        channel.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        writer.write(channel.output())
        said = b""
        while data := await reader.read(65536):
            said += channel.feed(data)
        assert b"200 OK" in said
        writer.close()
        ports.stop()

    uvloop.run(main())


@pytest.mark.parametrize("protocols", [(), ("http/1.1",), ("other",)])
def test_http_is_served_beside_grpc(protocols: tuple[str, ...], authority: Authority) -> None:
    body = random.Random(1).randbytes(300_000)

    async def scenario(server: GrpcServer, port: int) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context(authority, *protocols)
        )
        for times in (1, 40):
            head = f"POST / HTTP/1.1\r\nHost: x\r\nTimes: {times}\r\nContent-Length: {len(body)}"
            writer.write(head.encode() + b"\r\n\r\n" + body)
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(body) * times) == body * times
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        await echoes(authority, port)

    run(server_side(authority), scenario)


async def shake(channel: TLSChannel, port: int) -> tuple[asyncio.StreamReader, Any]:
    """Do the handshake by hand."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    channel.start()
    writer.write(channel.output())
    while not channel.established:
        data = await reader.read(65536)
        assert data, "the server closed the connection"
        channel.feed(data)
        writer.write(channel.output())
    return reader, writer


async def closes(reader: asyncio.StreamReader) -> bool:
    try:
        while await reader.read(65536):
            pass
    except ConnectionError:
        pass
    return True


def test_who_does_not_shake_hands_is_dropped(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure_clients, "HANDSHAKE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(secure_clients, "HANDSHAKES_MAX", 20)
    sample = TLSChannel(context(authority), server_side=False, server_name="127.0.0.1")
    sample.start()
    greeting = sample.output()
    words = {
        b"": "timeout",
        greeting[:20]: "timeout",
        greeting[:-1]: "timeout",
        b"GET / HTTP/1.1\r\n\r\n": "handshake",
        PREFACE: "handshake",
        greeting[:5] + bytes(len(greeting) - 5): "handshake",
        b"\x16\x03\x01\xff\xff" + bytes(100): "handshake",
        os.urandom(3000): "handshake",
    }

    async def scenario(server: GrpcServer, port: int) -> None:
        assert server.refusals is not None
        for said, reason in words.items():
            before = server.refusals.counts[reason]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            assert await closes(reader)
            assert server.refusals.counts[reason] == before + 1, said
            writer.close()
        # Drop by drop it takes too long as well.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        closing = asyncio.ensure_future(closes(reader))
        for number in range(len(greeting)):
            writer.write(greeting[number : number + 1])
            await asyncio.wait([closing], timeout=0.01)
            if closing.done():
                break
        assert closing.done()
        # Many of them do not keep anybody out.
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        await echoes(authority, port)
        for reader, writer in idle:
            assert await closes(reader)
            writer.close()
        assert server.refusals.counts["overload"] >= 80
        assert server.counters()["connections"] == 0

    run(server_side(authority), scenario)


def test_a_damaged_stream_is_ended(authority: Authority) -> None:
    async def scenario(server: GrpcServer, port: int) -> None:
        for protocols in (("h2",), ("http/1.1",), ()):
            channel = TLSChannel(
                context(authority, *protocols), server_side=False, server_name="127.0.0.1"
            )
            reader, writer = await shake(channel, port)
            channel.send(PREFACE)
            sealed = bytearray(channel.output())
            sealed[-3] ^= 0x40
            writer.write(bytes(sealed))
            assert await closes(reader)
            writer.close()
        # What is no HTTP/2 inside TLS is the engine's to refuse.
        channel = TLSChannel(context(authority, "h2"), server_side=False, server_name="127.0.0.1")
        reader, writer = await shake(channel, port)
        channel.send(b"no HTTP/2 at all, and long enough to tell")
        writer.write(channel.output())
        assert await closes(reader)
        writer.close()
        # A cut without a word is an end like any other.
        channel = TLSChannel(context(authority, "h2"), server_side=False, server_name="127.0.0.1")
        reader, writer = await shake(channel, port)
        channel.send(PREFACE)
        writer.write(channel.output()[:10])
        writer.transport.abort()
        await eventually(lambda: server.counters()["connections"] == 0)
        await echoes(authority, port)

    run(server_side(authority), scenario)


SERVER_ONLY = (ExtendedKeyUsageOID.SERVER_AUTH,)


def revoked(authority: Authority) -> Issued:
    issued = authority.issue("client", hosts=("good.example",), file="revoked")
    authority.revoke(issued.serial)
    return issued


INTRUDERS: dict[str, tuple[Callable[[Authority, Authority], Issued | None], str]] = {
    "no certificate": (lambda a, s: None, "no_certificate"),
    "another authority": (
        lambda a, s: s.issue("client", hosts=("good.example",)),
        "unknown_authority",
    ),
    "expired": (lambda a, s: a.expired("client", hosts=("good.example",)), "expired"),
    "revoked": (lambda a, s: revoked(a), "revoked"),
    "wrong name": (lambda a, s: a.issue("client", hosts=("bad.example",)), "wrong_name"),
    "no name": (lambda a, s: a.issue("client"), "wrong_name"),
    "a server's": (
        lambda a, s: a.issue(
            "client", uses=(ExtendedKeyUsageOID.SERVER_AUTH,), hosts=("good.example",)
        ),
        "wrong_purpose",
    ),
}


@pytest.mark.parametrize("name", INTRUDERS)
def test_a_client_with_a_bad_certificate_is_refused(
    name: str, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = INTRUDERS[name]
    bad = make(authority, Authority.create(tmp_path, "stranger"))
    authority.revoke()
    good = authority.issue("root", hosts=("good.example",))

    async def scenario(server: GrpcServer, port: int) -> None:
        assert server.refusals is not None
        for _ in range(3):
            made = context(authority, "h2")
            if bad is not None:
                made.load_cert_chain(bad.cert, bad.key)
            channel = TLSChannel(made, server_side=False, server_name="127.0.0.1")
            try:
                reader, writer = await shake(channel, port)
                channel.send(PREFACE)
                writer.write(channel.output())
                assert await closes(reader)
                writer.close()
            except ssl.SSLError:
                pass  # told already during the handshake, by TLS 1.2's order
        assert server.refusals.counts == {reason: 3}
        assert server.counters()["accepted"] == 0
        await echoes(authority, port, good)

    tls = server_side(
        authority,
        verifies_clients=True,
        trusted_ca_file=str(authority.path),
        crl_file=str(authority.crl_path),
        allowed_hostname=("good.example",),
    )
    run(tls, scenario)
    assert sum("refused a client" in record.message for record in caplog.records) == 1


def test_connections_of_a_revoked_client_are_ended(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = authority.issue("good"), authority.issue("bad")
    authority.revoke()
    writers = []  # one that is forgotten closes its connection

    async def open_as(issued: Issued, port: int, protocol: str) -> asyncio.Future[bool]:
        made = context(authority, protocol)
        made.load_cert_chain(issued.cert, issued.key)
        channel = TLSChannel(made, server_side=False, server_name="127.0.0.1")
        reader, writer = await shake(channel, port)
        channel.send(PREFACE if protocol == "h2" else b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.write(channel.output())
        writers.append(writer)
        assert await reader.read(1)
        return asyncio.ensure_future(closes(reader))

    async def scenario(server: GrpcServer, port: int) -> None:
        assert server.refusals is not None
        protocols = ("h2", "http/1.1")
        stay = [await open_as(good, port, protocol) for protocol in protocols]
        go = [await open_as(bad, port, protocol) for protocol in protocols]
        server.end_revoked()
        await asyncio.wait([*stay, *go], timeout=0.05)
        assert not any(one.done() for one in (*stay, *go))
        authority.revoke(bad.serial)
        server.end_revoked()
        await asyncio.gather(*go)
        assert server.refusals.counts == {"revoked": 2}
        server.end_revoked()
        assert not any(one.done() for one in stay)
        assert server.refusals.counts == {"revoked": 2}
        assert server.counters()["connections"] == 1
        await echoes(authority, port, good)
        for one in stay:
            one.cancel()

    tls = server_side(
        authority,
        verifies_clients=True,
        trusted_ca_file=str(authority.path),
        crl_file=str(authority.crl_path),
    )
    run(tls, scenario)
    assert sum("its connection is ended" in record.message for record in caplog.records) == 1


def test_the_name_of_a_client_is_known(authority: Authority) -> None:
    own = authority.issue("alice")
    seen: list[str] = []

    async def scenario(server: GrpcServer, port: int) -> None:
        secure = server._secure
        assert secure is not None
        attach = secure.attach

        def note(client: Any) -> Any:
            seen.append(client.common_name)
            return attach(client)

        secure.attach = note  # type: ignore[method-assign]
        await echoes(authority, port, own)

    tls = server_side(authority, verifies_clients=True, trusted_ca_file=str(authority.path))
    run(tls, scenario)
    assert seen == ["alice"]


def command(version: str, server: StoreServer, authority: Authority, *words: str) -> str:
    """Run etcdctl with certificates; returns what it prints."""
    program = binary(version)
    if program is None:
        pytest.skip(f"etcdctl {version} is not installed")
    own = authority.issue("ctl")
    line = [program, f"--endpoints={server.endpoint}", f"--cacert={authority.path}"]
    line += [f"--cert={own.cert}", f"--key={own.key}", *words]
    result = subprocess.run(
        line, capture_output=True, text=True, timeout=20, env={**os.environ, "ETCDCTL_API": "3"}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_real_clients_speak_tls(authority: Authority) -> None:
    reason = missing_reason("trimaran")
    if reason is not None:
        pytest.skip(reason)
    own = authority.issue("server", hosts=LOOPBACK)
    tls = ServerTLS(authority.path, own.cert, own.key, client_auth=True)
    with StoreServer("trimaran", tls=tls) as server:
        for version in VERSIONS:
            assert command(version, server, authority, "put", "k", version) == "OK\n"
            assert command(version, server, authority, "get", "k") == f"k\n{version}\n"
            assert "is healthy" in command(version, server, authority, "endpoint", "health")
        check_curl(server, authority)


# What curl is told of versions, and what it shall speak with them.
CURL = (((), "2"), (("--http2",), "2"), (("--http1.1",), "1.1"), (("--no-alpn",), "1.1"))


def check_curl(server: StoreServer, authority: Authority) -> None:
    """Look at what the store serves beside gRPC, with each version of HTTP."""
    curl = shutil.which("curl")
    if curl is None:
        return
    own = authority.issue("curl")
    line = [curl, "-sS", "--max-time", "10", "--cacert", str(authority.path)]
    line += ["--cert", str(own.cert), "--key", str(own.key), "-w", "\n%{http_version} %{http_code}"]
    for words, version in CURL:
        for path, said, code in (
            ("health", '"health":"true"', 200),
            ("health?exclude=NOSPACE", '"health":"true"', 200),
            ("version", "etcdserver", 200),
            ("metrics", "etcd_server_has_leader 1", 200),
            ("readyz?verbose", "[+]data_corruption ok", 200),
            ("nowhere", "404", 404),
        ):
            printed = subprocess.run(
                [*line, *words, f"{server.endpoint}/{path}"],
                capture_output=True,
                text=True,
                timeout=20,
            ).stdout
            assert said in printed, printed
            assert printed.endswith(f"\n{version} {code}"), (words, printed[-100:])
        head = [*line, *words, "--head", f"{server.endpoint}/version"]
        printed = subprocess.run(head, capture_output=True, text=True, timeout=20).stdout
        assert f"HTTP/{version} 200" in printed, printed
        assert "content-length:" in printed.lower(), printed
