"""The join endpoint of a host with a member of the store: lets hosts in, renews certificates.

GET  /v1/authority    the authority's certificate, which a newcomer checks by its token
POST /v1/challenge    a number to sign, good for one request
POST /v1/join         a host's record and certificate request, with the proof of a token
POST /v1/renew        the same for a host of the cluster, with its certificate instead
POST /v1/key          the authority's key, for a host that the store has made a member
GET  /metrics         what was let in and refused; for hosts of the cluster
"""

import datetime
import json
import logging
import secrets
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Final

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric

from trimaran.client import Client, Compare, Put
from trimaran.daemons.up_authority import host_id_of
from trimaran.daemons.up_hosts import note_certificate
from trimaran.daemons.up_identity import ClusterFiles, key_hash, names_of
from trimaran.errors import ConfigError, JoinRefusedError, StoreError
from trimaran.up.records import (
    HOSTS,
    SETTINGS_KEY,
    ClusterSettings,
    HostRecord,
    check_newcomer,
    host_key,
    token_key,
)
from trimaran.up.token import NONCE_BYTES, TokenRecord, check_join

LOG = logging.getLogger("trimaran.up")
BODY_BYTES_MAX: Final = 32 * 1024
NONCES_MAX: Final = 1024
NONCE_LIFETIME_S: Final = 30.0
ADMISSION_ATTEMPTS: Final = 8
HANDSHAKE_TIMEOUT_S: Final = 10.0
LOG_INTERVAL_S: Final = 1.0
STATUS_REFUSED: Final = 403


class Nonces:
    """Numbers drawn for requests; each is good once, and not for long."""

    def __init__(self) -> None:
        self._drawn: dict[bytes, float] = {}

    def draw(self, now_s: float) -> bytes:
        """Draw one; the oldest gives way where there are too many."""
        for nonce, drawn_s in list(self._drawn.items()):
            if now_s - drawn_s < NONCE_LIFETIME_S and len(self._drawn) < NONCES_MAX:
                break
            del self._drawn[nonce]
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._drawn[nonce] = now_s
        return nonce

    def spend(self, nonce: bytes, now_s: float) -> bool:
        """Take one back; tell whether it was good."""
        drawn_s = self._drawn.pop(nonce, None)
        return drawn_s is not None and now_s - drawn_s < NONCE_LIFETIME_S


