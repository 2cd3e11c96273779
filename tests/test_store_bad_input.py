"""Nothing a client sends takes the store down or changes it, and others are served meanwhile.

What has an answer in etcd gets the same one here: each request goes to both.
"""

import http.client
import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError

from differential_rules import plain
from etcd_server import StoreServer, missing_reason
from etcdctl import call
from http2_frames import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    message,
    open_request,
)
from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS

TIMEOUT_S = 10.0
# Another kind than trimaran checks the test itself.
SUBJECT = os.environ.get("TRIMARAN_TEST_STORE", "trimaran")
KV = "/etcdserverpb.KV"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[StoreServer]]:
    """etcd and trimaran side by side, all tests on the same two."""
    kinds = ("3.5", SUBJECT)
    for reason in map(missing_reason, kinds):
        if reason is not None:
            pytest.skip(reason)
    with ExitStack() as stack:
        yield [stack.enter_context(StoreServer(kind, name="input")) for kind in kinds]


@pytest.fixture(autouse=True)
def unharmed(servers: list[StoreServer]) -> Iterator[None]:
    """After each test the same process still serves, at the same revision as etcd."""
    server = servers[1]
    pid, log_size = server.pid, server.log_path.stat().st_size
    yield
    assert server._process is not None
    assert server._process.poll() is None, server.log_tail()
    assert server.pid == pid
    assert server.healthy()
    request = pb.PutRequest(key=b"alive", value=b"1")
    revisions = [call(s, "KV/Put", request).header.revision for s in servers]
    assert revisions[0] == revisions[1], "one of the two was changed"
    log = server.log_path.read_bytes()[log_size:]
    assert b"Traceback" not in log, log[-3000:].decode()


