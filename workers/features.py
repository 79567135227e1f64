"""Feast: one feature store on one thread of its own.

Reads and writes go through Feast's provider interface (`online_read`, `online_write_batch`), the layer below
`get_online_features` and `push`: the rows are the same, without the data frames in between. A contract test holds that
both layers see the same.

Left out on purpose: historical features and materialisation. Nothing here trains from the offline store.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from workers.exceptions import FeatureFault
from workers.feast_store import (
    SqliteReader,
    delete_rows,
    entity_key,
    import_feast,
    one_retry,
    pack,
    share_sqlite,
    sqlite_path,
    unpack,
)
from workers.settings import Feast

log = logging.getLogger(__name__)

T = TypeVar("T")
Now = Callable[[], float]


@dataclass(frozen=True, slots=True)
class _View:
    """What of a feature view one read wants."""

    view: Any
    join_key: str
    features: tuple[tuple[str, str], ...]  # name in the view, name in the answer


class Features:
    """The feature views of `feature_repo/`. Thread-safe; every call blocks, so event loops put it off to a thread."""

    def __init__(self, settings: Feast, *, tries: int = 5, now: Now = time.time) -> None:
        """
        Args:
            tries: of one call, 0.1 s to 1 s apart, before it is a fault. SQLite itself waits 5 s for a lock each time.
            now: seconds since 1970, for tests.

        Raises:
            FeatureFault: the store cannot be opened, or `feast apply` has not been run.
        """
        self._tries, self._now = tries, now
        self._plans: dict[Any, list[_View]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feast")
        try:
            self._thread.submit(self._open, settings).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def _open(self, settings: Feast) -> None:
        feast = import_feast()
        from feast.infra.provider import get_provider
        from redis.exceptions import RedisError

        self._sqlite: SqliteReader | None = None
        self._faults: tuple[type[Exception], ...] = (sqlite3.Error, RedisError, OSError)

        def connect() -> None:
            self._store = feast.FeatureStore(repo_path=str(settings.repo), fs_yaml_file=settings.yaml)
            self._config = self._store.config
            self._provider = get_provider(self._config)
            if self._config.online_store.type == "sqlite":
                share_sqlite(sqlite_path(self._config))
                self._sqlite = SqliteReader(self._config)
            elif self._config.online_store.type == "redis":
                one_retry(self._provider, self._config)
            self._views = {view.name: view for view in self._store.list_feature_views()}
            if not self._views:
                raise FeatureFault(f"no feature views in {self._config.registry.path}: run `feast apply` first")

        self._trying("open the feature store", connect)

    def push(self, view: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace whole rows of a view, online.

        Args:
            rows: entity key and every feature, by name; None, an absent feature too, is stored as none. Arrays may be
                lists or numpy arrays. Of a row that is there twice the last counts.

        The event time of a row is max(now, the stored one + 1 s), in whole seconds: Redis drops what is not later.

        Raises:
            FeatureFault: not stored, or not all rows; push again.
            ValueError: a view or feature that does not exist, a value of another type, or a row without its key.
        """
        if rows:
            self._thread.submit(self._push, view, rows).result()

    def _push(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        view = self._view(name)
        join_key = view.join_keys[0]
        kinds = {field.name: str(field.dtype) for field in view.features}
        packed: dict[str, dict[str, Any]] = {}
        for row in rows:
            key = row.get(join_key)
            if not isinstance(key, str):
                raise ValueError(f"{name}: a row without {join_key}")
            if unknown := row.keys() - kinds.keys() - {join_key}:
                raise ValueError(f"{name} has no feature {', '.join(sorted(unknown))}")
            packed[key] = {feature: _packed(name, feature, kind, row.get(feature)) for feature, kind in kinds.items()}
        times = self._trying(f"read event times of {name}", lambda: self._event_times(view, list(packed)))
        data = [
            (entity_key(join_key, key), values, datetime.fromtimestamp(times[key], UTC), datetime.now(UTC))
            for key, values in packed.items()
        ]
        self._trying(
            f"push to {name}", lambda: self._provider.online_write_batch(self._config, view, data, progress=None)
        )

    def _event_times(self, view: Any, keys: list[str]) -> dict[str, int]:
        """The next event time of each row: later than the stored one, which may be of a process whose clock goes
        ahead of ours."""
        entities = [entity_key(view.join_keys[0], key) for key in keys]
        stored = self._provider.online_read(self._config, view, entities, [view.features[0].name])
        now = int(self._now())
        return {
            key: now if at is None else max(now, int(at.timestamp()) + 1)
            for key, (at, _) in zip(keys, stored, strict=True)
        }

    def read(self, features: Sequence[str] | str, entities: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        """The features of each entity.

        Args:
            features: the name of a feature service, or "view:feature" names.
            entities: the join keys, e.g. {"user_id": …, "item_id": …}; keys that no view asks for are ignored.

        Returns:
            One dict an entity, in order: its keys and its features without their view's name, None where absent. A name
            that two of the views have becomes `view__feature` for both, as Feast's own full names.

        Raises:
            FeatureFault: the store does not answer.
            ValueError: a service, view or feature that does not exist, or an entity without a join key.
        """
        return self.read_soon(features, entities).result()

    def read_soon(
        self, features: Sequence[str] | str, entities: Sequence[Mapping[str, str]]
    ) -> Future[list[dict[str, Any]]]:
        """The same without waiting, for event loops: `asyncio.wrap_future` spares them a thread of their own."""
        return self._thread.submit(self._read, features, entities)

    def _read(self, features: Sequence[str] | str, entities: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = [dict(entity) for entity in entities]
        for plan in self._plan(features):
            try:
                keys = [entity[plan.join_key] for entity in entities]
            except KeyError:
                raise ValueError(f"{plan.view.name} wants a {plan.join_key} in each entity") from None
            rows = self._rows(plan, list(dict.fromkeys(keys)))
            for answer, key in zip(answers, keys, strict=True):
                answer.update(rows[key])
        return answers

    def _rows(self, plan: _View, keys: list[str]) -> dict[str, dict[str, Any]]:
        wanted = [name for name, _ in plan.features]
        found = self._trying(f"read {plan.view.name}", lambda: self._values(plan, keys, wanted))
        rows = {}
        for key, values in zip(keys, found, strict=True):
            rows[key] = {answer: unpack(values[name]) if name in values else None for name, answer in plan.features}
        return rows

    def _values(self, plan: _View, keys: list[str], wanted: list[str]) -> list[dict[str, Any]]:
        if self._sqlite is not None:
            return self._sqlite.read(plan.view, plan.join_key, keys, wanted)
        entities = [entity_key(plan.join_key, key) for key in keys]
        found = self._provider.online_read(self._config, plan.view, entities, wanted)
        return [values or {} for _, values in found]

    def _plan(self, features: Sequence[str] | str) -> list[_View]:
        asked = features if isinstance(features, str) else tuple(features)
        if asked not in self._plans:
            self._plans[asked] = self._planned(asked)
        return self._plans[asked]

    def _planned(self, asked: str | tuple[str, ...]) -> list[_View]:
        wanted: dict[str, list[str]] = {}
        if isinstance(asked, str):
            services = {service.name: service for service in self._store.list_feature_services()}
            if asked not in services:
                raise ValueError(f"no feature service {asked}; there are {', '.join(sorted(services))}")
            for each in services[asked].feature_view_projections:
                wanted[each.name] = [field.name for field in each.features]
        else:
            for reference in asked:
                view, _, name = reference.partition(":")
                if name not in {field.name for field in self._view(view).features}:
                    raise ValueError(f"no feature {reference}; name it view:feature")
                wanted.setdefault(view, []).append(name)
        names = [name for each in wanted.values() for name in each]
        return [
            _View(
                self._view(view),
                self._view(view).join_keys[0],
                tuple((name, name if names.count(name) == 1 else f"{view}__{name}") for name in each),
            )
            for view, each in wanted.items()
        ]

    def _view(self, name: str) -> Any:
        if name not in self._views:
            raise ValueError(f"no feature view {name}; there are {', '.join(sorted(self._views))}")
        return self._views[name]

    def erase(self, entity: Mapping[str, str]) -> None:
        """Delete every row of an entity, of all views, from the online store. Absent is fine.

        Args:
            entity: one join key and its value: {"user_id": …}.

        Raises:
            FeatureFault: perhaps deleted, perhaps not; call again.
            ValueError: a join key that no view has, or a store whose rows we cannot delete.
        """
        self._thread.submit(self._erase, *next(iter(entity.items()))).result()

    def _erase(self, join_key: str, value: str) -> None:
        views = [view for view in self._views.values() if list(view.join_keys) == [join_key]]
        if not views:
            raise ValueError(f"no feature view has the join key {join_key}")
        key = entity_key(join_key, value)
        self._trying(f"erase a {join_key}", lambda: delete_rows(self._provider, self._config, views, key))
        if self._sqlite is not None:
            self._sqlite.forget(join_key, value)

    def ping(self) -> bool:
        """Does the store answer? For readiness checks."""
        try:
            view = next(iter(self._views.values()))
            self.read([f"{view.name}:{view.features[0].name}"], [{view.join_keys[0]: "-"}])
            return True
        except FeatureFault:
            return False

    def _trying(self, what: str, call: Callable[[], T]) -> T:
        for attempt in range(self._tries):
            try:
                return call()
            except self._faults as error:
                if attempt == self._tries - 1:
                    raise FeatureFault(f"{what}: {error}") from error
                time.sleep(min(1.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Finish what was asked, then end the thread."""
        reader, self._sqlite = self._sqlite, None
        if reader is not None:
            self._thread.submit(reader.close).result()
        self._thread.shutdown()


def _packed(view: str, feature: str, kind: str, value: Any) -> Any:
    try:
        return pack(kind, value)
    except ValueError as error:
        raise ValueError(f"{view}.{feature}: {error}") from None
