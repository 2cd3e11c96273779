"""TLS of both sides: options, files that are wrong or change, and who is let in."""

import asyncio
import datetime
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from aio import eventually
from certificates import LOOPBACK, Authority, Issued
from test_peer_transport import CLUSTER, Site, hello, run
from trimaran.daemons import peer_transport
from trimaran.daemons.certificates import is_good_for
from trimaran.daemons.peer_connection import PeerIdentity
from trimaran.daemons.peer_transport import call_member
from trimaran.daemons.tls import TLSSide
from trimaran.errors import ConfigError
from trimaran.store.options import read_options
from trimaran.store.options_tls import (
    CIPHER_SUITES,
    TLSOptions,
    TLSSettings,
    openssl_suites,
    plain_urls_beside_tls,
)
from trimaran.store.peer_calls import PeerMethod
from trimaran.store.peer_frames import REFUSED, Refusal, encode_frame

CLIENT = ["--listen-client-urls=https://a:1", "--advertise-client-urls=https://a:1"]
PAIR = ["--cert-file=c", "--key-file=k"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (CLIENT, "needs a certificate: give --cert-file and --key-file, or --auto-tls"),
        ([*CLIENT, "--cert-file=c"], "--cert-file is given without --key-file"),
        ([*CLIENT, "--key-file=k"], "--key-file is given without --cert-file"),
        (["--client-key-file=k"], "--client-key-file is given without --client-cert-file"),
        (PAIR, "--cert-file is given, but no URL of --listen-client-urls begins with https"),
        (["--auto-tls"], "everything would go in the clear"),
        (["--listen-metrics-urls=https://a:1"], "needs the certificate of clients"),
        (["--peer-auto-tls"], "no URL of --listen-peer-urls"),
        (["--listen-peer-urls=https://a:1"], "give --peer-cert-file and --peer-key-file"),
        ([*CLIENT, *PAIR, "--client-crl-file=x"], "--client-crl-file has no effect"),
        (["--peer-crl-file=x"], "--peer-crl-file has no effect"),
        (["--peer-cert-allowed-cn=x"], "--peer-cert-allowed-cn has no effect"),
        (["--client-cert-allowed-hostname=x"], "--client-cert-allowed-hostname has no effect"),
        (
            ["--peer-cert-allowed-cn=x", "--peer-cert-allowed-hostname=y"],
            "exclude each other",
        ),
        (["--tls-min-version=TLS1.1"], "'TLS1.1' is not one of TLS1.2, TLS1.3"),
        (["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"], "is below"),
        (
            ["--tls-min-version=TLS1.3", "--cipher-suites=TLS_AES_128_GCM_SHA256"],
            "cannot be chosen for TLS 1.3",
        ),
        (["--cipher-suites=TLS_RSA_WITH_RC4_128_SHA"], "not known or not safe"),
        (["--self-signed-cert-validity=0"], "from 1 to 1000"),
    ],
)
def test_wrong_options_are_named(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_options(words, {})
    assert said in str(caught.value)


def test_options_become_settings() -> None:
    options = read_options(
        [
            *CLIENT,
            *PAIR,
            "--trusted-ca-file=ca",
            "--client-cert-allowed-hostname=a,b",
            "--peer-skip-client-san-verification",
            "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_AES_128_GCM_SHA256",
        ],
        {"ETCD_CLIENT_CERT_AUTH": "true", "ETCD_TLS_MIN_VERSION": "TLS1.2"},
    )
    side = options.client_tls
    assert side.is_on
    assert side.verifies_clients
    assert side.allowed_hostname == ("a", "b")
    assert side.cipher_suites == ("ECDHE-RSA-AES128-GCM-SHA256",)
    assert not options.peer_tls.is_on
    assert not options.peer_tls.checks_addresses
    urls = ("https://a:1", "http://b:2")
    assert plain_urls_beside_tls(options, urls, ("http://c:3",)) == ["http://b:2"]


def settings(**changes: Any) -> TLSSettings:
    return replace(TLSOptions().peer_tls, **changes)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path)


def side(authority: Authority, own: Issued, **changes: Any) -> TLSSide:
    trust = {"trusted_ca_file": str(authority.path), "verifies_clients": True}
    files = {"cert_file": str(own.cert), "key_file": str(own.key)}
    return TLSSide(settings(**(trust | files | changes)), authority.folder / "fixtures")


