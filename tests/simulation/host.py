"""A simulated machine: power, clock, pauses and turns; what runs on it is for others to say."""

from collections import deque
from collections.abc import Callable
from typing import Any

from simulation.network import Network
from simulation.options import TICK_US, Options
from simulation.world import World

TURN_US = 100  # what arrives within this time is handled together


class Host:
    """One machine.

    Args:
        number: by which the network and the faults know it.
        world, network, options: as everybody's.

    Attributes:
        is_up: it has power, and its program runs.
        life: number of its present life; what was planned in an earlier one is void.
    """

    def __init__(self, number: int, world: World, network: Network, options: Options) -> None:
        self.number = number
        self.world = world
        self.network = network
        self.options = options
        self.chance = world.chance(f"host {number}")
        self.is_up = False
        self.life = 0
        drift = options.clock_drift
        self.clock_rate = 1 + self.chance.uniform(-drift, drift)
        self._clock_base_us = self.chance.randrange(10**9)
        self._paused_until_us = 0
        self._slow_until_us = 0
        self._slow_factor = 1
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._turn_planned = False
        self._doomed: Callable[[], None] | None = None

    # For the program.

    def boot(self) -> None:
        """Start the program on what the disk holds."""
        raise NotImplementedError

    def power_off(self, torn: bool) -> None:
        """End the program at once; of what is not flushed, a piece may stay if torn."""
        raise NotImplementedError

    def on_tick(self) -> None:
        """One heartbeat interval has passed by this machine's clock."""
        raise NotImplementedError

    def on_receive(self, peer: int, data: Any) -> None:
        """Bytes have arrived."""
        raise NotImplementedError

    def on_opened(self, peer: int) -> None:
        """A peer has connected."""

    def on_connected(self, peer: int) -> None:
        """The own stream to a peer is open."""

    def on_lost(self, peer: int) -> None:
        """The own stream to a peer has ended."""

    def on_gone(self, peer: int) -> None:
        """Nobody listens at a peer, it is said."""

    def turn(self) -> None:
        """Handle what has arrived."""
        raise NotImplementedError

    # The machine.

    @property
    def now_us(self) -> int:
        """What this machine's clock says; it never goes back."""
        return self._clock_base_us + int(self.world.now_us * self.clock_rate)

    @property
    def is_paused(self) -> bool:
        """Whether it stands still."""
        return self.world.now_us < self._paused_until_us

    def start(self) -> None:
        """Turn the power on."""
        assert not self.is_up
        self.is_up = True
        self.life += 1
        self._turn_planned = False
        self._paused_until_us = 0
        self._doomed = None
        self.world.count("starts", self.number)
        self.boot()
        self.network.attach(self.number, self)
        self._plan_tick()
        self.wake()

    def crash(self, torn: bool) -> None:
        """Turn the power off."""
        assert self.is_up
        self.world.count("crashes", self.number, torn)
        self.is_up = False
        self.life += 1
        self._inbox.clear()
        self.network.detach(self.number)
        self.power_off(torn)

    def doom(self, crashed: Callable[[], None]) -> None:
        """Lose the power in the middle of the next write; then tell."""
        self._doomed = crashed

    def meets_doom(self) -> bool:
        """To be asked when a write is under way; True if the power has gone."""
        if self._doomed is None:
            return False
        crashed, self._doomed = self._doomed, None
        self.crash(True)
        crashed()
        return True

    def pause(self, duration_us: int) -> None:
        """Stand still for a while; what arrives waits."""
        self._paused_until_us = max(self._paused_until_us, self.world.now_us + duration_us)
        self.later(self._paused_until_us - self.world.now_us, self._resume)

    def resume(self) -> None:
        """End a pause and a slow disk now, and live on."""
        self._doomed = None
        self._paused_until_us = self._slow_until_us = 0
        if self.is_up:
            self._resume()

    def slow_down(self, factor: int, duration_us: int) -> None:
        """Let flushes take longer for a while."""
        self._slow_factor = factor
        self._slow_until_us = self.world.now_us + duration_us

    def jump(self, duration_us: int) -> None:
        """Let the clock jump ahead."""
        self._clock_base_us += duration_us

    def flush_us(self) -> int:
        """How long the next flush takes."""
        factor = self._slow_factor if self.world.now_us < self._slow_until_us else 1
        return int(self.options.flush_us * factor * self.chance.uniform(0.5, 2))

    def later(self, delay_us: int, action: Callable[..., None], *arguments: Any) -> None:
        """Do something later, if this life still goes on then, and not while paused."""
        self.world.after(delay_us, self._do, self.life, action, arguments)

    def wake(self) -> None:
        """Take a turn soon."""
        if not self._turn_planned:
            self._turn_planned = True
            self.later(self.chance.randrange(TURN_US), self._turn)

    def _do(self, life: int, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if life != self.life:
            return
        if self.is_paused and action != self._resume:
            self._inbox.append((action, arguments))
        else:
            action(*arguments)

    def _turn(self) -> None:
        self._turn_planned = False
        self.turn()

    def _plan_tick(self) -> None:
        self.later(int(TICK_US / self.clock_rate), self._tick)

    def _tick(self) -> None:
        self._plan_tick()
        self.on_tick()
        self.wake()

    def _resume(self) -> None:
        if self.is_paused:
            return
        while self._inbox and not self.is_paused and self.is_up:
            action, arguments = self._inbox.popleft()
            action(*arguments)
        if self.is_up:
            self.wake()

    def _handle(self, action: Callable[..., None], *arguments: Any) -> None:
        if not self.is_up:
            return
        if self.is_paused:
            self._inbox.append((action, arguments))
            return
        action(*arguments)
        if self.is_up:
            self.wake()

    # What the network tells.

    def receive(self, peer: int, data: Any) -> None:
        """Bytes have arrived."""
        self._handle(self.on_receive, peer, data)

    def opened(self, peer: int) -> None:
        """A peer has connected."""
        self._handle(self.on_opened, peer)

    def connected(self, peer: int) -> None:
        """The own stream to a peer is open."""
        self._handle(self.on_connected, peer)

    def lost(self, peer: int) -> None:
        """The own stream to a peer has ended."""
        self._handle(self.on_lost, peer)

    def gone(self, peer: int) -> None:
        """Nobody listens at a peer, it is said."""
        self._handle(self.on_gone, peer)
