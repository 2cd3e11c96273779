"""`trimaran unit`: submit, load, start, stop, unload, destroy, list, list-files, status, cat."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import click

from trimaran.client import Client
from trimaran.daemons import fleet_client
from trimaran.daemons.cli_context import (
    EXIT_ERROR,
    CommandContext,
    json_option,
    pass_context,
)
from trimaran.errors import UnitNotFoundError
from trimaran.fleet import view
from trimaran.fleet.cluster import Cluster
from trimaran.fleet.names import with_suffix
from trimaran.fleet.records import DesiredState

TIMEOUT_S: Final = 60.0
# A unit that waits for another machine, metadata or the end of a conflict may wait for ever.
PATIENCE_S: Final = 5.0

UNIT_FIELDS: Final = ("unit", "machine", "load", "active", "sub", "hash")
UNIT_COLUMNS: Final = ("unit", "machine", "active", "sub")
FILE_FIELDS: Final = ("unit", "hash", "dstate", "state", "target", "global", "desc")
FILE_COLUMNS: Final = ("unit", "hash", "dstate", "state", "target")

Command = Callable[..., Any]


@click.group(
    epilog="""\b
Examples:
  trimaran unit start web.service          submit the file, run it, say where
  trimaran unit submit web@.service        a template
  trimaran unit start web@1 web@2 web@3    three instances of it
  trimaran unit status web@1               its state, or why it waits
  trimaran unit destroy web@3              stop it and forget it
