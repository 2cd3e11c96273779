"""`trimaran env`: the way to the store, as variables that etcdctl reads."""

import os
import shlex

import click

from trimaran.daemons.cli_context import CommandContext, json_option, pass_context


@click.command()
@click.option("--unset", is_flag=True, help="Print what takes the variables back.")
@json_option
@pass_context
def env(context: CommandContext, unset: bool) -> None:
    """Print what etcdctl and other clients of etcd need to reach the store.

    \b
    For example:
      eval $(trimaran env)
      etcdctl member list
    """
    variables = {
        "ETCDCTL_API": "3",
        "ETCDCTL_ENDPOINTS": ",".join(context.endpoints),
        "ETCDCTL_CACERT": path(context.ca_cert),
        "ETCDCTL_CERT": path(context.cert),
        "ETCDCTL_KEY": path(context.key),
    }
    if context.json:
        context.print_json({name: value for name, value in variables.items() if value})
        return
    for name, value in variables.items():
        if unset:
            click.echo(f"unset {name}")
        elif value:
            click.echo(f"export {name}={shlex.quote(value)}")


def path(name: str | None) -> str:
    """A file as it is found from every directory."""
    return os.path.abspath(name) if name else ""
