"""Certificates that a member makes for itself, and what is read out of others' (RFC 5280)."""

import datetime
import ipaddress
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trimaran.errors import ConfigError

SKEW: Final = datetime.timedelta(minutes=10)  # by which clocks may differ
YEAR: Final = datetime.timedelta(days=365)


def alternative_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    """Turn host names and addresses into what a certificate says it is good for."""
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def make_self_signed(
    hosts: Sequence[str], lifetime: datetime.timedelta, now: datetime.datetime
) -> tuple[bytes, bytes]:
    """Make a certificate that nobody vouches for.

    Args:
        hosts: names and addresses it is good for.
        lifetime: how long it is good.
        now: when that begins.

    Returns:
        the certificate and its key, as PEM.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "trimaran")])
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternative_names(hosts)), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), pem


def keep_self_signed(
    folder: Path, hosts: Sequence[str], years: int, now: datetime.datetime
) -> tuple[str, str]:
    """Find the certificate in a folder, or make one where there is none that is still good.

    Args:
        folder: where cert.pem and key.pem are.
        hosts: names and addresses it is to be good for.
        years: how long a new one is good.
        now: the time.

    Returns:
        the paths of the certificate and its key.

    Raises:
        ConfigError: the folder cannot be written.
    """
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    try:
        if not (key_path.exists() and _is_good(cert_path, now)):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            cert, key = make_self_signed(hosts, years * YEAR, now)
            key_path.unlink(missing_ok=True)
            descriptor = os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(key)
            cert_path.write_bytes(cert)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"cannot keep a certificate in {folder}: {reason}") from None
    return str(cert_path), str(key_path)


def _is_good(path: Path, now: datetime.datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return False
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def common_name(certificate: x509.Certificate) -> str:
    """The subject's common name, "" where it has none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def names_of(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """The addresses and the DNS names that a certificate is good for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return [], []
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return addresses, found.get_values_for_type(x509.DNSName)


def is_good_for(certificate: x509.Certificate, host: str) -> bool:
    """Tell whether a certificate is good for a name or address (RFC 6125 §6.4)."""
    addresses, names = names_of(certificate)
    try:
        return str(ipaddress.ip_address(host.strip("[]"))) in addresses
    except ValueError:
        pass
    wanted = host.lower().rstrip(".")
    parent = wanted.partition(".")[2]
    for name in (name.lower().rstrip(".") for name in names):
        if name == wanted or (name.startswith("*.") and parent != "" and name[2:] == parent):
            return True
    return False


def read_crl(data: bytes) -> x509.CertificateRevocationList:
    """Read a list of revoked certificates, PEM or DER.

    Raises:
        ValueError: it is none.
    """
    if b"-----BEGIN" in data:
        return x509.load_pem_x509_crl(data)
    return x509.load_der_x509_crl(data)
