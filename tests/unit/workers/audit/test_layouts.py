"""Messages become typed rows, and no row names a person."""

from __future__ import annotations

import base64
from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from workers.audit.layouts import LAYOUTS, UNREADABLE_LAYOUT, Layout, Row, unreadable
from workers.audit.pseudonyms import Pseudonyms
from workers.events import (
    EVENTS,
    BadEvent,
    BehaviorKind,
    CoverReady,
    Event,
    ItemPublish,
    ItemRefresh,
    ModelUpdate,
    Outcome,
    ReadyCover,
    Source,
    UserBehavior,
    dead_letter_headers,
    headers_for,
)
from workers.messaging import Message

PEOPLE = Pseudonyms("a key of the tests")
BY_TOPIC = {layout.topic: layout for layout in LAYOUTS}
USER = "reader-7714"
STAMP = 1_795_221_985_073
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def message(event: Event, event_id: str = "e1", **changes: object) -> Message:
    key = event.key()
    headers = headers_for(event, event_id, "/test", {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    values: dict[str, object] = {
        "topic": event.topic,
        "partition": 2,
        "offset": 41,
        "key": key.encode() if key else None,
        "value": event.encode(),
        "headers": headers,
        "timestamp_ms": STAMP,
    }
    return Message(**(values | changes))  # type: ignore[arg-type]


def rows(event: Event, **changes: object) -> list[Row]:
    layout = BY_TOPIC[event.topic]
    made = layout.rows(message(event, **changes), PEOPLE)  # type: ignore[arg-type]
    assert arrow(layout, made).num_rows == len(made)
    return made


def arrow(layout: Layout, made: list[Row]) -> pa.Table:
    """The rows as their table has them; every field has a column and nothing but lists and maps has any depth."""
    for row in made:
        assert set(row) <= set(layout.schema.names)
    return pa.Table.from_pylist(made, schema=layout.schema)


def behavior(**changes: object) -> UserBehavior:
    values: dict[str, object] = {
        "event_id": "imp-1.click",
        "user_id": USER,
        "item_id": "item-1",
        "kind": BehaviorKind.CLICK,
        "impression_id": "imp-1",
    }
    return UserBehavior(**(values | changes))  # type: ignore[arg-type]


def test_every_topic_but_two_has_a_table() -> None:
    topics = {event.topic for event in EVENTS} | {"dead-letters"}
    assert topics - set(BY_TOPIC) == {"user-erasure", "preference-pairs"}


def test_a_publish_keeps_its_fields_and_where_it_lay() -> None:
    event = ItemPublish(item_id="item-1", item_version=3, title="The Lantern at Night", language="en-GB")
    (row,) = rows(event)
    assert row["day"] == date(2026, 11, 21)
    assert (row["kafka_partition"], row["kafka_offset"]) == (2, 41)
    assert row["kafka_time"] == datetime.fromtimestamp(STAMP / 1000, UTC)
    assert (row["event_id"], row["trace_id"]) == ("e1", TRACE)
    assert (row["item_id"], row["item_version"], row["title"]) == ("item-1", 3, "The Lantern at Night")
    assert row["time"] == event.time


def test_a_refresh_and_a_release_fill_their_columns() -> None:
    (refresh,) = rows(ItemRefresh(item_id="item-1", segments=("s-1", "s-2"), priority=4))
    assert (refresh["segments"], refresh["priority"]) == (("s-1", "s-2"), 4)
    (release,) = rows(ModelUpdate(number=5, part="segments", parts={"segments": "a" * 64, "base": "b" * 64}))
    assert (release["number"], release["segments_revision"], release["map_revision"]) == (5, "a" * 64, None)


def ready(*covers: ReadyCover, **changes: object) -> CoverReady:
    values: dict[str, object] = {
        "item_id": "item-1",
        "item_version": 3,
        "action": "ready",
        "outcome": Outcome.DRAWN,
        "source": Source(topic="item-publish", partition=1, offset=9, event_id="p9"),
        "covers": covers,
        "release": 2,
        "generation": 7,
    }
    return CoverReady(**(values | changes))  # type: ignore[arg-type]


def cover(segment: str) -> ReadyCover:
    return ReadyCover(
        segment_id=segment,
        rendition="default",
        cover_id="c" * 64,
        address="s3://icg/covers/item-1/c.webp",
        sha256="d" * 64,
        width=64,
        height=64,
        rewards={"aesthetic": 0.25},
    )


def test_one_row_a_cover_and_one_for_an_event_without_any() -> None:
    two = rows(ready(cover("neutral"), cover("s-1")))
    assert [row["segment_id"] for row in two] == ["neutral", "s-1"]
    assert {(row["source_topic"], row["source_partition"], row["source_offset"]) for row in two} == {
        ("item-publish", 1, 9)
    }
    assert two[0]["rewards"] == {"aesthetic": 0.25}
    (retired,) = rows(ready(action="retired", outcome=Outcome.RETRACTED))
    assert retired["outcome"] == "retracted"
    assert "cover_id" not in retired


def test_behavior_has_a_key_instead_of_the_user() -> None:
    (row,) = rows(behavior(position=3, position_propensity=0.25))
    assert (row["position"], row["position_propensity"]) == (3, 0.25)
    assert row["user_key"] == PEOPLE.key(USER)
    assert row["user_key"] != Pseudonyms("another key").key(USER)
    assert (row["kind"], row["impression_id"]) == ("click", "imp-1")
    assert "user_id" not in BY_TOPIC["user-behavior"].schema.names


def test_a_platforms_ids_made_from_the_users_are_keyed_and_still_join() -> None:
    token = base64.urlsafe_b64encode(f'{{"user":"{USER}"}}'.encode()).decode().rstrip("=") + ".c2lnbmF0dXJl"
    impression_id = f"{USER}-imp-1"
    (shown,) = rows(behavior(event_id=impression_id, kind=BehaviorKind.IMPRESSION, impression_id=None, decision=token))
    (clicked,) = rows(
        behavior(event_id=f"x{USER}", impression_id=impression_id, page_id=USER.encode().hex(), surface=f"feed/{USER}")
    )
    assert shown["event_id"] == clicked["impression_id"]
    for row in (shown, clicked):
        text = repr(row)
        assert USER not in text
        assert USER.encode().hex() not in text
    assert shown["decision"] != token


def test_a_token_that_names_nobody_is_kept() -> None:
    token = base64.urlsafe_b64encode(b'{"p":"segment","q":[0.9,0.1]}').decode().rstrip("=") + ".c2lnbmF0dXJl"
    (row,) = rows(behavior(decision=token))
    assert row["decision"] == token


def test_no_statistics_of_columns_that_could_lead_to_a_person() -> None:
    personal = {"user_key", "event_id", "impression_id", "page_id", "surface", "decision"}
    for topic in ("user-behavior", "dead-letters"):
        assert not personal & set(BY_TOPIC[topic].indexed)
    for layout in (*LAYOUTS, UNREADABLE_LAYOUT):
        assert set(layout.indexed) <= set(layout.schema.names)


@pytest.mark.parametrize("topic", ["user-behavior", "item-publish"])
def test_a_dead_letter_keeps_why_and_where_but_not_the_bytes(topic: str) -> None:
    secret = b'{"user_id": "reader-7714", "kind": "stare"}'
    headers = dead_letter_headers(
        f"kind: not a kind of {USER}", Source(topic=topic, partition=3, offset=12), "preferences", 2, {"ce_id": b"x-1"}
    )
    letter = Message("dead-letters", 0, 5, USER.encode(), secret, headers, STAMP)
    layout = BY_TOPIC["dead-letters"]
    (row,) = layout.rows(letter, PEOPLE)
    arrow(layout, [row])
    assert (row["source_topic"], row["source_partition"], row["source_offset"]) == (topic, 3, 12)
    assert (row["service"], row["attempt"], row["bytes"]) == ("preferences", 2, len(secret))
    assert "stare" not in repr(row)
    if topic == "user-behavior":
        assert USER not in repr(row)
        assert row["user_key"] == PEOPLE.key(USER)
    else:
        assert row["item_id"] == USER


def test_a_dead_letter_with_nonsense_in_its_headers_is_still_a_row() -> None:
    headers = {"dlq_partition": b"-1e9", "dlq_offset": b"9" * 40, "dlq_attempt": b"\xff", "dlq_time": b"yesterday"}
    (row,) = BY_TOPIC["dead-letters"].rows(Message("dead-letters", 0, 5, b"\xff\xfe", None, headers, -1), PEOPLE)
    arrow(BY_TOPIC["dead-letters"], [row])
    assert (row["source_partition"], row["source_offset"], row["attempt"], row["time"]) == (None, None, None, None)
    assert row["day"] == date(1970, 1, 1)


def test_a_time_beyond_reason_falls_on_the_first_day() -> None:
    (row,) = rows(ItemRefresh(item_id="i"), timestamp_ms=2**62)
    assert row["day"] == date(1970, 1, 1)


def test_what_is_not_a_traceparent_is_left_out() -> None:
    (row,) = rows(ItemRefresh(item_id="i"), headers={"traceparent": USER.encode()})
    assert row["trace_id"] is None


def test_a_bad_event_says_why_and_its_row_holds_no_bytes() -> None:
    bad = message(behavior(), value=b'{"user_id": "reader-7714"', offset=77)
    with pytest.raises(BadEvent) as error:
        BY_TOPIC["user-behavior"].rows(bad, PEOPLE)
    row = unreadable(bad, f"{error.value} by {USER}", PEOPLE)
    arrow(UNREADABLE_LAYOUT, [row])
    assert (row["topic"], row["kafka_offset"], row["bytes"]) == ("user-behavior", 77, 25)
    assert "JSON" in row["reason"]
    assert USER not in repr(row)


@pytest.mark.parametrize(
    ("text", "user", "expected"),
    [
        ("no user reader-7714 here", USER, "no user … here"),
        ("position: 17 is too large", "7", "position: 17 is too large"),
        ("user 7: unknown", "7", "user …: unknown"),
        ("nobody", "", "nobody"),
    ],
)
def test_redaction_takes_the_id_and_leaves_the_sentence(text: str, user: str, expected: str) -> None:
    assert PEOPLE.redact(text, user) == expected


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(ValueError, match="ICG_AUDIT_USER_KEY"):
        Pseudonyms("")
