"""What the parts of a cluster's host share, and the first of them: who this host is."""

import asyncio
import contextlib
import datetime
import json
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimaran.daemons.up_authority import fingerprint
from trimaran.daemons.up_enroll import JoinClient, JoinUnavailableError
from trimaran.daemons.up_identity import ClusterFiles
from trimaran.daemons.up_options import UpOptions, url_host
from trimaran.daemons.up_parts import StartError, StoreAccess, forever
from trimaran.errors import JoinRefusedError
from trimaran.up.records import HostRecord

if TYPE_CHECKING:
    from trimaran.daemons.stored import Stored

LOG = logging.getLogger("trimaran.up")
JOIN_INTERVAL_S: Final = 0.5
MACHINE_ID_FILE: Final = Path("/etc/machine-id")


@dataclass
class HostState:
    """A host of a cluster, as its parts share it.

    Attributes:
        options: what was asked for.
        files: its identity.
        access: how its daemons reach the store.
        store: its member of the store while that runs.
        host: its record.
        endpoints, join_addresses: of all hosts with members, as they were last known.
        changed: set when endpoints have changed, for who publishes them.
    """

    options: UpOptions
    files: ClusterFiles
    access: StoreAccess = field(default_factory=lambda: StoreAccess(()))
    store: "Stored | None" = None
    endpoints: tuple[str, ...] = ()
    join_addresses: tuple[str, ...] = ()
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _host: HostRecord | None = None

    @property
    def host(self) -> HostRecord:
        """This host's record; there is one once its identity is known."""
        assert self._host is not None
        return self._host

    @host.setter
    def host(self, record: HostRecord) -> None:
        self._host = record

    @property
    def store_folder(self) -> Path:
        """Where the member's data is."""
        return self.options.data_dir / "store"

    @property
    def has_data(self) -> bool:
        """Whether there is a member's data."""
        return self.identity_file.exists()

    @property
    def identity_file(self) -> Path:
        """Where a member's data says whose it is."""
        return self.store_folder / "member.json"

    @property
    def founding_file(self) -> Path:
        """There until the cluster that this host begins has its first records."""
        return self.files.folder / "founding"

    @property
    def known_file(self) -> Path:
        """Where the addresses of the cluster are kept over restarts."""
        return self.files.folder / "known.json"

    def read_known(self) -> None:
        """Read the addresses that were known when this host last ran."""
        try:
            fields = json.loads(self.known_file.read_text())
            self.endpoints = tuple(map(str, fields["endpoints"]))
            self.join_addresses = tuple(map(str, fields["joinAddresses"]))
        except (OSError, ValueError, KeyError, TypeError):
            LOG.debug("no addresses are known from before")
        self.refresh_access()

    def note_known(self, endpoints: tuple[str, ...], join_addresses: tuple[str, ...]) -> None:
        """Keep the addresses of the hosts with members; empty ones say nothing new."""
        known = (endpoints or self.endpoints, join_addresses or self.join_addresses)
        if known != (self.endpoints, self.join_addresses):
            self.endpoints, self.join_addresses = known
            fields = {"endpoints": known[0], "joinAddresses": known[1]}
            self.files.write(self.known_file, json.dumps(fields).encode())
        self.refresh_access()

    def refresh_access(self) -> None:
        """Put the own member first, where there is one, then the others."""
        own = (self.host.client_url,) if self.store is not None else ()
        endpoints = tuple(dict.fromkeys([*own, *self.endpoints])) or (self.host.client_url,)
        if endpoints != self.access.endpoints:
            self.access.endpoints = endpoints
            self.changed.set()


def make_state(options: UpOptions) -> HostState:
    """Begin with nothing but the options."""
    files = ClusterFiles(options.data_dir / "cluster")
    state = HostState(options, files)
    state.access.tls = files.tls
    state.access.follow = True
    return state


def describe_host(options: UpOptions) -> HostRecord:
    """This host's record, without what it draws at random when it joins."""
    machine_id = ""
    if options.fleet:
        with contextlib.suppress(OSError):
            machine_id = MACHINE_ID_FILE.read_text().strip()
    return HostRecord(
        id="0" * 16,
        name=options.name,
        address=options.address,
        client_url=options.url(options.port),
        peer_url=options.url(options.peer_port),
        join_address=f"{url_host(options.address)}:{options.join_port}",
        key_hash="",
        machine_id=machine_id,
    )


