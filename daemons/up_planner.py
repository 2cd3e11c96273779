"""Carries out the plan for the store's members, on the host whose member leads."""

import asyncio
import logging
import time
from typing import Final

from trimaran.client import Client, Member, Status
from trimaran.daemons.up_host import HostState
from trimaran.daemons.up_hosts import read_hosts, read_settings
from trimaran.errors import ConfigError, StoreError
from trimaran.up.plan import (
    AddLearner,
    HostView,
    MemberView,
    Promote,
    Remove,
    Step,
    Wait,
    next_step,
)
from trimaran.up.records import ALIVE, PLAN_KEY, HostRecord

LOG = logging.getLogger("trimaran.up")
INTERVAL_S: Final = 2.0
STATUS_TIMEOUT_S: Final = 2.0
# A learner this close to the leader has what it needs; the store checks on its own as well.
BEHIND_MAX: Final = 1000


class Planner:
    """Looks at members and hosts now and then, and does the next step.

    Args:
        state: of this host.
        client: of the store.
    """

    def __init__(self, state: HostState, client: Client) -> None:
        self._state = state
        self._client = client
        # When hosts were first missed. Whoever leads counts for itself, so that a new leader
        # gives those away the whole time again.
        self._missed_s: dict[str, float] = {}
        self._told = ""

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            try:
                if self._state.store is not None and self._state.store.node.is_leader:
                    await self._round()
                else:
                    self._missed_s.clear()
                    self._told = ""
            except (StoreError, ConfigError) as error:
                LOG.debug("the plan waits: %s", error)
            await asyncio.sleep(INTERVAL_S)

    async def _round(self) -> None:
        """Look at everything and do one step."""
        client = self._client
        settings = await read_settings(client)
        hosts = [host for host, _ in await read_hosts(client)]
        alive = await client.get(ALIVE, prefix=True, keys_only=True)
        views = self._host_views(hosts, {pair.key.decode() for pair in alive.kvs})
        listed = await client.members()
        states = await self._ask_all(listed)
        assert self._state.store is not None
        own = self._state.store.identity.member_id
        members = [member_view(one, states.get(one.id), states.get(own)) for one in listed]
        step = next_step(settings, members, views, own)
        text = str(step)
        try:
            await self._do(step)
        except StoreError as error:
            text += f" (not yet: {error.message})"
        await self._tell(text)

    def _host_views(self, hosts: list[HostRecord], alive: set[str]) -> list[HostView]:
        now_s = time.monotonic()
        views = []
        for host in hosts:
            if ALIVE + host.id in alive:
                self._missed_s.pop(host.id, None)
                views.append(HostView(host))
            else:
                missed_s = self._missed_s.setdefault(host.id, now_s)
                views.append(HostView(host, max(0.001, now_s - missed_s)))
        return views

    async def _ask_all(self, members: list[Member]) -> dict[int, Status]:
        """Ask every member how it is; those that answer, by id."""
        urls = [url for one in members for url in one.client_urls]
        self._client.pool.update(list(dict.fromkeys([*self._client.pool.urls, *urls])))
        answers = await asyncio.gather(*(self._ask(one) for one in members))
        return {answer.member_id: answer for answer in answers if answer is not None}

    async def _ask(self, one: Member) -> Status | None:
        for url in one.client_urls:
            try:
                async with asyncio.timeout(STATUS_TIMEOUT_S):
                    return await self._client.status(url)
            except (StoreError, TimeoutError):
                continue
        return None

    async def _tell(self, text: str) -> None:
        """Write down what is done where it is something else than before."""
        if text != self._told:
            self._told = text
            if text:
                LOG.warning("members of the store: %s", text)
            await self._client.put(PLAN_KEY, text)

    async def _do(self, step: Step) -> None:
        client = self._client
        if isinstance(step, AddLearner):
            await client.member_add([step.host.peer_url], learner=True)
        elif isinstance(step, Promote):
            await client.member_promote(step.member.id)
        elif isinstance(step, Remove):
            await client.member_remove(step.member.id)
        else:
            assert isinstance(step, Wait)


def member_view(one: Member, state: Status | None, leader: Status | None) -> MemberView:
    """A member for the plan, from the list and from its own answer."""
    healthy = state is not None and state.leader != 0 and not state.errors
    behind = leader.raft_index - state.raft_applied_index if state and leader else BEHIND_MAX + 1
    return MemberView(
        one.id,
        one.name,
        tuple(one.peer_urls),
        one.is_learner,
        healthy,
        behind <= BEHIND_MAX,
    )
