"""The codec beside protobuf's own, and the rules of txns beside a plain model."""

import random
import subprocess
from collections.abc import Iterator

import pytest
from google.protobuf.message import Message

from store_engine import CODEC_SOURCES, Engine, program
from store_model import covers
from trimaran.wire import etcd_pb2 as pb

BYTES = [b"", b"a", b"\0", b"\xff" * 3, b"x" * 200]
NUMBERS = [0, 0, 1, -1, 127, 128, 2**31, 2**63 - 1, -(2**63)]


class Maker:
    """Random messages."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def fields(self, message: Message) -> None:
        """Fill the scalar fields of a message, each more often than not left out."""
        for descriptor in message.DESCRIPTOR.fields:
            if self.random.random() < 0.5 or descriptor.is_repeated or descriptor.message_type:
                continue
            value: object = self.random.choice(NUMBERS)
            if descriptor.type == descriptor.TYPE_BYTES:
                value = self.random.choice(BYTES)
            elif descriptor.type == descriptor.TYPE_BOOL:
                value = True
            elif descriptor.type == descriptor.TYPE_ENUM:
                value = self.random.choice([0, 1, 2, 3, 99, -1])
            setattr(message, descriptor.name, value)

    def simple(self, kind: type[Message]) -> Message:
        message = kind()
        self.fields(message)
        return message

    def txn(self, depth: int = 0) -> pb.TxnRequest:
        txn = pb.TxnRequest()
        for _ in range(self.random.choice([0, 1, 2])):
            self.fields(txn.compare.add())
        for branch in (txn.success, txn.failure):
            for _ in range(self.random.choice([0, 1, 2])):
                op, kind = branch.add(), self.random.randrange(5)
                if kind == 0:
                    self.fields(op.request_range)
                    op.request_range.SetInParent()
                elif kind == 1:
                    self.fields(op.request_put)
                    op.request_put.SetInParent()
                elif kind == 2:
                    self.fields(op.request_delete_range)
                    op.request_delete_range.SetInParent()
                elif kind == 3 and depth < 4:
                    op.request_txn.CopyFrom(self.txn(depth + 1))
        return txn

    def watch(self) -> pb.WatchRequest:
        request, kind = pb.WatchRequest(), self.random.randrange(4)
        if kind == 0:
            self.fields(request.create_request)
            request.create_request.filters.extend(self.random.choice([[], [0], [1], [0, 1], [7]]))
            request.create_request.SetInParent()
        elif kind == 1:
            self.fields(request.cancel_request)
            request.cancel_request.SetInParent()
        elif kind == 2:
            request.progress_request.SetInParent()
        return request


def text_of(message: Message) -> str:
    """Scalar fields in the order of their numbers, as the C program prints them."""
    parts = []
    for descriptor in message.DESCRIPTOR.fields:
        if descriptor.is_repeated or descriptor.message_type:
            continue
        value = getattr(message, descriptor.name)
        parts.append((value.hex() or "-") if isinstance(value, bytes) else str(int(value)))
    return " ".join(parts)


def compare_text(compare: pb.Compare) -> str:
    union = compare.WhichOneof("target_union")
    number = 0
    if union:
        number = compare.DESCRIPTOR.fields_by_name[union].number
    value = getattr(compare, union) if union else 0
    plain, data = (0, value) if isinstance(value, bytes) else (value, b"")
    row = [compare.result, compare.target, number, plain]
    hexes = [part.hex() or "-" for part in (compare.key, data, compare.range_end)]
    return " ".join([*map(str, row), *hexes])


def txn_text(txn: pb.TxnRequest) -> str:
    lines = [f"txn {len(txn.compare)} {len(txn.success)} {len(txn.failure)}"]
    lines += [compare_text(compare) for compare in txn.compare]
    names = ["request_range", "request_put", "request_delete_range", "request_txn"]
    for op in [*txn.success, *txn.failure]:
        which = op.WhichOneof("request")
        if which is None:
            lines.append("none")
        elif which == "request_txn":
            lines.append(txn_text(op.request_txn))
        else:
            lines.append(f"{names.index(which) + 1} {text_of(getattr(op, which))}")
    return "\n".join(lines)


def watch_text(request: pb.WatchRequest) -> str:
    which = request.WhichOneof("request_union")
    if which == "create_request":
        create = request.create_request
        return f"1 {text_of(create)} {int(0 in create.filters)} {int(1 in create.filters)}"
    if which == "cancel_request":
        return f"2 {request.cancel_request.watch_id}"
    return "3" if which else "0"


def run(arguments: list[str], messages: list[bytes]) -> str:
    line = [program("store_codec", CODEC_SOURCES), *arguments]
    data = b"".join(len(message).to_bytes(4, "little") + message for message in messages)
    done = subprocess.run(line, input=data, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def corpus(seed: int, count: int) -> list[tuple[str, bytes, str]]:
    """Rows of (letter of the decoder, message, its text)."""
    maker, rows = Maker(seed), []
    simple: dict[str, type[Message]] = {
        "p": pb.PutRequest,
        "r": pb.RangeRequest,
        "d": pb.DeleteRangeRequest,
        "c": pb.CompactionRequest,
        "k": pb.KeyValue,
    }
    for _ in range(count):
        for letter, kind in simple.items():
            message = maker.simple(kind)
            rows.append((letter, message.SerializeToString(), text_of(message)))
        txn, watch = maker.txn(), maker.watch()
        rows.append(("t", txn.SerializeToString(), txn_text(txn)))
        rows.append(("w", watch.SerializeToString(), watch_text(watch)))
    return rows


def test_messages_are_read_as_protobuf_reads_them() -> None:
    rows = corpus(1, 300)
    output = run(["text"], [letter.encode() + message for letter, message, _ in rows])
    assert output.split("\f")[:-1] == [text for _, _, text in rows]


@pytest.mark.parametrize("seed", range(3))
def test_damaged_messages_touch_nothing_out_of_bounds(seed: int) -> None:
    rows = corpus(seed, 40)
    messages = [letter.encode() + message for letter, message, _ in rows]
    parsed, refused = map(int, run(["fuzz", str(seed), "300"], messages).split())
    assert parsed > 1000
    assert refused > 1000


# The rules of txns.

KEYS = [b"a", b"b", b"c", b"d"]
DELETES = [(b"a", b""), (b"b", b"d"), (b"a", b"\0"), (b"c", b"zz"), (b"c", b"b"), (b"d", b"")]


def small_txn(maker: random.Random, depth: int) -> pb.TxnRequest:
    txn = pb.TxnRequest()
    for branch in (txn.success, txn.failure):
        for _ in range(maker.choice([0, 1, 1, 2])):
            kind = maker.random()
            if kind < 0.45:
                branch.add(request_put=pb.PutRequest(key=maker.choice(KEYS)))
            elif kind < 0.65:
                key, end = maker.choice(DELETES)
                branch.add(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end))
            elif kind < 0.7:
                branch.add(request_range=pb.RangeRequest(key=b"a"))
            elif depth < 3:
                branch.add(request_txn=small_txn(maker, depth + 1))
    return txn


def deletes_key(remove: pb.DeleteRangeRequest, key: bytes) -> bool:
    # An end of one zero byte is taken as it stands, and so holds nothing.
    end = remove.range_end
    return key == remove.key if not end else end != b"\0" and covers(remove.key, end, key)


class DuplicateError(Exception):
    """Two operations of a txn meet."""


def meet(
    ops: list[pb.RequestOp],
) -> tuple[set[bytes], list[pb.DeleteRangeRequest]]:
    """Every put key and deletion of a branch and of what is nested in it.

    Raises:
        DuplicateError: a put meets another, or a deletion that reaches it.
    """
    puts: set[bytes] = set()
    deletes = [op.request_delete_range for op in ops if op.HasField("request_delete_range")]

    def add(keys: set[bytes]) -> None:
        if keys & puts or any(deletes_key(remove, key) for remove in deletes for key in keys):
            raise DuplicateError
        puts.update(keys)

    for op in ops:
        if op.HasField("request_txn"):
            then_puts, then_deletes = meet(list(op.request_txn.success))
            else_puts, else_deletes = meet(list(op.request_txn.failure))
            add(then_puts | else_puts)
            deletes += [*then_deletes, *else_deletes]
    for op in ops:
        if op.HasField("request_put"):
            add({op.request_put.key})
    return puts, deletes


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("codec") / "state") as engine:
        yield engine


@pytest.mark.parametrize("seed", range(3))
def test_txns_that_meet_themselves_are_those_of_the_model(engine: Engine, seed: int) -> None:
    maker, refused = random.Random(seed), 0
    for _ in range(1500):
        txn = small_txn(maker, 0)
        try:
            meet(list(txn.success))
            meet(list(txn.failure))
            wanted = ""
        except DuplicateError:
            wanted = "DUPLICATE_KEY"
            refused += 1
        assert engine.check_txn(txn.SerializeToString()) == wanted, txn
    assert 300 < refused < 1200


def nested(depth: int, width: int = 1) -> pb.TxnRequest:
    txn = pb.TxnRequest()
    for number in range(width):
        txn.success.add(request_put=pb.PutRequest(key=b"%d/%d" % (depth, number)))
    if depth > 1:
        txn.success.add(request_txn=nested(depth - 1, width))
    return txn


@pytest.mark.parametrize(
    ("txn", "most", "error"),
    [
        (nested(1, 128), 128, ""),
        (nested(1, 129), 128, "TOO_MANY_OPS"),
        (pb.TxnRequest(compare=[pb.Compare(key=b"a")] * 129), 128, "TOO_MANY_OPS"),
        (nested(2, 63), 127, ""),
        (nested(2, 64), 128, "TOO_MANY_OPS"),
        (nested(20), 39, ""),
        (nested(20), 38, "TOO_MANY_OPS"),
        (nested(40), 2**63 - 1, ""),
        (pb.TxnRequest(compare=[pb.Compare()]), 128, "EMPTY_KEY"),
        (pb.TxnRequest(success=[pb.RequestOp()]), 128, "KEY_NOT_FOUND"),
        (pb.TxnRequest(), 0, ""),
    ],
    ids=range(11),
)
def test_limits_of_txns(engine: Engine, txn: pb.TxnRequest, most: int, error: str) -> None:
    assert engine.check_txn(txn.SerializeToString(), most) == error


@pytest.mark.parametrize("depth", [129, 130, 5000, 20_000])
def test_deep_nests_are_cut(engine: Engine, depth: int) -> None:
    message = b""
    for _ in range(depth):
        for tag in (b"\x22", b"\x12"):
            size, count = b"", len(message)
            while count >= 128:
                size, count = size + bytes([count & 127 | 128]), count >> 7
            message = tag + size + bytes([count]) + message
    assert engine.check_txn(message, 2**63 - 1) == "TOO_MANY_OPS"
