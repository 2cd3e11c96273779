"""Clients that hold a lock under a lease: as etcd's own recipe, a key that only one can create."""

from collections.abc import Callable, Sequence

from checkers.exclusion import Hold, LeaseRecord
from simulation.clients import CALL_US
from simulation.options import TICK_US, Options
from simulation.store_host import StoreHost
from simulation.world import World
from trimaran.errors import StoreError
from trimaran.ext import member as engine
from trimaran.wire import etcd_pb2 as pb

LOCK = b"lock"
ANSWER_US = 30 * TICK_US
Outcome = int | StoreError | None  # None: no answer came


class LockClient:
    """One client, which wants the lock again and again.

    Args:
        number: of the client.
        world, options: as everybody's.
        servers: gives all hosts.

    Attributes:
        leases: what is known of its leases, times in microseconds.
        holds: when it had the lock.
    """

    def __init__(
        self,
        number: int,
        world: World,
        options: Options,
        servers: Callable[[], Sequence[StoreHost]],
    ) -> None:
        self.number = number
        self.is_stopped = False
        self.leases: list[LeaseRecord] = []
        self.holds: list[Hold] = []
        self._world = world
        self._options = options
        self._servers = servers
        self._chance = world.chance(f"lock client {number}")
        self._ttl_s = self._chance.choice([2, 3, 5])
        self._count = 0
        self._since_us = -1  # of the hold under way
        self._until_us = 0  # it cannot be sure of the lease any longer
        self._leave_us = 0
        self._again()

    @property
    def is_holding(self) -> bool:
        """Whether it believes to have the lock."""
        return self._since_us >= 0

    def _again(self) -> None:
        delay_us = self._chance.randint(1, 20) * TICK_US
        self._world.after(delay_us, self._grant)

    def _ask(
        self,
        ask: Callable[[StoreHost, Callable[[Outcome], None]], None],
        done: Callable[[Outcome], None],
    ) -> None:
        """Ask any member; done gets what it answers in time."""
        server = self._chance.choice(list(self._servers()))
        ended = [False]

        def end(outcome: Outcome) -> None:
            if not ended[0]:
                ended[0] = True
                done(outcome)

        def begin(life: int) -> None:
            if server.is_up and server.life == life:
                ask(server, lambda outcome: self._world.after(CALL_US, end, outcome))
                server.wake()

        self._world.after(ANSWER_US, end, None)
        if server.is_up:
            server.later(CALL_US, begin, server.life)

    def _grant(self) -> None:
        if self.is_stopped:
            return
        self._count += 1
        record = LeaseRecord(self.number << 32 | self._count)
        asked_us = self._world.now_us
        request = pb.LeaseGrantRequest(TTL=self._ttl_s, ID=record.id).SerializeToString()

        def granted(outcome: Outcome) -> None:
            if not isinstance(outcome, int):
                self._again()
                return
            record.renewals.append((asked_us, self._ttl_s * 1_000_000))
            self.leases.append(record)
            self._until_us = asked_us + self._sure_us
            self._world.count("leases granted", self.number)
            self._lock(record, 5)

        self._ask(lambda s, done: s.node.propose(engine.LEASE_GRANT, request, done), granted)

    @property
    def _sure_us(self) -> int:
        """How long a lease lives for sure, on whatever clock."""
        return int(self._ttl_s * 1_000_000 * (1 - 2 * self._options.clock_drift))

    def _lock(self, record: LeaseRecord, attempts: int) -> None:
        txn = pb.TxnRequest()
        txn.compare.add(target=pb.Compare.CREATE, result=pb.Compare.EQUAL, key=LOCK)
        put = txn.success.add().request_put
        put.key, put.value, put.lease = LOCK, f"{self.number}".encode(), record.id

        def ask(server: StoreHost, done: Callable[[Outcome], None]) -> None:
            def answered(status: int, data: bytes) -> None:
                if status < 0:
                    done(int(pb.TxnResponse.FromString(data).succeeded))
                elif status > 0:
                    done(None)

            server.begin("txn", txn.SerializeToString(), answered)

        def locked(outcome: Outcome) -> None:
            if outcome == 1 and self._world.now_us < self._until_us:
                self._since_us = self._world.now_us
                self._leave_us = self._since_us + self._chance.randint(5, 80) * TICK_US
                self._world.count("locks taken", self.number)
                self._keep(record)
            elif outcome == 0 and attempts and not self.is_stopped:
                self._world.after(3 * TICK_US, self._lock, record, attempts - 1)
            else:
                self._release(record)

        self._ask(ask, locked)

    def _keep(self, record: LeaseRecord) -> None:
        """Renew at a third of the time to live, until it has had enough or cannot be sure."""
        now_us = self._world.now_us
        if now_us >= self._leave_us or now_us >= self._until_us or self.is_stopped:
            self._release(record)
            return

        def renewed(outcome: Outcome) -> None:
            if not isinstance(outcome, int) or outcome == 0:
                return
            record.renewals.append((now_us, outcome * 1_000_000))
            self._until_us = max(self._until_us, now_us + self._sure_us)
            self._world.count("leases renewed", self.number)

        self._ask(lambda server, done: server.node.leases.renew(record.id, done), renewed)
        wait_us = min(self._ttl_s * 333_333, self._until_us - now_us, self._leave_us - now_us)
        self._world.after(max(wait_us, 1), self._keep, record)

    def _release(self, record: LeaseRecord) -> None:
        now_us = self._world.now_us
        if self.is_holding:
            until_us = min(now_us, self._until_us)
            self.holds.append(
                Hold("lock", f"{self.number}.{self._count}", self._since_us, until_us)
            )
            self._since_us = -1
        if self._chance.random() < 0.5:
            record.revoked_at = now_us
            request = pb.LeaseRevokeRequest(ID=record.id).SerializeToString()
            self._ask(
                lambda server, done: server.node.propose(engine.LEASE_REVOKE, request, done),
                lambda outcome: None,
            )
        else:
            self._world.count("leases left to expire", self.number)
        self._again()

    def lease_gone(self, lease: int) -> None:
        """Some member has applied the end of a lease."""
        for record in self.leases:
            if record.id == lease and record.gone_at < 0:
                record.gone_at = self._world.now_us
                if record.revoked_at < 0:
                    self._world.count("leases expired", self.number)
