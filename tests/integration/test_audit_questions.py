"""What `icg audit` answers, on tables made from real events, and what it says when it is asked wrongly."""

from __future__ import annotations

import csv
import io
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.zygote import Icg, Zygote
from workers.audit import questions
from workers.audit.pseudonyms import Pseudonyms
from workers.audit.sink import Sink
from workers.audit.views import Views
from workers.embedded import Embedded
from workers.events import (
    BehaviorKind,
    CoverReady,
    Event,
    ItemPublish,
    ModelUpdate,
    Outcome,
    ReadyCover,
    Source,
    UserBehavior,
    headers_for,
)
from workers.exceptions import UserError
from workers.messaging import Message
from workers.records import CoverInputs, Rendition, Sidecar, seed_of, sha256, sidecar_key
from workers.settings import S3, Settings, environment
from workers.storage import ObjectStore

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def digest(text: str) -> str:
    return sha256(text.encode())


class World:
    """A stream that is written into the tables as the service would."""

    def __init__(self, s3: S3, store: ObjectStore) -> None:
        self.s3, self.store = s3, store
        self.sink = Sink(Settings(s3=s3))
        self.offset = 0

    def add(self, event: Event, at: datetime, event_id: str | None = None) -> Source:
        headers = headers_for(event, event_id or f"e{self.offset}", "/test")
        message = Message(event.topic, 0, self.offset, b"k", event.encode(), headers, round(at.timestamp() * 1000))
        self.sink.take([message])
        self.offset += 1
        return message.source()

    def ready(
        self,
        source: Source,
        at: datetime,
        *,
        version: int = 1,
        generation: int = 1,
        release: int = 1,
        covers: dict[str, str],
        **changes: Any,
    ) -> None:
        """An item with a cover (by name) for each segment, and the sidecar of each."""
        listed = []
        for segment, name in covers.items():
            cover_id = digest(name)
            self._sidecar(cover_id, segment, version, release, source)
            listed.append(
                ReadyCover(
                    segment_id=segment,
                    rendition="default",
                    cover_id=cover_id,
                    address=f"s3://icg/covers/lantern/{cover_id}.webp",
                    sha256=digest(f"bytes of {name}"),
                    width=64,
                    height=64,
                    rewards={"aesthetic": 0.5, "relevance": 0.25},
                )
            )
        values = {"action": "ready", "outcome": Outcome.DRAWN} | changes
        event = CoverReady(
            item_id="lantern",
            item_version=version,
            source=source,
            covers=tuple(listed),
            release=release,
            generation=generation,
            time=at,
            **values,
        )
        for _ in range(2):  # the service was killed once, and said it again
            self.add(event, at + timedelta(seconds=1), event.event_id())

    def _sidecar(self, cover_id: str, segment: str, version: int, release: int, source: Source) -> None:
        inputs = CoverInputs(
            item_id="lantern",
            item_version=version,
            title_sha256=digest("title"),
            reference_sha256=None,
            vector_sha256="neutral",
            base=digest("base"),
            mllm=digest("mllm"),
            adapter=digest("adapter"),
            sampler={"steps": 20},
            seed=seed_of("lantern", version),
            rendition=Rendition(),
        )
        sidecar = Sidecar(
            cover_id=cover_id,
            item_id="lantern",
            item_version=version,
            segment_id=segment,
            sha256=digest("bytes"),
            bytes=100,
            inputs=inputs,
            rewards={"aesthetic": 0.5},
            embedding=[0.0],
            space=digest("space"),
            release=release,
            source=source,
        )
        self.store.put_new(sidecar_key("lantern", cover_id), sidecar.encode(), "application/json")

    def shown(self, user: str, segment: str, cover: str, clicked: bool, at: datetime, n: int) -> None:
        common: dict[str, Any] = {
            "user_id": user,
            "item_id": "lantern",
            "cover_id": digest(cover),
            "segment_id": segment,
            "impression_id": f"imp{n}",
            "time": at,
        }
        kinds = [BehaviorKind.IMPRESSION, *([BehaviorKind.CLICK] * 2 if clicked else [])]
        for kind in kinds:
            self.add(UserBehavior(event_id=f"imp{n}.{kind}", kind=kind, **common), at)


@pytest.fixture(scope="module")
def world(_servers: Embedded) -> World:
    """For tests that only ask."""
    s3 = _servers.s3.model_copy(update={"bucket": f"test-{uuid.uuid4().hex[:16]}"})
    store = ObjectStore(s3)
    store.ensure_bucket()
    return written(s3, store)


@pytest.fixture
def own_world(s3: S3, store: ObjectStore) -> World:
    return written(s3, store)


