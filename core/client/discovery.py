"""Finding the endpoints of a store in DNS, as etcdctl's --discovery-srv does.

async with Client(await discover("example.org")) as client: ...
"""

from typing import Any, Final

import dns.asyncresolver
import dns.exception
import dns.resolver

from trimaran.errors import ConfigError
from trimaran.store.discovery import ServiceRecord, service_names, service_urls

DNS_TIMEOUT_S: Final = 10.0


async def discover(
    domain: str,
    service_name: str = "",
    *,
    resolver: dns.asyncresolver.Resolver | None = None,
) -> list[str]:
    """Give the endpoints that the SRV records _etcd-client-ssl._tcp and _etcd-client._tcp name.

    Args:
        domain: which has the records.
        service_name: a suffix of the service's name, where several clusters share a domain.
        resolver: whom to ask; the servers of /etc/resolv.conf where it is None.

    Returns:
        URLs, those with TLS first, else in the order of the records' priority.

    Raises:
        ConfigError: DNS does not answer or has no such records.
    """
    resolver = resolver or system_resolver()
    records = await lookup_services("etcd-client", domain, service_name, resolver)
    urls = service_urls(records)
    if not urls:
        names = " or ".join(service_names("etcd-client", domain, service_name).values())
        raise ConfigError(f"{domain} has no SRV records {names}: add them or name endpoints")
    return urls


def system_resolver() -> dns.asyncresolver.Resolver:
    """Make a resolver that asks the servers of /etc/resolv.conf.

    Raises:
        ConfigError: that file cannot be used.
    """
    try:
        resolver = dns.asyncresolver.Resolver()
    except dns.exception.DNSException as error:
        raise ConfigError(f"no DNS server is known: {error}; check /etc/resolv.conf") from None
    resolver.lifetime = DNS_TIMEOUT_S
    return resolver


async def dns_answers(resolver: dns.asyncresolver.Resolver, name: str, kind: str) -> list[Any]:
    """Ask for records; none where the name or its records are not there.

    Raises:
        ConfigError: there is no answer.
    """
    try:
        return list(await resolver.resolve(name, kind))
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return []
    except dns.exception.DNSException as error:
        raise ConfigError(f"DNS has no answer for {name}: {error}") from None


async def lookup_services(
    service: str,
    domain: str,
    suffix: str,
    resolver: dns.asyncresolver.Resolver,
) -> dict[str, list[ServiceRecord]]:
    """Look up the SRV records of a service, with and without TLS.

    Args:
        service: "etcd-server" or "etcd-client".
        domain, suffix: --discovery-srv and --discovery-srv-name.
        resolver: whom to ask.

    Returns:
        records by scheme of their URLs, without addresses.

    Raises:
        ConfigError: DNS does not answer.
    """
    found: dict[str, list[ServiceRecord]] = {}
    for scheme, name in service_names(service, domain, suffix).items():
        records = await dns_answers(resolver, name, "SRV")
        in_order = sorted(records, key=lambda r: (r.priority, -r.weight, str(r.target), r.port))
        found[scheme] = [
            ServiceRecord(record.target.to_text(omit_final_dot=True), record.port)
            for record in in_order
        ]
    return found
