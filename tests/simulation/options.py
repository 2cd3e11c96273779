"""What a seed decides before it begins: the shape of the cluster and which faults there are.

Every seed turns on some kinds of faults and leaves out others, and draws how hard each one strikes.
A run in which everything goes wrong at once reaches fewer states than many runs in which one or two
things do (Groce et al., "Swarm Testing").
"""

import random
from dataclasses import dataclass, fields

TICK_US = 100_000


@dataclass(frozen=True)
class Options:
    """One draw. Chances are of 1, times in microseconds, unless the name says otherwise."""

    seed: int
    # The cluster.
    members: int
    election_ticks: int
    fault_ticks: int  # length of the safety phase
    snapshot_count: int
    catch_up_entries: int
    lease_reads: bool
    max_message_bytes: int
    # The network.
    ordered: bool  # streams as TCP's; else each frame finds its own way
    delay_us: int
    delay_tail: float  # of a frame that takes up to twenty times as long
    loss: float
    duplication: float
    disconnection: float  # of a frame, to end its stream
    # The disk.
    flush_us: int
    slow_disk: bool
    torn_write: bool
    # Faults: the mean number of ticks between two, 0 for none.
    crash_ticks: int
    pause_ticks: int
    partition_ticks: int
    change_ticks: int
    strict_changes: bool
    transfer_ticks: int
    clock_ticks: int
    wipe_ticks: int
    upkeep_ticks: int  # compaction, defragmentation
    clock_drift: float  # a member's clock runs by up to this part faster or slower
    # The clients.
    clients: int
    keys: int
    think_ticks: float
    reads: float
    serializable: float
    large_values: bool
    locks: int  # clients that hold a lock under a lease

    def __str__(self) -> str:
        return " ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


def draw(seed: int) -> Options:
    """Draw the options of a seed."""
    chance = random.Random(f"options {seed}")

    def sometimes(probability: float, low: int, high: int) -> int:
        return chance.randint(low, high) if chance.random() < probability else 0

    wipe_ticks = sometimes(0.2, 50, 150)
    clock_ticks = sometimes(0.2, 20, 80)
    return Options(
        seed=seed,
        members=chance.choice([1, 2, 3, 3, 3, 3, 5, 5]),
        election_ticks=chance.choice([5, 10, 10]),
        fault_ticks=chance.choice([100, 150, 200, 300]),
        snapshot_count=chance.choice([10, 50, 200, 10_000]),
        catch_up_entries=chance.choice([0, 5, 50]),
        lease_reads=chance.random() < 0.3,
        max_message_bytes=chance.choice([200, 4000, 1 << 20, 1 << 20]),
        ordered=chance.random() < 0.6,
        delay_us=chance.choice([200, 1000, 1000, 10_000, 60_000]),
        delay_tail=chance.choice([0, 0, 0.01, 0.1]),
        loss=chance.choice([0, 0, 0.01, 0.1, 0.3]),
        duplication=chance.choice([0, 0, 0.01, 0.2]),
        disconnection=chance.choice([0, 0, 0.005, 0.05]),
        flush_us=chance.choice([100, 1000, 10_000, 50_000]),
        slow_disk=chance.random() < 0.3,
        torn_write=chance.random() < 0.5,
        crash_ticks=sometimes(0.7, 15, 80),
        pause_ticks=sometimes(0.4, 20, 100),
        partition_ticks=sometimes(0.7, 15, 80),
        # An operator who replaces a member does nothing else meanwhile.
        change_ticks=0 if wipe_ticks else sometimes(0.4, 20, 80),
        strict_changes=chance.random() < 0.3,
        transfer_ticks=sometimes(0.4, 10, 80),
        clock_ticks=clock_ticks,
        wipe_ticks=wipe_ticks,
        upkeep_ticks=sometimes(0.4, 20, 80),
        clock_drift=chance.choice([0, 0, 0.01, 0.1]),
        clients=chance.randint(2, 6),
        keys=chance.choice([1, 3, 10]),
        think_ticks=chance.choice([0.5, 1, 3]),
        reads=chance.choice([0.2, 0.5, 0.7]),
        serializable=chance.choice([0, 0, 0.2]),
        large_values=chance.random() < 0.2,
        # Nobody can promise how long a lease lives on a clock that jumps.
        locks=0 if clock_ticks else chance.choice([0, 0, 2, 3]),
    )
