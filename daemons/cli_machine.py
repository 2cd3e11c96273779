"""`trimaran machine`: the machines of the fleet."""

from typing import Final

import click

from trimaran.daemons.cli_context import CommandContext, pass_context
from trimaran.daemons.cli_unit import print_rows, read, table_options
from trimaran.fleet.view import machine_rows

FIELDS: Final = ("machine", "ip", "metadata")


@click.group()
def machine() -> None:
    """List the machines of the fleet, and forget those that are gone."""


@machine.command("list")
@table_options(FIELDS, FIELDS)
@pass_context
def list_machines(context: CommandContext, full: bool, no_legend: bool, fields: str | None) -> None:
    """List the machines that are present, with address and metadata.

    \b
    For example:
      trimaran machine list
      trimaran machine list --full --no-legend --fields machine
    """
    rows = machine_rows(read(context), full or context.json)
    print_rows(context, rows, FIELDS, FIELDS, fields, no_legend)


@machine.command()
@click.argument("name", metavar="HOST")
@pass_context
def forget(context: CommandContext, name: str) -> None:
    """Forget a host of `trimaran up` that is gone for good.

    Its member of the store is removed, so that another host gets one; its certificate is renewed
    no more, and its name is free. HOST is a name, address, id, or machine id. The daemon must not
    run there any more.

    \b
    For example:
      trimaran machine forget host3
    """
    from trimaran.daemons.up_hosts import forget_host

    host = context.run(lambda client: forget_host(client, name))
    click.echo(f"{host.name} ({host.address}) is forgotten")
