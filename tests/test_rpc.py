"""The gRPC server under a real client (grpcio): hot and cold methods, statuses, limits."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc
import pytest
import uvloop
from aiohttp import web

from certificates import Authority, server_side
from http2_frames import PREFACE
from rpc_helpers import hot_counts, hot_handler, hot_library, listening_socket
from trimaran.daemons.grpc_server import Call, GrpcServer
from trimaran.daemons.health import HealthService
from trimaran.daemons.tls import TLSSide
from trimaran.errors import StatusCode, StoreError

MESSAGE_MAX = 2097152


@pytest.fixture(params=["plain", "tls"], autouse=True)
def way(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs without TLS and through it."""
    if request.param == "tls":
        authority = Authority.create(tmp_path)
        monkeypatch.setattr(WAY, "authority", authority)
        monkeypatch.setattr(WAY, "tls", server_side(authority))
    return


@dataclass
class Way:
    """How clients come; see `way`."""

    authority: Authority | None = None
    tls: TLSSide | None = None


WAY = Way()


@dataclass
class Bench:
    """A running server and a client of it."""

    server: GrpcServer
    channel: grpc.aio.Channel
    port: int

    async def unary(self, path: str, request: bytes = b"", **options: object) -> bytes:
        reply: bytes = await self.channel.unary_unary(path)(request, timeout=10, **options)
        return reply

    async def refused(self, path: str, request: bytes = b"", **options: object) -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.unary(path, request, **options)
        return caught.value.code().name, caught.value.details() or ""

    async def calls_become(self, count: int) -> None:
        """Wait until so many calls are open; the engine has no event for it."""
        for _ in range(10_000):
            if self.server.counters()["calls"] == count:
                return
            await asyncio.sleep(0.001)
        raise AssertionError(f"not {count} calls: {self.server.counters()}")


def register(server: GrpcServer) -> None:
    async def echo(request: bytes, call: Call) -> bytes:
        if request == b"fail":
            raise StoreError(StatusCode.NOT_FOUND, "no such thing: 100 % é")
        if request == b"crash":
            raise ZeroDivisionError
        if request == b"metadata":
            return repr(sorted(call.metadata.items())).encode()
        return request

    async def twice(call: Call) -> None:
        async for message in call:
            call.send(message)
            call.send(message)

    async def hang(call: Call) -> None:
        async for _ in call:
            await asyncio.Event().wait()

    async def pour(call: Call) -> None:
        async for message in call:
            for _ in range(struct.unpack("<I", message)[0]):
                call.send(b"p" * 100_000)
                await call.drain()

    server.add_unary("/cold.Test/Echo", echo)
    server.add_stream("/cold.Test/Twice", twice)
    server.add_stream("/cold.Test/Hang", hang)
    server.add_stream("/cold.Test/Pour", pour)


@asynccontextmanager
async def running(**limits: int) -> AsyncIterator[Bench]:
    server = GrpcServer(asyncio.get_running_loop(), hot_handler(), **limits)
    register(server)
    listening, port = listening_socket(secure=WAY.tls is not None)
    await server.start([listening], tls=WAY.tls)
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    if WAY.authority is None:
        opened = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
    else:
        trust = grpc.ssl_channel_credentials(WAY.authority.path.read_bytes())
        opened = grpc.aio.secure_channel(f"127.0.0.1:{port}", trust, options=options)
    try:
        async with opened as channel:
            yield Bench(server, channel, port)
    finally:
        await server.stop(grace_s=5)


def run(scenario: Callable[[Bench], Awaitable[None]], **limits: int) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), running(**limits) as bench:
            await scenario(bench)

    uvloop.run(main())


@pytest.mark.parametrize("path", ["/hot.Test/Echo", "/cold.Test/Echo"])
def test_echoes_messages_of_every_size(path: str) -> None:
    async def scenario(bench: Bench) -> None:
        for size in (0, 1, 5, 16384, 16385, 70_000, MESSAGE_MAX):
            request = bytes(i % 251 for i in range(size))
            assert await bench.unary(path, request) == request

    run(scenario)


def test_many_calls_at_once_on_one_connection() -> None:
    async def scenario(bench: Bench) -> None:
        for path in ("/hot.Test/Null", "/hot.Test/Echo", "/cold.Test/Echo"):
            requests = [b"%d" % i for i in range(300)]
            replies = await asyncio.gather(*(bench.unary(path, r) for r in requests))
            assert replies == ([b""] * 300 if path.endswith("Null") else requests)
        assert bench.server.counters()["calls"] == 0

    run(scenario)