def raw_call(server: StoreServer, path: str, data: bytes) -> tuple[str, str, bytes]:
    """Call with bytes of any kind for a message; give code, text and answer."""
    with grpc.insecure_channel(
        server.address, options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        try:
            answer = channel.unary_unary(path)(data, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return error.code().name, error.details() or "", b""
    return "OK", "", answer


def answers(servers: list[StoreServer], path: str, data: bytes) -> list[tuple[str, str, Any]]:
    """Call both; give code, text, and the answer in plain form."""
    found = []
    for server in servers:
        code, text, answer = raw_call(server, path, data)
        reply = METHODS[path].response.FromString(answer) if path in METHODS else None
        found.append((code, text, plain(reply) if reply is not None else None))
    return found


def put(size: int) -> bytes:
    data: bytes = pb.PutRequest(key=b"big", value=b"v" * size).SerializeToString()
    return data


MIB = 1024 * 1024
REFUSED: dict[str, tuple[str, bytes]] = {
    "above the limit of requests": (f"{KV}/Put", put(3 * MIB // 2 + 1)),
    "just within the limit": (f"{KV}/Put", put(3 * MIB // 2 - 200)),
    "above the limit of messages": (f"{KV}/Put", put(2 * MIB + 1)),
    "far above the limit of messages": (f"{KV}/Put", put(20 * MIB)),
    "empty put": (f"{KV}/Put", b""),
    "empty range": (f"{KV}/Range", b""),
    "empty delete": (f"{KV}/DeleteRange", b""),
    "empty transaction": (f"{KV}/Txn", b""),
    "empty compaction": (f"{KV}/Compact", b""),
    "unknown method": (f"{KV}/Nothing", b""),
    "unknown service": ("/etcdserverpb.Nothing/Put", b""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_same_refusal(name: str, servers: list[StoreServer]) -> None:
    path, data = REFUSED[name]
    reference, subject = answers(servers, path, data)
    assert subject == reference


def test_path_without_a_service(servers: list[StoreServer]) -> None:
    # The library of 3.5 says RESOURCE_EXHAUSTED with the same text; later ones mended that.
    reference, subject = answers(servers, "/Put", b"")
    assert subject[0] == "UNIMPLEMENTED"
    assert subject[1:] == reference[1:]


MALFORMED: dict[str, bytes] = {
    "cut in a length": b"\x0a",
    "cut in a key": b"\x0a\x05ab",
    "length of more than there is": b"\x0a\xff\xff\xff\xff\x0f",
    "negative length": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    "varint without an end": b"\x18" + b"\xff" * 11,
    "field number 0": b"\x00\x01",
    "wrong wire type": b"\x08\x01",
    "wire type 6": b"\x0e",
    "end of a group that was not begun": b"\x0c",
    "group without an end": b"\xa3\x06\x0a\x01a",
    "nested a thousand times": b"",
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("method", ["Range", "Put", "DeleteRange", "Txn", "Compact"])
def test_malformed_message(name: str, method: str, servers: list[StoreServer]) -> None:
    data = MALFORMED[name]
    if not data:
        for _ in range(1000):
            inner = pb.RequestOp.DESCRIPTOR.fields_by_name["request_txn"].number << 3 | 2
            data = bytes([inner]) + varint(len(data)) + data
            data = b"\x12" + varint(len(data)) + data
    reference, subject = answers(servers, f"{KV}/{method}", data)
    # The text of a failed parse is that of etcd's library; the code is what clients see.
    assert subject[0] == reference[0]
    assert subject[2] == reference[2]


def varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def samples(rng: random.Random) -> tuple[str, bytes]:
    """Pick a request that is well formed."""
    key, end = rng.choice((b"a", b"b", b"c")), rng.choice((b"", b"z"))
    txn = pb.TxnRequest(compare=[pb.Compare(key=key, target=3, value=b"x")])
    txn.success.add().request_put.CopyFrom(pb.PutRequest(key=key, value=b"new"))
    txn.failure.add().request_range.CopyFrom(pb.RangeRequest(key=key, range_end=end, limit=1))
    request, name = rng.choice(
        (
            (pb.PutRequest(key=key, value=b"value", prev_kv=True), "Put"),
            (pb.RangeRequest(key=key, range_end=end, limit=3, sort_order=1), "Range"),
            (pb.DeleteRangeRequest(key=key, range_end=end, prev_kv=True), "DeleteRange"),
            (txn, "Txn"),
        )
    )
    return f"{KV}/{name}", request.SerializeToString()


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Change a few bytes: flip, cut out, double or insert."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at : at + rng.randrange(4)]
        elif kind == 2:
            changed[at:at] = changed[at : at + rng.randrange(6)]
        else:
            changed[at:at] = rng.randbytes(rng.randrange(1, 4))
    return bytes(changed)


def could_crash_etcd(path: str, data: bytes) -> bool:
    """Say whether a request sets a sort target that ends etcd 3.5.1 with a panic."""
    try:
        request = METHODS[path].request.FromString(data)
    except DecodeError:
        return False
    text = str(request)
    return "sort_target" in text or "sort_order" in text.replace("sort_order: ASCEND", "")


def test_mutated_messages(servers: list[StoreServer]) -> None:
    rng = random.Random(8)
    with ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(s.address)) for s in servers]
        for _ in range(600):
            path, data = samples(rng)
            data = mutate(rng, data)
            if could_crash_etcd(path, data):
                continue
            found: list[Any] = []
            for channel in channels:
                try:
                    answer = channel.unary_unary(path)(data, timeout=TIMEOUT_S)
                    found.append(plain(METHODS[path].response.FromString(answer)))
                except grpc.RpcError as error:
                    known = error.code() is not grpc.StatusCode.INTERNAL
                    found.append((error.code().name, error.details() if known else ""))
            assert found[1] == found[0], f"{path} {data!r}"


def garbage(rng: random.Random) -> bytes:
    """Make bytes that begin like one of the protocols of the port, or like none."""
    noise = rng.randbytes(rng.choice((1, 9, 100, 5000)))
    begun = PREFACE + frame(SETTINGS)
    opened = begun + open_request(1, f"{KV}/Put")
    return rng.choice(
        (
            noise,
            b"GET /" + noise,
            b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
            b"POST /v3/kv/put HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 100_000,
            PREFACE + noise,
            begun + noise,
            begun + frame(HEADERS, 4, 1, noise[:9000]),
            begun + frame(DATA, 0, 3, noise[:9000]),
            begun + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0)),
            begun + struct.pack(">I", 0xFFFFFF)[1:] + struct.pack(">BBI", 0, 0, 1) + noise,
            opened + frame(DATA, 0, 1, noise[:9000]),
            opened + frame(DATA, END_STREAM, 1, message(b"")[:3]),
            opened + frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, 2**32 - 1) + b"x"),
            opened + frame(DATA, END_STREAM, 1, message(noise[:9000], compressed=1)),
            opened + frame(DATA, 0, 1, message(b"ab")) * 2 + frame(RST_STREAM, 0, 1, b"\0" * 4),
            begun + frame(GOAWAY, 0, 0, b"\0" * 8) + noise,
        )
    )


def test_garbage_on_the_port(servers: list[StoreServer]) -> None:
    rng = random.Random(9)
    for _ in range(300):
        with socket.create_connection(("127.0.0.1", servers[1].client_port)) as connection:
            connection.settimeout(TIMEOUT_S)
            try:
                connection.sendall(garbage(rng))
                if rng.random() < 0.3:
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(65536)
            except OSError:
                # It has hung up already, which is its right.
                continue


def test_slow_connections_keep_nobody_out(servers: list[StoreServer]) -> None:
    address = ("127.0.0.1", servers[1].client_port)
    begun = PREFACE + frame(SETTINGS) + open_request(1, f"{KV}/Put")
    starts = (b"", b"G", b"PRI * HT", PREFACE, begun, b"GET /health HTTP/1.1\r\nHost: x\r\n")
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(address)) for _ in range(300)]
        for i, connection in enumerate(slow):
            connection.sendall(starts[i % len(starts)])
        with grpc.insecure_channel(servers[1].address) as channel:
            for number in range(50):
                request = pb.RangeRequest(key=b"%d" % number)
                channel.unary_unary(f"{KV}/Range")(request.SerializeToString(), timeout=TIMEOUT_S)
            assert servers[1].healthy()


def test_clients_that_vanish(servers: list[StoreServer]) -> None:
    rng = random.Random(10)
    body = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"\0", range_end=b"\0"))
    watch = open_request(1, "/etcdserverpb.Watch/Watch") + frame(
        DATA, 0, 1, message(body.SerializeToString())
    )
    for _ in range(100):
        connection = socket.create_connection(("127.0.0.1", servers[1].client_port))
        connection.sendall(PREFACE + frame(SETTINGS) + watch)
        # Half of them with a reset instead of a clean end.
        if rng.random() < 0.5:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.close()


