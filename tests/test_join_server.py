"""The join endpoint: who is let in, who is refused, and that a refusal changes nothing."""

import asyncio
import contextlib
import datetime
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from aio import run
from etcd_server import StoreServer, free_port
from trimaran.client import Client
from trimaran.daemons.up_authority import covers, host_id_of, is_signed_by
from trimaran.daemons.up_enroll import Endpoint, JoinClient, JoinUnavailableError
from trimaran.daemons.up_hosts import forget_host, revoked_serials
from trimaran.daemons.up_identity import ClusterFiles, names_of
from trimaran.daemons.up_join_server import JoinServer, Nonces
from trimaran.daemons.up_tokens import create_token, list_tokens, revoke_token
from trimaran.errors import ConfigError, JoinRefusedError
from trimaran.up.records import (
    CERTIFICATES,
    HOSTS,
    PREFIX,
    SETTINGS_KEY,
    ClusterSettings,
    HostRecord,
    alive_key,
    host_key,
    token_key,
)
from trimaran.up.token import JoinToken, TokenRecord


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """A store for all tests of this file; each begins by emptying it."""
    with StoreServer("trimaran") as server:
        yield server.endpoint


NOW = datetime.datetime.now(datetime.UTC)


def record(name: str, join_port: int, peer_url: str = "https://127.0.0.1:2380") -> HostRecord:
    """A host on loopback."""
    return HostRecord(
        id="0" * 16,
        name=name,
        address="127.0.0.1",
        client_url="https://127.0.0.1:2379",
        peer_url=peer_url,
        join_address=f"127.0.0.1:{join_port}",
        key_hash="",
    )


@dataclass
class Cluster:
    """A cluster of one host: its identity, its join endpoint, its store."""

    folder: Path
    client: Client
    files: ClusterFiles
    server: JoinServer
    address: str
    hosts: int = 0
    tried: list[HostRecord] = field(default_factory=list)

    async def token(self, lifetime_s: int = 60, uses: int | None = None) -> JoinToken:
        """Make a token that leads here."""
        authority = self.files.authority_certificate()
        made, _ = await create_token(self.client, authority, [self.address], lifetime_s, uses)
        return JoinToken.parse(made.encode())

    def newcomer(self, name: str = "") -> tuple[ClusterFiles, HostRecord]:
        """A host that has not joined yet."""
        self.hosts += 1
        name = name or f"host{self.hosts + 1}"
        return ClusterFiles(self.folder / f"{name}-{self.hosts}"), record(name, free_port())

    async def join(self, token: JoinToken, name: str = "") -> ClusterFiles:
        """Let a new host join."""
        files, host = self.newcomer(name)
        await JoinClient(files, token.addresses).join(token, host)
        return files

    async def stored(self) -> dict[bytes, bytes]:
        """All the store holds of the cluster but the list of certificates."""
        listed = await self.client.get(PREFIX, prefix=True)
        certificates = CERTIFICATES.encode()
        return {
            pair.key: pair.value for pair in listed.kvs if not pair.key.startswith(certificates)
        }

    async def refused(self, reason: str, attempt: Callable[[], Awaitable[Any]]) -> None:
        """Check that an attempt is refused for a reason, counted, and changes nothing."""
        before, count = await self.stored(), self.server.refused[reason]
        with pytest.raises(JoinRefusedError) as error:
            await attempt()
        assert error.value.reason == reason
        assert self.server.refused[reason] == count + 1
        assert await self.stored() == before


@contextlib.asynccontextmanager
async def cluster(endpoint: str, folder: Path) -> AsyncIterator[Cluster]:
    """Begin a cluster beside a store."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    files = ClusterFiles(folder / "first")
    files.create_cluster(record("host1", port), NOW)
    async with Client([endpoint]) as client:
        await client.delete(PREFIX, prefix=True)
        await client.put(host_key(files.host().id), files.host().encode())
        server = JoinServer(files, client)
        await server.start([listening])
        try:
            yield Cluster(folder, client, files, server, f"127.0.0.1:{port}")
        finally:
            await server.stop()


def with_cluster(endpoint: str, folder: Path, work: Callable[[Cluster], Awaitable[None]]) -> None:
    """Run a test's work with a cluster."""

    async def main() -> None:
        async with cluster(endpoint, folder) as one:
            await work(one)

    run(main())


