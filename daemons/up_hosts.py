"""What operators say about the hosts of a cluster, as the command line writes it to the store."""

import time
from dataclasses import replace

from cryptography import x509

from trimaran.client import Client, Compare, Delete, Member, Put
from trimaran.errors import ConfigError, StoreError
from trimaran.up.records import (
    CERTIFICATES,
    HOSTS,
    PLAN_KEY,
    REVOKED,
    SETTINGS_KEY,
    ClusterSettings,
    HostRecord,
    alive_key,
    certificate_key,
    host_key,
    serials_of,
)

ATTEMPTS = 8


async def read_hosts(client: Client) -> list[tuple[HostRecord, int]]:
    """Every host of the cluster, with the revision its record was written at."""
    listed = await client.get(HOSTS, prefix=True)
    return [(HostRecord.decode(pair.value), pair.mod_revision) for pair in listed.kvs]


async def find_host(client: Client, name: str) -> tuple[HostRecord, int]:
    """Find a host by its name, id, machine id or address.

    Raises:
        ConfigError: there is none.
    """
    hosts = await read_hosts(client)
    for host, revision in hosts:
        if name in (host.name, host.id, host.address):
            return host, revision
    found = [
        (host, revision)
        for host, revision in hosts
        if len(name) >= 4 and host.machine_id.startswith(name)
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(host.name for host, _ in hosts)
    raise ConfigError(f"no host {name}; there are {names or 'none: is this store of trimaran up?'}")


async def set_store(client: Client, name: str, store: bool) -> HostRecord:
    """Write down whether a host may have a member.

    Raises:
        ConfigError: there is no such host.
    """
    for _ in range(ATTEMPTS):
        host, revision = await find_host(client, name)
        if host.store == store:
            return host
        host = replace(host, store=store)
        key = host_key(host.id)
        compare = [Compare.mod(key, "=", revision)]
        if (await client.txn(compare, [Put(key, host.encode())])).succeeded:
            return host
    raise ConfigError(f"the record of {name} changes too often; try again")


async def let_have_member(client: Client, name: str) -> str:
    """Let a host have a member; say what follows.

    Raises:
        ConfigError: there is no such host.
    """
    host = await set_store(client, name, True)
    members = await client.members()
    if any(host.peer_url in one.peer_urls for one in members):
        return f"{host.name} has a member"
    wanted = (await read_settings(client)).store_members
    have = sum(not one.is_learner for one in members)
    if have < wanted:
        return f"{host.name} gets a member; `trimaran member status` tells how far it is"
    return (
        f"{host.name} may have a member, and gets one when another goes: the store has {have} as "
        f"it shall; for more, `trimaran member scale {have + 1 + have % 2}`"
    )


async def keep_without_member(client: Client, member: Member) -> None:
    """Write down that a member's host shall have none, where it is a host of `trimaran up`."""
    for host, _ in await read_hosts(client):
        if host.peer_url in member.peer_urls:
            await set_store(client, host.id, False)


async def read_settings(client: Client) -> ClusterSettings:
    """The settings of the cluster."""
    pair = await client.get_one(SETTINGS_KEY)
    return ClusterSettings.decode(pair.value if pair else None)


async def scale_store(
    client: Client, count: int | None, replace_after_s: float | None = None
) -> ClusterSettings:
    """Tell the settings of the cluster, after changing what is given.

    Args:
        client: of the store.
        count: how many members there shall be.
        replace_after_s: how long one may be away, in seconds.

    Raises:
        ConfigError: the number is out of range, or nobody would act on it.
    """
    for _ in range(ATTEMPTS):
        pair = await client.get_one(SETTINGS_KEY)
        before = settings = ClusterSettings.decode(pair.value if pair else None)
        if count is not None:
            settings = replace(settings, store_members=count)
        if replace_after_s is not None:
            settings = replace(settings, replace_after_s=replace_after_s)
        if settings == before:
            return settings
        if not await read_hosts(client):
            raise ConfigError(
                "no host of `trimaran up` keeps this store's members: use `trimaran member add` "
                "with --peer-urls, and `trimaran member remove`"
            )
        compare = [Compare.mod(SETTINGS_KEY, "=", pair.mod_revision if pair else 0)]
        if (await client.txn(compare, [Put(SETTINGS_KEY, settings.encode())])).succeeded:
            return settings
    raise ConfigError("the settings change too often; try again")


async def read_plan(client: Client) -> str:
    """What the hosts do next about the members, "" where all is as it shall be."""
    try:
        pair = await client.get_one(PLAN_KEY)
    except StoreError:
        return ""
    return pair.value.decode("utf-8", "replace") if pair else ""


async def forget_host(client: Client, name: str) -> HostRecord:
    """Forget a host that is gone for good: its member, its certificate's renewal, its name.

    Raises:
        ConfigError: there is no such host, or its daemon runs.
        StoreError: its member is needed for a majority.
    """
    host, _ = await find_host(client, name)
    if await client.get_one(alive_key(host.id)) is not None:
        raise ConfigError(
            f"`trimaran up` runs on {host.name}: stop it there first, or remove only its member "
            f"with `trimaran member remove {host.name}`"
        )
    for one in await client.members():
        if host.peer_url in one.peer_urls:
            await set_store(client, host.id, False)
            await client.member_remove(one.id)
    await client.txn([], [Delete(host_key(host.id)), Delete(alive_key(host.id))])
    await revoke_certificates(client, host.id)
    return host


async def note_certificate(client: Client, host_id: str, certificate: x509.Certificate) -> None:
    """Remember a certificate for as long as it is good, so that it can be revoked."""
    ends_s = int(certificate.not_valid_after_utc.timestamp())
    await client.put(certificate_key(host_id, certificate.serial_number), str(ends_s))
    now_s = time.time()
    for prefix in (f"{CERTIFICATES}{host_id}/", REVOKED):
        for pair in (await client.get(prefix, prefix=True)).kvs:
            if int(pair.value) < now_s:
                await client.delete(pair.key)


async def revoke_certificates(client: Client, host_id: str) -> None:
    """Revoke what a host has; members learn of it within seconds."""
    prefix = f"{CERTIFICATES}{host_id}/"
    for pair in (await client.get(prefix, prefix=True)).kvs:
        revoked = REVOKED + pair.key.decode().removeprefix(prefix)
        await client.txn([], [Put(revoked, pair.value), Delete(pair.key)])


async def revoked_serials(client: Client) -> tuple[int, ...]:
    """The serial numbers of the certificates that count no more."""
    found = await client.get(REVOKED, prefix=True, keys_only=True)
    return serials_of(pair.key for pair in found.kvs)
