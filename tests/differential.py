"""Random operations against two stores side by side; every answer must be the same.

    python tests/differential.py --seeds 100 [--reference 3.5] [--subject trimaran]

On a mismatch it prints the seed and the smallest list of steps it finds that still shows it.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from differential_rules import (
    Outcome,
    differences,
    known_difference,
    plain,
    watcher_logs,
    without_compacted_deletes,
    without_tie_order,
)
from differential_steps import INT64_MAX, STREAMS, Call, State, Step, StepMaker, WatchSend
from etcd_server import KINDS, StoreServer, missing_reason
from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS

CALL_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 5.0
# Watchers that are behind are served every 100 ms by etcd.
QUIET_S = 0.15
SETTLE_TIMEOUT_S = 5.0
SHRINK_TIMEOUT_S = 60.0
SEEDS_PER_SERVER = 10


@dataclass
class Mismatch:
    """Where two servers differ.

    Attributes:
        seed: which test case.
        numbers: the steps of it that were done, by number.
        done: the steps in words.
        text: the difference in words.
    """

    seed: int
    numbers: list[int]
    done: list[str]
    text: str

    def __str__(self) -> str:
        steps = "\n".join(f"  {line}" for line in self.done)
        return f"seed {self.seed}, {len(self.done)} steps:\n{steps}\n{self.text}"


class WatchStream:
    """One watch stream and everything that came over it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        method = METHODS["/etcdserverpb.Watch/Watch"]
        self.call = channel.stream_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )()
        self.responses: list[Any] = []
        self.answers = 0
        self.arrived = asyncio.Event()
        self.last_s = time.monotonic()
        self.reader = asyncio.create_task(self.read())

    async def read(self) -> None:
        """Collect responses until the stream ends."""
        try:
            async for response in self.call:
                self.responses.append(response)
                self.answers += not response.events and not response.compact_revision
                self.last_s = time.monotonic()
                self.arrived.set()
        except asyncio.CancelledError:
            pass
        except grpc.aio.AioRpcError as error:
            self.responses.append(
                pb.WatchResponse(cancel_reason=f"stream ended: {error.details()}")
            )

    async def wait_answers(self, count: int) -> bool:
        """Wait until that many answers to requests have come."""
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        while self.answers < count and time.monotonic() < deadline_s and not self.reader.done():
            self.arrived.clear()
            try:
                await asyncio.wait_for(self.arrived.wait(), 0.1)
            except TimeoutError:
                continue
        return self.answers >= count

    def taken(self) -> dict[int, bool]:
        """Give the ids in use, and for each whether its watcher still runs.

        A watcher that a compaction cancelled keeps its id until the client cancels it as well.
        """
        ids: dict[int, bool] = {}
        for response in self.responses:
            if response.compact_revision:
                ids[response.watch_id] = False
            elif response.canceled and not response.created:
                ids.pop(response.watch_id, None)
            elif response.created and not response.canceled:
                ids[response.watch_id] = True
        return ids

    async def close(self) -> None:
        """End the stream."""
        self.call.cancel()
        await asyncio.wait([self.reader])


