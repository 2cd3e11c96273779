"""`trimaran kv`: read, write and watch keys of the store."""

import asyncio
import base64
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from trimaran.daemons.cli_context import CommandContext, json_option, pass_context, visible
from trimaran.daemons.cli_lease import parse_lease
from trimaran.errors import StatusCode, StoreUnavailableError, TrimaranError

if TYPE_CHECKING:
    from trimaran.client import Client, Event, KeyValue, Watcher

# The watcher's own attempt takes as long as a call may; its reason comes a little later.
START_GRACE_S: Final = 1.0


class KeyNotFoundError(TrimaranError):
    """The one key asked for is not in the store."""


def parse_bytes(value: str | bytes) -> bytes:
    """The bytes of an argument as they stood on the command line, UTF-8 or not."""
    return os.fsencode(value)


@click.group()
def kv() -> None:
    """Read, write and watch keys of the store."""


def readable(data: bytes) -> str:
    """Text of bytes for a person; what is not UTF-8 or would steer the terminal is escaped."""
    return visible(data.decode("utf-8", "backslashreplace"))


def json_bytes(name: str, data: bytes) -> dict[str, str]:
    """A JSON member for bytes: text where it is UTF-8, else base64 under another name."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def json_key_value(kv: "KeyValue", with_value: bool = True) -> dict[str, Any]:
    """A key-value record as JSON."""
    return {
        **json_bytes("key", kv.key),
        **(json_bytes("value", kv.value) if with_value else {}),
        "create_revision": kv.create_revision,
        "mod_revision": kv.mod_revision,
        "version": kv.version,
        "lease": f"{kv.lease:x}" if kv.lease else None,
    }


def print_raw(data: bytes) -> None:
    """Write bytes as they are, and a line feed."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()


