"""What a host keeps of its membership in a cluster: `cluster/` in its data directory.

host.json   the host's record, with its id
host.key    its private key, for as long as it is part of the cluster
host.crt    its certificate, replaced as it is renewed
ca.crt      the cluster's authority
ca.key      the authority's key, only on hosts with a member of the store
revoked.crl certificates that count no more, likewise
"""

import datetime
import hashlib
import secrets
import ssl
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from trimaran.client import TLSOptions
from trimaran.daemons.up_authority import (
    HOST_LIFETIME_S,
    Authority,
    HostNames,
    covers,
    is_signed_by,
    new_request,
    private_pem,
    renewal_time_s,
    write_private,
)
from trimaran.errors import ConfigError
from trimaran.up.records import HostRecord


def new_host_id() -> str:
    """Draw the id of a host."""
    return secrets.token_hex(8)


def key_hash(key: ec.EllipticCurvePublicKey) -> str:
    """The hash by which the cluster knows a host's key."""
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).hexdigest()


def names_of(host: HostRecord) -> HostNames:
    """The names a host's certificate is good for."""
    return HostNames(host.id, host.name, (host.address,))


class ClusterFiles:
    """The folder of a host's identity.

    Args:
        folder: where it is; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host_file = folder / "host.json"
        self.key_file = folder / "host.key"
        self.certificate_file = folder / "host.crt"
        self.authority_file = folder / "ca.crt"
        self.authority_key_file = folder / "ca.key"
        self.revoked_file = folder / "revoked.crl"

    @property
    def joined(self) -> bool:
        """Whether the host is part of a cluster."""
        return self.certificate_file.exists() and self.authority_file.exists()

    @property
    def tls(self) -> TLSOptions:
        """How this host's clients reach the store."""
        return TLSOptions(ca=self.authority_file, cert=self.certificate_file, key=self.key_file)

    def write(self, path: Path, data: bytes) -> None:
        """Write one of the files.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, data)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error

    def read(self, path: Path) -> bytes:
        """Read one of the files.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read ({error.strerror}); run as root, or restore the folder"
            ) from error

    def host(self) -> HostRecord:
        """Read the host's record.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return HostRecord.decode(self.read(self.host_file))
        except ValueError as error:
            raise ConfigError(f"{self.host_file} is damaged ({error}); restore it") from None

    def key(self) -> ec.EllipticCurvePrivateKey:
        """Read the host's key, or make it.

        Raises:
            ConfigError: it is damaged.
        """
        if not self.key_file.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            self.write(self.key_file, private_pem(key))
            return key
        try:
            found = load_pem_private_key(self.read(self.key_file), None)
        except ValueError:
            found = None
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{self.key_file} is damaged: restore it, or join again without it")
        return found

    def certificate(self) -> x509.Certificate:
        """Read the host's certificate.

        Raises:
            ConfigError: it is damaged.
        """
        return self._certificate(self.certificate_file)

    def authority_certificate(self) -> x509.Certificate:
        """Read the authority's certificate.

        Raises:
            ConfigError: it is damaged.
        """
        return self._certificate(self.authority_file)

    def _certificate(self, path: Path) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(self.read(path))
        except ValueError as error:
            raise ConfigError(f"{path} is damaged ({error}); restore it") from None

    def authority(self) -> Authority | None:
        """Read the authority, None where this host does not hold its key."""
        if not self.authority_key_file.exists():
            return None
        return Authority.load(self.read(self.authority_key_file), self.read(self.authority_file))

    def prepare(self, host: HostRecord) -> HostRecord:
        """Make key and id of a host that is not part of a cluster yet, once.

        A host that asks again, because it did not hear the answer, is the same one to the cluster.

        Args:
            host: of which id and key_hash are filled in.

        Returns:
            the record as it was written.
        """
        host_id = self.host().id if self.host_file.exists() else new_host_id()
        host = replace(host, id=host_id, key_hash=key_hash(self.key().public_key()))
        self.write(self.host_file, host.encode())
        return host

    def request(self) -> x509.CertificateSigningRequest:
        """Ask for a certificate on the host's key."""
        return new_request(self.key(), self.host().name)

    def create_cluster(self, host: HostRecord, now: datetime.datetime) -> Authority:
        """Begin a cluster: make its authority and this host's certificate."""
        authority = self.authority() or Authority.create(now)
        self.write(self.authority_key_file, authority.key_pem)
        self.write(self.authority_file, authority.certificate_pem)
        self.prepare(host)
        self.issue_own(now, HOST_LIFETIME_S)
        return authority

    def issue_own(self, now: datetime.datetime, lifetime_s: float) -> None:
        """Sign this host's own certificate, where it holds the authority's key."""
        authority = self.authority()
        assert authority is not None
        certificate = authority.issue(self.request(), names_of(self.host()), now, lifetime_s)
        self.write(self.certificate_file, certificate.public_bytes(Encoding.PEM))

    def revoke(self, serials: Iterable[int], now: datetime.datetime) -> None:
        """Write the list of revoked certificates, where this host holds the authority's key."""
        authority = self.authority()
        assert authority is not None
        self.write(self.revoked_file, authority.revocations(serials, now))

    def accept(self, certificate_pem: bytes, authority_pem: bytes) -> None:
        """Keep what the cluster answered.

        Raises:
            ConfigError: the certificate is not on this host's key, or of another authority.
        """
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            authority = x509.load_pem_x509_certificate(authority_pem)
        except ValueError as error:
            raise ConfigError(f"the cluster's answer holds no certificate: {error}") from None
        if certificate.public_key() != self.key().public_key():
            raise ConfigError("the cluster's certificate is on another key than this host's")
        if not is_signed_by(certificate, authority):
            raise ConfigError("the cluster's certificate is not signed by its authority")
        self.write(self.authority_file, authority_pem)
        self.write(self.certificate_file, certificate_pem)

    def must_renew(self, now: datetime.datetime) -> bool:
        """Tell whether the certificate is past half of its life, or names another address."""
        certificate = self.certificate()
        is_old = now.timestamp() >= renewal_time_s(certificate)
        return is_old or not covers(certificate, names_of(self.host()))

    def client_context(self) -> ssl.SSLContext:
        """How this host talks to the others' join endpoints.

        Every certificate of the authority is good, whatever its name: the other side is known by
        being part of the cluster, and its address may have changed since.
        """
        context = ssl.create_default_context(
            ssl.Purpose.SERVER_AUTH, cadata=self.read(self.authority_file).decode()
        )
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        if self.certificate_file.exists():
            context.load_cert_chain(self.certificate_file, self.key_file)
        return context

    def server_context(self) -> ssl.SSLContext:
        """How this host's join endpoint answers: it knows hosts of the cluster, and lets in others.

        Raises:
            ConfigError: the files do not work.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_cert_chain(self.certificate_file, self.key_file)
            context.load_verify_locations(self.authority_file)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"{self.folder} has damaged files: {error}") from None
        context.verify_mode = ssl.CERT_OPTIONAL
        return context