class Target:
    """One of the two servers with a connection and the watch streams of a test case."""

    def __init__(self, server: StoreServer) -> None:
        self.server = server
        self.channel = grpc.aio.insecure_channel(server.address)
        self.calls = {
            path: (self.channel.stream_stream if m.client_streaming else self.channel.unary_unary)(
                path, m.request.SerializeToString, m.response.FromString
            )
            for path, m in METHODS.items()
            if m.client_streaming == m.server_streaming
        }
        self.streams: list[WatchStream] = []

    async def call(self, path: str, request: Any) -> Outcome:
        """Make a call; of a stream, exchange one message."""
        try:
            if METHODS[path].client_streaming:
                exchange = self.calls[path](iter([request]), timeout=CALL_TIMEOUT_S)
                reply = await exchange.read()
                exchange.cancel()
            else:
                reply = await self.calls[path](request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return Outcome(error.code().name, error.details() or "")
        if reply is grpc.aio.EOF:
            return Outcome("EOF")
        return Outcome("OK", "", plain(without_tie_order(request, reply)), reply.header.revision)

    def open_streams(self) -> None:
        """Open the watch streams of a test case."""
        self.streams = [WatchStream(self.channel) for _ in range(STREAMS)]

    async def close_streams(self) -> None:
        """Close them."""
        for stream in self.streams:
            await stream.close()

    async def close(self) -> None:
        """Give back the connection."""
        await self.channel.close()


class Case:
    """One seed's steps, done on both servers in step.

    Args:
        reference, subject: the servers.
        seed: from which everything random comes.
        state: what is known of the stores, which earlier test cases may have used.
    """

    def __init__(self, reference: Target, subject: Target, seed: int, state: State) -> None:
        self.reference = reference
        self.subject = subject
        self.targets = (reference, subject)
        self.kinds = {target.server.kind for target in self.targets}
        self.seed = seed
        self.state = state
        self.last_write_s = time.monotonic()
        self.done: list[str] = []

    async def run(self, numbers: Sequence[int]) -> str:
        """Do the steps of these numbers; give the first difference in words, "" without."""
        self.state.watchers = [{} for _ in range(STREAMS)]
        for target in self.targets:
            target.open_streams()
        try:
            for number in numbers:
                maker = StepMaker(self.state, random.Random(f"{self.seed}/{number}"))
                problem = await self.do(number, maker.step())
                if problem:
                    return problem
            return await self.compare_watchers()
        finally:
            for target in self.targets:
                await target.close_streams()
            await self.clean_up()

    async def do(self, number: int, step: Step) -> str:
        """Do one step on both servers and compare."""
        if isinstance(step, WatchSend):
            # Cancellations and progress are comparable only where no watcher is behind.
            creates = step.request.HasField("create_request")
            if not creates and (problem := await self.compare_watchers()):
                return problem
            self.forget_cancelled(step.stream)
        if known_difference(step, self.state, self.kinds):
            return ""
        if isinstance(step, WatchSend):
            return await self.send(number, step)
        name = step.path.rpartition("/")[2]
        # A watcher still reading old events would see a compaction at a moment nobody knows.
        if name == "Compact" and (problem := await self.compare_watchers()):
            return problem
        self.note(number, name, step.request)
        outcomes = [await target.call(step.path, step.request) for target in self.targets]
        problem = self.difference(*outcomes)
        if problem:
            return problem
        self.learn(name, step, outcomes[0])
        return ""

    def note(self, number: int, name: str, request: Any) -> None:
        text = " ".join(str(request).split()).replace("k" * 600, "k...")
        self.done.append(f"#{number} at revision {self.state.revision}: {name} {{{text[:1500]}}}")

    def difference(self, reference: Outcome, subject: Outcome) -> str:
        """Say how two outcomes differ."""
        return "\n".join(self.label(line) for line in differences(vars(reference), vars(subject)))

    def label(self, line: str) -> str:
        kinds = f"{self.reference.server.kind} against {self.subject.server.kind}"
        return f"MISMATCH ({kinds}) {line}"

    def learn(self, name: str, step: Call, outcome: Outcome) -> None:
        """Keep the state up to date with what the reference answered."""
        state = self.state
        if outcome.code != "OK":
            return
        if outcome.revision > state.revision:
            state.revision = outcome.revision
            self.last_write_s = time.monotonic()
        if name == "Compact":
            state.compacted = max(state.compacted, step.request.revision)
            state.compactions.add(step.request.revision)
        elif name == "LeaseGrant":
            state.leases.add(step.request.ID)
        elif name == "LeaseRevoke":
            state.leases.discard(step.request.ID)

    async def send(self, number: int, step: WatchSend) -> str:
        """Send on a watch stream and wait for the answers, where there must be one."""
        request = step.request
        self.note(number, f"watch stream {step.stream}", request)
        streams = [target.streams[step.stream] for target in self.targets]
        taken = streams[0].taken()
        counts = [stream.answers for stream in streams]
        for stream in streams:
            await stream.call.write(request)
        if request.HasField("cancel_request") and request.cancel_request.watch_id not in taken:
            return ""
        for target, stream, count in zip(self.targets, streams, counts, strict=True):
            if not await stream.wait_answers(count + 1):
                return self.label(f"no answer of {target.server.kind} to {request}")
        known, now = self.state.watchers[step.stream], streams[0].taken()
        start = request.create_request.start_revision
        known.update(dict.fromkeys(now.keys() - taken.keys(), start))
        for watch_id in known.keys() - now:
            del known[watch_id]
        return ""

    def forget_cancelled(self, stream: int) -> None:
        """Drop the watchers from the state that the reference has cancelled."""
        taken = self.reference.streams[stream].taken()
        watchers = self.state.watchers[stream]
        self.state.watchers[stream] = {
            i: start if taken[i] else INT64_MAX for i, start in watchers.items() if i in taken
        }

    async def settle(self) -> None:
        """Wait until the watchers of both servers have nothing more to say."""
        deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            streams = [stream for target in self.targets for stream in target.streams]
            counts = [
                [sum(len(r.events) or 1 for r in stream.responses) for stream in target.streams]
                for target in self.targets
            ]
            last_s = max(self.last_write_s, *(stream.last_s for stream in streams))
            quiet_s = time.monotonic() - last_s
            # Unequal counts mean that one is late, or wrong.
            if quiet_s > QUIET_S and (counts[0] == counts[1] or quiet_s > 10 * QUIET_S):
                return
            await asyncio.sleep(0.01)

    async def compare_watchers(self) -> str:
        """Let the watchers catch up and compare what each one saw."""
        if not any(stream.responses for target in self.targets for stream in target.streams):
            return ""
        await self.settle()
        for number in range(STREAMS):
            logs = []
            for target in self.targets:
                try:
                    logs.append(watcher_logs(target.streams[number].responses))
                except AssertionError as error:
                    return self.label(f"watch of {target.server.kind}: {error}")
            for watch_id in sorted(logs[0].keys() | logs[1].keys()):
                seen = [
                    without_compacted_deletes(log.get(watch_id, []), self.state, self.kinds)
                    for log in logs
                ]
                problem = first_difference(*seen)
                if problem:
                    return self.label(f"stream {number} watcher {watch_id}: {problem}")
        return ""

    async def clean_up(self) -> None:
        """Remove the leases, so that the next test case can have them."""
        for lease in sorted(self.state.leases):
            request = pb.LeaseRevokeRequest(ID=lease)
            for target in self.targets:
                outcome = await target.call("/etcdserverpb.Lease/LeaseRevoke", request)
                self.state.revision = max(self.state.revision, outcome.revision)
        self.state.leases.clear()


def first_difference(left: list[Any], right: list[Any]) -> str:
    """Say where two logs of a watcher part."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return f"item {i}: " + "; ".join(differences(list(a), list(b)))
    if len(left) != len(right):
        longer = left if len(left) > len(right) else right
        extra = longer[min(len(left), len(right))]
        return f"{len(left)} against {len(right)} items, the first extra one is {extra}"
    return ""


class Pair:
    """Two fresh servers.

    Args:
        kinds: of the reference and of the subject.
    """

    def __init__(self, kinds: tuple[str, str]) -> None:
        self.servers = [StoreServer(kind, name="differential") for kind in kinds]
        self.state = State()

    def __enter__(self) -> "Pair":
        try:
            for server in self.servers:
                server.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.close()

    def restart(self) -> None:
        """Start both again on their data: trimaran after SIGKILL, etcd after a clean stop.

        etcd 3.5.0 to 3.5.2 can lose acknowledged writes when killed, which this test has seen.
        """
        for server in self.servers:
            if server.kind != "trimaran":
                server.stop()
            else:
                server.kill()
            server.start()

    def run(self, seed: int, numbers: Sequence[int]) -> Mismatch | None:
        """Do the steps of a seed on both."""
        return asyncio.run(self._run(seed, numbers))

    async def _run(self, seed: int, numbers: Sequence[int]) -> Mismatch | None:
        targets = [Target(server) for server in self.servers]
        case = Case(*targets, seed, self.state)
        try:
            text = await case.run(numbers)
        finally:
            for target in targets:
                await target.close()
        return Mismatch(seed, list(numbers), case.done, text) if text else None


def shrink(numbers: list[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """Leave out steps as long as the rest still fails, for a bounded time."""
    deadline_s = time.monotonic() + SHRINK_TIMEOUT_S
    size = max(1, len(numbers) // 2)
    while size and time.monotonic() < deadline_s:
        start = 0
        while start < len(numbers) and time.monotonic() < deadline_s:
            shorter = numbers[:start] + numbers[start + size :]
            if shorter and fails(shorter):
                numbers = shorter
            else:
                start += size
        size //= 2
    return numbers


def smallest(mismatch: Mismatch, kinds: tuple[str, str]) -> Mismatch:
    """Find a short list of steps that shows a mismatch on fresh servers."""
    best = mismatch

    def fails(numbers: list[int]) -> bool:
        nonlocal best
        with Pair(kinds) as pair:
            found = pair.run(mismatch.seed, numbers)
        if found is not None:
            best = found
        return found is not None

    done = [int(line.split()[0][1:]) for line in mismatch.done]
    if fails(done):
        shrink(done, fails)
    else:
        best.text += "\n(only after other seeds on the same servers; not made smaller)"
    return best


def compare(
    kinds: tuple[str, str], seeds: Sequence[int], steps: int, *, restart: bool = False
) -> Mismatch | None:
    """Compare two kinds of server.

    Args:
        kinds: of the reference and of the subject.
        seeds: the test cases.
        steps: how many steps each has.
        restart: restart both servers after each test case and go on with their data.

    Returns:
        the first mismatch, with as few steps as could be found; None where there is none.
    """
    for start in range(0, len(seeds), SEEDS_PER_SERVER):
        with Pair(kinds) as pair:
            for seed in seeds[start : start + SEEDS_PER_SERVER]:
                mismatch = pair.run(seed, range(steps))
                if mismatch is not None:
                    break
                if restart:
                    pair.restart()
        if mismatch is not None:
            return smallest(mismatch, kinds)
    return None


def main(arguments: Sequence[str]) -> int:
    """Compare as the command line says; 1 on a mismatch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=10, help="how many test cases")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=300, help="of each test case")
    parser.add_argument("--reference", default="3.5", choices=KINDS)
    parser.add_argument("--subject", default="trimaran", choices=KINDS)
    parser.add_argument("--restart", action="store_true", help="restart both after each test case")
    options = parser.parse_args(arguments)
    kinds = (options.reference, options.subject)
    for kind in kinds:
        if reason := missing_reason(kind):
            parser.error(reason)
    seeds = range(options.first, options.first + options.seeds)
    start_s = time.monotonic()
    mismatch = compare(kinds, seeds, options.steps, restart=options.restart)
    print(mismatch or f"{len(seeds)} seeds of {options.steps} steps: no difference", end=" ")
    print(f"({time.monotonic() - start_s:.1f} s)")
    return 1 if mismatch else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
