"""Frames between members as one line of text, for the trace that a person reads."""

import struct

NAMES = (
    *("", "vote", "vote response", "pre-vote", "pre-vote response", "append", "append response"),
    *("heartbeat", "heartbeat response", "snapshot", "timeout now", "read index"),
    "read index response",
)
FIELDS = ("from", "to", "term", "log_term", "index", "commit", "context", "hint", "hint_term")
FORWARD = 32
_HEAD = struct.Struct("<IIBBH")
_MESSAGE = struct.Struct("<BBHI9Q")


def describe(data: bytes) -> str:
    """Tell what frames say; of those that are not raft's, only the kind."""
    told = []
    at = 0
    while at + _HEAD.size <= len(data):
        size, _, _, kind, _ = _HEAD.unpack_from(data, at)
        if kind < len(NAMES):
            reject, force, _, count, *numbers = _MESSAGE.unpack_from(data, at + _HEAD.size)
            fields = [f"{name}={n:x}" for name, n in zip(FIELDS, numbers, strict=True) if n]
            fields += ["reject"] * reject + ["force"] * force + [f"entries={count}"] * bool(count)
            told.append(f"{NAMES[kind]} {' '.join(fields[2:])}")
        else:
            told.append("forward" if kind == FORWARD else f"kind {kind}")
        at += size + 8
    return "; ".join(told)
