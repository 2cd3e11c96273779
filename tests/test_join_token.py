"""Join tokens and the records around them: round trips, damage, and what is refused."""

import base64
import json
import string
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran.errors import ConfigError, JoinRefusedError
from trimaran.up.records import ClusterSettings, HostRecord, check_newcomer
from trimaran.up.token import PREFIX, JoinToken, TokenRecord, check_join

HOST = HostRecord(
    id="0123456789abcdef",
    name="host1",
    address="10.0.0.1",
    client_url="https://10.0.0.1:2379",
    peer_url="https://10.0.0.1:2380",
    join_address="10.0.0.1:2382",
    key_hash="aa",
)

addresses = st.lists(
    st.sampled_from(["10.0.0.1:2382", "[fd00::1]:1", "store-1.example.com:65535"]),
    min_size=1,
    max_size=8,
).map(tuple)
tokens = st.builds(
    JoinToken,
    addresses,
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**32 - 1),
)


def make_token(**changes: Any) -> JoinToken:
    """A token that holds until 2000."""
    return replace(JoinToken(("10.0.0.1:2382",), bytes(32), b"f" * 32, 2000), **changes)


def make_record(token: JoinToken, **changes: Any) -> TokenRecord:
    """What the store would hold of it."""
    return replace(TokenRecord(token.public_key, 1000, token.expires_s), **changes)


@given(tokens)
def test_a_token_reads_back(token: JoinToken) -> None:
    text = token.encode()
    assert JoinToken.parse(f" {text}\n") == token
    assert set(text) <= set(string.ascii_letters + string.digits + "_-")


@given(tokens, st.data())
def test_a_mistyped_token_is_noticed(token: JoinToken, data: st.DataObject) -> None:
    text = token.encode()
    place = data.draw(st.integers(len(PREFIX), len(text) - 2))
    letter = data.draw(st.sampled_from(string.ascii_letters))
    if text[place] != letter:
        with pytest.raises(ConfigError, match="damaged"):
            JoinToken.parse(text[:place] + letter + text[place + 1 :])
    with pytest.raises(ConfigError):
        JoinToken.parse(text[:place])


@given(st.text(max_size=200), st.binary(max_size=200))
def test_no_text_breaks_the_parser(text: str, data: bytes) -> None:
    for candidate in (text, PREFIX + text, PREFIX + base64.urlsafe_b64encode(data).decode()):
        with pytest.raises(ConfigError):
            JoinToken.parse(candidate)


def test_the_record_tells_nothing_that_joins() -> None:
    token = make_token()
    stored = make_record(token).encode()
    for secret in (token.secret, token.key.private_bytes_raw()):
        assert secret.hex().encode() not in stored
        assert secret not in stored
    assert token.id not in token.encode()


@given(
    st.builds(
        TokenRecord,
        st.binary(min_size=32, max_size=32),
        st.integers(0, 2**40),
        st.integers(0, 2**40),
        st.none() | st.integers(0, 100),
        st.integers(0, 100),
        st.booleans(),
        st.text(),
    )
)
def test_a_record_reads_back(record: TokenRecord) -> None:
    assert TokenRecord.decode(record.encode()) == record


@given(st.binary(max_size=50) | st.text().map(lambda text: json.dumps(text).encode()))
def test_no_value_breaks_the_records(data: bytes) -> None:
    for decode in (TokenRecord.decode, HostRecord.decode, ClusterSettings.decode):
        if data or decode != ClusterSettings.decode:
            with pytest.raises((ValueError, ConfigError)):
                decode(data)


@pytest.mark.parametrize(
    ("changes", "now_s", "reason"),
    [
        ({}, 1999, None),
        ({"uses_max": 2, "uses": 1}, 1999, None),
        ({}, 2000, "expired"),
        ({"revoked": True}, 1999, "revoked"),
        ({"uses_max": 1, "uses": 1}, 1999, "used_up"),
    ],
)
def test_a_proof_holds_as_long_as_the_token(
    changes: dict[str, Any], now_s: float, reason: str | None
) -> None:
    token = make_token()
    record = make_record(token, **changes)
    proof = token.prove(b"n" * 32, b"certificate", b"request")

    def check(joined_with: bool = False) -> None:
        arguments = (proof, b"n" * 32, b"certificate", b"request", joined_with)
        check_join(record, now_s, *arguments)

    if reason is None:
        check()
        return
    with pytest.raises(JoinRefusedError) as refused:
        check()
    assert refused.value.reason == reason
    if reason == "used_up":
        check(joined_with=True)
    else:
        with pytest.raises(JoinRefusedError):
            check(joined_with=True)


@pytest.mark.parametrize("wrong", ["nonce", "certificate", "request", "secret", "proof"])
def test_a_proof_is_for_one_request_to_one_server(wrong: str) -> None:
    token = make_token()
    prover = make_token(secret=b"x" * 32) if wrong == "secret" else token
    parts = {"nonce": b"n" * 32, "certificate": b"c", "request": b"r"}
    proof = prover.prove(*parts.values())
    seen = {name: b"other" if name == wrong else value for name, value in parts.items()}
    if wrong == "proof":
        proof = proof[:-1]
    with pytest.raises(JoinRefusedError) as refused:
        check_join(make_record(token), 1500, proof, *seen.values())
    assert refused.value.reason == "forged"


def test_a_token_of_nobody_is_unknown() -> None:
    with pytest.raises(JoinRefusedError) as refused:
        check_join(None, 0, b"", b"", b"", b"")
    assert refused.value.reason == "unknown"


def test_a_host_reads_back() -> None:
    assert HostRecord.decode(HOST.encode()) == HOST


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "x"},
        {"id": "../tokens/0123456"},
        {"name": ""},
        {"name": "a b"},
        {"name": "-"},
        {"name": "x" * 64},
        {"address": "host"},
        {"address": "0.0.0.0"},
        {"machine_id": "a/b"},
        {"client_url": "http://10.0.0.1:2379"},
        {"client_url": "https://10.0.0.2:2379"},
        {"peer_url": "https://10.0.0.1:2380/x"},
        {"join_address": "10.0.0.1"},
        {"join_address": "10.0.0.1:99999"},
    ],
)
def test_a_host_that_cannot_be_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        replace(HOST, **changes)  # type: ignore[arg-type]


def test_a_newcomer_takes_nobodys_place() -> None:
    other = replace(
        HOST,
        id="f" * 16,
        name="host2",
        address="10.0.0.2",
        client_url="https://10.0.0.2:2379",
        peer_url="https://10.0.0.2:2380",
        join_address="10.0.0.2:2382",
    )
    assert check_newcomer(HOST, [other]) is None
    assert check_newcomer(HOST, [other, HOST]) == HOST
    for known in (
        replace(other, id=HOST.id, key_hash="bb"),
        replace(other, name=HOST.name),
        replace(HOST, id="f" * 16, name="host2"),
    ):
        with pytest.raises(JoinRefusedError):
            check_newcomer(HOST, [known])


@pytest.mark.parametrize(
    "fields",
    [{"store_members": 0}, {"store_members": 10}, {"replace_after_s": -1}],
)
def test_settings_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ClusterSettings(**fields)


def test_settings_read_back() -> None:
    settings = ClusterSettings(5, 60.0, 3600.0)
    assert ClusterSettings.decode(settings.encode()) == settings
    assert ClusterSettings.decode(None) == ClusterSettings()
    assert ClusterSettings.decode(b'{"storeMembers": 1, "later": true}').store_members == 1
