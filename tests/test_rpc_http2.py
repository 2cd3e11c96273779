"""The gRPC engine against hand-made HTTP/2: what it refuses, and what no client may do to it.

No socket is involved: bytes go into an attached channel and come out of it.
"""

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    block,
    frame,
    message,
    open_request,
    request_fields,
)
from rpc_client import Client, make_server, still_serves
from rpc_helpers import hot_counts, hot_library
from trimaran.ext import rpc

NULL, ECHO, PUMP = "/hot.Test/Null", "/hot.Test/Echo", "/hot.Test/Pump"


@pytest.fixture(name="server")
def start_server() -> Iterator[rpc.RpcServer]:
    server = make_server()
    yield server
    server.close()


def cold_events(server: rpc.RpcServer) -> list[tuple[int, Any, Any]]:
    """What happened to cold calls."""
    return [event for event in server.events() if event[0] != rpc.OUTPUT]


def kinds(frames: list[Frame]) -> list[int]:
    return [one.kind for one in frames]


def error_code(one: Frame) -> int:
    """The error code of RST_STREAM or GOAWAY."""
    at = 4 if one.kind == GOAWAY else 0
    code: int = struct.unpack(">I", one.payload[at : at + 4])[0]
    return code


def test_a_unary_call(server: rpc.RpcServer) -> None:
    client = Client(server)
    request = open_request(1, NULL) + frame(DATA, END_STREAM, 1, message())
    frames = client.exchange(request)
    assert kinds(frames) == [HEADERS, DATA, HEADERS]
    fields, data = client.answer(frames)
    assert data == message()
    assert fields == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "0",
    }
    assert server.counters()["calls"] == 0


def test_settings_announce_the_limits(server: rpc.RpcServer) -> None:
    client = Client(server, greet=False)
    frames = client.exchange(PREFACE + frame(SETTINGS))
    settings = dict(struct.iter_unpack(">HI", frames[0].payload))
    assert settings == {3: 16384, 4: 1 << 20, 6: 16384, 9: 1}


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 100])
def test_bytes_may_come_in_pieces_of_any_size(server: rpc.RpcServer, piece: int) -> None:
    sent = [b"", b"a", b"b" * 300]
    stream = b"".join(message(one) for one in sent)
    data = PREFACE + frame(SETTINGS) + open_request(1, ECHO)
    data += b"".join(frame(DATA, 0, 1, stream[i : i + 4]) for i in range(0, len(stream), 4))
    data += frame(DATA, END_STREAM, 1)
    client = Client(server, greet=False)
    frames = []
    for at in range(0, len(data), piece):
        frames += client.exchange(data[at : at + piece])
    fields, received = client.answer(frames)
    assert received == stream
    assert fields["grpc-status"] == "0"


def test_early_status_resets_the_request(server: rpc.RpcServer) -> None:
    client = Client(server)
    frames = client.exchange(open_request(1, NULL) + frame(DATA, 0, 1, message()))
    assert kinds(frames) == [HEADERS, DATA, HEADERS, RST_STREAM]
    assert error_code(frames[-1]) == 0
    assert server.counters()["calls"] == 0


BAD_REQUESTS = [
    ("method", {":method": "GET"}, "405", "13", "not POST"),
    ("content type", {"content-type": "application/json"}, "415", "3", "content-type"),
    ("prefix only", {"content-type": "application/grpcx"}, "415", "3", "content-type"),
    ("timeout", {"grpc-timeout": "12x"}, "400", "13", "malformed grpc-timeout"),
    ("long timeout", {"grpc-timeout": "123456789S"}, "400", "13", "malformed grpc-timeout"),
    ("encoding", {"grpc-encoding": "br"}, "200", "12", "Decompressor is not installed"),
]


@pytest.mark.parametrize(("name", "change", "http", "status", "text"), BAD_REQUESTS)
def test_requests_that_are_not_grpc(
    server: rpc.RpcServer, name: str, change: dict[str, str], http: str, status: str, text: str
) -> None:
    client = Client(server)
    fields = list((dict(request_fields(NULL)) | change).items())
    frames = client.exchange(frame(HEADERS, END_HEADERS | END_STREAM, 1, block(fields)))
    answer, _ = client.answer(frames)
    assert (answer[":status"], answer["grpc-status"]) == (http, status)
    assert text in answer["grpc-message"]
    assert cold_events(server) == []
    still_serves(server)


