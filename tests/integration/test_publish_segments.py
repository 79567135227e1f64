"""Users come in, segments come out: through S3, Feast and a release, as `icg users` and `icg segments` do it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icg.preference import Head
from tests.zygote import Icg, Zygote
from workers import embeddings
from workers.events import ModelUpdate
from workers.exceptions import BadPart, UserError
from workers.features import Features
from workers.messaging import Follower
from workers.records import SegmentSet
from workers.releases import Releases
from workers.segments import before, build, build_set
from workers.settings import S3, Feast, Kafka, Settings, environment
from workers.storage import ObjectStore
from workers.users import import_users

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIMENSION = 64


@pytest.fixture
def settings(own_kafka: Kafka, s3: S3, store: ObjectStore, feast_repo: Feast, tmp_path: Path) -> Settings:
    return Settings(kafka=own_kafka, s3=s3, feast=feast_repo, cache=tmp_path / "cache")


@pytest.fixture
def releases(settings: Settings, store: ObjectStore) -> Releases:
    """With a first release: a space, and a preference head in it."""
    releases = Releases(store, settings.cache)
    space = releases.put_part("space", {"config.json": b"{}"})
    folder = settings.cache / "head"
    Head.start(space, DIMENSION).save(folder)
    files: dict[str, Path | bytes] = {path.name: path for path in folder.iterdir()}
    preference = releases.put_part("preference", files, space=space)
    releases.publish({"space": space, "preference": preference}, "first", "space")
    return releases


def people(folder: Path, vectors: np.ndarray, first: int = 0, name: str = "users.parquet") -> Path:
    ids = [f"u{n}" for n in range(first, first + len(vectors))]
    pq.write_table(pa.table({"user_id": ids, "embedding": vectors.tolist()}), folder / name)
    return folder / name


def groups(sizes: list[int], dimension: int = DIMENSION, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(dimension, len(sizes))))
    return np.repeat(directions.T, sizes, 0) + 0.02 * rng.normal(size=(sum(sizes), dimension))


def in_feast(settings: Settings, features: list[str], key: str, names: list[str]) -> list[dict[str, object]]:
    store = Features(settings.feast)
    try:
        return store.read(features, [{key: name} for name in names])
    finally:
        store.close()


def test_the_example_users_become_eight_segments(settings: Settings, releases: Releases, store: ObjectStore) -> None:
    assert import_users(settings, EXAMPLES / "users.parquet") == 400
    before = releases.current()
    assert before is not None
    release = build(settings)
    assert release.number == before.number + 1
    assert releases.current() == release
    revision = release.parts["segments"]
    assert releases.card("segments", revision).space == release.parts["space"]
    part = SegmentSet.decode((releases.fetch("segments", revision) / "segments.json").read_bytes())
    assert len(part.segments) == 8
    assert sum(each.users for each in part.segments) == 400

    by_id = {each.segment_id: each for each in part.segments}
    profiles = in_feast(
        settings,
        ["segment_profile:vector", "segment_profile:segments", "segment_profile:users"],
        "segment_id",
        [*by_id],
    )
    for row in profiles:
        assert row["vector"] == pytest.approx(by_id[str(row["segment_id"])].vector, abs=1e-6)
        assert row["segments"] == revision
    users = embeddings.load(store, release.parts["space"])
    assert users is not None
    moves = in_feast(settings, ["user_segment:segment_id", "user_embedding:embedding"], "user_id", users.ids)
    vectors = dict(zip(users.ids, users.vectors, strict=True))
    counts = dict.fromkeys(by_id, 0)
    for row in moves:
        user = str(row["user_id"])
        assert row["embedding"] == pytest.approx(vectors[user], abs=1e-6)
        nearest = min(by_id.values(), key=lambda each: float(np.square(vectors[user] - each.vector).sum()))
        assert row["segment_id"] == nearest.segment_id
        counts[str(row["segment_id"])] += 1
    assert counts == {each.segment_id: each.users for each in part.segments}

    follower = Follower(settings.kafka, ModelUpdate.topic)
    announced = []
    while not follower.caught_up():
        announced += [ModelUpdate.decode(each.value) for each in follower.poll(100, 0.2)]
    follower.close()
    assert [each.part for each in announced if each.parts.get("segments") == revision] == ["segments"]

    # Nothing changed: the same revision, and no new release for it.
    assert build(settings).number == release.number


def test_people_who_change_keep_or_lose_their_segments_name(
    settings: Settings, releases: Releases, tmp_path: Path
) -> None:
    import_users(settings, people(tmp_path, groups([60, 50, 40])))
    first = build_set(settings, groups=3)
    ids = {each.users: each.segment_id for each in first.segments.segments}
    assert first.kept == set()

    # The third group goes elsewhere; a few newcomers are too few for a group of their own.
    moved = groups([60, 50, 40], seed=1)
    moved[110:] *= -1
    import_users(settings, people(tmp_path, moved))
    import_users(settings, people(tmp_path, groups([1, 1, 1, 5])[3:] * 3, first=150))
    second = build_set(settings, groups=4)
    assert sum(each.users for each in second.segments.segments) == 155
    assert second.kept == {ids[60], ids[50]}
    (new,) = [each for each in second.segments.segments if each.segment_id not in second.kept]
    assert new.segment_id not in ids.values()
    assert new.parent in ids.values()
    (row,) = in_feast(settings, ["user_segment:segment_id", "user_segment:parent"], "user_id", ["u149"])
    assert (row["segment_id"], row["parent"]) == (new.segment_id, new.parent)


def test_what_was_learned_moves_people(settings: Settings, releases: Releases, tmp_path: Path) -> None:
    vectors = groups([40, 40])
    import_users(settings, people(tmp_path, vectors))
    build(settings, groups=2)
    release = releases.current()
    assert release is not None
    features = Features(settings.feast)
    residual = vectors[70] - vectors[5]
    taste = {"residual": residual, "space": release.parts["space"], "pairs": 9}
    features.push("user_taste", [{"user_id": "u5", **taste}, {"user_id": "u6", **taste, "space": "f" * 64}])
    features.close()
    build(settings, groups=2)
    names = ["u70", "u5", "u6", "u7"]
    segment = {
        str(row["user_id"]): row["segment_id"]
        for row in in_feast(settings, ["user_segment:segment_id"], "user_id", names)
    }
    assert segment["u5"] == segment["u70"]
    assert segment["u6"] == segment["u7"] != segment["u70"]  # a residual of another space says nothing here


def test_a_proposed_set_is_stored_and_moves_nobody(settings: Settings, releases: Releases, tmp_path: Path) -> None:
    import_users(settings, people(tmp_path, groups([40, 30])))
    release = build(settings, groups=2)
    import_users(settings, people(tmp_path, groups([40, 30])[::-1] * -1))
    proposed = build_set(settings, groups=2, release=False)
    assert proposed.release is None
    assert releases.current() == release
    assert releases.card("segments", proposed.revision).parents == {"segments": release.parts["segments"]}
    (row,) = in_feast(settings, ["user_segment:segments"], "user_id", ["u0"])
    assert row["segments"] == release.parts["segments"]
    new = [each.segment_id for each in proposed.segments.segments]
    profiles = in_feast(settings, ["segment_profile:segments"], "segment_id", new)
    assert [row["segments"] for row in profiles] == [proposed.revision] * 2


def test_a_map_takes_another_recommenders_users_in(
    settings: Settings, releases: Releases, store: ObjectStore, tmp_path: Path
) -> None:
    file = people(tmp_path, groups([40, 30, 20], dimension=128))
    with pytest.raises(UserError, match=r"128 numbers, but the space has 64; --fit-map"):
        import_users(settings, file)
    assert import_users(settings, file, fit_map=True) == 90
    release = releases.current()
    assert release is not None
    assert release.number == 2
    mapping = embeddings.Map.decode((releases.fetch("map", release.parts["map"]) / "map.safetensors").read_bytes())
    users = embeddings.load(store, release.parts["space"])
    assert users is not None
    assert users.vectors.shape == (90, DIMENSION)
    raw = embeddings.read_file(file)
    stored = dict(zip(users.ids, users.vectors, strict=True))
    for user, vector in zip(raw.ids, mapping(raw.vectors), strict=True):
        assert stored[user] == pytest.approx(vector, abs=1e-6)

    # More people through the same map; a second map, or a file that it does not take, is refused.
    more = people(tmp_path, groups([5, 5, 5], dimension=128, seed=3), first=90, name="more.parquet")
    assert import_users(settings, more) == 15
    again = releases.current()
    assert again is not None
    assert again.number == 2
    with pytest.raises(UserError, match="a map fitted on other users"):
        import_users(settings, more, fit_map=True)
    with pytest.raises(UserError, match=r"64 numbers, but the released map takes 128"):
        import_users(settings, EXAMPLES / "users.parquet")
    assert import_users(settings, file, fit_map=True) == 90  # the same file: the same map


def test_two_imports_at_once_both_get_in(store: ObjectStore) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def one(n: int) -> int:
        ids = [f"u{n}", "shared"]
        return embeddings.add(store, "a" * 64, embeddings.Users(ids, np.full((2, 4), n, np.float32)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(6)))
    users = embeddings.load(store, "a" * 64)
    assert users is not None
    assert users.ids == sorted(["shared", *(f"u{n}" for n in range(6))])


@pytest.fixture
def icg(light_zygote: Zygote, settings: Settings) -> Icg:
    variables = environment(kafka=settings.kafka, s3=settings.s3, feast=settings.feast)
    return lambda *arguments: light_zygote.run(arguments, variables | {"ICG_CACHE": str(settings.cache)})


def test_the_commands(settings: Settings, releases: Releases, tmp_path: Path, icg: Icg) -> None:
    imported = icg("users", "import", str(people(tmp_path, groups([40, 30]))))
    assert imported.stdout.startswith("imported 70 users")
    built = icg("segments", "build", "--groups", "2")
    assert built.returncode == 0, built.stderr
    assert "release 2: 2 segments of 70 users" in built.stdout
    refused = icg("segments", "build", "--k-min", "100")
    assert refused.returncode == 2
    assert refused.stderr.strip() == "icg: 70 users are fewer than --k-min 100: one group would name its members"


def test_before_anything_is_released(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is released yet"):
        import_users(settings, people(tmp_path, groups([3])))
    with pytest.raises(UserError, match="nothing is released yet"):
        build(settings)


def test_released_segments_that_cannot_be_read_are_told_in_a_line(settings: Settings, releases: Releases) -> None:
    released = releases.current()
    assert released is not None
    broken = releases.put_part("segments", {"segments.json": b"[]"}, space=released.parts["space"])
    release = released.model_copy(update={"parts": {**released.parts, "segments": broken}})
    with pytest.raises(BadPart, match=f"segments {broken[:12]}: "):
        before(releases, release, released.parts["space"])


def test_segments_without_users(settings: Settings, releases: Releases) -> None:
    with pytest.raises(UserError, match="icg users import"):
        build(settings)