@kv.command()
@click.argument("key", type=parse_bytes, metavar="KEY")
@click.option("--prefix", is_flag=True, help="Every key that starts with KEY.")
@click.option("--from-key", is_flag=True, help="Every key from KEY on.")
@click.option(
    "--range-end",
    type=parse_bytes,
    metavar="KEY",
    help="Every key from KEY to this one, itself excluded.",
)
@click.option("--revision", type=click.IntRange(min=1), default=None, help="As of this revision.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="No more than this many.")
@click.option("--keys-only", is_flag=True, help="Print keys without values.")
@click.option("--count-only", is_flag=True, help="Print how many keys there are.")
@click.option("--serializable", is_flag=True, help="Take one member's word; may be stale.")
@json_option
@pass_context
def get(
    context: CommandContext,
    key: bytes,
    prefix: bool,
    from_key: bool,
    range_end: bytes | None,
    revision: int | None,
    limit: int | None,
    keys_only: bool,
    count_only: bool,
    serializable: bool,
) -> None:
    """Print the value of KEY, or a table of keys and values where more than one is asked for.

    \b
    For example:
      trimaran kv get /app/color
      trimaran kv get --prefix /app/ --keys-only
    """
    if prefix + from_key + (range_end is not None) > 1:
        raise click.UsageError("give one of --prefix, --from-key and --range-end")
    result = context.run(
        lambda client: client.get(
            key,
            prefix=prefix,
            from_key=from_key,
            range_end=range_end,
            revision=revision or 0,
            limit=limit or 0,
            keys_only=keys_only,
            count_only=count_only,
            serializable=serializable,
        )
    )
    one = not (prefix or from_key or range_end is not None)
    if count_only:
        context.print_json({"count": result.count}) if context.json else click.echo(result.count)
        return
    if one and not result.kvs:
        raise KeyNotFoundError(
            f"there is no key {readable(key)}; to list: trimaran kv get --prefix ''"
        )
    if context.json:
        context.print_json([json_key_value(kv, not keys_only) for kv in result.kvs])
    elif one:
        print_raw(result.kvs[0].key if keys_only else result.kvs[0].value)
    elif keys_only:
        for record in result.kvs:
            print_raw(record.key)
    else:
        rows = [(readable(record.key), readable(record.value)) for record in result.kvs]
        context.print_table(("KEY", "VALUE"), rows)


@kv.command()
@click.argument("key", type=parse_bytes, metavar="KEY")
@click.argument("value", type=parse_bytes, required=False, metavar="[VALUE]")
@click.option(
    "--lease",
    type=parse_lease,
    default=None,
    metavar="ID",
    help="Lease the key lives as long as.",
)
@click.option("--prev-kv", is_flag=True, help="Print the value that was there before.")
@json_option
@pass_context
def put(
    context: CommandContext, key: bytes, value: bytes | None, lease: int | None, prev_kv: bool
) -> None:
    """Store VALUE under KEY; without VALUE, what comes on standard input.

    \b
    For example:
      trimaran kv put /app/color blue
      trimaran kv put /app/config < config.json
    """
    if value is None and sys.stdin.isatty():
        click.echo("trimaran: type the value; Ctrl-D on an empty line ends it", err=True)
    data = sys.stdin.buffer.read() if value is None else value
    result = context.run(lambda client: client.put(key, data, lease=lease or 0, prev_kv=prev_kv))
    previous = result.prev_kv
    if context.json:
        before = {"previous": json_key_value(previous) if previous else None} if prev_kv else {}
        context.print_json({"revision": result.revision, **before})
    elif previous is not None:
        print_raw(previous.value)


@kv.command("del")
@click.argument("key", type=parse_bytes, metavar="KEY")
@click.option("--prefix", is_flag=True, help="Every key that starts with KEY.")
@click.option(
    "--range-end",
    type=parse_bytes,
    metavar="KEY",
    help="Every key from KEY to this one, itself excluded.",
)
@json_option
@pass_context
def delete(context: CommandContext, key: bytes, prefix: bool, range_end: bytes | None) -> None:
    """Delete KEY and print how many keys that were.

    \b
    For example:
      trimaran kv del /app/color
      trimaran kv del --prefix /app/
    """
    result = context.run(lambda client: client.delete(key, prefix=prefix, range_end=range_end))
    if context.json:
        context.print_json({"deleted": result.deleted, "revision": result.revision})
    else:
        click.echo(result.deleted)


@kv.command()
@click.argument("key", type=parse_bytes, metavar="KEY")
@click.option("--prefix", is_flag=True, help="Every key that starts with KEY.")
@click.option(
    "--revision", type=click.IntRange(min=1), default=None, help="Begin with this revision."
)
@click.option("--prev-kv", is_flag=True, help="Print the value before each change too.")
@json_option
@pass_context
def watch(
    context: CommandContext, key: bytes, prefix: bool, revision: int | None, prev_kv: bool
) -> None:
    """Print changes of KEY as they happen, until Ctrl-C: one line each, PUT or DELETE first.

    \b
    For example:
      trimaran kv watch --prefix /app/
      trimaran kv watch /app/color --revision 1
    """

    async def follow(client: "Client") -> None:
        watcher = client.watch(key, prefix=prefix, start_revision=revision or 0, prev_kv=prev_kv)
        async with watcher:
            await await_start(context, watcher)
            async for batch in watcher:
                if batch.compacted:
                    click.echo(
                        f"trimaran: revisions before {batch.revision} have been compacted away; "
                        "going on from there",
                        err=True,
                    )
                for event in batch.events:
                    print_event(context, event)
                sys.stdout.flush()

    context.run(follow)


async def await_start(context: CommandContext, watcher: "Watcher") -> None:
    """Wait until a store has taken the watch; later it may come and go unnoticed.

    Raises:
        StoreUnavailableError: none has within the time of one call.
    """
    try:
        async with asyncio.timeout(context.timeout_s + START_GRACE_S):
            await watcher.started()
    except TimeoutError:
        reason = watcher.error.message if watcher.error else "no store has taken the watch in time"
        raise StoreUnavailableError(StatusCode.UNAVAILABLE, reason) from None


def print_event(context: CommandContext, event: "Event") -> None:
    """Print one change: a line of fields, or with --json one object on a line."""
    if context.json:
        before = json_key_value(event.prev_kv) if event.prev_kv else None
        record = {"type": event.type.name, **json_key_value(event.kv), "previous": before}
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    fields = [event.type.name, readable(event.kv.key), readable(event.kv.value)]
    if event.prev_kv:
        fields.append(readable(event.prev_kv.value))
    click.echo("\t".join(fields))


@kv.command()
@click.argument("revision", type=click.IntRange(min=1))
@click.option("--physical", is_flag=True, help="Return when the space is free.")
@pass_context
def compact(context: CommandContext, revision: int, physical: bool) -> None:
    """Forget what keys were before REVISION."""
    context.run(lambda client: client.compact(revision, physical=physical))
