"""The configuration file: etcd's keys in YAML or JSON, turned into the texts of flags."""

import contextlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import yaml

from trimaran.errors import ConfigError
from trimaran.store.flags import Flag

# Groups of the file, and the flags that their keys stand for.
_SECURITY: Final = {
    "cert-file": "cert-file",
    "key-file": "key-file",
    "client-cert-file": "client-cert-file",
    "client-key-file": "client-key-file",
    "client-cert-auth": "client-cert-auth",
    "trusted-ca-file": "trusted-ca-file",
    "auto-tls": "auto-tls",
}
GROUPS: Final[Mapping[str, Mapping[str, str]]] = {
    "client-transport-security": {
        **_SECURITY,
        "client-crl-file": "client-crl-file",
        "crl-file": "client-crl-file",
        "allowed-hostname": "client-cert-allowed-hostname",
        "allowed-hostnames": "client-cert-allowed-hostname",
    },
    "peer-transport-security": {
        **{key: f"peer-{name}" for key, name in _SECURITY.items()},
        "crl-file": "peer-crl-file",
        "allowed-cn": "peer-cert-allowed-cn",
        "allowed-cns": "peer-cert-allowed-cn",
        "allowed-hostname": "peer-cert-allowed-hostname",
        "allowed-hostnames": "peer-cert-allowed-hostname",
        "skip-client-san-verification": "peer-skip-client-san-verification",
    },
}


def _text(path: str, key: str, flag: Flag, value: Any) -> str:
    """Turn a value of the file into what the flag takes on the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value}ns" if flag.kind == "duration" else str(value)
    if isinstance(value, float) and value.is_integer():
        return _text(path, key, flag, int(value))
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    raise ConfigError(f"--config-file {path}: {key}: write a text, a number or true or false")


def _flat(path: str, content: Mapping[Any, Any]) -> Iterable[tuple[str, str, Any]]:
    """Give (key as written, name of the flag, value) of every setting."""
    for key, value in content.items():
        group = GROUPS.get(key)
        if group is None:
            yield str(key), str(key), value
            continue
        if value is None:
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"--config-file {path}: {key}: indent its settings below it")
        for inner, setting in value.items():
            yield f"{key}.{inner}", group.get(inner, ""), setting


def _parse(text: str) -> Any:
    """Parse JSON or YAML: the one is nearly the other, but for escaped pairs of surrogates."""
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return yaml.safe_load(text)


def read_config_file(
    flags: Iterable[Flag], path: str, text: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Read a configuration file.

    Args:
        flags: those that are known.
        path: of the file, for messages.
        text: its content.

    Returns:
        texts by flag name, and the keys that no flag stands for. Durations are whole nanoseconds
        in the file, as in etcd's, or texts such as 10s. A setting of nothing is not set.

    Raises:
        ConfigError: it cannot be read; the text says what is wrong where.
    """
    try:
        content = _parse(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"--config-file {path} is neither YAML nor JSON: {words}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config-file {path}: write NAME: VALUE lines, named as the flags")
    known = {name: flag for flag in flags for name in flag.names if flag.name != "config-file"}
    texts: dict[str, str] = {}
    keys: dict[str, str] = {}
    unknown: list[str] = []
    for key, name, value in _flat(path, content):
        flag = known.get(name)
        if flag is None:
            unknown.append(key)
            continue
        if value is None or value == "":
            continue
        if flag.name in texts:
            raise ConfigError(
                f"--config-file {path}: {keys[flag.name]} and {key} are the same: give one of them"
            )
        keys[flag.name] = key
        texts[flag.name] = _text(path, key, flag, value)
    return texts, tuple(sorted(unknown))
