"""Join tokens: what a host shows to be let into a cluster.

A token carries addresses of hosts that may let it in, the fingerprint of the cluster's authority,
and a secret. From the secret follows a pair of Ed25519 keys (RFC 8032); the store holds the public
one, so whoever reads the store cannot join with what is there. The host signs its request, with a
number the server just drew and the server's own certificate: a signature that was overheard, or
given to an impostor, is of no use.
"""

import base64
import hashlib
import json
import re
import struct
from dataclasses import dataclass, replace
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trimaran.errors import ConfigError, JoinRefusedError

PREFIX: Final = "trimaran1_"
SECRET_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 32
NONCE_BYTES: Final = 32
ADDRESSES_MAX: Final = 8
ADDRESS_BYTES_MAX: Final = 255
TOKEN_CHARACTERS_MAX: Final = 4096
_CHECKSUM_BYTES: Final = 4
_HEAD: Final = struct.Struct(f">I{SECRET_BYTES}s{FINGERPRINT_BYTES}sB")
_KEY_DOMAIN: Final = b"trimaran join key 1\0"
_PROOF_DOMAIN: Final = b"trimaran join proof 1\0"
_ADDRESS: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:_CHECKSUM_BYTES]


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token as it is handed to a host that joins.

    Attributes:
        addresses: HOST:PORT of join endpoints, in order of preference.
        secret: 32 random bytes.
        fingerprint: SHA-256 of the public key of the cluster's authority.
        expires_s: when it ends, in seconds since 1970.
    """

    addresses: tuple[str, ...]
    secret: bytes
    fingerprint: bytes
    expires_s: int

    def encode(self) -> str:
        """Write the token as the text people copy: no spaces, only letters, digits, - and _."""
        assert len(self.secret) == SECRET_BYTES
        assert len(self.fingerprint) == FINGERPRINT_BYTES
        assert 0 < len(self.addresses) <= ADDRESSES_MAX
        payload = _HEAD.pack(self.expires_s, self.secret, self.fingerprint, len(self.addresses))
        for address in self.addresses:
            assert _ADDRESS.fullmatch(address), address
            payload += bytes([len(address)]) + address.encode()
        text = base64.urlsafe_b64encode(payload + _checksum(payload)).decode().rstrip("=")
        return PREFIX + text

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token.

        Raises:
            ConfigError: it is none, or was not copied whole.
        """
        text = text.strip()
        if not text.startswith(PREFIX) or len(text) > TOKEN_CHARACTERS_MAX:
            raise ConfigError(
                f"this is no join token, which begins with {PREFIX}: make one with `trimaran "
                "token create` on a host of the cluster"
            )
        body = text.removeprefix(PREFIX)
        damaged = ConfigError("the join token is damaged: copy it whole, or make a new one")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", body):
            raise damaged
        try:
            data = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        except ValueError:
            raise damaged from None
        payload, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if len(payload) < _HEAD.size or checksum != _checksum(payload):
            raise damaged
        expires_s, secret, fingerprint, count = _HEAD.unpack_from(payload)
        return cls(_read_addresses(payload[_HEAD.size :], count), secret, fingerprint, expires_s)

    @property
    def key(self) -> Ed25519PrivateKey:
        """The key that the secret stands for."""
        return Ed25519PrivateKey.from_private_bytes(
            hashlib.sha256(_KEY_DOMAIN + self.secret).digest()
        )

    @property
    def public_key(self) -> bytes:
        """Its public half, which the store holds."""
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def id(self) -> str:
        """What the token is called in lists and logs; says nothing of the secret."""
        return token_id(self.public_key)

    def prove(self, nonce: bytes, server_certificate: bytes, request: bytes) -> bytes:
        """Sign a request to join.

        Args:
            nonce: what the server drew for this request.
            server_certificate: the server's certificate in DER, as this side of TLS saw it.
            request: the request's bytes.
        """
        return self.key.sign(proof_text(nonce, server_certificate, request))


def _read_addresses(data: bytes, count: int) -> tuple[str, ...]:
    damaged = ConfigError("the join token is damaged: copy it whole, or make a new one")
    addresses = []
    for _ in range(count):
        if not data or len(data) < 1 + data[0]:
            raise damaged
        address = data[1 : 1 + data[0]].decode("ascii", "replace")
        if not _ADDRESS.fullmatch(address):
            raise damaged
        addresses.append(address)
        data = data[1 + data[0] :]
    if data or not 0 < count <= ADDRESSES_MAX:
        raise damaged
    return tuple(addresses)


