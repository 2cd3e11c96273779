"""Unit names: types, templates and instances, as systemd and fleet spell them."""

import re
from dataclasses import dataclass
from typing import Final

from trimaran.errors import InvalidUnitError

# Types that live in a file an agent can write. Devices, scopes and the types systemd has dropped
# (snapshot, busname) cannot be brought up from a file.
SUFFIXES: Final = frozenset(
    ("automount", "mount", "path", "service", "slice", "socket", "swap", "target", "timer")
)
UNUSABLE_SUFFIXES: Final = frozenset(("busname", "device", "scope", "snapshot"))
TEMPLATE_SUFFIXES: Final = frozenset(("path", "service", "socket", "target", "timer"))
NAME_LENGTH_MAX: Final = 256
_BODY = re.compile(r"[A-Za-z0-9:_.\\@-]+")


@dataclass(frozen=True, slots=True)
class UnitName:
    """A valid unit name in its parts.

    Attributes:
        full: the whole name, e.g. `web@1.service`.
        prefix: what stands before `@`, or the name without its suffix.
        instance: None without `@`, empty for a template, else the instance.
        suffix: the unit type without its dot.
    """

    full: str
    prefix: str
    instance: str | None
    suffix: str

    @property
    def is_template(self) -> bool:
        """Whether this is `name@.type`, which can be instantiated but not started."""
        return self.instance == ""

    @property
    def template(self) -> str | None:
        """The template an instance is made from, None for any other unit."""
        return f"{self.prefix}@.{self.suffix}" if self.instance else None


def parse_unit_name(text: str) -> UnitName:
    """Take a unit name apart.

    Args:
        text: the name, with its suffix.

    Returns:
        the parts.

    Raises:
        InvalidUnitError: the text is no name of a unit that a fleet can run.
    """
    shown = text if len(text) <= 60 else text[:60] + "..."
    if not 0 < len(text) <= NAME_LENGTH_MAX:
        raise InvalidUnitError(
            f"unit name {shown!r} has {len(text)} characters; use 1 to {NAME_LENGTH_MAX}"
        )
    body, dot, suffix = text.rpartition(".")
    if dot and not body and suffix in SUFFIXES:
        raise InvalidUnitError(f"the unit name is empty; put one before .{suffix}")
    if not dot or not body:
        raise InvalidUnitError(f"unit name {shown!r} has no type; write e.g. {shown}.service")
    if suffix not in SUFFIXES:
        raise InvalidUnitError(
            f"unit name {shown!r} ends in .{suffix}; a fleet runs: {', '.join(sorted(SUFFIXES))}"
        )
    if not _BODY.fullmatch(body):
        raise InvalidUnitError(
            f"unit name {shown!r} has a character outside letters, digits and :-_.\\@"
        )
    prefix, at, instance = body.partition("@")
    if not at:
        return UnitName(text, body, None, suffix)
    if not prefix:
        raise InvalidUnitError(f"unit name {shown!r} starts with @; put a name before it")
    if suffix not in TEMPLATE_SUFFIXES:
        raise InvalidUnitError(
            f"unit name {shown!r}: only {', '.join(sorted(TEMPLATE_SUFFIXES))} can be templates"
        )
    return UnitName(text, prefix, instance, suffix)


def with_suffix(text: str) -> str:
    """Complete a name given without a type to a service, as systemctl does."""
    _body, dot, suffix = text.rpartition(".")
    return text if dot and suffix in SUFFIXES | UNUSABLE_SUFFIXES else text + ".service"


def expand_specifiers(text: str, name: UnitName) -> str:
    """Replace %n, %N, %p, %i and %% in an [X-Fleet] value.

    Args:
        text: the value as written.
        name: the unit it belongs to.

    Returns:
        the value to act on.

    Raises:
        InvalidUnitError: another specifier, or %i where there is no instance.
    """
    if "%" not in text:
        return text

    def replace(match: re.Match[str]) -> str:
        letter = match[1]
        if letter == "i" and not name.instance:
            raise InvalidUnitError(
                f"{match[0]} needs an instance, and {name.full} is not one; "
                f"name the unit {name.prefix}@INSTANCE.{name.suffix} or write the value out"
            )
        values = {
            "%": "%",
            "n": name.full,
            "N": name.full.rpartition(".")[0],
            "p": name.prefix,
            "i": name.instance or "",
        }
        if letter not in values:
            raise InvalidUnitError(
                f"specifier {match[0] or '%'} is not known in [X-Fleet]; "
                "%n %N %p %i and %% are (systemd expands the others in its own sections)"
            )
        return values[letter]

    return re.sub(r"%(.?)", replace, text)
