"""Figures of the network of a member: what goes to and comes from others, and who was refused."""

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from trimaran.daemons.grpc_server import GrpcServer
from trimaran.daemons.peer_transport import PeerTransport
from trimaran.daemons.refusals import Refusals
from trimaran.daemons.tls import TLS_REASONS
from trimaran.store.peer_frames import Refusal

PEER_REASONS: Final = (*(refusal.name.lower() for refusal in Refusal), *TLS_REASONS)
CLIENT_REASONS: Final = ("overload", "timeout", *TLS_REASONS)


def _refused(
    name: str, text: str, refusals: Refusals | None, reasons: tuple[str, ...]
) -> CounterMetricFamily:
    """Every reason there is, so that an alert can be made before the first refusal."""
    family = CounterMetricFamily(name, text, labels=["reason"])
    counts = refusals.counts if refusals is not None else {}
    for reason in sorted({*reasons, *counts}):
        family.add_metric([reason], counts.get(reason, 0))
    return family


class NetworkCollector:
    """The figures, under etcd's names where it has them.

    Args:
        own_id: the member's id.
        transport: between members.
        server: of the clients, None where there is none.
    """

    def __init__(
        self, own_id: int, transport: PeerTransport, server: GrpcServer | None = None
    ) -> None:
        self._own = f"{own_id:x}"
        self._transport = transport
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """Read every figure once."""
        yield _refused(
            "trimaran_peer_refused",
            "connections of members that were refused",
            self._transport.refusals,
            PEER_REASONS,
        )
        yield _refused(
            "trimaran_client_refused",
            "clients that were refused before their first request",
            None if self._server is None else self._server.refusals,
            CLIENT_REASONS,
        )
        yield from self._peers(self._transport)
        expiry = GaugeMetricFamily(
            "trimaran_certificate_expiry_timestamp_seconds",
            "until when the member's own certificate is good, since 1970",
            labels=["side"],
        )
        client = None if self._server is None else self._server.tls
        for name, side in (("client", client), ("peer", self._transport.tls)):
            if side is not None:
                expiry.add_metric([name], side.expires_s)
        yield expiry

    def _peers(self, transport: PeerTransport) -> Iterator[Metric]:
        sent = CounterMetricFamily("etcd_network_peer_sent_bytes", "sent", labels=["To"])
        received = CounterMetricFamily(
            "etcd_network_peer_received_bytes", "received", labels=["From"]
        )
        failures = CounterMetricFamily(
            "etcd_network_peer_sent_failures", "connections that failed", labels=["To"]
        )
        dropped = CounterMetricFamily(
            "trimaran_peer_dropped_bytes",
            "not sent for want of a connection, or of one that takes them",
            labels=["To"],
        )
        labels = ["Local", "Remote"]
        active = GaugeMetricFamily("etcd_network_active_peers", "connected", labels=labels)
        known = GaugeMetricFamily("etcd_network_known_peers", "members", labels=labels)
        round_trip = GaugeMetricFamily(
            "trimaran_peer_round_trip_seconds", "as the kernel measures it", labels=["To"]
        )
        for peer, link in transport.links.items():
            name = f"{peer:x}"
            sent.add_metric([name], link.sent_bytes)
            failures.add_metric([name], link.failures)
            dropped.add_metric([name], link.dropped_bytes)
            known.add_metric([self._own, name], 1)
            active.add_metric([self._own, name], int(link.connection is not None))
            if link.connection is not None:
                round_trip.add_metric([name], link.connection.round_trip_s())
        for peer, count in transport.received_bytes.items():
            received.add_metric([f"{peer:x}"], count)
        yield from (sent, received, failures, dropped, active, known, round_trip)
