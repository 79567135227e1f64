"""What `workers.features` and the embedded store need of Feast's insides: import, rows, keys, deletion, set-up."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workers.settings import Feast


def import_feast() -> Any:
    """Import Feast without what it does not need here: 4.6 s instead of 13.3 s of CPU, and no torch in the process.

    Feast imports torch for `OnlineResponse.to_tensor` and recompiles itself with typeguard's run-time checks, which
    `python -O` would leave out too. typeguard is given back after the import; `to_tensor` still finds torch.
    """
    if "feast" not in sys.modules:
        import typeguard

        if "torch" not in sys.modules:
            wrapper = types.ModuleType("feast.torch_wrapper")
            wrapper.get_torch = _get_torch  # type: ignore[attr-defined]
            sys.modules[wrapper.__name__] = wrapper
        checked = typeguard.typechecked
        typeguard.typechecked = _unchecked
        try:
            import feast
        finally:
            typeguard.typechecked = checked
    import feast

    return feast


def _get_torch() -> types.ModuleType:
    import torch

    return torch


def _unchecked(target: Any = None, **_: Any) -> Any:
    return target if target is not None else lambda each: each


_FIELDS = {
    "String": "string_val",
    "Int64": "int64_val",
    "Bytes": "bytes_val",
    "Array(String)": "string_list_val",
    "Array(Float32)": "float_list_val",
}
"""The types that feature_repo/ uses, and where Feast's protocol buffer keeps them."""


def pack(kind: str, value: Any) -> Any:
    """A value as Feast's protocol buffer.

    Args:
        kind: as Feast spells a field's type: "Array(Float32)".
        value: str, int, bytes, list or numpy array; None.

    Raises:
        ValueError: the value is not of that kind.
    """
    from feast.protos.feast.types.Value_pb2 import Value

    packed = Value()
    if value is None:
        return packed
    field = _FIELDS[kind]
    try:
        if kind.startswith("Array"):
            target = getattr(packed, field)
            target.SetInParent()  # an empty array is not an absent one
            target.val.extend(value.tolist() if hasattr(value, "tolist") else value)
        else:
            setattr(packed, field, value.item() if hasattr(value, "item") else value)
    except TypeError as error:
        raise ValueError(f"{kind}: {error}") from None
    return packed


def unpack(value: Any) -> Any:
    """The Python value: str, int, bytes, list or None."""
    field = value.WhichOneof("val")
    if field is None:
        return None
    inner = getattr(value, field)
    return list(inner.val) if field.endswith("_list_val") else inner


def entity_key(join_key: str, value: str) -> Any:
    """The key of one row, as Feast's protocol buffer."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    return EntityKey(join_keys=[join_key], entity_values=[Value(string_val=value)])


class SqliteReader:
    """Reads rows of Feast's SQLite file as `SqliteOnlineStore.online_read` does, in 2/3 of its time.

    That one fetches every feature of a row, sorts, and parses two timestamps a feature; this one fetches what was asked
    for. Same rows: `tests/contract/test_features.py` compares them. For one thread.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._connection: sqlite3.Connection | None = None
        self._keys: dict[tuple[str, str], bytes] = {}

    def read(self, view: Any, join_key: str, values: list[str], wanted: list[str]) -> list[dict[str, Any]]:
        """One dict of Feast's values an entity; empty where there is no row."""
        from feast.infra.online_stores.sqlite import _table_id
        from feast.protos.feast.types.Value_pb2 import Value

        if self._connection is None:
            self._connection = sqlite3.connect(sqlite_path(self._config), timeout=5)
        keys = [self._key(join_key, value) for value in values]
        registry = self._config.registry
        table = _table_id(self._config.project, view, registry.enable_online_feature_view_versioning)
        found: dict[bytes, dict[str, Any]] = {key: {} for key in keys}
        rows = self._connection.execute(
            f'SELECT entity_key, feature_name, value FROM "{table}" WHERE entity_key IN ({_marks(keys)}) '
            f"AND feature_name IN ({_marks(wanted)})",
            [*keys, *wanted],
        )
        for key, name, value in rows:
            found[key][name] = Value.FromString(value)
        return [found[key] for key in keys]

    def _key(self, join_key: str, value: str) -> bytes:
        from feast.infra.key_encoding_utils import serialize_entity_key

        key = self._keys.get((join_key, value))
        if key is None:
            if len(self._keys) >= 100_000:
                self._keys.clear()
            version = self._config.entity_key_serialization_version
            key = serialize_entity_key(entity_key(join_key, value), entity_key_serialization_version=version)
            self._keys[join_key, value] = key
        return key

    def forget(self, join_key: str, value: str) -> None:
        self._keys.pop((join_key, value), None)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _marks(values: list[Any]) -> str:
    return ",".join("?" * len(values))


def delete_rows(provider: Any, config: Any, views: Iterable[Any], key: Any) -> None:
    """Delete one entity's rows: Feast has no such call, so the store's own keys go.

    SQLite's pages are overwritten, its log is emptied; Redis keeps all views of an entity under one key.

    Raises:
        ValueError: an online store other than SQLite and Redis.
    """
    version = config.entity_key_serialization_version
    if config.online_store.type == "sqlite":
        from feast.infra.key_encoding_utils import serialize_entity_key
        from feast.infra.online_stores.sqlite import _table_id

        serialized = serialize_entity_key(key, entity_key_serialization_version=version)
        with contextlib.closing(sqlite3.connect(sqlite_path(config), timeout=10)) as connection:
            connection.execute("PRAGMA secure_delete=ON")
            with connection:
                for view in views:
                    table = _table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
                    connection.execute(f'DELETE FROM "{table}" WHERE entity_key = ?', (serialized,))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    elif config.online_store.type == "redis":
        from feast.infra.online_stores.helpers import _redis_key

        client = provider.online_store._get_client(config.online_store)
        client.delete(_redis_key(config.project, key, entity_key_serialization_version=version))
    else:
        raise ValueError(f"rows of an online store of type {config.online_store.type} cannot be deleted")


def one_retry(provider: Any, config: Any) -> None:
    """Let redis-py retry once, at once: its default of three times, up to 10 s apart, hides an outage."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    provider.online_store._get_client(config.online_store).set_retry(Retry(NoBackoff(), 1))


def sqlite_path(config: Any) -> Path:
    path = Path(config.online_store.path)
    return path if path.is_absolute() else Path(config.repo_path) / path


def share_sqlite(path: Path) -> None:
    """Let several processes read the file while one writes: write-ahead log. Stays with the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def apply(settings: Feast) -> None:
    """`feast apply`. For a moment the process is in another working directory, which is Feast's way.

    Raises:
        Exception: whatever Feast objects to.
    """
    import_feast()
    from feast.repo_config import load_repo_config
    from feast.repo_operations import apply_total

    logging.getLogger("feast.infra.offline_stores.file_source").setLevel(logging.ERROR)  # nothing is read offline
    yaml = settings.yaml or settings.repo / "feature_store.yaml"
    config = load_repo_config(settings.repo, yaml)
    if config.online_store.type == "sqlite":
        share_sqlite(sqlite_path(config))
    before = {*sys.modules}
    sys.path.insert(0, str(settings.repo))  # Feast imports the definitions by their bare names
    try:
        with contextlib.chdir(Path.cwd()):
            apply_total(config, settings.repo, skip_source_validation=True)
    finally:
        sys.path.remove(str(settings.repo))
        for name in {path.stem for path in settings.repo.glob("*.py")} - before:
            sys.modules.pop(name, None)  # the next repository's may be others
