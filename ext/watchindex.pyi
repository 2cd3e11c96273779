"""The watch index, for Python: watchers are any objects."""

class WatchIndex:
    """Which watchers watch a key, by itself or in a range.

    Args:
        seed: of the hash table; unknown to whoever chooses the keys.
    """

    def __init__(self, seed: int = 0) -> None: ...
    def insert(self, key: bytes, end: bytes, watcher: object) -> int:
        """Register watcher and return the registration's number.

        Args:
            key: the key, or the first of the range.
            end: empty for the key alone, b"\\0" for no end, else the first key past the range.
            watcher: returned by match.

        Raises:
            ValueError: end is not after key.
        """
    def remove(self, number: int) -> None:
        """Remove a registration.

        Raises:
            KeyError: there is none of that number.
        """
    def match(self, key: bytes) -> list[object]:
        """Return the watcher of each registration that contains key, in no particular order."""
    def count_matches(self, key: bytes, times: int = 1) -> int:
        """Match times times without the interpreter and return how many were found in all."""
    def __len__(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
