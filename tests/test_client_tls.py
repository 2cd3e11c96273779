"""TLS to the store: who is trusted, names, and certificates of clients."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aio import run
from etcd_server import ServerTLS, StoreServer, missing_reason
from trimaran.client import Client, TLSOptions
from trimaran.errors import ConfigError, StoreUnavailableError


@dataclass(frozen=True)
class Authority:
    """A certificate authority that keeps its files in one folder."""

    folder: Path
    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, folder: Path, name: str) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        authority = cls(folder, name, key, certificate)
        authority.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return authority

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def issue(self, name: str, *, hosts: tuple[str, ...] = ()) -> tuple[Path, Path]:
        """Make a certificate for server and client use; gives the paths of it and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
            for host in hosts
        ]
        builder = _builder(name, self.name, key.public_key()).add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        cert_path, key_path = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return cert_path, key_path


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


@pytest.mark.parametrize("kind", ["3.4", "3.5"])
def test_who_is_trusted(kind: str, tmp_path: Path) -> None:
    reason = missing_reason(kind)
    if reason is not None:
        pytest.skip(reason)
    authority = Authority.create(tmp_path, "authority")
    stranger = Authority.create(tmp_path, "stranger")
    cert, key = authority.issue("server", hosts=("127.0.0.1",))

    async def main(server: StoreServer) -> None:
        async with Client([server.endpoint], tls=TLSOptions(ca=authority.path)) as client:
            await client.put("k", "v")
            async with client.watch("k") as watcher:
                await watcher.started()
        bare = [server.address]
        async with Client(bare, tls=TLSOptions(ca=str(authority.path))) as client:
            assert await client.get_one("k") is not None
        for endpoint, tls, text in [
            (server.endpoint, TLSOptions(ca=stranger.path), "CERTIFICATE_VERIFY_FAILED"),
            (server.endpoint, None, "CERTIFICATE_VERIFY_FAILED"),
            (f"http://{server.address}", None, "could be connected to in time"),
        ]:
            async with Client([endpoint], tls=tls, timeout_s=1) as client:
                with pytest.raises(StoreUnavailableError, match=text):
                    await client.get("k")

    with StoreServer(kind, tls=ServerTLS(authority.path, cert, key)) as server:
        run(main(server))


@pytest.mark.parametrize("kind", ["3.5"])
def test_server_name_and_client_certificate(kind: str, tmp_path: Path) -> None:
    reason = missing_reason(kind)
    if reason is not None:
        pytest.skip(reason)
    authority = Authority.create(tmp_path, "authority")
    cert, key = authority.issue("server", hosts=("store.example",))
    own_cert, own_key = authority.issue("client")

    async def main(server: StoreServer) -> None:
        good = TLSOptions(authority.path, own_cert, own_key, server_name="store.example")
        async with Client([server.endpoint], tls=good) as client:
            await client.put("k", "v")
        for bad in (
            TLSOptions(authority.path, own_cert, own_key),
            TLSOptions(authority.path, own_cert, own_key, server_name="other.example"),
            TLSOptions(authority.path, server_name="store.example"),
        ):
            async with Client([server.endpoint], tls=bad, timeout_s=1) as client:
                with pytest.raises(StoreUnavailableError):
                    await client.put("k", "w")

    tls = ServerTLS(authority.path, cert, key, client_auth=True)
    with StoreServer(kind, tls=tls) as server:
        run(main(server))


def test_wrong_options_say_what_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        missing = tmp_path / "missing.pem"
        for tls, text in [
            (TLSOptions(ca=missing), "cannot read"),
            (TLSOptions(cert=missing), "both"),
            (TLSOptions(key=missing), "both"),
        ]:
            async with Client(["https://127.0.0.1:1"], tls=tls) as client:
                with pytest.raises(ConfigError, match=text):
                    await client.get("k")

    run(main())
