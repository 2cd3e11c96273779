"""`trimaran unit` and `trimaran machine` against a store without machines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from etcd_server import free_port
from trimaran.daemons.fleetd import address_towards, parse_metadata
from trimaran.errors import ConfigError

TRIMARAN = str(Path(sys.executable).parent / "trimaran")
SERVICE = "[Unit]\nDescription=A test\n[Service]\nExecStart=/bin/true\n"
COMMANDS = [
    "submit",
    "load",
    "start",
    "stop",
    "unload",
    "destroy",
    "list",
    "list-files",
    "status",
    "cat",
]


class Shell:
    """Runs the command line in a folder."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.endpoint = endpoint
        self.folder = folder

    def __call__(self, *arguments: str, code: int = 0) -> str:
        result = subprocess.run(
            [TRIMARAN, "--endpoints", self.endpoint, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.folder,
            check=False,
        )
        assert result.returncode == code, (arguments, result)
        assert "Traceback" not in result.stderr
        return result.stdout + result.stderr

    def write(self, name: str, text: str = SERVICE) -> None:
        """Put a unit file into the folder."""
        (self.folder / name).write_text(text)

    def files(self) -> dict[str, dict[str, str]]:
        """The rows of list-files by unit."""
        rows = json.loads(self("unit", "list-files", "--json"))
        return {row["unit"]: row for row in rows}


@pytest.fixture
def shell(store_endpoint: str, tmp_path: Path) -> Shell:
    """The command line with a fresh store of each kind."""
    return Shell(store_endpoint, tmp_path)


def test_submitting_and_looking(shell: Shell) -> None:
    shell.write("a.service")
    shell.write("b@.service", SERVICE + "[X-Fleet]\nConflicts=%p@*\n")
    assert shell("unit", "submit", "a", "b@.service") == (
        "Unit a.service created\nUnit b@.service created\n"
    )
    assert shell("unit", "submit", "a") == "Unit a.service unchanged\n"
    assert shell("unit", "cat", "a") == SERVICE
    row = shell.files()["a.service"]
    assert (row["dstate"], row["state"], row["target"]) == ("inactive", "inactive", "-")
    assert (row["global"], row["desc"], len(row["hash"])) == ("false", "A test", 40)
    assert shell("unit", "list") == "UNIT\tMACHINE\tACTIVE\tSUB\n"
    assert shell("machine", "list") == "MACHINE\tIP\tMETADATA\n"
    assert json.loads(shell("machine", "list", "--json")) == []


def test_where_a_units_text_comes_from(shell: Shell) -> None:
    # The template in the fleet comes before the one on disk, a file of its own before both.
    shell.write("web@.service", SERVICE.replace("test", "fleet's template"))
    shell("unit", "submit", "web@.service")
    shell.write("web@.service", SERVICE.replace("test", "template on disk"))
    shell.write("web@2.service", SERVICE.replace("test", "file"))
    shell.write("other@.service", SERVICE.replace("test", "other template"))
    shell("unit", "submit", "web@1", "web@2", "other@1")
    assert {name: row["desc"] for name, row in shell.files().items()} == {
        "other@1.service": "A other template",
        "web@.service": "A fleet's template",
        "web@1.service": "A fleet's template",
        "web@2.service": "A file",
    }
    shell.write("web@2.service", SERVICE.replace("test", "newer file"))
    assert "warning: web@2.service differs" in shell("unit", "submit", "web@2")
    assert shell.files()["web@2.service"]["desc"] == "A file"
    assert "replaced" in shell("unit", "submit", "--replace", "web@2")
    assert shell.files()["web@2.service"]["desc"] == "A newer file"


def test_why_nothing_runs_without_machines(shell: Shell) -> None:
    shell.write("a.service")
    output = shell("unit", "start", "--timeout=0.5", "a", code=1)
    assert output == "Unit a.service is not launched: no machine is present\n"
    assert shell.files()["a.service"]["dstate"] == "launched"
    assert "Why: no machine is present" in shell("unit", "status", "a", code=1)
    (found,) = json.loads(shell("unit", "status", "a", "--json", code=1))
    assert (found["desired"], found["machines"]) == ("launched", [])
    assert shell("unit", "list").splitlines()[1] == "a.service\t-\t-\t-"
    assert "requested" in shell("unit", "load", "--no-block", "a")
    assert "inactive" in shell("unit", "unload", "a")
    assert shell("unit", "destroy", "a") == "Unit a.service destroyed\n"
    assert shell.files() == {}
    assert "a.service is not in the fleet" in shell("unit", "destroy", "a")


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("start", "none"), 1, "there is no unit none.service in the fleet and no file none"),
        (("start", "none@1"), 1, "no template none@.service in either place"),
        (("start", "none@"), 1, "start an instance such as none@1.service"),
        (("stop", "none"), 1, "there is no unit none.service"),
        (("status", "none"), 1, "there is no unit none.service"),
        (("cat", "none"), 1, "there is no unit none.service"),
        (("submit", "x.device"), 1, "ends in .device"),
        (("start", "bad.service"), 1, "bad.service: line 2: 'nonsense' is no option"),
        (("start", "binary.service"), 1, "binary.service is not text in UTF-8"),
        (("submit", ""), 1, "the unit name is empty"),
        (("start",), 2, "Missing argument"),
        (("start", "--timeout=soon", "x"), 2, "not a valid float"),
        (("list", "--fields=machine,bogus"), 2, "--fields has no 'bogus'"),
        (("bogus",), 2, "No such command"),
    ],
)
def test_mistakes(shell: Shell, arguments: tuple[str, ...], code: int, complaint: str) -> None:
    shell.write("bad.service", "[Service]\nnonsense\n")
    (shell.folder / "binary.service").write_bytes(b"[Service]\n\xff\xfe=1\n")
    assert complaint in shell("unit", *arguments, code=code)
    assert shell.files() == {}


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    shell = Shell(f"http://127.0.0.1:{free_port()}", tmp_path)
    assert "--endpoints" in shell("--timeout=0.5", "unit", "list", code=3)


def test_destroying_what_is_not_there_does_not_claim_otherwise(shell: Shell) -> None:
    shell.write("here.service")
    shell("unit", "submit", "here.service")
    output = shell("unit", "destroy", "nope", "here")
    assert sorted(output.splitlines()) == [
        "Unit here.service destroyed",
        "Unit nope.service is not in the fleet",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, tmp_path: Path) -> None:
    text = Shell("http://127.0.0.1:1", tmp_path)("unit", command, "--help")
    assert f"trimaran unit {command}" in text.split("For example:")[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("disk=ssd", {"disk": "ssd"}),
        (" disk = ssd , zone=a, ", {"disk": "ssd", "zone": "a"}),
    ],
)
def test_metadata_of_a_machine(text: str, expected: dict[str, str]) -> None:
    assert parse_metadata(text) == expected


@pytest.mark.parametrize("text", ["disk", "=ssd", "disk=", "a=b=c", "a=b,a=b", "a=b;c=d"])
def test_wrong_metadata_of_a_machine(text: str) -> None:
    with pytest.raises(ConfigError, match="--metadata"):
        parse_metadata(text)


def test_the_address_is_never_the_loopback() -> None:
    assert not address_towards(["http://127.0.0.1:2379", "localhost:2379"]).startswith("127.")
