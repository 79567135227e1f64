"""The api over a real feature store and a real (embedded) S3: every status, every fallback, the switches."""

from __future__ import annotations

import io
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from bench import api_world
from workers.api.app import create_app
from workers.api.models import Answer, BatchAnswer, ItemCovers, ItemList, Lineage, Problem
from workers.decisions import BadToken, verify
from workers.embedded import Embedded
from workers.events import NEUTRAL
from workers.features import Features
from workers.settings import Api, Feast, Settings
from workers.storage import ObjectStore
from workers.switches import SwitchWatcher, apply, block, personalize, unblock

SEGMENTS = (NEUTRAL, "s-1", "s-2", "s-3")
NOBODY = "x" * 128


class World(SimpleNamespace):
    """One api, its stores, and what was written to them."""

    settings: Settings
    features: Features
    store: ObjectStore
    switches: SwitchWatcher
    client: TestClient

    def get(self, path: str, status: int = 200, **parameters: str):
        answer = self.client.get(path, params=parameters, follow_redirects=False)
        assert answer.status_code == status, answer.text
        return answer

    def problem(self, path: str, status: int, **parameters: str) -> Problem:
        answer = self.get(path, status, **parameters)
        assert answer.headers["content-type"] == "application/problem+json"
        problem = Problem.model_validate_json(answer.content)
        assert (problem.status, problem.instance) == (status, path)
        return problem

    def page(self, *items: str, **reader: str) -> list[dict]:
        answer = self.client.post("/v1/covers:batchGet", json={"item_ids": list(items), **reader})
        assert answer.status_code == 200, answer.text
        BatchAnswer.model_validate_json(answer.content)
        return answer.json()["covers"]

    def switch(self, change) -> None:
        apply(self.store, change)
        assert self.switches.poll()


def build(embedded: Embedded, feast: Feast, *, exploration: float = 0.0) -> World:
    s3 = embedded.s3.model_copy(update={"bucket": f"api-{uuid.uuid4().hex[:12]}"})
    settings = Settings(s3=s3, feast=feast, api=Api(exploration=exploration))
    store, features = ObjectStore(s3), Features(feast, tries=1)
    store.ensure_bucket()
    switches = SwitchWatcher(store)
    switches.poll()
    app = create_app(settings, features, store, switches, day=lambda: date(2026, 11, 21))
    client = TestClient(app, raise_server_exceptions=False)
    return World(settings=settings, features=features, store=store, switches=switches, client=client)


def feast_copy(embedded: Embedded, folder: Path) -> Feast:
    shutil.copytree(embedded.feast.repo, folder)
    return Feast(repo=folder, yaml=folder / "feature_store.yaml")


