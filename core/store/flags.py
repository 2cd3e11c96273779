"""Flags as etcd takes them: what one is, and how its text becomes a value."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from trimaran.errors import ConfigError

LOG_LEVELS: Final = ("debug", "info", "warn", "error", "panic", "dpanic", "fatal")
# As fractions of integers, so that 60000000000ns is exactly a minute.
_UNITS: Final = {
    "ns": (1, 10**9),
    "us": (1, 10**6),
    "µs": (1, 10**6),
    "ms": (1, 10**3),
    "s": (1, 1),
    "m": (60, 1),
    "h": (3600, 1),
}
_TRUTHS: Final = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}
_KIND_WORDS: Final = {
    "number": "a whole number of 64 bits",
    "duration": "a duration such as 10s or 1h30m",
    "bool": "true or false",
}


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: its name on the command line, the field it sets, and what it means.

    Attributes:
        name: without dashes.
        field: of the options.
        kind: text, list (of texts), urls, cluster, state, level, number, duration or bool.
        help: one line.
        older: the name under which earlier releases of etcd had it, which is still taken.
    """

    name: str
    field: str
    kind: str
    help: str
    older: str = ""

    @property
    def environment(self) -> str:
        """The environment variable that stands for the flag."""
        return variable_of(self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """All names on the command line, today's first."""
        return (self.name, self.older) if self.older else (self.name,)


def variable_of(name: str) -> str:
    """The environment variable that stands for the flag of a name."""
    return "ETCD_" + name.upper().replace("-", "_")


def parse_duration_s(text: str) -> float:
    """Parse a duration such as "1h30m" or "100ms"; "0" needs no unit.

    Returns:
        seconds.

    Raises:
        ValueError: the text is none.
    """
    if text == "0":
        return 0.0
    parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(text)
    return sum(float(number) * _UNITS[unit][0] / _UNITS[unit][1] for number, unit in parts)


def parse_urls(flag: str, text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of URLs with a host and a port.

    Raises:
        ConfigError: one of them is no such URL.
    """
    urls = parse_list(text)
    if not urls:
        raise ConfigError(f"--{flag} is empty: give URLs such as http://127.0.0.1:2379")
    for url in urls:
        check_url(flag, url)
    return urls


def parse_list(text: str) -> tuple[str, ...]:
    """Split a comma-separated list; empty parts are dropped."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def check_url(flag: str, url: str) -> None:
    """Refuse what is no http or https URL of host and port."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"--{flag}: {url}: {error}") from None
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("http", "https"):
        raise ConfigError(f"--{flag}: {url}: the URL must begin with http:// or https://")
    if not parts.hostname or port is None:
        raise ConfigError(f"--{flag}: {url}: the URL must name a host and a port")
    if parts.path not in ("", "/") or parts.query:
        raise ConfigError(f"--{flag}: {url}: the URL must not have a path")


def parse_cluster(flag: str, text: str) -> dict[str, tuple[str, ...]]:
    """Parse NAME=URL pairs; a name may come several times, once for each of its URLs."""
    cluster: dict[str, tuple[str, ...]] = {}
    for part in parse_list(text):
        name, equals, url = part.partition("=")
        if not equals or not name:
            raise ConfigError(f"--{flag}: '{part}' is not NAME=URL")
        check_url(flag, url)
        cluster[name] = (*cluster.get(name, ()), url)
    if not cluster:
        raise ConfigError(f"--{flag} is empty: give NAME=URL,... of the first members")
    return cluster


def _choice(flag: str, text: str, allowed: Sequence[str]) -> str:
    if text not in allowed:
        raise ConfigError(f"--{flag}: '{text}' is not one of {', '.join(allowed)}")
    return text


def _number(text: str) -> int:
    """Parse a whole number of 64 bits, as etcd's flags take it."""
    if not re.fullmatch(r"[+-]?[0-9]+", text) or not -(2**63) <= int(text) < 2**63:
        raise ValueError(text)
    return int(text)


def parse_value(flag: Flag, text: str) -> Any:
    """Parse one flag's text into the value of its field.

    Raises:
        ConfigError: the text does not fit the flag.
    """
    if flag.kind == "urls":
        return parse_urls(flag.name, text)
    if flag.kind == "list":
        return parse_list(text)
    if flag.kind == "cluster":
        return parse_cluster(flag.name, text)
    if flag.kind == "state":
        return _choice(flag.name, text, ("new", "existing"))
    if flag.kind == "level":
        return _choice(flag.name, text, LOG_LEVELS)
    try:
        if flag.kind == "number":
            return _number(text)
        if flag.kind == "duration":
            return parse_duration_s(text)
        if flag.kind == "bool":
            return _TRUTHS[text]
    except (ValueError, KeyError):
        words = _KIND_WORDS[flag.kind]
        raise ConfigError(f"--{flag.name}: '{text}' is not {words}") from None
    return text


def parse_flags(flags: Iterable[Flag], arguments: Sequence[str]) -> dict[str, str]:
    """Split a command line into flags, with one dash or two, as etcd's takes them.

    A switch stands alone for true; its value needs the equals sign: --pre-vote=false.

    Returns:
        texts by flag name, older names replaced by today's.

    Raises:
        ConfigError: an unknown flag, a missing value, or a word that is no flag.
    """
    known = {name: flag for flag in flags for name in flag.names}
    found: dict[str, str] = {}
    given: dict[str, str] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or word in ("-", "--"):
            raise ConfigError(f"'{word}' is not a flag; see --help")
        flag = known.get(name)
        if flag is None:
            raise ConfigError(f"unknown flag --{name}; see --help")
        if not equals and flag.kind == "bool":
            value = "true"
        elif not equals:
            if not words:
                raise ConfigError(f"--{name} needs a value")
            value = words.pop(0)
        if given.setdefault(flag.name, name) != name:
            raise ConfigError(f"--{flag.name} and --{flag.older} are the same: give one of them")
        found[flag.name] = value
    return found


def environment_texts(flags: Iterable[Flag], environment: Mapping[str, str]) -> dict[str, str]:
    """Read the variables that stand for flags; one set to nothing is not set.

    Raises:
        ConfigError: a flag is set under both of its names.
    """
    found: dict[str, str] = {}
    for flag in flags:
        texts = [environment[v] for v in map(variable_of, flag.names) if environment.get(v)]
        if len(texts) > 1:
            raise ConfigError(
                f"{flag.environment} and {variable_of(flag.older)} are the same: unset one of them"
            )
        if texts:
            found[flag.name] = texts[0]
    return found
