"""`trimaran member` and `trimaran status`: the store's members, and changing who they are."""

import asyncio
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from trimaran.daemons.cli_context import (
    CommandContext,
    json_option,
    pass_context,
    read_connection,
)
from trimaran.errors import (
    ETCD_ERRORS,
    ConfigError,
    StoreError,
    StoreUnavailableError,
    TrimaranError,
)

if TYPE_CHECKING:
    from trimaran.client import Client, Member, Status

COMPLETION_TIMEOUT_S: Final = 1.0
# Members must have been connected for five seconds before the voters may change.
REMOVAL_PATIENCE_S: Final = 8.0
STATUS_COLUMNS: Final = (
    *("ID", "NAME", "ROLE", "HEALTH", "VERSION", "SIZE"),
    *("TERM", "INDEX", "APPLIED", "REVISION", "CLIENTS"),
)


@click.group(
    epilog="""\b
Examples:
  trimaran member list
  trimaran member status                how each one is, and what `up` does next
  trimaran member remove host2          for good; another host takes its place
  trimaran member add host4             let host4 have a member again
  trimaran member scale 5               have five members from now on
  trimaran member move-leader host3     before working on the host that leads
"""
)
def member() -> None:
    """List, add and remove members of the store.

    A MEMBER is the name or the hexadecimal id that `trimaran member list` prints.
    """


