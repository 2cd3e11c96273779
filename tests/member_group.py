"""Several store members in one process, joined by plain pipes that a test may cut and shake.

Nothing moves by itself: `run` lets members take turns and carries what they say, `tick` lets time
pass. Logs are manual, so that a crash loses exactly what was not flushed.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trimaran.errors import ETCD_ERRORS
from trimaran.ext import member as engine
from trimaran.ext.peer import PeerParser
from trimaran.wire import etcd_pb2 as pb

ERRORS = ("", *ETCD_ERRORS, "MALFORMED")
ELECTION_TICKS = 10
TIMEOUT_TICKS = 70
Change = tuple[int, int]
Result = tuple[int, str, int]  # kind, error, revision
# What the network makes of a piece: (when, piece) for each copy of it.
Network = Callable[[int, int, bytes], list[bytes]]


@dataclass(frozen=True)
class Options:
    """See `engine.Options`."""

    log_directory: str
    state_directory: str
    member_id: int
    bootstrap: bytes | None
    incarnation: int
    seed: int
    manual_log: bool = True
    cluster_id: int = 77
    election_ticks: int = ELECTION_TICKS
    heartbeat_ticks: int = 1
    request_timeout_ticks: int = TIMEOUT_TICKS
    max_txn_ops: int = 128
    max_request_bytes: int = 1572864
    quota_bytes: int = 0
    hash_seed: int = 42
    journal_size_bytes: int = 1 << 20
    map_size_bytes: int = 1 << 30
    max_pending_bytes: int = 512 << 20
    max_uncommitted_bytes: int = 256 << 20
    max_message_bytes: int = 0
    lease_us: int = 0
    pre_vote: bool = True


def founding_entry(voters: list[int]) -> bytes:
    """Return the entry that each of the first members begins its log with."""
    changes = b"".join(struct.pack("<BQ", engine.ADD_VOTER, voter) for voter in voters)
    rows = [(b"member/%016x" % voter, b"member %d" % voter) for voter in voters]
    return struct.pack("<BQQQH", 1, 0, 0, 0, len(voters)) + changes + engine.encode_rows(rows)


class Group:
    """Members 1 to `size` of one cluster.

    Args:
        folder: for their data.
        size: of the cluster.
        seed: of their election time-outs.
        **options: of each member, in place of those of `Options`.
    """

    def __init__(self, folder: Path, size: int, seed: int = 1, **options: object) -> None:
        self.folder = folder
        self.seed = seed
        self.options = options
        self.random = random.Random(seed)
        self.members: dict[int, engine.Member] = {}
        self.results: dict[int, Result] = {}
        self.results_of: dict[int, int] = {}
        self.cut: set[tuple[int, int]] = set()
        self.network: Network = lambda _sender, _to, piece: [piece]
        self.late: list[tuple[int, int, bytes]] = []
        self.token = 0
        self._incarnations: dict[int, int] = {}
        self._options: dict[int, Options] = {}
        self._parsers: dict[tuple[int, int], PeerParser] = {}
        self._entry = founding_entry(list(range(1, size + 1)))
        for number in range(1, size + 1):
            self.start(number)

    def close(self) -> None:
        """Close every member."""
        for member in self.members.values():
            member.close()
        self.members.clear()

    def start(self, number: int, *, joins: bool = False) -> engine.Member:
        """Start a member on the data it left, or on new data."""
        folder = self.folder / f"member-{number}"
        for part in ("log", "state"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        self._incarnations[number] = self._incarnations.get(number, 0) + 1
        values: dict[str, object] = {
            "log_directory": str(folder / "log"),
            "state_directory": str(folder / "state"),
            "member_id": number,
            "bootstrap": None if joins else self._entry,
            "incarnation": self._incarnations[number],
            "seed": self.seed * 100 + number + 1000 * self._incarnations[number],
        } | self.options
        self._options[number] = Options(**values)  # type: ignore[arg-type]
        self.members[number] = engine.Member(self._options[number])
        self._parsers = {pair: one for pair, one in self._parsers.items() if number not in pair}
        return self.members[number]

    def options_of(self, number: int) -> Options:
        """Return what a member was last started with."""
        return self._options[number]

    def crash(self, number: int) -> None:
        """Take a member's power away."""
        self.members.pop(number).abandon()
        self.late = [row for row in self.late if number not in row[:2]]

    def split(self, *sides: set[int]) -> None:
        """Cut every link between members of different sides."""
        self.cut = {
            (a, b)
            for one in sides
            for other in sides
            if one is not other
            for a in one
            for b in other
        }

    def heal(self) -> None:
        """Repair every link."""
        self.cut = set()

    def _carry(self, sender: int, to: int, piece: bytes) -> None:
        if to not in self.members or sender not in self.members or (sender, to) in self.cut:
            return
        pair = (sender, to)
        if pair not in self._parsers:
            self._parsers[pair] = PeerParser(self.members[to], sender)
        # In pieces of any size, as a socket would have them.
        at = self.random.randrange(len(piece) + 1)
        assert self._parsers[pair].feed(piece[:at]) == []
        assert self._parsers[pair].feed(piece[at:]) == []

    def step(self, number: int, *, flush: bool = True) -> bool:
        """Let one member take a turn; tells whether anything came of it."""
        member = self.members[number]
        if flush:
            member.flush_log(1 << 30)
        more = member.turn()
        sent = member.messages()
        for to, piece in sent:
            self.late += [(number, to, one) for one in self.network(number, to, piece)]
        for token, kind, error, revision, _, _ in member.results():
            if token != 0:
                assert token not in self.results, "answered twice"
                self.results[token] = (kind, ERRORS[error], revision)
                self.results_of[token] = number
        return more or bool(sent) or (flush and member.log_queue > 0)

    def run(self, rounds: int = 1000) -> None:
        """Let all members do what they can without time passing."""
        for _ in range(rounds):
            busy = [self.step(number) for number in list(self.members)]
            late, self.late = self.late, []
            for row in late:
                self._carry(*row)
            if not any(busy) and not late:
                return
        raise AssertionError("the members do not come to rest")

    def tick(self, count: int = 1) -> None:
        """Let time pass on all members."""
        for _ in range(count):
            for member in self.members.values():
                member.tick()
            self.run()

    def leader(self) -> int:
        """Let time pass until one member leads with a majority behind it; returns it."""
        for _ in range(20 * ELECTION_TICKS):
            leaders = [n for n, member in self.members.items() if member.is_leader]
            if len(leaders) == 1 and all(
                member.status()["leader"] == leaders[0]
                for n, member in self.members.items()
                if not any((n, other) in self.cut for other in leaders)
            ):
                return leaders[0]
            self.tick()
        raise AssertionError("no leader was elected")

    # Clients.

    def submit(self, number: int, kind: int, request: bytes) -> int:
        """Begin an operation on a member; returns its token."""
        self.token += 1
        self.members[number].submit(kind, request, self.token)
        return self.token

    def put(self, number: int, key: bytes, value: bytes) -> int:
        """Begin a put."""
        return self.submit(number, engine.PUT, put_request(key, value))

    def read(self, number: int) -> int:
        """Begin a linearizable read."""
        self.token += 1
        self.members[number].read(self.token)
        return self.token

    def change(
        self, number: int, changes: list[Change], rows: list[tuple[bytes, bytes | None]]
    ) -> int:
        """Begin a change of the members."""
        self.token += 1
        self.members[number].propose_change(changes, rows, self.token)
        return self.token

    def outcome(self, token: int) -> Result:
        """Let time pass until an operation is answered."""
        self.run()
        for _ in range(3 * TIMEOUT_TICKS):
            if token in self.results:
                return self.results[token]
            self.tick()
        raise AssertionError("never answered")

    def get(self, number: int, key: bytes) -> bytes | None:
        """Return a key's value as a member has it."""
        response = pb.RangeResponse.FromString(
            self.members[number].range(pb.RangeRequest(key=key).SerializeToString())
        )
        return response.kvs[0].value if response.kvs else None

    def content(self, number: int) -> bytes:
        """Return all that a member's state holds, header aside."""
        everything = pb.RangeRequest(key=b"\0", range_end=b"\0").SerializeToString()
        response = pb.RangeResponse.FromString(self.members[number].range(everything))
        return response.header.revision.to_bytes(8, "big") + b"".join(
            one.SerializeToString() for one in response.kvs
        )


def put_request(key: bytes, value: bytes) -> bytes:
    """Return a put as it goes over the wire."""
    return pb.PutRequest(key=key, value=value).SerializeToString()
