"""The health service that gRPC load balancers and clients ask (grpc.health.v1.Health)."""

import asyncio

from google.protobuf.message import DecodeError

from trimaran.daemons.grpc_server import Call, GrpcServer
from trimaran.errors import StatusCode, StoreError
from trimaran.wire import etcd_pb2 as pb

SERVICE = "grpc.health.v1.Health"
ServingStatus = pb.HealthCheckResponse.ServingStatus


class HealthService:
    """Says whether each service is being served; "" stands for the server as a whole.

    Args:
        server: where to add the methods.
    """

    def __init__(self, server: GrpcServer) -> None:
        self._states: dict[str, ServingStatus] = {"": pb.HealthCheckResponse.SERVING}
        self._changes: set[asyncio.Event] = set()
        server.add_unary(f"/{SERVICE}/Check", self._check)
        server.add_stream(f"/{SERVICE}/Watch", self._watch)

    def set_serving(self, serving: bool, service: str = "") -> None:
        """Change the state of a service and tell its watchers."""
        state = pb.HealthCheckResponse.SERVING if serving else pb.HealthCheckResponse.NOT_SERVING
        self._states[service] = state
        for change in self._changes:
            change.set()

    async def _check(self, request: bytes, call: Call) -> bytes:
        service = _service(request)
        if service not in self._states:
            raise StoreError(StatusCode.NOT_FOUND, "unknown service")
        return _response(self._states[service])

    async def _watch(self, call: Call) -> None:
        """Send the state at once and whenever it changes; an unknown service may come later."""
        async for request in call:
            service = _service(request)
            break
        else:
            raise StoreError(StatusCode.INTERNAL, "cardinality violation: no request message")
        change = asyncio.Event()
        self._changes.add(change)
        sent = None
        try:
            while True:
                change.clear()
                state = self._states.get(service, pb.HealthCheckResponse.SERVICE_UNKNOWN)
                if state != sent:
                    call.send(_response(state))
                    sent = state
                await change.wait()
        finally:
            self._changes.discard(change)


def _service(request: bytes) -> str:
    try:
        return pb.HealthCheckRequest.FromString(request).service
    except DecodeError as error:
        raise StoreError(StatusCode.INTERNAL, "grpc: error unmarshalling request") from error


def _response(state: ServingStatus) -> bytes:
    return pb.HealthCheckResponse(status=state).SerializeToString()
