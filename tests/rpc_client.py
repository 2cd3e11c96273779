"""A client of the gRPC engine that sends and receives HTTP/2 frames by hand, without a socket."""

from http2_frames import (
    ACK,
    DATA,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    Frame,
    Inflater,
    frame,
    message,
    open_request,
    split,
)
from rpc_helpers import hot_handler
from trimaran.ext import rpc


class Client:
    """One connection to an engine, by hand."""

    def __init__(self, server: rpc.RpcServer, greet: bool = True, agree: bool = True) -> None:
        self.server = server
        self.channel = server.attach()
        self.inflater = Inflater()
        self.open = True
        if greet:
            self.exchange(PREFACE + frame(SETTINGS))
            self.exchange(frame(SETTINGS, ACK) if agree else b"")

    def exchange(self, data: bytes) -> list[Frame]:
        """Send bytes and return the frames they brought back."""
        self.open = self.channel.feed(data)
        return self.receive()

    def receive(self) -> list[Frame]:
        output = b""
        for _ in range(10_000):
            self.server.flush()
            part = self.channel.take()
            if not part:
                self.open = part is not None
                break
            output += part
        return list(split(output))

    def answer(self, frames: list[Frame], stream: int = 1) -> tuple[dict[str, str], bytes]:
        """Merge all header fields of a stream, and its data."""
        fields: dict[str, str] = {}
        data = b""
        for one in frames:
            if one.kind == HEADERS:
                decoded = self.inflater.decode(one.payload)
                fields |= decoded if one.stream == stream else {}
            elif one.kind == DATA and one.stream == stream:
                data += one.payload
        return fields, data


def make_server(**limits: int) -> rpc.RpcServer:
    return rpc.RpcServer(hot_handler(), **limits)


def still_serves(server: rpc.RpcServer) -> None:
    """A well-formed client is served whatever others did."""
    client = Client(server)
    request = open_request(1, "/hot.Test/Echo") + frame(DATA, END_STREAM, 1, message(b"hello"))
    fields, data = client.answer(client.exchange(request))
    assert fields["grpc-status"] == "0"
    assert data == message(b"hello")
    client.channel.close()
