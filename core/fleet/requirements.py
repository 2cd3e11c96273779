"""What a unit's [X-Fleet] section asks of the machine it runs on.

The options are fleet's. fleet skipped keys it did not know and metadata it could not split, so
that a typing error let a unit run anywhere; here both are refused.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import lru_cache
from typing import Final

from trimaran.errors import InvalidUnitError
from trimaran.fleet.names import UnitName, expand_specifiers, parse_unit_name
from trimaran.fleet.unitfile import UnitFile, UnitOption

SECTION: Final = "X-Fleet"
OPTIONS: Final = ("MachineID", "MachineOf", "MachineMetadata", "Conflicts", "Global")
LEGACY: Final = {
    "X-ConditionMachineID": "MachineID",
    "X-ConditionMachineBootID": "MachineID",
    "X-ConditionMachineOf": "MachineOf",
    "X-ConditionMachineMetadata": "MachineMetadata",
    "X-Conflicts": "Conflicts",
}
TRUE: Final = frozenset(("true", "yes", "1", "on", "t"))
FALSE: Final = frozenset(("false", "no", "0", "off", "f"))
MACHINE_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
# A shorter MachineID than the whole is taken from this length on, the one that tables show.
SHORT_ID_LENGTH: Final = 8


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a machine must be and have for a unit to run there.

    Attributes:
        machine_id: only this machine, whole or shortened id.
        machine_of: units that must be placed on the same machine.
        metadata: for each key the values of which one must match; keys are all required.
        conflicts: patterns of unit names that must not be on the same machine.
        is_global: run on every machine that fits.
    """

    machine_id: str | None = None
    machine_of: tuple[str, ...] = ()
    metadata: dict[str, frozenset[str]] = field(default_factory=dict)
    conflicts: tuple[str, ...] = ()
    is_global: bool = False

    def conflicts_with(self, name: str) -> bool:
        """Whether one of the patterns matches a unit's name."""
        return any(glob(pattern)(name) for pattern in self.conflicts)


@lru_cache(maxsize=4096)
def glob(pattern: str) -> Callable[[str], bool]:
    """A shell pattern (* ? [a-z] [^a-z]) as a test of names."""
    expression = re.compile(translate(pattern.replace("[^", "[!")))
    return lambda name: expression.match(name) is not None


def parse_requirements(name: UnitName, unit: UnitFile) -> Requirements:
    """Read and check the [X-Fleet] section of a unit.

    Args:
        name: the unit's name, for the specifiers; a template is checked as if it had an instance.
        unit: its parsed file.

    Returns:
        the requirements with specifiers expanded.

    Raises:
        InvalidUnitError: an option that is not known, has no or a malformed value, or contradicts
            another; the message says which line and what to write.
    """
    if name.is_template:
        name = replace(name, full=f"{name.prefix}@i.{name.suffix}", instance="i")
    values: dict[str, list[tuple[int, str]]] = {option: [] for option in OPTIONS}
    for option in unit.options:
        if option.section != SECTION and option.section.casefold() == SECTION.casefold():
            raise InvalidUnitError(
                f"line {option.line}: section [{option.section}] must be written [{SECTION}]"
            )
    for option in unit.section(SECTION):
        values[_canonical(option)].extend(_values(option, name))
    requirements = Requirements(
        machine_id=_machine_id(values["MachineID"]),
        machine_of=_machine_of(values["MachineOf"], name),
        metadata=_metadata(values["MachineMetadata"]),
        conflicts=_conflicts(values["Conflicts"]),
        is_global=_is_global(values["Global"]),
    )
    _check_combination(requirements)
    return requirements


def _canonical(option: UnitOption) -> str:
    name = LEGACY.get(option.name, option.name)
    if name == "Replaces":
        raise InvalidUnitError(
            f"line {option.line}: Replaces= is not supported; "
            "stop the other unit first, or use Conflicts= to keep the two apart"
        )
    if name not in OPTIONS:
        raise InvalidUnitError(
            f"line {option.line}: [{SECTION}] has no option {option.name}=; "
            f"it knows {', '.join(OPTIONS)}"
        )
    return name