HTTP: dict[str, tuple[str, str]] = {
    "health": ("GET", "/health"),
    "health by the wrong method": ("POST", "/health"),
    "version": ("GET", "/version"),
    "metrics": ("GET", "/metrics"),
    "nothing": ("GET", "/nothing"),
}


@pytest.mark.parametrize("name", HTTP)
def test_http_status(name: str, servers: list[StoreServer]) -> None:
    statuses = []
    for server in servers:
        connection = http.client.HTTPConnection(server.address, timeout=TIMEOUT_S)
        connection.request(*HTTP[name])
        answer = connection.getresponse()
        body = answer.read()
        statuses.append((answer.status, name != "health" or body.strip()))
        connection.close()
    assert statuses[1] == statuses[0]


def test_watcher_that_does_not_read(servers: list[StoreServer]) -> None:
    server = servers[1]
    body = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"flood", prev_kv=True))
    start = PREFACE + frame(SETTINGS) + open_request(1, "/etcdserverpb.Watch/Watch")
    with socket.create_connection(("127.0.0.1", server.client_port)) as deaf:
        deaf.sendall(start + frame(DATA, 0, 1, message(body.SerializeToString())))
        request = pb.PutRequest(key=b"flood", value=b"v" * 500_000)
        # Writers must not wait for it: 20 MB of events are pending in the end.
        for _ in range(40):
            for each in servers:
                call(each, "KV/Put", request)
