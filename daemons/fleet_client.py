"""What the command line does to the fleet: reads it whole, and changes units' records."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trimaran.client import (
    Client,
    Compare,
    Delete,
    DeleteResult,
    EventType,
    Get,
    Put,
    RangeResult,
    WatchBatch,
)
from trimaran.errors import InvalidUnitError, UnitNotFoundError
from trimaran.fleet.cluster import Cluster, Unit, read_unit
from trimaran.fleet.names import UnitName, parse_unit_name, with_suffix
from trimaran.fleet.records import PREFIX, DesiredState, UnitRecord, unit_key
from trimaran.fleet.requirements import parse_requirements
from trimaran.fleet.unitfile import parse_unit_file

# etcd refuses a transaction of more than 128 operations.
DESTROY_MAX: Final = 100


async def read_cluster(client: Client) -> tuple[Cluster, int]:
    """Read the whole fleet at one revision, which is returned with it."""
    listed = await client.get(PREFIX, prefix=True)
    cluster = Cluster()
    for pair in listed.kvs:
        cluster.put(pair.key.decode(), pair.value, pair.mod_revision)
    return cluster, listed.revision


async def read_units(client: Client, name: UnitName) -> dict[str, Unit]:
    """Read a unit and, for an instance, its template."""
    units = {}
    for wanted in filter(None, (name.full, name.template)):
        pair = await client.get_one(unit_key(wanted))
        if pair is not None:
            units[wanted] = read_unit(wanted, UnitRecord.decode(pair.value), pair.mod_revision)
    return units


@dataclass(frozen=True, slots=True)
class Submission:
    """What submitting a unit comes to.

    Attributes:
        name: of the unit.
        outcome: created, replaced or unchanged.
        text: to be written, None where nothing is.
        warning: something the user should know.
    """

    name: str
    outcome: str
    text: str | None = None
    warning: str = ""


def runnable_name_of(argument: str) -> UnitName:
    """The same for a unit that is to run; raises InvalidUnitError for a template."""
    name = unit_name_of(argument)
    if name.is_template:
        instance = name.full.replace("@.", "@1.")
        raise InvalidUnitError(
            f"{name.full} is a template, which cannot run; start an instance such as {instance}"
        )
    return name


def unit_name_of(argument: str) -> UnitName:
    """The unit a command's argument names: a name, or a path to a unit file."""
    return parse_unit_name(with_suffix(Path(argument).name))


async def prepare(client: Client, argument: str, replace: bool) -> Submission:
    """Find the text of a unit and check it; nothing is written.

    The text comes from, in this order: the fleet itself, the file the argument names, for an
    instance its template in the fleet, then its template beside the named file.

    Args:
        client: of the store.
        argument: a unit name or the path of a unit file.
        replace: put the file's text in place of another text by that name.

    Raises:
        UnitNotFoundError: there is no such unit, file or template.
        InvalidUnitError: the unit file is wrong.
    """
    name = unit_name_of(argument)
    known = await read_units(client, name)
    text, source = _local_text(Path(argument).with_name(name.full), name)
    current = known.get(name.full)
    if current is not None:
        if text is None or text == current.text:
            return Submission(name.full, "unchanged")
        _check(name, text, source)
        if replace:
            return Submission(name.full, "replaced", text)
        same = parse_unit_file(text).hash == current.hash
        warning = (
            f"{source} differs from the {name.full} in the fleet, which is used; "
            "give --replace to use the file"
        )
        return Submission(name.full, "unchanged", warning="" if same else warning)
    template = known.get(name.template or "")
    if template is not None and source != name.full:
        text, source = template.text, template.name
    if text is None:
        raise UnitNotFoundError(_not_found(argument, name))
    _check(name, text, source)
    return Submission(name.full, "created", text)


async def submit(client: Client, submission: Submission) -> None:
    """Write what `prepare` found."""
    if submission.text is None:
        return
    text = submission.text
    if submission.outcome == "replaced":
        await _change(client, submission.name, lambda record: UnitRecord(text, record.desired))
        return
    key = unit_key(submission.name)
    record = UnitRecord(text, DesiredState.INACTIVE)
    # Where somebody else was faster, theirs stays.
    await client.txn([Compare.create(key, "=", 0)], [Put(key, record.encode())])


