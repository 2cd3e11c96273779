"""Options of the store daemon that concern TLS, on the clients' side and the peers'."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from trimaran.errors import ConfigError
from trimaran.store.flags import Flag

TLS_VERSIONS: Final = ("TLS1.2", "TLS1.3")

# Names of the standard (RFC 5246, 5289, 7905), as etcd's flag takes them, and OpenSSL's own.
CIPHER_SUITES: Final = {
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256": "AES128-SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256": "ECDHE-ECDSA-AES128-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256": "ECDHE-RSA-AES128-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
# Those of TLS 1.3 are always on, whatever is listed.
CIPHER_SUITES_1_3: Final = (
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
)


@dataclass(frozen=True, slots=True)
class TLSSettings:
    """TLS of one side, the clients' or the peers'.

    Attributes:
        prefix: of its flags, "" or "peer-".
        cert_file, key_file: what this member shows.
        client_cert_file, client_key_file: what it shows where it connects itself; the same if "".
        verifies_clients: whoever connects must show a certificate.
        trusted_ca_file: who signs the others' certificates; "" for the system's authorities.
        crl_file: certificates that count no more.
        allowed_cn: the common name must be one of these; empty for any.
        allowed_hostname: the certificate must be good for one of these; empty for any.
        auto: with certificates that each member makes for itself and nobody checks.
        checks_addresses: the certificate must be good for the address it comes from.
        cipher_suites: OpenSSL's names for TLS 1.2; empty for the default.
        version_min, version_max: one of TLS_VERSIONS; the maximum may be "".
        self_signed_years: how long a certificate made by the member is good.
    """

    prefix: str
    cert_file: str
    key_file: str
    client_cert_file: str
    client_key_file: str
    verifies_clients: bool
    trusted_ca_file: str
    crl_file: str
    allowed_cn: tuple[str, ...]
    allowed_hostname: tuple[str, ...]
    auto: bool
    checks_addresses: bool
    cipher_suites: tuple[str, ...]
    version_min: str
    version_max: str
    self_signed_years: int

    @property
    def is_on(self) -> bool:
        """Whether this side has, or will make, a certificate."""
        return bool(self.cert_file) or self.auto


@dataclass(frozen=True)
class TLSOptions:
    """Certificates and what is asked of those of others."""

    cert_file: str = ""
    key_file: str = ""
    client_cert_file: str = ""
    client_key_file: str = ""
    client_cert_auth: bool = False
    trusted_ca_file: str = ""
    client_crl_file: str = ""
    client_cert_allowed_hostname: tuple[str, ...] = ()
    auto_tls: bool = False
    peer_cert_file: str = ""
    peer_key_file: str = ""
    peer_client_cert_file: str = ""
    peer_client_key_file: str = ""
    peer_client_cert_auth: bool = False
    peer_trusted_ca_file: str = ""
    peer_crl_file: str = ""
    peer_cert_allowed_cn: tuple[str, ...] = ()
    peer_cert_allowed_hostname: tuple[str, ...] = ()
    peer_auto_tls: bool = False
    peer_skip_client_san_verification: bool = False
    self_signed_cert_validity: int = 1
    cipher_suites: tuple[str, ...] = ()
    tls_min_version: str = "TLS1.2"
    tls_max_version: str = ""

    @property
    def client_tls(self) -> TLSSettings:
        """TLS of the clients' side."""
        return TLSSettings(
            prefix="",
            cert_file=self.cert_file,
            key_file=self.key_file,
            client_cert_file=self.client_cert_file,
            client_key_file=self.client_key_file,
            # etcd asks for certificates as soon as it is told who signs them.
            verifies_clients=self.client_cert_auth or bool(self.trusted_ca_file),
            trusted_ca_file=self.trusted_ca_file,
            crl_file=self.client_crl_file,
            allowed_cn=(),
            allowed_hostname=self.client_cert_allowed_hostname,
            auto=self.auto_tls and not self.cert_file,
            checks_addresses=False,
            cipher_suites=openssl_suites(self.cipher_suites),
            version_min=self.tls_min_version,
            version_max=self.tls_max_version,
            self_signed_years=self.self_signed_cert_validity,
        )

    @property
    def peer_tls(self) -> TLSSettings:
        """TLS of the peers' side."""
        return TLSSettings(
            prefix="peer-",
            cert_file=self.peer_cert_file,
            key_file=self.peer_key_file,
            client_cert_file=self.peer_client_cert_file,
            client_key_file=self.peer_client_key_file,
            verifies_clients=self.peer_client_cert_auth or bool(self.peer_trusted_ca_file),
            trusted_ca_file=self.peer_trusted_ca_file,
            crl_file=self.peer_crl_file,
            allowed_cn=self.peer_cert_allowed_cn,
            allowed_hostname=self.peer_cert_allowed_hostname,
            auto=self.peer_auto_tls and not self.peer_cert_file,
            checks_addresses=not self.peer_skip_client_san_verification,
            cipher_suites=openssl_suites(self.cipher_suites),
            version_min=self.tls_min_version,
            version_max=self.tls_max_version,
            self_signed_years=self.self_signed_cert_validity,
        )


