"""Finding the first members of a new cluster: by DNS, or by the registry in a running store."""

import asyncio
import logging
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import dns.asyncresolver

from trimaran.client import Client, Dialing, TLSOptions
from trimaran.client.discovery import dns_answers, lookup_services, system_resolver
from trimaran.errors import ConfigError, StoreError, StoreUnavailableError
from trimaran.store import discovery as rules
from trimaran.store.discovery import Address, Entry, ServiceRecord
from trimaran.store.identity import member_id
from trimaran.store.options import StoreOptions

LOG = logging.getLogger("trimaran.store")
RETRY_S = 1.0


async def resolve_host(
    resolver: dns.asyncresolver.Resolver, host: str, port: int
) -> frozenset[Address]:
    """Find the addresses of a host: by DNS, and by /etc/hosts where DNS knows none."""
    found = {
        str(record.address)
        for kind in ("A", "AAAA")
        for record in await dns_answers(resolver, host, kind)
    }
    if not found:
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            infos = []
        found = {str(info[4][0]) for info in infos}
    return frozenset((address, port) for address in found)


async def discover_by_dns(
    options: StoreOptions, resolver: dns.asyncresolver.Resolver | None = None
) -> dict[str, tuple[str, ...]]:
    """Find the first members in the SRV records of --discovery-srv.

    Returns:
        peer URLs by name; the others' names are numbers.

    Raises:
        ConfigError: DNS does not answer, or does not name this member.
    """
    resolver = resolver or system_resolver()
    domain = options.discovery_srv
    own_urls = options.initial_advertise_peer_urls
    own: set[Address] = set()
    for url in own_urls:
        parts = urlsplit(url)
        own |= await resolve_host(resolver, parts.hostname or "", parts.port or 0)
    services = await lookup_services("etcd-server", domain, options.discovery_srv_name, resolver)
    resolved = {
        scheme: [
            ServiceRecord(
                record.host, record.port, await resolve_host(resolver, record.host, record.port)
            )
            for record in records
        ]
        for scheme, records in services.items()
    }
    return rules.cluster_of_records(options.name, own_urls, own, resolved, domain)


def registry_client(options: StoreOptions) -> Client:
    """Make the client of --discovery-endpoints."""
    tls = None
    if not options.discovery_insecure_transport:
        tls = TLSOptions(
            ca=options.discovery_cacert or None,
            cert=options.discovery_cert or None,
            key=options.discovery_key or None,
        )
    user, colon, password = options.discovery_user.partition(":")
    return Client(
        options.discovery_endpoints,
        tls=tls,
        user=user or None,
        password=(password if colon else options.discovery_password) if user else None,
        timeout_s=options.discovery_request_timeout_s,
        dialing=Dialing(
            options.discovery_dial_timeout_s,
            options.discovery_keepalive_time_s,
            options.discovery_keepalive_timeout_s,
        ),
    )


async def discover_by_registry(options: StoreOptions) -> dict[str, tuple[str, ...]]:
    """Enter this member in the registry at --discovery-endpoints and wait for the others.

    Returns:
        peer URLs by name.

    Raises:
        ConfigError: the registry has no size for the token, or all members already.
    """
    async with registry_client(options) as client:
        return await _Registry(client, options).join()


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


class _Registry:
    """One member's part in the registry."""

    def __init__(self, client: Client, options: StoreOptions) -> None:
        self._client = client
        self._options = options
        self._token = options.discovery_token
        urls = sorted(options.initial_advertise_peer_urls)
        self._value = rules.entry_value(options.name, urls)
        self._key = rules.entry_key(self._token, member_id(urls, self._token))
        self._told = -1

    async def join(self) -> dict[str, tuple[str, ...]]:
        """Enter and wait; a registry that does not answer is asked again."""
        is_entered = False
        while True:
            try:
                if not is_entered:
                    await self._enter()
                    is_entered = True
                return await self._wait()
            except StoreUnavailableError as error:
                LOG.warning("the discovery does not answer, asking again: %s", error)
            except StoreError as error:
                raise ConfigError(f"discovery at {self._endpoints}: {error}") from None
            await asyncio.sleep(RETRY_S)

    @property
    def _endpoints(self) -> str:
        return ",".join(self._options.discovery_endpoints)

    async def _entries(self) -> tuple[Sequence[Entry], int, int]:
        """Read (entries, size, revision)."""
        size = await self._client.get_one(rules.size_key(self._token))
        wanted = rules.parse_size(self._token, size.value if size is not None else None)
        found = await self._client.get(rules.entries_prefix(self._token), prefix=True)
        entries = [
            Entry(
                kv.key.decode(errors="replace"),
                kv.value.decode(errors="replace"),
                kv.create_revision,
            )
            for kv in found.kvs
        ]
        if rules.is_full(entries, wanted, self._key):
            raise ConfigError(
                f"discovery: cluster is full: token {self._token} has its {wanted} members; add "
                "this one to the running cluster (member add) and start it with "
                "--initial-cluster-state existing"
            )
        return entries, wanted, found.revision

    async def _enter(self) -> None:
        await self._entries()
        await self._client.put(self._key, self._value)

    async def _wait(self) -> dict[str, tuple[str, ...]]:
        while True:
            entries, wanted, revision = await self._entries()
            cluster = rules.cluster_of_entries(entries, wanted)
            if cluster is not None:
                if self._options.name not in cluster:
                    raise ConfigError(f"discovery: this member is not entered in {cluster}")
                return cluster
            if len(entries) != self._told:
                self._told = len(entries)
                LOG.info("discovery: %d of %d members are there", len(entries), wanted)
            prefix = rules.entries_prefix(self._token)
            async with self._client.watch(
                prefix, prefix=True, start_revision=revision + 1
            ) as changes:
                async for _ in changes:
                    break
