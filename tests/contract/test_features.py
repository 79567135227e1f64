"""What every online store of Feast must do for us."""

from __future__ import annotations

import multiprocessing
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pytest

from workers.features import Features
from workers.settings import Feast

pytestmark = pytest.mark.real("redis")


class Clock:
    """Seconds since 1970 that stand still until told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.4

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def features(feast_store: Feast, clock: Clock) -> Iterator[Features]:
    features = Features(feast_store, now=clock)
    yield features
    features.close()


def new(kind: str) -> str:
    """An id of this test alone: the Redis server is shared."""
    return f"{kind}-{uuid.uuid4().hex}"


def segment_of(features: Features, user: str) -> str | None:
    (row,) = features.read(["user_segment:segment_id"], [{"user_id": user}])
    return row["segment_id"]


def put(features: Features, user: str, segment: str) -> None:
    features.push("user_segment", [{"user_id": user, "segment_id": segment, "parent": None, "segments": "r"}])


def test_a_row_of_each_view_comes_back_as_it_was_pushed(features: Features) -> None:
    user, item, segment = new("u"), new("i"), new("s")
    vector = np.linspace(-1, 1, 64, dtype=np.float32)
    rows: dict[str, dict[str, object]] = {
        "user_embedding": {"user_id": user, "embedding": vector, "space": "a" * 64},
        "user_taste": {"user_id": user, "residual": vector.tolist(), "space": "a" * 64, "pairs": 7},
        "user_history": {"user_id": user, "liked_items": ["x", "y"], "liked_covers": []},
        "user_segment": {"user_id": user, "segment_id": segment, "parent": None, "segments": "b" * 64},
        "segment_profile": {
            "segment_id": segment,
            "vector": vector,
            "parent": "",
            "space": "a" * 64,
            "segments": "b" * 64,
            "users": 2**40,
        },
        "item_covers": {
            "item_id": item,
            "item_version": 1,
            "state": "ready",
            "generation": 3,
            "release": 2,
            "reference_image": None,
            "segment_ids": ["neutral", segment],
            "cover_ids": ["c" * 64, "d" * 64],
            "fallbacks": ["", "neutral"],
            "scores": [0.25, -0.5],
            "embeddings": bytes(range(256)),
            "space": "a" * 64,
            "width": 64,
            "height": 64,
        },
    }
    for view, row in rows.items():
        features.push(view, [row])
    for view, row in rows.items():
        key = next(name for name in ("user_id", "item_id", "segment_id") if name in row)
        names = [name for name in row if name != key]
        (found,) = features.read([f"{view}:{name}" for name in names], [{key: str(row[key])}])
        for name in names:
            expected = row[name].tolist() if isinstance(row[name], np.ndarray) else row[name]  # type: ignore[union-attr]
            if name == "residual":
                assert found[name] == pytest.approx(expected, abs=1e-6)
            else:
                assert found[name] == expected, (view, name)


def test_what_is_not_there_is_none(features: Features) -> None:
    user = new("u")
    assert features.read(["user_taste:residual", "user_taste:pairs"], [{"user_id": user}]) == [
        {"user_id": user, "residual": None, "pairs": None}
    ]


def test_a_push_replaces_the_whole_row(features: Features, clock: Clock) -> None:
    user = new("u")
    features.push("user_history", [{"user_id": user, "liked_items": ["x"], "liked_covers": ["c"]}])
    clock.now += 5
    features.push("user_history", [{"user_id": user, "liked_items": ["y"]}])
    (row,) = features.read(["user_history:liked_items", "user_history:liked_covers"], [{"user_id": user}])
    assert (row["liked_items"], row["liked_covers"]) == (["y"], None)


def test_pushes_within_one_second_all_count(features: Features) -> None:
    """Redis drops a push whose event time is not later."""
    user = new("u")
    for number in range(5):
        put(features, user, f"s{number}")
        assert segment_of(features, user) == f"s{number}"


def test_a_push_after_the_clock_went_back_counts(features: Features, clock: Clock) -> None:
    user = new("u")
    put(features, user, "before")
    clock.now -= 3600
    put(features, user, "after")
    assert segment_of(features, user) == "after"


def test_a_new_process_goes_on_after_the_last_event_time(features: Features, feast_store: Feast, clock: Clock) -> None:
    """Many pushes a second run ahead of the clock; whoever takes the row over has to begin behind them."""
    user = new("u")
    for number in range(10):
        put(features, user, f"s{number}")
    successor = Features(feast_store, now=clock)
    try:
        put(successor, user, "successor")
        assert segment_of(features, user) == "successor"
    finally:
        successor.close()


def test_a_push_counts_after_one_of_a_process_whose_clock_goes_ahead(
    features: Features, feast_store: Feast, clock: Clock
) -> None:
    user = new("u")
    put(features, user, "first")
    ahead = Features(feast_store, now=lambda: clock.now + 86_400)
    try:
        put(ahead, user, "second")
    finally:
        ahead.close()
    put(features, user, "third")
    assert segment_of(features, user) == "third"


def test_event_times_are_whole_seconds_and_grow(features: Features, feast_store: Feast, clock: Clock) -> None:
    user = new("u")
    times = []
    for _ in range(3):
        put(features, user, "s")
        times.append(event_time(feast_store, user))
    clock.now += 100
    put(features, user, "s")
    times.append(event_time(feast_store, user))
    start = int(clock.now) - 100
    assert times == [start, start + 1, start + 2, start + 100]


def event_time(settings: Feast, user: str) -> int:
    """As any reader of Feast sees it."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(settings.repo), fs_yaml_file=settings.yaml)
    answer = store.get_online_features(["user_segment:segment_id"], [{"user_id": user}])
    return int(answer.to_dict(include_event_timestamps=True)["segment_id__ts"][0])


