"""`trimaran net`: configure the overlay network, look at it, and take it off a host."""

import asyncio
import json
import os
from dataclasses import fields
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final

import click

from trimaran.client import Client, Compare, Delete, Put
from trimaran.daemons.cli_context import CommandContext, json_option, pass_context
from trimaran.daemons.net_daemon import (
    DEFAULT_STATE_DIR,
    DEFAULT_SUBNET_FILE,
    NetStatus,
    require_net_admin,
)
from trimaran.daemons.net_files import StateFiles, read_host_id, read_json
from trimaran.daemons.netlink import Netlink, describe
from trimaran.errors import ConfigError, NetworkConfigError, StoreUnavailableError
from trimaran.net.config import DEFAULT_PREFIX, SUPPORTED_BACKENDS, NetworkConfig, parse_config
from trimaran.net.environment import parse_environment_subnet
from trimaran.net.kernel import KernelState, difference
from trimaran.net.overlay import owner_alias
from trimaran.net.view import NetworkView

EPILOG: Final = """\b
Examples:
  trimaran net config set --network 10.244.0.0/16 --backend vxlan
  trimaran net config get
  trimaran net leases
  trimaran net status
"""

prefix_option = click.option(
    "--prefix",
    default=DEFAULT_PREFIX,
    show_default=True,
    envvar="TRIMARAN_NET_PREFIX",
    help="Start of the network's keys in the store.",
)
state_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_STATE_DIR,
    show_default=True,
    envvar="TRIMARAN_NET_STATE_DIR",
    help="State directory of this host's daemon.",
)


@click.group(epilog=EPILOG)
def net() -> None:
    """Configure and inspect the overlay network."""


@net.command(epilog="\b\nExamples:\n  trimaran net status\n  trimaran net status --json")
@state_option
@json_option
@pass_context
def status(context: CommandContext, state_dir: Path) -> int:
    """Show what this host's network daemon is doing.

    Exits with 1 unless the overlay is in order.
    """
    found = read_json(StateFiles(state_dir, DEFAULT_SUBNET_FILE).status_path)
    if not isinstance(found, dict):
        raise ConfigError(
            f"no network daemon has run with {state_dir}; start it with `trimaran up` or "
            "trimaran-netd, or give its --state-dir"
        )
    names = {item.name for item in fields(NetStatus)}
    current = NetStatus(**{name: value for name, value in found.items() if name in names})
    if current.state != "stopped" and not Path(f"/proc/{current.pid}").exists():
        current.state, current.detail = "dead", f"process {current.pid} has ended without a word"
    if context.json:
        context.print_json(vars(current))
    else:
        print_status(context, current)
    return 0 if current.state == "running" else 1


def print_status(context: CommandContext, current: NetStatus) -> None:
    """Print a status for people."""
    rows = [
        ("state", f"{current.state}: {current.detail}"),
        ("network", f"{current.network} ({current.backend})" if current.network else "-"),
        ("subnet", current.subnet or "-"),
        ("device", f"{current.device or '-'}, MTU {current.mtu}" if current.mtu else "-"),
        ("underlay", f"{current.interface or '-'}, {current.public_ip or '-'}"),
        ("peers", str(current.peers)),
        ("store", current.store_error or "connected"),
        ("host id", current.host_id),
        ("prefix", current.prefix),
        *(("problem", text) for text in current.problems),
        *(("ignored", f"{subnet}: {why}") for subnet, why in current.ignored.items()),
    ]
    context.print_table(("FIELD", "VALUE"), rows)


@net.command(epilog="\b\nExamples:\n  trimaran net leases\n  trimaran net leases --json")
@prefix_option
@json_option
@pass_context
def leases(context: CommandContext, prefix: str) -> None:
    """List the hosts' subnets.

    TTL is the seconds a subnet stays its host's without a renewal; a record without lease is a
    reservation and stays for good.
    """
    context.print_table(
        ("SUBNET", "PUBLIC-IP", "BACKEND", "HOST", "TTL"),
        context.run(lambda client: collect_leases(client, prefix.rstrip("/"))),
    )


async def collect_leases(client: Client, prefix: str) -> list[tuple[str, ...]]:
    """Read every record and the time its lease has left."""
    view = await read_view(client, prefix)
    records = sorted(view.records.values(), key=lambda item: item.record.subnet)
    limit = asyncio.Semaphore(32)

    async def time_left(lease: int) -> str:
        if lease == 0:
            return "reserved"
        async with limit:
            return str((await client.lease_time_to_live(lease)).ttl_s)

    times = await asyncio.gather(*(time_left(item.lease) for item in records))
    rows: list[tuple[str, ...]] = [
        (
            str(item.record.subnet),
            str(item.record.public_ip),
            item.record.backend_type or "-",
            item.record.host_id or "-",
            left,
        )
        for item, left in zip(records, times, strict=True)
    ]
    return rows + [(key, "-", "-", why, "-") for key, why in sorted(view.bad_records.items())]


