"""A null unary reply of the gRPC engine alone: requests a second and CPU time, by h2load.

What it shows is the ceiling of every method: framing, header compression, flow control and system
calls, with no work between request and reply. The server is a process of its own; the client is
h2load on the same machine, so at many streams it is often h2load that is full: the server's CPU
time for a request is the figure to compare. To compare two
trees, run it in each.
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
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from rpc_helpers import hot_handler, listening_socket
from trimaran.daemons.grpc_server import GrpcServer

SHAPES = ((1, 1), (100, 1), (10, 100))
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
    line += [f"http://127.0.0.1:{port}/hot.Test/Null"]
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
    digest = hashlib.sha256(REQUEST).hexdigest()[:12]
    print(json.dumps({"bench": "rpc", "hash": digest, "shapes": figures}))
    return 0
