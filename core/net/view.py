"""What the store says about one network, kept up to date from lists and watch events."""

from collections.abc import Iterable
from typing import Any

from trimaran.errors import NetworkConfigError
from trimaran.net.config import NetworkConfig, parse_config
from trimaran.net.records import StoredRecord, format_record, parse_record


class NetworkView:
    """The configuration and the records of one network, as of one revision.

    Attributes:
        prefix: of the network's keys, without a slash at its end.
        revision: of the store, up to which everything is known.
        version: grows when records or configuration change here.
        config: the last valid configuration, None before there was one.
        config_text: what that was parsed from.
        config_problem: why the stored configuration is not in use, empty where it is.
        records: last part of the key -> record.
        bad_records: last part of the key -> why the value is not a record.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.revision = 0
        self.version = 0
        self.config: NetworkConfig | None = None
        self.config_text = ""
        self.config_problem = f"there is no configuration at {self.config_key} yet"
        self.records: dict[str, StoredRecord] = {}
        self.bad_records: dict[str, str] = {}

    @property
    def config_key(self) -> str:
        """Key of the configuration."""
        return f"{self.prefix}/config"

    @property
    def subnets_prefix(self) -> str:
        """What every record's key starts with."""
        return f"{self.prefix}/subnets/"

    def replace(self, items: Iterable[tuple[str, bytes, int, int]], revision: int) -> None:
        """Take over a complete list.

        Args:
            items: key, value, revision of the last change, lease of every key under the prefix.
            revision: of the store at the time of the list.
        """
        before, version, config_text = self.records, self.version, self.config_text
        self.records, self.bad_records = {}, {}
        had_config = False
        for key, value, mod_revision, lease in items:
            had_config |= key == self.config_key
            self.put(key, value, mod_revision, lease)
        if not had_config:
            self.delete(self.config_key)
        self.revision = revision
        if self.records == before and self.config_text == config_text:
            self.version = version

    def put(self, key: str, value: bytes, mod_revision: int, lease: int) -> None:
        """Take over one key; a value that cannot be read is remembered with its reason."""
        self.revision = max(self.revision, mod_revision)
        self.version += 1
        if key == self.config_key:
            self._put_config(value)
            return
        name = self._record_name(key)
        if name is None:
            return
        known = self.records.get(name)
        if known is not None and known.mod_revision > mod_revision:
            return
        try:
            record = parse_record(name, value)
        except NetworkConfigError as error:
            self.records.pop(name, None)
            self.bad_records[name] = str(error)
            return
        self.bad_records.pop(name, None)
        self.records[name] = StoredRecord(record, name, mod_revision, lease)

    def delete(self, key: str, mod_revision: int | None = None) -> None:
        """Forget one key.

        Args:
            key: that is gone.
            mod_revision: of the deletion; an older one than the record known changes nothing.
        """
        if mod_revision is not None:
            self.revision = max(self.revision, mod_revision)
        self.version += 1
        if key == self.config_key:
            kept = "; the last one stays in use" if self.config is not None else ""
            self.config_problem = f"there is no configuration at {key}{kept}"
            return
        name = self._record_name(key)
        if name is None:
            return
        self.bad_records.pop(name, None)
        known = self.records.get(name)
        if known is not None and (mod_revision is None or known.mod_revision <= mod_revision):
            del self.records[name]

    def _record_name(self, key: str) -> str | None:
        if not key.startswith(self.subnets_prefix):
            return None
        return key[len(self.subnets_prefix) :]

    def _put_config(self, value: bytes) -> None:
        try:
            self.config = parse_config(value)
        except NetworkConfigError as error:
            kept = "; the last valid one stays in use" if self.config is not None else ""
            self.config_problem = f"{error}{kept}"
            return
        self.config_text = value.decode()
        self.config_problem = ""

    def to_cache(self) -> dict[str, Any]:
        """Return what a later start needs to carry packets while the store does not answer."""
        return {
            "config": self.config_text,
            "records": [[item.key, format_record(item.record)] for item in self.records.values()],
        }

    def load_cache(self, cache: Any) -> None:
        """Take over what `to_cache` returned in a former run.

        Raises:
            NetworkConfigError: if it is damaged; the view is unchanged then.
        """
        try:
            config = parse_config(cache["config"])
            records = {
                str(key): StoredRecord(parse_record(str(key), str(value).encode()), str(key), 0)
                for key, value in cache["records"]
            }
        except (TypeError, KeyError, ValueError) as error:
            raise NetworkConfigError(f"the cache of the network is damaged: {error!r}") from error
        self.config, self.config_text, self.records = config, cache["config"], records
        self.version += 1