def ask(path: str, method: str = "GET", *more: tuple[str, str]) -> bytes:
    """A request that is no gRPC."""
    fields = [(":method", method), (":scheme", "https"), (":path", path), *more]
    return block(fields)


def test_http_without_grpc_is_answered(server: rpc.RpcServer) -> None:
    client = Client(server)
    size = 300_000  # more than a window, many frames
    client.exchange(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 20)))
    for stream, method, body in ((1, "GET", b"x" * 10), (3, "HEAD", b""), (5, "GET", b"y" * size)):
        assert not client.exchange(
            frame(HEADERS, END_HEADERS | END_STREAM, stream, ask("/some?thing=1", method))
        )
        (_, call, _), *_ = cold_events(server)
        assert (call.is_plain, call.http_method, call.path) == (True, method, "/some?thing=1")
        with pytest.raises(ValueError, match="no gRPC"):
            call.send(b"message")
        with pytest.raises(ValueError, match="no answer"):
            call.answer(200, "text/plain", len(body) + 1, body + b"xx")
        call.answer(503, "text/plain", len(body) or 77, body)
        assert call.closed
        frames = client.receive()
        if len(body) > 65535:
            frames += client.exchange(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1 << 20)))
        fields, data = client.answer(frames, stream)
        assert fields == {
            ":status": "503",
            "content-length": str(len(body) or 77),
            "content-type": "text/plain",
        }
        assert data == body
        assert frames[-1].flags & END_STREAM
    assert server.counters()["calls"] == 0
    still_serves(server)


def test_http_without_grpc_and_without_an_answer(server: rpc.RpcServer) -> None:
    client = Client(server)
    client.exchange(frame(HEADERS, END_HEADERS | END_STREAM, 1, ask("/x")))
    (_, call, _), *_ = cold_events(server)
    call.finish(13, "failed")
    assert client.answer(client.receive())[0][":status"] == "503"
    # A body is nobody's business, and who goes before the answer gets none.
    client.exchange(frame(HEADERS, END_HEADERS, 3, ask("/x")) + frame(DATA, 0, 3, b"\1" * 9000))
    (_, call, _), *_ = cold_events(server)
    client.exchange(frame(RST_STREAM, 0, 3, bytes(4)))
    assert rpc.CLOSED in [kind for kind, _, _ in cold_events(server)]
    call.answer(200, "", 1, b"x")
    assert client.receive() == []
    # An early answer resets the request.
    client.exchange(frame(HEADERS, END_HEADERS, 5, ask("/x")))
    (_, call, _), *_ = cold_events(server)
    call.answer(200, "", 1, b"x")
    assert kinds(client.receive()) == [HEADERS, DATA, RST_STREAM]
    # Methods served in C are for gRPC alone.
    frames = client.exchange(frame(HEADERS, END_HEADERS | END_STREAM, 7, ask(NULL)))
    assert client.answer(frames, 7)[0][":status"] == "405"
    assert server.counters()["calls"] == 0
    still_serves(server)


POST = (":method", "POST")
PATH = (":path", NULL)
SCHEME = (":scheme", "http")
GRPC = ("content-type", "application/grpc")
UNSOUND: list[list[tuple[str, str]]] = [
    [],
    [POST, SCHEME, GRPC],
    [POST, PATH, GRPC],
    [PATH, SCHEME, GRPC],
    [POST, POST, PATH, SCHEME, GRPC],
    [POST, PATH, SCHEME, (":path", "/other"), GRPC],
    [POST, PATH, GRPC, SCHEME],
    [POST, PATH, SCHEME, GRPC, (":status", "200")],
    [POST, PATH, SCHEME, GRPC, ("Token", "x")],
    [POST, PATH, SCHEME, GRPC, ("", "x")],
    [POST, PATH, SCHEME, GRPC, ("a b", "x")],
    [POST, PATH, SCHEME, GRPC, ("token", "a\r\nb")],
    [POST, PATH, SCHEME, GRPC, ("token", "a\0b")],
    [POST, PATH, SCHEME, GRPC, ("connection", "close")],
    [POST, PATH, SCHEME, GRPC, ("transfer-encoding", "chunked")],
    [POST, PATH, SCHEME, GRPC, ("te", "gzip")],
]