async def read_view(client: Client, prefix: str) -> NetworkView:
    """Read a whole network from the store."""
    view = NetworkView(prefix)
    result = await client.get(f"{prefix}/", prefix=True)
    view.replace(
        [
            (kv.key.decode(errors="replace"), kv.value, kv.mod_revision, kv.lease)
            for kv in result.kvs
        ],
        result.revision,
    )
    return view


@net.group()
def config() -> None:
    """Read and write the network's configuration."""


@config.command(
    "get",
    epilog="\b\nExamples:\n  trimaran net config get\n"
    "  trimaran net config get --json > network.json",
)
@prefix_option
@json_option
@pass_context
def get_config(context: CommandContext, prefix: str) -> None:
    """Show the configuration, with its defaults filled in; --json gives it as stored."""
    key = f"{prefix.rstrip('/')}/config"
    item = context.run(lambda client: client.get_one(key))
    if item is None:
        raise NetworkConfigError(
            f"there is no configuration at {key}; write one with `trimaran net config set`"
        )
    parsed = parse_config(item.value)
    if context.json:
        context.print_json(json.loads(item.value))
    else:
        context.print_table(("FIELD", "VALUE"), config_rows(parsed))


def config_rows(parsed: NetworkConfig) -> list[tuple[str, object]]:
    """Describe a configuration."""
    options = {item.name: getattr(parsed.backend, item.name) for item in fields(parsed.backend)}
    backend = options.pop("type")
    return [
        ("network", str(parsed.network)),
        (
            "subnets",
            f"{parsed.subnet_count} of /{parsed.subnet_length}, "
            f"{parsed.subnet_min} to {parsed.subnet_max}",
        ),
        ("backend", str(backend)),
        *((name.replace("_", "-"), option_text(name, value)) for name, value in options.items()),
    ]


def option_text(name: str, value: object) -> object:
    """An option of a backend as a table shows it."""
    return "the interface's, less 50" if name == "mtu" and value == 0 else value


def ignored_options(text: str, parsed: NetworkConfig) -> list[str]:
    """Name the keys of a document's backend that have no effect, most likely mistyped."""
    known = {item.name.replace("_", "") for item in fields(parsed.backend)}
    backend = next(
        (value for key, value in json.loads(text).items() if key.lower() == "backend"), None
    )
    return [name for name in backend or {} if name.lower() not in known]


@config.command(
    "set",
    epilog="""\b
Examples:
  trimaran net config set --network 10.244.0.0/16 --backend vxlan
  trimaran net config set --network 10.0.0.0/8 --subnet-len 22 --backend udp --option Port=8285
  trimaran net config set --file network.json
""",
)
@click.option("--network", help="Range of the whole overlay, e.g. 10.244.0.0/16.")
@click.option("--subnet-len", type=int, help="Prefix length of each host's subnet.")
@click.option("--subnet-min", help="First subnet to give out.")
@click.option("--subnet-max", help="Last subnet to give out.")
@click.option("--backend", type=click.Choice(SUPPORTED_BACKENDS), help="How packets travel.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the backend, e.g. VNI=7; may be repeated.",
)
@click.option("--file", "file", type=click.File("r"), help="Whole document as JSON; - for stdin.")
@click.option("--force", is_flag=True, help="Write it even where hosts lose their subnets by it.")
@prefix_option
@pass_context
def set_config(
    context: CommandContext, /, file: Any, prefix: str, force: bool, **values: Any
) -> None:
    """Check a configuration and write it; running daemons apply it at once.

    It is refused where hosts hold subnets it does not give out, unless --force is given.
    """
    prefix = prefix.rstrip("/")
    given = any(values.values())
    if (file is None) == (not given):
        raise click.UsageError("give either --file or --network and further options")
    text = file.read() if file is not None else json.dumps(build_document(**values))
    parsed = parse_config(text)
    for name in ignored_options(text, parsed):
        if file is None:
            raise click.UsageError(f"the backend {parsed.backend.type} has no option {name}")
        click.echo(f"warning: the backend {parsed.backend.type} ignores {name}", err=True)
    context.run(lambda client: write_config(client, prefix, text, parsed, force))
    if context.json:
        context.print_json(json.loads(text))
    else:
        context.print_table(("FIELD", "VALUE"), config_rows(parsed))


