"""The cluster's certificate authority, and the certificates of its hosts.

X.509 with ECDSA P-256. The authority's key lies on every host with a store member, so that losing
hosts never takes the power to let hosts in with it; it never goes through the store. Certificates
of hosts are short-lived, so that one that got away soon ends by itself.
"""

import datetime
import hashlib
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trimaran.errors import ConfigError

AUTHORITY_LIFETIME: Final = datetime.timedelta(days=3650)
HOST_LIFETIME_S: Final = 7 * 86400
# Hosts' clocks may differ by this much.
SKEW: Final = datetime.timedelta(minutes=10)
HOST_URI: Final = "trimaran:host:"


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a private key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Hash the public key of an authority, as join tokens carry it."""
    public = certificate.public_key()
    info = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).digest()


def _named(common_name: str) -> x509.Name:
    # A common name has at most 64 characters; the name in full is among the alternative names.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lifetime)
    )


class Authority:
    """Who signs the certificates of a cluster's hosts."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, now: datetime.datetime) -> "Authority":
        """Make the authority of a new cluster."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _named("Trimaran cluster authority")
        public = key.public_key()
        certificate = (
            _builder(name, name, public, now, AUTHORITY_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, key: bytes, certificate: bytes) -> "Authority":
        """Read key and certificate from PEM.

        Raises:
            ConfigError: they are none, or do not belong together.
        """
        try:
            private = load_pem_private_key(key, None)
            public = x509.load_pem_x509_certificate(certificate)
        except ValueError as error:
            raise ConfigError(f"the cluster authority's files are damaged: {error}") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ConfigError("the cluster authority's key is of another kind than ECDSA")
        if private.public_key() != public.public_key():
            raise ConfigError("the cluster authority's key and certificate differ: restore both")
        return cls(private, public)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate that everything in the cluster is checked against."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key; it leaves this process only for a file of mode 0600 or a new store member."""
        return private_pem(self._key)

    def issue(
        self,
        request: x509.CertificateSigningRequest,
        host: "HostNames",
        now: datetime.datetime,
        lifetime_s: float = HOST_LIFETIME_S,
    ) -> x509.Certificate:
        """Sign the certificate of a host, for both sides of TLS.

        Args:
            request: of which only the key counts: names are what the cluster says they are.
            host: whose certificate it is.
            now: the time it begins.
            lifetime_s: how long it lasts, in seconds.

        Raises:
            ConfigError: the request's key is of another kind, or not the requester's.
        """
        public = request.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise ConfigError("the certificate request has a key of another kind than ECDSA")
        if not request.is_signature_valid:
            raise ConfigError("the certificate request is not signed by its own key")
        issuer = self.certificate.subject
        lifetime = datetime.timedelta(seconds=lifetime_s)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return (
            _builder(_named(host.name), issuer, public, now, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(host.alternatives()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )

    def revocations(self, serials: Iterable[int], now: datetime.datetime) -> bytes:
        """Sign the list of certificates that count no more, in PEM (RFC 5280, section 5)."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - SKEW)
            .next_update(now + AUTHORITY_LIFETIME)
        )
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial)
            builder = builder.add_revoked_certificate(revoked.revocation_date(now).build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True, slots=True)
class HostNames:
    """How a host is called.

    Attributes:
        id: what the cluster knows it by, for as long as it is part of it.
        name: its name, unique in the cluster.
        addresses: where others reach it.
    """

    id: str
    name: str
    addresses: tuple[str, ...]

    def alternatives(self) -> list[x509.GeneralName]:
        """All names its certificate is good for: also those under which it talks to itself."""
        names: list[x509.GeneralName] = [x509.DNSName("localhost")]
        if self.name.isascii() and self.name != "localhost":
            names.append(x509.DNSName(self.name))
        addresses = dict.fromkeys([*self.addresses, "127.0.0.1", "::1"])
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        names.append(x509.UniformResourceIdentifier(HOST_URI + self.id))
        return names


def new_request(
    key: ec.EllipticCurvePrivateKey, common_name: str
) -> x509.CertificateSigningRequest:
    """Ask for a certificate on a key of one's own."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_named(common_name))
    return builder.sign(key, hashes.SHA256())


def host_id_of(certificate: x509.Certificate) -> str | None:
    """The id of the host whose certificate it is, None where it is no host's."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    for name in names.get_values_for_type(x509.UniformResourceIdentifier):
        if name.startswith(HOST_URI):
            return name.removeprefix(HOST_URI)
    return None


def covers(certificate: x509.Certificate, host: HostNames) -> bool:
    """Tell whether a certificate is good for every name of a host."""
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return set(host.alternatives()) <= set(extension.value)


def is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Tell whether an authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def renewal_time_s(certificate: x509.Certificate) -> float:
    """When to renew a certificate, in seconds since 1970: at half of its life."""
    begin = (certificate.not_valid_before_utc + SKEW).timestamp()
    return (begin + certificate.not_valid_after_utc.timestamp()) / 2


def write_private(path: Path, data: bytes) -> None:
    """Write a file that root alone may read, whole or not at all, and durable."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_certificates(data: bytes) -> Iterable[x509.Certificate]:
    """Read PEM certificates.

    Raises:
        ConfigError: there is none.
    """
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError(f"no certificate: {error}") from None
