"""Unit names, unit files and the [X-Fleet] section: what is accepted, and how refusals read."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimaran.errors import InvalidUnitError
from trimaran.fleet.names import expand_specifiers, parse_unit_name, with_suffix
from trimaran.fleet.requirements import Requirements, glob, id_matches, parse_requirements
from trimaran.fleet.unitfile import UNIT_BYTES_MAX, parse_unit_file


@pytest.mark.parametrize(
    ("text", "prefix", "instance", "suffix"),
    [
        ("web.service", "web", None, "service"),
        ("web@.service", "web", "", "service"),
        ("web@1.service", "web", "1", "service"),
        ("a.b@c.d@e.socket", "a.b", "c.d@e", "socket"),
        ("mnt-data.mount", "mnt-data", None, "mount"),
        ("odd\\x2dname:1_2.timer", "odd\\x2dname:1_2", None, "timer"),
    ],
)
def test_names_are_taken_apart(text: str, prefix: str, instance: str | None, suffix: str) -> None:
    name = parse_unit_name(text)
    assert (name.prefix, name.instance, name.suffix) == (prefix, instance, suffix)
    assert name.is_template == (instance == "")
    assert name.template == ("web@.service" if text == "web@1.service" else name.template)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "0 characters"),
        ("x" * 250 + ".service", "258 characters"),
        ("web", "no type; write e.g. web.service"),
        (".service", "the unit name is empty"),
        ("web.snapshot", "ends in .snapshot"),
        ("web.conf", "ends in .conf"),
        ("we b.service", "character outside"),
        ("../web.service", "character outside"),
        ("wéb.service", "character outside"),
        ("@1.service", "starts with @"),
        ("disk@1.mount", "can be templates"),
    ],
)
def test_wrong_names_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidUnitError, match=complaint.replace(".", r"\.")):
        parse_unit_name(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web", "web.service"),
        ("web@1", "web@1.service"),
        ("web.socket", "web.socket"),
        ("service", "service.service"),
        ("a.conf", "a.conf.service"),
    ],
)
def test_names_are_completed(text: str, expected: str) -> None:
    assert with_suffix(text) == expected


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("%n", "web@1.service", "web@1.service"),
        ("%N", "web@1.service", "web@1"),
        ("%p-%i", "web@1.service", "web-1"),
        ("%p", "web.service", "web"),
        ("100%%", "web.service", "100%"),
        ("plain", "web.service", "plain"),
    ],
)
def test_specifiers_are_expanded(text: str, unit: str, expected: str) -> None:
    assert expand_specifiers(text, parse_unit_name(unit)) == expected


@pytest.mark.parametrize("text", ["%H", "%m", "50%", "%", "%i"])
def test_other_specifiers_are_refused(text: str) -> None:
    with pytest.raises(InvalidUnitError, match="%"):
        expand_specifiers(text, parse_unit_name("web.service"))


UNIT = """\
# A comment.
[Unit]
Description = Says hello
; Another.

[Service]
Environment=A=1 \\
# inside a value
  B=2