@pytest.mark.parametrize(
    ("path", "request_bytes", "code", "text"),
    [
        ("/cold.Test/Echo", b"fail", "NOT_FOUND", "no such thing: 100 % é"),
        ("/cold.Test/Echo", b"crash", "INTERNAL", "internal error: ZeroDivisionError"),
        ("/cold.Test/Nope", b"", "UNIMPLEMENTED", "unknown method Nope for service cold.Test"),
        ("/a.B/C", b"", "UNIMPLEMENTED", "unknown service a.B"),
        ("/malformed", b"", "UNIMPLEMENTED", 'malformed method name: "/malformed"'),
        (
            "/hot.Test/Null",
            bytes(MESSAGE_MAX + 1),
            "RESOURCE_EXHAUSTED",
            "grpc: received message larger than max (2097153 vs. 2097152)",
        ),
        (
            "/cold.Test/Echo",
            bytes(MESSAGE_MAX + 1),
            "RESOURCE_EXHAUSTED",
            "grpc: received message larger than max (2097153 vs. 2097152)",
        ),
    ],
)
def test_refusals(path: str, request_bytes: bytes, code: str, text: str) -> None:
    async def scenario(bench: Bench) -> None:
        assert await bench.refused(path, request_bytes) == (code, text)
        assert await bench.unary("/cold.Test/Echo", b"still here") == b"still here"

    run(scenario)


def test_streams_both_ways() -> None:
    async def scenario(bench: Bench) -> None:
        for path, times in (("/hot.Test/Echo", 1), ("/cold.Test/Twice", 2)):
            stream = bench.channel.stream_stream(path)(timeout=10)
            for number in range(20):
                await stream.write(b"%d" % number)
                for _ in range(times):
                    assert await stream.read() == b"%d" % number
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() is grpc.StatusCode.OK

    run(scenario)


def test_metadata_reaches_cold_methods() -> None:
    async def scenario(bench: Bench) -> None:
        sent = (("hasleader", "true"), ("token", "a"), ("token", "b"))
        assert await bench.unary("/cold.Test/Echo", b"metadata", metadata=sent) == (
            b"[('hasleader', 'true'), ('token', 'a,b')]"
        )

    run(scenario)


def test_gzip_requests() -> None:
    async def scenario(bench: Bench) -> None:
        for path in ("/hot.Test/Echo", "/cold.Test/Echo"):
            request = b"zip" * 100_000
            assert await bench.unary(path, request, compression=grpc.Compression.Gzip) == request
        too_large = bytes(MESSAGE_MAX * 4)
        code, text = await bench.refused(
            "/hot.Test/Echo", too_large, compression=grpc.Compression.Gzip
        )
        assert code == "RESOURCE_EXHAUSTED"
        assert "larger than max" in text
        code, text = await bench.refused(
            "/hot.Test/Echo", b"x" * 999, compression=grpc.Compression.Deflate
        )
        assert code == "UNIMPLEMENTED"

    run(scenario)


def test_replies_put_off_leave_with_a_later_flush() -> None:
    async def scenario(bench: Bench) -> None:
        calls = [asyncio.ensure_future(bench.unary("/hot.Test/Later", b"x")) for _ in range(9)]
        await bench.calls_become(9)
        await bench.unary("/hot.Test/Null")
        assert hot_library().hot_reply_later() == 9
        bench.server.flush_soon()
        assert await asyncio.gather(*calls) == [b"late"] * 9

    run(scenario)


def test_handler_hears_of_cancelled_calls() -> None:
    async def scenario(bench: Bench) -> None:
        before = hot_counts()["closed"]
        hot = bench.channel.unary_unary("/hot.Test/Later")(b"x", timeout=10)
        cold = bench.channel.unary_unary("/cold.Test/Hang")(b"x", timeout=10)
        await bench.calls_become(2)
        hot.cancel()
        cold.cancel()
        await bench.calls_become(0)
        assert hot_counts()["closed"] == before + 1
        assert hot_library().hot_reply_later() == 0

    run(scenario)


