"""TLS of one side of a member: contexts from files, read again when the files have changed."""

import asyncio
import copy
import datetime
import logging
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from cryptography import x509

from trimaran.daemons.certificates import (
    common_name,
    is_good_for,
    keep_self_signed,
    names_of,
    read_crl,
)
from trimaran.daemons.connection import TLSChannel
from trimaran.errors import ConfigError
from trimaran.store.options_tls import TLSSettings

LOG = logging.getLogger("trimaran.tls")
LOOKUP_TIMEOUT_S: Final = 3.0
_VERSIONS: Final = {
    "TLS1.2": ssl.TLSVersion.TLSv1_2,
    "TLS1.3": ssl.TLSVersion.TLSv1_3,
    "": ssl.TLSVersion.MAXIMUM_SUPPORTED,
}
# OpenSSL's codes of x509_vfy.h, in words for counters.
_VERIFY_REASONS: Final = {
    2: "unknown_authority",
    9: "expired",
    10: "expired",
    18: "unknown_authority",
    19: "unknown_authority",
    20: "unknown_authority",
    21: "unknown_authority",
    23: "revoked",
    26: "wrong_purpose",
    62: "wrong_name",
    64: "wrong_name",
}
# Every word that `explain` and `TLSSide.check` have for what is wrong.
TLS_REASONS: Final = (
    *sorted(set(_VERIFY_REASONS.values())),
    "handshake",
    "no_certificate",
    "other_side",
)
_NO_CERTIFICATE: Final = "PEER_DID_NOT_RETURN_A_CERTIFICATE"


def explain(error: Exception) -> tuple[str, str]:
    """Say what an error of TLS means: one word, and a text."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = _VERIFY_REASONS.get(error.verify_code, "unknown_authority")
        return reason, f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        words = error.reason.replace("_", " ").lower()
        if error.reason == _NO_CERTIFICATE:
            return "no_certificate", "it shows no certificate"
        if "ALERT" in error.reason:
            return "other_side", f"the other side ended the handshake: {words}"
        return "handshake", f"no handshake of TLS: {words}"
    return "handshake", str(error) or type(error).__name__


class _Files:
    """Reads files, and tells whether one has changed since."""

    def __init__(self) -> None:
        self._stamps: dict[str, tuple[int, int, int]] = {}

    def read(self, flag: str, path: str) -> bytes:
        """Read a file that a flag names.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            self._stamps[path] = _stamp(path)
            return Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"--{flag} {path}: cannot be read: {error.strerror}; give the path of a PEM file "
                "that this user may read"
            ) from None

    def changed(self) -> bool:
        """Look at every file that was read."""
        for path, stamp in self._stamps.items():
            try:
                if _stamp(path) != stamp:
                    return True
            except OSError:
                return True
        return False


