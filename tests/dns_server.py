"""A DNS server on a free loopback port that knows what a test tells it.

As a process: python dns_server.py ADDRESS RECORDS, on port 53; RECORDS are JSON: name, type, texts.
"""

import asyncio
import json
import sys
from typing import Self

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset


class DnsServer(asyncio.DatagramProtocol):
    """Answers from a table; enter it as a context within a running loop.

    Args:
        records: texts by (name, type), e.g. {("a.test", "A"): ["127.0.0.1"]}; names without a dot
            at the end. A name that is not there does not exist.
        fails: answer every question with SERVFAIL.
        place: address and port.
    """

    def __init__(
        self,
        records: dict[tuple[str, str], list[str]],
        fails: bool = False,
        place: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self._place = place
        self._records = records
        self._fails = fails

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=self._place
        )
        self.port: int = self._transport.get_extra_info("sockname")[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()

    def resolver(self) -> dns.asyncresolver.Resolver:
        """Make a resolver that asks this server only."""
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self.port
        resolver.lifetime = 3.0
        return resolver

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        """Answer a question."""
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(question.rdtype)
        found = self._records.get((name, kind), [])
        if self._fails:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif found:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *found))
        elif not any(known == name for known, _ in self._records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(answer.to_wire(), address)


async def serve(address: str, text: str) -> None:
    """Answer until the process is ended."""
    records = {(name, kind): texts for name, kind, texts in json.loads(text)}
    async with DnsServer(records, place=(address, 53)):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
