"""The watch index against a list that is searched from end to end."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimaran.ext.watchindex import WatchIndex

Row = tuple[bytes, bytes, int]


def contains(key: bytes, end: bytes, wanted: bytes) -> bool:
    if not end:
        return wanted == key
    return key <= wanted and (end == b"\0" or wanted < end)


def naive(rows: dict[int, Row], wanted: bytes) -> list[int]:
    return sorted(watcher for key, end, watcher in rows.values() if contains(key, end, wanted))


def test_an_empty_index_matches_nothing() -> None:
    assert WatchIndex().match(b"a") == []
    assert len(WatchIndex()) == 0


@pytest.mark.parametrize(
    ("key", "end", "inside", "outside"),
    [
        (b"a", b"", [b"a"], [b"", b"a\0", b"b", b"aa"]),
        (b"a", b"b", [b"a", b"a\0", b"a\xff\xff"], [b"", b"`", b"b", b"b\0"]),
        (b"a", b"\0", [b"a", b"b", b"\xff\xff"], [b"", b"\0", b"A"]),
        (b"\0", b"\0", [b"\0", b"a", b"\xff"], [b""]),
        (b"", b"\0", [b"", b"\0", b"a"], []),
        (b"", b"", [b""], [b"\0"]),
        (b"\0", b"\0\0", [b"\0"], [b"\0\0", b"", b"\1"]),
    ],
)
def test_one_registration(
    key: bytes, end: bytes, inside: list[bytes], outside: list[bytes]
) -> None:
    index = WatchIndex(5)
    number = index.insert(key, end, "watcher")
    for wanted in inside:
        assert index.match(wanted) == ["watcher"], wanted
    for wanted in outside:
        assert index.match(wanted) == [], wanted
    index.remove(number)
    assert all(index.match(wanted) == [] for wanted in inside)


@pytest.mark.parametrize(("key", "end"), [(b"b", b"a"), (b"a", b"a"), (b"\0", b"")])
def test_an_end_not_after_its_key_is_refused(key: bytes, end: bytes) -> None:
    index = WatchIndex()
    if not end:
        index.insert(key, end, 1)
        return
    with pytest.raises(ValueError, match="not after"):
        index.insert(key, end, 1)
    assert len(index) == 0


def test_the_same_watcher_many_times() -> None:
    index = WatchIndex()
    numbers = [index.insert(b"k", b"", "w") for _ in range(3)]
    numbers.append(index.insert(b"k", b"l", "w"))
    assert index.match(b"k") == ["w"] * 4
    index.remove(numbers[1])
    assert index.match(b"k") == ["w"] * 3
    with pytest.raises(KeyError):
        index.remove(numbers[1])


KEYS = st.binary(max_size=3).map(lambda data: bytes(byte % 4 for byte in data))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), KEYS, KEYS | st.just(b"\0")),
        st.tuples(st.just("remove"), st.integers(0, 1000), st.just(b"")),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), steps=STEPS, wanted=st.lists(KEYS, max_size=10))
def test_agrees_with_a_search_of_everything(
    seed: int, steps: list[tuple[str, bytes | int, bytes]], wanted: list[bytes]
) -> None:
    index = WatchIndex(seed)
    rows: dict[int, Row] = {}
    for watcher, (_what, first, end) in enumerate(steps):
        if isinstance(first, bytes):
            if end and end != b"\0" and end <= first:
                continue
            rows[index.insert(first, end, watcher)] = (first, end, watcher)
        elif rows:
            number = list(rows)[first % len(rows)]
            index.remove(number)
            del rows[number]
        assert len(index) == len(rows)
    for key in wanted:
        assert sorted(index.match(key)) == naive(rows, key)  # type: ignore[type-var]


def test_a_large_index_agrees_and_gives_memory_back() -> None:
    chance = random.Random(3)
    index = WatchIndex(chance.getrandbits(64))
    empty_bytes = index.memory_bytes
    rows: dict[int, Row] = {}
    for watcher in range(30_000):
        key, end = f"key{chance.randrange(20_000)}".encode(), b""
        if watcher % 10 == 0:
            end = key + chance.choice([b"\1", b"5", b"\xff"])
        rows[index.insert(key, end, watcher)] = (key, end, watcher)
    for _ in range(30):
        key = f"key{chance.randrange(20_000)}".encode()
        assert sorted(index.match(key)) == naive(rows, key)  # type: ignore[type-var]
    order = list(rows)
    chance.shuffle(order)
    for number in order[:29_000]:
        index.remove(number)
        del rows[number]
    for key, _, _ in list(rows.values())[:30]:
        assert sorted(index.match(key)) == naive(rows, key)  # type: ignore[type-var]
    for number in order[29_000:]:
        index.remove(number)
    assert len(index) == 0
    # What registrations are cut from stays for the next ones; tables and keys do not.
    assert index.memory_bytes <= empty_bytes + 30_000 * 40