class IdentityPart:
    """Who this host is: begins a cluster, joins one, or goes on as the host it is."""

    name = "cluster"

    def __init__(self, state: HostState) -> None:
        self._state = state
        self._files = state.files

    async def start(self) -> str:
        """See to it that the host has a certificate that holds.

        Raises:
            StartError: it cannot join, or has been away for too long; the text says what to do.
            ConfigError: a file is damaged.
        """
        options = self._state.options
        record = describe_host(options)
        if self._files.joined:
            text = await self._resume(record)
        elif options.joins:
            text = await self._join(record)
        else:
            text = self._begin(record)
        self._state.refresh_access()
        return text

    def _begin(self, record: HostRecord) -> str:
        self._files.write(self._state.founding_file, b"")
        self._files.create_cluster(record, datetime.datetime.now(datetime.UTC))
        self._state.host = self._files.host()
        return f"a new one, begun by {record.name}"

    async def _join(self, record: HostRecord) -> str:
        """Join with the token, as long as it takes until somebody answers."""
        options = self._state.options
        token = options.token
        if token is None:
            raise StartError(
                "this host has not joined yet and needs a token: `trimaran token create` on a "
                "host of the cluster prints one, for --join TOKEN or --join HOST --token TOKEN"
            )
        addresses = tuple(dict.fromkeys([*options.join, *token.addresses]))
        client = JoinClient(self._files, addresses)
        deadline_s = time.monotonic() + options.join_timeout_s
        while True:
            try:
                answer = await client.join(token, record)
                break
            except JoinRefusedError as error:
                raise StartError(f"the cluster refuses this host: {error}") from error
            except JoinUnavailableError as error:
                if time.monotonic() > deadline_s:
                    raise StartError(str(error)) from error
            await asyncio.sleep(JOIN_INTERVAL_S)
        self._state.host = self._files.host()
        self._note(answer)
        return f"joined with token {token.id}"

    def _note(self, answer: dict[str, Any]) -> None:
        """Keep the addresses of a cluster's answer."""
        endpoints = tuple(map(str, answer.get("endpoints", ())))
        self._state.note_known(endpoints, tuple(map(str, answer.get("joinAddresses", ()))))

    async def _resume(self, record: HostRecord) -> str:
        """Go on as the host that it is, under the address that it has now."""
        known = self._files.host()
        if record.name != known.name:
            raise StartError(
                f"this host is {known.name} to its cluster, not {record.name}: give --name "
                f"{known.name}, or forget {known.name} and join again with an empty --data-dir"
            )
        token = self._state.options.token
        authority = self._files.authority_certificate()
        if token is not None and token.fingerprint != fingerprint(authority):
            raise StartError(
                "this host is part of another cluster than the token's: to move it, forget it "
                f"there (`trimaran machine forget {known.name}`) and give an empty --data-dir"
            )
        merged = {"id": known.id, "key_hash": known.key_hash, "token": known.token}
        record = replace(record, store=known.store, **merged)
        self._state.host = record
        self._state.read_known()
        self._files.write(self._files.host_file, record.encode())
        now = datetime.datetime.now(datetime.UTC)
        if self._files.must_renew(now):
            await self._renew(record, now)
        until = self._files.certificate().not_valid_after_utc
        return f"{record.name} again, certificate until {until:%Y-%m-%d %H:%M} UTC"

    async def _renew(self, record: HostRecord, now: datetime.datetime) -> None:
        """Renew the certificate; where nobody answers, the old one may still do."""
        certificate = self._files.certificate()
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if self._files.authority() is not None:
            self._files.issue_own(now, (end - begin).total_seconds())
            return
        addresses = [*self._state.join_addresses, *self._state.options.join]
        try:
            self._note(await JoinClient(self._files, addresses).renew(record))
        except (JoinUnavailableError, JoinRefusedError) as error:
            if now < end and not isinstance(error, JoinRefusedError):
                return
            if self._state.options.token is not None:
                await self._join(record)
                return
            raise StartError(
                f"this host's certificate ended on {end:%Y-%m-%d} and cannot be renewed ({error}); "
                "let it join again: --join TOKEN with a new token of `trimaran token create`"
            ) from error

    async def stop(self) -> None:
        """The identity stays."""

    async def wait_failed(self) -> None:
        """An identity does not fail."""
        await forever()
