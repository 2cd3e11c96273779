"""`trimaran lease`: grant, renew and revoke leases."""

from typing import TYPE_CHECKING

import click

from trimaran.daemons.cli_context import CommandContext, json_option, pass_context
from trimaran.errors import TrimaranError

if TYPE_CHECKING:
    from trimaran.client import Client


class LeaseNotFoundError(TrimaranError):
    """The store knows no lease of that id."""


def parse_lease(value: str) -> int:
    """Read a lease id, written in hexadecimal as the store's tools print it."""
    try:
        number = int(value, 16)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a lease id; `trimaran lease list` prints them"
        ) from None
    if not 0 < number < 1 << 63:
        raise click.BadParameter(f"{value!r} is out of range for a lease id")
    return number


@click.group()
def lease() -> None:
    """Grant, renew and revoke leases. Ids are hexadecimal."""


@lease.command()
@click.argument("ttl_s", metavar="SECONDS", type=click.IntRange(min=1))
@json_option
@pass_context
def grant(context: CommandContext, ttl_s: int) -> None:
    """Make a lease that ends SECONDS after its last renewal, and print its id.

    \b
    For example:
      trimaran kv put /here yes --lease $(trimaran lease grant 30)
    """
    granted = context.run(lambda client: client.lease_grant(ttl_s))
    if context.json:
        context.print_json({"id": f"{granted.id:x}", "ttl_s": granted.ttl_s})
    else:
        click.echo(f"{granted.id:x}")


@lease.command()
@click.argument("lease_id", metavar="ID", type=parse_lease)
@pass_context
def revoke(context: CommandContext, lease_id: int) -> None:
    """End a lease now; its keys are deleted."""
    context.run(lambda client: client.lease_revoke(lease_id))


@lease.command()
@click.argument("lease_id", metavar="ID", type=parse_lease)
@json_option
@pass_context
def timetolive(context: CommandContext, lease_id: int) -> None:
    """Print how long a lease still has, and its keys."""
    status = context.run(lambda client: client.lease_time_to_live(lease_id, keys=True))
    if status.ttl_s < 0:
        raise LeaseNotFoundError(f"there is no lease {lease_id:x}; it may have ended")
    keys = [key.decode("utf-8", "backslashreplace") for key in status.keys]
    row = (f"{status.id:x}", status.granted_ttl_s, status.ttl_s, keys)
    context.print_table(("ID", "GRANTED", "LEFT", "KEYS"), [row])


@lease.command("list")
@json_option
@pass_context
def list_leases(context: CommandContext) -> None:
    """List the ids of all leases."""
    leases = context.run(lambda client: client.leases())
    context.print_table(("ID",), [(f"{lease_id:x}",) for lease_id in leases])


@lease.command("keep-alive")
@click.argument("lease_id", metavar="ID", type=parse_lease)
@pass_context
def keep_alive(context: CommandContext, lease_id: int) -> None:
    """Renew a lease until Ctrl-C, or until it is lost, which is an error."""

    async def keep(client: "Client") -> None:
        status = await client.lease_time_to_live(lease_id)
        if status.ttl_s < 0:
            raise LeaseNotFoundError(f"there is no lease {lease_id:x}; it may have ended")
        async with client.keep_alive(lease_id, status.granted_ttl_s) as keeper:
            await keeper.lost()
        raise LeaseNotFoundError(f"lease {lease_id:x} has ended")

    context.run(keep)
