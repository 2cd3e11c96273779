"""Who gets which subnet: hosts against a model of the store, interleaved at random."""

import json
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimaran.errors import SubnetExhaustedError
from trimaran.net.allocation import (
    Create,
    Decision,
    HostIdentity,
    Keep,
    Remove,
    Update,
    decide,
    derive_mac,
    duplicate_addresses,
)
from trimaran.net.config import parse_config
from trimaran.net.records import StoredRecord, SubnetRecord, format_subnet_key

CONFIG = parse_config('{"Network": "10.3.0.0/20", "Backend": {"Type": "vxlan"}}')


def host(number: int) -> HostIdentity:
    name = f"host-{number}"
    return HostIdentity(name, IPv4Address(f"192.0.2.{number}"), derive_mac(name, 1))


def subnet(number: int) -> IPv4Network:
    return IPv4Network(f"10.3.{number}.0/24")


def stored(number: int, owner: str, address: str, revision: int = 5, **more: int) -> StoredRecord:
    record = SubnetRecord(subnet(number), IPv4Address(address), host_id=owner)
    return StoredRecord(record, format_subnet_key(record.subnet), revision, **more)


class StoreModel:
    """Keys with revisions; a write is a transaction on what the writer believes."""

    def __init__(self) -> None:
        self.records: dict[str, StoredRecord] = {}
        self.revision = 1

    def list(self) -> tuple[StoredRecord, ...]:
        return tuple(self.records.values())

    def commit(self, decision: Decision) -> bool:
        """Carry a decision out as the daemon does: one comparison, one write."""
        if isinstance(decision, Keep):
            return self.records.get(decision.stored.key) == decision.stored
        if isinstance(decision, Create):
            key = format_subnet_key(decision.record.subnet)
            if key in self.records:
                return False
            self.revision += 1
            self.records[key] = StoredRecord(decision.record, key, self.revision)
            return True
        key = decision.stored.key
        current = self.records.get(key)
        if current is None or current.mod_revision != decision.stored.mod_revision:
            return False
        self.revision += 1
        if isinstance(decision, Remove):
            del self.records[key]
        else:
            self.records[key] = StoredRecord(decision.record, key, self.revision)
        return True

    def expire(self, key: str) -> None:
        self.revision += 1
        self.records.pop(key, None)


def work(store: StoreModel, identity: HostIdentity) -> Iterator[str]:
    """A host's loop, giving way between its list and its write; ends when it holds a subnet."""
    while True:
        listed = store.list()
        yield "listed"
        try:
            decision = decide(CONFIG, listed, identity)
        except SubnetExhaustedError:
            yield "exhausted"
            continue
        if store.commit(decision) and isinstance(decision, Keep):
            yield decision.stored.key


@settings(max_examples=100, deadline=None)
@given(
    hosts=st.integers(2, 18),
    order=st.lists(st.integers(0, 20), max_size=200),
    expiries=st.lists(st.integers(0, 15), max_size=4),
)
def test_no_interleaving_gives_a_subnet_twice(
    hosts: int, order: list[int], expiries: list[int]
) -> None:
    store = StoreModel()
    loops = [work(store, host(number + 1)) for number in range(hosts)]
    owners: dict[str, str] = {}
    for turn, number in enumerate(order):
        if expiries and turn % 17 == 16:
            store.expire(format_subnet_key(subnet(expiries.pop())))
        before = {key: item.record.host_id for key, item in store.records.items()}
        next(loops[number % hosts])
        owners = {key: item.record.host_id for key, item in store.records.items()}
        # No step takes a record over from another host.
        assert all(owners.get(key, owner) == owner for key, owner in before.items())
    # Left alone, every host ends with exactly one subnet, or learns that there is none.
    for loop in loops:
        result = next(loop)
        while result == "listed":
            result = next(loop)
    owners = {key: item.record.host_id for key, item in store.records.items()}
    assert len(set(owners.values())) == len(owners) == min(hosts, CONFIG.subnet_count)


def test_a_host_takes_its_former_subnet_where_it_is_free() -> None:
    me = host(1)
    decision = decide(CONFIG, [], me, [subnet(9)])
    assert isinstance(decision, Create)
    assert decision.record.subnet == subnet(9)
    taken = decide(CONFIG, [stored(9, "other", "192.0.2.9")], me, [subnet(9), subnet(4)])
    assert isinstance(taken, Create)
    assert taken.record.subnet == subnet(4)


def test_without_a_memory_the_host_id_leads_to_the_same_subnet_again() -> None:
    assert decide(CONFIG, [], host(1)) == decide(CONFIG, [], host(1))
    chosen = {repr(decide(CONFIG, [], host(number))) for number in range(1, 9)}
    assert len(chosen) == 8


def test_own_record_is_kept_wherever_the_address_moved() -> None:
    me = host(1)
    decision = decide(CONFIG, [stored(3, me.host_id, "198.51.100.1", lease=77)], me)
    assert isinstance(decision, Update)
    assert decision.record.subnet == subnet(3)
    assert decision.record.public_ip == me.public_ip
    current = StoredRecord(decision.record, "10.3.3.0-24", 6)
    assert decide(CONFIG, [current], me) == Keep(current)


def test_flannels_record_with_our_address_is_taken_over_but_not_another_owners() -> None:
    me = host(1)
    decision = decide(CONFIG, [stored(3, "", str(me.public_ip))], me)
    assert isinstance(decision, Update)
    foreign = stored(3, "other", str(me.public_ip))
    decision = decide(CONFIG, [foreign], me, [subnet(3)])
    assert isinstance(decision, Create)
    assert decision.record.subnet != subnet(3)
    assert duplicate_addresses([foreign], me) == [foreign]


def test_records_that_do_not_fit_and_second_ones_are_removed() -> None:
    me = host(1)
    outside = StoredRecord(
        SubnetRecord(IPv4Network("10.9.0.0/24"), me.public_ip, host_id=me.host_id), "10.9.0.0-24", 3
    )
    decision = decide(CONFIG, [outside], me)
    assert isinstance(decision, Remove)
    first, second = (stored(i, me.host_id, str(me.public_ip)) for i in (3, 4))
    decision = decide(CONFIG, [first, second], me, [subnet(4)])
    assert isinstance(decision, Remove)
    assert decision.stored == first


def test_records_of_another_length_are_not_overlapped() -> None:
    wide = StoredRecord(
        SubnetRecord(IPv4Network("10.3.0.0/21"), IPv4Address("192.0.2.9"), host_id="x"), "x", 3
    )
    for number in range(1, 30):
        decision = decide(CONFIG, [wide], host(number), [subnet(2)])
        assert isinstance(decision, Create)
        assert not decision.record.subnet.overlaps(wide.record.subnet)


def test_exhaustion_says_what_to_do() -> None:
    full = [stored(number, f"x{number}", f"192.0.2.{100 + number}") for number in range(1, 16)]
    with pytest.raises(SubnetExhaustedError, match="15 subnets"):
        decide(CONFIG, full, host(1))
    big = parse_config(json.dumps({"Network": "10.0.0.0/8"}))
    assert isinstance(decide(big, full, host(1)), Create)


def test_device_addresses_are_local_unicast_and_differ() -> None:
    addresses = {derive_mac(f"host-{number}", vni) for number in range(50) for vni in (1, 2)}
    assert len(addresses) == 100
    assert all(int(mac[:2], 16) & 3 == 2 for mac in addresses)
