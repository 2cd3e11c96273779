"""The real etcdctl, of 3.4 and of 3.5, finds no difference between etcd and trimaran-stored.

Most cases are lists of commands: they run on both servers, and the outputs must be equal once
identities, times, sizes and versions are masked. In a case, `{rev+N}` counts from the revision at
its start and `{lease}` is the lease granted last; text after ` <<< ` is the standard input.
"""

import os
import re
from collections.abc import Iterator

import pytest

from etcd_server import StoreServer, missing_reason
from etcdctl import VERSIONS, Etcdctl, Result, binary, call, reset, without_log
from trimaran.wire import etcd_pb2 as pb

REFERENCE = "3.5"
# Another kind than trimaran checks the test itself.
SUBJECT = os.environ.get("TRIMARAN_TEST_STORE", "trimaran")

FILL = (
    "put a 1",
    "put b 3",
    "put c 2",
    "put ab ''",
    "put b 0",
    "put dir/x deep",
    "put dir/y deeper",
    "del c",
    "put c 4",
)

CASES: dict[str, tuple[str, ...]] = {
    "put": (
        "put a 1",
        "put a 2 --prev-kv",
        "put new 1 --prev-kv",
        "put a 3 -w json",
        "put a 4 --prev-kv -w json",
        "put a 5 --prev-kv -w fields",
        "put a 6 -w table",
        "put stdin <<< from standard input",
        "get stdin",
        "put -- -dash value",
        "get -- -dash",
        "put a --ignore-value",
        "put none --ignore-value",
        "put a x --ignore-lease",
        "put none x --ignore-lease",
        "put a x --lease=77",
        "put '' x",
        "put",
        "put a b c",
        "put bytes 'ä €'",
        "get bytes --hex",
        "get bytes -w json",
        "get bytes -w fields",
    ),
    "get": (
        *FILL,
        "get a",
        "get none",
        "get a c",
        "get '' --prefix",
        "get a --prefix",
        "get dir/ --prefix",
        "get b --from-key",
        "get '' --from-key",
        "get '' --from-key --keys-only",
        "get a --print-value-only",
        "get '' --prefix --print-value-only",
        "get '' --prefix --limit=2",
        "get '' --prefix --limit=2 -w json",
        "get '' --prefix --count-only -w fields",
        "get '' --prefix --count-only -w json",
        "get '' --prefix --count-only",
        "get '' --prefix --consistency=s",
        "get '' --prefix --consistency=l",
        "get '' --prefix --consistency=x",
        "get a -w json",
        "get '' --prefix -w json",
        "get '' --prefix -w fields",
        "get a -w table",
        "get a -w nonsense",
        "get '' --prefix --keys-only -w json",
        "get a --prefix --from-key",
        "get a b --prefix",
        "get a b --from-key",
        "get",
    ),
    "get in order": (
        *FILL,
        *(
            f"get '' --prefix --sort-by={target} --order={order}"
            for target in ("CREATE", "KEY", "MODIFY", "VALUE", "VERSION")
            for order in ("ASCEND", "DESCEND")
        ),
        "get '' --prefix --sort-by=MODIFY --order=DESCEND --limit=2 -w json",
        "get '' --prefix --sort-by=MODIFY",
        "get '' --prefix --order=DESCEND --keys-only",
        "get '' --prefix --sort-by=nonsense",
        "get '' --prefix --order=nonsense",
    ),
    "get at a revision": (
        *FILL,
        "get b --rev={rev+2}",
        "get b --rev={rev+5} -w json",
        "get '' --prefix --rev={rev+4}",
        "get c --rev={rev+8}",
        "get c --rev={rev+7}",
        "get b --rev={rev+1}",
        "get b --rev={rev+100}",
        "get b --rev=-1",
    ),
    "del": (
        *FILL,
        "del a",
        "del a",
        "del b --prev-kv",
        "del dir/ --prefix --prev-kv -w json",
        "put d 1",
        "put e 1",
        "del d f -w fields",
        "del c --from-key",
        "get '' --prefix",
        "put z 1",
        "del '' --prefix -w json",
        "del a --prefix --from-key",
        "del",
    ),
    "txn": (
        "put a 1",
        'txn <<< value("a") = "1"\n\nput a 2\nget a\n\nput a no\n\n',
        'txn <<< value("a") = "1"\n\nput a 3\n\nget a\nput b else\ndel none\n\n',
        'txn -i <<< mod("a") > "0"\n\nget a\n\n\n',
        'txn -i <<< mod("a") = "{rev+2}"\n\nget \'\' --prefix\n\n\n',
        'txn -i <<< c("a") < "{rev+2}"\n\nput c 1\n\nput c 2\n\n',
        'txn -i <<< create("zzz") = "0"\n\nput zzz 1\n\n\n',
        'txn -i <<< ver("zzz") = "1"\nversion("a") > "1"\n\nget zzz\n\n\n',
        'txn -i <<< val("a") != "x"\n\nget a\n\nget b\n\n',
        'txn -i <<< value("a") < "9"\n\ndel zzz --prev-kv\n\n\n',
        'txn -i <<< value("none") != "x"\n\nget a\n\nget b\n\n',
        "txn <<< \nput q 1\nput r 2\n\n\n",
        'txn -w json <<< mod("a") > "0"\n\nget a\nput a 7\ndel q\n\n\n',
        'txn -w fields <<< mod("a") > "0"\n\nget a\nput a 8 --prev-kv\n\n\n',
        "txn <<< \nput q 1\nput q 2\n\n\n",
        "txn <<< \nput q 1\ndel q\n\n\n",
        "txn <<< \nget q --rev={rev+1000}\n\n\n",
        "txn <<< nonsense\n\n\n\n",
        'txn <<< mod("a") = "x"\n\n\n\n',
        "get '' --prefix -w json",
    ),
    # No comparison of leases: etcdctl ends with a panic over `lease("a") = "0"`, in both versions.
    "txn on a lease": (
        "lease grant 500",
        "put a 1 --lease={lease}",
        'txn -i <<< ver("a") = "1"\n\nput b 2 --lease={lease}\n\nget a\n\n',
        "lease timetolive {lease} --keys",
        "lease revoke {lease}",
        "get '' --prefix",
    ),
    "lease": (
        "lease grant 500",
        "put a 1 --lease={lease}",
        "put dir/b 1 --lease={lease}",
        "get a -w json",
        "get a -w fields",
        "lease timetolive {lease}",
        "lease timetolive {lease} --keys",
        "lease timetolive {lease} --keys -w json",
        "lease timetolive {lease} -w fields",
        "lease keep-alive {lease} --once",
        "lease keep-alive {lease} --once -w json",
        "lease list",
        "lease list -w json",
        "put a 2 --ignore-lease",
        "lease timetolive {lease} --keys",
        "put a 3",
        "lease timetolive {lease} --keys",
        "put a 4 --lease={lease}",
        "lease revoke {lease}",
        "lease revoke {lease}",
        "lease timetolive {lease} --keys",
        "lease keep-alive {lease} --once",
        "lease list",
        "get '' --prefix",
        "put x 1 --lease={lease}",
        "lease grant 600 -w json",
        "lease revoke {lease} -w json",
        "lease grant 9000000001",
        "lease grant",
        "lease grant x",
        "lease revoke nothex",
    ),
    "compaction": (
        *FILL,
        "compaction {rev+3}",
        "get b --rev={rev+2}",
        "get b --rev={rev+3}",
        "get '' --prefix --rev={rev+3}",
        "compaction {rev+3}",
        "compaction {rev+100}",
        "compaction {rev+6} --physical",
        "compaction {rev+7} -w json",
        "get '' --prefix --rev={rev+7} -w json",
        "get '' --prefix",
        "compaction",
        "compaction x",
    ),
    "endpoint": (
        "put a 1",
        "endpoint health",
        "endpoint health -w json",
        "endpoint health -w table",
        "endpoint health --cluster",
    ),
}