def token_id(public_key: bytes) -> str:
    """Derive a token's id from its public key."""
    return hashlib.sha256(public_key).hexdigest()[:12]


def proof_text(nonce: bytes, server_certificate: bytes, request: bytes) -> bytes:
    """Build what is signed; the server's certificate binds it to one connection's other end.

    That is the binding "tls-server-end-point" of RFC 5929.
    """
    return b"".join(
        [
            _PROOF_DOMAIN,
            hashlib.sha256(nonce).digest(),
            hashlib.sha256(server_certificate).digest(),
            hashlib.sha256(request).digest(),
        ]
    )


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What the store holds of a token.

    Attributes:
        public_key: what proofs are checked with.
        created_s, expires_s: seconds since 1970.
        uses_max: how many hosts may join with it, None for any number.
        uses: how many have.
        revoked: whether it was taken back.
        note: what its maker wrote down about it.
    """

    public_key: bytes
    created_s: int
    expires_s: int
    uses_max: int | None = None
    uses: int = 0
    revoked: bool = False
    note: str = ""

    @property
    def id(self) -> str:
        """The token's id."""
        return token_id(self.public_key)

    def encode(self) -> bytes:
        """Write the record as the store's value."""
        return json.dumps(
            {
                "publicKey": self.public_key.hex(),
                "created": self.created_s,
                "expires": self.expires_s,
                "usesMax": self.uses_max,
                "uses": self.uses,
                "revoked": self.revoked,
                "note": self.note,
            }
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a value of the store.

        Raises:
            ValueError: it is no such record.
        """
        fields = json.loads(data)
        if not isinstance(fields, dict):
            raise ValueError("no object")
        record = cls(
            bytes.fromhex(str(fields.get("publicKey"))),
            _whole(fields.get("created")),
            _whole(fields.get("expires")),
            None if fields.get("usesMax") is None else _whole(fields.get("usesMax")),
            _whole(fields.get("uses")),
            fields.get("revoked") is True,
            str(fields.get("note", "")),
        )
        if len(record.public_key) != 32:
            raise ValueError("the public key has not 32 bytes")
        return record

    def used(self) -> Self:
        """The record after one more host joined."""
        return replace(self, uses=self.uses + 1)

    def state(self, now_s: float) -> str:
        """Say whether hosts can join with it: valid, revoked, expired or used up."""
        if self.revoked:
            return "revoked"
        if now_s >= self.expires_s:
            return "expired"
        if self.uses_max is not None and self.uses >= self.uses_max:
            return "used up"
        return "valid"


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("a number is none")
    return value


def check_join(
    record: TokenRecord | None,
    now_s: float,
    signature: bytes,
    nonce: bytes,
    server_certificate: bytes,
    request: bytes,
    joined_with: bool = False,
) -> None:
    """Check the proof of a token that came with a request.

    The signature comes first: whoever does not hold the secret learns nothing of the token.

    Args:
        record: what the store holds under the id that was given, or None.
        now_s: seconds since 1970.
        signature: what `JoinToken.prove` made.
        nonce: what this server drew for this request, and never before.
        server_certificate: this server's certificate in DER.
        request: the request's bytes.
        joined_with: this very host has joined with this token already, and asks again.

    Raises:
        JoinRefusedError: the host may not join; the reason is unknown, forged, or the state.
    """
    if record is None:
        raise JoinRefusedError(
            "unknown", "the cluster does not know this token: make one with `trimaran token create`"
        )
    try:
        key = Ed25519PublicKey.from_public_bytes(record.public_key)
        key.verify(signature, proof_text(nonce, server_certificate, request))
    except (InvalidSignature, ValueError):
        raise JoinRefusedError("forged", "the proof of the token is wrong") from None
    state = record.state(now_s)
    if state != "valid" and not (state == "used up" and joined_with):
        raise JoinRefusedError(
            state.replace(" ", "_"),
            f"the token {record.id} is {state}: make a new one with `trimaran token create`",
        )