"""
)
def unit() -> None:
    """Submit, start, stop and list units of the fleet.

    A UNIT is the name of a unit (without a type it is a service) or the path of a unit file.
    """


def table_options(fields: Sequence[str], columns: Sequence[str]) -> Callable[[Command], Command]:
    """The options every table of the fleet has."""

    def decorate(command: Command) -> Command:
        for option in (
            click.option("--full", "-l", is_flag=True, help="Show ids and hashes whole."),
            click.option("--no-legend", is_flag=True, help="Leave the heading out."),
            click.option(
                "--fields",
                metavar="NAME[,NAME...]",
                help=f"Columns to show, of {', '.join(fields)}. "
                f"[default: {','.join(columns)}; with --json all]",
            ),
            json_option,
        ):
            command = option(command)
        return command

    return decorate


def print_rows(
    context: CommandContext,
    rows: Sequence[dict[str, str]],
    known: Sequence[str],
    columns: Sequence[str],
    fields: str | None,
    no_legend: bool,
) -> None:
    """Print the chosen columns of a table of the fleet, of `columns` where none are chosen."""
    if fields is None:
        chosen = list(known if context.json else columns)
    else:
        chosen = [field.strip().lower() for field in fields.split(",") if field.strip()]
    for field in chosen:
        if field not in known:
            raise click.UsageError(f"--fields has no {field!r}; it knows {', '.join(known)}")
    table = [[row[field] for field in chosen] for row in rows]
    context.print_table([field.upper() for field in chosen], table, legend=not no_legend)


# Changing units.

units_argument = click.argument("units", nargs=-1, required=True, metavar="UNIT...")
replace_option = click.option(
    "--replace", is_flag=True, help="Use the file though the fleet has another text by that name."
)


def wait_options(command: Command) -> Command:
    """The options of commands that wait for the fleet."""
    command = click.option("--no-block", is_flag=True, help="Do not wait for the machines.")(
        command
    )
    return click.option(
        "--timeout",
        "wait_s",
        type=click.FloatRange(min=0),
        default=TIMEOUT_S,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the machines.",
    )(command)


@unit.command("submit")
@units_argument
@replace_option
@pass_context
def submit_units(context: CommandContext, units: tuple[str, ...], replace: bool) -> None:
    """Put unit files into the fleet without placing them.

    \b
    For example:
      trimaran unit submit web.service db@.service
    """

    async def work(client: Client) -> None:
        for name, outcome in (await submit_all(client, units, replace)).items():
            click.echo(f"Unit {name} {outcome}")

    context.run(work)


async def submit_all(client: Client, units: Sequence[str], replace: bool) -> dict[str, str]:
    """Submit every unit, or none where one is wrong. Returns the outcome of each."""
    found = [await fleet_client.prepare(client, argument, replace) for argument in units]
    for submission in found:
        if submission.warning:
            click.echo(f"warning: {submission.warning}", err=True)
        await fleet_client.submit(client, submission)
    return {submission.name: submission.outcome for submission in found}


@unit.command("load")
@units_argument
@replace_option
@wait_options
@pass_context
def load_units(
    context: CommandContext, units: tuple[str, ...], replace: bool, no_block: bool, wait_s: float
) -> int:
    """Place units on machines without starting them. Files are submitted first.

    \b
    For example:
      trimaran unit load backup.service backup.timer
    """
    return bring(context, units, replace, DesiredState.LOADED, 0 if no_block else wait_s)


@unit.command("start")
@units_argument
@replace_option
@wait_options
@pass_context
def start_units(
    context: CommandContext, units: tuple[str, ...], replace: bool, no_block: bool, wait_s: float
) -> int:
    """Run units, and say where each runs or why it does not.

    Files are submitted first; an instance such as web@1 is made from the template web@.

    \b
    For example:
      trimaran unit start ./web.service
      trimaran unit start web@1 web@2
      trimaran unit start --replace ./web.service
    """
    return bring(context, units, replace, DesiredState.LAUNCHED, 0 if no_block else wait_s)


def bring(
    context: CommandContext,
    units: Sequence[str],
    replace: bool,
    desired: DesiredState,
    wait_s: float,
) -> int:
    """Submit units, set what is wanted of them, and wait for it."""
    for argument in units:
        fleet_client.runnable_name_of(argument)

    async def work(client: Client) -> int:
        names = list(await submit_all(client, units, replace))
        for name in names:
            await fleet_client.set_desired(client, name, desired)
        return await wait_for(client, names, desired.value, wait_s)

    return context.run(work)


@unit.command("stop")
@units_argument
@wait_options
@pass_context
def stop_units(
    context: CommandContext, units: tuple[str, ...], no_block: bool, wait_s: float
) -> int:
    """Stop units; they stay loaded on their machines.

    \b
    For example:
      trimaran unit stop web@1
    """
    return lower(context, units, DesiredState.LOADED, 0 if no_block else wait_s)


@unit.command("unload")
@units_argument
@wait_options
@pass_context
def unload_units(
    context: CommandContext, units: tuple[str, ...], no_block: bool, wait_s: float
) -> int:
    """Stop units and take them from their machines; the fleet keeps their files.

    \b
    For example:
      trimaran unit unload web@1
    """
    return lower(context, units, DesiredState.INACTIVE, 0 if no_block else wait_s)


def lower(
    context: CommandContext, units: Sequence[str], desired: DesiredState, wait_s: float
) -> int:
    """Set what is wanted of units the fleet has, and wait for it."""

    async def work(client: Client) -> int:
        names = fleet_client.expand(units)
        for name in names:
            await fleet_client.lower_desired(client, name, desired)
        return await wait_for(client, names, desired.value, wait_s)

    return context.run(work)


@unit.command("destroy")
@units_argument
@wait_options
@pass_context
def destroy_units(
    context: CommandContext, units: tuple[str, ...], no_block: bool, wait_s: float
) -> int:
    """Stop units and remove them from the fleet. Units that are not there are no error.

    \b
    For example:
      trimaran unit destroy web@1 web@.service
    """

    async def work(client: Client) -> int:
        names = fleet_client.expand(units)
        for name in await fleet_client.destroy(client, names):
            click.echo(f"Unit {name} is not in the fleet", err=True)
            names.remove(name)
        return await wait_for(client, names, "destroyed", 0 if no_block else wait_s)

    return context.run(work)


async def wait_for(client: Client, names: Sequence[str], goal: str, wait_s: float) -> int:
    """Wait until every unit is where it should be, and print where that is.

    Returns:
        the exit code: 1 where a unit failed, waits for a machine, or took too long.
    """
    if wait_s == 0:
        for name in names:
            click.echo(f"Unit {name}: {goal} requested")
        return 0
    done: dict[str, view.Progress] = {}
    waits: dict[str, tuple[str, float]] = {}

    def look(cluster: Cluster) -> bool:
        patient = False
        for name in names:
            if name in done:
                continue
            current = view.progress(cluster, name)
            if current.done:
                done[name] = current
                report(cluster, name, goal, current)
                continue
            problem, since_s = waits.get(name, ("", 0.0))
            if not current.waiting or problem != current.problem:
                waits[name] = (current.problem, time.monotonic())
                patient = True
            elif time.monotonic() - since_s < PATIENCE_S:
                patient = True
        return len(done) == len(names) or not patient

    cluster = await fleet_client.follow(client, wait_s, look, lambda: 1.0)
    for name in names:
        if name not in done:
            report_unfinished(cluster, name, goal)
    failed = any(name not in done or done[name].problem for name in names)
    return EXIT_ERROR if failed else 0


def report(cluster: Cluster, name: str, goal: str, current: view.Progress) -> None:
    """Print what came of one unit."""
    if current.problem:
        click.echo(f"Unit {name}: {current.problem}", err=True)
    elif current.machines:
        places = [view.machine_label(cluster, machine) for machine in current.machines]
        click.echo(f"Unit {name} {goal} on {', '.join(places)}")
    else:
        click.echo(f"Unit {name} {goal}")


def report_unfinished(cluster: Cluster, name: str, goal: str) -> None:
    """Print why one unit is not there yet."""
    current = view.progress(cluster, name)
    reason = current.problem
    if not reason and current.machines:
        places = ", ".join(view.machine_label(cluster, item) for item in current.machines)
        state = cluster.states.get(name, {}).get(current.machines[0])
        shown = f"{state.active}/{state.sub}" if state else "not reported yet"
        reason = f"{shown} on {places}; it goes on without this command"
    click.echo(f"Unit {name} is not {goal}: {reason or 'no engine has placed it yet'}", err=True)


# Looking at units.


@unit.command("list")
@table_options(UNIT_FIELDS, UNIT_COLUMNS)
@pass_context
def list_units(context: CommandContext, full: bool, no_legend: bool, fields: str | None) -> None:
    """List units with the machines they are on and what systemd says there.

    \b
    For example:
      trimaran unit list
      trimaran unit list --no-legend --fields unit,active
    """
    cluster = read(context)
    rows = view.unit_rows(cluster, full or context.json)
    print_rows(context, rows, UNIT_FIELDS, UNIT_COLUMNS, fields, no_legend)


@unit.command("list-files")
@table_options(FILE_FIELDS, FILE_COLUMNS)
@pass_context
def list_unit_files(
    context: CommandContext, full: bool, no_legend: bool, fields: str | None
) -> None:
    """List every unit the fleet has, wanted state (DSTATE) beside present state.

    \b
    For example:
      trimaran unit list-files
      trimaran unit list-files --fields unit,global,desc
    """
    cluster = read(context)
    rows = view.unit_file_rows(cluster, full or context.json)
    print_rows(context, rows, FILE_FIELDS, FILE_COLUMNS, fields, no_legend)


def read(context: CommandContext) -> Cluster:
    """Read the fleet, and warn of records in it that cannot be used."""
    cluster, _revision = context.run(fleet_client.read_cluster)
    for key, problem in cluster.unreadable.items():
        click.echo(f"warning: {key}: {problem}", err=True)
    return cluster


@unit.command("status")
@units_argument
@json_option
@pass_context
def unit_status(context: CommandContext, units: tuple[str, ...]) -> int:
    """Show units in full: what is wanted, where they are, or why they wait.

    The exit code is 1 where one is not as wanted.

    \b
    For example:
      trimaran unit status web@1
    """
    cluster = read(context)
    found = [describe(cluster, name) for name in fleet_client.expand(units)]
    if context.json:
        context.print_json(found)
    else:
        click.echo("\n\n".join(map(format_description, found)))
    return 0 if all(item["problem"] == "" for item in found) else EXIT_ERROR


def describe(cluster: Cluster, name: str) -> dict[str, Any]:
    """Everything there is to say of one unit."""
    known = cluster.units.get(name)
    if known is None:
        raise UnitNotFoundError(f"there is no unit {name} in the fleet; see `trimaran unit list`")
    wanted = known.desired is not DesiredState.INACTIVE
    progress = view.progress(cluster, name)
    states = cluster.states.get(name, {})
    return {
        "unit": name,
        "hash": known.hash,
        "global": known.requirements.is_global,
        "desired": known.desired.value,
        "state": view.current_state(cluster, name).value,
        "machines": [
            {
                "machine": machine,
                "ip": cluster.machines[machine].public_ip if machine in cluster.machines else "",
                "load": state.load,
                "active": state.active,
                "sub": state.sub,
                "reason": state.reason,
            }
            for machine, state in sorted(states.items())
        ],
        "problem": known.problem or (progress.problem if wanted else ""),
    }


def format_description(item: dict[str, Any]) -> str:
    """One unit as text."""
    lines = [
        f"{item['unit']}{' (global)' if item['global'] else ''}",
        f"  Wanted: {item['desired']}   Present: {item['state']}",
    ]
    for place in item["machines"]:
        where = view.short_id(place["machine"]) + (f"/{place['ip']}" if place["ip"] else "")
        why = f" ({place['reason']})" if place["reason"] else ""
        states = f"{place['load']} {place['active']}/{place['sub']}"
        lines.append(f"      On: {where}  {states}{why}")
    if item["problem"]:
        lines.append(f"     Why: {item['problem']}")
    return "\n".join(lines)


@unit.command("cat")
@click.argument("name", metavar="UNIT")
@pass_context
def cat_unit(context: CommandContext, name: str) -> None:
    """Print a unit's file as it was submitted.

    \b
    For example:
      trimaran unit cat web@.service
    """
    name = with_suffix(name)
    parsed = fleet_client.unit_name_of(name)
    units = context.run(partial(fleet_client.read_units, name=parsed))
    if parsed.full not in units:
        raise UnitNotFoundError(f"there is no unit {name} in the fleet; see `trimaran unit list`")
    click.echo(units[parsed.full].text, nl=not units[parsed.full].text.endswith("\n"))