def _side_flags(prefix: str, field: str, who: str) -> tuple[Flag, ...]:
    """The flags that both sides have."""
    return (
        Flag(f"{prefix}cert-file", f"{field}cert_file", "text", f"certificate shown to {who}"),
        Flag(f"{prefix}key-file", f"{field}key_file", "text", "its private key"),
        Flag(
            f"{prefix}client-cert-file",
            f"{field}client_cert_file",
            "text",
            f"certificate shown where this member connects to {who}; else --{prefix}cert-file",
        ),
        Flag(f"{prefix}client-key-file", f"{field}client_key_file", "text", "its private key"),
        Flag(
            f"{prefix}client-cert-auth",
            f"{field}client_cert_auth",
            "bool",
            f"refuse {who} without a certificate of --{prefix}trusted-ca-file",
        ),
        Flag(
            f"{prefix}trusted-ca-file",
            f"{field}trusted_ca_file",
            "text",
            f"authorities that sign certificates of {who}",
        ),
        Flag(
            f"{prefix}cert-allowed-hostname" if prefix else "client-cert-allowed-hostname",
            f"{field}cert_allowed_hostname" if prefix else "client_cert_allowed_hostname",
            "list",
            f"names, one of which a certificate of {who} must be good for",
        ),
        Flag(
            f"{prefix}auto-tls",
            f"{field}auto_tls",
            "bool",
            "TLS with a certificate that the member makes; it proves nothing to anybody",
        ),
    )


TLS_FLAGS: Final = (
    *_side_flags("", "", "clients"),
    Flag("client-crl-file", "client_crl_file", "text", "revoked certificates of clients"),
    *_side_flags("peer-", "peer_", "members"),
    Flag("peer-crl-file", "peer_crl_file", "text", "revoked certificates of members"),
    Flag(
        "peer-cert-allowed-cn",
        "peer_cert_allowed_cn",
        "list",
        "common names, one of which a certificate of members must have",
    ),
    Flag(
        "peer-skip-client-san-verification",
        "peer_skip_client_san_verification",
        "bool",
        "take certificates of members from any address",
        "experimental-peer-skip-client-san-verification",
    ),
    Flag(
        "self-signed-cert-validity",
        "self_signed_cert_validity",
        "number",
        "years that a certificate made by the member is good",
    ),
    Flag("cipher-suites", "cipher_suites", "list", "suites for TLS 1.2, by their standard names"),
    Flag("tls-min-version", "tls_min_version", "text", "TLS1.2 or TLS1.3"),
    Flag("tls-max-version", "tls_max_version", "text", "TLS1.2 or TLS1.3; the highest if empty"),
)


def openssl_suites(names: Iterable[str]) -> tuple[str, ...]:
    """Give OpenSSL's names of the suites for TLS 1.2.

    Raises:
        ConfigError: a suite is not known.
    """
    found: dict[str, None] = {}
    for name in names:
        if name in CIPHER_SUITES:
            found[CIPHER_SUITES[name]] = None
        elif name not in CIPHER_SUITES_1_3:
            raise ConfigError(
                f"--cipher-suites: '{name}' is not known or not safe; known are "
                f"{', '.join((*CIPHER_SUITES, *CIPHER_SUITES_1_3))}"
            )
    return tuple(found)


