"""Making, listing and taking back join tokens, for `trimaran token`."""

import secrets
import time
from collections.abc import Sequence

from cryptography import x509

from trimaran.client import Client, Compare, Delete, Put
from trimaran.daemons.up_authority import fingerprint
from trimaran.errors import ConfigError
from trimaran.up.records import HOSTS, TOKENS, HostRecord, token_key
from trimaran.up.token import ADDRESSES_MAX, SECRET_BYTES, JoinToken, TokenRecord

REVOKE_ATTEMPTS = 8
# What has ended is still listed this long, so that one can see why a host was refused.
KEEP_ENDED_S = 7 * 86400


async def create_token(
    client: Client,
    authority: x509.Certificate,
    addresses: Sequence[str],
    lifetime_s: int,
    uses_max: int | None,
    note: str = "",
) -> tuple[JoinToken, TokenRecord]:
    """Make a token and write down in the store what proofs are checked with.

    Args:
        client: of the store.
        authority: the cluster's.
        addresses: HOST:PORT of join endpoints; those of all store members where it is empty.
        lifetime_s: how long hosts may join with it, in seconds.
        uses_max: how many hosts may join with it, None for any number.
        note: kept beside it.

    Raises:
        ConfigError: no address is known.
        StoreError: the store does not answer.
    """
    addresses = list(addresses) or await join_addresses(client)
    if not addresses:
        raise ConfigError("no join endpoint is known; give its address with --address HOST:PORT")
    now_s = int(time.time())
    token = JoinToken(
        tuple(addresses[:ADDRESSES_MAX]),
        secrets.token_bytes(SECRET_BYTES),
        fingerprint(authority),
        now_s + lifetime_s,
    )
    record = TokenRecord(token.public_key, now_s, token.expires_s, uses_max, note=note)
    await client.put(token_key(record.id), record.encode())
    await drop_ended(client, now_s)
    return token, record


async def join_addresses(client: Client) -> list[str]:
    """The join endpoints of the hosts that have a member of the store."""
    members = await client.members()
    peers = {url for member in members for url in member.peer_urls}
    listed = await client.get(HOSTS, prefix=True)
    hosts = [HostRecord.decode(pair.value) for pair in listed.kvs]
    return [host.join_address for host in hosts if host.peer_url in peers]


async def list_tokens(client: Client) -> list[TokenRecord]:
    """Every token the store knows, the newest first."""
    listed = await client.get(TOKENS, prefix=True)
    records = [TokenRecord.decode(pair.value) for pair in listed.kvs]
    return sorted(records, key=lambda record: record.created_s, reverse=True)


async def drop_ended(client: Client, now_s: float) -> None:
    """Delete the records of tokens that ended long ago."""
    for record in await list_tokens(client):
        if now_s - record.expires_s > KEEP_ENDED_S:
            await client.delete(token_key(record.id))


async def revoke_token(client: Client, name: str) -> TokenRecord:
    """Take a token back: no host joins with it from now on.

    Args:
        client: of the store.
        name: the token's id, or the beginning of it, or the token itself.

    Raises:
        ConfigError: it names none, or several.
    """
    found = await find_token(client, name)
    for _ in range(REVOKE_ATTEMPTS):
        pair = await client.get_one(token_key(found.id))
        if pair is None:
            break
        current = TokenRecord.decode(pair.value)
        revoked = TokenRecord(
            current.public_key,
            current.created_s,
            current.expires_s,
            current.uses_max,
            current.uses,
            revoked=True,
            note=current.note,
        )
        key = token_key(found.id)
        compare = [Compare.mod(key, "=", pair.mod_revision)]
        if (await client.txn(compare, [Put(key, revoked.encode())])).succeeded:
            return revoked
    # Deleted, it is unknown, which refuses hosts as well.
    await client.txn([], [Delete(token_key(found.id))])
    return found


async def find_token(client: Client, name: str) -> TokenRecord:
    """Find a token by its id, the beginning of that, or itself.

    Raises:
        ConfigError: it names none, or several.
    """
    if name.startswith("trimaran"):
        name = JoinToken.parse(name).id
    found = [record for record in await list_tokens(client) if record.id.startswith(name)]
    if not found:
        raise ConfigError(f"no token {name}; `trimaran token list` prints those there are")
    if len(found) > 1:
        raise ConfigError(f"{name} begins the ids of {len(found)} tokens; give more of it")
    return found[0]
