"""The joining side: let this host into a cluster, and renew its certificate while it runs."""

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any, Final, Self, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from trimaran.daemons.up_authority import Authority, fingerprint
from trimaran.daemons.up_identity import ClusterFiles
from trimaran.errors import JoinRefusedError, TrimaranError
from trimaran.up.records import HostRecord
from trimaran.up.token import JoinToken

ATTEMPT_TIMEOUT_S: Final = 5.0
ANSWER_BYTES_MAX: Final = 256 * 1024
Result = TypeVar("Result")


class JoinUnavailableError(TrimaranError):
    """No join endpoint answered; trying again may help."""


class Endpoint:
    """A connection to a join endpoint, for a few requests of HTTP/1.1 one after the other.

    A proof is signed for the certificate of the connection that carries it, which HTTP clients
    with a pool of connections do not tell reliably.
    """

    def __init__(
        self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._address = address
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, address: str, context: ssl.SSLContext) -> Self:
        """Connect to HOST:PORT.

        Raises:
            OSError, ssl.SSLError: there is nobody, or somebody else.
        """
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(
            host.strip("[]"), int(port), ssl=context, limit=ANSWER_BYTES_MAX
        )
        return cls(address, reader, writer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    @property
    def certificate(self) -> bytes:
        """The other side's certificate in DER."""
        data = self._writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert isinstance(data, bytes)
        return data

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> bytes:
        """Send a request and await its answer.

        Raises:
            JoinRefusedError: the endpoint refused, and said why.
            JoinUnavailableError: it cannot answer now.
            OSError, ValueError, EOFError: it is no join endpoint, or the connection broke.
        """
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._address}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        self._writer.write("\r\n".join(lines).encode() + body)
        await self._writer.drain()
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split()[1])
        fields = dict(line.lower().split(":", 1) for line in head[1:] if ":" in line)
        length = int(fields.get("content-length", "0"))
        if not 0 <= length <= ANSWER_BYTES_MAX:
            raise ValueError("an answer of a strange length")
        answer = await self._reader.readexactly(length)
        if status != 200:
            raise _refusal(status, answer)
        return answer


def _refusal(status: int, answer: bytes) -> TrimaranError:
    try:
        fields = json.loads(answer)
        reason, text = str(fields["reason"]), str(fields["error"])
    except (ValueError, TypeError, KeyError):
        reason, text = "unavailable", f"the join endpoint answered {status}"
    return JoinRefusedError(reason, text) if status == 403 else JoinUnavailableError(text)


class JoinClient:
    """Talks to join endpoints; each request goes to the first that answers.

    Args:
        files: this host's identity.
        addresses: HOST:PORT of the endpoints.
    """

    def __init__(self, files: ClusterFiles, addresses: Sequence[str]) -> None:
        self._files = files
        self.addresses = list(addresses)

    async def join(self, token: JoinToken, host: HostRecord) -> dict[str, Any]:
        """Let this host into the token's cluster, and keep what it answers.

        Returns:
            the cluster's answer: endpoints and addresses of its store members.

        Raises:
            JoinRefusedError: the cluster does not want this host, or is not the token's.
            JoinUnavailableError: no endpoint answered.
        """
        if time.time() >= token.expires_s:
            raise JoinRefusedError(
                "expired",
                "the join token has expired, or this host's clock is wrong: make a new one with "
                "`trimaran token create`",
            )
        host = self._files.prepare(host)
        return self._keep(await self._first(lambda address: self._join_at(address, token, host)))

    async def renew(self, host: HostRecord) -> dict[str, Any]:
        """Get a new certificate for this host of the cluster, and keep it.

        Returns, Raises: as `join`.
        """
        body = self._body(host)

        async def renew_at(address: str) -> bytes:
            async with await Endpoint.connect(address, self._files.client_context()) as endpoint:
                return await endpoint.request("POST", "/v1/renew", body)

        answer = self._keep(await self._first(renew_at))
        self._files.write(self._files.host_file, host.encode())
        return answer

    async def fetch_key(self) -> None:
        """Get the authority's key, which a host with a member of the store holds.

        Raises:
            JoinRefusedError: this host has no member of the store.
            JoinUnavailableError: no endpoint answered.
        """

        async def fetch_at(address: str) -> bytes:
            async with await Endpoint.connect(address, self._files.client_context()) as endpoint:
                return await endpoint.request("POST", "/v1/key")

        key = await self._first(fetch_at)
        authority = Authority.load(key, self._files.read(self._files.authority_file))
        self._files.write(self._files.authority_key_file, authority.key_pem)

    async def _first(self, ask: Callable[[str], Awaitable[Result]]) -> Result:
        """Ask one endpoint after the other."""
        problems = []
        stranger: JoinRefusedError | None = None
        for address in self.addresses:
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                    return await ask(address)
            except JoinRefusedError as error:
                if error.reason != "other_cluster":
                    raise
                # Addresses pass from one host to another; the next one may be right.
                stranger = error
            except ssl.SSLError as error:
                problems.append(f"{address} ({explain_tls(error)})")
            except (OSError, EOFError, ValueError, JoinUnavailableError) as error:
                problems.append(f"{address} ({error or 'no answer in time'})")
        if stranger is not None and not problems:
            raise stranger
        raise JoinUnavailableError(
            f"no host of the cluster answers at {', '.join(problems) or 'any known address'}; is "
            "`trimaran up` running there, and does a firewall let us in?"
        )

    async def _join_at(self, address: str, token: JoinToken, host: HostRecord) -> bytes:
        """Join at one endpoint. Nothing is sent to it before it has proved to be the token's."""
        authority = await fetch_authority(address, token)
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=authority.decode())
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # The fingerprint tells whose cluster it is; the address is but a hint.
        context.check_hostname = False
        body = self._body(host)
        async with await Endpoint.connect(address, context) as endpoint:
            nonce = bytes.fromhex(
                json.loads(await endpoint.request("POST", "/v1/challenge"))["nonce"]
            )
            proof = token.prove(nonce, endpoint.certificate, body)
            headers = {
                "Trimaran-Token": token.id,
                "Trimaran-Nonce": nonce.hex(),
                "Trimaran-Proof": proof.hex(),
            }
            return await endpoint.request("POST", "/v1/join", body, headers)

    def _body(self, host: HostRecord) -> bytes:
        request = self._files.request().public_bytes(Encoding.PEM).decode()
        return json.dumps({"host": asdict(host), "request": request}).encode()

    def _keep(self, data: bytes) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(data)
        self._files.accept(str(answer["certificate"]).encode(), str(answer["authority"]).encode())
        return answer


async def fetch_authority(address: str, token: JoinToken) -> bytes:
    """Ask whoever answers for the cluster's authority, and check it by the token.

    Returns:
        its certificate in PEM.

    Raises:
        JoinRefusedError: it is another one than the token's.
        OSError, ValueError, EOFError: it is no join endpoint.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with await Endpoint.connect(address, context) as endpoint:
        data = await endpoint.request("GET", "/v1/authority")
    certificate = x509.load_pem_x509_certificate(data)
    if fingerprint(certificate) != token.fingerprint:
        raise JoinRefusedError(
            "other_cluster",
            f"{address} is not of the cluster whose token this is: take a token of that cluster, "
            "or correct the address",
        )
    return certificate.public_bytes(Encoding.PEM)


def explain_tls(error: ssl.SSLError) -> str:
    """Say in words why a TLS connection did not come about."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not hold: {error.verify_message}"
    return str(error.reason or error)