@pytest.mark.parametrize("fields", UNSOUND)
def test_unsound_headers_reset_the_stream(
    server: rpc.RpcServer, fields: list[tuple[str, str]]
) -> None:
    client = Client(server)
    frames = client.exchange(frame(HEADERS, END_HEADERS, 1, block(fields)))
    assert [(one.kind, error_code(one)) for one in frames] == [(RST_STREAM, PROTOCOL_ERROR)]
    assert cold_events(server) == []
    still_serves(server)


BAD_MESSAGES = [
    ("format", b"\2\0\0\0\0", "13", "grpc: received unexpected payload format 2"),
    ("size", b"\0\xff\xff\xff\xff", "8", "grpc: received message larger than max "
     "(4294967295 vs. 2097152)"),
    ("flag without encoding", message(b"x", 1), "13", "grpc: compressed flag set with identity "
     "or empty encoding"),
    ("cut prefix", b"\0\0\0", "13", "unexpected EOF"),
    ("cut message", b"\0\0\0\0\5abc", "13", "unexpected EOF"),
    ("no message", b"", "13", "no request message"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "status", "text"), BAD_MESSAGES)
def test_messages_that_are_not_grpc(
    server: rpc.RpcServer, name: str, data: bytes, status: str, text: str
) -> None:
    client = Client(server)
    frames = client.exchange(open_request(1, NULL) + frame(DATA, END_STREAM, 1, data))
    answer, _ = client.answer(frames)
    assert (answer["grpc-status"], answer["grpc-message"]) == (status, text)
    assert server.counters()["calls"] == 0


def test_broken_gzip(server: rpc.RpcServer) -> None:
    client = Client(server)
    request = open_request(1, NULL, grpc_encoding="gzip")
    request += frame(DATA, END_STREAM, 1, message(b"no gzip at all", 1))
    answer, _ = client.answer(client.exchange(request))
    assert answer["grpc-status"] == "13"


def test_header_list_too_large_resets_the_stream(server: rpc.RpcServer) -> None:
    client = Client(server)
    fields = [*request_fields(NULL), *((f"x{i}", "v" * 1000) for i in range(20))]
    payload = block(fields)
    data = frame(HEADERS, 0, 1, payload[:16384])
    data += frame(CONTINUATION, END_HEADERS, 1, payload[16384:])
    frames = client.exchange(data)
    assert [(one.kind, error_code(one)) for one in frames] == [(RST_STREAM, ENHANCE_YOUR_CALM)]
    still_serves(server)


def refused_with(frames: list[Frame]) -> tuple[int, bytes]:
    """Error code and reason of the GOAWAY among frames."""
    (goaway,) = (one for one in frames if one.kind == GOAWAY)
    return error_code(goaway), goaway.payload[8:]


