"""What `icg bootstrap` and `icg features apply` leave behind, and that twice is as once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.waiting import until
from tests.zygote import Icg, Zygote
from workers.bootstrap import PARTS, first_release, people
from workers.embedded import Embedded
from workers.exceptions import FeatureFault, UserError
from workers.features import Features
from workers.following import ReleaseFollower
from workers.messaging import Producer
from workers.releases import Releases
from workers.settings import S3, Feast, Settings, environment
from workers.storage import ObjectStore


@pytest.fixture
def settings(embedded: Embedded, s3: S3, feast_repo: Feast, tmp_path: Path) -> Settings:
    return Settings(kafka=embedded.kafka, s3=s3, feast=feast_repo, cache=tmp_path / "cache")


@pytest.fixture
def command(light_zygote: Zygote) -> Icg:
    def run(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
        variables = environment(kafka=settings.kafka, s3=settings.s3, feast=settings.feast)
        return light_zygote.run(arguments, variables | {"ICG_CACHE": str(settings.cache)})

    return run


def test_a_new_deployment_has_model_users_and_segments_then(
    settings: Settings, store: ObjectStore, tiny_model: Path, command: Icg
) -> None:
    done = command(settings, "bootstrap", "--model", str(tiny_model))
    assert done.returncode == 0, done.stderr
    release = Releases(store, settings.cache).current()
    assert release is not None
    assert set(release.parts) == {*PARTS, "segments"}
    features = Features(settings.feast)
    segments = Releases(store, settings.cache).segments(release)
    assert segments is not None
    rows = features.read("cover_generation", [{"segment_id": each.segment_id} for each in segments.segments])
    features.close()
    assert [row["vector"] for row in rows] == [pytest.approx(each.vector) for each in segments.segments]

    again = command(settings, "bootstrap", "--model", str(tiny_model))
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    assert again.stderr.startswith(f"release {release.number} stays; {tiny_model} is not read: ")
    assert Releases(store, settings.cache).current() == release


def test_parts_of_a_folder_are_released_beside_the_present_ones(
    settings: Settings, store: ObjectStore, tiny_model: Path, tmp_path: Path, command: Icg
) -> None:
    folder = tmp_path / "new"
    shutil.copytree(tiny_model / "adapter", folder / "adapter")
    early = command(settings, "models", "release", str(folder))
    assert early.returncode != 0
    assert early.stderr == f"icg: nothing is released yet: icg bootstrap --model {folder}\n"

    first = first_release(Releases(store, settings.cache, None), tiny_model)
    same = command(settings, "models", "release", str(folder))
    assert same.stdout == f"release {first.number} has them already\n"
    (folder / "adapter" / "sampler.json").write_text('{"guidance": 2.0}')
    done = command(settings, "models", "release", str(folder), "--reason", "bolder")
    assert done.stdout == f"release {first.number + 1} has new adapter\n", done.stderr
    release = Releases(store, settings.cache).current()
    assert release is not None
    assert release.reason == "bolder"
    assert {part for part in PARTS if release.parts[part] != first.parts[part]} == {"adapter"}

    empty = command(settings, "models", "release", str(tmp_path))
    assert empty.stderr.startswith(f"icg: {tmp_path} has none of base, ")


def test_who_follows_hears_of_a_release_and_of_the_way_back_at_once(
    settings: Settings, store: ObjectStore, tiny_model: Path, tmp_path: Path, command: Icg
) -> None:
    folder = tmp_path / "new"
    shutil.copytree(tiny_model / "adapter", folder / "adapter")
    (folder / "adapter" / "sampler.json").write_text('{"guidance": 2.0}')
    releases = Releases(store, settings.cache)
    first = first_release(releases, tiny_model)
    told: list[int] = []
    # It would look by itself only after an hour.
    follower = ReleaseFollower(settings.kafka, releases, lambda release: told.append(release.number), look_seconds=3600)
    follower.start()
    try:
        until(lambda: told == [first.number])
        assert command(settings, "models", "release", str(folder)).returncode == 0
        until(lambda: told == [first.number, first.number + 1])
        assert command(settings, "models", "rollback", str(first.number)).returncode == 0
        until(lambda: told[2:] == [first.number + 2])
    finally:
        follower.stop()


def test_what_a_crash_left_out_is_made_up_for(settings: Settings, store: ObjectStore, tiny_model: Path) -> None:
    producer = Producer(settings.kafka, "test")
    releases = Releases(store, settings.cache, producer)
    first = first_release(releases, tiny_model)
    assert first_release(releases, None) == first
    release = people(settings)
    assert release.number == first.number + 1
    assert release.parts == first.parts | {"segments": release.parts["segments"]}
    producer.close()


def test_an_import_that_broke_off_is_made_again(
    settings: Settings, store: ObjectStore, tiny_model: Path, tmp_path: Path
) -> None:
    first_release(Releases(store, settings.cache), tiny_model)
    (tmp_path / "away").mkdir()
    yaml = tmp_path / "away" / "feature_store.yaml"
    yaml.write_bytes((Feast().repo / "feature_store.yaml").read_bytes())
    away = settings.model_copy(update={"feast": Feast(repo=yaml.parent, yaml=yaml)})
    with pytest.raises(FeatureFault):
        people(away)
    people(settings)
    features = Features(settings.feast)
    [row] = features.read(["user_embedding:space"], [{"user_id": "reader-0001"}])
    features.close()
    assert row["space"]


def test_a_folder_without_a_part_is_told_in_a_line(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "model" / "base").mkdir(parents=True)
    with pytest.raises(UserError, match="lacks mllm, space, adapter, rewards, preference"):
        first_release(Releases(store, tmp_path / "cache"), tmp_path / "model")


def test_the_feature_store_is_applied_by_a_command(settings: Settings, tmp_path: Path, command: Icg) -> None:
    repo = tmp_path / "fresh"
    repo.mkdir()
    for name in ("views.py", "feature_store.yaml"):
        (repo / name).write_bytes((Feast().repo / name).read_bytes())
    fresh = settings.model_copy(update={"feast": Feast(repo=repo, yaml=repo / "feature_store.yaml")})
    for _ in range(2):
        done = command(fresh, "features", "apply")
        assert done.returncode == 0, done.stderr
    features = Features(fresh.feast)
    assert features.ping()
    features.close()