def _local_text(path: Path, name: UnitName) -> tuple[str | None, str]:
    """The text and the file name of the unit's file, or of its template's beside it."""
    for candidate in filter(None, (name.full, name.template)):
        file = path.with_name(candidate)
        if file.is_file():
            try:
                return file.read_text(encoding="utf-8"), candidate
            except UnicodeDecodeError as error:
                raise InvalidUnitError(f"{file} is not text in UTF-8: {error.reason}") from error
    return None, ""


def _not_found(argument: str, name: UnitName) -> str:
    tried = f"there is no unit {name.full} in the fleet and no file {argument}"
    if name.template:
        return f"{tried}, and no template {name.template} in either place"
    return f"{tried}; give the path of its unit file"


def _check(name: UnitName, text: str, source: str) -> None:
    try:
        parse_requirements(name, parse_unit_file(text))
    except InvalidUnitError as error:
        raise InvalidUnitError(f"{source or name.full}: {error}") from error


async def set_desired(client: Client, name: str, desired: DesiredState) -> None:
    """Change what is wanted of a unit.

    Raises:
        UnitNotFoundError: there is no such unit.
    """
    await _change(client, name, lambda record: UnitRecord(record.text, desired))


async def lower_desired(client: Client, name: str, desired: DesiredState) -> None:
    """Want less of a unit than so far; one that is lower already stays as it is.

    Raises:
        UnitNotFoundError: there is no such unit.
    """
    order = list(DesiredState)

    def change(record: UnitRecord) -> UnitRecord:
        lowest = min(record.desired, desired, key=order.index)
        return UnitRecord(record.text, lowest)

    await _change(client, name, change)


async def _change(client: Client, name: str, change: Callable[[UnitRecord], UnitRecord]) -> None:
    key = unit_key(name)
    pair = await client.get_one(key)
    while True:
        if pair is None:
            raise UnitNotFoundError(f"there is no unit {name} in the fleet")
        record = UnitRecord.decode(pair.value)
        changed = change(record)
        if changed == record:
            return
        result = await client.txn(
            [Compare.mod(key, "=", pair.mod_revision)], [Put(key, changed.encode())], [Get(key)]
        )
        if result.succeeded:
            return
        answer = result.responses[0]
        assert isinstance(answer, RangeResult)
        pair = answer.kvs[0] if answer.kvs else None


async def destroy(client: Client, names: Sequence[str]) -> list[str]:
    """Remove units from the fleet, together, so that none moves because another went first.

    Returns:
        the names that were not there.
    """
    missing: list[str] = []
    for start in range(0, len(names), DESTROY_MAX):
        batch = names[start : start + DESTROY_MAX]
        result = await client.txn([], [Delete(unit_key(name)) for name in batch])
        for name, answer in zip(batch, result.responses, strict=True):
            assert isinstance(answer, DeleteResult)
            if not answer.deleted:
                missing.append(name)
    return missing


async def follow(
    client: Client,
    timeout_s: float,
    is_done: Callable[[Cluster], bool],
    next_look_s: Callable[[], float | None] = lambda: None,
) -> Cluster:
    """Watch the fleet until a condition holds or the time is over.

    Args:
        client: of the store.
        timeout_s: how long to watch.
        is_done: asked after every change.
        next_look_s: seconds after which to ask again though nothing changed.

    Returns:
        the fleet as last seen.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        cluster, revision = await read_cluster(client)
        async with client.watch(PREFIX, prefix=True, start_revision=revision + 1) as watcher:
            waiting: asyncio.Future[WatchBatch] | None = None
            try:
                while not is_done(cluster):
                    left_s = deadline_s - time.monotonic()
                    if left_s <= 0:
                        return cluster
                    look_s = next_look_s()
                    waiting = waiting or asyncio.ensure_future(anext(watcher))
                    await asyncio.wait(
                        (waiting,), timeout=left_s if look_s is None else min(left_s, look_s)
                    )
                    if not waiting.done():
                        continue
                    batch, waiting = waiting.result(), None
                    if batch.compacted:
                        break
                    for event in batch.events:
                        key = event.kv.key.decode()
                        if event.type == EventType.PUT:
                            cluster.put(key, event.kv.value, event.kv.mod_revision)
                        else:
                            cluster.delete(key)
                else:
                    return cluster
            finally:
                if waiting is not None:
                    waiting.cancel()


def expand(arguments: Sequence[str]) -> list[str]:
    """Unit names of arguments, each once, in order."""
    return list(dict.fromkeys(unit_name_of(argument).full for argument in arguments))
