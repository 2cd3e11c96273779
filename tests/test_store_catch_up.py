"""A member that the others' log no longer reaches gets the state itself."""

import queue
import threading
import time

import grpc
import pytest

from store_cluster import Cluster, Member, why_not
from trimaran.wire import etcd_pb2 as pb
from trimaran.wire.methods import METHODS

KIND = "trimaran"
# More than the 64 MiB of its log that a leader keeps in memory for whoever fell behind just now,
# and the 256 messages of one write each that it sends ahead of the answers.
WRITES = 1200
VALUE = b"v" * 100_000


def put(member: Member, number: int) -> None:
    request = pb.PutRequest(key=b"key%06d" % (number % 500), value=VALUE + b"%d" % number)
    member.call("KV/Put", request)


def hash_of(member: Member, revision: int) -> tuple[int, int]:
    answer = member.call("Maintenance/HashKV", pb.HashKVRequest(revision=revision))
    return answer.hash, answer.compact_revision


@pytest.fixture
def cluster():
    reason = why_not(KIND)
    if reason:
        pytest.skip(reason)
    flags = ["--snapshot-count=100", "--snapshot-catchup-entries=10"]
    with Cluster(KIND, 3, arguments=flags) as cluster:
        yield cluster


def test_a_member_far_behind_takes_over_the_state(cluster: Cluster) -> None:
    leader = cluster.leader()
    behind, other = cluster.followers(leader)
    put(leader, 0)
    behind.kill()
    for number in range(WRITES):
        put(leader, number)
    behind.start()
    behind.wait_ready()
    revision = leader.status().header.revision
    # A linearizable read is answered only when everything before it is there.
    answer = behind.call("KV/Range", pb.RangeRequest(key=b"key", range_end=b"kez"))
    assert answer.header.revision >= revision
    assert answer.count == 500
    assert hash_of(behind, revision) == hash_of(leader, revision) == hash_of(other, revision)
    behind.await_log("took over the state")
    put(behind, 1)


def test_watchers_miss_nothing_when_the_state_is_replaced(cluster: Cluster) -> None:
    leader = cluster.leader()
    behind = cluster.followers(leader)[0]
    put(leader, 0)
    method = METHODS["/etcdserverpb.Watch/Watch"]
    with grpc.insecure_channel(behind.address) as channel:
        create = pb.WatchCreateRequest(key=b"key", range_end=b"kez", start_revision=2)
        requests: queue.SimpleQueue[pb.WatchRequest] = queue.SimpleQueue()
        requests.put(pb.WatchRequest(create_request=create))
        stream = channel.stream_stream(
            method.path, pb.WatchRequest.SerializeToString, method.response.FromString
        )(iter(requests.get, None), timeout=60)
        seen: list[int] = []
        answers = iter(stream)
        while not seen:
            seen += [event.kv.mod_revision for event in next(answers).events]
        behind.pause()
        for number in range(1, WRITES):
            put(leader, number)
        behind.resume()
        last = leader.status().header.revision
        while seen[-1] < last:
            answer = next(answers)
            assert not answer.canceled, answer
            seen += [event.kv.mod_revision for event in answer.events]
        stream.cancel()
    assert seen == list(range(2, last + 1))
    behind.await_log("took over the state")


def test_one_state_is_enough_under_load(cluster: Cluster) -> None:
    """What is written while a state is sent stays in the log until the member has it."""
    leader = cluster.leader()
    behind = cluster.followers(leader)[0]
    put(leader, 0)
    behind.kill()
    for number in range(WRITES - 400):
        put(leader, number)
    is_over = threading.Event()
    writers = [threading.Thread(target=write_until, args=(leader, is_over)) for _ in range(4)]
    for writer in writers:
        writer.start()
    try:
        behind.start()
        # Several times as much as is kept in the log without a reason.
        first = leader.status().raftIndex
        while leader.status().raftIndex < first + 500:
            time.sleep(0.02)
    finally:
        is_over.set()
        for writer in writers:
            writer.join()
    assert behind.log_path.read_text().count("took over the state") == 1


def write_until(member: Member, is_over: threading.Event) -> None:
    """Write small values, one after the other."""
    while not is_over.is_set():
        member.call("KV/Put", pb.PutRequest(key=b"small", value=b"x"))
