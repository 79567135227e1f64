"""The covers service, one process for this file: what each event comes to. Where that depends on how the servers order,
swap and hand over, on real ones as well (`ON_BOTH`); what they do when they fail is in `tests/faults`.
"""

import csv
import io
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from bench.stream_world import World, files_of, picture, publish
from infra.servers.process import free_port
from tests.servers import Real
from tests.unit.workers.covers.test_references import png_bomb
from tests.waiting import until
from tests.zygote import Child, Zygote
from workers.covers.inflight import GIVE_UP, parse, record_key
from workers.embedded import Embedded
from workers.events import ItemPublish, ItemRefresh, Outcome
from workers.policies import unpack
from workers.publishing import publish_entries, read_file
from workers.records import (
    RELEASE_KEY,
    Release,
    Sidecar,
    cover_key,
    part_prefix,
    sha256,
    sidecar_key,
)
from workers.settings import Covers, Feast, References

BOOKS = Path(__file__).resolve().parents[3] / "shared" / "data" / "standard_ebooks"

# As small as the real classes go: 50 ms a cover on one core.
SMALL = Covers(steps=2, width=32, height=32, slots=4, threads=1, batch_items=4)
LIMITS = References(max_bytes=200_000, max_pixels=1_000_000, timeout_seconds=3)
SEGMENTS = ("neutral", "a", "b", "c")


ON_BOTH = pytest.mark.real("kafka", "s3", light=True)


@pytest.fixture(scope="module")
def servers(own_servers: Embedded | Real) -> Embedded | Real:
    """Of its own: one test pauses them."""
    return own_servers


