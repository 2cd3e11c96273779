"""The files of the network daemon: its state, its status, and subnet.env; all written whole."""

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final

from trimaran.errors import ConfigError
from trimaran.net.environment import parse_environment_subnet

MACHINE_ID: Final = Path("/etc/machine-id")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader or a crash sees the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Return a file's JSON value; None where the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def read_host_id() -> str:
    """Return the machine id.

    Raises:
        ConfigError: if the machine has none.
    """
    with contextlib.suppress(FileNotFoundError):
        text = MACHINE_ID.read_text().strip()
        if text and text != "uninitialized":
            return text
    raise ConfigError(f"{MACHINE_ID} holds no id; run systemd-machine-id-setup or give --host-id")


@dataclass
class StateFiles:
    """Where a daemon keeps what outlives it.

    Attributes:
        folder: the state directory.
        subnet_file: subnet.env.
    """

    folder: Path
    subnet_file: Path
    _written: dict[Path, str] | None = None

    @property
    def state_path(self) -> Path:
        """The subnet held last, and the cache of the network."""
        return self.folder / "net.json"

    @property
    def status_path(self) -> Path:
        """What `trimaran net status` shows."""
        return self.folder / "net-status.json"

    def lock(self) -> int:
        """Claim the directory for this process until the returned descriptor is closed.

        Raises:
            ConfigError: if another process has it, or it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / "net.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(
                f"state directory {self.folder}: {error.strerror}; give another with --state-dir"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigError(
                f"another network daemon uses {self.folder}; stop it, or give --state-dir"
            ) from error
        return descriptor

    def preferred_subnets(self, host_id: str) -> list[IPv4Network]:
        """Return the subnets former runs held, the surest first."""
        found: list[IPv4Network] = []
        state = read_json(self.state_path)
        if isinstance(state, dict) and state.get("host_id") == host_id:
            with contextlib.suppress(ValueError, TypeError):
                found.append(IPv4Network(state.get("subnet")))
        with contextlib.suppress(OSError):
            subnet = parse_environment_subnet(self.subnet_file.read_text())
            if subnet is not None and subnet not in found:
                found.append(subnet)
        return found

    def write(self, path: Path, text: str) -> None:
        """Write a file if its text differs from what this process wrote last."""
        self._written = self._written or {}
        if self._written.get(path) != text or not path.exists():
            write_atomically(path, text)
            self._written[path] = text