def written(s3: S3, store: ObjectStore) -> World:
    world = World(s3, store)
    publish = ItemPublish(item_id="lantern", item_version=1, title="The Lantern at Night", time=NOON)
    world.add(publish.model_copy(update={"title": "Another version"}), NOON)
    source = world.add(publish, NOON, "publish-1")
    world.ready(source, NOON + MINUTE, covers={"neutral": "n1", "s-1": "a1", "s-2": "b1"})
    world.add(ModelUpdate(number=2, part="adapter", parts={"adapter": digest("x")}, time=NOON), NOON + 5 * MINUTE)
    later = NOON + timedelta(days=1)
    refresh = Source(topic="item-refresh", partition=3, offset=8)
    world.ready(refresh, later, generation=2, release=2, covers={"neutral": "n1", "s-1": "a2", "s-2": "b1"})
    for n in range(40):
        world.shown(f"u{n}", "s-1", "a1" if n < 30 else "a2", n % 10 == 0, NOON + 10 * MINUTE, n)
    stray = UserBehavior(
        event_id="stray",
        user_id="u1",
        item_id="lantern",
        kind=BehaviorKind.CLICK,
        impression_id="never-shown",
        time=NOON,
    )
    world.add(stray, NOON)
    world.sink.take([Message("item-publish", 1, 0, b"k", b"{", {}, round(NOON.timestamp() * 1000))])
    world.sink.flush()
    return world


def test_lineage_goes_back_to_event_inputs_and_rewards(world: World) -> None:
    views = Views(world.s3)
    found = questions.lineage(views, world.store, digest("a2"))
    assert found["event"] == {"topic": "item-refresh", "partition": 3, "offset": 8, "event_id": None}
    assert (found["item_id"], found["item_version"]) == ("lantern", 1)
    assert found["inputs"]["adapter"] == digest("adapter")
    assert found["inputs"]["seed"] == seed_of("lantern", 1)
    assert found["rewards"] == {"aesthetic": 0.5}
    assert (found["drawn"]["release"], found["drawn"]["segment_id"]) == (2, "s-1")
    assert found["drawn"]["revisions"] == {"adapter": digest("x")}

    first = questions.lineage(views, world.store, digest("b1")[:10])
    assert first["cover_id"] == digest("b1")
    assert first["published"]["title"] == "The Lantern at Night"  # the event that drew it, not another of its version
    assert first["event"]["event_id"] == "publish-1"
    assert first["drawn"]["revisions"] is None  # release 1 was announced before the audit began
    assert [(row["segment_id"], row["generation"], row["release"]) for row in first["shown_as"]] == [
        ("s-2", 1, 1),
        ("s-2", 2, 2),
    ]


def test_lineage_without_its_sidecar_says_so(own_world: World) -> None:
    world = own_world
    world.store.delete(sidecar_key("lantern", digest("n1")))
    found = questions.lineage(Views(world.s3), world.store, digest("n1"))
    assert "is gone" in found["inputs"]
    assert found["rewards"] == {"aesthetic": 0.5, "relevance": 0.25}
    assert found["event"]["topic"] == "item-publish"