def complete_member(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of members that begin like this; none where the store does not answer."""
    # While a word is completed, commands are read but not run, so the root has made no context.
    given = context.find_root().params
    host = read_connection()
    endpoints = tuple(str(given.get("endpoints") or "").split(","))
    if endpoints in ((), ("",), host.endpoints):
        options = CommandContext(host.endpoints, host.ca_cert, host.cert, host.key)
    else:
        options = CommandContext(endpoints, given["cacert"], given["cert"], given["key"])
    options.timeout_s = COMPLETION_TIMEOUT_S
    try:
        members = options.run(lambda client: client.members(linearizable=False))
    except (TrimaranError, click.ClickException):
        return []
    return [
        CompletionItem(one.name, help=f"{one.id:x}")
        for one in by_name(members)
        if one.name.startswith(incomplete)
    ]


member_argument = click.argument("name", metavar="MEMBER", shell_complete=complete_member)


def find_member(members: Sequence["Member"], name: str) -> "Member":
    """Find a member by its name or its id in hexadecimal digits.

    Raises:
        ConfigError: it is none of them, or the name of several.
    """
    found = [one for one in members if one.name == name]
    if not found and re.fullmatch(r"(0x)?[0-9a-fA-F]{1,16}", name):
        found = [one for one in members if one.id == int(name, 16)]
    if not found:
        names = ", ".join(f"{one.name or 'not started'} ({one.id:x})" for one in by_name(members))
        raise ConfigError(f"the store has no member {name}; there are {names}")
    if len(found) > 1:
        raise ConfigError(f"{len(found)} members are called {name}; give the id")
    return found[0]


def by_name(members: Sequence["Member"]) -> list["Member"]:
    """Members in the order people look for them."""
    return sorted(members, key=lambda one: (one.name, one.id))


@member.command("list")
@json_option
@pass_context
def list_members(context: CommandContext) -> None:
    """List the members of the store.

    \b
    For example:
      trimaran member list
      trimaran member list -o json
    """
    print_members(context, context.run(lambda client: client.members()))


def print_members(context: CommandContext, members: Sequence["Member"]) -> None:
    """Print members as `member list` does."""
    rows = [
        (f"{one.id:x}", one.name, one.peer_urls, one.client_urls, one.is_learner)
        for one in by_name(members)
    ]
    context.print_table(("ID", "NAME", "PEERS", "CLIENTS", "LEARNER"), rows)


@member.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--peer-urls",
    metavar="URL[,URL...]",
    help="Where its peers will reach it; not for hosts of `trimaran up`, which say so themselves.",
)
@click.option("--learner", is_flag=True, help="Without a vote, until it is promoted.")
@json_option
@pass_context
def add(context: CommandContext, name: str, peer_urls: str | None, learner: bool) -> None:
    """Add a member.

    NAME is a host of `trimaran up`: it may have a member from now on, and gets one when fewer are
    there than there shall be. With --peer-urls it is any store, which is then to be started with
    the options that are printed.

    \b
    For example:
      trimaran member add host4
      trimaran member add spare --learner --peer-urls http://10.0.0.9:2380
    """
    if peer_urls is None:
        from trimaran.daemons.up_hosts import let_have_member

        if learner:
            raise click.UsageError("--learner goes with --peer-urls")
        click.echo(context.run(lambda client: let_have_member(client, name)))
        return
    urls = [url.strip() for url in peer_urls.split(",") if url.strip()]
    added, members = context.run(lambda client: client.member_add(urls, learner=learner))
    pairs = [
        f"{name if one.id == added.id else one.name}={url}"
        for one in members
        for url in one.peer_urls
    ]
    start = {
        "ETCD_NAME": name,
        "ETCD_INITIAL_CLUSTER": ",".join(pairs),
        "ETCD_INITIAL_ADVERTISE_PEER_URLS": ",".join(added.peer_urls),
        "ETCD_INITIAL_CLUSTER_STATE": "existing",
    }
    if context.json:
        context.print_json({"id": f"{added.id:x}", "environment": start})
        return
    click.echo(f"member {added.id:x} added; start it with", err=True)
    for variable, value in start.items():
        click.echo(f'{variable}="{value}"')


@member.command()
@member_argument
@pass_context
def remove(context: CommandContext, name: str) -> None:
    """Remove a member for good; its data is of no more use.

    On hosts of `trimaran up` the host stays, without a member, and another host takes its place.

    \b
    For example:
      trimaran member remove host2
      trimaran member remove 8e9e05c52164694d
    """

    async def work(client: "Client") -> "Member":
        from trimaran.daemons.up_hosts import keep_without_member

        found = find_member(await client.members(), name)
        await keep_without_member(client, found)
        await remove_patiently(client, found.id)
        return found

    found = context.run(work)
    click.echo(f"member {found.id:x} {found.name} is removed".replace("  ", " "))


async def remove_patiently(client: "Client", member_id: int) -> None:
    """Remove a member; where others have come back only just, wait until that is allowed.

    Raises:
        StoreError: it is refused for another reason, or for this one all the time.
    """
    deadline_s = time.monotonic() + REMOVAL_PATIENCE_S
    while True:
        try:
            await client.member_remove(member_id)
            return
        except StoreError as error:
            if error.message == ETCD_ERRORS["MEMBER_NOT_FOUND"][1]:
                return  # the hosts have done it meanwhile
            is_early = error.message == ETCD_ERRORS["UNHEALTHY"][1]
            if not is_early or time.monotonic() > deadline_s:
                raise
        await asyncio.sleep(0.5)


@member.command()
@member_argument
@click.option(
    "--peer-urls",
    metavar="URL[,URL...]",
    required=True,
    help="Where its peers will reach it; hosts of `trimaran up` say so themselves.",
)
@pass_context
def update(context: CommandContext, name: str, peer_urls: str) -> None:
    """Tell the others under which URLs a member will be reached, then restart it with them.

    \b
    For example:
      trimaran member update 8e9e05c52164694d --peer-urls http://10.0.0.9:2380
    """
    urls = [url.strip() for url in peer_urls.split(",") if url.strip()]

    async def work(client: "Client") -> "Member":
        found = find_member(await client.members(), name)
        await client.member_update(found.id, urls)
        return found

    found = context.run(work)
    click.echo(f"member {found.id:x} {found.name} is at {','.join(urls)}".replace("  ", " "))


@member.command()
@member_argument
@pass_context
def promote(context: CommandContext, name: str) -> None:
    """Give a learner its vote. Hosts of `trimaran up` do this by themselves.

    \b
    For example:
      trimaran member promote host4
    """

    async def work(client: "Client") -> "Member":
        found = find_member(await client.members(), name)
        await client.member_promote(found.id)
        return found

    found = context.run(work)
    click.echo(f"member {found.id:x} {found.name} votes from now on")


@member.command("move-leader")
@click.argument("name", metavar="[MEMBER]", default="", shell_complete=complete_member)
@pass_context
def move_leader(context: CommandContext, name: str) -> None:
    """Hand the lead to another member; without a name to the one that is least behind.

    \b
    For example:
      trimaran member move-leader host3
    """

    async def work(client: "Client") -> "tuple[Member, Member]":
        members = await client.members()
        target = find_member(members, name) if name else None
        states = await ask_all(client, members)
        leader_id = next((state.leader for state in states.values() if state.leader), 0)
        leader = next((one for one in members if one.id == leader_id), None)
        if leader is None or leader_id not in states:
            raise ConfigError("no member leads that answers here; `trimaran member status`")
        if target is None:
            target = best_follower(members, states, leader)
        if target.id != leader.id:
            await client.move_leader(target.id, await answering_url(client, leader))
        return leader, target

    leader, target = context.run(work)
    if leader.id == target.id:
        click.echo(f"{target.name} ({target.id:x}) leads already")
    else:
        click.echo(f"{target.name} ({target.id:x}) leads, in place of {leader.name}")


def best_follower(
    members: Sequence["Member"], states: dict[int, "Status"], leader: "Member"
) -> "Member":
    """The voter that is least behind.

    Raises:
        ConfigError: there is no other voter that answers.
    """
    others = [
        one for one in members if one.id != leader.id and not one.is_learner and one.id in states
    ]
    if not others:
        raise ConfigError(f"there is no other voter that answers; {leader.name} goes on leading")
    return max(others, key=lambda one: states[one.id].raft_index)


async def answering_url(client: "Client", one: "Member") -> str | None:
    """The client URL at which a member answers, for what one member alone may be asked."""
    for url in one.client_urls:
        try:
            if (await client.status(url)).member_id == one.id:
                return url
        except (StoreError, ConfigError):
            continue
    return None


async def ask_all(client: "Client", members: Sequence["Member"]) -> dict[int, "Status"]:
    """Ask every member how it is, at the addresses it tells; those that answer, by id."""
    urls = [url for one in members for url in one.client_urls]
    client.pool.update(list(dict.fromkeys([*client.pool.urls, *urls])))
    states: dict[int, Status] = {}
    for one in members:
        for url in one.client_urls:
            try:
                state = await client.status(url)
            except StoreError:
                continue
            states[state.member_id] = state
            break
    return states


@member.command("status")
@json_option
@pass_context
def member_status(context: CommandContext) -> None:
    """Show how each member is: role, health, size, and how far it has come.

    On hosts of `trimaran up`, standard error tells what is done next about the members, or what
    that waits for.

    \b
    For example:
      trimaran member status
      trimaran member status -o json
    """

    async def work(client: "Client") -> tuple[list[tuple[object, ...]], str]:
        from trimaran.daemons.up_hosts import read_plan

        members = await client.members(linearizable=False)
        states = await ask_all(client, members)
        rows = [status_row(one, states.get(one.id), context.json) for one in by_name(members)]
        return rows, await read_plan(client)

    rows, plan = context.run(work)
    context.print_table(STATUS_COLUMNS, rows)
    if plan and not context.json:
        click.echo(plan, err=True)


def status_row(one: "Member", state: "Status | None", json: bool) -> tuple[object, ...]:
    """A member as a row of `member status`."""
    nothing = None if json else ""
    head = (f"{one.id:x}", one.name)
    if state is None:
        role = "learner" if one.is_learner else nothing
        why = "no answer" if one.client_urls else "not started"
        return (*head, role, why, *[nothing] * 6, one.client_urls)
    return (
        *head,
        role_of(state),
        health_of(state),
        state.version,
        state.db_size if json else readable_size(state.db_size),
        state.raft_term,
        state.raft_index,
        state.raft_applied_index,
        state.revision,
        one.client_urls,
    )


def readable_size(size_bytes: int) -> str:
    """Give a size for people: three digits and a binary unit."""
    if size_bytes < 1000 * 1024:
        return f"{size_bytes / 1024:.0f} KiB"
    if size_bytes < 1000 * 1024**2:
        return f"{size_bytes / 1024**2:.1f} MiB"
    return f"{size_bytes / 1024**3:.2f} GiB"


def role_of(state: "Status") -> str:
    """What a member does in its group."""
    if state.is_learner:
        return "learner"
    return "leader" if state.leader == state.member_id else "follower"


def health_of(state: "Status") -> str:
    """What is wrong with a member, "healthy" where nothing is."""
    # An alarm comes as "memberID:123 alarm:NOSPACE ", and the member has its own column.
    errors = [re.sub(r"^memberID:\d+ ", "", error).strip() for error in state.errors]
    if not state.leader and not errors:
        errors = ["no leader"]
    return "; ".join(errors) or "healthy"


@member.command()
@click.argument("count", type=int, required=False, metavar="[NUMBER]")
@click.option(
    "--replace-after",
    "replace_after_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long a member is away until another host takes its place; 0 for never by itself.",
)
@json_option
@pass_context
def scale(context: CommandContext, count: int | None, replace_after_s: float | None) -> None:
    """Tell how many members `trimaran up` keeps, or change that.

    Hosts get or lose members one after the other. Three bear the loss of one, five of two.

    \b
    For example:
      trimaran member scale
      trimaran member scale 5
      trimaran member scale --replace-after 600
    """
    from trimaran.daemons.up_hosts import scale_store

    settings = context.run(lambda client: scale_store(client, count, replace_after_s))
    if context.json:
        fields = {"storeMembers": settings.store_members, "replaceAfter": settings.replace_after_s}
        context.print_json(fields)
        return
    after = f"{settings.replace_after_s:g} s away" if settings.replace_after_s else "no time"
    click.echo(
        f"the store shall have {settings.store_members} members; one is replaced after {after}"
    )


@click.command()
@json_option
@pass_context
def status(context: CommandContext) -> None:
    """Show each endpoint: whether it answers, its version, size, leader and revision.

    An endpoint that does not answer is shown so; that is an error only where none answers. With
    --json, the size is in bytes.
    """

    async def ask(client: "Client") -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        problem: StoreError | None = None
        for endpoint in context.endpoints:
            try:
                found = await client.status(endpoint)
            except StoreError as error:
                problem = error
                rows.append((endpoint, "no answer", *[None if context.json else ""] * 5))
                continue
            size: Any = found.db_size if context.json else readable_size(found.db_size)
            row = (health_of(found), found.version, f"{found.member_id:x}", role_of(found))
            rows.append((endpoint, *row, size, found.revision))
        if problem and all(row[1] == "no answer" for row in rows):
            raise StoreUnavailableError(problem.code, problem.message)
        return rows

    columns = ("ENDPOINT", "HEALTH", "VERSION", "MEMBER", "ROLE", "SIZE", "REVISION")
    context.print_table(columns, context.run(ask))
