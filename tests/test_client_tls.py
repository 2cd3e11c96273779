"""TLS to the store: who is trusted, names, and certificates of clients."""

from pathlib import Path

import pytest

from aio import run
from certificates import Authority
from etcd_server import ServerTLS, StoreServer, missing_reason
from trimaran.client import Client, TLSOptions
from trimaran.errors import ConfigError, StoreUnavailableError


@pytest.mark.parametrize("kind", ["3.4", "3.5", "trimaran"])
def test_who_is_trusted(kind: str, tmp_path: Path) -> None:
    reason = missing_reason(kind)
    if reason is not None:
        pytest.skip(reason)
    authority = Authority.create(tmp_path, "authority")
    stranger = Authority.create(tmp_path, "stranger")
    server_cert = authority.issue("server", hosts=("127.0.0.1",))

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

    with StoreServer(
        kind, tls=ServerTLS(authority.path, server_cert.cert, server_cert.key)
    ) as server:
        run(main(server))


@pytest.mark.parametrize("kind", ["3.5", "trimaran"])
def test_server_name_and_client_certificate(kind: str, tmp_path: Path) -> None:
    reason = missing_reason(kind)
    if reason is not None:
        pytest.skip(reason)
    authority = Authority.create(tmp_path, "authority")
    server_cert = authority.issue("server", hosts=("store.example",))
    own = authority.issue("client")

    async def main(server: StoreServer) -> None:
        good = TLSOptions(authority.path, own.cert, own.key, server_name="store.example")
        async with Client([server.endpoint], tls=good) as client:
            await client.put("k", "v")
        for bad in (
            TLSOptions(authority.path, own.cert, own.key),
            TLSOptions(authority.path, own.cert, own.key, server_name="other.example"),
            TLSOptions(authority.path, server_name="store.example"),
        ):
            async with Client([server.endpoint], tls=bad, timeout_s=1) as client:
                with pytest.raises(StoreUnavailableError):
                    await client.put("k", "w")

    tls = ServerTLS(authority.path, server_cert.cert, server_cert.key, client_auth=True)
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
