"""The Feast repository is what the architecture names, and Feast's own commands work on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workers.feast_store import import_feast
from workers.settings import Feast

VIEWS = {
    "user_embedding": ("user_id", {"embedding": "Array(Float32)", "space": "String"}),
    "user_taste": ("user_id", {"residual": "Array(Float32)", "space": "String", "pairs": "Int64"}),
    "user_history": ("user_id", {"liked_items": "Array(String)", "liked_covers": "Array(String)"}),
    "user_segment": ("user_id", {"segment_id": "String", "parent": "String", "segments": "String"}),
    "segment_profile": (
        "segment_id",
        {"vector": "Array(Float32)", "parent": "String", "space": "String", "segments": "String", "users": "Int64"},
    ),
    "item_covers": (
        "item_id",
        {
            **dict.fromkeys(("item_version", "generation", "release", "width", "height"), "Int64"),
            **dict.fromkeys(("state", "reference_image", "space"), "String"),
            **dict.fromkeys(("segment_ids", "cover_ids", "fallbacks"), "Array(String)"),
            "scores": "Array(Float32)",
            "embeddings": "Bytes",
        },
    ),
}
SERVICES = {
    "cover_generation": {"segment_profile"},
    "cover_selection": {"user_segment", "user_taste", "user_embedding", "item_covers"},
}


@pytest.fixture(scope="module")
def by_feasts_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, applied by `feast apply` as its users call it."""
    folder = tmp_path_factory.mktemp("feast") / "feature_repo"
    shutil.copytree(Feast().repo, folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEAST_")}
    command = [str(Path(sys.executable).with_name("feast")), "-c", str(folder), "apply"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def store(by_feasts_command: Path) -> object:
    feast = import_feast()
    return feast.FeatureStore(repo_path=str(by_feasts_command), fs_yaml_file=by_feasts_command / "feature_store.yaml")


@pytest.mark.slow
def test_feast_apply_makes_every_view_and_service(store: object) -> None:
    views = {view.name: view for view in store.list_feature_views()}  # type: ignore[attr-defined]
    assert {
        name: (view.join_keys[0], {field.name: str(field.dtype) for field in view.features})
        for name, view in views.items()
    } == VIEWS
    services = store.list_feature_services()  # type: ignore[attr-defined]
    assert {each.name: {view.name for view in each.feature_view_projections} for each in services} == SERVICES


def test_every_view_is_pushed_to_and_online(store: object) -> None:
    for view in store.list_feature_views():  # type: ignore[attr-defined]
        assert view.online
        assert view.stream_source.name == view.name
        assert view.description


def test_data_stays_in_the_repositorys_own_folder(by_feasts_command: Path) -> None:
    assert {file.name for file in (by_feasts_command / "data").iterdir()} >= {"registry.db", "online_store.db"}


def test_redis_is_chosen_by_feasts_own_variables(by_feasts_command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feast = import_feast()
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", str(by_feasts_command / "redis.yaml"))
    monkeypatch.setenv("FEAST_REDIS", "example.org:6380,ssl=true")
    monkeypatch.setenv("FEAST_REGISTRY", str(by_feasts_command / "data" / "registry.db"))
    config = feast.FeatureStore(repo_path=str(by_feasts_command)).config
    assert config.online_store.type == "redis"
    assert config.online_store.connection_string.startswith("example.org:6380,ssl=true")


def test_feast_is_imported_without_torch_and_gives_typeguard_back() -> None:
    code = (
        "import typeguard; before = typeguard.typechecked\n"
        "from workers.feast_store import import_feast; import_feast()\n"
        "import sys; assert 'torch' not in sys.modules; assert typeguard.typechecked is before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