def split(line: str) -> tuple[str, str]:
    """Separate a command from its standard input."""
    command, _, stdin = line.partition(" <<< ")
    return command, stdin


def need(version: str, *kinds: str) -> None:
    for reason in map(missing_reason, kinds):
        if reason is not None:
            pytest.skip(reason)
    if binary(version) is None:
        pytest.skip(f"etcdctl {version} is not installed here; ./run test installs it")


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, StoreServer]]:
    """A running reference and subject."""
    need("3.4", REFERENCE, SUBJECT)
    with (
        StoreServer(REFERENCE, name="member") as reference,
        StoreServer(SUBJECT, name="member") as subject,
    ):
        yield {"reference": reference, "subject": subject}


@pytest.fixture(params=VERSIONS)
def tools(request: pytest.FixtureRequest, servers: dict[str, StoreServer]) -> list[Etcdctl]:
    """etcdctl of one version at the reference and at the subject, both emptied."""
    need(request.param)
    start = reset(list(servers.values()))
    made = [Etcdctl(request.param, server) for server in servers.values()]
    for tool in made:
        tool.revision = start
    return made


def run_all(tool: Etcdctl, lines: tuple[str, ...]) -> list[Result]:
    return [tool.run(*split(line)) for line in lines]


@pytest.mark.parametrize("name", CASES)
def test_same_output(name: str, tools: list[Etcdctl]) -> None:
    expected, actual = (run_all(tool, CASES[name]) for tool in tools)
    for should, got in zip(expected, actual, strict=True):
        # As a health check may take any time, so may its output be in any width.
        if "-w table" in should.line:
            should.output, got.output = (squeeze(r.output) for r in (should, got))
        assert str(got) == str(should)