@pytest.mark.parametrize(
    ("cover_id", "says"),
    [("f" * 64, "no cover"), ("abc", "no cover id"), ("not-hex-at-all", "no cover id"), ("e" * 65, "no cover id")],
)
def test_lineage_of_what_is_no_cover(world: World, cover_id: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        questions.lineage(Views(world.s3), world.store, cover_id)


def test_days_count_each_topic(world: World) -> None:
    second, first = questions.days(Views(world.s3))
    assert (str(first["day"]), str(second["day"])) == ("2026-11-21", "2026-11-22")
    assert (first["item_publish"], first["cover_ready"], first["unreadable"]) == (2, 2, 1)
    assert first["user_behavior"] == 40 + 2 * 4 + 1
    assert (first["covers"], second["covers"]) == (3, 3)
    assert (second["item_publish"], second["cover_ready"]) == (0, 2)


def test_clicks_count_an_impression_once_and_know_the_release_that_drew(world: World) -> None:
    rows = {(row["segment_id"], row["release"]): row for row in questions.clicks(Views(world.s3))}
    old, new = rows["s-1", 1], rows["s-1", 2]
    assert (old["impressions"], old["clicks"]) == (30, 3)
    assert (new["impressions"], new["clicks"]) == (10, 1)
    assert old["ctr"] == pytest.approx(0.1)
    assert old["ctr_low"] < 0.1 < old["ctr_high"]
    assert rows[None, None]["stray_clicks"] == 1
    assert rows[None, None]["ctr"] is None
    assert questions.clicks(Views(world.s3), NOON + timedelta(hours=1)) == []


def test_a_click_belongs_to_the_time_of_its_impression(own_world: World) -> None:
    world = own_world
    click = UserBehavior(
        event_id="late",
        user_id="u1",
        item_id="lantern",
        kind=BehaviorKind.CLICK,
        impression_id="imp1",
        time=NOON + timedelta(hours=2),
    )
    world.add(click, NOON + timedelta(hours=2))
    world.sink.flush()
    (stray,) = questions.clicks(Views(world.s3), NOON - MINUTE, NOON + MINUTE)
    assert (stray["impressions"], stray["stray_clicks"]) == (0, 1)
    assert questions.clicks(Views(world.s3), NOON + timedelta(hours=1)) == []  # its impression was earlier: no stray
    shown = questions.clicks(Views(world.s3), NOON + 9 * MINUTE, NOON + timedelta(hours=1))
    assert [(row["clicks"], row["stray_clicks"]) for row in shown] == [(4, 0), (1, 0)]


def test_wilson_agrees_with_the_published_interval() -> None:
    # Newcombe (1998), table I: 81 of 263 and 0 of 20.
    near = pytest.approx
    assert questions.wilson(81, 263) == (near(0.3080, abs=5e-5), near(0.2553, abs=5e-5), near(0.3662, abs=5e-5))
    assert questions.wilson(0, 20)[1:] == (0.0, pytest.approx(0.1611, abs=5e-5))


def test_the_state_as_of_a_time(world: World) -> None:
    views = Views(world.s3)

    def covers(at: datetime) -> dict[str, str]:
        return {row["segment_id"]: row["cover_id"] for row in questions.state(views, "lantern", at)}

    assert covers(NOON + 2 * MINUTE)["s-1"] == digest("a1")
    assert covers(NOON + timedelta(days=2)) == {"neutral": digest("n1"), "s-1": digest("a2"), "s-2": digest("b1")}
    assert questions.state(views, "lantern", NOON) == []
    with pytest.raises(UserError, match="no item nothing"):
        questions.state(views, "nothing", NOON)


def test_a_retired_item_is_one_row_without_a_cover(own_world: World) -> None:
    world = own_world
    at = NOON + timedelta(days=3)
    source = Source(topic="item-publish", partition=0, offset=99)
    world.ready(source, at, version=2, generation=3, covers={}, action="retired", outcome=Outcome.RETRACTED)
    world.sink.flush()
    (row,) = questions.state(Views(world.s3), "lantern", at)
    assert (row["action"], row["generation"], row["cover_id"]) == ("retired", 3, None)


def test_sql_knows_every_topic_and_finds_a_user_only_by_key(world: World) -> None:
    views = Views(world.s3)
    names = set(views.ask("show tables").column(0).to_pylist())
    assert {"item_publish", "item_refresh", "user_behavior", "cover_ready", "dead_letters", "unreadable"} <= names
    key = Pseudonyms("icg-demo").key("u7")
    rows = views.records("select count(*) as n from user_behavior where user_key = $key", {"key": key})
    assert rows == [{"n": 1}]
    assert views.records("select rewards['relevance'] as r from cover_ready limit 1") == [{"r": 0.25}]
    assert views.records("select * from item_refresh") == []
    with pytest.raises(UserError, match="no_such"):
        views.ask("select * from no_such")
    with pytest.raises(UserError, match="Parser Error"):
        views.ask("selec 1")


def test_variables_of_the_program_are_no_tables(world: World) -> None:
    secret = Views(world.s3)
    with pytest.raises(UserError, match="secret"):
        secret.ask("select * from secret")


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "", "12:30"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UserError, match="is no time"):
        questions.parse_time(text)


def test_a_time_without_a_zone_is_utc() -> None:
    assert questions.parse_time("2026-11-21T12:00") == NOON
    assert questions.parse_time("2026-11-21T13:00+01:00") == NOON


@pytest.fixture
def icg(light_zygote: Zygote) -> Icg:
    return lambda s3, *arguments: light_zygote.run(["audit", *arguments], environment(s3=s3))


def test_the_command_prints_table_json_and_csv(world: World, icg: Icg) -> None:
    table = icg(world.s3, "days")
    assert table.returncode == 0, table.stderr
    assert "2026-11-22" in table.stdout
    as_json = icg(world.s3, "lineage", digest("a1"), "--format", "json")
    assert json.loads(as_json.stdout)["inputs"]["seed"] == seed_of("lantern", 1)
    as_csv = icg(world.s3, "sql", "select item_id, rewards from cover_ready limit 1", "--format", "csv")
    header, row = csv.reader(io.StringIO(as_csv.stdout))
    assert header == ["item_id", "rewards"]
    assert json.loads(row[1]) == {"aesthetic": 0.5, "relevance": 0.25}
    empty = icg(world.s3, "sql", "select item_id from item_refresh", "-f", "csv")
    assert empty.stdout.strip() == "item_id"


@pytest.mark.parametrize(
    "arguments",
    [("lineage", "f" * 64), ("sql", "select * from nothing"), ("state", "lantern", "--as-of", "never"), ("days",)],
    ids=["unknown cover", "bad sql", "bad time", "no tables"],
)
def test_the_command_used_wrongly_says_so_in_two_lines(world: World, arguments: tuple[str, ...], icg: Icg) -> None:
    empty = world.s3.model_copy(update={"bucket": "test-empty-of-audit"})
    ObjectStore(empty).ensure_bucket()
    done = icg(empty if arguments == ("days",) else world.s3, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert 1 <= len(done.stderr.strip().splitlines()) <= 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("icg: ")
