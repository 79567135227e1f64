"""`icg publish`, `refresh` and `retract` against a real broker and store."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.zygote import Icg, Zygote
from workers.events import ItemPublish, ItemRefresh
from workers.exceptions import MessagingFault, UserError
from workers.messaging import Follower, Message
from workers.publishing import publish_file, send
from workers.settings import S3, Kafka, Settings, environment
from workers.storage import ObjectStore

ROOT = Path(__file__).resolve().parents[2]
BOOKS = ROOT.parent / "shared" / "data" / "standard_ebooks"


@pytest.fixture
def settings(own_kafka: Kafka, s3: S3, store: ObjectStore) -> Settings:
    return Settings(kafka=own_kafka, s3=s3)


def sent(settings: Settings, topic: str = ItemPublish.topic) -> list[Message]:
    follower = Follower(settings.kafka, topic)
    messages: list[Message] = []
    while not follower.caught_up():
        messages += follower.poll(1000, 0.2)
    follower.close()
    return messages


@pytest.fixture
def icg(light_zygote: Zygote) -> Icg:
    return lambda settings, *arguments: light_zygote.run(arguments, environment(kafka=settings.kafka, s3=settings.s3))


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_sample_catalogue_is_published_with_its_pictures(settings: Settings, store: ObjectStore) -> None:
    assert publish_file(settings, ROOT / "examples" / "catalogue.jsonl") == 24
    messages = sent(settings)
    events = [ItemPublish.decode(message.value) for message in messages]
    assert len(events) == 24
    for message, event in zip(messages, events, strict=True):
        assert message.key == event.item_id.encode()
        assert message.headers["ce_type"] == b"icg.item-publish.v1"
        assert event.reference_image is not None
        prefix, _, key = event.reference_image.partition(f"s3://{settings.s3.bucket}/")
        assert prefix == ""
        head = store.head(key)
        assert head is not None
        assert head.content_type == "image/webp"

    # Again: the same events under the same ids, and nothing new in the store.
    publish_file(settings, ROOT / "examples" / "catalogue.jsonl")
    ids = [message.headers["ce_id"] for message in sent(settings)]
    assert len(ids) == 48
    assert len(set(ids)) == 24
    assert len(list(store.list("references/"))) == 24


def test_one_bad_row_and_nothing_is_published(settings: Settings, store: ObjectStore, tmp_path: Path, icg: Icg) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    rows = [
        {"item_id": "good", "title": "x", "reference_image": "a.png"},
        {"item_id": "bad one", "title": "x"},
        {"item_id": "fine", "title": "y"},
    ]
    file = write(tmp_path / "items.jsonl", *rows)
    done = icg(settings, "publish", str(file))
    assert done.returncode == 2
    assert "items.jsonl row 2: item_id" in done.stderr
    assert "nothing is published" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert sent(settings) == []
    assert list(store.list("references/")) == []

    skipped = icg(settings, "publish", str(file), "--skip-bad")
    assert skipped.returncode == 0, skipped.stderr
    assert "row 2: item_id" in skipped.stderr
    assert skipped.stdout.startswith("published 2 items (1 new reference image, 1 bad row skipped) in ")
    assert [ItemPublish.decode(message.value).item_id for message in sent(settings)] in (
        ["good", "fine"],
        ["fine", "good"],
    )


def test_many_bad_rows_are_counted_not_listed(settings: Settings, tmp_path: Path) -> None:
    file = write(tmp_path / "items.jsonl", *({"item_id": "", "title": "x"} for _ in range(40)))
    with pytest.raises(UserError) as error:
        publish_file(settings, file, skip_bad=True)
    lines = str(error.value).splitlines()
    assert len(lines) == 7
    assert lines[5] == "… and 35 more bad rows"
    assert sent(settings) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("publish", "no-such-file.jsonl"), "No such file"),
        (("publish", "README.md"), "--format"),
        (("refresh", "a b"), "item_id"),
        (("retract", ".."), "item_id"),
    ],
)
def test_wrong_use_is_told_in_a_line(arguments: tuple[str, ...], says: str, tmp_path: Path, icg: Icg) -> None:
    nowhere = Settings(kafka=Kafka(bootstrap_servers="127.0.0.1:1"))
    done = icg(nowhere, *arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert says in done.stderr


def test_without_a_broker_it_gives_up_in_a_line() -> None:
    nowhere = Settings(kafka=Kafka(bootstrap_servers="127.0.0.1:1"))
    with pytest.raises(MessagingFault, match=r"no broker at 127\.0\.0\.1:1"):
        send(nowhere, [(ItemRefresh(item_id="a"), None)], 1, timeout=1)


def test_refresh_and_retract(settings: Settings, icg: Icg) -> None:
    asked = icg(settings, "refresh", "a", "b", "a", "--segment", "s-1", "--reason", "looks dull", "--priority", "3")
    assert asked.stdout.strip() == "asked for new covers of 2 items"
    events = [ItemRefresh.decode(each.value) for each in sent(settings, "item-refresh")]
    assert sorted((event.item_id, event.segments, event.reason, event.priority) for event in events) == [
        ("a", ("s-1",), "looks dull", 3),
        ("b", ("s-1",), "looks dull", 3),
    ]
    assert icg(settings, "retract", "a", "--version", "9").stdout.strip() == "retracted a with version 9"
    icg(settings, "retract", "b")
    retracted = {event.item_id: event for event in (ItemPublish.decode(each.value) for each in sent(settings))}
    assert (retracted["a"].item_version, retracted["a"].action) == (9, "retract")
    assert retracted["b"].item_version > 1_700_000_000_000  # the time in ms, above any version before


@pytest.mark.skipif(not BOOKS.is_dir(), reason="the shared data set is not here")
def test_real_titles_with_their_real_artwork(settings: Settings, store: ObjectStore, tmp_path: Path, icg: Icg) -> None:
    """41 books of Standard Ebooks, as a platform would export them: CSV, with pictures in a folder of their own."""
    with (BOOKS / "meta.csv").open(encoding="utf-8", newline="") as file:
        books = list(csv.DictReader(file))
    export = tmp_path / "books.csv"
    with export.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "item_version", "title", "reference_image", "category", "language"])
        for book in books:
            subject = (book["se_subjects"] or "Fiction").split("|")[0]
            writer.writerow([book["file"].removesuffix(".webp"), 1, book["title"], book["file"], subject, "en"])
    done = icg(settings, "publish", str(export), "--images", str(BOOKS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("published 41 items (41 new reference images, 0 bad rows skipped)")
    events = {event.item_id: event for event in (ItemPublish.decode(each.value) for each in sent(settings))}
    assert {event.title for event in events.values()} == {book["title"] for book in books}
    dracula = events["bram-stoker_dracula"]
    assert dracula.reference_image is not None
    stored = store.get(dracula.reference_image.removeprefix(f"s3://{settings.s3.bucket}/"))
    assert stored is not None
    assert stored.data == (BOOKS / "bram-stoker_dracula.webp").read_bytes()
