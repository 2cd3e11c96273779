"""`trimaran member` and `trimaran status`: the store's members and their state."""

import re
from typing import TYPE_CHECKING

import click

from trimaran.daemons.cli_context import CommandContext, json_option, pass_context
from trimaran.errors import StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from trimaran.client import Client


@click.group()
def member() -> None:
    """List the members of the store."""


@member.command("list")
@json_option
@pass_context
def list_members(context: CommandContext) -> None:
    """List the members of the store."""
    members = context.run(lambda client: client.members())
    rows = [
        (
            f"{one.id:x}",
            one.name,
            one.peer_urls,
            one.client_urls,
            one.is_learner,
        )
        for one in members
    ]
    context.print_table(("ID", "NAME", "PEERS", "CLIENTS", "LEARNER"), rows)


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
            role = "leader" if found.leader == found.member_id else "follower"
            size = found.db_size if context.json else f"{found.db_size / 2**20:.1f} MiB"
            # An alarm comes as "memberID:123 alarm:NOSPACE ", and the member has its own column.
            errors = [re.sub(r"^memberID:\d+ ", "", error).strip() for error in found.errors]
            health = "; ".join(errors) or "healthy"
            row = (health, found.version, f"{found.member_id:x}", role, size, found.revision)
            rows.append((endpoint, *row))
        if problem and all(row[1] == "no answer" for row in rows):
            raise StoreUnavailableError(problem.code, problem.message)
        return rows

    columns = ("ENDPOINT", "HEALTH", "VERSION", "MEMBER", "ROLE", "SIZE", "REVISION")
    context.print_table(columns, context.run(ask))
