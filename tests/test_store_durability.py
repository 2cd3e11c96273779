"""What the store acknowledged outlives `kill -9`, and what it did not is whole or absent."""

import asyncio
import random
import time

import pytest

from durability import Memory, check, load
from etcd_server import StoreServer, missing_reason

CONNECTIONS, WRITERS = 4, 4
SEED = 20

# etcd is here to try the test itself.
ROUNDS = {"trimaran": 24, "3.4": 3}


@pytest.mark.parametrize("kind", ROUNDS)
def test_killed_under_load(kind: str) -> None:
    reason = missing_reason(kind)
    if reason is not None:
        pytest.skip(reason)
    rng = random.Random(SEED)
    memory = Memory()
    with StoreServer(kind, name="durable") as server:
        for number in range(ROUNDS[kind]):
            before = len(memory.operations)
            asyncio.run(load(server.address, memory, rng, CONNECTIONS, WRITERS, server.kill))
            if number % 4 == 3:
                # Kill it again while it recovers.
                server.spawn()
                time.sleep(rng.uniform(0.0, 0.3))
                server.kill()
            server.start()
            asyncio.run(check(server.address, memory, rng))
            assert len(memory.operations) > before
    answered = sum(1 for operation in memory.operations.values() if operation.revision)
    print(f"{kind}: {len(memory.operations)} writes, {answered} acknowledged")
    assert answered > ROUNDS[kind] * CONNECTIONS * WRITERS
