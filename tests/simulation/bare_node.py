"""A member driven without what Python adds to it: for runs without leases and changes."""

from collections.abc import Callable

from trimaran.ext import peer


class BareNode:
    def __init__(self, member, settings, now_s):
        self.member = member
        self._parsers = {}
        self._dones: dict[int, Callable] = {}
        self._token = 0

    def tick(self, now_s):
        self.member.set_clock(int(now_s * 1e6))
        self.member.tick()

    def receive(self, sender, data, now_s):
        parser = self._parsers.get(sender)
        if parser is None:
            parser = self._parsers[sender] = peer.PeerParser(self.member, sender)
        parser.feed(data)

    def opened(self, sender, now_s):
        self._parsers.pop(sender, None)

    def connected(self, sender, now_s):
        pass

    def lost(self, sender, now_s):
        self.member.unreachable(sender)

    def turn(self, now_s):
        self.member.set_clock(int(now_s * 1e6))
        more = self.member.turn()
        for token, _, error, revision, *_ in self.member.results():
            done = self._dones.pop(token, None)
            if done:
                done(error, revision)
        return more

    def outgoing(self):
        return self.member.messages()

    def propose(self, kind, request, done):
        self._token += 1
        self._dones[self._token] = done
        self.member.submit(kind, request, self._token)

    def persisted(self):
        pass

    def stop(self):
        pass