def build_document(
    network: str | None,
    subnet_len: int | None,
    subnet_min: str | None,
    subnet_max: str | None,
    backend: str | None,
    options: tuple[str, ...],
) -> dict[str, Any]:
    """Make the JSON document of the single options."""
    if network is None:
        raise click.UsageError("--network is missing, e.g. --network 10.244.0.0/16")
    chosen: dict[str, Any] = {"Type": backend or "vxlan"}
    for option in options:
        name, separator, value = option.partition("=")
        if not separator:
            raise click.UsageError(f"--option {option!r}: write it as NAME=VALUE")
        try:
            chosen[name] = json.loads(value)
        except ValueError:
            chosen[name] = value
    document = {
        "Network": network,
        "SubnetLen": subnet_len,
        "SubnetMin": subnet_min,
        "SubnetMax": subnet_max,
        "Backend": chosen,
    }
    return {name: value for name, value in document.items() if value is not None}


async def write_config(
    client: Client, prefix: str, text: str, parsed: NetworkConfig, force: bool
) -> None:
    """Write the configuration unless a host would lose its subnet.

    Raises:
        NetworkConfigError: naming the hosts, or if somebody else wrote it meanwhile.
    """
    view = await read_view(client, prefix)
    current = await client.get_one(view.config_key)
    losers = [
        f"{item.record.subnet} ({item.record.public_ip})"
        for item in view.records.values()
        if not parsed.fits(item.record.subnet)
    ]
    if losers and not force:
        shown = ", ".join(losers[:3]) + (", ..." if len(losers) > 3 else "")
        raise NetworkConfigError(
            f"{len(losers)} hosts would lose their subnets: {shown}; stop their containers and "
            "repeat with --force"
        )
    revision = current.mod_revision if current is not None else 0
    result = await client.txn(
        [Compare.mod(view.config_key, "=", revision)], [Put(view.config_key, text)]
    )
    if not result.succeeded:
        raise NetworkConfigError("the configuration was changed by someone else; try again")


@net.command(epilog="\b\nExamples:\n  trimaran net teardown\n  trimaran net teardown --keep-lease")
@click.option("--keep-lease", is_flag=True, help="Leave this host's record in the store.")
@click.option(
    "--host-id",
    default="",
    envvar="TRIMARAN_NET_HOST_ID",
    help="Identity of this host; by default the machine id.",
)
@click.option(
    "--subnet-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_SUBNET_FILE,
    show_default=True,
    envvar="TRIMARAN_NET_SUBNET_FILE",
    help="File that tells container runtimes the subnet.",
)
@prefix_option
@state_option
@pass_context
def teardown(
    context: CommandContext,
    keep_lease: bool,
    host_id: str,
    subnet_file: Path,
    prefix: str,
    state_dir: Path,
) -> None:
    """Take the overlay off this host: device, routes, subnet.env, state and record.

    Stop the daemon first.
    """
    require_net_admin()
    prefix = prefix.rstrip("/")
    files = StateFiles(state_dir, subnet_file)
    lock = files.lock()
    try:
        state = read_json(files.state_path)
        removed = remove_kernel_state(prefix, state if isinstance(state, dict) else {})
        removed += remove_files(files, state if isinstance(state, dict) else {})
        if not keep_lease:
            identity = host_id or read_host_id()
            removed += context.run(lambda client: remove_record(client, prefix, identity))
    except StoreUnavailableError:
        click.echo("trimaran: this host's record is left in the store", err=True)
        raise
    finally:
        os.close(lock)
    context.print_table(("REMOVED",), [(text,) for text in removed])


def remove_kernel_state(prefix: str, state: dict[str, Any]) -> list[str]:
    """Remove our devices, and our routes within the network last known.

    Raises:
        ConfigError: if the kernel refuses.
    """
    network: IPv4Network | None = None
    cache = state.get("network")
    if isinstance(cache, dict):
        network = parse_config(cache["config"]).network
    netlink = Netlink()
    try:
        actual = netlink.read().kernel
        steps = difference(KernelState(), actual, owner_alias(prefix), network)
        problems = netlink.apply(steps, lambda link: None)
    finally:
        netlink.close()
    if problems:
        raise ConfigError("; ".join(problems))
    return [describe(step) for step in steps]


def remove_files(files: StateFiles, state: dict[str, Any]) -> list[str]:
    """Remove the state, and subnet.env where it names our subnet."""
    removed = []
    if files.subnet_file.exists():
        subnet = parse_environment_subnet(files.subnet_file.read_text())
        if subnet is not None and str(subnet) == state.get("subnet"):
            files.subnet_file.unlink()
            removed.append(str(files.subnet_file))
    for path in (files.state_path, files.status_path):
        if path.exists():
            path.unlink()
            removed.append(str(path))
    return removed


async def remove_record(client: Client, prefix: str, host_id: str) -> list[str]:
    """Delete this host's records, each only as it was read."""
    removed = []
    view = await read_view(client, prefix)
    for item in view.records.values():
        if item.record.host_id == host_id:
            key = view.subnets_prefix + item.key
            await client.txn([Compare.mod(key, "=", item.mod_revision)], [Delete(key)])
            removed.append(f"record {key}")
    return removed
