"""The gRPC engine under made-up input: right input is answered right, wrong input harms nobody."""

import struct

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    block,
    frame,
    message,
    open_request,
    request_fields,
)
from rpc_client import Client, make_server, still_serves
from trimaran.ext import rpc

PATHS = ("/hot.Test/Null", "/hot.Test/Echo", "/hot.Test/Later", "/hot.Test/Pump", "/cold.Test/X")
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut data into pieces of the sizes given, over and over."""
    cut, at, number = [], 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        cut.append(data[at : at + size])
        at += size
        number += 1
    return cut


@FUZZ
@given(
    streams=st.lists(st.lists(st.binary(max_size=600), max_size=4), min_size=1, max_size=5),
    frame_sizes=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    feed_sizes=st.lists(st.integers(1, 900), min_size=1, max_size=4),
    data=st.data(),
)
def test_every_stream_gets_back_its_own_messages(
    streams: list[list[bytes]], frame_sizes: list[int], feed_sizes: list[int], data: st.DataObject
) -> None:
    """Messages cut into frames at random, frames of several streams mixed, bytes fed at random."""
    server = make_server()
    client = Client(server)
    waiting = []
    for number, messages in enumerate(streams):
        stream = 2 * number + 1
        body = b"".join(message(one) for one in messages)
        frames = [frame(DATA, 0, stream, piece) for piece in pieces(body, frame_sizes)]
        waiting.append([*frames, frame(DATA, END_STREAM, stream)])
    sent = b"".join(open_request(2 * n + 1, "/hot.Test/Echo") for n in range(len(streams)))
    while any(waiting):
        chosen = data.draw(st.sampled_from([one for one in waiting if one]))
        sent += chosen.pop(0)
    received = []
    for piece in pieces(sent, feed_sizes):
        received += client.exchange(piece)
    bodies: dict[int, bytes] = {}
    statuses: dict[int, str] = {}
    for one in received:
        if one.kind == DATA:
            bodies[one.stream] = bodies.get(one.stream, b"") + one.payload
        elif one.kind == HEADERS:
            fields = client.inflater.decode(one.payload)
            statuses[one.stream] = fields.get("grpc-status", "")
    for number, messages in enumerate(streams):
        stream = 2 * number + 1
        assert bodies.get(stream, b"") == b"".join(message(one) for one in messages)
        assert statuses[stream] == "0"
    assert server.counters()["calls"] == 0
    server.close()


stream_ids = st.one_of(st.sampled_from([1, 1, 3, 5, 7]), st.integers(0, 9), st.integers(0, 2**31))
headers = st.builds(
    lambda path, changes, cut: block(request_fields(path, **changes))[: cut or None],
    st.sampled_from(PATHS) | st.text("/aZ.\x7fé", max_size=9),
    st.dictionaries(
        st.sampled_from(["grpc-timeout", "grpc-encoding", "content-type", "token", "Bad", ":path"]),
        st.text("0159SHmun gzip/+%", max_size=12),
        max_size=2,
    ),
    st.just(0) | st.integers(-4, -1),
)
asks = st.builds(
    lambda method, path, type_: block([(":method", method), *request_fields(path)[1:4], *type_]),
    st.sampled_from(["GET", "HEAD", "PUT"]),
    st.sampled_from([*PATHS, "/health", "/"]),
    st.sampled_from([[], [("content-type", "text/plain")], [("content-type", "application/grpc")]]),
)
bodies = st.one_of(
    st.builds(message, st.binary(max_size=40), st.sampled_from([0, 0, 0, 1, 2])),
    st.builds(lambda total: message(struct.pack("<I", total)), st.integers(0, 100_000)),
    st.binary(max_size=40),
)
payloads = {
    DATA: bodies,
    HEADERS: headers | asks | st.binary(max_size=40),
    PRIORITY: st.binary(min_size=5, max_size=5),
    RST_STREAM: st.binary(min_size=4, max_size=4),
    SETTINGS: st.lists(
        st.builds(struct.pack, st.just(">HI"), st.integers(0, 10), st.integers(0, 2**32 - 1)),
        max_size=4,
    ).map(b"".join),
    PUSH_PROMISE: st.binary(max_size=20),
    PING: st.just(bytes(8)),
    GOAWAY: st.binary(min_size=8, max_size=20),
    WINDOW_UPDATE: st.integers(0, 2**32 - 1).map(lambda n: struct.pack(">I", n)),
    CONTINUATION: headers,
    99: st.binary(max_size=20),
}


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame that is mostly right."""
    kind = draw(st.sampled_from([*payloads, HEADERS, HEADERS, DATA, DATA]))
    usual = {DATA: [0, END_STREAM], HEADERS: [END_HEADERS, END_HEADERS | END_STREAM]}
    flags = draw(
        st.sampled_from([*usual.get(kind, [0, END_HEADERS]), PADDED | END_HEADERS, 0xFF])
        if draw(st.integers(0, 9)) == 0
        else st.sampled_from(usual.get(kind, [0]))
    )
    stream = 0 if kind in (SETTINGS, PING, GOAWAY) else draw(stream_ids)
    payload = draw(payloads[kind] if draw(st.integers(0, 19)) else st.binary(max_size=30))
    return frame(kind, flags, stream, payload)


def finish_cold(server: rpc.RpcServer, choice: int) -> None:
    """Do with the cold calls what a daemon might: answer, refuse, or let them be."""
    for kind, call, _ in server.events():
        if kind == rpc.OPEN and call.is_plain and choice == 1:
            call.answer(200, "text/plain", 5000, b"" if call.http_method == "HEAD" else b"x" * 5000)
        elif kind == rpc.OPEN and choice == 0:
            call.finish(12, "unknown é%")
        elif kind == rpc.MESSAGE and choice == 1:
            call.send(b"reply" * 1000)
            call.finish(0)


@FUZZ
@given(
    script=st.lists(frames(), max_size=25),
    feed_sizes=st.lists(st.integers(1, 400), min_size=1, max_size=3),
    noise=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=2),
    choice=st.integers(0, 2),
    greet=st.booleans(),
)
def test_wrong_input_harms_nobody(
    script: list[bytes],
    feed_sizes: list[int],
    noise: list[tuple[int, int]],
    choice: int,
    greet: bool,
) -> None:
    server = make_server(queue_high_bytes=32_768, queue_low_bytes=16_384)
    client = Client(server, greet=greet)
    data = bytearray(b"".join(script) if greet else PREFACE + b"".join(script))
    for at, value in noise:
        if at < len(data):
            data[at] = value
    for piece in pieces(bytes(data), feed_sizes):
        client.exchange(piece)
        finish_cold(server, choice)
        if not client.open:
            break
    client.receive()
    still_serves(server)
    client.channel.close()
    server.flush()
    finish_cold(server, 2)
    counters = server.counters()
    assert (counters["calls"], counters["connections"]) == (0, 0)
    server.close()


@FUZZ
@given(data=st.binary(max_size=500), preface=st.booleans())
def test_noise_harms_nobody(data: bytes, preface: bool) -> None:
    server = make_server()
    client = Client(server, greet=False)
    client.exchange((PREFACE if preface else b"") + data)
    still_serves(server)
    server.close()
