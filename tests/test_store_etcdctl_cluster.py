"""etcdctl of 3.4 and 3.5 finds no difference between three members of etcd and three of ours.

Each case is a list of command lines, run on a cluster of each kind one after the other; a line
begins with the members whose endpoints it is given. m0 leads when a case begins.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from difflib import unified_diff
from typing import Any

import grpc
import pytest

from etcd_server import StoreServer, missing_reason
from etcdctl import VERSIONS, binary, call
from member_site import MemberSite
from trimaran.wire import etcd_pb2 as pb

REFERENCE = "3.5"
SUBJECT = "trimaran"
KINDS = (REFERENCE, SUBJECT)
FLAGS = ("--quota-backend-bytes=6000000",)
FORMS = ("simple", "json", "table", "fields")
ALL = "m0 m1 m2"
LARGE = "x" * 400_000
ALARM_TIMEOUT_S = 0.2
ASKED_OF_LEARNER: tuple[tuple[str, Any], ...] = (
    ("KV/Range", pb.RangeRequest(key=b"a")),
    ("KV/Txn", pb.TxnRequest()),
    ("Lease/LeaseGrant", pb.LeaseGrantRequest(TTL=100)),
    ("Lease/LeaseRevoke", pb.LeaseRevokeRequest(ID=77)),
    ("Lease/LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=77)),
    ("Lease/LeaseLeases", pb.LeaseLeasesRequest()),
    ("Maintenance/Alarm", pb.AlarmRequest()),
    ("Maintenance/Hash", pb.HashRequest()),
    ("Maintenance/HashKV", pb.HashKVRequest()),
    ("Maintenance/MoveLeader", pb.MoveLeaderRequest(targetID=1)),
    ("Cluster/MemberList", pb.MemberListRequest()),
    ("Cluster/MemberRemove", pb.MemberRemoveRequest(ID=1)),
)


def run(site: MemberSite, *lines: str) -> None:
    """Run command lines, each where its first words say; "await X" lists alarms until X has one."""
    for line in lines:
        at, _, command = line.partition(" | ")
        command, _, stdin = command.partition(" <<< ")
        site.settle()
        if command.startswith("await "):
            site.run_until("alarm list", command.removeprefix("await "), at)
        else:
            site.run(command, at, stdin)


# One for each cluster. Servers end with the thread that started them: these live on.
THREADS = ThreadPoolExecutor(len(KINDS))

CASES: dict[str, tuple[str, ...]] = {
    "status": tuple(
        f"{at} | endpoint {line} -w {form}"
        for at, line in (("m1", "status --cluster"), (ALL, "status"))
        for form in FORMS
    ),
    "health": tuple(
        f"{at} | endpoint {line} -w {form}"
        for at, line in (("m1", "health --cluster"), (ALL, "health"))
        for form in FORMS
    ),
    "hashkv": (
        "m0 | put a 1",
        "m1 | put a 2",
        "m2 | put b 3",
        "m2 | del b",
        *(f"m1 | endpoint hashkv --cluster -w {form}" for form in FORMS),
        "m0 | endpoint hashkv --rev=2",
        "m2 | endpoint hashkv --rev=100000",
        "m1 | compaction --physical 3",
        f"{ALL} | endpoint hashkv",
        f"{ALL} | endpoint hashkv --rev=2",
        "m0 | endpoint hashkv --rev=-1",
    ),
    "move-leader": (
        f"{ALL} | move-leader {{m1}}",
        f"{ALL} | endpoint status",
        f"{ALL} | move-leader {{m1}}",
        "m0 | move-leader {m2}",
        "m0 m2 | move-leader {m0}",
        f"{ALL} | move-leader 123456789abcdef",
        "m1 | move-leader nonsense",
        "m1 | move-leader",
        "m1 | move-leader {m0} {m2}",
        "m1 | move-leader {m0}",
        f"{ALL} | endpoint status",
    ),
    "defrag": (
        "m0 | defrag",
        "m1 | defrag --cluster",
        f"{ALL} | defrag",
        "m0 | defrag -w json",
        "m0 | get a",
        "m0 | defrag nonsense",
    ),
    "alarm": (
        "m0 | alarm list",
        "m0 | alarm list -w json",
        "m0 | alarm list -w fields",
        "m0 | alarm list -w table",
        "m1 | alarm disarm",
        "m0 | alarm",
        "m0 | alarm list nonsense",
        "m0 | alarm disarm nonsense",
    ),
    "snapshot": (
        "m1 | snapshot save {folder}/good",
        f"{ALL} | snapshot save {{folder}}/bad",
        "m1 | snapshot save",
        "m1 | snapshot save {folder}/none/bad",
        "m1 | snapshot save {folder}/a {folder}/b",
        "m1 | snapshot status {folder}/none",
    ),
    "members": (
        *(f"m1 | member list -w {form}" for form in FORMS),
        "m1 | member add m3 --peer-urls={peer:m0}",
        "m1 | member remove 123456789abcdef",
        "m1 | member update 123456789abcdef --peer-urls={peer:m3}",
        "m1 | member update {m0} --peer-urls={peer:m1}",
        "m1 | member promote {m0}",
        "m1 | member promote nonsense",
    ),
}


def learner(site: MemberSite) -> None:
    """A learner refuses what only voters serve, and nobody takes it for a voter."""
    site.run_until("member add m3 --peer-urls={peer:m3} --learner", "added to cluster", at="m1")
    run(
        site,
        f"{ALL} | move-leader {{m3}}",
        "m1 | member promote {m3}",
        "m0 | member add m4 --peer-urls=http://127.0.0.1:1 --learner",
        "m0 | endpoint health --cluster",
    )
    site.start("m3", ALL.split(), ready=False)
    site.run_until("member list", "started, m3")
    run(
        site,
        "m0 | endpoint status --cluster",
        "m0 | endpoint hashkv --cluster",
        "m0 | endpoint health --cluster",
        "m3 | endpoint status -w json",
        "m3 | endpoint health",
        "m3 | alarm list",
        "m3 | defrag",
        "m3 | move-leader {m1}",
        f"m3 {ALL} | move-leader {{m3}}",
        "m3 | member promote {m3}",
        "m3 | get a --consistency=s",
        "m3 | put a 1",
        "m3 | del a",
        "m3 | compaction 2",
        "m3 | snapshot save {folder}/learner",
    )
    for name, request in ASKED_OF_LEARNER:
        with pytest.raises(grpc.RpcError) as caught:
            call(site.servers["m3"], name, request)
        site.said.append(f"{name}: {caught.value.details()}")
        if site.kind == SUBJECT:  # 3.5 calls it UNAVAILABLE, for which clients repeat the call
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    run(site, "m0 | defrag --cluster", "m0 | member remove {m3}")
    site.servers.pop("m3").close()


def one_dead(site: MemberSite) -> None:
    """One of three members is down."""
    site.servers["m2"].kill()
    run(
        site,
        "m1 | endpoint status --cluster --command-timeout=1s",
        "m1 | endpoint health --cluster --command-timeout=1s",
        "m1 | endpoint hashkv --cluster --command-timeout=1s",
        "m1 | defrag --cluster --command-timeout=1s",
        "m2 | snapshot save {folder}/dead --command-timeout=300ms",
        "m2 | endpoint status --command-timeout=300ms",
        "m0 | member add m3 --peer-urls={peer:m3}",
        "m0 | member remove {m1}",
        "m0 | alarm list",
        "m1 | put a 1",
        # The last one, as etcd refuses writes until it gives up.
        "m0 | move-leader {m2} --command-timeout=300ms",
    )
    site.servers["m2"].start()


def two_dead(site: MemberSite) -> None:
    """Two of three members are down: nothing can be decided, and what needs no decision works."""
    # Whether a write that nobody answers is made in the end is left open.
    site.masks.append((r"(CLIENT-m1), \d+$", r"\1, HASH"))
    for name in ("m0", "m2"):
        site.servers[name].kill()
    site.await_no_leader("m1")
    run(
        site,
        "m1 | endpoint status",
        "m1 | endpoint status -w json",
        "m1 | endpoint hashkv",
        "m1 | defrag",
        "m1 | get a --consistency=s",
        "m1 | snapshot save {folder}/alone",
        "m1 | move-leader {m1}",
        *(
            f"m1 | {line} --command-timeout=300ms"
            for line in (
                "endpoint health",
                "endpoint health -w json",
                "alarm list",
                "alarm disarm",
                "member list",
                "member remove {m2}",
                "member add m3 --peer-urls={peer:m3}",
                "get a",
                "put open 1",
                "lease grant 100",
                "compaction 2",
            )
        ),
    )
    for name in ("m0", "m2"):
        site.servers[name].spawn()
    for server in site.servers.values():
        server.wait_ready()


def alarms(site: MemberSite) -> set[int]:
    """The members that have raised one."""
    answer = call(site.servers["m0"], "Maintenance/Alarm", pb.AlarmRequest())
    return {alarm.memberID for alarm in answer.alarms}


def raises(site: MemberSite, server: StoreServer) -> bool:
    """Write at a member, and tell whether it has raised the alarm of space."""
    with contextlib.suppress(grpc.RpcError):
        call(server, "KV/Put", pb.PutRequest(key=b"fill", value=LARGE.encode()))
    deadline_s = time.monotonic() + ALARM_TIMEOUT_S
    while site.ids()[server.name] not in alarms(site):
        if time.monotonic() > deadline_s:
            return False
    return True


def fill(site: MemberSite) -> None:
    """Write until every member by itself has no space left: their files may differ."""
    while not all(raises(site, server) for server in site.servers.values()):
        disarm(site)


def disarm(site: MemberSite) -> None:
    """Clear every alarm of space."""
    for member in alarms(site):
        request = pb.AlarmRequest(
            action=pb.AlarmRequest.DEACTIVATE, memberID=member, alarm=pb.NOSPACE
        )
        call(site.servers["m0"], "Maintenance/Alarm", request)


def space(site: MemberSite) -> None:
    """The quota is used up, and room is made again."""
    # What fits in is not the same: etcd counts its file, which grows in large steps.
    site.masks.append((r'"([rR]evision)"( ?): \d+', r'"\1"\2: 0'))
    fill(site)
    disarm(site)
    large = f"<<< \nput fill {LARGE}\n\nget a\n\n"
    run(
        site,
        f"m1 | put fill <<< {LARGE}",
        "m0 | await ID-m1",
        "m0 | alarm list -w json",
        "m2 | alarm list -w fields",
        f"{ALL} | endpoint status",
        f"{ALL} | endpoint status -w json",
        f"{ALL} | endpoint health",
        "m0 | endpoint health --cluster -w json",
        "m0 | put a 1",
        "m0 | get a",
        "m0 | member list",
        f"m0 | put fill <<< {LARGE}",
        "m0 | await ID-m0",
        "m0 | alarm disarm",
        "m0 | alarm list",
        # It is there again as soon as somebody writes, as nothing was given back.
        f"m2 | txn {large}",
        "m0 | await ID-m2",
        "m2 | alarm disarm -w json",
        "m2 | alarm disarm",
        f"m1 | txn {large}",
        f"m0 | put fill <<< {LARGE}",
        "m2 | await ID-m0",
        "m0 | lease grant 100",
        "m0 | del fill",
        "m0 | compaction --physical {revision}",
        f"{ALL} | defrag",
        "m0 | put a 2",
        "m1 | alarm disarm",
        "m1 | alarm list",
        "m0 | put a 3",
        f"{ALL} | endpoint status",
        f"{ALL} | endpoint health",
        "m0 | snapshot save {folder}/after",
    )


SCENARIOS: dict[str, Callable[[MemberSite], None]] = {
    scenario.__name__: scenario for scenario in (learner, one_dead, two_dead, space)
}


@pytest.fixture(scope="module")
def sites() -> Iterator[list[MemberSite]]:
    """Three members of each kind, that have the same history."""
    for reason in map(missing_reason, KINDS):
        if reason is not None:
            pytest.skip(reason)
    with (
        MemberSite(REFERENCE, VERSIONS[0], FLAGS) as reference,
        MemberSite(SUBJECT, VERSIONS[0], FLAGS) as subject,
    ):
        for site in (reference, subject):
            site.found(ALL.split())
        yield [reference, subject]


def begin(site: MemberSite, version: str) -> None:
    """Use one version of etcdctl from now on, on a cluster that m0 leads."""
    if binary(version) is None:
        pytest.skip(f"etcdctl {version} is not installed here; ./run test installs it")
    site.version = version
    site.said.clear()
    site.masks.clear()
    site.lead("m0")


def compare(sites: list[MemberSite], version: str, course: Callable[[MemberSite], None]) -> None:
    """Go through the same on both clusters at once, and compare what was said."""
    for site in sites:
        begin(site, version)
    list(THREADS.map(course, sites))
    reference, subject = ("\n".join(site.said).splitlines() for site in sites)
    differences = unified_diff(reference, subject, REFERENCE, SUBJECT, lineterm="")
    assert not (text := "\n".join(differences)), text


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_same_output(case: str, version: str, sites: list[MemberSite]) -> None:
    compare(sites, version, lambda site: run(site, *CASES[case]))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_same_course(scenario: str, sites: list[MemberSite]) -> None:
    compare(sites, "3.5", SCENARIOS[scenario])
