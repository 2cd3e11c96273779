"""subnet.env: what container runtimes read to learn this host's subnet.

Keys and order are flannel's; the CNI plug-in and mk-docker-opts.sh read them.
"""

from ipaddress import IPv4Interface, IPv4Network


def format_environment(
    network: IPv4Network, subnet: IPv4Network, mtu: int, *, ip_masquerade: bool = False
) -> str:
    """Write the file's text.

    Args:
        network: the whole overlay.
        subnet: this host's part; the file names its first usable address.
        mtu: what fits through the overlay in one packet, in bytes.
        ip_masquerade: whether the daemon masquerades traffic that leaves the overlay.

    Returns:
        the text, with a line end after each key.
    """
    first = subnet.network_address + 1
    return (
        f"FLANNEL_NETWORK={network}\n"
        f"FLANNEL_SUBNET={first}/{subnet.prefixlen}\n"
        f"FLANNEL_MTU={mtu}\n"
        f"FLANNEL_IPMASQ={'true' if ip_masquerade else 'false'}\n"
    )


def parse_environment_subnet(text: str) -> IPv4Network | None:
    """Return the subnet a former run wrote, None where the text holds none."""
    for line in text.splitlines():
        name, separator, value = line.strip().partition("=")
        if name == "FLANNEL_SUBNET" and separator:
            try:
                return IPv4Interface(value).network
            except ValueError:
                return None
    return None
