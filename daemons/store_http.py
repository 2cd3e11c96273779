"""What the store serves over HTTP/1.1: health, version and metrics."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from trimaran._version import ETCD_VERSION
from trimaran.daemons.network_metrics import NetworkCollector
from trimaran.daemons.store_health import add_routes

if TYPE_CHECKING:
    from trimaran.daemons.store_server import Stored


class StoreCollector:
    """The member's figures, under the names etcd's dashboards use."""

    def __init__(self, store: "Stored") -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Read every figure once."""
        member = self._store.member
        raft, counts = member.status(), member.counts()
        network = self._store.server.counters()
        total, in_use = member.sizes()
        gauges = {
            "etcd_server_has_leader": ("whether a leader is known", int(raft["leader"] != 0)),
            "etcd_server_is_leader": ("whether this one leads", int(raft["leader"] == raft["id"])),
            "etcd_server_is_learner": ("whether this one only learns", raft["is_learner"]),
            "etcd_server_quota_backend_bytes": ("quota", self._store.options.quota_bytes),
            "etcd_server_proposals_pending": (
                "entries not yet applied",
                raft["last_index"] - raft["applied"],
            ),
            "etcd_mvcc_db_total_size_in_bytes": ("size of the state file", total),
            "etcd_mvcc_db_total_size_in_use_in_bytes": ("size of what it holds", in_use),
            "etcd_debugging_mvcc_watch_stream_total": ("watch streams", counts["streams"]),
            "etcd_debugging_mvcc_watcher_total": ("watchers", counts["watchers"]),
            "etcd_debugging_mvcc_slow_watcher_total": ("watchers behind", counts["behind"]),
            "etcd_debugging_mvcc_current_revision": ("revision", member.revision),
            "etcd_debugging_mvcc_compact_revision": ("compacted up to", member.compact_revision),
            "trimaran_store_connections": ("open connections", network["connections"]),
            "trimaran_store_leases": ("granted leases", len(self._store.lessor)),
            "trimaran_store_members": ("members", len(self._store.node.members.table.members)),
        }
        counters = {
            "etcd_server_proposals_committed": ("committed entries", raft["commit"]),
            "etcd_server_proposals_applied": ("applied entries", raft["applied"]),
            "etcd_server_proposals_failed": ("refused operations", counts["refused"]),
            "etcd_server_leader_changes_seen": ("changes of leader", counts["leader_changes"]),
            "trimaran_store_timeouts": ("requests that took too long", counts["timeouts"]),
            "trimaran_store_forwarded": ("batches sent to a leader", counts["forwarded"]),
            "trimaran_store_hash_checks": (
                "comparisons of the members' data",
                self._store.node.corruption.checks,
            ),
            **self._snapshots(),
            "etcd_mvcc_put": ("puts asked for", counts["puts"]),
            "etcd_mvcc_range": ("ranges asked for", counts["ranges"]),
            "etcd_mvcc_delete": ("deletes asked for", counts["deletes"]),
            "etcd_mvcc_txn": ("txns asked for", counts["txns"]),
            "etcd_debugging_mvcc_events": ("events sent to watchers", counts["events"]),
            "etcd_network_client_grpc_sent_bytes": ("sent", network["sent_bytes"]),
            "etcd_network_client_grpc_received_bytes": ("received", network["received_bytes"]),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(name, text, value=value)

    def _snapshots(self) -> dict[str, tuple[str, int]]:
        counts = self._store.snapshots.counts
        return {
            "trimaran_snapshots_sent": ("states sent to members", counts.sent),
            "trimaran_snapshots_received": ("states taken over from a leader", counts.received),
            "trimaran_snapshot_send_failures": ("not sent to the end", counts.send_failures),
            "trimaran_snapshot_receive_failures": ("not received", counts.receive_failures),
            "trimaran_snapshot_sent_bytes": ("of states", counts.sent_bytes),
            "trimaran_snapshot_received_bytes": ("of states", counts.received_bytes),
        }


def make_application(store: "Stored") -> web.Application:
    """Build the HTTP/1.1 side of a member."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(store))
    transport = store.peers.transport
    registry.register(NetworkCollector(store.identity.member_id, transport, store.server))
    ProcessCollector(registry=registry)

    async def version(request: web.Request) -> web.Response:
        cluster = store.node.members.version or "not_decided"
        body = {"etcdserver": ETCD_VERSION, "etcdcluster": cluster, "storage": cluster}
        return web.Response(text=json.dumps(body, separators=(",", ":")))

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    application = web.Application()
    add_routes(application, store)
    application.router.add_get("/version", version)
    application.router.add_get("/metrics", metrics)
    return application