def test_a_host_joins_with_a_token(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        token = await one.token()
        files = await one.join(token)
        certificate = files.certificate()
        host = files.host()
        assert is_signed_by(certificate, one.files.authority_certificate())
        assert covers(certificate, names_of(host))
        assert host_id_of(certificate) == host.id
        assert files.authority() is None
        assert files.joined
        for path in files.folder.iterdir():
            assert path.stat().st_mode & 0o777 == 0o600, path
        stored = (await one.stored())[host_key(host.id).encode()]
        assert HostRecord.decode(stored) == replace(host, token=token.id)
        assert [(found.uses, found.state(0)) for found in await list_tokens(one.client)] == [
            (1, "valid")
        ]
        assert one.server.accepted["join"] == 1

    with_cluster(store, tmp_path, work)


def test_a_token_is_refused_once_it_has_ended(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(one: Cluster) -> None:
        revoked, used_up, expired = [await one.token(uses=1) for _ in range(3)]
        await revoke_token(one.client, revoked.id[:6])
        await one.join(used_up)
        pair = await one.client.get_one(token_key(expired.id))
        assert pair is not None
        late = replace(TokenRecord.decode(pair.value), expires_s=1)
        await one.client.put(token_key(expired.id), late.encode())
        one.server._logged_s = 0.0
        with caplog.at_level(logging.WARNING, "trimaran.up"):
            await one.refused("revoked", lambda: one.join(revoked))
        assert "refused 127.0.0.1" in caplog.text
        assert revoked.id in caplog.text
        await one.refused("used_up", lambda: one.join(used_up))
        await one.refused("expired", lambda: one.join(expired))
        with pytest.raises(JoinRefusedError, match="clock"):
            await one.join(replace(expired, expires_s=1))

    with_cluster(store, tmp_path, work)


def test_a_forged_token_is_refused(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        token = await one.token()
        unknown = replace(token, secret=b"?" * 32)
        await one.refused("unknown", lambda: one.join(unknown))

        class Forged(JoinToken):
            """Names a token it has not the secret of."""

            @property
            def id(self) -> str:
                return token.id

        forged = Forged(token.addresses, b"?" * 32, token.fingerprint, token.expires_s)
        await one.refused("forged", lambda: one.join(forged))
        await one.join(token)

    with_cluster(store, tmp_path, work)


def test_a_host_that_did_not_hear_the_answer_asks_again(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        token = await one.token(uses=1)
        files, host = one.newcomer()
        join = JoinClient(files, token.addresses)
        await join.join(token, host)
        before = await one.stored()
        files.certificate_file.unlink()
        await join.join(token, host)
        assert await one.stored() == before
        await one.refused("used_up", lambda: one.join(token))

    with_cluster(store, tmp_path, work)


def test_a_name_is_one_hosts_only(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        token = await one.token()
        await one.join(token, "same")
        await one.refused("taken", lambda: one.join(token, "same"))
        await one.refused("taken", lambda: one.join(token, "host1"))

    with_cluster(store, tmp_path, work)


def test_of_many_hosts_as_many_join_as_the_token_allows(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        token = await one.token(uses=3)
        outcomes = await asyncio.gather(
            *(one.join(token, f"many{number}") for number in range(6)), return_exceptions=True
        )
        joined = [outcome for outcome in outcomes if isinstance(outcome, ClusterFiles)]
        refused = [outcome for outcome in outcomes if isinstance(outcome, JoinRefusedError)]
        assert (len(joined), len(refused)) == (3, 3), outcomes
        listed = await one.client.get(HOSTS, prefix=True)
        assert len(listed.kvs) == 4

    with_cluster(store, tmp_path, work)


def test_a_token_of_another_cluster_sends_nothing(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        other = replace(await one.token(), fingerprint=b"?" * 32)
        before = await one.stored()
        served: list[str] = []
        original = Endpoint.request

        async def listen(self: Endpoint, method: str, path: str, *rest: Any) -> bytes:
            served.append(path)
            return await original(self, method, path, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Endpoint, "request", listen)
            with pytest.raises(JoinRefusedError) as error:
                await one.join(other)
        assert error.value.reason == "other_cluster"
        assert served == ["/v1/authority"]
        assert await one.stored() == before

    with_cluster(store, tmp_path, work)


def test_an_impostor_with_the_right_authority_gets_no_proof(store: str, tmp_path: Path) -> None:
    """It can show the cluster's certificate, which is public, but has no key below it."""

    async def work(one: Cluster) -> None:
        token = await one.token()
        stranger = ClusterFiles(tmp_path / "stranger")
        stranger.create_cluster(record("host1", 1), NOW)
        lies = one.files.read(one.files.authority_file)
        asked: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, EOFError):
                asked.append(await reader.readuntil(b"\r\n\r\n"))
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(lies)}\r\n\r\n".encode()
                writer.write(head + lies)
                await writer.drain()
            writer.close()

        context = stranger.server_context()
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            files, host = one.newcomer()
            with pytest.raises(JoinUnavailableError, match="certificate does not hold"):
                await JoinClient(files, [f"127.0.0.1:{port}"]).join(token, host)
        assert len(asked) == 1
        assert asked[0].startswith(b"GET /v1/authority ")
        assert not files.joined

    with_cluster(store, tmp_path, work)


def test_a_replayed_request_is_refused(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        token = await one.token()
        files, host = one.newcomer()
        heard: list[tuple[bytes, dict[str, str]]] = []
        original = Endpoint.request

        async def overhear(
            self: Endpoint,
            method: str,
            path: str,
            body: bytes = b"",
            headers: dict[str, str] | None = None,
        ) -> bytes:
            if path == "/v1/join":
                heard.append((body, headers or {}))
            return await original(self, method, path, body, headers)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Endpoint, "request", overhear)
            await JoinClient(files, token.addresses).join(token, host)
        ((body, headers),) = heard
        await one.client.delete(host_key(files.host().id))

        async def send(headers: dict[str, str]) -> None:
            async with await Endpoint.connect(one.address, files.client_context()) as endpoint:
                fresh = json.loads(await endpoint.request("POST", "/v1/challenge"))["nonce"]
                headers = {key: value.replace("FRESH", fresh) for key, value in headers.items()}
                await endpoint.request("POST", "/v1/join", body, headers)

        await one.refused("replayed", lambda: send(headers))
        await one.refused("forged", lambda: send({**headers, "Trimaran-Nonce": "FRESH"}))

    with_cluster(store, tmp_path, work)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Trimaran-Token": "../../x"},
        {"Trimaran-Token": "abc", "Trimaran-Nonce": "zz"},
        {"Trimaran-Token": "a" * 100},
    ],
)
def test_what_is_no_request_is_refused(store: str, tmp_path: Path, headers: dict[str, str]) -> None:
    async def work(one: Cluster) -> None:
        async def send() -> None:
            async with await Endpoint.connect(one.address, open_context()) as endpoint:
                await endpoint.request("POST", "/v1/join", b"{", headers)

        await one.refused("malformed", send)

    with_cluster(store, tmp_path, work)


def open_context() -> ssl.SSLContext:
    """A client that believes everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("path", ["/v1/renew", "/v1/key", "/metrics"])
def test_nothing_is_for_those_without_a_certificate(store: str, tmp_path: Path, path: str) -> None:
    async def work(one: Cluster) -> None:
        async def ask() -> None:
            async with await Endpoint.connect(one.address, open_context()) as endpoint:
                await endpoint.request("GET" if "metrics" in path else "POST", path, b"{}")

        await one.refused("no_certificate", ask)

    with_cluster(store, tmp_path, work)


def test_a_certificate_of_another_authority_ends_the_handshake(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        stranger = ClusterFiles(tmp_path / "stranger")
        stranger.create_cluster(record("host1", 1), NOW)
        context = open_context()
        context.load_cert_chain(stranger.certificate_file, stranger.key_file)
        with pytest.raises((OSError, EOFError)):
            async with await Endpoint.connect(one.address, context) as endpoint:
                await endpoint.request("POST", "/v1/key")
        expired = await one.join(await one.token(), "old")
        authority = one.files.authority()
        assert authority is not None
        past = NOW - datetime.timedelta(days=2)
        old = authority.issue(expired.request(), names_of(expired.host()), past, 3600)
        expired.write(expired.certificate_file, old.public_bytes(x509_pem()))
        with pytest.raises((OSError, EOFError)):
            async with await Endpoint.connect(one.address, expired.client_context()) as endpoint:
                await endpoint.request("POST", "/v1/key")

    with_cluster(store, tmp_path, work)


def x509_pem() -> Any:
    """The encoding of files."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.PEM


def test_a_certificate_is_renewed(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        settings = ClusterSettings(certificate_lifetime_s=3600.0)
        await one.client.put(SETTINGS_KEY, settings.encode())
        files = await one.join(await one.token())
        before = files.certificate()
        now = datetime.datetime.now(datetime.UTC)
        assert before.not_valid_after_utc - now < datetime.timedelta(hours=2)
        assert files.must_renew(now + datetime.timedelta(minutes=45))
        assert not files.must_renew(now)
        host = replace(files.host(), machine_id="m1", store=False, token="stolen")
        await JoinClient(files, [one.address]).renew(host)
        after = files.certificate()
        assert after.serial_number != before.serial_number
        assert after.public_key() == before.public_key()
        pair = await one.client.get_one(host_key(host.id))
        assert pair is not None
        stored = HostRecord.decode(pair.value)
        assert stored.machine_id == "m1"
        assert stored.store
        assert stored.token != "stolen"

    with_cluster(store, tmp_path, work)


def test_a_host_cannot_renew_as_another_one(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        files = await one.join(await one.token())
        join = JoinClient(files, [one.address])
        other = replace(files.host(), id=one.files.host().id)
        await one.refused("forged", lambda: join.renew(other))
        named = replace(files.host(), name="host1")
        await one.refused("taken", lambda: join.renew(named))
        await one.client.delete(host_key(files.host().id))
        await one.refused("forgotten", lambda: join.renew(files.host()))

    with_cluster(store, tmp_path, work)


def test_a_forgotten_host_is_revoked_and_its_name_is_free(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        files = await one.join(await one.token(), "lost")
        serial = files.certificate().serial_number
        assert await revoked_serials(one.client) == ()
        await one.client.put(alive_key(files.host().id), "lost")
        with pytest.raises(ConfigError, match="runs on lost"):
            await forget_host(one.client, "lost")
        await one.client.delete(alive_key(files.host().id))
        forgotten = await forget_host(one.client, "lost")
        assert forgotten.id == files.host().id
        assert await revoked_serials(one.client) == (serial,)
        one.files.revoke((serial,), NOW)
        crl = x509.load_pem_x509_crl(one.files.revoked_file.read_bytes())
        assert crl.get_revoked_certificate_by_serial_number(serial) is not None
        assert crl.issuer == one.files.authority_certificate().subject
        join = JoinClient(files, [one.address])
        await one.refused("forgotten", lambda: join.renew(files.host()))
        again = await one.join(await one.token(), "lost")
        assert again.host().id != files.host().id

    with_cluster(store, tmp_path, work)


def test_the_key_is_for_members_of_the_store(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        files = await one.join(await one.token())
        join = JoinClient(files, [one.address])
        await one.refused("no_member", join.fetch_key)
        assert files.authority() is None

        (member,) = await one.client.members()

        async def members() -> list[Any]:
            return [replace(member, peer_urls=[files.host().peer_url])]

        one.client.members = members  # type: ignore[method-assign,assignment]
        await join.fetch_key()
        authority = files.authority()
        assert authority is not None
        assert authority.certificate == one.files.authority_certificate()
        assert files.authority_key_file.stat().st_mode & 0o777 == 0o600

    with_cluster(store, tmp_path, work)


def test_figures_are_for_hosts_of_the_cluster(store: str, tmp_path: Path) -> None:
    async def work(one: Cluster) -> None:
        files = await one.join(await one.token())
        await one.refused("unknown", lambda: one.join(unknown_token(one)))
        async with await Endpoint.connect(one.address, files.client_context()) as endpoint:
            text = (await endpoint.request("GET", "/metrics")).decode()
        assert 'trimaran_join_accepted_total{kind="join"} 1.0' in text
        assert 'trimaran_join_refused_total{reason="unknown"} 1.0' in text

    with_cluster(store, tmp_path, work)


def unknown_token(one: Cluster) -> JoinToken:
    """A token of this cluster's authority that the store does not know."""
    from trimaran.daemons.up_authority import fingerprint

    authority = one.files.authority_certificate()
    return JoinToken((one.address,), b"?" * 32, fingerprint(authority), 2**32 - 1)


def test_nobody_there_is_said(tmp_path: Path) -> None:
    token = JoinToken((f"127.0.0.1:{free_port()}",), bytes(32), bytes(32), 2**32 - 1)
    files = ClusterFiles(tmp_path / "alone")
    with pytest.raises(JoinUnavailableError, match="no host of the cluster answers"):
        run(JoinClient(files, token.addresses).join(token, record("host2", 1)))


def test_an_answer_of_a_false_certificate_is_not_kept(tmp_path: Path) -> None:
    first, second = ClusterFiles(tmp_path / "a"), ClusterFiles(tmp_path / "b")
    for files in (first, second):
        files.create_cluster(record("host1", 1), NOW)
    kept = second.certificate()
    with pytest.raises(ConfigError, match="another key"):
        second.accept(first.certificate_file.read_bytes(), first.authority_file.read_bytes())
    with pytest.raises(ConfigError, match="not signed"):
        second.accept(second.certificate_file.read_bytes(), first.authority_file.read_bytes())
    assert second.certificate() == kept
    assert isinstance(kept, x509.Certificate)


def test_a_number_to_sign_is_good_once_and_not_for_long() -> None:
    nonces = Nonces()
    first = nonces.draw(0.0)
    assert nonces.spend(first, 1.0)
    assert not nonces.spend(first, 1.0)
    assert not nonces.spend(nonces.draw(0.0), 31.0)
    for _ in range(3000):
        last = nonces.draw(40.0)
    assert len(nonces._drawn) <= 1024
    assert nonces.spend(last, 41.0)