def test_an_old_push_after_a_new_one_does_not_win_silently(features: Features, feast_store: Feast) -> None:
    """Two writers of one row are a mistake; where the store can tell old from new it keeps the new, and we know how."""
    import pandas
    from feast import FeatureStore

    user = new("u")
    put(features, user, "new")
    store = FeatureStore(repo_path=str(feast_store.repo), fs_yaml_file=feast_store.yaml)
    old = {"user_id": user, "segment_id": "old", "parent": "p", "segments": "r"}
    store.push("user_segment", pandas.DataFrame([{**old, "event_timestamp": datetime(2020, 1, 1, tzinfo=UTC)}]))
    assert segment_of(features, user) == ("new" if store.config.online_store.type == "redis" else "old")
    put(features, user, "newest")
    assert segment_of(features, user) == "newest"


def test_feasts_own_api_and_ours_see_the_same(features: Features, feast_store: Feast, clock: Clock) -> None:
    import pandas
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(feast_store.repo), fs_yaml_file=feast_store.yaml)
    ours, theirs = new("u"), new("u")
    row = {"residual": [0.5, -0.25], "space": "a" * 64, "pairs": 3}
    features.push("user_taste", [{"user_id": ours, **row}])
    at = datetime.fromtimestamp(clock.now, UTC)
    store.push("user_taste", pandas.DataFrame([{"user_id": theirs, **row, "event_timestamp": at}]))
    names = [f"user_taste:{name}" for name in row]
    users = [{"user_id": ours}, {"user_id": theirs}]
    by_feast = store.get_online_features(names, users).to_dict()
    by_us = features.read(names, users)
    for number in range(2):
        assert by_us[number] == {name: values[number] for name, values in by_feast.items()}
        assert {name: by_us[number][name] for name in row} == row


