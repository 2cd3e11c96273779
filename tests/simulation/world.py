"""Time as a queue of events, chance from one seed, and a trace that tells two runs apart."""

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

EVENTS_MAX = 500_000


class World:
    """What everything simulated shares.

    Args:
        seed: decides all.
        show: print the trace while it is made.

    Attributes:
        now_us: the time.
        counts: how often what happened, by name.
        events: how many events were carried out.
    """

    def __init__(self, seed: int, show: bool = False) -> None:
        self.seed = seed
        self.show = show
        self.now_us = 0
        self.events = 0
        self.counts: Counter[str] = Counter()
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._trace = hashlib.blake2b(digest_size=16)

    def chance(self, name: str) -> random.Random:
        """Give a stream of chance of its own, so that one part does not disturb another."""
        return random.Random(f"{name} {self.seed}")

    def after(self, delay_us: int, action: Callable[..., None], *arguments: Any) -> None:
        """Carry out an action later; those of one moment in the order they were asked for."""
        self._number += 1
        event = (self.now_us + max(0, delay_us), self._number, action, arguments)
        heapq.heappush(self._queue, event)

    def run_until(self, end_us: int, wanted: Callable[[], bool] | None = None) -> bool:
        """Carry out events up to a time, or until what is wanted has come about."""
        queue = self._queue
        while queue and queue[0][0] <= end_us:
            self.now_us, _, action, arguments = heapq.heappop(queue)
            self.events += 1
            if self.events > EVENTS_MAX:
                raise RuntimeError(
                    "more events than any seed should need: something goes in circles"
                )
            action(*arguments)
            if wanted is not None and wanted():
                return True
        self.now_us = max(self.now_us, end_us)
        return False

    def note(self, *fields: Any) -> None:
        """Add to the trace something that happened."""
        line = f"{self.now_us} {' '.join(map(str, fields))}"
        self._trace.update(line.encode())
        if self.show:
            print(f"{self.now_us / 1e6:10.6f} {' '.join(map(str, fields))}")

    def count(self, name: str, *fields: Any) -> None:
        """Count something and add it to the trace."""
        self.counts[name] += 1
        self.note(name, *fields)

    @property
    def trace(self) -> str:
        """A hash of all that happened so far."""
        return self._trace.copy().hexdigest()