def _values(option: UnitOption, name: UnitName) -> list[tuple[int, str]]:
    """The words of one line, specifiers expanded; double quotes hold spaces together."""
    words = re.findall(r'"[^"]*"|[^\s"]+|"', option.value)
    if '"' in words or '""' in words:
        raise InvalidUnitError(
            f"line {option.line}: {option.name}={option.value} has a quote without its partner "
            "or nothing between quotes"
        )
    if not words:
        raise InvalidUnitError(
            f"line {option.line}: {option.name}= has no value; give one or remove the line"
        )
    # A space outside quotes may end a pair or belong to its value; guessing wrong would place the
    # unit on a machine its author excluded.
    unquoted = len(words) > 1 and any(not word.startswith('"') for word in words)
    if unquoted and LEGACY.get(option.name, option.name) == "MachineMetadata":
        raise InvalidUnitError(
            f"line {option.line}: {option.name}={option.value} has spaces; write each pair "
            f'in double quotes, as {option.name}="key=value" "key2=value2"'
        )
    try:
        return [(option.line, expand_specifiers(word.strip('"'), name)) for word in words]
    except InvalidUnitError as error:
        raise InvalidUnitError(f"line {option.line}: {option.name}: {error}") from error


def _machine_id(values: list[tuple[int, str]]) -> str | None:
    for line, value in values:
        if not MACHINE_ID.fullmatch(value):
            raise InvalidUnitError(
                f"line {line}: MachineID={value} is no machine id; "
                "copy one from `trimaran machine list --full`"
            )
    if len({value for _line, value in values}) > 1:
        raise InvalidUnitError(
            f"line {values[-1][0]}: MachineID= names a second machine; "
            "give one, or use MachineMetadata= for a choice among several"
        )
    return values[0][1] if values else None


def _machine_of(values: list[tuple[int, str]], name: UnitName) -> tuple[str, ...]:
    for line, value in values:
        try:
            peer = parse_unit_name(value)
        except InvalidUnitError as error:
            raise InvalidUnitError(f"line {line}: MachineOf: {error}") from error
        if peer.is_template:
            raise InvalidUnitError(
                f"line {line}: MachineOf={value} is a template, which runs nowhere; "
                "name an instance of it"
            )
        if value == name.full:
            raise InvalidUnitError(f"line {line}: MachineOf={value} is the unit itself; remove it")
    return tuple(dict.fromkeys(value for _line, value in values))


def _metadata(values: list[tuple[int, str]]) -> dict[str, frozenset[str]]:
    metadata: dict[str, frozenset[str]] = {}
    for line, pair in values:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key or not value or "=" in value:
            raise InvalidUnitError(
                f"line {line}: MachineMetadata={pair} is not of the form key=value with one '='"
            )
        metadata[key] = metadata.get(key, frozenset()) | {value}
    return metadata


def _conflicts(values: list[tuple[int, str]]) -> tuple[str, ...]:
    for line, pattern in values:
        if re.search(r"\[[^\]]*$", pattern) or "[]" in pattern or "/" in pattern:
            raise InvalidUnitError(
                f"line {line}: Conflicts={pattern} is no pattern of unit names; use names with "
                "* ? and [a-z], brackets closed"
            )
    return tuple(dict.fromkeys(pattern for _line, pattern in values))


def _is_global(values: list[tuple[int, str]]) -> bool:
    result = False
    for line, value in values:
        if value.lower() not in TRUE | FALSE:
            raise InvalidUnitError(f"line {line}: Global={value} is neither true nor false")
        result = value.lower() in TRUE
    return result


def _check_combination(requirements: Requirements) -> None:
    given = {
        "MachineID": requirements.machine_id is not None,
        "MachineOf": bool(requirements.machine_of),
        "Conflicts": bool(requirements.conflicts),
        "Global": requirements.is_global,
    }
    refused = (
        ("MachineID", "MachineOf"),
        ("MachineID", "Conflicts"),
        ("MachineID", "Global"),
        ("Global", "MachineOf"),
    )
    for left, right in refused:
        if given[left] and given[right]:
            raise InvalidUnitError(
                f"[{SECTION}] has both {left}= and {right}=, which exclude each other; "
                "remove one of them"
            )
    for peer in requirements.machine_of:
        if requirements.conflicts_with(peer):
            raise InvalidUnitError(
                f"[{SECTION}] MachineOf={peer} is also matched by Conflicts=; "
                "a unit cannot be with and without another"
            )


def id_matches(wanted: str, machine_id: str) -> bool:
    """Whether a whole id or its short form names this machine."""
    if wanted == machine_id:
        return True
    return len(wanted) >= SHORT_ID_LENGTH and machine_id.startswith(wanted)
