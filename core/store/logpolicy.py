"""How much of the raft log is kept once the state holds it."""


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