@pytest.fixture(scope="module")
def world(
    servers: Embedded | Real, _applied: Feast, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(_applied.repo, folder / "feast")
    feast = Feast(repo=folder / "feast", yaml=folder / "feast" / "feature_store.yaml")
    world = World(folder, servers.kafka, servers.s3, feast, tiny_model, SMALL, LIMITS)
    world.release()
    yield world
    world.close()


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def covers(zygote: Zygote, world: World, port: int) -> Iterator[Child]:
    environment = world.environment() | {"ICG_HEALTH_PORT": str(port)}
    faults = ["Blank", "Blank for some", "Impossible"]
    with zygote.start("covers", faults, environment, world.folder / "covers.log").running() as child:
        yield child


def ready(port: int) -> dict[str, str]:
    """The conditions of readiness that fail; {"process": …} while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=20) as answer:
            return dict(json.load(answer)["failed"])
    except urllib.error.HTTPError as error:
        return dict(json.load(error)["failed"])
    except OSError as error:
        return {"process": str(error)}


def metric(port: int, name: str) -> float:
    """The value of a metric, of all its labels unless `name` has some."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


@ON_BOTH
def test_an_item_gets_a_cover_for_every_segment(world: World, covers: Child) -> None:
    world.store.put_new("art/one.png", picture(1), "image/png")
    art = world.store.address("art/one.png")
    sources = [
        world.send(publish("both", reference_image=art, language="en")),
        world.send(publish("title-only")),
        world.send(
            ItemPublish(item_id="picture-only", item_version=1, reference_image=world.store.address("art/one.png"))
        ),
    ]
    world.wait(sources, 90, covers.check)
    for item_id, source in zip(("both", "title-only", "picture-only"), sources, strict=True):
        manifest = world.manifest(item_id)
        assert manifest is not None
        assert tuple(manifest.covers) == SEGMENTS
        assert (manifest.state, manifest.generation, manifest.release) == ("ready", 1, 1)
        [event] = world.ready[source]
        assert event.outcome is Outcome.DRAWN
        assert [cover.segment_id for cover in event.covers] == list(SEGMENTS)
        for segment, renditions in manifest.covers.items():
            cover = renditions["default"]
            stored = world.store.get(cover_key(item_id, cover.cover_id))
            beside = world.store.get(sidecar_key(item_id, cover.cover_id))
            assert stored is not None
            assert beside is not None
            sidecar = Sidecar.decode(beside.data)
            assert sha256(stored.data) == cover.sha256 == sidecar.sha256
            assert sidecar.inputs.cover_id() == cover.cover_id
            assert (sidecar.segment_id, len(sidecar.embedding), sidecar.release) == (segment, 64, 1)
            assert cover.rewards == sidecar.rewards
            assert "aesthetic" in cover.rewards
            assert (cover.width, cover.height, cover.fallback) == (32, 32, None)
        assert len({by["default"].sha256 for by in manifest.covers.values()}) == 4
        names = ("segment_ids", "cover_ids", "generation", "embeddings", "space")
        [row] = world.features.read([f"item_covers:{name}" for name in names], [{"item_id": item_id}])
        known = unpack(row["embeddings"], len(SEGMENTS))
        assert known is not None
        assert known[-1].tolist() == pytest.approx(sidecar.embedding, abs=1e-3)
        assert row["space"] == sidecar.space
        assert list(row["segment_ids"]) == list(SEGMENTS)
        assert list(row["cover_ids"]) == [by["default"].cover_id for by in manifest.covers.values()]
    assert world.dead == {}


@pytest.mark.skipif(not BOOKS.is_dir(), reason="the shared data set is not here")
def test_real_books_with_their_real_artwork_get_covers(
    world: World, covers: Child, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """41 books of Standard Ebooks, title and artwork, from a platform's file to covers for every segment."""
    with (BOOKS / "meta.csv").open(encoding="utf-8", newline="") as file:
        books = {book["file"].removesuffix(".webp"): book for book in csv.DictReader(file)}
    rows = [
        {"item_id": item_id, "item_version": 1, "title": book["title"], "reference_image": book["file"]}
        for item_id, book in books.items()
    ]
    (tmp_path / "books.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entries = read_file(world.settings, tmp_path / "books.jsonl", images=BOOKS).entries
    before = set(world.ready)
    assert publish_entries(world.settings, entries) == len(books) == 41

    def outcomes() -> dict[str, Outcome]:
        world.look(0.2)
        covers.check()
        events = (event for source, many in world.ready.items() if source not in before for event in many)
        return {event.item_id: event.outcome for event in events}

    until(lambda: len(outcomes()) == len(books), 240)
    assert set(outcomes().values()) == {Outcome.DRAWN}
    relevance = []
    for item_id in books:
        manifest = world.manifest(item_id)
        assert manifest is not None
        assert set(manifest.covers) == set(SEGMENTS)
        assert manifest.reference_sha256 == sha256((BOOKS / books[item_id]["file"]).read_bytes())
        relevance += [by["default"].rewards["relevance"] for by in manifest.covers.values()]
    record_property("covers", len(relevance))
    record_property("mean_relevance", float(np.mean(relevance)))
    print(f"41 real books: {len(relevance)} covers, mean relevance {np.mean(relevance):.3f} (untrained weights)")


def test_each_kind_of_bad_input_is_a_dead_letter_and_its_neighbours_get_covers(world: World, covers: Child) -> None:
    put = world.store.put_new
    put("art/large.png", b"\x89PNG\r\n\x1a\n" + b"x" * 200_001, "image/png")
    put("art/bomb.png", png_bomb(50_000), "image/png")
    put("art/text.png", b"I am not a picture", "image/png")
    put("art/cut.jpg", picture(2, (300, 300), "JPEG")[:-400], "image/jpeg")
    good = publish("x").model_dump(mode="json", exclude_none=True)

    def value(**changes: object) -> bytes:
        return json.dumps({**good, **changes}).encode()

    def shows(address: str) -> bytes:
        return value(reference_image=address)

    bad = {
        b"{not json": "not JSON",
        b"\xff\xfe": "JSON",
        b"[]": "Input should be an object",
        b"{}": "item_id: Field required",
        value(item_version="one"): "item_version: Input should be a valid integer",
        value(item_id="../etc/passwd"): "item_id",
        value(item_id=".."): "an id may not be",
        value(title="x" * 100_000): "title: String should have at most 500 characters",
        value(action="destroy"): "action: Input should be 'publish' or 'retract'",
        value(title=None): "needs a title, a reference_image or both",
        value(time="yesterday"): "time",
        shows("ftp://example.com/x.png"): "reference_image",
        shows(world.store.address("art/nowhere.png")): "reference image: not found",
        shows(world.store.address("art/large.png")): "more than 200,000 bytes",
        shows(world.store.address("art/bomb.png")): "more than 1,000,000 pixels",
        shows(world.store.address("art/text.png")): "not a PNG, JPEG or WebP picture",
        shows(world.store.address("art/cut.jpg")): "the picture is broken",
        shows("s3://secrets/x.png"): "the bucket 'secrets' is not allowed",
        shows("https://169.254.169.254/latest/meta-data/"): "not public",
        shows("https://localhost/x.png"): "no host of the public internet",
        shows("https://no-such-host.invalid/x.png"): "no host of the public internet",
    }
    sources = {world.send_raw(raw, key="same-partition"): reason for raw, reason in bad.items()}
    sources[world.send_raw(None, key="same-partition")] = "no value"
    neighbours = [world.send_raw(value(item_id=f"neighbour-{n}"), key="same-partition") for n in range(3)]
    world.wait([*sources, *neighbours], 90, covers.check)
    for source, reason in sources.items():
        assert reason in world.reason(source)
        assert len(world.dead[source]) == 1
        assert source not in world.ready
    assert [world.ready[source][0].outcome for source in neighbours] == [Outcome.DRAWN] * 3
    letter = world.dead[next(iter(sources))][0]
    assert (letter.key, letter.value) == (b"same-partition", b"{not json")
    assert letter.headers["dlq_service"] == b"covers"


# First and last position of each event at least once, and the orders in which an older version comes late.
ORDERS = [(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 1, 0), (3, 2, 0, 1), (0, 2, 3, 1), (1, 2, 0, 3)]


@ON_BOTH
def test_two_publishes_a_refresh_and_a_retract_of_one_item_in_many_orders(world: World, covers: Child) -> None:
    kinds = (
        lambda item: publish(item, 1),
        lambda item: publish(item, 2),
        lambda item: ItemRefresh(item_id=item, segments=("a",)),
        lambda item: ItemPublish(item_id=item, item_version=2, action="retract"),
    )
    outcomes: dict[tuple[int, int], Outcome] = {}
    for position in range(4):
        wave = {}
        for number, order in enumerate(ORDERS):
            event = kinds[order[position]](f"order-{number}")
            wave[world.send(event)] = (number, order[position])
            if position % 2:  # the platform says it again: another message of the same content
                world.send(event)
        world.wait(wave, 90, covers.check)
        outcomes |= {place: world.ready[source][0].outcome for source, place in wave.items()}
    for number, order in enumerate(ORDERS):
        manifest = world.manifest(f"order-{number}")
        assert manifest is not None
        assert (manifest.item_version, manifest.state, manifest.covers) == (2, "retracted", {})
        greater = min(order.index(1), order.index(3))
        assert outcomes[number, 0] is (Outcome.DRAWN if order.index(0) < greater else Outcome.SUPERSEDED)
        assert outcomes[number, 1] is (Outcome.DRAWN if order.index(1) < order.index(3) else Outcome.SUPERSEDED)
        assert outcomes[number, 3] is Outcome.RETRACTED
    [row] = world.features.read(["item_covers:state", "item_covers:cover_ids"], [{"item_id": "order-0"}])
    assert row["state"] == "retracted"
    assert not row["cover_ids"]


def test_a_refresh_of_nothing_or_for_no_release_changes_nothing(world: World, covers: Child) -> None:
    world.wait([world.send(publish("as-it-is"))], 60, covers.check)
    unknown = world.send(ItemRefresh(item_id="never-published"))
    no_release = world.send(ItemRefresh(item_id="as-it-is", release=1000))
    same = world.send(ItemRefresh(item_id="as-it-is"))
    before = world.manifest("as-it-is")
    world.wait([unknown, no_release, same], 60, covers.check)
    assert world.ready[unknown][0].outcome is Outcome.UNCHANGED
    assert world.manifest("never-published") is None
    assert world.reason(no_release) == "it wants release 1000, the newest is 1"
    assert world.ready[same][0].outcome is Outcome.UNCHANGED
    assert world.manifest("as-it-is") == before


def test_a_refresh_draws_for_a_segment_that_is_only_proposed(world: World, covers: Child) -> None:
    published = world.send(publish("ahead"))
    world.wait([published], 60, covers.check)
    before = world.manifest("ahead")
    assert before is not None
    [row] = world.features.read("cover_generation", [{"segment_id": "b"}])
    vector = [-x for x in row["vector"]]
    world.features.push("segment_profile", [{**row, "segment_id": "proposed", "vector": vector, "parent": "b"}])
    refresh = world.send(ItemRefresh(item_id="ahead", segments=("proposed", "nobody")))
    world.wait([refresh], 60, covers.check)
    after = world.manifest("ahead")
    assert after is not None
    assert world.ready[refresh][0].outcome is Outcome.DRAWN
    assert after.covers.keys() - before.covers.keys() == {"proposed"}
    cover = after.covers["proposed"]["default"]
    assert cover.fallback is None
    assert cover.cover_id not in {by["default"].cover_id for by in before.covers.values()}
    assert {name: after.covers[name] for name in before.covers} == before.covers


def test_a_segment_without_a_vector_shows_neutral(world: World, covers: Child, port: int) -> None:
    dead = len(world.dead)
    other = "f" * 64
    vector = [1.0] + [0.0] * 63
    good = world.features.read("cover_generation", [{"segment_id": "b"}])[0]
    world.features.push("segment_profile", [{"segment_id": "b", "vector": vector, "space": other, "users": 1}])
    time.sleep(2.1)  # the service keeps vectors for 2 s
    source = world.send(publish("half"))
    world.wait([source], 60, covers.check)
    manifest = world.manifest("half")
    assert manifest is not None
    assert manifest.covers["b"]["default"].fallback == "neutral"
    assert manifest.covers["b"]["default"].cover_id == manifest.covers["neutral"]["default"].cover_id
    assert manifest.covers["a"]["default"].fallback is None
    assert metric(port, 'icg_covers_vector_problems_total{problem="space"}') >= 1
    assert len(world.dead) == dead
    world.features.push("segment_profile", [good])
    time.sleep(2.1)


def test_a_cover_under_the_gate_is_not_published(world: World, covers: Child, port: int) -> None:
    world.store.put_new("art/two.png", picture(2), "image/png")
    some = world.send(publish("blank-some", title="Blank for some"))
    all_ = world.send(publish("blank-all", title="Blank", reference_image=world.store.address("art/two.png")))
    none = world.send(publish("blank-none", title="Blank"))
    world.wait([some, all_, none], 60, covers.check)
    found = {}
    for item_id in ("blank-some", "blank-all", "blank-none"):
        manifest = world.manifest(item_id)
        assert manifest is not None
        found[item_id] = {segment: by["default"] for segment, by in manifest.covers.items()}
    assert {segment: cover.fallback for segment, cover in found["blank-some"].items()} == {
        "neutral": None,
        "a": "neutral",
        "b": "neutral",
        "c": "neutral",
    }
    assert {cover.fallback for cover in found["blank-all"].values()} == {"reference"}
    [cover_id] = {cover.cover_id for cover in found["blank-all"].values()}
    stored = world.store.get(cover_key("blank-all", cover_id))
    assert stored is not None
    with Image.open(io.BytesIO(stored.data)) as shown:
        assert (shown.format, shown.size) == ("WEBP", (32, 32))
    assert found["blank-none"] == {}
    # Nothing that was refused is in the store: one neutral cover, one reference, nothing.
    counts = [len(list(world.store.list(f"covers/{item_id}/"))) for item_id in found]
    assert counts == [2, 2, 0]
    assert metric(port, 'icg_covers_gate_refusals_total{kind="segment"}') >= 9
    assert metric(port, "icg_covers_reference_fallbacks_total") >= 2


def test_what_cannot_be_drawn_is_found_and_its_neighbours_are_drawn(world: World, covers: Child) -> None:
    value = publish("x").model_dump(mode="json", exclude_none=True)
    titles = ["Possible", "Impossible", "Possible"]
    sources = [
        world.send_raw(json.dumps({**value, "item_id": f"try-{n}", "title": title}).encode(), key="same")
        for n, title in enumerate(titles)
    ]
    world.wait(sources, 60, covers.check)
    assert world.reason(sources[1]) == "it cannot be drawn: a size that does not fit"
    assert [world.ready[sources[n]][0].outcome for n in (0, 2)] == [Outcome.DRAWN] * 2


def test_while_servers_are_away_nothing_is_lost_and_it_goes_on_by_itself(
    world: World, covers: Child, servers: Embedded | Real, port: int
) -> None:
    until(lambda: ready(port) == {})
    dead = len(world.dead)
    first = [world.send(publish(f"away-{n}")) for n in range(4)]
    servers.pause_s3()
    until(lambda: "s3" in ready(port), 60)
    servers.resume_s3()
    world.wait(first, 90, covers.check)
    until(lambda: ready(port) == {}, 60)

    second = [world.send(publish(f"gone-{n}")) for n in range(4)]
    servers.pause_kafka()
    until(lambda: "kafka" in ready(port), 60)
    servers.resume_kafka()
    world.wait(second, 90, covers.check)
    until(lambda: ready(port) == {}, 60)
    outcomes = [world.ready[source][0].outcome for source in (*first, *second)]
    assert outcomes == [Outcome.DRAWN] * 8
    assert len(world.dead) == dead


def test_without_work_it_notices_too_that_a_store_is_away(
    world: World, covers: Child, servers: Embedded | Real, port: int
) -> None:
    until(lambda: ready(port) == {}, 60)
    servers.pause_s3()
    until(lambda: "s3" in ready(port), 60)
    servers.resume_s3()
    until(lambda: ready(port) == {}, 60)
    covers.check()


def _adapter(world: World, folder: Path, change: str) -> Path:
    """A copy of the adapter with other weights."""
    shutil.copytree(world.model / "adapter", folder)
    [file] = folder.rglob("*.safetensors")
    weights = load_file(file)
    name = max(weights, key=lambda each: weights[each].size)
    if change == "better":
        weights[name] = weights[name] + np.float32(0.05)
    elif change == "nan":
        weights[name].flat[3] = np.nan
    elif change == "shape":
        weights[name] = weights[name].reshape(-1)
    save_file(weights, file)
    return folder


def test_a_release_is_swapped_in_whole_between_batches(world: World, covers: Child, port: int, tmp_path: Path) -> None:
    world.wait([world.send(publish("drawn-before"))], 60, covers.check)
    adapter = world.releases.put_part(
        "adapter", files_of(_adapter(world, tmp_path / "adapter", "better")), space=world.revisions["space"]
    )
    sources = [world.send(publish(f"swap-{n}")) for n in range(6)]
    # The same version of other content: whoever has to be drawn again under the new release keeps its place before it.
    repeats = [world.send(publish(f"swap-{n}", title="Another")) for n in range(6)]
    release = world.releases.publish({"adapter": adapter}, "better", "adapter")
    until(lambda: metric(port, "icg_release") == release.number, 60)
    sources += [world.send(publish(f"swap-{n}")) for n in range(6, 9)]
    refresh = world.send(ItemRefresh(item_id="drawn-before", release=release.number, segments=("a",)))
    world.wait([*sources, *repeats, refresh], 90, covers.check)
    assert [world.ready[repeat][0].outcome for repeat in repeats] == [Outcome.UNCHANGED] * 6
    revisions = {1: world.revisions["adapter"], release.number: adapter}
    numbers = set()
    for n in range(9):
        manifest = world.manifest(f"swap-{n}")
        assert manifest is not None
        numbers.add(manifest.release)
        for renditions in manifest.covers.values():
            beside = world.store.get(sidecar_key(f"swap-{n}", renditions["default"].cover_id))
            assert beside is not None
            assert Sidecar.decode(beside.data).inputs.adapter == revisions[manifest.release]
    assert release.number in numbers
    before = world.manifest("drawn-before")
    assert before is not None
    assert (before.generation, before.release, before.published_by.topic) == (2, release.number, "item-publish")
    world.revisions["adapter"] = adapter


def test_a_wrong_release_is_refused_and_the_old_one_stays(
    world: World, covers: Child, port: int, tmp_path: Path
) -> None:
    space = world.revisions["space"]
    good = world.releases.current()
    assert good is not None
    in_use = metric(port, "icg_release")
    put = world.releases.put_part
    wrong = {
        name: put("adapter", files_of(_adapter(world, tmp_path / name, name)), space=space) for name in ("nan", "shape")
    }
    wrong["hash"] = _damaged(world, tmp_path)
    wrong["space"] = put("adapter", files_of(world.model / "adapter"), space="e" * 64)
    wrong["missing"] = "d" * 64
    for count, (name, revision) in enumerate(wrong.items(), start=1):
        _force(world, Release(number=int(in_use) + count, parts={**good.parts, "adapter": revision}, reason=name))
        until(lambda count=count: metric(port, "icg_covers_releases_refused_total") == count, 60)
        assert metric(port, "icg_release") == in_use
    source = world.send(publish("after-the-wrong-ones"))
    world.wait([source], 60, covers.check)
    manifest = world.manifest("after-the-wrong-ones")
    assert manifest is not None
    assert manifest.release == in_use
    number = int(in_use) + len(wrong) + 1
    _force(world, Release(number=number, parts=good.parts, reason="right again"))
    until(lambda: metric(port, "icg_release") == number, 60)


def _damaged(world: World, folder: Path) -> str:
    """A part of which a file in the store is not what its card says."""
    revision = world.releases.put_part(
        "adapter",
        {**files_of(_adapter(world, folder / "damaged", "better")), "note.txt": b"x"},
        space=world.revisions["space"],
    )
    key = part_prefix("adapter", revision) + "note.txt"
    world.store.delete(key)
    world.store.put_new(key, b"y", "text/plain")
    return revision


def _force(world: World, release: Release) -> None:
    """Write `models/release.json` past all checks, and announce it."""
    from workers.events import ModelUpdate

    world.store.update(RELEASE_KEY, lambda _: release.encode())
    update = ModelUpdate(number=release.number, part="adapter", parts=dict(release.parts))
    world.producer.send_event(update).result(20)


@ON_BOTH
def test_sigterm_drains_and_the_next_worker_goes_on(world: World, covers: Child, zygote: Zygote) -> None:
    sources = [world.send(publish(f"drain-{n}")) for n in range(16)]
    world.wait(sources[:1], 60, covers.check)
    assert covers.terminate() == 0
    world.look(0.5)
    # What was given up counts no death: it was nobody's fault.
    for _, partition, offset in sources:
        record = world.store.get(record_key(("item-publish", partition)))
        assert record is not None
        assert offset not in parse(record.data)
    with zygote.start("covers", [], world.environment(), world.folder / "covers2.log").running() as again:
        world.wait(sources, 90, again.check)
        assert again.terminate() == 0
    for n, source in enumerate(sources):
        manifest = world.manifest(f"drain-{n}")
        assert manifest is not None
        assert manifest.generation == 1
        assert {event.outcome for event in world.ready[source]} == {Outcome.DRAWN}
        assert len({event.event_id() for event in world.ready[source]}) == 1


def test_an_event_that_needs_no_drawing_is_not_given_up(world: World, zygote: Zygote) -> None:
    """What had just been announced when the worker was killed comes again, with one death more on record."""
    partition = world.send(publish("announced"))[1]
    with zygote.start("covers", [], world.environment(), world.folder / "covers5.log").running() as first:
        until(lambda: world.manifest("announced") is not None, 90)
        assert first.terminate() == 0
    again = world.send(publish("announced"))
    assert again[1] == partition
    key = record_key(again[:2])
    record = world.store.get(key)
    assert record is not None
    world.store.put_if(key, json.dumps({str(again[2]): GIVE_UP}).encode(), record.etag)
    with zygote.start("covers", [], world.environment(), world.folder / "covers6.log").running() as second:
        world.wait([again], 90, second.check)
        assert second.terminate() == 0
    assert again not in world.dead
    assert world.ready[again][0].outcome is Outcome.UNCHANGED


def test_sigterm_is_obeyed_though_the_store_is_away(world: World, zygote: Zygote, servers: Embedded | Real) -> None:
    port = free_port()
    environment = world.environment() | {"ICG_HEALTH_PORT": str(port)}
    with zygote.start("covers", [], environment, world.folder / "covers3.log").running() as first:
        until(lambda: ready(port) == {}, 90)
        servers.pause_s3()
        try:
            source = world.send(publish("undecided"))
            until(lambda: "s3" in ready(port), 60)
            assert first.terminate(60) == 0
        finally:
            servers.resume_s3()
    with zygote.start("covers", [], world.environment(), world.folder / "covers4.log").running() as again:
        world.wait([source], 90, again.check)
        assert again.terminate(60) == 0
    assert {event.outcome for event in world.ready[source]} == {Outcome.DRAWN}