class JoinServer:
    """Serves the join endpoint.

    Args:
        files: this host's identity; with the authority's key.
        client: of the store.
    """

    def __init__(self, files: ClusterFiles, client: Client) -> None:
        self._files = files
        self._client = client
        self._nonces = Nonces()
        self._runner: web.AppRunner | None = None
        self._context: ssl.SSLContext | None = None
        # A connection may have begun under the certificate before.
        self._certificates: list[bytes] = []
        self._logged_s = 0.0
        self._unlogged = 0
        self.accepted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    async def start(self, sockets: list[socket.socket]) -> None:
        """Serve on listening sockets.

        Raises:
            ConfigError: the identity's files do not work.
        """
        self._context = self._files.server_context()
        self._note_certificate()
        application = web.Application(client_max_size=BODY_BYTES_MAX)
        application.router.add_get("/v1/authority", self._authority)
        application.router.add_post("/v1/challenge", self._challenge)
        for path, serve in (("join", self._join), ("renew", self._renew), ("key", self._key)):
            application.router.add_post(f"/v1/{path}", self._guarded(serve))
        application.router.add_get("/metrics", self._guarded(self._metrics))
        self._runner = web.AppRunner(application, access_log=None, keepalive_timeout=10)
        await self._runner.setup()
        for listening in sockets:
            await web.SockSite(self._runner, listening, ssl_context=self._context).start()

    def reload(self) -> None:
        """Use the renewed certificate for new connections."""
        assert self._context is not None
        self._context.load_cert_chain(self._files.certificate_file, self._files.key_file)
        self._note_certificate()

    def _note_certificate(self) -> None:
        current = self._files.certificate().public_bytes(Encoding.DER)
        self._certificates = [current, *self._certificates[:1]]

    async def stop(self) -> None:
        """Close every connection."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _guarded(
        self, serve: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Turn errors into answers; count and log what is refused."""

        async def guarded(request: web.Request) -> web.Response:
            try:
                return await serve(request)
            except JoinRefusedError as error:
                self._count_refusal(request, error)
                body = {"reason": error.reason, "error": str(error)}
                return web.json_response(body, status=STATUS_REFUSED)
            except StoreError as error:
                body = {"reason": "store", "error": f"the store does not answer: {error.message}"}
                return web.json_response(body, status=503)

        return guarded

    def _count_refusal(self, request: web.Request, error: JoinRefusedError) -> None:
        self.refused[error.reason] += 1
        now_s = time.monotonic()
        if now_s - self._logged_s < LOG_INTERVAL_S:
            self._unlogged += 1
            return
        more = f" (and {self._unlogged} others)" if self._unlogged else ""
        LOG.warning("refused %s%s: %s", request.remote, more, error)
        self._logged_s, self._unlogged = now_s, 0

    async def _authority(self, request: web.Request) -> web.Response:
        return web.Response(body=self._files.read(self._files.authority_file))

    async def _challenge(self, request: web.Request) -> web.Response:
        return web.json_response({"nonce": self._nonces.draw(time.monotonic()).hex()})

    async def _metrics(self, request: web.Request) -> web.Response:
        await self._caller(request)
        registry = CollectorRegistry()
        registry.register(JoinCollector(self))
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    async def _join(self, request: web.Request) -> web.Response:
        body = await request.read()
        name = request.headers.get("Trimaran-Token", "")
        try:
            nonce = bytes.fromhex(request.headers.get("Trimaran-Nonce", ""))
            signature = bytes.fromhex(request.headers.get("Trimaran-Proof", ""))
        except ValueError:
            raise JoinRefusedError("malformed", "the request is malformed") from None
        if not name.isalnum() or len(name) > 64:
            raise JoinRefusedError("malformed", "the request names no token")
        if not self._nonces.spend(nonce, time.monotonic()):
            raise JoinRefusedError("replayed", "this proof was used before, or is too old")
        host, authority_request = await self._admit(name, nonce, signature, body)
        self.accepted["join"] += 1
        LOG.warning("host %s (%s, %s) joined with token %s", host.name, host.id, host.address, name)
        return await self._answer(host, authority_request)

    async def _admit(
        self, name: str, nonce: bytes, signature: bytes, body: bytes
    ) -> tuple[HostRecord, x509.CertificateSigningRequest]:
        """Check a proof and write the host down, all in one step of the store."""
        for _ in range(ADMISSION_ATTEMPTS):
            pair = await self._client.get_one(token_key(name))
            record = TokenRecord.decode(pair.value) if pair else None
            hosts = await self._hosts()
            host_id = claimed_id(body)
            known = hosts.get(host_id)
            self._check(record, known, signature, nonce, body)
            assert pair is not None
            assert record is not None
            host, authority_request = read_request(body)
            again = check_newcomer(host, hosts.values())
            host = replace(host, token=record.id, store=again.store if again else host.store)
            put = [Put(host_key(host.id), host.encode())]
            compare = [Compare.mod(token_key(name), "=", pair.mod_revision)]
            if again is None:
                compare.append(Compare.create(host_key(host.id), "=", 0))
                put.append(Put(token_key(name), record.used().encode()))
            if (await self._client.txn(compare, put)).succeeded:
                return host, authority_request
        raise JoinRefusedError("busy", "many hosts join with this token at once: try again")

    def _check(
        self,
        record: TokenRecord | None,
        known: HostRecord | None,
        signature: bytes,
        nonce: bytes,
        body: bytes,
    ) -> None:
        """Check the proof against this server's certificate, or the one it had just before."""
        joined_with = record is not None and known is not None and known.token == record.id
        for number, certificate in enumerate(self._certificates, 1):
            try:
                check_join(record, time.time(), signature, nonce, certificate, body, joined_with)
                return
            except JoinRefusedError as error:
                if error.reason != "forged" or number == len(self._certificates):
                    raise

    async def _hosts(self) -> dict[str, HostRecord]:
        """Every host of the cluster by id."""
        listed = await self._client.get(HOSTS, prefix=True)
        hosts = [HostRecord.decode(pair.value) for pair in listed.kvs]
        return {host.id: host for host in hosts}

    async def _settings(self) -> ClusterSettings:
        pair = await self._client.get_one(SETTINGS_KEY)
        return ClusterSettings.decode(pair.value if pair else None)

    async def _caller(self, request: web.Request) -> HostRecord:
        """The host of the cluster that asks.

        Raises:
            JoinRefusedError: it showed no certificate, or has been forgotten.
        """
        tls = request.transport.get_extra_info("ssl_object") if request.transport else None
        data = tls.getpeercert(binary_form=True) if tls is not None else None
        if not data:
            raise JoinRefusedError("no_certificate", "show the certificate of a host")
        certificate = x509.load_der_x509_certificate(data)
        host = (await self._hosts()).get(host_id_of(certificate) or "")
        public = certificate.public_key()
        if host is None or key_hash(public) != host.key_hash:  # type: ignore[arg-type]
            raise JoinRefusedError(
                "forgotten", "the cluster has forgotten this host: join again with a new token"
            )
        return host

    async def _renew(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        host, authority_request = read_request(await request.read())
        if host.id != caller.id or host.key_hash != caller.key_hash:
            raise JoinRefusedError("forged", "a host can renew its own certificate only")
        hosts = await self._hosts()
        check_newcomer(host, hosts.values())
        host = replace(host, token=caller.token, store=caller.store)
        if host != caller:
            await self._client.txn(
                [Compare.value(host_key(host.id), "=", caller.encode())],
                [Put(host_key(host.id), host.encode())],
            )
        self.accepted["renew"] += 1
        return await self._answer(host, authority_request)

    async def _key(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        members = await self._client.members()
        if not any(caller.peer_url in member.peer_urls for member in members):
            raise JoinRefusedError("no_member", f"{caller.name} has no member of the store")
        authority = self._files.authority()
        assert authority is not None
        self.accepted["key"] += 1
        LOG.warning("host %s (%s) was given the authority's key", caller.name, caller.id)
        return web.Response(body=authority.key_pem)

    async def _answer(
        self, host: HostRecord, authority_request: x509.CertificateSigningRequest
    ) -> web.Response:
        """Sign a host's certificate, and tell it what it needs to know."""
        authority = self._files.authority()
        assert authority is not None
        settings = await self._settings()
        now = datetime.datetime.now(datetime.UTC)
        certificate = authority.issue(
            authority_request, names_of(host), now, settings.certificate_lifetime_s
        )
        await note_certificate(self._client, host.id, certificate)
        members = await self._client.members()
        peers = {url for member in members for url in member.peer_urls}
        hosts = (await self._hosts()).values()
        body = {
            "certificate": certificate.public_bytes(Encoding.PEM).decode(),
            "authority": authority.certificate_pem.decode(),
            "endpoints": [url for member in members for url in member.client_urls],
            "joinAddresses": [one.join_address for one in hosts if one.peer_url in peers],
        }
        return web.json_response(body)


def claimed_id(body: bytes) -> str:
    """The host id in a request that has not been checked yet; "" where there is none."""
    try:
        return str(json.loads(body)["host"]["id"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


def read_request(body: bytes) -> tuple[HostRecord, x509.CertificateSigningRequest]:
    """Read a request to join or renew.

    Raises:
        JoinRefusedError: it is none, or its key is not the host's.
    """
    try:
        fields = json.loads(body)
        host = HostRecord.decode(json.dumps(fields["host"]).encode())
        request = x509.load_pem_x509_csr(str(fields["request"]).encode())
        public = request.public_key()
        if not request.is_signature_valid:
            raise ValueError("the request is not signed by its key")
        if key_hash(public) != host.key_hash:  # type: ignore[arg-type]
            raise ValueError("the key is another than the host's")
    except (ValueError, TypeError, KeyError, RecursionError, ConfigError) as error:
        raise JoinRefusedError("malformed", f"the request is malformed: {error}") from None
    return host, request


class JoinCollector:
    """What the join endpoint let in and refused, as metrics."""

    def __init__(self, server: JoinServer) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """Read every figure once."""
        accepted = CounterMetricFamily(
            "trimaran_join_accepted", "requests granted by the join endpoint", labels=["kind"]
        )
        for kind in ("join", "renew", "key"):
            accepted.add_metric([kind], self._server.accepted[kind])
        refused = CounterMetricFamily(
            "trimaran_join_refused", "requests refused by the join endpoint", labels=["reason"]
        )
        for reason, count in self._server.refused.items():
            refused.add_metric([reason], count)
        yield accepted
        yield refused
