import json

import numpy as np
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, Message

from bench.taste_world import messages
from workers.events import BadEvent, UserBehavior
from workers.preferences.decode import CLICK, IMPRESSION, PART, decode, keys_of

GOOD = {
    "time": "2026-01-02T03:04:05.678901Z",
    "event_id": "e1",
    "user_id": "u1",
    "item_id": "i1",
    "cover_id": "0" * 64,
    "kind": "impression",
}


def value(**changes: object) -> bytes:
    return json.dumps({name: each for name, each in {**GOOD, **changes}.items() if each is not None}).encode()


ODD = [
    b"",
    b"null",
    b"[]",
    b"not json",
    b"\xff\xfe",
    value() + b"x",
    value(event_id=None),
    value(event_id=""),
    value(event_id="."),
    value(user_id=".."),
    value(user_id="a b"),
    value(user_id="a\nb"),
    value(item_id="x" * 129),
    value(item_id="é"),
    value(item_id=7),
    value(cover_id="0" * 63),
    value(cover_id="G" * 64),
    value(cover_id="0" * 32 + "\n" + "0" * 31),
    value(segment_id="a/b"),
    value(page_id="x y"),
    value()[:-1] + b', "unknown": ' + b"[" * 2_000 + b"]" * 2_000 + b"}",
    value(impression_id="."),
    value(kind="stare"),
    value(position=-1),
    value(position="3"),
    value(position=10_001),
    value(surface="s" * 65),
    value(decision="d" * 4097),
    value(time="yesterday"),
    value(time="2026-01-02T03:04:05"),
    value(time="2026-13-02T03:04:05Z"),
    value(time=1767225600),
    value(time="2026-01-02T03:04:05+02:00"),
    value(time="2026-01-02 03:04:05Z"),
    value(value=1.5),
    value(value="a lot"),
    value(more={"unknown": ["fields"]}),
    value(event_id="e\u2028"),
]


def judged(odd: bytes) -> tuple[str, UserBehavior | None]:
    try:
        return "", UserBehavior.decode(odd)
    except BadEvent as error:
        return str(error), None


@pytest.mark.parametrize("odd", ODD)
def test_it_agrees_with_the_schema_on_odd_values(odd: bytes) -> None:
    batch, bad = decode(messages([value(event_id="before"), odd, value(event_id="after")]))
    reason, event = judged(odd)
    if event is None:
        assert [(each.index, each.reason) for each in bad] == [(1, reason)]
        assert batch.offset.tolist() == [0, 2]
    else:
        assert bad == []
        assert batch.user == ["u1", event.user_id, "u1"]
        assert batch.time[1] == round(event.time.timestamp() * 1e6)


def test_a_message_without_a_value_is_bad() -> None:
    batch, bad = decode(messages([None, value()]))
    assert len(batch) == 1
    assert bad[0].reason == "the message has no value"


def test_columns() -> None:
    click = value(event_id="e2", kind="click", impression_id="e1", decision="token")
    batch, bad = decode(messages([value(), click, value(event_id="e3", cover_id=None)], first=40))
    assert bad == []
    assert batch.offset.tolist() == [40, 41, 42]
    assert batch.kind.tolist() == [IMPRESSION, CLICK, IMPRESSION]
    assert batch.cover == ["0" * 64, "0" * 64, None]
    assert batch.impression == [None, "e1", None]
    assert batch.decision == [None, "token", None]
    assert np.array_equal(batch.key, keys_of(["e1", "e2", "e3"]))
    assert batch.time.tolist() == [1767323045678901] * 3
    assert batch.span(1, 2).user == ["u1"]


def test_a_large_batch_is_its_parts_in_order() -> None:
    refused = [0, PART - 1, PART, 2 * PART + 1]
    values = [b"bad" if n in refused else value(event_id=f"e{n}", user_id=f"u{n}") for n in range(2 * PART + 2)]
    batch, bad = decode(messages(values, first=7))
    assert [each.index for each in bad] == refused
    good = [n for n in range(len(values)) if n not in refused]
    assert batch.offset.tolist() == [7 + n for n in good]
    assert batch.user == [f"u{n}" for n in good]
    assert np.array_equal(batch.key, keys_of([f"e{n}" for n in good]))


def test_an_event_without_a_time_has_its_messages() -> None:
    stamp = (TIMESTAMP_CREATE_TIME, 1_767_323_000_000)
    batch, _ = decode([Message(topic="t", partition=0, offset=0, value=value(time=None), timestamp=stamp)])
    assert batch.time.tolist() == [1_767_323_000_000_000]


def test_a_clock_that_runs_ahead_moves_nobodys_watermark() -> None:
    stamp = (TIMESTAMP_CREATE_TIME, 1_767_323_045_000)
    records = [
        Message(topic="t", partition=0, offset=number, value=value(event_id=f"e{number}", time=time), timestamp=stamp)
        for number, time in enumerate(["2026-01-02T03:14:00Z", "2026-01-02T03:15:00Z", "2099-01-01T00:00:00Z"])
    ]
    batch, bad = decode(records)
    assert batch.offset.tolist() == [0]
    assert [each.index for each in bad] == [1, 2]
    assert "ahead" in bad[0].reason


def test_nothing_decodes_to_nothing() -> None:
    batch, bad = decode([])
    assert len(batch) == 0
    assert bad == []