WRONG_FILES: dict[str, tuple[Callable[[Authority], dict[str, Any]], str]] = {
    "no file": (lambda a: {"cert_file": "/no/such"}, "--peer-cert-file /no/such: cannot be read"),
    "a folder": (lambda a: {"key_file": str(a.folder)}, "--peer-key-file"),
    "no certificate": (lambda a: {"cert_file": "/etc/passwd"}, "holds no certificate in PEM"),
    "no key": (lambda a: {"key_file": "/etc/passwd"}, "holds no private key"),
    "another's key": (
        lambda a: {"key_file": str(a.issue("other").key)},
        "does not fit --peer-cert-file",
    ),
    "no authority": (lambda a: {"trusted_ca_file": "/etc/passwd"}, "--peer-trusted-ca-file"),
    "authority missing": (lambda a: {"trusted_ca_file": "/no/such"}, "--peer-trusted-ca-file"),
    "no list": (lambda a: {"crl_file": "/etc/passwd"}, "no list of revoked certificates"),
    "client's key": (
        lambda a: {"client_cert_file": str(a.issue("x").cert), "client_key_file": "/no/such"},
        "--peer-client-key-file /no/such",
    ),
    "suites": (lambda a: {"cipher_suites": ("NONE-SUCH",)}, "--cipher-suites"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_wrong_files_are_named(name: str, authority: Authority) -> None:
    changes, said = WRONG_FILES[name]
    with pytest.raises(ConfigError) as caught:
        side(authority, authority.issue("own"), **changes(authority))
    assert said in str(caught.value)


def test_every_suite_is_known_to_openssl() -> None:
    for name in openssl_suites(CIPHER_SUITES):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(name)


async def secure_site(member_id: int, tls: TLSSide) -> Site:
    site = Site(member_id, tls=tls)
    await site.start()
    return site


def test_members_speak_tls(authority: Authority) -> None:
    async def main() -> None:
        sides = [side(authority, authority.issue(name, hosts=LOOPBACK)) for name in "ab"]
        one, two = [await secure_site(i + 1, tls) for i, tls in enumerate(sides)]
        for site in (one, two):
            site.transport.set_peers({1: [one.url], 2: [two.url]})
        await eventually(lambda: one.transport.is_connected(2) and two.transport.is_connected(1))
        frames = [(80, bytes([i]) * 100_000) for i in range(50)]
        for kind, body in frames:
            one.transport.send(2, encode_frame(kind, body))
        await eventually(lambda: two.frames == frames)
        stream = await one.transport.open_stream(2)
        await stream.send(68, b"x" * 1_000_000)
        await eventually(lambda: bool(two.streams))
        assert await two.streams[0].receive() == (68, b"x" * 1_000_000)
        stream.close()
        assert await two.streams[0].receive() is None
        for site in (one, two):
            await site.transport.stop()

    run(main())


Intruder = Callable[[Authority, Authority], TLSSide | None]


def _without(authority: Authority, stranger: Authority) -> TLSSide:
    """It trusts, but shows nothing."""
    tls = side(authority, authority.issue("own"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.path)
    tls._loaded.client = context
    return tls


# Who comes; what the member counts.
INTRUDERS: dict[str, tuple[Intruder, str]] = {
    "plain": (lambda a, s: None, "handshake"),
    "no certificate": (_without, "no_certificate"),
    "another authority": (
        lambda a, s: side(a, s.issue("b", hosts=LOOPBACK)),
        "unknown_authority",
    ),
    "expired": (lambda a, s: side(a, a.expired("b", hosts=LOOPBACK)), "expired"),
    "not yet": (
        lambda a, s: side(a, a.issue("b", hosts=LOOPBACK, begin=-a_while(), end=a_while(2))),
        "expired",
    ),
    "revoked": (lambda a, s: side(a, revoked(a)), "revoked"),
    "wrong name": (lambda a, s: side(a, a.issue("mallory", hosts=LOOPBACK)), "wrong_name"),
    "wrong address": (lambda a, s: side(a, a.issue("b", hosts=("10.9.9.9",))), "wrong_name"),
    "wrong host": (
        lambda a, s: side(a, a.issue("b", hosts=("no-such-host.invalid",))),
        "wrong_name",
    ),
}


def a_while(hours: int = -1) -> datetime.timedelta:
    return datetime.timedelta(hours=hours)


def revoked(authority: Authority) -> Issued:
    issued = authority.issue("b", hosts=LOOPBACK, file="revoked")
    authority.revoke(issued.serial)
    return issued


@pytest.mark.parametrize("name", INTRUDERS)
def test_a_member_with_a_bad_certificate_is_refused(
    name: str, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = INTRUDERS[name]
    stranger = Authority.create(tmp_path, "stranger")
    authority.revoke()

    async def main() -> None:
        own = authority.issue("a", hosts=LOOPBACK)
        tls = side(authority, own, crl_file=str(authority.crl_path), allowed_cn=("a", "b"))
        one = await secure_site(1, tls)
        bad = make(authority, stranger)
        url = one.url if bad is not None else one.url.replace("https", "http")
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await call_member(
                    url, PeerMethod.MEMBER_ADD, b"", PeerIdentity(CLUSTER, 2, "3.6.0"), bad
                )
        assert one.transport.refusals.counts == {reason: 3}
        assert one.events == []
        # It goes on serving those who belong.
        good = side(authority, authority.issue("b", hosts=LOOPBACK))
        one.transport.on_call = lambda sender, method, payload, done: done(payload)
        me = PeerIdentity(CLUSTER, 2, "3.6.0")
        answer = await call_member(one.url, PeerMethod.MEMBER_ADD, b"hi", me, good)
        assert answer[1] == b"hi"
        await one.transport.stop()

    run(main())
    told = [record for record in caplog.records if "refused a connection" in record.message]
    assert len(told) == 1, "once a minute is enough"


def test_a_server_with_a_bad_certificate_is_not_spoken_to(
    authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority.create(tmp_path, "stranger")
    servers = {
        "unable to get": stranger.issue("a", hosts=LOOPBACK),
        "expired": authority.expired("a2", hosts=LOOPBACK),
        "mismatch": authority.issue("a3", hosts=("10.9.9.9",)),
        "common name 'mallory'": authority.issue("mallory", hosts=LOOPBACK),
    }

    async def main() -> None:
        own = authority.issue("b", hosts=LOOPBACK)
        good = side(authority, own, allowed_cn=("a", "a2", "a3"))
        for said, issued in servers.items():
            one = await secure_site(1, side(authority, issued))
            with pytest.raises(ConnectionError, match=said):
                await call_member(
                    one.url, PeerMethod.MEMBER_ADD, b"", PeerIdentity(0, 0, "3.6.0"), good
                )
            assert one.events == []
            await one.transport.stop()

    run(main())


def test_files_are_read_again(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        own = authority.issue("a", hosts=LOOPBACK)
        authority.revoke()
        tls = side(authority, own, crl_file=str(authority.crl_path))
        one = await secure_site(1, tls)
        one.transport.on_call = lambda sender, method, payload, done: done(payload)
        client_cert = authority.issue("b", hosts=LOOPBACK)
        client = side(authority, client_cert)
        me = PeerIdentity(CLUSTER, 2, "3.6.0")

        async def ask() -> bytes:
            return (await call_member(one.url, PeerMethod.MEMBER_ADD, b"x", me, client))[1]

        assert await ask() == b"x"
        before = tls.expires_s
        authority.issue("a", hosts=LOOPBACK, end=a_while(5))
        assert await ask() == b"x"
        assert tls.expires_s > before
        # Half of a pair: what was read before stays in use until the other half is there.
        own.cert.write_bytes(client_cert.cert.read_bytes())
        assert await ask() == b"x"
        assert "does not fit" in caplog.text
        authority.issue("a", hosts=LOOPBACK, end=a_while(6))
        assert await ask() == b"x"
        authority.revoke(client_cert.serial)
        with pytest.raises(ConnectionError):
            await ask()
        assert one.transport.refusals.counts == {"revoked": 1}
        await one.transport.stop()

    run(main())


def test_connections_of_a_revoked_member_are_ended(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        issued = [authority.issue(name, hosts=LOOPBACK) for name in "abc"]
        authority.revoke()
        crl = str(authority.crl_path)
        sides = [side(authority, own, crl_file=crl if own is issued[0] else "") for own in issued]
        sites = [await secure_site(i + 1, tls) for i, tls in enumerate(sides)]
        for site in sites:
            site.transport.set_peers({other.id: [other.url] for other in sites})
        one, two, three = sites
        for site in sites:
            for other in sites:
                if site is not other:
                    await eventually(lambda a=site, b=other: a.transport.is_connected(b.id))
        await one.transport.open_stream(2)
        coming = await two.transport.open_stream(1)
        await eventually(lambda: bool(one.streams))
        one.transport.end_revoked()
        assert one.transport.refusals.counts == {}

        authority.revoke(issued[1].serial)
        one.transport.end_revoked()
        # Both directions, and both streams.
        assert one.transport.refusals.counts["revoked"] == 4
        assert (REFUSED, bytes([Refusal.CERTIFICATE])) == (await coming.receive() or ())[:2]
        assert await coming.receive() is None
        await eventually(lambda: not one.transport.is_connected(2))
        await eventually(lambda: not two.transport.is_connected(1))
        await eventually(lambda: ("CERTIFICATE", 1) in two.events)
        assert one.transport.is_connected(3)
        assert three.transport.is_connected(1)
        assert one.transport.received_bytes[3] == 0
        three.transport.send(1, encode_frame(80, b"hello"))
        await eventually(lambda: one.frames == [(80, b"hello")])
        for site in sites:
            await site.transport.stop()

    run(main())
    assert "is revoked; its connection is ended" in caplog.text


def test_a_member_makes_its_own_certificate(tmp_path: Path) -> None:
    async def main() -> None:
        automatic = settings(auto=True)
        sides = [TLSSide(automatic, tmp_path / name, ["127.0.0.1"]) for name in "ab"]
        one = await secure_site(1, sides[0])
        two = await secure_site(2, sides[1])
        two.transport.set_peers({1: [one.url]})
        await eventually(lambda: two.transport.is_connected(1))
        for site in (one, two):
            await site.transport.stop()

    run(main())
    cert = (tmp_path / "a/cert.pem").read_bytes()
    assert (tmp_path / "a/key.pem").stat().st_mode & 0o777 == 0o600
    again = TLSSide(settings(auto=True), tmp_path / "a", ["127.0.0.1"])
    assert (tmp_path / "a/cert.pem").read_bytes() == cert
    assert again.expires_s > 0


@pytest.mark.parametrize(
    ("hosts", "host", "expected"),
    [
        (("10.0.0.1", "a.b"), "10.0.0.1", True),
        (("10.0.0.1", "a.b"), "10.0.0.2", False),
        (("::1",), "[::1]", True),
        (("::1",), "0:0:0:0:0:0:0:1", True),
        (("a.b",), "A.B.", True),
        (("*.b.c",), "a.b.c", True),
        (("*.b.c",), "x.a.b.c", False),
        (("*.b.c",), "b.c", False),
        ((), "a", False),
    ],
)
def test_names_of_certificates(
    hosts: tuple[str, ...], host: str, expected: bool, authority: Authority
) -> None:
    issued = authority.issue("x", hosts=hosts)
    certificate = x509.load_pem_x509_certificate(issued.cert.read_bytes())
    assert is_good_for(certificate, host) == expected


def test_versions_and_suites_are_kept_to(authority: Authority) -> None:
    async def main() -> None:
        own = authority.issue("a", hosts=LOOPBACK)
        only_1_3 = await secure_site(1, side(authority, own, version_min="TLS1.3"))
        suite = ("ECDHE-ECDSA-AES256-GCM-SHA384",)
        old = side(authority, own, version_max="TLS1.2", cipher_suites=suite)
        with pytest.raises(ConnectionError, match="the other side ended the handshake"):
            await call_member(only_1_3.url, PeerMethod.MEMBER_ADD, b"", PeerIdentity(0, 0, ""), old)
        await only_1_3.transport.stop()
        site = await secure_site(1, side(authority, own, cipher_suites=suite))
        site.transport.on_call = lambda sender, method, payload, done: done(payload)
        await call_member(site.url, PeerMethod.MEMBER_ADD, b"", PeerIdentity(0, 0, ""), old)
        other = side(
            authority, own, version_max="TLS1.2", cipher_suites=("ECDHE-ECDSA-AES128-GCM-SHA256",)
        )
        with pytest.raises(ConnectionError):
            await call_member(site.url, PeerMethod.MEMBER_ADD, b"", PeerIdentity(0, 0, ""), other)
        await site.transport.stop()

    run(main())


def test_a_cut_stream_is_noticed(authority: Authority) -> None:
    """What is changed under way inside TLS ends the connection, and reaches nobody."""

    async def main() -> None:
        tls = side(authority, authority.issue("a", hosts=LOOPBACK))
        one = await secure_site(1, tls)
        channel = tls.client_channel("127.0.0.1")
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        channel.start()
        writer.write(channel.output())
        while not channel.established:
            channel.feed(await reader.read(65536))
            writer.write(channel.output())
        channel.send(hello().encode())
        sealed = bytearray(channel.output())
        sealed[-1] ^= 1
        writer.write(bytes(sealed))
        while await reader.read(65536):
            pass
        writer.close()
        assert one.transport.refusals.counts == {"handshake": 1}
        assert one.events == []
        await one.transport.stop()

    run(main())


def test_who_does_not_shake_hands_is_let_go(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_transport, "GREETING_TIMEOUT_S", 0.1)

    async def main() -> None:
        tls = side(authority, authority.issue("a", hosts=LOOPBACK))
        one = await secure_site(1, tls)
        channel = tls.client_channel("127.0.0.1")
        channel.start()
        for words in (b"", channel.output()[:50]):
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
            writer.write(words)
            assert await reader.read() == b""
            writer.close()
        assert one.transport.refusals.counts == {"timeout": 2}
        await one.transport.stop()

    run(main())
