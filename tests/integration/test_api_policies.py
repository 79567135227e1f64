"""Policies end to end: a released head, people and embeddings in Feast, answers over HTTP with tokens that say it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import date

import numpy as np
import pytest
from fastapi.testclient import TestClient

from bench import api_world
from icg.preference import Head
from workers.api.app import create_app
from workers.api.tastes import HeadWatcher
from workers.decisions import verify
from workers.embedded import Embedded
from workers.events import NEUTRAL
from workers.features import Features
from workers.policies import pack
from workers.records import sha256
from workers.releases import Releases
from workers.settings import Api, Feast, Settings
from workers.storage import ObjectStore
from workers.switches import SwitchWatcher

SEGMENTS = (NEUTRAL, "s-1", "s-2", "s-3")
SPACE = sha256(b"a space")
KEY = b"icg-demo"


@pytest.fixture(scope="module")
def world(embedded: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Features]]:
    folder = tmp_path_factory.mktemp("policies")
    shutil.copytree(embedded.feast.repo, folder / "feast")
    feast = Feast(repo=folder / "feast", yaml=folder / "feast" / "feature_store.yaml")
    s3 = embedded.s3.model_copy(update={"bucket": "api-policies"})
    api = Api(exploration=0.2, surfaces={"home": "softmax", "mail": "thompson"}, temperature=0.5)
    settings = Settings(s3=s3, feast=feast, api=api, cache=folder / "cache")
    store, features = ObjectStore(s3), Features(feast, tries=1)
    store.ensure_bucket()
    releases = Releases(store, settings.cache)
    Head.start(SPACE, 4).save(folder / "head")
    parts = {path.name: path for path in (folder / "head").iterdir()}
    revision = releases.put_part("preference", parts, space=SPACE)
    space = releases.put_part("space", {"config.json": b"{}"})
    heads = HeadWatcher(releases)
    assert heads.poll()
    assert heads.head is None
    # The release names a space by its revision, and a head's space is one.
    Head.start(space, 4).save(folder / "head")
    revision = releases.put_part("preference", parts, space=space)
    releases.publish({"space": space, "preference": revision}, "a test", "preference")
    assert heads.poll()
    assert heads.head is not None

    rows = []
    for k in range(60):
        covers = [sha256(f"item-{k}/{segment}".encode()) for segment in SEGMENTS]
        rows.append(
            {
                "item_id": f"item-{k}", "item_version": 1, "state": "ready", "generation": 1, "release": 1,
                "reference_image": "", "segment_ids": list(SEGMENTS), "cover_ids": covers, "fallbacks": [""] * 4,
                "scores": [0.0] * 4, "embeddings": pack(np.eye(4).tolist(), 4), "space": space,
                "width": 64, "height": 64,
            }
        )  # fmt: skip
    features.push("item_covers", rows)
    api_world.readers(features, {"ann": ("s-1", ""), "bob": ("s-1", "")})
    features.push("user_embedding", [{"user_id": "ann", "embedding": [0.0, 0, 0, 1], "space": space}])
    taste = {"user_id": "ann", "residual": [0.0, 0, 1, 0], "space": space, "pairs": 3}
    features.push("user_taste", [taste])
    switches = SwitchWatcher(store)
    switches.poll()
    app = create_app(settings, features, store, switches, heads, day=lambda: date(2026, 11, 21))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, features
    features.close()


def page(client: TestClient, **reader: str) -> list[dict]:
    answer = client.post("/v1/covers:batchGet", json={"item_ids": [f"item-{k}" for k in range(60)], **reader})
    assert answer.status_code == 200, answer.text
    return answer.json()["covers"]


def test_a_surface_has_a_policy_of_its_own_and_the_token_says_the_propensities(world):
    client, _ = world
    entries = page(client, user_id="ann", surface="home")
    raised = np.exp(np.array([0, 0, 1, 1]) / 0.5)  # imported embedding plus residual, by the cover of each segment
    expected = 0.8 * raised / raised.sum() + 0.2 / 4
    for entry in entries:
        decision = verify(entry["decision"], KEY)
        assert decision.policy == "softmax"
        assert decision.propensities == pytest.approx(expected, abs=1e-3)
    shown = Counter(entry["cover_segment"] for entry in entries)
    assert shown["s-2"] + shown["s-3"] > 40
    assert {entry["served"] for entry in entries if entry["cover_segment"] == "s-3"} <= {"other", "exploration"}
    assert page(client, user_id="ann", surface="home") == entries


def test_thompson_likes_what_the_person_may_like_and_elsewhere_it_is_the_segment(world):
    client, _ = world
    decisions = [verify(entry["decision"], KEY) for entry in page(client, user_id="ann", surface="mail")]
    assert {decision.policy for decision in decisions} == {"thompson"}
    assert all(sum(decision.propensities) == pytest.approx(1) for decision in decisions)
    assert all(min(decision.propensities) >= 0.05 for decision in decisions)
    assert all(sum(sorted(decision.propensities)[2:]) > 0.6 for decision in decisions)
    for surface in ("other", None):
        asked = {"user_id": "ann"} | ({"surface": surface} if surface else {})
        plain = [verify(entry["decision"], KEY) for entry in page(client, **asked)]
        assert {decision.policy for decision in plain} == {"segment"}
        assert {max(decision.propensities) for decision in plain} == {0.8 + 0.2 / 4}


def test_somebody_without_a_vector_gets_their_segments_cover(world):
    client, _ = world
    entries = page(client, user_id="bob", surface="home")
    decisions = [verify(entry["decision"], KEY) for entry in entries]
    assert {(decision.policy, max(decision.propensities)) for decision in decisions} == {("softmax", 0.8 + 0.2 / 4)}
    answer = client.get("/v1/covers/item-0", params={"user_id": "ann", "segment_id": "s-2", "surface": "home"})
    assert verify(answer.json()["decision"], KEY).propensities[2] == pytest.approx(0.85)
