"""Certificate authorities for tests, with every fault a certificate can have."""

import datetime
import ipaddress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from trimaran.daemons.store_tls import CLIENT_PROTOCOLS
from trimaran.daemons.tls import TLSSide
from trimaran.store.options_tls import TLSOptions

BOTH_USES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
LOOPBACK = ("127.0.0.1", "localhost")
HOUR = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Issued:
    """The files of a certificate and its key.

    Attributes:
        cert, key: paths.
        serial: of the certificate.
    """

    cert: Path
    key: Path
    serial: int


@dataclass
class Authority:
    """A certificate authority that keeps its files in one folder."""

    folder: Path
    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    revoked: list[int] = field(default_factory=list)

    @classmethod
    def create(cls, folder: Path, name: str = "authority") -> "Authority":
        """Make an authority; its certificate is at `path`."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            _builder(name, name, key.public_key(), now - HOUR, now + 10 * HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        authority = cls(folder, name, key, certificate)
        authority.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return authority

    @property
    def path(self) -> Path:
        """The authority's own certificate."""
        return self.folder / f"{self.name}.pem"

    @property
    def crl_path(self) -> Path:
        """Where `revoke` writes its list."""
        return self.folder / f"{self.name}.crl"

    def issue(
        self,
        name: str,
        *,
        hosts: tuple[str, ...] = (),
        uses: tuple[ObjectIdentifier, ...] = BOTH_USES,
        begin: datetime.timedelta = -HOUR,
        end: datetime.timedelta = HOUR,
        file: str = "",
    ) -> Issued:
        """Make a certificate; the same name again overwrites its files.

        Args:
            name: the common name.
            hosts: addresses and names it is good for.
            uses: extended key usages.
            begin, end: of its life, from now.
            file: name of the files where it is not the common name.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(host))
            if host[0].isdigit() or ":" in host
            else x509.DNSName(host)
            for host in hosts
        ]
        now = datetime.datetime.now(datetime.UTC)
        builder = _builder(name, self.name, key.public_key(), now + begin, now + end)
        if uses:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(uses)), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        cert_path = self.folder / f"{file or name}.crt"
        key_path = self.folder / f"{file or name}.key"
        cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return Issued(cert_path, key_path, certificate.serial_number)

    def expired(self, name: str, *, hosts: tuple[str, ...] = ()) -> Issued:
        """Make a certificate whose life is over."""
        return self.issue(name, hosts=hosts, begin=-2 * HOUR, end=-HOUR)

    def revoke(self, *serials: int) -> Path:
        """Revoke certificates, and write the list of all revoked ones."""
        self.revoked += serials
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - HOUR)
            .next_update(now + HOUR)
        )
        for serial in self.revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        crl = builder.sign(self.key, hashes.SHA256())
        self.crl_path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
        return self.crl_path


def server_side(authority: Authority, own: Issued | None = None, **changes: Any) -> TLSSide:
    """TLS of a clients' side, with a certificate for the loopback addresses.

    Args:
        authority: who signs.
        own: another certificate.
        changes: fields of `TLSSettings`.
    """
    own = own or authority.issue("server", hosts=LOOPBACK)
    settings = replace(
        TLSOptions().client_tls, cert_file=str(own.cert), key_file=str(own.key), **changes
    )
    return TLSSide(settings, authority.folder / "fixtures", alpn=CLIENT_PROTOCOLS)


def _builder(
    subject: str,
    issuer: str,
    key: ec.EllipticCurvePublicKey,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