FLOODS: dict[str, tuple[bytes, bytes]] = {
    "settings": (frame(SETTINGS), b"too_many_control_frames"),
    "empty data": (frame(DATA, 0, 1), b"too_many_control_frames"),
    "ping": (frame(PING, 0, 0, bytes(8)), b"too_many_pings"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_end_the_connection(server: rpc.RpcServer, name: str) -> None:
    one, reason = FLOODS[name]
    client = Client(server)
    frames = client.exchange(open_request(1, ECHO))
    for _ in range(200):
        frames += client.exchange(one * 100)
        if not client.open:
            break
    code, text = refused_with(frames)
    assert code == ENHANCE_YOUR_CALM
    assert text == reason
    assert server.counters()["refused"] == 1
    still_serves(server)


def test_rapid_reset_ends_the_connection(server: rpc.RpcServer) -> None:
    client = Client(server)
    frames = []
    for stream in range(1, 40_001, 2):
        reset = frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
        frames += client.exchange(open_request(stream, ECHO) + reset)
        if not client.open:
            break
    assert GOAWAY in kinds(frames)
    assert server.counters()["calls"] == 0
    still_serves(server)


def test_continuation_flood_ends_the_connection(server: rpc.RpcServer) -> None:
    client = Client(server)
    client.exchange(frame(HEADERS, 0, 1, block(request_fields(NULL))))
    for _ in range(100):
        client.exchange(frame(CONTINUATION, 0, 1, block([("x", "y" * 100)])))
        if not client.open:
            break
    assert not client.open
    still_serves(server)


def test_replies_nobody_takes_end_the_connection() -> None:
    server = make_server(streams_max=10)
    client = Client(server, agree=False)
    stream = 1
    # Each is refused with a RST_STREAM of ours, and nothing is ever read.
    for _ in range(30_000):
        client.open = client.channel.feed(open_request(stream, "/cold.Test/Nope"))
        stream += 2
        if not client.open:
            break
    assert not client.open
    still_serves(server)
    server.close()


def test_streams_beyond_the_limit_are_refused() -> None:
    server = make_server(streams_max=5)
    client = Client(server, agree=False)
    frames = client.exchange(b"".join(open_request(1 + 2 * i, ECHO) for i in range(8)))
    refused = [one.stream for one in frames if one.kind == RST_STREAM]
    assert refused == [11, 13, 15]
    assert server.counters()["calls"] == 5
    # Once the client has acknowledged the limit, passing it is a breach of protocol.
    assert kinds(client.exchange(frame(SETTINGS, ACK) + open_request(17, ECHO))) == [GOAWAY]
    client.channel.close()
    server.flush()
    assert server.counters()["calls"] == 0
    server.close()


def test_calls_beyond_the_servers_limit_are_refused() -> None:
    server = make_server(calls_max=5)
    first, second = Client(server), Client(server)
    first.exchange(b"".join(open_request(1 + 2 * i, ECHO) for i in range(4)))
    frames = second.exchange(b"".join(open_request(1 + 2 * i, ECHO) for i in range(3)))
    assert [(one.stream, error_code(one)) for one in frames if one.kind == RST_STREAM] == [
        (3, REFUSED_STREAM),
        (5, REFUSED_STREAM),
    ]
    server.close()


def test_incomplete_requests_are_bounded_for_the_whole_server() -> None:
    server = make_server(assembly_bytes_max=50_000)
    clients = [Client(server) for _ in range(10)]
    part = struct.pack(">BI", 0, 1_000_000) + bytes(9000)
    statuses = []
    for client in clients:
        request = open_request(1, ECHO) + frame(DATA, 0, 1, part)
        answer, _ = client.answer(client.exchange(request))
        statuses.append(answer.get("grpc-status"))
    assert statuses == [None] * 5 + ["8"] * 5
    server.close()


def test_unread_replies_of_a_connection_are_bounded() -> None:
    server = make_server(queued_bytes_max=200_000)
    client = Client(server)
    stream = 1
    statuses = []
    for _ in range(20):
        request = open_request(stream, ECHO) + frame(DATA, 0, stream, message(bytes(16_000)))
        answer, _ = client.answer(client.exchange(request), stream)
        statuses.append(answer.get("grpc-status"))
        stream += 2
    # The client's window of 65,535 bytes is used up after four; then they are kept, to a point.
    assert statuses[:10] == [None] * 10
    assert statuses[-1] == "8"
    server.close()


def test_flow_control_of_the_client_is_kept() -> None:
    server = make_server(queue_high_bytes=32_768, queue_low_bytes=16_384)
    client = Client(server)
    request = open_request(1, PUMP) + frame(
        DATA, END_STREAM, 1, message(struct.pack("<I", 300_000))
    )
    frames = client.exchange(request)
    assert sum(len(one.payload) for one in frames if one.kind == DATA) == 65535
    size = 65535
    update = struct.pack(">I", 100_000)
    for _ in range(3):
        more = client.exchange(
            frame(WINDOW_UPDATE, 0, 0, update) + frame(WINDOW_UPDATE, 0, 1, update)
        )
        size += sum(len(one.payload) for one in more if one.kind == DATA)
    assert size == 300_000 + 37 * 5
    server.close()


def test_window_of_a_cold_stream_shuts_until_messages_are_taken(server: rpc.RpcServer) -> None:
    client = Client(server)
    client.exchange(open_request(1, "/cold.Test/Sink"))
    ((_, call, _),) = cold_events(server)
    sent = 0
    for _ in range(63):
        frames = client.exchange(frame(DATA, 0, 1, message(bytes(16_000))))
        sent += 1
        assert not [one for one in frames if one.kind == WINDOW_UPDATE and one.stream == 1]
    messages = [data for _, _, data in cold_events(server)]
    assert len(messages) == sent
    for data in messages:
        call.consumed(len(data))
    frames = client.receive()
    assert [one.kind for one in frames if one.stream == 1] == [WINDOW_UPDATE]


def test_closed_calls_are_told_once(server: rpc.RpcServer) -> None:
    before = hot_counts()["closed"]
    client = Client(server)
    client.exchange(open_request(1, ECHO) + open_request(3, "/cold.Test/X"))
    ((kind, call, _),) = cold_events(server)
    assert (kind, call.path) == (rpc.OPEN, "/cold.Test/X")
    client.channel.close()
    server.flush()
    assert hot_counts()["closed"] == before + 1
    assert cold_events(server) == [(rpc.CLOSED, call, None)]
    assert call.closed
    assert not call.send(b"too late")
    call.finish(0)


def test_engine_errors_tell_the_handler(server: rpc.RpcServer) -> None:
    before = hot_counts()["closed"]
    client = Client(server)
    later = open_request(1, "/hot.Test/Later") + frame(DATA, 0, 1, message(b"x"))
    client.exchange(later)
    answer, _ = client.answer(client.exchange(frame(DATA, 0, 1, b"\7\0\0\0\0")))
    assert answer["grpc-status"] == "13"
    assert hot_counts()["closed"] == before + 1
    assert hot_library().hot_reply_later() == 0


def test_shutdown_lets_open_calls_finish(server: rpc.RpcServer) -> None:
    busy, idle = Client(server), Client(server)
    busy.exchange(open_request(1, ECHO))
    server.shutdown()
    assert kinds(idle.receive()) == [GOAWAY]
    assert not idle.open
    notice = busy.receive()
    assert (kinds(notice), notice[0].payload[:4]) == ([GOAWAY], b"\x7f\xff\xff\xff")
    # What was under way when the notice left is still served; then the final word is sent.
    late = open_request(3, ECHO) + frame(DATA, END_STREAM, 3, message(b"late"))
    answer, data = busy.answer(busy.exchange(late), 3)
    assert (answer["grpc-status"], data) == ("0", message(b"late"))
    server.tick()
    assert busy.receive()[0].payload[:4] == b"\0\0\0\3"
    answer, data = busy.answer(busy.exchange(frame(DATA, END_STREAM, 1, message(b"end"))))
    assert (answer["grpc-status"], data) == ("0", message(b"end"))
    assert not busy.open


def test_server_pings_a_silent_client() -> None:
    server = make_server(ping_interval_ms=0, ping_timeout_ms=0, sniff_timeout_ms=10_000)
    client = Client(server)
    server.tick()
    (ping,) = client.receive()
    assert (ping.kind, ping.flags) == (PING, 0)
    client.exchange(frame(PING, ACK, 0, ping.payload))
    server.tick()
    assert kinds(client.receive()) == [PING]
    server.tick()
    client.receive()
    assert not client.open
    server.close()


def test_client_that_never_greets_is_dropped() -> None:
    server = make_server(sniff_timeout_ms=0)
    client = Client(server, greet=False)
    client.exchange(PREFACE[:10])
    server.tick()
    client.receive()
    assert not client.open
    server.close()


def test_limits_are_checked() -> None:
    wrong: list[dict[str, Any]] = [
        {"header_bytes_max": 65536},
        {"queue_low_bytes": 2, "queue_high_bytes": 1},
    ]
    for limits in wrong:
        with pytest.raises(OSError, match="Invalid argument"):
            make_server(**limits)
    with pytest.raises(TypeError, match="unknown limits: strems_max"):
        make_server(strems_max=1)
    with pytest.raises(ValueError, match="invalid PyCapsule"):
        rpc.RpcServer(object())


def test_closed_server_refuses_everything(server: rpc.RpcServer) -> None:
    client = Client(server)
    client.exchange(open_request(1, "/cold.Test/X"))
    ((_, call, _),) = cold_events(server)
    server.close()
    server.close()
    assert call.closed
    assert client.channel.take() is None
    assert not client.channel.feed(b"x")
    with pytest.raises(ValueError, match="closed"):
        server.poll()
