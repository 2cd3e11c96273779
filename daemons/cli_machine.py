"""`trimaran machine`: the machines of the fleet."""

from typing import Final

import click

from trimaran.daemons.cli_context import CommandContext, pass_context
from trimaran.daemons.cli_unit import print_rows, read, table_options
from trimaran.fleet.view import machine_rows

FIELDS: Final = ("machine", "ip", "metadata")


@click.group()
def machine() -> None:
    """List the machines of the fleet."""


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
