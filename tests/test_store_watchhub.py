"""The watch hub against a plain model, with clients that stop reading, cancel and go away.

A watcher is told of every change that it asked for, in order and once, or of the compaction that
took one from it.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from store_engine import COMPACT, DELETE, PUT, TXN, Engine
from store_model import Model, Version, covers
from trimaran.wire import etcd_pb2 as pb

KEYS = [b"a", b"aa", b"b", b"c/1", b"c/2", b"d"]
RANGES = [(b"a", b""), (b"aa", b""), (b"d", b""), (b"zz", b""), (b"a", b"b"), (b"c/", b"c0")]
RANGES += [(b"", b"\0"), (b"b", b"\0"), (b"\0", b"\xff"), (b"e", b"f")]
STREAMS = 4
FULL = 2 << 20


@dataclass
class Watcher:
    """What one watcher asked for and has heard."""

    create: pb.WatchCreateRequest
    start: int
    heard: list[pb.Event] = field(default_factory=list)
    parts: list[pb.Event] = field(default_factory=list)
    compacted_at: int = 0
    canceled: bool = False


class Site:
    """Streams of watchers on an engine, and what they must hear."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.engine = Engine(directory)
        self.model = Model()
        self.index = 0
        self.watchers: dict[tuple[int, int], Watcher] = {}
        self.finished: list[Watcher] = []
        self.creating: dict[int, list[pb.WatchCreateRequest]] = {}
        self.sealed = False

    def send(self, stream: int, request: pb.WatchRequest) -> None:
        self.engine.message(stream, "watch", request.SerializeToString())
        self.read()

    # Requests.

    def create(self) -> None:
        stream = self.random.randrange(STREAMS)
        key, end = self.random.choice(RANGES)
        revision = self.model.revision
        create = pb.WatchCreateRequest(
            key=key,
            range_end=end,
            start_revision=self.random.choice(
                [0, 0, 1, revision, revision + 1, revision + 5, self.random.randint(1, revision)]
            ),
            watch_id=self.random.choice([0, 0, 0, 3, -1, -(1 << 63), (1 << 63) - 1]),
            prev_kv=self.random.random() < 0.4,
            fragment=self.random.random() < 0.3,
            filters=self.random.choice([[], [], [], [0], [1], [0, 1]]),
        )
        self.creating.setdefault(stream, []).append(create)
        self.send(stream, pb.WatchRequest(create_request=create))
        assert not self.creating[stream], "no answer to a creation"

    def cancel(self) -> None:
        if not self.watchers:
            return
        stream, watch_id = self.random.choice(sorted(self.watchers))
        watcher = self.watchers[stream, watch_id]
        cancel = pb.WatchCancelRequest(watch_id=watch_id)
        self.send(stream, pb.WatchRequest(cancel_request=cancel))
        assert watcher.canceled
        self.finish(stream, watch_id)

    def finish(self, stream: int, watch_id: int) -> None:
        self.finished.append(self.watchers.pop((stream, watch_id)))

    def leave(self) -> None:
        stream = self.random.randrange(STREAMS)
        self.engine.disconnect(stream, "watch")
        for key in [key for key in self.watchers if key[0] == stream]:
            self.finish(*key)

    # Changes.

    def apply(self, kind: int, request: bytes) -> None:
        self.index += 1
        error, _ = self.engine.apply(self.index, kind, request)
        assert error == ""
        self.read()

    def change(self) -> None:
        put = pb.PutRequest(key=self.random.choice(KEYS), value=self.random.randbytes(4))
        delete = pb.DeleteRangeRequest(key=self.random.choice(KEYS), range_end=b"c/2")
        if delete.key >= b"c/2":
            delete.range_end = b""
        kind = self.random.random()
        count = [0]
        if kind < 0.6:
            self.model.put(put, count)
            self.model.revision += 1
            self.apply(PUT, put.SerializeToString())
        elif kind < 0.8:
            self.model.delete(delete, count)
            self.model.revision += count[0] > 0
            self.apply(DELETE, delete.SerializeToString())
        else:
            txn = pb.TxnRequest()
            for key in self.random.sample(KEYS, self.random.randint(1, len(KEYS))):
                txn.success.add(request_put=pb.PutRequest(key=key, value=b"txn"))
            self.model.txn(txn)
            self.apply(TXN, txn.SerializeToString())

    def compact(self) -> None:
        low = max(self.model.compact_revision, 0) + 1
        if low > self.model.revision:
            return
        revision = self.random.randint(low, self.model.revision)
        self.model.compact(revision)
        self.apply(COMPACT, pb.CompactionRequest(revision=revision).SerializeToString())

    def commit(self) -> None:
        if self.sealed:
            self.engine.collect()
            self.sealed = False
        else:
            self.sealed = self.engine.seal()

    # Answers.

    def read(self) -> None:
        for sent in self.engine.take_sent():
            assert sent.status == -1, sent
            self.hear(sent.call, pb.WatchResponse.FromString(sent.data))

    def hear(self, stream: int, answer: pb.WatchResponse) -> None:
        if answer.created:
            self.hear_created(stream, answer)
            return
        watcher = self.watchers[stream, answer.watch_id]
        if answer.canceled:
            # A compacted one keeps its number until the client cancels it too.
            assert not watcher.canceled
            assert not watcher.parts
            watcher.compacted_at = watcher.compacted_at or answer.compact_revision
            watcher.canceled = not answer.compact_revision
            return
        assert not watcher.canceled, "told of something after its end"
        assert not watcher.compacted_at, "told of something after its compaction"
        assert answer.events
        assert watcher.create.fragment or not answer.fragment
        watcher.parts += answer.events
        if not answer.fragment:
            last = watcher.heard[-1].kv.mod_revision if watcher.heard else 0
            assert watcher.parts[0].kv.mod_revision > last, "a revision in two responses"
            assert answer.header.revision >= watcher.parts[-1].kv.mod_revision
            watcher.heard += watcher.parts
            watcher.parts = []

    def hear_created(self, stream: int, answer: pb.WatchResponse) -> None:
        create = self.creating[stream].pop(0)
        taken = create.watch_id != 0 and (stream, create.watch_id) in self.watchers
        assert answer.canceled == taken
        if taken:
            assert answer.watch_id == -1
            assert "duplicate" in answer.cancel_reason
            return
        assert (stream, answer.watch_id) not in self.watchers
        assert create.watch_id in (0, answer.watch_id)
        start = create.start_revision or self.model.revision + 1
        self.watchers[stream, answer.watch_id] = Watcher(create, start)

    # Checks.

    def wanted(self, watcher: Watcher) -> list[pb.Event]:
        """Every event from the watcher's start on, whatever was compacted."""
        events = []
        key = watcher.create.key or b"\0"
        for change in self.model.changes:
            if change.main < watcher.start or not covers(key, watcher.create.range_end, change.key):
                continue
            if int(change.deleted) in watcher.create.filters:
                continue
            event = pb.Event(type=int(change.deleted), kv=change.message())
            event.kv.mod_revision = change.main
            before = self.before(change)
            if watcher.create.prev_kv and before is not None:
                event.prev_kv.CopyFrom(before.message())
            events.append(event)
        return events

    def before(self, change: Version) -> Version | None:
        if not change.deleted and change.create == change.main:
            return None
        return self.model.live(change.main - 1).get(change.key)

    def check(self, watcher: Watcher, whole: bool) -> None:
        wanted = self.wanted(watcher)
        if whole and not watcher.compacted_at:
            assert len(watcher.heard) == len(wanted)
        assert watcher.compacted_at == 0 or watcher.compacted_at > watcher.start
        for heard, event in zip(watcher.heard, wanted, strict=False):
            if not heard.HasField("prev_kv") and self.model.compact_revision > 0:
                # What was there before may be compacted by the time it is looked for.
                event.ClearField("prev_kv")
            assert heard == event

    def step(self) -> None:
        kind = self.random.random()
        if kind < 0.5:
            self.change()
        elif kind < 0.65:
            self.create()
        elif kind < 0.7:
            self.cancel()
        elif kind < 0.71:
            self.leave()
        elif kind < 0.77:
            self.engine.set_queued(self.random.randrange(STREAMS), FULL)
        elif kind < 0.83:
            self.engine.set_queued(self.random.randrange(STREAMS), 0)
        elif kind < 0.84:
            self.compact()
        elif kind < 0.88:
            self.commit()
        else:
            self.engine.step()
            self.read()


