"""`trimaran token`: what hosts join the cluster with."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimaran.daemons.cli_context import CommandContext, json_option, pass_context
from trimaran.errors import ConfigError
from trimaran.store.flags import parse_duration_s

if TYPE_CHECKING:
    from trimaran.client import Client
    from trimaran.up.token import JoinToken, TokenRecord

LIFETIME_MAX_S = 366 * 86400


def read_lifetime(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Read a duration of days, hours, minutes and seconds, such as 2h30m or 7d."""
    days = re.fullmatch(r"(\d+)d", value)
    try:
        seconds = int(days[1]) * 86400 if days else int(parse_duration_s(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no duration; write 30m, 24h or 7d") from None
    if not 1 <= seconds <= LIFETIME_MAX_S:
        raise click.BadParameter("a token lasts from one second to a year")
    return seconds


def read_addresses(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Read HOST:PORT of join endpoints."""
    from trimaran.daemons.up_options import join_address

    try:
        return tuple(join_address(value) for value in values)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


@click.group()
def token() -> None:
    """Make and take back the tokens that hosts join with."""


@token.command()
@click.option(
    "--ttl",
    "lifetime_s",
    default="1h",
    show_default=True,
    callback=read_lifetime,
    metavar="DURATION",
    help="How long hosts may join with it: 30m, 24h, 7d.",
)
@click.option(
    "--uses",
    type=click.IntRange(min=1),
    help="How many hosts may join with it.  [default: any number]",
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    callback=read_addresses,
    metavar="HOST[:PORT]",
    help="Where hosts shall join, if not at the hosts with store members; may be repeated.",
)
@click.option("--note", default="", help="Kept beside it, to know it by.")
@json_option
@pass_context
def create(
    context: CommandContext,
    lifetime_s: int,
    uses: int | None,
    addresses: tuple[str, ...],
    note: str,
) -> None:
    """Make a token and print it. It is shown this once only.

    \b
    For example:
      trimaran token create
      trimaran token create --ttl 10m --uses 1 --note "host for Ann"
    """
    from trimaran.daemons.up_authority import read_certificates
    from trimaran.daemons.up_tokens import create_token

    if context.ca_cert is None:
        raise ConfigError(
            "tokens are for the store of `trimaran up`, whose certificates this command found "
            "none of: run it on a host of the cluster"
        )
    authority = next(iter(read_certificates(Path(context.ca_cert).read_bytes())))

    async def make(client: "Client") -> "tuple[JoinToken, TokenRecord]":
        return await create_token(client, authority, addresses, lifetime_s, uses, note)

    made, record = context.run(make)
    text = made.encode()
    if context.json:
        fields = {**row_of(record, json=True), "token": text, "addresses": list(made.addresses)}
        context.print_json(fields)
        return
    click.echo(text)
    ends = datetime.fromtimestamp(made.expires_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    many = "any number of hosts" if uses is None else f"{uses} host{'s' if uses > 1 else ''}"
    click.echo(
        f"token {record.id}: lets {many} join until {ends}; whoever has it can: keep it safe. "
        f"On a host: trimaran up --join TOKEN",
        err=True,
    )


@token.command("list")
@json_option
@pass_context
def list_all(context: CommandContext) -> None:
    """List tokens, the newest first: those that have ended as well, for a week.

    \b
    For example:
      trimaran token list
    """
    from trimaran.daemons.up_tokens import list_tokens

    rows = [row_of(record, context.json) for record in context.run(list_tokens)]
    columns = ("ID", "STATE", "USES", "LIMIT", "EXPIRES", "NOTE")
    context.print_table(columns, [tuple(row.values()) for row in rows])


@token.command()
@click.argument("name", metavar="ID")
@pass_context
def revoke(context: CommandContext, name: str) -> None:
    """Take a token back; hosts that have joined with it stay.

    ID is what `trimaran token list` prints, the beginning of that, or the token itself.

    \b
    For example:
      trimaran token revoke 4f2a
    """
    from trimaran.daemons.up_tokens import revoke_token

    record = context.run(lambda client: revoke_token(client, name))
    click.echo(f"token {record.id} is revoked; {record.uses} hosts have joined with it")


def row_of(record: "TokenRecord", json: bool) -> dict[str, Any]:
    """A token as a row of a table."""
    ends = datetime.fromtimestamp(record.expires_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    limit = record.uses_max if json or record.uses_max is not None else "none"
    return {
        "id": record.id,
        "state": record.state(time.time()),
        "uses": record.uses,
        "limit": limit,
        "expires": ends,
        "note": record.note,
    }