def test_a_service_joins_its_views(features: Features) -> None:
    user, items = new("u"), [new("i") for _ in range(200)]
    put(features, user, "s")
    features.push("user_taste", [{"user_id": user, "residual": [1.0], "space": "x", "pairs": 1}])
    features.push(
        "item_covers",
        [{"item_id": item, "generation": number, "segment_ids": ["neutral"]} for number, item in enumerate(items)],
    )
    rows = features.read("cover_selection", [{"user_id": user, "item_id": item} for item in items])
    assert [row["generation"] for row in rows] == list(range(200))
    assert [row["item_id"] for row in rows] == items
    for row in rows:
        assert (row["segment_id"], row["residual"], row["segment_ids"]) == ("s", [1.0], ["neutral"])
        assert (row["user_taste__space"], row["user_embedding__space"]) == ("x", None)
        assert "space" not in row


def test_the_last_of_a_row_pushed_twice_at_once_counts(features: Features) -> None:
    user = new("u")
    features.push("user_segment", [{"user_id": user, "segment_id": "first"}, {"user_id": user, "segment_id": "second"}])
    assert segment_of(features, user) == "second"


def test_an_erased_user_is_gone_from_every_view_and_may_come_back(features: Features, feast_store: Feast) -> None:
    user, other = new("secretive"), new("u")
    for each in (user, other):
        put(features, each, "s")
        features.push("user_taste", [{"user_id": each, "residual": [1.0], "space": each, "pairs": 1}])
    features.erase({"user_id": user})
    names = ["user_segment:segment_id", "user_taste:residual", "user_taste:space"]
    gone, kept = features.read(names, [{"user_id": user}, {"user_id": other}])
    assert gone == {"user_id": user, "segment_id": None, "residual": None, "space": None}
    assert kept == {"user_id": other, "segment_id": "s", "residual": [1.0], "space": other}
    for file in (feast_store.repo / "data").iterdir():
        assert user.encode() not in file.read_bytes(), file.name
    features.erase({"user_id": user})
    put(features, user, "again")
    assert segment_of(features, user) == "again"
    with pytest.raises(ValueError, match="no feature view has the join key colour"):
        features.erase({"colour": "red"})


def test_mistakes_are_named(features: Features) -> None:
    with pytest.raises(ValueError, match="no feature view nothing"):
        features.push("nothing", [{"user_id": "u"}])
    with pytest.raises(ValueError, match="user_segment has no feature colour"):
        features.push("user_segment", [{"user_id": "u", "colour": "red"}])
    with pytest.raises(ValueError, match=r"user_segment\.segment_id"):
        features.push("user_segment", [{"user_id": "u", "segment_id": 7}])
    with pytest.raises(ValueError, match="a row without user_id"):
        features.push("user_segment", [{"segment_id": "s"}])
    with pytest.raises(ValueError, match="no feature service nothing"):
        features.read("nothing", [{"user_id": "u"}])
    with pytest.raises(ValueError, match="no feature user_segment:colour"):
        features.read(["user_segment:colour"], [{"user_id": "u"}])
    with pytest.raises(ValueError, match="item_covers wants a item_id"):
        features.read("cover_selection", [{"user_id": "u"}])
    assert features.read("cover_selection", []) == []
    assert features.ping()


def _writes(settings: Feast, prefix: str, count: int) -> None:
    features = Features(settings)
    for number in range(count):
        features.push(
            "user_segment", [{"user_id": f"{prefix}-{each}", "segment_id": f"s{number}"} for each in range(20)]
        )
    features.close()


@pytest.mark.slow
def test_one_sqlite_file_serves_several_processes(feast_repo: Feast) -> None:
    features = Features(feast_repo)
    prefixes = [new("p") for _ in range(2)]
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_writes, args=(feast_repo, prefix, 40)) for prefix in prefixes]
    for writer in writers:
        writer.start()
    users = [{"user_id": f"{prefix}-{each}"} for prefix in prefixes for each in range(20)]
    while any(writer.is_alive() for writer in writers):
        features.read(["user_segment:segment_id"], users)
        time.sleep(0.002)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert {row["segment_id"] for row in features.read(["user_segment:segment_id"], users)} == {"s39"}
    features.close()