def squeeze(table: str) -> str:
    """Make a table independent of the width of what is masked in it."""
    return re.sub(r"[\d.]+m?µ?s", "T", re.sub(r" +|-+", " ", table))


WATCHES: dict[str, str] = {
    "one key from a revision": "watch a --rev={rev+1}",
    "a prefix": "watch '' --prefix --rev={rev+1}",
    "with previous values": "watch '' --prefix --rev={rev+1} --prev-kv",
    "a range": "watch a c --rev={rev+1}",
    "in JSON": "watch '' --prefix --rev={rev+1} --prev-kv -w json",
    "in fields": "watch b --rev={rev+1} --prev-kv -w fields",
    "with progress": "watch a --rev={rev+1} --progress-notify",
    "from half way": "watch '' --prefix --rev={rev+5}",
    "with a command": "watch b --rev={rev+1} -- sh -c 'echo $ETCD_WATCH_EVENT_TYPE:"
    "$ETCD_WATCH_KEY:$ETCD_WATCH_VALUE'",
    "interactive": "watch -i <<< watch a --rev={rev+1}\nwatch dir/ --prefix --rev={rev+1}\n",
}


@pytest.mark.parametrize("name", WATCHES)
def test_watch(name: str, tools: list[Etcdctl]) -> None:
    outputs = []
    for tool in tools:
        run_all(tool, FILL[:5])
        with tool.background(*split(WATCHES[name])) as watch:
            # What follows comes live, or from history where the watcher is late: all the same.
            run_all(tool, FILL[5:])
            end = "put a end" if "b" not in WATCHES[name].split() else "put b end"
            tool.run(end)
            if not outputs:
                last = '"end"\n' if "command" in name else "end"
                watch.wait(lambda text, last=last: last in text or "ZW5k" in text)
                text = watch.output()
            else:
                text = watch.wait(lambda text: len(text) >= len(outputs[0]))
            outputs.append(tool.comparable(without_log(text)))
    if "interactive" in name or "command" in name:
        # Two watchers of one stream, or events and what the commands say, come in any order.
        outputs = ["\n".join(sorted(text.splitlines())) for text in outputs]
    if "JSON" in name or "fields" in name:
        # What shares a response, and its revision, depends on when the watcher caught up.
        outputs = ["".join(events(text)) for text in outputs]
    assert outputs[1] == outputs[0]
    assert outputs[0]


def events(text: str) -> list[str]:
    """Cut the events out of the responses in JSON or in fields."""
    if text.startswith("{"):
        return re.findall(r'\{(?:"type":1,)?"kv":\{.*?\}(?:,"prev_kv":\{.*?\})?\}', text)
    header = ('"Revision', '"ClusterID', '"MemberID', '"RaftTerm', "\n")
    return [line for line in text.splitlines(keepends=True) if not line.startswith(header)]


