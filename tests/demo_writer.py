"""Writes one key after the other to the store of this host's `trimaran up`, until its input ends.

Each line of standard output is `NUMBER SECONDS`: a write that the store acknowledged, and when. A
write without an answer is not repeated, as it may have taken effect. The reading side, with the
number of writes as argument, prints the numbers that are in the store.
"""

import asyncio
import sys
import time

from trimaran.client import Client, TLSOptions
from trimaran.daemons.cli_context import read_connection
from trimaran.errors import StoreError

PREFIX = "/demo/writes/"


def connect() -> Client:
    """Make a client as the command line does."""
    way = read_connection()
    tls = TLSOptions(ca=way.ca_cert, cert=way.cert, key=way.key)
    return Client(list(way.endpoints), tls=tls, timeout_s=2.0)


async def write() -> None:
    """Write until standard input ends."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    number = 0
    async with connect() as client:
        await client.sync()
        while not stop.is_set():
            try:
                await client.put(f"{PREFIX}{number:08}", str(number))
                print(number, f"{time.monotonic():.3f}", flush=True)
            except StoreError as error:
                print(f"{number}: {error.message}", file=sys.stderr)
            number += 1


async def read() -> None:
    """Print the numbers of all writes that the store has."""
    async with connect() as client:
        found = await client.get(PREFIX, prefix=True)
        print(*(pair.value.decode() for pair in found.kvs))


if __name__ == "__main__":
    asyncio.run(read() if sys.argv[1:] == ["read"] else write())