@pytest.fixture(scope="module")
def filled(embedded: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = build(embedded, feast_copy(embedded, tmp_path_factory.mktemp("api") / "feast"))
    both = (world.features, world.store)
    publish = api_world.publish
    reference = "https://platform.example/picture.jpg"
    world.covers = {
        "full": publish(*both, "full", title="<b>Full</b>", segments=SEGMENTS, pictures=True),
        "gated": publish(*both, "gated", segments=SEGMENTS, fallbacks={"s-1": "neutral"}, reference=reference),
        "bare": publish(
            *both, "bare", segments=SEGMENTS, fallbacks=dict.fromkeys(SEGMENTS, "reference"), reference=reference
        ),
        "nothing": publish(*both, "nothing", segments=()),
        "no-copy": publish(*both, "no-copy", segments=(), reference=reference),
        "only-neutral": publish(*both, "only-neutral", segments=(NEUTRAL,)),
        "gone": publish(*both, "gone", segments=SEGMENTS, state="retracted", generation=2),
        "only-s3": publish(None, world.store, "only-s3", segments=SEGMENTS, generation=4),
        "gone-s3": publish(None, world.store, "gone-s3", segments=(), state="retracted"),
    }
    api_world.readers(
        world.features, {"ann": ("s-1", "s-2"), "bob": ("new", "s-2"), "cat": ("new", "gone"), "dan": (NEUTRAL, "")}
    )
    rows = [{"segment_id": "late", "vector": [0.0], "parent": "s-3", "space": "", "segments": "", "users": 9}]
    world.features.push("segment_profile", rows)
    with world.client:
        yield world
    world.features.close()


@pytest.fixture
def world(filled: World) -> Iterator[World]:
    yield filled
    filled.store.delete("switches.json")
    filled.switches.poll()


@pytest.mark.parametrize(
    ("item", "reader", "segment", "served", "fallback", "drawn_for"),
    [
        ("full", {"user_id": "ann"}, "s-1", "segment", None, "s-1"),
        ("full", {"user_id": "bob"}, "new", "parent", "no_cover", "s-2"),
        ("full", {"user_id": "cat"}, "new", "neutral", "no_cover", NEUTRAL),
        ("full", {"user_id": "dan"}, NEUTRAL, "neutral", None, NEUTRAL),
        ("full", {"user_id": "unheard-of"}, NEUTRAL, "neutral", "user_unknown", NEUTRAL),
        ("full", {}, NEUTRAL, "neutral", "anonymous", NEUTRAL),
        ("full", {"segment_id": "s-3"}, "s-3", "segment", None, "s-3"),
        ("full", {"segment_id": "late"}, "late", "parent", "no_cover", "s-3"),
        ("full", {"segment_id": "never"}, "never", "neutral", "no_cover", NEUTRAL),
        ("full", {"user_id": "ann", "segment_id": "s-2"}, "s-2", "segment", None, "s-2"),
        ("gated", {"user_id": "ann"}, "s-1", "parent", "gate", "s-2"),
        ("gated", {"segment_id": "s-1"}, "s-1", "neutral", "gate", NEUTRAL),
        ("only-neutral", {"user_id": "ann"}, "s-1", "neutral", "no_cover", NEUTRAL),
        ("bare", {"user_id": "ann"}, "s-1", "reference", "gate", None),
        ("only-s3", {"user_id": "ann"}, "s-1", "segment", None, "s-1"),
    ],
)
def test_the_chain(world: World, item, reader, segment, served, fallback, drawn_for):
    answer = Answer.model_validate_json(world.get(f"/v1/covers/{item}", **reader).content)
    assert (answer.segment_id, answer.served, answer.fallback, answer.cover_segment) == (
        segment, served, fallback, drawn_for,
    )  # fmt: skip
    assert answer.cover_id == world.covers[item][drawn_for or NEUTRAL]
    assert (answer.width, answer.height) == (64, 64)
    if served == "reference":
        assert answer.decision is None
        assert f"/{answer.cover_id}.webp?" in answer.image  # our copy, in our size
    else:
        assert answer.decision is not None
        decision = verify(answer.decision, world.settings.api.decision_key.get_secret_value().encode())
        assert (decision.chosen, decision.item_id, decision.day) == (answer.cover_id, item, "2026-11-21")
        assert (decision.generation, decision.propensity, decision.segment_id) == (answer.generation, 1.0, segment)
    assert _without_address(world.page(item, **reader)[0]) == _without_address(answer.model_dump(mode="json"))


def test_the_image_of_an_answer_can_be_fetched_as_it_is(world: World):
    import httpx

    answer = world.get("/v1/covers/full", user_id="ann").json()
    picture = httpx.get(answer["image"])
    assert picture.status_code == 200
    assert Image.open(io.BytesIO(picture.content)).size == (answer["width"], answer["height"])


@pytest.mark.parametrize(
    ("item", "status", "kind"),
    [
        ("unheard-of", 404, "unknown-item"),
        ("nothing", 404, "no-cover"),
        ("gone", 410, "retracted"),
        ("gone-s3", 410, "retracted"),
        ("..", 404, "unknown-path"),
        ("%2e%2e", 422, "bad-request"),
        ("%2e%2e%2fx", 422, "bad-request"),
        ("a b", 422, "bad-request"),
        (NOBODY + "x", 422, "bad-request"),
    ],
)
def test_each_refusal_is_a_problem_document(world: World, item, status, kind):
    answer = world.client.get(f"/v1/covers/{item}")
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert Problem.model_validate_json(answer.content).type == f"urn:icg:problem:{kind}"
    assert answer.headers["cache-control"] == "no-store"
    assert len(answer.content) < 1000


def test_a_bad_reader_is_refused(world: World):
    assert "user_id" in world.problem("/v1/covers/full", 422, user_id="../x").detail
    assert world.client.post("/v1/covers:batchGet", json={"item_ids": ["full"], "user_id": "a b"}).status_code == 422


def test_unknown_paths_and_methods_are_problems_too(world: World):
    assert world.problem("/v2/covers", 404).type == "urn:icg:problem:unknown-path"
    answer = world.client.delete("/v1/covers/full")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_page_of_200_keeps_its_order_and_its_bad_entries_to_themselves(world: World):
    kinds = ["full", "unheard-of", "gone", "../x", "only-s3", "nothing", "gone-s3", "full"]
    asked = [kinds[k % len(kinds)] for k in range(200)]
    entries = world.page(*asked, user_id="ann")
    assert [entry["item_id"] for entry in entries] == asked
    statuses = {entry["item_id"]: entry["problem"]["status"] for entry in entries if "problem" in entry}
    assert statuses == {"unheard-of": 404, "gone": 410, "../x": 422, "nothing": 404, "gone-s3": 410}
    assert {e["cover_id"] for e in entries if e["item_id"] == "full"} == {world.covers["full"]["s-1"]}


@pytest.mark.parametrize(
    "body",
    [{"item_ids": []}, {"item_ids": ["a"] * 201}, {"item_ids": ["a"], "user": "ann"}, {"item_ids": "a"}, {}, [], None],
)
def test_a_page_that_is_none_is_refused(world: World, body):
    answer = world.client.post("/v1/covers:batchGet", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"item_ids": ["\\ud800"]}', b"[" * 100_000])
def test_a_body_that_is_no_json_is_refused(world: World, content):
    answer = world.client.post("/v1/covers:batchGet", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert Problem.model_validate_json(answer.content).type == "urn:icg:problem:bad-request"


def test_a_body_that_goes_on_and_on_is_cut_off(world: World):
    def chunks() -> Iterator[bytes]:
        yield b'{"item_ids": ["'
        for _ in range(64):
            yield b"a" * 8192

    for content in (b"x" * 300_000, chunks()):
        answer = world.client.post("/v1/covers:batchGet", content=content)
        assert (answer.status_code, answer.json()["type"]) == (413, "urn:icg:problem:too-large")


def test_all_covers_of_an_item_have_an_etag(world: World):
    answer = world.get("/v1/items/gated/covers")
    item = ItemCovers.model_validate_json(answer.content)
    assert [(c.segment_id, c.fallback) for c in item.covers] == [
        (NEUTRAL, None), ("s-1", "neutral"), ("s-2", None), ("s-3", None),
    ]  # fmt: skip
    assert all(cover.score is not None for cover in item.covers)
    again = world.client.get("/v1/items/gated/covers", headers={"If-None-Match": f'"x", W/{answer.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]
    assert world.get("/v1/items/gone/covers", 410)


def test_covers_read_from_a_manifest_have_no_scores(world: World):
    item = ItemCovers.model_validate_json(world.get("/v1/items/only-s3/covers").content)
    assert (item.generation, {cover.score for cover in item.covers}) == (4, {None})


def test_a_reference_image_without_a_copy_of_ours_is_the_platforms_own(world: World):
    answer = Answer.model_validate_json(world.get("/v1/covers/no-copy", user_id="ann").content)
    assert (answer.served, answer.cover_id, answer.decision, answer.width) == ("reference", None, None, None)
    assert (answer.image, answer.image_valid_until) == ("https://platform.example/picture.jpg", None)
    assert world.get("/v1/covers/no-copy/image", 307).headers["location"] == answer.image


def test_a_blocked_cover_is_gone_everywhere_until_it_is_unblocked(world: World):
    cover = world.covers["full"]["s-1"]
    path = f"/v1/covers/full/{cover}"
    world.switch(block(cover, "a logo in it", "ada", _now()))
    answer = world.get("/v1/covers/full", user_id="ann").json()
    assert (answer["cover_segment"], answer["served"], answer["fallback"]) == ("s-2", "parent", "blocked")
    assert cover not in world.get("/v1/items/full/covers").text
    assert world.problem(f"{path}/image", 410).type == "urn:icg:problem:blocked"
    lineage = Lineage.model_validate_json(world.get(path).content)
    assert lineage.blocked  # analysts still see where it came from
    assert [c["blocked"] for c in _listed(world, "full")["covers"]] == [False, True, False, False]

    world.switch(unblock(cover, "redrawn", "ada", _now()))
    assert world.get("/v1/covers/full", user_id="ann").json()["cover_id"] == cover
    assert world.get(f"{path}/image").status_code == 200


def test_personalization_off_gives_everybody_the_neutral_cover(world: World):
    world.switch(personalize(False, "complaints", "ada", _now()))
    for reader in ({"user_id": "ann"}, {"segment_id": "s-3"}, {}):
        answer = world.get("/v1/covers/full", **reader).json()
        assert (answer["cover_id"], answer["segment_id"]) == (world.covers["full"][NEUTRAL], NEUTRAL)
        assert (answer["served"], answer["fallback"]) == ("neutral", "personalization_off")
    assert not ItemList.model_validate_json(world.get("/v1/items").content).personalization


def test_a_picture_is_given_by_the_api_where_readers_cannot_reach_the_store(world: World):
    answer = world.get("/v1/covers/full/image", user_id="ann")
    assert answer.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    cover = world.covers["full"]["s-1"]
    assert answer.headers["etag"] == f'"{cover}"'
    same = world.client.get(f"/v1/covers/full/{cover}/image", headers={"If-None-Match": f'"{cover}"'})
    assert same.status_code == 304
    assert world.problem(f"/v1/covers/full/{'0' * 64}/image", 404).type == "urn:icg:problem:unknown-cover"
    assert world.get(f"/v1/covers/gone/{world.covers['gone'][NEUTRAL]}/image", 410)


def test_a_public_store_gives_its_pictures_itself(world: World):
    s3 = world.settings.s3.model_copy(update={"public_endpoint": "https://covers.example"})
    settings = world.settings.model_copy(update={"s3": s3})
    client = TestClient(create_app(settings, world.features, world.store, world.switches))
    cover = world.covers["full"]["s-1"]
    for path in ("/v1/covers/full/image?segment_id=s-1", f"/v1/covers/full/{cover}/image"):
        answer = client.get(path, follow_redirects=False)
        assert answer.status_code == 307
        assert answer.headers["location"].startswith(f"https://covers.example/{s3.bucket}/covers/full/{cover}.webp?X-")
    assert "img-src 'self' data: https://covers.example;" in client.get("/").headers["content-security-policy"]


def test_a_reference_image_is_passed_on_only_if_it_is_a_picture(world: World):
    assert world.get("/v1/items/full/reference").headers["content-type"] == "image/png"
    elsewhere = world.get("/v1/items/bare/reference", 307)
    assert elsewhere.headers["location"] == "https://platform.example/picture.jpg"
    world.store.put_new("references/evil", b"<script>alert(1)</script>", "image/png")
    evil, foreign = world.store.address("references/evil"), "s3://somebody-elses/secret"
    for item, reference in (("evil", evil), ("foreign", foreign), ("absent", world.store.address("no/such"))):
        api_world.publish(world.features, world.store, item, segments=(NEUTRAL,), reference=reference)
        assert world.problem(f"/v1/items/{item}/reference", 404).type == "urn:icg:problem:no-cover"


def test_lineage_is_the_sidecar_without_the_embedding(world: World):
    cover = world.covers["full"]["s-2"]
    answer = world.get(f"/v1/covers/full/{cover}")
    lineage = Lineage.model_validate_json(answer.content)
    assert (lineage.cover_id, lineage.segment_id, lineage.source["topic"]) == (cover, "s-2", "item-publish")
    assert lineage.inputs["seed"] > 2**53  # larger than a JavaScript number: the gallery reads its digits
    assert "embedding" not in answer.json()
    assert world.problem(f"/v1/covers/full/{'0' * 64}", 404)
    assert world.problem("/v1/covers/full/short", 422)


def test_items_are_listed_by_page_without_retracted_ones_and_change_only_when_they_do(world: World):
    listed, after = [], None
    for _ in range(20):
        answer = world.get("/v1/items", limit="3", **({"after": after} if after else {}))
        page = ItemList.model_validate_json(answer.content)
        listed += [item.item_id for item in page.items]
        after = page.next
        if after is None:
            break
    assert after is None
    assert len(listed) == len(set(listed))
    assert {"full", "gated", "bare", "only-s3"} <= set(listed)
    assert not {"gone", "gone-s3"} & set(listed)
    tag = world.get("/v1/items").headers["etag"]
    assert world.client.get("/v1/items", headers={"If-None-Match": tag}).status_code == 304
    api_world.publish(world.features, world.store, "gated", title="New", segments=SEGMENTS, version=2, generation=2)
    assert world.client.get("/v1/items", headers={"If-None-Match": tag}).status_code == 200
    assert _listed(world, "gated")["title"] == "New"
    api_world.publish(
        world.features, world.store, "gated", segments=SEGMENTS, fallbacks={"s-1": "neutral"}, generation=3,
        reference="https://platform.example/picture.jpg",
    )  # fmt: skip


def test_exploration_is_sticky_and_its_propensities_are_in_the_token(embedded: Embedded, tmp_path: Path):
    world = build(embedded, feast_copy(embedded, tmp_path / "feast"), exploration=0.5)
    key = world.settings.api.decision_key.get_secret_value().encode()
    items = [f"item-{k}" for k in range(200)]
    api_world.publish_rows(world.features, items, SEGMENTS)
    api_world.readers(world.features, {"ann": ("s-1", "s-2")})
    with world.client:
        first, again = world.page(*items, user_id="ann"), world.page(*items, user_id="ann")
        # All but the addresses, which change twice in their life, each at a moment of its own.
        assert [_without_address(entry) for entry in first] == [_without_address(entry) for entry in again]
        decisions = [verify(entry["decision"], key) for entry in first]
        assert all(sum(decision.propensities) == pytest.approx(1.0) for decision in decisions)
        own = [entry["cover_segment"] == "s-1" for entry in first]
        # p = 0.5 + 0.5 / 4, so 125 of 200 expected, standard deviation 6.8; the hashes are fixed.
        assert 95 < sum(own) < 155
        expected = {True: pytest.approx(0.625), False: pytest.approx(0.125)}
        assert all(d.propensity == expected[mine] for d, mine in zip(decisions, own, strict=True))
        assert {entry["served"] for entry in first} == {"segment", "parent", "neutral", "exploration"}
        assert {e["cover_segment"] for e in world.page(*items, segment_id="s-1")} == {"s-1"}
        with pytest.raises(BadToken):
            verify(first[0]["decision"], b"another key")
    world.features.close()


def test_an_outage_of_feast_is_503_and_ends_with_it(embedded: Embedded, tmp_path: Path):
    world = build(embedded, feast_copy(embedded, tmp_path / "feast"))
    api_world.publish(world.features, None, "full", segments=SEGMENTS)
    file = next(tmp_path.rglob("online_store.db"))
    with world.client:
        assert world.get("/readyz").json()["ready"]
        # A real outage of SQLite: its table is taken away from under the open connection.
        with sqlite3.connect(file) as connection:
            name = next(
                row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE '%item_covers'")
            )
            connection.execute(f'ALTER TABLE "{name}" RENAME TO away')
        answer = world.get("/v1/covers/full", 503)
        assert answer.headers["retry-after"] == "2"
        assert answer.json()["type"] == "urn:icg:problem:unavailable"
        assert world.client.post("/v1/covers:batchGet", json={"item_ids": ["full"]}).status_code == 503
        with sqlite3.connect(file) as connection:
            connection.execute(f'ALTER TABLE away RENAME TO "{name}"')
        assert world.get("/v1/covers/full").json()["item_id"] == "full"
    world.features.close()


def test_s3_away_costs_only_what_feast_does_not_have(embedded: Embedded, tmp_path: Path):
    world = build(embedded, feast_copy(embedded, tmp_path / "feast"))
    away = world.settings.s3.model_copy(update={"endpoint": "http://127.0.0.1:1"})
    store = ObjectStore(away, timeout=1, attempts=1)
    api_world.publish(world.features, None, "full", segments=SEGMENTS)
    client = TestClient(create_app(world.settings, world.features, store, world.switches))
    entries = client.post("/v1/covers:batchGet", json={"item_ids": ["full", "missed"]}).json()["covers"]
    assert entries[0]["cover_id"]
    assert entries[1]["problem"]["status"] == 503
    assert client.get("/v1/covers/missed").headers["retry-after"] == "2"
    assert client.get("/readyz").json()["ready"]
    assert client.get("/v1/items").status_code == 503
    watcher = SwitchWatcher(store)
    watcher.state = world.switches.state
    assert not watcher.poll()
    assert not watcher.known.is_set()
    world.features.close()


def test_it_says_how_it_is(world: World):
    assert world.get("/healthz").json() == {"alive": True}
    ready = world.get("/readyz").json()
    assert ready == {"ready": True, "conditions": {"feast": True, "switches": True, "s3": True}}
    world.get("/v1/covers/full", user_id="bob")
    text = world.get("/metrics").text
    assert 'icg_api_served_total{fallback="no_cover",served="parent"}' in text
    assert 'icg_api_request_seconds_count{method="GET",route="/v1/covers/{item_id}",status="200"}' in text


def test_the_gallery_is_one_page_under_its_policy(world: World):
    answer = world.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "{{" not in answer.text


def test_openapi_has_a_summary_for_each_route_and_problems_for_each_refusal(world: World):
    schema = world.get("/openapi.json").json()
    assert "Problem" in schema["components"]["schemas"]
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            for status, response in operation["responses"].items():
                if status.startswith("4") or (status == "503" and path.startswith("/v1")):
                    assert set(response["content"]) == {"application/problem+json"}, (path, status)


def _without_address(entry: dict) -> dict:
    return {name: value for name, value in entry.items() if not name.startswith("image")}


def _listed(world: World, item_id: str) -> dict:
    return next(item for item in world.get("/v1/items").json()["items"] if item["item_id"] == item_id)


def _now():
    from datetime import UTC, datetime

    return datetime.now(UTC)
