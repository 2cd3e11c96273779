"""Whether a member is well, for probes: /health as etcd always had it, /livez and /readyz."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from aiohttp import web

from trimaran.errors import StoreError
from trimaran.wire import etcd_pb2 as pb

if TYPE_CHECKING:
    from trimaran.daemons.store_server import Stored

READ_TIMEOUT_S: Final = 5.0

# A check returns what is wrong, "" where nothing is.
Check = Callable[["Stored"], Awaitable[str]]


async def data_corruption(store: "Stored") -> str:
    """No member was found to differ from the others."""
    corrupt = any(kind == pb.CORRUPT for _, kind in store.member.alarms())
    return "alarm activated: CORRUPT" if corrupt else ""


async def serializable_read(store: "Stored") -> str:
    """This member answers reads from what it has."""
    store.member.range(pb.RangeRequest(key=b"health", limit=1).SerializeToString())
    return ""


async def linearizable_read(store: "Stored") -> str:
    """A majority confirms what this member reads."""
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            await store.read()
    except StoreError as error:
        return error.message
    except TimeoutError:
        return "context deadline exceeded"
    return ""


async def non_learner(store: "Stored") -> str:
    """This member votes."""
    return "not supported for learner" if store.node.is_learner else ""


LIVE: Final[Mapping[str, Check]] = {"serializable_read": serializable_read}
READY: Final[Mapping[str, Check]] = {
    "data_corruption": data_corruption,
    "serializable_read": serializable_read,
    "linearizable_read": linearizable_read,
    "non_learner": non_learner,
}


async def reason(store: "Stored", exclude: set[str], serializable: bool) -> str:
    """Return why /health calls the member ill, "" where it is well."""
    for _, kind in store.member.alarms():
        name = pb.AlarmType.Name(kind)
        if name not in exclude:
            return f"ALARM {name}"
    if store.node.leader == 0:
        return "RAFT NO LEADER"
    error = store.member.disk_error()
    if error:
        return f"DISK {os.strerror(error)}"
    failed = "" if serializable or store.node.is_learner else await linearizable_read(store)
    return f"RANGE ERROR:{failed}" if failed else ""


def add_routes(application: web.Application, store: "Stored") -> None:
    """Serve /health, /livez, /readyz and each of their checks alone."""

    async def health(request: web.Request) -> web.Response:
        exclude = set(request.query.getall("exclude", []))
        serializable = request.query.get("serializable") == "true"
        wrong = await reason(store, exclude, serializable)
        answer = {"health": "false" if wrong else "true", "reason": wrong}
        body = json.dumps(answer, separators=(",", ":"))
        return web.Response(text=body, status=503 if wrong else 200)

    application.router.add_get("/health", health)
    for path, checks in (("/livez", LIVE), ("/readyz", READY)):
        application.router.add_get(path, _probe_of(store, checks))
        for name, check in checks.items():
            application.router.add_get(f"{path}/{name}", _probe_of(store, {name: check}))


def _probe_of(
    store: "Stored", checks: Mapping[str, Check]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def probe(request: web.Request) -> web.Response:
        """Answer ok, or a line for each check where one fails or all are asked for."""
        exclude = set(request.query.getall("exclude", []))
        lines, ill = [], False
        for name, check in checks.items():
            wrong = "" if name in exclude else await check(store)
            ill = ill or bool(wrong)
            lines.append(f"[-]{name} failed: {wrong}" if wrong else f"[+]{name} ok")
        if ill:
            return web.Response(text="\n".join(lines) + "\n", status=503)
        lines = [*lines, "ok"] if "verbose" in request.query else ["ok"]
        return web.Response(text="\n".join(lines) + "\n")

    return probe
