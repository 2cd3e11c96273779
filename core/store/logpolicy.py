"""How much of the raft log is kept once the state holds it."""

from collections.abc import Mapping
from typing import Final

# State of a raft peer that is being sent a snapshot, as in `trimaran_raft_progress`.
SNAPSHOTTING: Final = 2
# As long a transfer may hold the log, which must not outgrow its file.
HOLD_S_MAX: Final = 300.0


def log_compaction_target(
    *, first_index: int, persisted_index: int, snapshot_count: int, catch_up_entries: int
) -> int | None:
    """Decide whether the log is to be cut, and where.

    Args:
        first_index: of the log as it is.
        persisted_index: the last entry whose effect the state store has on disk.
        snapshot_count: entries to gather before the log is cut.
        catch_up_entries: entries kept behind the persisted one, for members that lag.

    Returns:
        the index up to which entries may be dropped, or None to leave the log alone.
    """
    target = persisted_index - catch_up_entries
    if target < first_index or persisted_index - first_index < snapshot_count + catch_up_entries:
        return None
    return target


class LogHold:
    """Keeps a leader's log while members take over its state.

    Such a member goes on from the entry that the snapshot belongs to. Were the log cut behind it
    meanwhile, the member would need the next snapshot, and under load never catch up: the larger
    the state, the longer each transfer, and the more entries are cut.
    """

    def __init__(self) -> None:
        self._since_s: dict[int, float] = {}

    def update(
        self, progress: Mapping[int, Mapping[str, int] | None], persisted_index: int, now_s: float
    ) -> bool:
        """Tell whether the log is not to be cut now.

        Args:
            progress: what the leader knows of each other member, None of one that it has no
                connection to; empty where it does not lead.
            persisted_index: the last entry whose effect the state store has on disk.
            now_s: the time, on a steady clock.
        """
        for peer in self._since_s.keys() - progress.keys():
            del self._since_s[peer]
        for peer, known in progress.items():
            if known is None:
                self._since_s.pop(peer, None)  # it is gone
            elif known["state"] == SNAPSHOTTING:
                self._since_s.setdefault(peer, now_s)
            elif known["match"] >= persisted_index:
                self._since_s.pop(peer, None)  # it has what the log could lose
        return any(now_s - since_s < HOLD_S_MAX for since_s in self._since_s.values())
