"""Unit files: the text, its options by section, and the hash that tells versions apart.

The syntax is systemd.syntax(7). Where systemd skips a line it cannot read with a warning in some
machine's journal, this parser refuses it, because the author is not at that machine.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from trimaran.errors import InvalidUnitError

# A unit travels whole in one request of the store, beside others; etcd takes 1.5 MiB.
UNIT_BYTES_MAX: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class UnitOption:
    """One `name=value` line.

    Attributes:
        section: the section without brackets.
        name: left of the equals sign.
        value: right of it, continuation lines joined.
        line: the number of its first line, from 1.
    """

    section: str
    name: str
    value: str
    line: int


@dataclass(frozen=True, slots=True)
class UnitFile:
    """A parsed unit file.

    Attributes:
        text: the file as its author wrote it.
        options: every option in order.
    """

    text: str
    options: tuple[UnitOption, ...]

    def section(self, name: str) -> list[UnitOption]:
        """The options of every section of that name, in order."""
        return [option for option in self.options if option.section == name]

    @property
    def hash(self) -> str:
        """SHA-1 over the options: comments and layout do not make another version."""
        digest = hashlib.sha1(usedforsecurity=False)
        section = None
        for option in self.options:
            if option.section != section:
                section = option.section
                digest.update(f"[{section}]\n".encode())
            digest.update(f"{option.name}={option.value}\n".encode())
        return digest.hexdigest()

    @property
    def description(self) -> str:
        """What `Description=` says, or nothing."""
        for option in self.section("Unit"):
            if option.name == "Description":
                return option.value
        return ""


def parse_unit_file(text: str) -> UnitFile:
    """Read a unit file.

    Args:
        text: the content of the file.

    Returns:
        the options with their lines.

    Raises:
        InvalidUnitError: the text is too large, empty, or has a line that is no section, option
            or comment; the message says which line and what to write.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > UNIT_BYTES_MAX:
        raise InvalidUnitError(
            f"the unit file has {size} bytes; {UNIT_BYTES_MAX} are allowed. "
            "Keep data in a file of its own and name it in the unit"
        )
    _check_characters(text)
    options: list[UnitOption] = []
    section: str | None = None
    for number, line in _logical_lines(text):
        if line.startswith("["):
            section = _section_name(line, number)
        elif section is None:
            raise InvalidUnitError(
                f"line {number}: {_shown(line)} stands before any section; "
                "start with a line such as [Unit] or [Service]"
            )
        else:
            options.append(_option(section, line, number))
    if not options:
        raise InvalidUnitError("the unit file has no options; a service needs at least ExecStart=")
    return UnitFile(text, tuple(options))


def _check_characters(text: str) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        for character in line:
            if (character < " " and character not in "\t\r") or "\ud800" <= character <= "\udfff":
                raise InvalidUnitError(
                    f"line {number}: character {character!r} is not text; "
                    "is this a unit file in UTF-8?"
                )


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Join continued lines, drop comments and empty lines; each with its first line's number."""
    lines: list[tuple[int, str]] = []
    parts: list[str] = []
    start = 0
    for number, raw in enumerate(text.removesuffix("\n").split("\n"), 1):
        line = raw.strip()
        # systemd skips a comment in the middle of a continued value as well.
        if line.startswith(("#", ";")) or (not line and not parts):
            continue
        if not parts:
            start = number
        if line.endswith("\\"):
            parts.append(line[:-1].rstrip())
            continue
        parts.append(line)
        lines.append((start, " ".join(part for part in parts if part)))
        parts = []
    if parts:
        raise InvalidUnitError(
            f"line {start}: the value goes on with \\ but the file ends; remove the last \\"
        )
    return [(number, line) for number, line in lines if line]


def _section_name(line: str, number: int) -> str:
    name = line[1:-1]
    if not line.endswith("]") or not name.strip() or "[" in name or "]" in name:
        raise InvalidUnitError(
            f"line {number}: {_shown(line)} is no section; write it as [Service], alone on its line"
        )
    return name


def _option(section: str, line: str, number: int) -> UnitOption:
    name, equals, value = line.partition("=")
    name = name.strip()
    if not equals or not name or any(character.isspace() for character in name):
        raise InvalidUnitError(
            f"line {number}: {_shown(line)} is no option; write Name=value, "
            "or start the line with # for a comment"
        )
    return UnitOption(section, name, value.strip(), number)


def _shown(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:57] + "...")
