"""What is refused: counted each time, logged once a minute."""

import logging
from collections import Counter
from typing import Final

LOG_INTERVAL_S: Final = 60.0
_SUBJECTS_MAX: Final = 1024


class Refusals:
    """The refusals of one kind of service.

    Args:
        log: where they are told.
        what: begins each line, "refused a peer".
    """

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._told: dict[tuple[str, str], float] = {}
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, subject: str, text: str, now_s: float) -> None:
        """Count one, and log it unless the same was logged within the last minute.

        Args:
            reason: one word, as the counter is labelled.
            subject: whom it concerns: the host it came from.
            text: the rest of the line.
            now_s: the time, on a steady clock.
        """
        self.counts[reason] += 1
        key = (reason, subject)
        told = self._told.get(key)
        if told is not None and now_s - told < LOG_INTERVAL_S:
            return
        if len(self._told) >= _SUBJECTS_MAX:
            late = [key for key, at in self._told.items() if now_s - at >= LOG_INTERVAL_S]
            for old in late:
                del self._told[old]
            if not late:
                return  # so many different ones in a minute are told by the counter alone
        self._told[key] = now_s
        self._log.warning("%s: %s", self._what, text)
