"""`trimaran snapshot`: the whole store as a file, and a new cluster out of one."""

import hashlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from trimaran.daemons.cli_context import CommandContext, json_option, pass_context
from trimaran.daemons.snapshot_file import DIGEST_BYTES, SnapshotFacts, read_status
from trimaran.daemons.snapshot_file import restore as restore_file
from trimaran.errors import ConfigError, CorruptionError
from trimaran.store.options import read_options

if TYPE_CHECKING:
    from trimaran.client import Client

COLUMNS = ("HASH", "REVISION", "TOTAL_KEYS", "TOTAL_SIZE", "VERSION")
file_argument = click.argument("file", type=click.Path(dir_okay=False))


@click.group(
    epilog="""\b
Examples:
  trimaran snapshot save backup.snap
  trimaran snapshot status backup.snap
  trimaran snapshot restore backup.snap --data-dir /var/lib/trimaran/store
"""
)
def snapshot() -> None:
    """Save, check and restore the whole store."""


async def _fetch(client: "Client", file: BinaryIO) -> int:
    """Write a member's snapshot to file; returns its size."""
    digest, held, size = hashlib.sha256(), b"", 0
    async for _, blob in client.snapshot():
        file.write(blob)
        size += len(blob)
        # The last 32 bytes are the digest of the rest.
        held += blob
        digest.update(held[:-DIGEST_BYTES])
        held = held[-DIGEST_BYTES:]
    file.flush()
    os.fsync(file.fileno())
    if size <= DIGEST_BYTES or held != digest.digest():
        raise CorruptionError("the snapshot arrived damaged or cut: save it again")
    return size


@snapshot.command()
@file_argument
@json_option
@pass_context
def save(context: CommandContext, file: str) -> None:
    """Save the state of one member to FILE.

    The member goes on serving. It is the first endpoint that answers.
    """
    part = Path(f"{file}.part")
    try:
        with open(part, "wb") as target:
            size = context.run(lambda client: _fetch(client, target))
        os.replace(part, file)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    if context.json:
        context.print_json({"file": file, "size": size})
    else:
        click.echo(f"Snapshot saved at {file}")


def _print(context: CommandContext, facts: SnapshotFacts) -> None:
    if context.json:
        context.print_json(asdict(facts))
        return
    row = (f"{facts.hash:x}", facts.revision, facts.changes, facts.total_bytes, facts.version)
    context.print_table(COLUMNS, [row])


@snapshot.command()
@file_argument
@json_option
@pass_context
def status(context: CommandContext, file: str) -> None:
    """Check FILE and show what it holds."""
    _print(context, read_status(file))


@snapshot.command()
@file_argument
@click.option("--data-dir", help="Of the new member; must not be there.  [default: NAME.etcd]")
@click.option("--name", default="default", show_default=True, help="Of the new member.")
@click.option("--initial-cluster", help="NAME=URL,... of all new members.  [default: this one]")
@click.option("--initial-cluster-token", help="Sets the new cluster apart from the old.")
@click.option("--initial-advertise-peer-urls", help="Where the others reach this member.")
@click.option("--skip-hash-check", is_flag=True, help="Take a file without its SHA-256.")
@click.option(
    "--bump-revision",
    type=click.IntRange(min=0),
    default=0,
    help="Begin so many revisions past the saved one.",
)
@click.option(
    "--mark-compacted",
    is_flag=True,
    help="Count all revisions before as compacted; needs --bump-revision.",
)
@json_option
@pass_context
def restore(
    context: CommandContext,
    /,
    file: str,
    skip_hash_check: bool,
    bump_revision: int,
    mark_compacted: bool,
    **flags: str | None,
) -> None:
    """Make the data directory of a new cluster's member from FILE.

    Do so on every host of the new cluster, from the same file and with the same
    --initial-cluster, then start the members with the same flags.
    """
    if mark_compacted and bump_revision == 0:
        raise click.UsageError("--mark-compacted needs --bump-revision")
    words = [
        word
        for flag, value in flags.items()
        if value is not None
        for word in (f"--{flag.replace('_', '-')}", value)
    ]
    try:
        options = read_options(words, {})
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    facts = restore_file(
        file,
        options,
        skip_hash_check=skip_hash_check,
        bump_revision=bump_revision,
        mark_compacted=mark_compacted,
    )
    if context.json:
        context.print_json(asdict(facts))
    else:
        click.echo(f"Restored revision {facts.revision} into {options.data_dir}")
        if len(options.initial_cluster) > 1:
            click.echo("Restore on every host before any member is started.", err=True)