ExecStart=/bin/echo [x] = y
"""


def test_files_are_read() -> None:
    options = [(o.section, o.name, o.value, o.line) for o in parse_unit_file(UNIT).options]
    assert options == [
        ("Unit", "Description", "Says hello", 3),
        ("Service", "Environment", "A=1 B=2", 7),
        ("Service", "ExecStart", "/bin/echo [x] = y", 10),
    ]
    assert parse_unit_file(UNIT).description == "Says hello"


def test_the_hash_is_of_what_counts() -> None:
    original = parse_unit_file(UNIT).hash
    assert parse_unit_file(UNIT.replace("# A comment.\n", "\n\n")).hash == original
    assert parse_unit_file(UNIT.replace("Description = ", "Description=")).hash == original
    assert parse_unit_file(UNIT.replace("hello", "bye")).hash != original
    assert parse_unit_file(UNIT.replace("[Service]", "[Unit]")).hash != original


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no options"),
        ("[Service]\n", "no options"),
        ("ExecStart=/bin/true\n", "line 1: .*before any section"),
        ("[Service]\nExecStart\n", "line 2: 'ExecStart' is no option"),
        ("[Service]\n=x\n", "line 2"),
        ("[Service]\nExec Start=x\n", "line 2"),
        ("[Service\nA=b\n", "line 1: .* is no section"),
        ("[]\nA=b\n", "line 1"),
        ("[a]]\nA=b\n", "line 1"),
        ("[Service] # here\nA=b\n", "line 1"),
        ("[Service]\nA=b \\\n", "line 2: .*the file ends"),
        ("[Service]\nA=\0\n", "line 2: .*not text"),
        ("[Service]\nA=\ud800\n", "line 2: .*not text"),
        ("[Service]\nA=" + "x" * UNIT_BYTES_MAX, "bytes"),
    ],
)
def test_wrong_files_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidUnitError, match=complaint):
        parse_unit_file(text)


@given(st.text(alphabet=st.sampled_from('[]=\\\n #;"%aX-Fleet\t\0é'), max_size=120))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidUnitError):
        unit = parse_unit_file("[X-Fleet]\n" + text)
        parse_requirements(parse_unit_name("a@1.service"), unit)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidUnitError):
        parse_unit_file(data.decode("latin-1"))


def requirements(section: str, name: str = "web@1.service") -> Requirements:
    text = f"[Service]\nExecStart=/bin/true\n[X-Fleet]\n{section}\n"
    return parse_requirements(parse_unit_name(name), parse_unit_file(text))


ID = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("", Requirements()),
        (f"MachineID={ID}", Requirements(machine_id=ID)),
        (f"X-ConditionMachineID={ID}", Requirements(machine_id=ID)),
        (f"X-ConditionMachineBootID={ID}", Requirements(machine_id=ID)),
        (f"MachineID={ID}\nMachineID={ID}", Requirements(machine_id=ID)),
        ("MachineOf=a.service\nMachineOf=b@%i.service",
         Requirements(machine_of=("a.service", "b@1.service"))),
        ("X-ConditionMachineOf=a.service", Requirements(machine_of=("a.service",))),
        ("MachineMetadata=disk=ssd", Requirements(metadata={"disk": frozenset({"ssd"})})),
        ('MachineMetadata="disk=ssd" "disk=nvme"\nMachineMetadata=region=eu',
         Requirements(metadata={"disk": frozenset({"ssd", "nvme"}), "region": frozenset({"eu"})})),
        ('MachineMetadata="place=New York"',
         Requirements(metadata={"place": frozenset({"New York"})})),
        ("X-ConditionMachineMetadata=name=%p%i",
         Requirements(metadata={"name": frozenset({"web1"})})),
        ("Conflicts=%p@*.service db.service\nConflicts=x?[a-c][^d].service",
         Requirements(conflicts=("web@*.service", "db.service", "x?[a-c][^d].service"))),
        ("X-Conflicts=a*", Requirements(conflicts=("a*",))),
        ("Global=true", Requirements(is_global=True)),
        ("Global=ON", Requirements(is_global=True)),
        ("Global=yes\nGlobal=0", Requirements()),
        ("Global=true\nMachineMetadata=a=b\nConflicts=x.service",
         Requirements(metadata={"a": frozenset({"b"})}, conflicts=("x.service",), is_global=True)),
    ],
)  # fmt: skip
def test_requirements_are_read(section: str, expected: Requirements) -> None:
    assert requirements(section) == expected


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("Machineof=a.service", r"line 4: \[X-Fleet\] has no option Machineof=.*MachineOf"),
        ("Weight=3", "line 4: .*no option Weight="),
        ("Replaces=a.service", "line 4: Replaces= is not supported"),
        ("MachineID=", "line 4: MachineID= has no value"),
        ("MachineID=not/an/id", "line 4: .*no machine id"),
        (f"MachineID={ID}\nMachineID=other-one", "line 5: .*second machine"),
        ("MachineOf=web", "line 4: MachineOf: .*no type"),
        ("MachineOf=web@.service", "line 4: .*template"),
        ("MachineOf=web@1.service", "line 4: .*the unit itself"),
        ("MachineMetadata=disk", "line 4: .*key=value"),
        ("MachineMetadata=disk=", "line 4: .*key=value"),
        ("MachineMetadata==ssd", "line 4: .*key=value"),
        ("MachineMetadata=a=b=c", "line 4: .*one '='"),
        ("MachineMetadata=a=b c=d", "line 4: .*double quotes"),
        ('MachineMetadata="a=b" c=d', "line 4: .*double quotes"),
        ('MachineMetadata="a=b', "line 4: .*quote without its partner"),
        ('MachineMetadata=""', "line 4: .*nothing between quotes"),
        ("MachineMetadata=host=%H", "line 4: MachineMetadata: specifier %H is not known"),
        ("Conflicts=web[1", "line 4: .*brackets closed"),
        ("Conflicts=a/b", "line 4: "),
        ("Conflicts=", "line 4: Conflicts= has no value"),
        ("Global=maybe", "line 4: Global=maybe is neither"),
        ("[x-fleet]\nGlobal=true", r"line 5: section \[x-fleet\] must be written \[X-Fleet\]"),
        (f"MachineID={ID}\nMachineOf=a.service", "MachineID= and MachineOf="),
        (f"MachineID={ID}\nConflicts=a.service", "MachineID= and Conflicts="),
        (f"MachineID={ID}\nGlobal=1", "MachineID= and Global="),
        ("Global=1\nMachineOf=a.service", "Global= and MachineOf="),
        ("MachineOf=a1.service\nConflicts=a*", "also matched by Conflicts="),
    ],
)
def test_wrong_requirements_are_refused(section: str, complaint: str) -> None:
    with pytest.raises(InvalidUnitError, match=complaint):
        requirements(section)


def test_the_instance_is_only_there_in_instances() -> None:
    assert requirements("MachineMetadata=n=%i", "web@.service").metadata
    with pytest.raises(InvalidUnitError, match=r"line 4: .*needs an instance"):
        requirements("MachineMetadata=n=%i", "web.service")


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("web@*.service", "web@1.service", True),
        ("web@*.service", "web.service", False),
        ("a?.service", "ab.service", True),
        ("a[^b].service", "ab.service", False),
        ("a[!b].service", "ac.service", True),
        ("web", "web.service", False),
        ("WEB*", "web.service", False),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    assert glob(pattern)(name) is expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(ID, True), (ID[:8], True), (ID[:7], False), (ID[1:9], False), ("", False)],
)
def test_machine_ids_may_be_shortened(wanted: str, expected: bool) -> None:
    assert id_matches(wanted, ID) is expected
