"""TLS of a store member, from its options."""

import logging
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from trimaran.daemons.tls import TLSSide
from trimaran.errors import ConfigError
from trimaran.store.options import StoreOptions
from trimaran.store.options_tls import TLSSettings, plain_urls_beside_tls

LOG = logging.getLogger("trimaran.tls")
# HTTP/2 where it is offered, as etcd has it: over that, gRPC and /health are both served.
CLIENT_PROTOCOLS = ("h2", "http/1.1")


def _hosts(urls: Iterable[str]) -> list[str]:
    return sorted({urlsplit(url).hostname or "" for url in urls} | {"localhost", "127.0.0.1"})


def _folder(options: StoreOptions, settings: TLSSettings, side: str) -> Path:
    """Where a certificate of the member's own making is kept."""
    root = Path(options.data_dir)
    if settings.auto:
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot use --data-dir {root}: {error.strerror}") from None
    return root / "fixtures" / side


def client_side(options: StoreOptions) -> TLSSide | None:
    """Make TLS of the client URLs; None where it is off.

    Raises:
        ConfigError: a file cannot be used; the text says which and why.
    """
    settings = options.client_tls
    if not settings.is_on:
        return None
    folder = _folder(options, settings, "client")
    hosts = _hosts((*options.listen_client_urls, *options.advertise_client_urls))
    return TLSSide(settings, folder, hosts, CLIENT_PROTOCOLS)


def peer_side(options: StoreOptions) -> TLSSide | None:
    """Make TLS between members; None where it is off.

    Raises:
        ConfigError: as `client_side`.
    """
    settings = options.peer_tls
    if not settings.is_on:
        return None
    folder = _folder(options, settings, "peer")
    hosts = _hosts((*options.listen_peer_urls, *options.initial_advertise_peer_urls))
    return TLSSide(settings, folder, hosts)


def warn_of_plain_urls(options: StoreOptions) -> None:
    """Tell of URLs that go in the clear beside others that do not."""
    for url in plain_urls_beside_tls(options, options.listen_client_urls, options.listen_peer_urls):
        LOG.warning("certificates are given, but %s is served without TLS", url)
