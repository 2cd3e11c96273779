"""A null unary reply of the gRPC engine alone: requests a second and CPU time.

What it shows is the ceiling of every method: framing, header compression, flow control and system
calls, with no work between request and reply. The server is a process of its own; the client is
h2load on the same machine, so at many streams it is often h2load that is full, and the server's CPU
time for a request is the figure to compare.

The last line is the engine without sockets: frames as a client sends them once its header table is
warm, 100 requests at a time, fed and taken by hand in this process; the best of several rounds,
which other load on the machine disturbs least.
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from rpc_helpers import hot_handler, listening_socket
from trimaran.daemons.grpc_server import GrpcServer
from trimaran.ext.rpc import RpcServer

SHAPES = ((1, 1), (100, 1), (10, 100))
PATH = "/hot.Test/Null"
FIELDS = (
    (":authority", "127.0.0.1:2379"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("user-agent", "grpc-go/1.60"),
)
REQUEST = b"\0\0\0\0\x0a0123456789"


def serve(control: Connection) -> None:
    """Run the server until the other end of control is closed."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = GrpcServer(loop, hot_handler())
        listening, port = listening_socket()
        await server.start([listening])
        control.send(port)
        ended = asyncio.Event()
        loop.add_reader(control.fileno(), ended.set)
        await ended.wait()
        loop.remove_reader(control.fileno())
        await server.stop(grace_s=1)

    uvloop.run(run())


def cpu_time_s(pid: int) -> float:
    """Read how much CPU time a process has used so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_client(port: int, body: Path, shape: tuple[int, int], requests: int) -> float:
    """Send requests with h2load; give how many a second were answered with 200.

    Raises:
        RuntimeError: not every request was.
    """
    connections, streams = shape
    line = ["h2load", f"-n{requests}", f"-c{connections}", f"-m{streams}", f"--data={body}"]
    line += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    line += [f"http://127.0.0.1:{port}{PATH}"]
    answer = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", answer.stdout)
    if rate is None or f"status codes: {requests} 2xx" not in answer.stdout:
        raise RuntimeError(f"h2load: {answer.stdout}{answer.stderr}")
    return float(rate[1])


def measure(
    port: int, pid: int, shape: tuple[int, int], rounds: int, seconds: float
) -> list[float]:
    """Give the medians of requests a second and microseconds of CPU time a request."""
    rates, costs = [], []
    with tempfile.TemporaryDirectory(prefix="trimaran-bench-rpc-") as folder:
        body = Path(folder) / "body"
        body.write_bytes(REQUEST)
        least = shape[0] * shape[1]
        pilot = run_client(port, body, shape, max(least, 300))
        for _ in range(rounds):
            requests = max(least, int(pilot * seconds))
            before_s = cpu_time_s(pid)
            pilot = run_client(port, body, shape, requests)
            rates.append(pilot)
            costs.append((cpu_time_s(pid) - before_s) / requests * 1e6)
    return [statistics.median(rates), statistics.median(costs)]


def warm_requests(count: int) -> list[bytes]:
    """Give the frames of so many requests; the first enters its header fields into the table."""
    # By number: POST, http, and the name of :path.
    indexed = b"\x83\x86\x04" + bytes([len(PATH)]) + PATH.encode()
    entered = b""
    for name, value in FIELDS:
        entered += b"\x40" + bytes([len(name)]) + name.encode()
        entered += bytes([len(value)]) + value.encode()
    # The newest entry of the table has number 62 (RFC 7541 section 2.3.3).
    known = bytes(0x80 | (61 + len(FIELDS) - i) for i in range(len(FIELDS)))
    requests = []
    for number in range(count):
        headers = indexed + (known if number else entered)
        stream = 2 * number + 1
        requests.append(
            frame(HEADERS, END_HEADERS, stream, headers) + frame(DATA, END_STREAM, stream, REQUEST)
        )
    return requests


def engine_ns(rounds: int, count: int) -> float:
    """Give the nanoseconds of CPU time a request takes in the engine.

    Raises:
        RuntimeError: not every request was answered.
    """
    requests = warm_requests(count)
    batches = [b"".join(requests[at : at + 100]) for at in range(0, count, 100)]
    window = frame(WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big"))
    best = float("inf")
    for _ in range(rounds):
        server = RpcServer(hot_handler())
        channel = server.attach()
        channel.feed(PREFACE + frame(SETTINGS) + window)
        before_s = time.process_time()
        for batch in batches:
            channel.feed(batch)
            while channel.take():
                pass
        best = min(best, (time.process_time() - before_s) / count * 1e9)
        counters = server.counters()
        if (counters["requests"], counters["calls"]) != (count, 0):
            raise RuntimeError(f"not every request was answered: {counters}")
        server.close()
    return best


def main(smoke: bool = False, arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="run bench rpc", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.02 if smoke else 3.0)
    parser.add_argument("--rounds", type=int, default=1 if smoke else 3)
    options = parser.parse_args(arguments)
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        port = ours.recv()
        assert process.pid is not None
        print(f"null unary reply, {platform.machine()}, {os.cpu_count()} CPUs,", end=" ")
        print(f"{options.rounds} rounds of {options.seconds} s, Python {sys.version.split()[0]}")
        print(f"{'connections x streams':>22} {'requests/s':>12} {'CPU us/request':>15}")
        figures = {}
        for shape in SHAPES:
            rate, cost_us = measure(port, process.pid, shape, options.rounds, options.seconds)
            name = f"{shape[0]}x{shape[1]}"
            figures[name] = {"requests_per_s": round(rate), "cpu_us": round(cost_us, 2)}
            print(f"{name:>22} {rate:12,.0f} {cost_us:15.2f}")
    finally:
        ours.close()
        process.join(10)
    alone_ns = engine_ns(2 if smoke else 15, 1000 if smoke else 20_000)
    print(f"{'engine alone':>22} {1e9 / alone_ns:12,.0f} {alone_ns / 1000:15.2f}")
    digest = hashlib.sha256(REQUEST).hexdigest()[:12]
    print(
        json.dumps(
            {"bench": "rpc", "hash": digest, "shapes": figures, "engine_ns": round(alone_ns)}
        )
    )
    return 0