@pytest.mark.parametrize("seed", range(6))
def test_watchers_hear_every_change_once(tmp_path: Path, seed: int) -> None:
    site = Site(tmp_path / "state", seed)
    for _ in range(700):
        site.step()
    for stream in range(STREAMS):
        site.engine.set_queued(stream, 0)
    while site.engine.step():
        site.read()
    site.read()
    assert site.engine.state().behind == 0
    for watcher in site.finished:
        site.check(watcher, whole=False)
    for watcher in site.watchers.values():
        site.check(watcher, whole=True)
    assert sum(len(watcher.heard) for watcher in [*site.finished, *site.watchers.values()]) > 100
    for stream in range(STREAMS):
        site.engine.disconnect(stream, "watch")
    state = site.engine.state()
    assert (state.streams, state.watchers, state.behind) == (0, 0, 0)
    with site.engine:
        pass


def watch(engine: Engine, stream: int, **fields: object) -> None:
    request = pb.WatchRequest(create_request=pb.WatchCreateRequest(**fields))
    engine.message(stream, "watch", request.SerializeToString())


def answers(engine: Engine) -> list[pb.WatchResponse]:
    return [pb.WatchResponse.FromString(sent.data) for sent in engine.take_sent()]


def put(engine: Engine, index: int, key: bytes, value: bytes = b"v") -> None:
    engine.apply(index, PUT, pb.PutRequest(key=key, value=value).SerializeToString())