def test_watch_below_the_compacted_revision(tools: list[Etcdctl]) -> None:
    outputs = []
    for tool in tools:
        run_all(tool, (*FILL, "compaction {rev+5}"))
        with tool.background("watch a --rev={rev+1}") as watch:
            code = watch.wait_end()
            outputs.append((code, without_log(watch.output())))
    assert outputs[1] == outputs[0]


def test_watch_shows_what_happens_now(tools: list[Etcdctl]) -> None:
    for tool in tools:
        with tool.background("watch now") as watch:
            # Only a watcher that is there sees anything: put until it does.
            for _ in range(200):
                tool.run("put now tick")
                if watch.output():
                    break
            tool.run("put now last")
            assert watch.wait(lambda text: "last" in text).endswith("PUT\nnow\nlast\n")


def test_lease_keep_alive_renews(tools: list[Etcdctl]) -> None:
    outputs = []
    for tool in tools:
        tool.run("lease grant 3")
        with tool.background("lease keep-alive {lease}") as keeper:
            text = keeper.wait(lambda text: text.count("\n") >= 2)
            outputs.append(tool.comparable("".join(text.splitlines(keepends=True)[:2])))
        tool.run("lease revoke {lease}")
    assert outputs[1] == outputs[0]
    assert outputs[0].count("keepalived with TTL(3)") == 2


@pytest.mark.parametrize("command", ["endpoint status", "member list", "endpoint hashkv"])
@pytest.mark.parametrize("form", ["simple", "json", "table", "fields"])
def test_member_information(command: str, form: str, tools: list[Etcdctl]) -> None:
    shapes = []
    for tool in tools:
        tool.run("put a 1")
        result = tool.run(f"{command} -w {form}")
        assert result.code == 0, str(result)
        text = result.output
        # Numbers are sizes, indexes and identities here; versions of the server differ as well.
        text = re.sub(r"\d+(\.\d+)* ?[kM]?B|\d+\.\d+\.\d+|\b[0-9a-f]{12,16}\b|\d+", "N", text)
        shapes.append(re.sub(r" +|-+", " ", text))
    assert shapes[1] == shapes[0]


def test_lock_runs_a_command(tools: list[Etcdctl]) -> None:
    outputs = []
    for tool in tools:
        result = tool.run("lock name -- sh -c 'echo $ETCD_LOCK_KEY $ETCD_LOCK_REV; exit 3'")
        outputs.append(re.sub(r"name/[0-9a-f]+", "name/LEASE", str(result)))
    assert outputs[1] == outputs[0]
    assert "name/LEASE" in outputs[0]


def first_line(text: str) -> bool:
    return "\n" in text


def test_two_contend_for_a_lock(tools: list[Etcdctl]) -> None:
    for tool in tools:
        with tool.background("lock name") as first:
            assert re.fullmatch(r"name/[0-9a-f]+\n+", first.wait(first_line))
            with tool.background("lock name") as second:
                # Both keys are there: the second one is in the queue.
                count = 0
                while count < 2:
                    request = pb.RangeRequest(key=b"name/", range_end=b"name0", count_only=True)
                    count = call(tool.server, "KV/Range", request).count
                assert second.output() == ""
                assert first.interrupt() in (0, 1)
                assert re.fullmatch(r"name/[0-9a-f]+\n+", second.wait(first_line))
                assert second.output() != first.output()
                second.interrupt()


def test_two_contend_for_leadership(tools: list[Etcdctl]) -> None:
    for tool in tools:
        with (
            tool.background("elect -l race") as observer,
            tool.background("elect race one") as first,
        ):
            assert first.wait(lambda text: text.count("\n") == 2).endswith("\none\n")
            observer.wait(lambda text: "one" in text)
            with tool.background("elect race two") as second:
                count = 0
                while count < 2:
                    request = pb.RangeRequest(key=b"race/", range_end=b"race0", count_only=True)
                    count = call(tool.server, "KV/Range", request).count
                assert second.output() == ""
                first.interrupt()
                assert second.wait(lambda text: text.count("\n") == 2).endswith("\ntwo\n")
                seen = observer.wait(lambda text: "two" in text)
                values = [line for line in seen.splitlines() if not line.startswith("race/")]
                assert values == ["one", "two"]
                second.interrupt()