def _stamp(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ino


def _no_password() -> str:
    raise ValueError("encrypted")


class _Loaded:
    """Everything that comes from the files of one side, as of one moment."""

    def __init__(self, settings: TLSSettings, alpn: Sequence[str]) -> None:
        self.files = _Files()
        self.crl: x509.CertificateRevocationList | None = None
        self.expires_s = 0.0
        self._settings = settings
        self._prefix = settings.prefix
        self._trusted = ""
        if settings.trusted_ca_file:
            flag = f"{self._prefix}trusted-ca-file"
            self._trusted = self.files.read(flag, settings.trusted_ca_file).decode("latin-1")
        if settings.crl_file:
            self._load_crl()
        self.server = self._server(alpn)
        self.client = self._client()

    def _server(self, alpn: Sequence[str]) -> ssl.SSLContext:
        settings = self._settings
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        self._load_chain(context, "", settings.cert_file, settings.key_file)
        # A session taken up again would bypass what was read anew since.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if settings.verifies_clients:
            context.verify_mode = ssl.CERT_REQUIRED
            self._trust(context)
        return context

    def _client(self) -> ssl.SSLContext:
        settings = self._settings
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        if settings.client_cert_file:
            own = ("client-", settings.client_cert_file, settings.client_key_file)
        else:
            own = ("", settings.cert_file, settings.key_file)
        self._load_chain(context, *own)
        if settings.auto and not settings.trusted_ca_file:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            self._trust(context)
        return context

    def _context(self, protocol: int) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.SSLContext(protocol)
        context.minimum_version = _VERSIONS[settings.version_min]
        context.maximum_version = _VERSIONS[settings.version_max]
        # An authority between root and leaf may be trusted by itself, as in Go's TLS.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if settings.cipher_suites:
            try:
                context.set_ciphers(":".join(settings.cipher_suites))
            except ssl.SSLError:
                raise ConfigError(
                    "--cipher-suites: the OpenSSL of this machine has none of them: "
                    f"{', '.join(settings.cipher_suites)}"
                ) from None
        return context

    def _load_chain(self, context: ssl.SSLContext, role: str, cert: str, key: str) -> None:
        cert_flag, key_flag = (f"{self._prefix}{role}{name}-file" for name in ("cert", "key"))
        data = self.files.read(cert_flag, cert)
        self.files.read(key_flag, key)
        try:
            first = x509.load_pem_x509_certificates(data)[0]
        except ValueError:
            raise ConfigError(f"--{cert_flag} {cert}: holds no certificate in PEM") from None
        self.expires_s = first.not_valid_after_utc.timestamp()
        try:
            context.load_cert_chain(cert, key, _no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"--{key_flag} {key} does not fit --{cert_flag} {cert}: give the key that the "
                    "certificate was made for"
                ) from None
            raise ConfigError(
                f"--{key_flag} {key}: holds no private key in PEM, or does not fit: {error.reason}"
            ) from None
        except ValueError:
            raise ConfigError(
                f"--{key_flag} {key}: the key is encrypted: give one without a password"
            ) from None

    def _trust(self, context: ssl.SSLContext) -> None:
        path = self._settings.trusted_ca_file
        if not path:
            context.load_default_certs()
            return
        try:
            context.load_verify_locations(cadata=self._trusted)
        except (ssl.SSLError, ValueError):
            raise ConfigError(
                f"--{self._prefix}trusted-ca-file {path}: holds no certificate in PEM"
            ) from None

    def _load_crl(self) -> None:
        flag = f"{self._prefix}crl-file" if self._prefix else "client-crl-file"
        path = self._settings.crl_file
        try:
            self.crl = read_crl(self.files.read(flag, path))
        except ValueError:
            raise ConfigError(
                f"--{flag} {path}: holds no list of revoked certificates, PEM or DER"
            ) from None


class TLSSide:
    """TLS of the clients' side or the peers' side.

    Args:
        settings: from `StoreOptions.client_tls` or `peer_tls`.
        folder: where a certificate of the member's own making is kept.
        hosts: names and addresses such a certificate is good for.
        alpn: protocols spoken on accepted connections, the preferred first (RFC 7301).

    Raises:
        ConfigError: a file cannot be used; the text says which and why.
    """

    def __init__(
        self,
        settings: TLSSettings,
        folder: Path,
        hosts: Sequence[str] = (),
        alpn: Sequence[str] = (),
    ) -> None:
        if settings.auto:
            now = datetime.datetime.now(datetime.UTC)
            cert, key = keep_self_signed(folder, hosts, settings.self_signed_years, now)
            settings = replace(settings, cert_file=cert, key_file=key)
        self.settings = settings
        self._alpn = tuple(alpn)
        self._told = ""
        self._loaded = _Loaded(settings, self._alpn)
        self._looked_at = self._loaded.crl
        if self.expires_s < datetime.datetime.now(datetime.UTC).timestamp():
            LOG.warning("the certificate %s has expired", settings.cert_file)

    @property
    def expires_s(self) -> float:
        """Until when the own certificate is good, in seconds since 1970."""
        return self._loaded.expires_s

    def speaking(self, alpn: Sequence[str]) -> "TLSSide":
        """Make a side with the same files for ports that speak other protocols."""
        other = copy.copy(self)
        other._alpn = tuple(alpn)
        other._loaded = _Loaded(self.settings, other._alpn)
        return other

    def server_channel(self) -> TLSChannel:
        """Begin TLS on a connection that was accepted."""
        return TLSChannel(self._current().server, server_side=True)

    def client_channel(self, host: str) -> TLSChannel:
        """Begin TLS on a connection to a host."""
        return TLSChannel(self._current().client, server_side=False, server_name=host)

    def check(self, channel: TLSChannel) -> tuple[str, str]:
        """Check what the other side's certificate says, after its handshake.

        Returns:
            one word and a text, both "" where all is well.
        """
        data = channel.certificate
        settings = self.settings
        if data is None:
            return "", ""  # the handshake demanded one, where one is demanded
        certificate = x509.load_der_x509_certificate(data)
        self._current()
        if text := self._revocation(certificate):
            return "revoked", text
        if settings.allowed_cn and common_name(certificate) not in settings.allowed_cn:
            return "wrong_name", f"common name '{common_name(certificate)}' is not allowed"
        if settings.allowed_hostname and not any(
            is_good_for(certificate, host) for host in settings.allowed_hostname
        ):
            return "wrong_name", "the certificate is good for none of the allowed host names"
        return "", ""

    def look(self) -> bool:
        """Read files again that have changed; tells whether `revocation` may say more than before.

        To be called now and then: connections that stand have been checked by an older list.
        """
        crl = self._current().crl
        changed = crl is not None and crl is not self._looked_at
        self._looked_at = crl
        return changed

    def revocation(self, channel: TLSChannel | None) -> str:
        """Say that the certificate shown on a connection was revoked, "" where it was not."""
        if channel is None or not channel.established or channel.certificate is None:
            return ""
        return self._revocation(x509.load_der_x509_certificate(channel.certificate))

    def _revocation(self, certificate: x509.Certificate) -> str:
        crl, serial = self._loaded.crl, certificate.serial_number
        if crl is None or crl.issuer != certificate.issuer:
            return ""
        if crl.get_revoked_certificate_by_serial_number(serial) is None:
            return ""
        return f"certificate {serial:x} is revoked"

    async def check_address(self, channel: TLSChannel, host: str) -> tuple[str, str]:
        """Check that a certificate is good for the address that it comes from, as etcd does.

        Args:
            channel: whose handshake is done.
            host: the other side's address.

        Returns:
            as `check`.
        """
        data = channel.certificate
        if data is None or not self.settings.checks_addresses:
            return "", ""
        certificate = x509.load_der_x509_certificate(data)
        addresses, names = names_of(certificate)
        if not addresses and not names:
            return "", ""
        if is_good_for(certificate, host) or await _resolves(names, host):
            return "", ""
        good_for = ", ".join([*addresses, *names])
        return "wrong_name", f"the certificate is good for {good_for}, not for {host}"

    def _current(self) -> _Loaded:
        """Read the files again where one has changed; keep what was, where that fails."""
        if self._loaded.files.changed():
            try:
                self._loaded = _Loaded(self.settings, self._alpn)
                self._told = ""
                LOG.info("read the certificates again: %s", self.settings.cert_file)
            except ConfigError as error:
                # Files are replaced one by one: the next handshake may find them whole.
                if str(error) != self._told:
                    self._told = str(error)
                    LOG.warning("going on with the certificates read before: %s", error)
        return self._loaded


async def _resolves(names: Sequence[str], host: str) -> bool:
    """Tell whether a name stands for an address; one with a wildcard, by the address's own name."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            for name in names:
                if name.startswith("*."):
                    called, _ = await loop.getnameinfo((host, 0), socket.NI_NAMEREQD)
                    if called.rstrip(".").endswith(name[1:]):
                        return True
                    continue
                try:
                    found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
                except OSError:
                    continue
                if any(address[4][0] == host for address in found):
                    return True
    except (OSError, TimeoutError):
        pass
    return False
