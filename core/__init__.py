"""Trimaran: a group of plain Linux machines as one computer.

Three hulls: a replicated store that speaks etcd's protocol (`trimaran.store`), a fleet that runs
systemd units across machines (`trimaran.fleet`) and a network that gives every host a subnet
(`trimaran.net`). `trimaran.client` talks to any etcd v3 endpoint.
"""

if __name__ != "trimaran":
    raise ImportError("core/ is the source of package trimaran: run ./run build, import trimaran")

from trimaran._version import VERSION as __version__

__all__ = ["__version__"]