def test_deadline_of_a_cold_method() -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bench.channel.unary_unary("/cold.Test/Hang")(b"x", timeout=0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    run(scenario)


def test_slow_reader_holds_the_queue_bounded() -> None:
    async def scenario(bench: Bench) -> None:
        total = 20_000_000
        before = hot_counts()["pumped_bytes"]
        hot = bench.channel.unary_stream("/hot.Test/Pump")(struct.pack("<I", total), timeout=30)
        cold = bench.channel.unary_stream("/cold.Test/Pour")(struct.pack("<I", 200), timeout=30)
        assert len(await cold.read()) == 100_000
        size = len(await hot.read())
        assert hot_counts()["pumped_bytes"] - before < total
        while (message := await hot.read()) is not grpc.aio.EOF:
            size += len(message)
        assert size == total
        size = 100_000
        while (message := await cold.read()) is not grpc.aio.EOF:
            size += len(message)
        assert size == 20_000_000

    run(scenario, queue_high_bytes=32768, queue_low_bytes=16384)


def test_health() -> None:
    async def scenario(bench: Bench) -> None:
        health = HealthService(bench.server)
        check, watch = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
        serving, not_serving, unknown = (b"\x08\x01", b"\x08\x02", b"\x08\x03")
        assert await bench.unary(check) == serving
        assert await bench.refused(check, b"\x0a\x01x") == ("NOT_FOUND", "unknown service")
        assert await bench.refused(check, b"\xff") == (
            "INTERNAL",
            "grpc: error unmarshalling request",
        )
        whole = bench.channel.unary_stream(watch)(b"", timeout=10)
        later = bench.channel.unary_stream(watch)(b"\x0a\x01x", timeout=10)
        assert (await whole.read(), await later.read()) == (serving, unknown)
        health.set_serving(False)
        health.set_serving(True, "x")
        assert (await whole.read(), await later.read()) == (not_serving, serving)
        assert await bench.unary(check) == not_serving
        whole.cancel()
        later.cancel()

    run(scenario)


def test_other_protocols_are_handed_on() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.json_response({"path": request.path, "body": (await request.read()).decode()})

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = GrpcServer(loop, None, sniff_timeout_ms=0)
        listening, port = listening_socket()
        await server.start([listening], web.Server(answer))
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
                for method in ("GET", "PUT", "POST", "PATCH"):
                    async with session.request(method, "/health", data="x" * 100) as reply:
                        assert await reply.json() == {"path": "/health", "body": "x" * 100}
            # What the first byte leaves open, the third decides.
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for piece in (b"P", b"R", b"OPFIND / HTTP/1.1\r\nHost: x\r\n\r\n"):
                writer.write(piece)
                await asyncio.sleep(0.01)
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            writer.close()
            # Who says nothing is dropped at a tick of the server, here every one.
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"PR")
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        finally:
            await server.stop(grace_s=1)

    uvloop.run(asyncio.wait_for(main(), 30))


def test_stopping_ends_streams_and_awaits_other_calls() -> None:
    async def scenario(bench: Bench) -> None:
        streams = []
        for path, replies in (("/hot.Test/Echo", 1), ("/cold.Test/Twice", 2)):
            streams.append(bench.channel.stream_stream(path)(timeout=10))
            await streams[-1].write(b"x")
            for _ in range(replies):
                assert await streams[-1].read() == b"x"
        waiting = asyncio.ensure_future(bench.unary("/hot.Test/Later", b"x"))
        await bench.calls_become(3)
        stopping = asyncio.ensure_future(bench.server.stop(grace_s=20))
        for stream in streams:
            assert await stream.code() is grpc.StatusCode.UNAVAILABLE
            assert await stream.details() == "the server is shutting down"
        assert not waiting.done()
        hot_library().hot_reply_later()
        bench.server.flush_soon()
        assert await waiting == b"late"
        await stopping

    run(scenario)


def test_many_connections_come_and_go() -> None:
    async def one(port: int, greet: bytes) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(greet)
        await writer.drain()
        writer.close()

    async def scenario(bench: Bench) -> None:
        junk = PREFACE + bytes(range(256))
        for greet in (b"", b"P", b"GET / HTTP/1.0\r\n\r\n", PREFACE, PREFACE[:9], junk):
            await asyncio.gather(*(one(bench.port, greet) for _ in range(150)))
        assert await bench.unary("/hot.Test/Echo", b"still here") == b"still here"

    # Fewer connections than clients: the rest wait in the backlog for a tick.
    run(scenario, connections_max=100)