def test_a_long_history_comes_in_chunks(tmp_path: Path) -> None:
    with Engine(tmp_path / "state") as engine:
        for index in range(1, 2501):
            put(engine, index, b"k%d" % (index % 7))
        watch(engine, 1, key=b"k", range_end=b"l", start_revision=1)
        watch(engine, 2, key=b"k3", start_revision=1)
        while engine.step():
            pass
        heard: dict[int, list[int]] = {1: [], 2: []}
        sizes = []
        for sent in engine.take_sent():
            answer = pb.WatchResponse.FromString(sent.data)
            heard[sent.call] += [event.kv.mod_revision for event in answer.events]
            sizes.append(len({event.kv.mod_revision for event in answer.events}))
        assert heard[1] == list(range(2, 2502))
        assert heard[2] == [revision for revision in range(2, 2502) if (revision - 1) % 7 == 3]
        assert max(sizes) == 1000


def test_a_large_revision_is_cut_in_fragments(tmp_path: Path) -> None:
    with Engine(tmp_path / "state") as engine:
        watch(engine, 1, key=b"a", range_end=b"\0", fragment=True)
        watch(engine, 2, key=b"a", range_end=b"\0")
        txn = pb.TxnRequest()
        for number in range(100):
            txn.success.add(request_put=pb.PutRequest(key=b"a%d" % number, value=bytes(50_000)))
        assert engine.apply(1, TXN, txn.SerializeToString())[0] == ""
        sent = [s for s in engine.take_sent() if b"a99" in s.data or s.call == 1]
        parts = [pb.WatchResponse.FromString(s.data) for s in sent if s.call == 1][1:]
        assert [part.fragment for part in parts] == [True] * (len(parts) - 1) + [False]
        assert len(parts) >= 4
        assert all(len(s.data) < 1_572_864 + 100 for s in sent if s.call == 1)
        assert sum(len(part.events) for part in parts) == 100
        whole = [pb.WatchResponse.FromString(s.data) for s in sent if s.call == 2]
        assert [len(answer.events) for answer in whole] == [100]


def test_progress(tmp_path: Path) -> None:
    with Engine(tmp_path / "state") as engine:
        put(engine, 1, b"a")
        watch(engine, 1, key=b"a", progress_notify=True)
        watch(engine, 1, key=b"a", progress_notify=True, start_revision=99)
        watch(engine, 2, key=b"b")
        engine.take_sent()
        request = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
        # A stream with a watcher from a later revision cannot tell.
        engine.message(1, "watch", request.SerializeToString())
        assert answers(engine) == []
        engine.message(2, "watch", request.SerializeToString())
        (answer,) = answers(engine)
        assert (answer.watch_id, answer.header.revision) == (-1, 2)
        engine.progress()
        engine.take_sent()
        engine.progress()
        assert [answer.watch_id for answer in answers(engine)] == [0]
        put(engine, 2, b"a")
        engine.take_sent()
        engine.progress()
        assert answers(engine) == []
        # One that is behind says nothing, and nor does its stream.
        engine.set_queued(2, FULL)
        put(engine, 3, b"b")
        engine.message(2, "watch", request.SerializeToString())
        assert answers(engine) == []
        engine.set_queued(2, 0)
        engine.step()
        assert [answer.events[0].kv.mod_revision for answer in answers(engine)] == [4]


def test_thousands_of_watchers_on_one_stream(tmp_path: Path) -> None:
    with Engine(tmp_path / "state") as engine:
        for number in range(3000):
            watch(engine, 1, key=b"k", start_revision=0, watch_id=number * 2 + 2)
        for _ in range(1000):
            watch(engine, 1, key=b"k")
        ids = {answer.watch_id for answer in answers(engine)}
        assert len(ids) == 4000
        put(engine, 1, b"k")
        assert {answer.watch_id for answer in answers(engine)} == ids
        engine.set_queued(1, FULL)
        put(engine, 2, b"k")
        assert engine.state().behind == 4000
        assert not engine.step()
        engine.set_queued(1, 0)
        while engine.step():
            pass
        assert {answer.watch_id for answer in answers(engine)} == ids
        engine.disconnect(1, "watch")


def test_garbage_ends_the_stream(tmp_path: Path) -> None:
    with Engine(tmp_path / "state") as engine:
        watch(engine, 1, key=b"k")
        engine.take_sent()
        engine.message(1, "watch", b"\x0a\x05x")
        engine.message(2, "watch", b"\xff")
        assert [(sent.call, sent.status) for sent in engine.take_sent()] == [(1, 13), (2, 13)]
        assert engine.state().streams == 0
        put(engine, 1, b"k")
        assert engine.take_sent() == []


def test_a_key_that_changed_often_is_heard_in_time(tmp_path: Path) -> None:
    with Engine(tmp_path / "state") as engine:
        for index in range(1, 5001):
            put(engine, index, b"k")
        for first in (0, 1, 2, 3, 2500, 5001, 5002, 2**63 - 1):
            found = [change.main for change in engine.history(b"k", first)]
            assert found == list(range(max(first, 2), 5002))
        assert engine.history(b"none", 1) == []
        for _ in range(50):
            watch(engine, 1, key=b"k", start_revision=1)
        while engine.step():
            pass
        assert sum(len(answer.events) for answer in answers(engine)) == 50 * 5000