def _check_versions(options: TLSOptions) -> None:
    for flag, version in (
        ("tls-min-version", options.tls_min_version),
        ("tls-max-version", options.tls_max_version),
    ):
        if version not in (*TLS_VERSIONS, "") or (not version and flag == "tls-min-version"):
            raise ConfigError(f"--{flag}: '{version}' is not one of {', '.join(TLS_VERSIONS)}")
    if options.tls_max_version and options.tls_max_version < options.tls_min_version:
        raise ConfigError(
            f"--tls-max-version ({options.tls_max_version}) is below --tls-min-version "
            f"({options.tls_min_version})"
        )
    if options.tls_min_version == "TLS1.3" and options.cipher_suites:
        raise ConfigError(
            "--cipher-suites cannot be chosen for TLS 1.3: leave it out, or set "
            "--tls-min-version to TLS1.2"
        )
    openssl_suites(options.cipher_suites)
    if not 0 < options.self_signed_cert_validity <= 1000:
        raise ConfigError("--self-signed-cert-validity must be from 1 to 1000 years")


def _check_side(side: TLSSettings, listen_flag: str, urls: Iterable[str]) -> None:
    prefix = side.prefix
    pairs = (
        (f"{prefix}cert-file", side.cert_file, f"{prefix}key-file", side.key_file),
        (
            f"{prefix}client-cert-file",
            side.client_cert_file,
            f"{prefix}client-key-file",
            side.client_key_file,
        ),
    )
    for cert_flag, cert, key_flag, key in pairs:
        if bool(cert) != bool(key):
            given, missing = (cert_flag, key_flag) if cert else (key_flag, cert_flag)
            raise ConfigError(f"--{given} is given without --{missing}: give both")
    secure = [url for url in urls if url.startswith("https://")]
    if secure and not side.is_on:
        raise ConfigError(
            f"--{listen_flag}: {secure[0]} needs a certificate: give --{prefix}cert-file and "
            f"--{prefix}key-file, or --{prefix}auto-tls"
        )
    if side.is_on and not secure:
        given = "auto-tls" if side.auto else "cert-file"
        raise ConfigError(
            f"--{prefix}{given} is given, but no URL of --{listen_flag} begins with https://, so "
            "everything would go in the clear: change the URLs or leave the flag out"
        )
    if side.allowed_cn and side.allowed_hostname:
        raise ConfigError(
            f"--{prefix}cert-allowed-cn and --{prefix}cert-allowed-hostname exclude each other: "
            "give one"
        )
    asked = side.crl_file or side.allowed_cn or side.allowed_hostname
    if asked and not side.verifies_clients:
        flag = "client-crl-file" if side.crl_file and not prefix else f"{prefix}crl-file"
        if not side.crl_file:
            flag = f"{prefix or 'client-'}cert-allowed-{'cn' if side.allowed_cn else 'hostname'}"
        raise ConfigError(
            f"--{flag} has no effect without certificates of others: give --{prefix}trusted-ca-file"
        )


def check_tls(
    options: TLSOptions,
    listen_client_urls: Iterable[str],
    listen_peer_urls: Iterable[str],
    listen_metrics_urls: Iterable[str] = (),
) -> None:
    """Check how the options of TLS go together, and with the URLs.

    Raises:
        ConfigError: they contradict each other or the URLs.
    """
    _check_versions(options)
    _check_side(options.client_tls, "listen-client-urls", listen_client_urls)
    for url in listen_metrics_urls:
        if url.startswith("https://") and not options.client_tls.is_on:
            raise ConfigError(
                f"--listen-metrics-urls: {url} needs the certificate of clients' URLs: give "
                "--cert-file and --key-file"
            )
    _check_side(options.peer_tls, "listen-peer-urls", listen_peer_urls)


def plain_urls_beside_tls(
    options: TLSOptions, listen_client_urls: Iterable[str], listen_peer_urls: Iterable[str]
) -> list[str]:
    """Return the http URLs that are served beside https ones, to be warned of."""
    sides = ((options.client_tls, listen_client_urls), (options.peer_tls, listen_peer_urls))
    return [url for side, urls in sides if side.is_on for url in urls if url.startswith("http:")]
